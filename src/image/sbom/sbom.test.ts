import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { test } from 'node:test';
import { Ajv } from 'ajv';
import addFormats from 'ajv-formats';
import { installRoot } from '../../core/install.ts';
import type { LockedPackage } from '../packages.ts';
import { encodeCycloneDx } from './cyclonedx.ts';
import { debianPurl, npmPurl } from './purl.ts';
import { encodeSpdx } from './spdx.ts';
import type { SbomSubject } from './subject.ts';

const hex = (letter: string): string => letter.repeat(64);
const locked = (name: string, version: string, source = name, sourceVersion = version): LockedPackage => ({
  ...{ name, version, architecture: 'amd64', sha256: hex('a'), source, sourceVersion },
});
const attributes = { mode: 0o644, uid: 0, gid: 0, sizeBytes: 1 };
const SUBJECT: SbomSubject = {
  name: 'ci',
  suite: 'bookworm',
  inventory: {
    schemaVersion: 1,
    packages: [
      { ...locked('bash', '5.2.15-2+b13', 'bash', '5.2.15-2'), licences: ['Expat', 'GPL-1+ or Artistic'] },
      { ...locked('git', '1:2.39.5-0+deb12u3'), licences: ['GPL-2', 'a licence of "ours"'] },
      locked('mawk', '1.3.4~1-2'),
    ],
    npm: [
      { name: '@a/b', version: '2.0.0-rc.1', integrity: `sha512-${'A'.repeat(86)}==`, licence: 'MIT' },
      { name: 'brought-along', version: '1.0.0' },
    ],
    files: [
      { path: '/etc', type: 'directory', ...attributes },
      { path: '/etc/a b\n`|', type: 'file', ...attributes, sha256: hex('b'), sha1: 'c'.repeat(40) },
      { path: '/usr/bin/git', type: 'file', ...attributes, sha256: hex('d'), owner: 'deb:git' },
    ],
  },
  rootfs: `sha256:${hex('1')}`,
  initramfs: `sha256:${hex('2')}`,
  kernel: {
    digest: `sha256:${hex('3')}`,
    version: '6.1.0-1-cloud-amd64',
    package: locked('linux-image-6.1.0-1-cloud-amd64', '6.1.1-1', 'linux-signed-amd64', '6.1.1+1'),
  },
  guestAgent: { digest: `sha256:${hex('4')}`, sourceDigest: `sha256:${hex('5')}` },
  probe: { digest: `sha256:${hex('6')}` },
  ctVersion: '0.1.0',
};

/** It has no types. */
const addMoreFormats = createRequire(import.meta.url)('ajv-formats-draft2019') as (ajv: Ajv) => void;

/** CycloneDX's own schema, in which nothing unknown may stand. */
function cycloneDxErrors(document: unknown): readonly unknown[] {
  const schema = (name: string): object =>
    JSON.parse(
      readFileSync(join(installRoot, 'node_modules/@cyclonedx/cyclonedx-library/res/schema', name), 'utf8'),
    ) as object;
  const ajv = new Ajv({ strict: false, allErrors: true });
  addFormats.default(ajv);
  addMoreFormats(ajv);
  for (const name of ['jsf-0.82', 'spdx'])
    ajv.addSchema(
      schema(`${name}.SNAPSHOT.schema.json`),
      `http://cyclonedx.org/schema/${name}.SNAPSHOT.schema.json`,
    );
  const validate = ajv.compile(schema('bom-1.6.SNAPSHOT.schema.json'));
  validate(document);
  return validate.errors ?? [];
}

test('purls name packages as scanners do', () => {
  assert.equal(
    debianPurl(locked('git', '1:2.39.5-0+deb12u3~1'), 'bookworm'),
    'pkg:deb/debian/git@1:2.39.5-0%2Bdeb12u3~1?arch=amd64&distro=bookworm',
  );
  assert.equal(
    debianPurl(locked('libstdc++6', '12.2.0-14', 'gcc-12', '12.2.0-14+x'), 'bookworm'),
    'pkg:deb/debian/libstdc%2B%2B6@12.2.0-14?arch=amd64&distro=bookworm&upstream=gcc-12%4012.2.0-14%2Bx',
  );
  assert.equal(npmPurl({ name: '@a/b', version: '1.0.0-rc.1' }), 'pkg:npm/%40a/b@1.0.0-rc.1');
});

test('the CycloneDX document is one by its schema, and holds packages, files of nobody, kernel, agent and builder', () => {
  const text = encodeCycloneDx(SUBJECT);
  const document = JSON.parse(text);
  assert.deepEqual(cycloneDxErrors(document), []);
  assert.equal(encodeCycloneDx(SUBJECT), text);

  const refs = document.components.map((entry: { 'bom-ref': string }) => entry['bom-ref']);
  assert.equal(new Set(refs).size, refs.length);
  assert.deepEqual([...document.dependencies[0].dependsOn].sort(), [...refs].sort());
  const named = (name: string) => document.components.find((entry: { name: string }) => entry.name === name);
  assert.deepEqual(named('bash').licenses, [
    { expression: 'MIT AND (GPL-1.0-or-later OR Artistic-1.0-Perl)' },
  ]);
  assert.deepEqual(named('git').licenses, [
    { license: { id: 'GPL-2.0-only' } },
    { license: { name: 'a licence of "ours"' } },
  ]);
  assert.equal(named('mawk').licenses, undefined);
  assert.deepEqual(named('bash').properties, [
    { name: 'ct:sourcePackage', value: 'bash' },
    { name: 'ct:sourceVersion', value: '5.2.15-2' },
  ]);
  assert.equal(named('b').group, '@a');
  assert.deepEqual(named('/etc/a b\n`|').hashes, [{ alg: 'SHA-256', content: hex('b') }]);
  assert.equal(named('/usr/bin/git'), undefined);
  assert.equal(named('linux-image-6.1.0-1-cloud-amd64').components[0].hashes[0].content, hex('3'));
  assert.equal(named('ct-guest-agent').hashes[0].content, hex('4'));
  assert.equal(document.metadata.tools.components[0].name, 'ct');
  assert.equal(document.metadata.timestamp, '2025-01-01T00:00:00Z');
});

test('the check of the schema is one: a document with something unknown, wrong or twice fails it', () => {
  interface Document {
    readonly metadata: object;
    readonly components: { readonly hashes: object[] }[];
  }
  const changes: readonly ((document: Document) => void)[] = [
    (document) => Object.assign(document, { unknown: 1 }),
    (document) => Object.assign(document, { bomFormat: 'Other' }),
    (document) => Object.assign(document, { serialNumber: 'urn:uuid:x' }),
    (document) => Object.assign(document.components[1] ?? {}, { type: 'program' }),
    (document) => Object.assign(document.components[1] ?? {}, { licenses: [{ license: { id: 'GPL-2+' } }] }),
    (document) => Object.assign(document.components[1]?.hashes[0] ?? {}, { content: 'x' }),
    (document) => Object.assign(document.metadata, { timestamp: 'yesterday' }),
    (document) => document.components.push(...document.components.slice(0, 1)),
  ];
  for (const [index, change] of changes.entries()) {
    const document = JSON.parse(encodeCycloneDx(SUBJECT));
    change(document);
    assert.notEqual(cycloneDxErrors(document).length, 0, `change ${index}`);
  }
});

test('the SPDX document says the same, with identifiers that are unique and relationships that lead somewhere', () => {
  const text = encodeSpdx(SUBJECT);
  const document = JSON.parse(text);
  assert.equal(encodeSpdx(SUBJECT), text);
  assert.equal(document.spdxVersion, 'SPDX-2.3');
  assert.equal(document.dataLicense, 'CC0-1.0');
  assert.match(
    document.documentNamespace,
    /^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
  );
  assert.match(document.creationInfo.created, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);

  const elements = [...document.packages, ...document.files];
  const ids = new Set<string>(elements.map(({ SPDXID }: { SPDXID: string }) => SPDXID));
  assert.equal(ids.size, elements.length);
  for (const id of ids) assert.match(id, /^SPDXRef-[A-Za-z0-9.-]+$/);
  for (const { spdxElementId, relatedSpdxElement } of document.relationships) {
    assert.ok(ids.has(spdxElementId) || spdxElementId === 'SPDXRef-DOCUMENT');
    assert.ok(ids.has(relatedSpdxElement));
  }
  assert.equal(document.relationships.length, elements.length, 'everything is related once');
  for (const entry of document.packages) {
    for (const key of ['name', 'downloadLocation', 'licenseConcluded', 'licenseDeclared', 'copyrightText'])
      assert.ok(entry[key], key);
    assert.equal(entry.filesAnalyzed, false);
  }
  for (const entry of document.files) {
    assert.deepEqual(
      entry.checksums.map(({ algorithm }: { algorithm: string }) => algorithm),
      ['SHA1', 'SHA256'],
    );
  }
  const named = (name: string) => document.packages.find((entry: { name: string }) => entry.name === name);
  assert.equal(named('bash').licenseDeclared, 'MIT AND (GPL-1.0-or-later OR Artistic-1.0-Perl)');
  assert.equal(named('mawk').licenseDeclared, 'NOASSERTION');
  assert.match(named('bash').sourceInfo, /source package bash 5\.2\.15-2$/);
  const [, reference] = named('git').licenseDeclared.split(' AND ');
  assert.deepEqual(
    document.hasExtractedLicensingInfos.map(({ licenseId }: { licenseId: string }) => licenseId),
    [reference],
  );
  assert.match(reference, /^LicenseRef-[A-Za-z0-9.-]+$/);
});

test('another image has another serial number', () => {
  const other: SbomSubject = { ...SUBJECT, rootfs: `sha256:${hex('9')}` };
  const [a, b] = [SUBJECT, other].map((subject) => JSON.parse(encodeCycloneDx(subject)).serialNumber);
  assert.notEqual(a, b);
});
