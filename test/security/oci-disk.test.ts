/** Hostile disks: damaged and made-up file systems and qcow2 files end as refusals, never as a crash or a wait. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { CtError } from '../../src/core/errors.ts';
import { type BlockReader, rawDisk } from '../../src/image/disk/block-reader.ts';
import { readExt } from '../../src/image/disk/ext4.ts';
import { findFileSystem } from '../../src/image/disk/partitions.ts';
import { openQcow2 } from '../../src/image/disk/qcow2.ts';
import { ContentSpool } from '../../src/image/import/content-spool.ts';
import { FileTree } from '../../src/image/import/file-tree.ts';
import { scratchDirectory } from '../support/scratch.ts';

const scratch = scratchDirectory();
after(() => scratch[Symbol.dispose]());

let count = 0;

function inMemory(bytes: Buffer): BlockReader {
  // The reader of real files, over a descriptor of bytes.
  const read = async (target: Buffer, at: number, length: number, position: number) => ({
    bytesRead: bytes.copy(target, at, position, position + length),
  });
  return rawDisk({ read } as never, bytes.length);
}

async function readTree(bytes: Buffer, maxBytes = 32 * 1024 * 1024): Promise<FileTree> {
  await using spool = await ContentSpool.create(join(scratch.path, `spool-${++count}`), maxBytes);
  const tree = new FileTree();
  await readExt(await findFileSystem(inMemory(bytes), undefined), { tree, spool });
  return tree;
}

function fileSystem(options: readonly string[] = []): Buffer {
  const at = join(scratch.path, `fs-${++count}`);
  mkdirSync(join(at, 'tree/etc'), { recursive: true });
  writeFileSync(join(at, 'tree/etc/file'), Buffer.alloc(100_000, 'contents'));
  symlinkSync('file', join(at, 'tree/etc/link'));
  for (let index = 0; index < 50; index++) writeFileSync(join(at, `tree/etc/n${index}`), String(index));
  execFileSync(
    '/sbin/mke2fs',
    ['-q', '-t', 'ext4', ...options, '-d', join(at, 'tree'), join(at, 'disk'), '4M'],
    { stdio: 'pipe' },
  );
  return readFileSync(join(at, 'disk'));
}

async function refused(what: string, work: Promise<unknown>, message?: RegExp): Promise<void> {
  await assert.rejects(work, (error: Error & { code?: string }) => {
    assert.equal(error.code, 'IMAGE_IMPORT_REFUSED', `${what}: ${error.stack}`);
    if (message) assert.match(error.message, message, what);
    return true;
  });
}

function debugfs(disk: Buffer, command: string): Buffer {
  const path = join(scratch.path, `edit-${++count}`);
  writeFileSync(path, disk);
  execFileSync('/sbin/debugfs', ['-w', '-R', command, path], { stdio: 'pipe' });
  return readFileSync(path);
}

test('a file system that cannot be read as it is, is refused with the reason', async () => {
  const fine = fileSystem();
  assert.ok((await readTree(fine)).get('etc/file'));
  await refused('a journal', readTree(debugfs(fine, 'feature needs_recovery')), /not unmounted/);
  const edited = (at: number, value: number): Buffer => {
    const copy = Buffer.from(fine);
    copy.writeUInt32LE(value, 1024 + at);
    return copy;
  };
  await refused('encryption', readTree(edited(96, fine.readUInt32LE(1024 + 96) | 0x1_0000)), /features/);
  await refused('data in inodes', readTree(edited(96, fine.readUInt32LE(1024 + 96) | 0x8000)), /features/);
  await refused('no inodes per group', readTree(edited(40, 0)), /damaged/);
  await refused('huge blocks', readTree(edited(24, 30)), /blocks/);
  await refused('nothing', readTree(Buffer.alloc(4096)), /no ext4/);
  await refused('less than nothing', readTree(Buffer.alloc(10)), /no ext4/);
});

test('a directory in two places, a device, a name with a slash and a file larger than the limit are refused', async () => {
  const fine = fileSystem();
  await refused('a loop', readTree(debugfs(fine, 'link / /etc/up')));
  await refused('a device', readTree(debugfs(fine, 'mknod node c 1 3')), /device/);
  await refused('a pipe', readTree(debugfs(fine, 'mknod pipe p')), /fifo/);
  await refused(
    'a large file',
    readTree(debugfs(fine, 'set_inode_field /etc/file size 0x7fffffffffff')),
    /more than/,
  );
  const slash = Buffer.from(fine);
  // The name as a directory has it: its length, the type of a file, and then the letters.
  const at = slash.indexOf(Buffer.from('\x04\x01file', 'latin1'));
  assert.ok(at > 0);
  slash.write('../x', at + 2);
  await refused('a name with a slash', readTree(slash), /no name of a file/);
});

test('a damaged file system gives files or a refusal, wherever the damage is', async () => {
  let seed = 42;
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  };
  const fine = fileSystem(['-b', '1024']);
  // Where what is read lies: superblock and descriptors, the inodes in use, the directory.
  const inodes = fine.readUInt32LE(2048 + 8) * 1024;
  const names = fine.indexOf(Buffer.from('\x04\x01file', 'latin1')) & ~1023;
  const places = [
    [1024, 1200],
    [inodes, 70 * 256],
    [names, 1024],
  ] as const;
  let refusals = 0;
  for (let round = 0; round < 150; round++) {
    const bytes = Buffer.from(fine);
    for (let change = 0; change < 8; change++) {
      const [start, length] = places[round % places.length] ?? places[0];
      bytes[start + random(length)] = random(256);
    }
    try {
      await readTree(bytes, 8 * 1024 * 1024);
    } catch (error) {
      assert.ok(
        error instanceof CtError && error.code === 'IMAGE_IMPORT_REFUSED',
        `round ${round}: ${(error as Error).stack}`,
      );
      refusals += 1;
    }
  }
  assert.ok(refusals > 10, `only ${refusals} refusals: the damage is where nobody looks`);
});

function qcow2(edit: (header: Buffer) => void, tables: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(65_536);
  header.writeUInt32BE(0x514649fb, 0);
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(16, 20);
  header.writeBigUInt64BE(1024n * 1024n, 24);
  header.writeUInt32BE(1, 36);
  header.writeBigUInt64BE(65_536n, 40);
  header.writeUInt32BE(104, 100);
  edit(header);
  const l1 = Buffer.alloc(65_536);
  return Buffer.concat([header, l1, tables]);
}

test('a qcow2 disk that refers to other files, to nowhere or to too much is refused', async () => {
  const open = async (bytes: Buffer, read = 4096): Promise<Buffer> =>
    (await openQcow2(inMemory(bytes))).read(0, read);
  assert.deepEqual(await open(qcow2(() => {})), Buffer.alloc(4096));
  await refused(
    'a backing file',
    open(qcow2((header) => void header.writeBigUInt64BE(512n, 8))),
    /backing file/,
  );
  await refused(
    'a data file',
    open(qcow2((header) => void header.writeBigUInt64BE(4n, 72))),
    /not supported/,
  );
  await refused('corrupt', open(qcow2((header) => void header.writeBigUInt64BE(2n, 72))), /damaged/);
  await refused('encryption', open(qcow2((header) => void header.writeUInt32BE(1, 32))), /encrypted/);
  await refused('cluster bits', open(qcow2((header) => void header.writeUInt32BE(40, 20))), /cluster/);
  await refused(
    'a large table',
    open(qcow2((header) => void header.writeUInt32BE(0x1fff_ffff, 36))),
    /table/,
  );
  await refused(
    'a table beyond the end',
    open(qcow2((header) => void header.writeBigUInt64BE(1n << 50n, 40))),
    /beyond/,
  );
  await refused(
    'a table beyond all numbers',
    open(qcow2((header) => void header.writeBigUInt64BE((1n << 64n) - 1n, 40))),
    /beyond/,
  );
  await refused(
    'a huge disk',
    open(qcow2((header) => void header.writeBigUInt64BE(1n << 60n, 24))),
    /too large/,
  );
  await refused(
    'no table',
    open(qcow2((header) => void header.writeUInt32BE(0, 36))),
    /larger than its table/,
  );
  await refused('another format', open(Buffer.alloc(200)), /no qcow2/);
  const withEntry = (entry: bigint): Buffer => {
    const l2 = Buffer.alloc(65_536);
    l2.writeBigUInt64BE(entry, 0);
    const disk = qcow2(() => {}, l2);
    disk.writeBigUInt64BE(131_072n, 65_536);
    return disk;
  };
  await refused('a cluster beyond the end', open(withEntry(1n << 40n)), /beyond/);
  await refused('damaged compression', open(withEntry((1n << 62n) | 65_600n)), /compressed/);
  await refused('compression beyond the end', open(withEntry((1n << 62n) | (1n << 45n))), /beyond/);
});
