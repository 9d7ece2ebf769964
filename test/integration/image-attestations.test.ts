/** Provenance and SBOMs that are signed with an image, and what is removed with it: `ct image sign`, `provenance`, `rm` and `ct gc`. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { attestationStatement } from '../../src/image/attestations.ts';
import { buildProvenanceOf, writeProvenance } from '../../src/image/image-provenance.ts';
import { storeResult } from '../../src/image/scan/result.ts';
import { ImageSignatures, imageStatement } from '../../src/image/signatures.ts';
import { ImageStore } from '../../src/image/store.ts';
import { generateKeyPair, ownKey } from '../../src/signing/own-key.ts';
import { NO_SERVICES } from '../../src/signing/services.ts';
import { keySigner } from '../../src/signing/signer.ts';
import { debianPackage, storeImage } from '../fixtures/vuln/image.ts';
import { numberedDirectories, scratchDirectory } from '../support/scratch.ts';

const BUILDER = 'https://builder.example/images@refs/heads/main';
const scratch = scratchDirectory();
after(() => scratch[Symbol.dispose]());
const directory = numberedDirectories(scratch);

function ct(ctHome: string, ...args: readonly string[]) {
  const env = { PATH: process.env['PATH'], HOME: scratch.path, CT_HOME: ctHome, CI: 'true' };
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [join(installRoot, 'src/cli/main.ts'), ...args],
    { env, encoding: 'utf8', timeout: 50_000 },
  );
  return { status, stdout, stderr };
}

function succeeded(outcome: ReturnType<typeof ct>): ReturnType<typeof ct> {
  assert.equal(outcome.status, 0, outcome.stderr);
  return outcome;
}

/** Of an image that was built, as far as these commands can tell. */
async function builtImage(ctHome: string): Promise<string> {
  const { digest } = await storeImage(ctHome, 'own');
  const provenance = buildProvenanceOf({
    definition: { name: 'own', base: ['bookworm'], digest: 'd'.repeat(64), npm: [] } as unknown as Parameters<
      typeof buildProvenanceOf
    >[0]['definition'],
    packages: [debianPackage('libstdc++6', '1:12.2.0-14+deb12u1')],
    kernel: debianPackage('linux-image-6.1.0-9-cloud-amd64', '6.1.20-1'),
    guestAgent: `sha256:${'a'.repeat(64)}`,
    lock: `sha256:${'b'.repeat(64)}`,
    startedAt: new Date('2026-11-01T00:00:00Z'),
    finishedAt: new Date('2026-11-01T00:01:00Z'),
  });
  await writeProvenance(ctHome, digest, provenance);
  return digest;
}

function keyFiles() {
  const path = directory();
  const pair = generateKeyPair();
  writeFileSync(join(path, 'image.key'), pair.privateKeyPem, { mode: 0o600 });
  writeFileSync(join(path, 'image.pub'), pair.publicKeyPem);
  return { ...pair, key: join(path, 'image.key'), publicKey: join(path, 'image.pub') };
}

test('an image is signed with its provenance and its SBOM, and both are shown by whoever verifies it', async () => {
  const ctHome = directory();
  const digest = await builtImage(ctHome);
  const { key, publicKey } = keyFiles();
  const unsigned = JSON.parse(succeeded(ct(ctHome, 'image', 'provenance', 'own')).stdout);
  assert.equal(unsigned.runDetails.builder.id, 'urn:ct:image-builder');
  assert.equal(unsigned.buildDefinition.externalParameters.lock.sha256, 'b'.repeat(64));
  assert.deepEqual(unsigned.buildDefinition.resolvedDependencies[0], {
    uri: 'pkg:deb/debian/libstdc++6@1%3A12.2.0-14%2Bdeb12u1?arch=amd64',
    digest: { sha256: '0'.repeat(64) },
  });
  const none = ct(ctHome, 'image', 'provenance', 'own', '--key', publicKey);
  assert.equal(none.status, 122);
  assert.match(none.stderr, /SIGNATURE_MISSING/);
  const said = succeeded(ct(ctHome, 'image', 'sign', 'own', '--key', key, '--builder', BUILDER));
  assert.match(said.stderr, /own signed .*, with provenance and SBOM/);
  const verified = succeeded(ct(ctHome, 'image', 'verify', 'own', '--key', publicKey, '--json'));
  const { attestations } = JSON.parse(verified.stdout) as {
    attestations: { kind: string; builder?: string }[];
  };
  assert.deepEqual(
    attestations.map(({ kind, builder }) => [kind, builder]),
    [
      ['provenance', BUILDER],
      ['sbom', undefined],
    ],
  );
  const signed = JSON.parse(succeeded(ct(ctHome, 'image', 'provenance', digest, '--key', publicKey)).stdout);
  assert.deepEqual(signed.buildDefinition, unsigned.buildDefinition);
  assert.equal(signed.runDetails.builder.id, BUILDER);
});

test('attestations of a key that is not accepted, and an SBOM that is not that of the image, are not shown', async () => {
  const ctHome = directory();
  const digest = await builtImage(ctHome);
  const ours = keyFiles();
  const theirs = keyFiles();
  succeeded(ct(ctHome, 'image', 'sign', 'own', '--key', theirs.key));
  const signer = keySigner(await ownKey(ours.privateKeyPem), NO_SERVICES);
  const forged = attestationStatement('sbom', 'own', digest, { bomFormat: 'CycloneDX', components: [] });
  const signatures = new ImageSignatures(ctHome);
  await signatures.add(digest, await signer.signStatement(forged));
  await signatures.add(digest, await signer.signStatement(imageStatement('own', digest)));
  const verified = succeeded(ct(ctHome, 'image', 'verify', 'own', '--key', ours.publicKey, '--json'));
  assert.deepEqual(JSON.parse(verified.stdout).attestations, []);
  const control = succeeded(ct(ctHome, 'image', 'verify', 'own', '--key', theirs.publicKey, '--json'));
  assert.equal(JSON.parse(control.stdout).attestations.length, 2);
});

test('with an image go the parts that only it has, its signatures and what scans found; another image keeps its own', async () => {
  const ctHome = directory();
  const digest = await builtImage(ctHome);
  const other = await storeImage(ctHome, 'other');
  const { key, publicKey } = keyFiles();
  for (const name of ['own', 'other']) succeeded(ct(ctHome, 'image', 'sign', name, '--key', key));
  await storeResult(ctHome, {
    version: 1,
    image: { name: 'own', digest },
    detector: 'apt',
    source: { revision: `sha256:${'a'.repeat(64)}`, asOf: '2026-11-01T00:00:00Z' },
    scannedAt: '2026-11-01T00:00:00Z',
    packages: { examined: 0, unexamined: [] },
    counts: { critical: 0, high: 0, medium: 0, unknown: 0, low: 0, negligible: 0 },
    findings: [],
  });
  const wrong = ct(ctHome, 'image', 'rm', 'own', 'nothing');
  assert.equal(wrong.status, 2);
  assert.match(wrong.stderr, /IMAGE_NOT_FOUND/);
  const { removed, freedBytes } = JSON.parse(succeeded(ct(ctHome, 'image', 'rm', 'own', '--json')).stdout);
  assert.deepEqual(removed, [{ name: 'own', digest }]);
  assert.ok(freedBytes > 1000);
  const store = new ImageStore(ctHome);
  assert.equal(await store.has(digest), false);
  assert.equal(existsSync(join(ctHome, 'images', digest.replace(':', '/'))), false);
  assert.deepEqual(readdirSync(join(ctHome, 'vuln/results')), []);
  succeeded(ct(ctHome, 'image', 'verify', 'other', '--key', publicKey, '--full'));
  assert.deepEqual(
    (await store.list()).map((image) => image.digest),
    [other.digest],
  );
});

test('signatures of an image whose manifest is gone are removed with the next collection', async () => {
  const ctHome = directory();
  await builtImage(ctHome);
  const store = new ImageStore(ctHome);
  const gone = `sha256:${'9'.repeat(64)}`;
  await new ImageSignatures(ctHome).add(gone, Buffer.from('{}'));
  await store.collectGarbage(Date.now());
  assert.equal(existsSync(join(ctHome, 'images', gone.replace(':', '/'))), false);
  const kept = readdirSync(join(ctHome, 'images/sha256'));
  assert.equal(kept.length, 1, 'those of the image that is there stay');
});
