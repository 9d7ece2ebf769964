import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, readdirSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { BlobRef, ImageManifest } from './manifest.ts';
import { digestOf, ImageStore } from './store.ts';

function newStore(t: TestContext): { store: ImageStore; home: string } {
  const home = mkdtempSync(join(tmpdir(), 'ct-store-'));
  t.after(() => rmSync(home, { recursive: true }));
  const store = new ImageStore(home);
  store.prepare();
  return { store, home };
}

function manifestOf(name: string, rootfs: BlobRef): ImageManifest {
  const hash = '0'.repeat(64);
  const verity = {
    algorithm: 'sha256',
    blockBytes: 4096,
    dataBlocks: 1,
    hashStartBlock: 1,
    rootHash: hash,
    salt: hash,
  } as const;
  return {
    schemaVersion: 1,
    name,
    architecture: 'amd64',
    rootfs: { ...rootfs, verity },
    kernel: { ...rootfs, version: '6.1' },
    initramfs: rootfs,
    user: { name: 'ci', uid: 1000, gid: 1000, home: '/home/ci' },
    env: {},
    definitionDigest: `sha256:${hash}`,
    packages: [],
    inventory: rootfs,
    sbom: { cyclonedx: rootfs, spdx: rootfs },
  };
}

/** Same size and, as far as a file system lets us, the same times: only the contents differ. */
function tamper(path: string, text: string): void {
  const { atime, mtime } = statSync(path);
  chmodSync(path, 0o600);
  writeFileSync(path, text);
  chmodSync(path, 0o400);
  utimesSync(path, atime, mtime);
}

test('a blob is stored under its digest, read-only, and nothing else is left', async (t) => {
  const { store, home } = newStore(t);
  const ref = await store.putBytes(Buffer.from('hello'));
  assert.deepEqual(ref, { digest: digestOf(Buffer.from('hello')), sizeBytes: 5 });
  const path = await store.checkedBlobPath(ref);
  assert.equal(statSync(path).mode & 0o222, 0);
  assert.deepEqual(readdirSync(join(home, 'tmp')), []);
  assert.deepEqual(await store.putBytes(Buffer.from('hello')), ref);
  assert.equal((await store.readBlob(ref)).toString(), 'hello');
});

test('an image is found by name and by digest, and a new one replaces it', async (t) => {
  const { store } = newStore(t);
  const blob = await store.putBytes(Buffer.from('a'));
  assert.equal(await store.find('one'), undefined);
  const first = await store.putImage(manifestOf('one', blob), 'sha256:x', new Date(0));
  assert.deepEqual(first.builtAt, '1970-01-01T00:00:00.000Z');
  assert.deepEqual(await store.find('one'), first);
  assert.deepEqual(await store.manifest(first.digest), manifestOf('one', blob));

  const other = await store.putBytes(Buffer.from('b'));
  const second = await store.putImage(manifestOf('one', other), 'sha256:y', new Date(0));
  assert.notEqual(second.digest, first.digest);
  assert.deepEqual(await store.list(), [second]);
});

test('a store that does not exist has no images', async () => {
  assert.deepEqual(await new ImageStore('/nonexistent').list(), []);
  await assert.rejects(new ImageStore('/nonexistent').manifest(`sha256:${'0'.repeat(64)}`), {
    code: 'IMAGE_NOT_FOUND',
  });
});

test('a digest that is a path is refused', async (t) => {
  const { store } = newStore(t);
  await assert.rejects(store.manifest('sha256:../../etc/passwd'), { code: 'IMAGE_NOT_FOUND' });
});

test('checkedBlobPath rejects with IMAGE_CORRUPT when the contents have changed, even with the old times', async (t) => {
  const { store } = newStore(t);
  const ref = await store.putBytes(Buffer.from('hello'));
  tamper(await store.checkedBlobPath(ref), 'hellO');
  await assert.rejects(store.checkedBlobPath(ref), { code: 'IMAGE_CORRUPT' });
});

test('checkedBlobPath rejects with IMAGE_CORRUPT when the blob is cut short or missing', async (t) => {
  const { store } = newStore(t);
  const ref = await store.putBytes(Buffer.from('hello'));
  const path = await store.checkedBlobPath(ref);
  tamper(path, 'hell');
  await assert.rejects(store.checkedBlobPath(ref), {
    code: 'IMAGE_CORRUPT',
    message: /4 bytes instead of 5/,
  });
  rmSync(path);
  await assert.rejects(store.checkedBlobPath(ref), { code: 'IMAGE_CORRUPT', message: /missing/ });
});

test('verifyImage and manifest reject with IMAGE_CORRUPT when a part or the manifest has changed', async (t) => {
  const { store, home } = newStore(t);
  const blob = await store.putBytes(Buffer.from('a'));
  const { digest } = await store.putImage(manifestOf('one', blob), 'sha256:x', new Date(0));
  await store.verifyImage(await store.manifest(digest));
  tamper(await store.checkedBlobPath(blob), 'b');
  await assert.rejects(store.verifyImage(manifestOf('one', blob)), { code: 'IMAGE_CORRUPT' });
  tamper(join(home, 'blobs/sha256', digest.slice('sha256:'.length)), '{}');
  await assert.rejects(store.manifest(digest), { code: 'IMAGE_CORRUPT' });
});

test('an unreadable record counts as absent, so that the image is made again', async (t) => {
  const { store, home } = newStore(t);
  writeFileSync(join(home, 'images/one.json'), '{"name":');
  assert.equal(await store.find('one'), undefined);
  assert.deepEqual(await store.list(), []);
});

test('what no image has any more is removed a day after that was noticed, and parts of images stay', async (t) => {
  const { store, home } = newStore(t);
  const [old, rootfs, modules] = [
    await store.putBytes(Buffer.from('old')),
    await store.putBytes(Buffer.from('rootfs')),
    await store.putBytes(Buffer.from('modules')),
  ];
  const first = await store.putImage(manifestOf('one', old), 'sha256:x', new Date(0));
  const second = await store.putImage(manifestOf('one', rootfs), 'sha256:y', new Date(0));
  await store.writePart('kernel-x', { package: { name: 'k' }, recipe: 1, kernel: rootfs, modules });
  await store.writePart('rootfs-x', { rootfs: old, packages: [] });
  const blobs = (): number => readdirSync(join(home, 'blobs/sha256')).length;
  const day = 24 * 3600 * 1000;
  await store.collectGarbage(1000);
  assert.equal(blobs(), 5);
  assert.deepEqual(readdirSync(join(home, 'parts')), ['kernel-x.json']);
  await store.collectGarbage(1000 + day);
  assert.equal(blobs(), 5);
  await store.collectGarbage(1001 + day);
  assert.equal(blobs(), 3);
  await store.verifyImage(await store.manifest(second.digest));
  await store.readBlob(modules);
  await assert.rejects(store.manifest(first.digest), { code: 'IMAGE_NOT_FOUND' });
});

test('a blob that an image has again is not removed', async (t) => {
  const { store } = newStore(t);
  const [a, b] = [await store.putBytes(Buffer.from('a')), await store.putBytes(Buffer.from('b'))];
  await store.putImage(manifestOf('one', b), 'sha256:x', new Date(0));
  await store.collectGarbage(0);
  await store.putImage(manifestOf('one', a), 'sha256:x', new Date(0));
  await store.collectGarbage(1);
  await store.putImage(manifestOf('one', b), 'sha256:x', new Date(0));
  await store.collectGarbage(48 * 3600 * 1000);
  await store.checkedBlobPath(a);
});
