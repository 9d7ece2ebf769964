/** `ct sign` as a program: what it signs, what it refuses, and what it says of a tree that has changed. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { generateKeyPair } from '../../src/signing/own-key.ts';
import { verifyManifest } from '../../src/verification/manifest-bundle.ts';
import { loadTrust } from '../../src/verification/trust.ts';
import { type CtOutcome, runCt } from '../support/run-ct.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';
import { IDENTITY, ISSUER, identityToken, type Sigstore, startSigstore } from '../support/sigstore.ts';

let scratch: Scratch;
let project = '';
const keys = generateKeyPair();
const write = (path: string, content: string): void => {
  mkdirSync(dirname(join(project, path)), { recursive: true });
  writeFileSync(join(project, path), content);
};
const ct = (...args: string[]): Promise<CtOutcome> =>
  runCt(args, { cwd: project, env: { XDG_CONFIG_HOME: join(scratch.path, 'config') } });

before(() => {
  scratch = scratchDirectory();
  writeFileSync(join(scratch.path, 'a.key'), keys.privateKeyPem, { mode: 0o600 });
  writeFileSync(join(scratch.path, 'a.pub'), keys.publicKeyPem);
});
after(() => scratch[Symbol.dispose]());
beforeEach(() => {
  project = join(scratch.path, 'project');
  rmSync(project, { recursive: true, force: true });
  write('scripts/build.sh', 'make\n');
  write('scripts/lib/common.sh', 'set -e\n');
  symlinkSync('lib/common.sh', join(project, 'scripts/common'));
  write('ci/deploy.sh', 'deploy\n');
  write('ci/other.sh', 'other\n');
});
const sign = (...args: string[]): Promise<CtOutcome> => ct('sign', '--key', '../a.key', ...args);

test('a manifest names files, links and whole directories, and the same tree gives the same statement', async () => {
  const first = await sign('scripts', 'ci/deploy.sh');
  assert.equal(first.status, 0, first.stderr);
  const trust = loadTrust({ keys: [{ name: 'a', pem: keys.publicKeyPem }] });
  const accepted = { keys: { names: ['a'], logs: 0, timestampAuthorities: 0 } };
  const read = (path: string) =>
    verifyManifest(readFileSync(join(project, path)), trust, accepted, new Date());
  const { manifest, signer } = read('ct.signed.json');
  assert.deepEqual([...manifest.files.keys()], ['ci/deploy.sh', 'scripts/build.sh', 'scripts/lib/common.sh']);
  assert.deepEqual([...manifest.links], [['scripts/common', 'lib/common.sh']]);
  assert.deepEqual(manifest.directories, ['scripts']);
  assert.equal(signer.signer.kind, 'key');
  const second = await sign('ci/deploy.sh', './scripts/', '-o', 'again.json');
  assert.equal(second.status, 0, second.stderr);
  assert.deepEqual(read('again.json').signer.content, signer.content);
});

test('--check names what was changed, removed and added, and what was not signed does not matter', async () => {
  await sign('scripts', 'ci/deploy.sh');
  const same = await ct('sign', '--check', '--key', '../a.pub');
  assert.equal(same.status, 0, same.stderr);
  assert.match(same.stderr, /signed by key/);
  write('ci/other.sh', 'changed, and nobody signed it\n');
  assert.equal((await ct('sign', '--check')).status, 0);
  write('scripts/build.sh', 'make evil\n');
  rmSync(join(project, 'scripts/lib/common.sh'));
  symlinkSync('/etc/passwd', join(project, 'scripts/extra'));
  const { status, stdout } = await ct('sign', '--check', '--json');
  assert.equal(status, 122);
  assert.deepEqual(JSON.parse(stdout).changes, [
    { path: 'scripts/build.sh', what: 'changed' },
    { path: 'scripts/extra', what: 'unlisted' },
    { path: 'scripts/lib/common.sh', what: 'missing' },
  ]);
});

test('--check with another key than the one that signed is SIGNATURE_UNTRUSTED', async () => {
  await sign('scripts');
  writeFileSync(join(scratch.path, 'b.pub'), generateKeyPair().publicKeyPem);
  const { status, stderr } = await ct('sign', '--check', '--key', '../b.pub');
  assert.equal(status, 122);
  assert.match(stderr, /SIGNATURE_UNTRUSTED/);
});

const REFUSED: readonly [name: string, prepare: () => void, args: string[], reason: RegExp][] = [
  ['the whole tree', () => {}, ['.'], /whole tree/],
  ['a path outside', () => {}, ['../a.pub'], /not below/],
  [
    'a link out of the tree',
    () => symlinkSync('/etc', join(project, 'scripts/etc')),
    ['scripts'],
    /out of the tree/,
  ],
  [
    'a link to what is not signed',
    () => symlinkSync('../ci', join(project, 'scripts/ci')),
    ['scripts'],
    /not signed/,
  ],
  [
    'a path through a link',
    () => symlinkSync('scripts', join(project, 'alias')),
    ['alias/build.sh'],
    /by the link alias/,
  ],
  ['nothing', () => mkdirSync(join(project, 'empty')), ['empty'], /no file to sign/],
  ['a manifest within what it covers', () => {}, ['scripts', '-o', 'scripts/m.json'], /would lie among/],
];
for (const [name, prepare, args, reason] of REFUSED) {
  test(`${name} is not signed`, async () => {
    prepare();
    const { status, stderr } = await sign(...args);
    assert.equal(status, 2, stderr);
    assert.match(stderr, reason);
  });
}

test('a signing command of the configuration signs a digest, and a project cannot name a program itself', async () => {
  mkdirSync(join(scratch.path, 'config/ct'), { recursive: true, mode: 0o700 });
  const program = ['openssl', 'pkeyutl', '-sign', '-inkey', join(scratch.path, 'a.key')];
  writeFileSync(
    join(scratch.path, 'config/ct/config.yml'),
    `signing:\n  release:\n    command: ${JSON.stringify(program)}\n    public-key: ../../a.pub\n`,
    { mode: 0o600 },
  );
  const signed = await ct('sign', 'scripts', '--key-command', 'release');
  assert.equal(signed.status, 0, signed.stderr);
  assert.equal((await ct('sign', '--check', '--key', '../a.pub')).status, 0);
  const unknown = await ct('sign', 'scripts', '--key-command', 'other');
  assert.equal(unknown.status, 2);
  assert.match(unknown.stderr, /names no signing command/);
});

test('keyless: signed as the identity of a token, and only that identity is accepted', async () => {
  await using sigstore: Sigstore = await startSigstore();
  const config = {
    mediaType: 'application/vnd.dev.sigstore.signingconfig.v0.2+json',
    caUrls: [service(sigstore.url)],
    rekorTlogUrls: [service(sigstore.url)],
    tsaUrls: [service(sigstore.url)],
    rekorTlogConfig: { selector: 'ALL' },
    tsaConfig: { selector: 'ALL' },
  };
  writeFileSync(join(scratch.path, 'services.json'), JSON.stringify(config));
  writeFileSync(join(scratch.path, 'token'), identityToken());
  writeFileSync(join(scratch.path, 'root.json'), sigstore.trustedRoot);
  const signed = await ct(
    'sign',
    'scripts',
    '--identity-token',
    '../token',
    '--signing-config',
    '../services.json',
  );
  assert.equal(signed.status, 0, signed.stderr);
  const check = (identity: string): Promise<CtOutcome> =>
    ct('sign', '--check', '--identity', identity, '--issuer', ISSUER, '--trusted-root', '../root.json');
  const accepted = await check(IDENTITY);
  assert.equal(accepted.status, 0, accepted.stderr);
  const other = await check(`${IDENTITY}0`);
  assert.equal(other.status, 122);
  assert.match(other.stderr, /SIGNATURE_UNTRUSTED/);
});

function service(url: string): object {
  return { url, majorApiVersion: 1, operator: 'test', validFor: { start: '2020-01-01T00:00:00Z' } };
}
