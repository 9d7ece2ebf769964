/** Images from disks: ext4 made by mke2fs, bare, on partitions and in qcow2. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { deflateRawSync } from 'node:zlib';
import { type ImportedImage, importImage, parseImportSource } from '../../src/image/import/import.ts';
import { ImageStore } from '../../src/image/store.ts';
import { scratchDirectory } from '../support/scratch.ts';

const scratch = scratchDirectory();
after(() => scratch[Symbol.dispose]());

const NO_BLOB = { digest: `sha256:${'0'.repeat(64)}`, sizeBytes: 1 };
const CLUSTER_BYTES = 65_536;

/** A tree with what is difficult: sizes around blocks, many names, links, holes, files with many extents. */
function makeTree(path: string): void {
  for (const name of ['', 'etc', 'bin', 'many', 'var', 'var/tmp', 'dev']) mkdirSync(join(path, name));
  writeFileSync(join(path, 'etc/os-release'), 'ID=test\n');
  writeFileSync(join(path, 'bin/app'), Buffer.alloc(300_000, 'app'), { mode: 0o755 });
  linkSync(join(path, 'bin/app'), join(path, 'bin/same'));
  symlinkSync('app', join(path, 'bin/short'));
  symlinkSync('t/'.repeat(60), join(path, 'bin/long'));
  writeFileSync(join(path, 'sparse'), 'start');
  truncateSync(join(path, 'sparse'), 3_000_000);
  for (let index = 0; index < 400; index++)
    writeFileSync(join(path, `many/${'n'.repeat(60)}${index}`), `${index}`);
  chmodSync(join(path, 'etc'), 0o750);
  writeFileSync(join(path, 'var/tmp/hidden'), 'x');
}

let count = 0;
function directory(): string {
  const path = join(scratch.path, String(++count));
  mkdirSync(path);
  return path;
}

function makeFileSystem(type: string, options: readonly string[] = []): string {
  const at = directory();
  makeTree(join(at, 'tree'));
  const path = join(at, 'disk');
  execFileSync('/sbin/mke2fs', ['-q', '-t', type, ...options, '-d', join(at, 'tree'), path, '24M'], {
    stdio: 'pipe',
  });
  return path;
}

async function importDisk(
  source: string,
  allowSetuid = false,
): Promise<{ image: ImportedImage; root: string }> {
  const at = directory();
  const image = await importImage({
    source: parseImportSource(source),
    name: 'test',
    ctHome: join(at, 'home'),
    machine: { kernel: { ...NO_BLOB, version: '0' }, initramfs: NO_BLOB },
    allowSetuid,
  });
  const blob = await new ImageStore(join(at, 'home')).checkedBlobPath(image.manifest.rootfs);
  const root = join(at, 'root');
  execFileSync('fsck.erofs', [`--extract=${root}`, '--overwrite', blob], { stdio: 'pipe' });
  return { image, root };
}

function checkTree(root: string): void {
  assert.equal(readFileSync(join(root, 'etc/os-release'), 'utf8'), 'ID=test\n');
  assert.deepEqual(readFileSync(join(root, 'bin/same')), Buffer.alloc(300_000, 'app'));
  assert.deepEqual(readFileSync(join(root, 'sparse')), Buffer.concat([Buffer.from('start')], 3_000_000));
  assert.equal(readFileSync(join(root, `many/${'n'.repeat(60)}399`), 'utf8'), '399');
  const links = execFileSync('find', [join(root, 'bin'), '-type', 'l', '-printf', '%P %l\n'], {
    encoding: 'utf8',
  });
  assert.deepEqual(links.trim().split('\n').sort(), [`long ${'t/'.repeat(60)}`, 'short app']);
  assert.ok(!existsSync(join(root, 'lost+found')) && !existsSync(join(root, 'var/tmp/hidden')));
}

for (const [what, type, options] of [
  ['ext4', 'ext4', []],
  ['ext4 with small blocks', 'ext4', ['-b', '1024']],
  ['ext4 with 64 bit and checksums', 'ext4', ['-O', '64bit,metadata_csum']],
  ['ext3', 'ext3', []],
  ['ext2 with small blocks', 'ext2', ['-b', '1024']],
] as const) {
  test(`a bare ${what} file system is read without mounting it`, async () => {
    const { root } = await importDisk(`raw:${makeFileSystem(type, options)}`);
    checkTree(root);
  });
}

function onMbr(fileSystem: Buffer): Buffer {
  const disk = Buffer.concat([Buffer.alloc(1024 * 1024), fileSystem]);
  disk[446 + 4] = 0x83;
  disk.writeUInt32LE(2048, 446 + 8);
  disk.writeUInt32LE(fileSystem.length / 512, 446 + 12);
  disk.writeUInt16LE(0xaa55, 510);
  return disk;
}

function onGpt(fileSystems: readonly Buffer[]): Buffer {
  const disk = Buffer.concat([Buffer.alloc(1024 * 1024), ...fileSystems]);
  disk[446 + 4] = 0xee;
  disk.writeUInt16LE(0xaa55, 510);
  disk.write('EFI PART', 512);
  disk.writeBigUInt64LE(2n, 512 + 72);
  disk.writeUInt32LE(128, 512 + 80);
  disk.writeUInt32LE(128, 512 + 84);
  let sector = 2048;
  for (const [index, { length }] of fileSystems.entries()) {
    const at = 1024 + index * 128;
    disk.fill(1, at, at + 32);
    disk.writeBigUInt64LE(BigInt(sector), at + 32);
    sector += length / 512;
    disk.writeBigUInt64LE(BigInt(sector - 1), at + 40);
  }
  return disk;
}

/** Version 3, clusters of 64 KiB; zero clusters are left out, every third other one is compressed. */
function toQcow2(disk: Buffer): Buffer {
  const clusters = Math.ceil(disk.length / CLUSTER_BYTES);
  assert.ok(clusters <= CLUSTER_BYTES / 8);
  const header = Buffer.alloc(CLUSTER_BYTES);
  header.writeUInt32BE(0x514649fb, 0);
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(16, 20);
  header.writeBigUInt64BE(BigInt(disk.length), 24);
  header.writeUInt32BE(1, 36);
  header.writeBigUInt64BE(BigInt(CLUSTER_BYTES), 40);
  header.writeUInt32BE(104, 100);
  const l1 = Buffer.alloc(CLUSTER_BYTES);
  l1.writeBigUInt64BE(BigInt(2 * CLUSTER_BYTES), 0);
  const l2 = Buffer.alloc(CLUSTER_BYTES);
  const data: Buffer[] = [];
  let offset = 3 * CLUSTER_BYTES;
  for (let index = 0; index < clusters; index++) {
    const cluster = Buffer.concat(
      [disk.subarray(index * CLUSTER_BYTES, (index + 1) * CLUSTER_BYTES)],
      CLUSTER_BYTES,
    );
    if (cluster.every((byte) => byte === 0)) continue;
    const packed = deflateRawSync(cluster);
    if (index % 3 === 0 && packed.length < CLUSTER_BYTES) {
      const sectors = Math.ceil(packed.length / 512);
      l2.writeBigUInt64BE((1n << 62n) | (BigInt(sectors - 1) << 54n) | BigInt(offset), index * 8);
      data.push(Buffer.concat([packed], sectors * 512));
    } else {
      l2.writeBigUInt64BE((1n << 63n) | BigInt(offset), index * 8);
      data.push(cluster);
    }
    // Clusters begin at multiples of their size.
    const last = data.at(-1) as Buffer;
    data[data.length - 1] = Buffer.concat([last], CLUSTER_BYTES);
    offset += CLUSTER_BYTES;
  }
  return Buffer.concat([header, l1, l2, ...data]);
}

test('the file system is found on partitions, and named where there are several', async () => {
  const fileSystem = readFileSync(makeFileSystem('ext4'));
  const at = directory();
  writeFileSync(join(at, 'mbr'), onMbr(fileSystem));
  checkTree((await importDisk(`raw:${join(at, 'mbr')}`)).root);
  writeFileSync(join(at, 'gpt'), onGpt([Buffer.alloc(1024 * 1024), fileSystem]));
  checkTree((await importDisk(`raw:${join(at, 'gpt')}`)).root);
  writeFileSync(join(at, 'two'), onGpt([fileSystem, fileSystem]));
  await assert.rejects(importDisk(`raw:${join(at, 'two')}`), { code: 'USAGE' });
  checkTree((await importDisk(`raw:${join(at, 'two')}:p2`)).root);
});

test('a qcow2 disk gives the same image as the disk in it, compressed or not', async () => {
  const raw = makeFileSystem('ext4');
  const at = directory();
  writeFileSync(join(at, 'disk.qcow2'), toQcow2(onMbr(readFileSync(raw))));
  const { root } = await importDisk(`qcow2:${join(at, 'disk.qcow2')}`);
  checkTree(root);
});

const qemuImg = '/usr/bin/qemu-img';
test('disks that qemu-img writes are read', {
  skip: existsSync(qemuImg) ? false : 'qemu-img (qemu-utils) is not installed',
}, async () => {
  const raw = makeFileSystem('ext4');
  const at = directory();
  for (const [name, options] of [
    ['plain', []],
    ['packed', ['-c']],
    ['v2', ['-o', 'compat=0.10,cluster_size=4096']],
  ] as const) {
    const path = join(at, name);
    execFileSync(qemuImg, ['convert', '-O', 'qcow2', ...options, raw, path], { stdio: 'pipe' });
    const { root, image } = await importDisk(`qcow2:${path}`);
    checkTree(root);
    assert.equal(
      image.manifest.imported?.digest,
      (await importDisk(`raw:${raw}`)).image.manifest.imported?.digest,
    );
  }
});

test('file capabilities and set-uid files of a disk are listed and refused', async () => {
  const at = directory();
  makeTree(join(at, 'tree'));
  chmodSync(join(at, 'tree/bin/app'), 0o4755);
  const path = join(at, 'disk');
  execFileSync('/sbin/mke2fs', ['-q', '-t', 'ext4', '-d', join(at, 'tree'), path, '24M'], { stdio: 'pipe' });
  await assert.rejects(importDisk(`raw:${path}`), { code: 'IMAGE_IMPORT_REFUSED', message: /bin\/app/ });
  checkTree((await importDisk(`raw:${path}`, true)).root);

  const other = makeFileSystem('ext4');
  const value = join(at, 'value');
  writeFileSync(value, Buffer.from('0100000200200000000000000000000000000000', 'hex'));
  execFileSync(
    '/sbin/debugfs',
    ['-w', '-R', `ea_set -f ${value} /etc/os-release security.capability`, other],
    { stdio: 'pipe' },
  );
  await assert.rejects(importDisk(`raw:${other}`), { code: 'IMAGE_IMPORT_REFUSED', message: /os-release/ });
});
