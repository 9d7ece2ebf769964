/**
 * Reads ext2, ext3 and ext4 file systems that anybody may have made (Documentation/filesystems/ext4 of the kernel), into
 * a tree. No kernel mounts them, and nothing is unpacked on this machine.
 *
 *     superblock   at 1024: blocks 4, first block 20, log block size 24, inodes per group 40, magic 56, inode size 88,
 *                  incompatible features 96, size of group descriptors 254
 *     inode        mode 0, uid 2, size 4, gid 24, flags 32, where its data lies 40+60, attribute block 104, size 108,
 *                  uid 120, gid 122, extra size 128, then attributes
 *
 * Every number is of a stranger: blocks are checked against the size of the disk, and loops against bounds.
 */

import type { ContentSpool } from '../import/content-spool.ts';
import type { FileTree } from '../import/file-tree.ts';
import { refused, shown } from '../import/refusal.ts';
import type { BlockReader } from './block-reader.ts';

const SUPERBLOCK_OFFSET = 1024;
const SUPERBLOCK_BYTES = 1024;
const MAGIC = 0xef53;
const ROOT_INODE = 2;

/** Incompatible features: a reader must know them all. */
const RECOVER = 0x4;
const BIT64 = 0x80;
/** Types in directories, extents, 64 bit, flexible groups, protection against two mounts, checksum seed, large directories. */
const KNOWN_FEATURES = 0x2 | 0x40 | BIT64 | 0x200 | 0x100 | 0x2000 | 0x4000;

const FLAG_ENCRYPTED = 0x800;
const FLAG_EXTENTS = 0x8_0000;
const FLAG_INLINE_DATA = 0x1000_0000;

const EXTENT_MAGIC = 0xf30a;
const MAX_EXTENT_DEPTH = 5;
const ATTRIBUTES_MAGIC = 0xea02_0000;
const SECURITY_ATTRIBUTE = 6;

/** One of 100,000 files has 3 MB. */
const MAX_DIRECTORY_BYTES = 64 * 1024 * 1024;
/** All directories may claim the same blocks. */
const MAX_ALL_DIRECTORIES_BYTES = 1024 * 1024 * 1024;
const MAX_TARGET_BYTES = 4096;
/** Blocks of extent trees over all files; a file of 16 GiB in the smallest pieces has 400,000 extents in 1,200 blocks. */
const MAX_INDEX_BLOCKS = 200_000;
const MAX_INODES = 1_000_000;
const READ_BYTES = 1024 * 1024;

/** What a VM mounts over, and what belongs to the file system itself. */
const SKIPPED = new Set(['dev', 'proc', 'sys', 'run', 'tmp', 'var/tmp', 'lost+found']);

const KINDS: Readonly<Record<number, 'fifo' | 'device' | 'directory' | 'file' | 'symlink' | 'socket'>> = {
  1: 'fifo',
  2: 'device',
  4: 'directory',
  6: 'device',
  8: 'file',
  10: 'symlink',
  12: 'socket',
};

export interface ReadExtOptions {
  readonly tree: FileTree;
  readonly spool: ContentSpool;
  /** Called for each file. Throws to stop. */
  readonly onFile?: (path: string) => void;
}

/** Whether a file system of this family begins here. */
export async function isExt(disk: BlockReader): Promise<boolean> {
  if (disk.sizeBytes < SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES) return false;
  return (await disk.read(SUPERBLOCK_OFFSET + 56, 2)).readUInt16LE(0) === MAGIC;
}

/** Reads everything into the tree. Throws IMAGE_IMPORT_REFUSED. */
export async function readExt(disk: BlockReader, options: ReadExtOptions): Promise<void> {
  if (!(await isExt(disk))) throw refused('there is no ext4 file system');
  const superblock = await disk.read(SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES);
  const features = superblock.readUInt32LE(96);
  if ((features & RECOVER) !== 0) {
    throw refused(
      'the file system was not unmounted: its journal holds changes that are not in their place',
      {
        hint: 'shut the machine down before its disk is taken, or run `e2fsck -p` on the disk',
      },
    );
  }
  const unknown = features & ~KNOWN_FEATURES;
  if (unknown !== 0)
    throw refused(`the file system has features that are not supported (0x${unknown.toString(16)})`);
  await new ExtReader(disk, superblock, features, options).readAll();
}

interface Inode {
  readonly number: number;
  readonly kind: (typeof KINDS)[number] | undefined;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly sizeBytes: number;
  readonly flags: number;
  /** The 60 bytes that say where its data lies. */
  readonly map: Buffer;
  readonly capabilities: boolean;
}

/** Blocks in a row; `from` is undefined where there are only zeros. */
interface Run {
  readonly logical: number;
  readonly count: number;
  readonly from: number | undefined;
}

class ExtReader {
  readonly #disk: BlockReader;
  readonly #options: ReadExtOptions;
  readonly #blockBytes: number;
  readonly #inodeBytes: number;
  readonly #inodesPerGroup: number;
  readonly #inodeCount: number;
  readonly #descriptorBytes: number;
  readonly #descriptorsAt: number;
  readonly #has64Bit: boolean;
  readonly #firstPaths = new Map<number, string>();
  readonly #directories = new Set<number>();
  #directoryBytes = 0;
  #indexBlocks = 0;
  #inodesRead = 0;

  constructor(disk: BlockReader, superblock: Buffer, features: number, options: ReadExtOptions) {
    this.#disk = disk;
    this.#options = options;
    const logBlockSize = superblock.readUInt32LE(24);
    if (logBlockSize > 2) throw refused('the file system has blocks of an unusual size');
    this.#blockBytes = 1024 << logBlockSize;
    const isOld = superblock.readUInt32LE(76) === 0;
    this.#inodeBytes = isOld ? 128 : superblock.readUInt16LE(88);
    this.#inodesPerGroup = superblock.readUInt32LE(40);
    this.#inodeCount = superblock.readUInt32LE(0);
    this.#has64Bit = (features & BIT64) !== 0;
    this.#descriptorBytes = this.#has64Bit ? superblock.readUInt16LE(254) : 32;
    this.#descriptorsAt = (superblock.readUInt32LE(20) + 1) * this.#blockBytes;
    const saneInode = this.#inodeBytes >= 128 && this.#inodeBytes <= this.#blockBytes;
    const saneDescriptor = this.#descriptorBytes >= 32 && this.#descriptorBytes <= 1024;
    if (!saneInode || !saneDescriptor || this.#inodesPerGroup === 0)
      throw refused('the superblock is damaged');
    if (this.#has64Bit && this.#descriptorBytes < 64) throw refused('the superblock is damaged');
  }

  async readAll(): Promise<void> {
    const root = await this.#inode(ROOT_INODE);
    if (root.kind !== 'directory') throw refused('the root of the file system is no directory');
    this.#options.tree.addDirectory('', root, 0);
    await this.#readDirectory(root, '');
  }

  async #readDirectory(directory: Inode, path: string): Promise<void> {
    if (this.#directories.has(directory.number)) throw refused(`${shown(path)} is a directory in two places`);
    this.#directories.add(directory.number);
    for (const { name, number } of await this.#entries(directory, path)) {
      const own = path === '' ? name : `${path}/${name}`;
      await this.#add(own, await this.#inode(number), SKIPPED.has(own));
    }
  }

  async #add(path: string, inode: Inode, skipContents: boolean): Promise<void> {
    const { tree, spool, onFile } = this.#options;
    onFile?.(path);
    if (path === 'lost+found') return;
    if (inode.kind === 'directory') {
      tree.addDirectory(path, inode, 0);
      if (!skipContents) await this.#readDirectory(inode, path);
      return;
    }
    const first = this.#firstPaths.get(inode.number);
    if (first !== undefined) {
      tree.addHardLink(path, first, 0);
      return;
    }
    this.#firstPaths.set(inode.number, path);
    if (inode.kind === 'symlink') {
      tree.addSymlink(path, await this.#target(inode, path), inode, 0);
    } else if (inode.kind === 'file') {
      spool.expect(inode.sizeBytes);
      const offset = spool.position;
      await this.#forward(inode, (piece) => spool.write(piece));
      tree.addFile(path, inode, { offset, sizeBytes: inode.sizeBytes }, 0, inode.capabilities);
    } else {
      throw refused(
        `${shown(path)} is a ${inode.kind ?? 'file of an unknown kind'}, which no image may have`,
      );
    }
  }

  async #target(inode: Inode, path: string): Promise<string> {
    if (inode.sizeBytes >= MAX_TARGET_BYTES) throw refused(`the symbolic link ${shown(path)} is too long`);
    // Short ones lie where others have the map of their blocks.
    if (inode.sizeBytes < 60 && (inode.flags & FLAG_EXTENTS) === 0) {
      return inode.map.toString('latin1', 0, inode.sizeBytes);
    }
    const parts: Buffer[] = [];
    await this.#forward(inode, async (piece) => void parts.push(piece));
    return Buffer.concat(parts).toString('latin1');
  }

  async #entries(
    directory: Inode,
    path: string,
  ): Promise<{ readonly name: string; readonly number: number }[]> {
    this.#directoryBytes += directory.sizeBytes;
    if (this.#directoryBytes > MAX_ALL_DIRECTORIES_BYTES) throw refused('the directories are too large');
    if (directory.sizeBytes > MAX_DIRECTORY_BYTES) throw refused(`the directory ${shown(path)} is too large`);
    const parts: Buffer[] = [];
    await this.#forward(directory, async (piece) => void parts.push(piece));
    const data = Buffer.concat(parts);
    const entries: { name: string; number: number }[] = [];
    const damaged = (): Error => refused(`the directory ${shown(path)} is damaged`);
    // Inode 4, record length 2, name length 1, type 1, name. Blocks of the index look like one unused entry.
    for (let at = 0; at < data.length; ) {
      if (at + 8 > data.length) throw damaged();
      const [number, recordBytes, nameBytes] = [
        data.readUInt32LE(at),
        data.readUInt16LE(at + 4),
        data[at + 6] ?? 0,
      ];
      const inBlock = (at % this.#blockBytes) + recordBytes <= this.#blockBytes;
      if (recordBytes < 8 || recordBytes % 4 !== 0 || !inBlock || nameBytes + 8 > recordBytes)
        throw damaged();
      const name = data.toString('latin1', at + 8, at + 8 + nameBytes);
      at += recordBytes;
      if (number === 0 || nameBytes === 0 || name === '.' || name === '..') continue;
      if (name.includes('/') || name.includes('\0')) throw refused(`${shown(name)} is no name of a file`);
      entries.push({ name, number });
    }
    return entries;
  }

  async #inode(number: number): Promise<Inode> {
    this.#inodesRead += 1;
    if (this.#inodesRead > MAX_INODES) throw refused(`there are more than ${MAX_INODES} files`);
    if (number < 1 || number > this.#inodeCount)
      throw refused(`an entry leads to inode ${number}, which is not there`);
    const group = Math.floor((number - 1) / this.#inodesPerGroup);
    const descriptor = await this.#disk.read(
      this.#descriptorsAt + group * this.#descriptorBytes,
      this.#descriptorBytes,
    );
    const high = this.#has64Bit ? descriptor.readUInt32LE(40) : 0;
    const table = (high * 2 ** 32 + descriptor.readUInt32LE(8)) * this.#blockBytes;
    const bytes = await this.#disk.read(
      table + ((number - 1) % this.#inodesPerGroup) * this.#inodeBytes,
      this.#inodeBytes,
    );
    const mode = bytes.readUInt16LE(0);
    const flags = bytes.readUInt32LE(32);
    if ((flags & FLAG_ENCRYPTED) !== 0) throw refused('the file system has encrypted files');
    if ((flags & FLAG_INLINE_DATA) !== 0) throw refused('the file system has files inside of inodes');
    const kind = KINDS[mode >> 12];
    return {
      number,
      kind,
      mode: mode & 0o7777,
      uid: bytes.readUInt16LE(2) + bytes.readUInt16LE(120) * 65_536,
      gid: bytes.readUInt16LE(24) + bytes.readUInt16LE(122) * 65_536,
      sizeBytes: bytes.readUInt32LE(4) + bytes.readUInt32LE(108) * 2 ** 32,
      flags,
      map: bytes.subarray(40, 100),
      capabilities: kind === 'file' && (await this.#hasCapabilities(bytes)),
    };
  }

  /** Attributes lie behind the inode's fields, and in one more block. */
  async #hasCapabilities(inode: Buffer): Promise<boolean> {
    if (inode.length > 132) {
      const at = 128 + inode.readUInt16LE(128);
      if (at + 4 <= inode.length && inode.readUInt32LE(at) === ATTRIBUTES_MAGIC) {
        if (namesCapability(inode.subarray(at + 4))) return true;
      }
    }
    const block = inode.readUInt32LE(104) + inode.readUInt16LE(118) * 2 ** 32;
    if (block === 0) return false;
    const bytes = await this.#disk.read(block * this.#blockBytes, this.#blockBytes);
    if (bytes.readUInt32LE(0) !== ATTRIBUTES_MAGIC) throw refused('the attributes of a file are damaged');
    return namesCapability(bytes.subarray(32));
  }

  /** Hands the contents of a file over in pieces. */
  async #forward(inode: Inode, to: (piece: Buffer) => Promise<void>): Promise<void> {
    let position = 0;
    const zeros = async (until: number): Promise<void> => {
      for (; position < until; position += Math.min(READ_BYTES, until - position)) {
        await to(Buffer.alloc(Math.min(READ_BYTES, until - position)));
      }
    };
    const blocks = Math.ceil(inode.sizeBytes / this.#blockBytes);
    for await (const { logical, count, from } of this.#runs(inode, blocks)) {
      if (from === undefined || logical >= blocks) continue;
      await zeros(Math.min(inode.sizeBytes, logical * this.#blockBytes));
      const end = Math.min(inode.sizeBytes, (logical + count) * this.#blockBytes);
      const start = from * this.#blockBytes - position;
      while (position < end) {
        const piece = await this.#disk.read(start + position, Math.min(READ_BYTES, end - position));
        position += piece.length;
        await to(piece);
      }
    }
    await zeros(inode.sizeBytes);
  }

  async *#runs(inode: Inode, blocks: number): AsyncGenerator<Run> {
    if ((inode.flags & FLAG_EXTENTS) === 0) {
      yield* this.#mapped(inode.map, blocks);
      return;
    }
    let next = 0;
    for await (const run of this.#extents(inode.map, MAX_EXTENT_DEPTH)) {
      if (run.logical < next) throw refused('the extents of a file overlap');
      next = run.logical + run.count;
      yield run;
    }
  }

  /** Header: magic 0, entries 2, depth 6. Entries of 12 bytes: extents (block, count, where) or further nodes. */
  async *#extents(node: Buffer, maxDepth: number): AsyncGenerator<Run> {
    const [magic, count, depth] = [node.readUInt16LE(0), node.readUInt16LE(2), node.readUInt16LE(6)];
    if (magic !== EXTENT_MAGIC || 12 + count * 12 > node.length || depth > maxDepth) {
      throw refused('the extents of a file are damaged');
    }
    for (let index = 0; index < count; index++) {
      const at = 12 + index * 12;
      if (depth === 0) {
        const length = node.readUInt16LE(at + 4);
        const isWritten = length <= 32_768; // else room that was kept and never written
        const from = node.readUInt16LE(at + 6) * 2 ** 32 + node.readUInt32LE(at + 8);
        const logical = node.readUInt32LE(at);
        yield { logical, count: isWritten ? length : length - 32_768, from: isWritten ? from : undefined };
      } else {
        const block = node.readUInt16LE(at + 8) * 2 ** 32 + node.readUInt32LE(at + 4);
        yield* this.#extents(await this.#indexBlock(block), depth - 1);
      }
    }
  }

  /** The older map: twelve blocks, then a block of blocks, one of those, and one of those. */
  async *#mapped(map: Buffer, blocks: number): AsyncGenerator<Run> {
    let logical = 0;
    for (let slot = 0; slot < 15 && logical < blocks; slot++) {
      const depth = Math.max(0, slot - 11);
      yield* this.#indirect(map.readUInt32LE(slot * 4), depth, logical, blocks);
      logical += (this.#blockBytes / 4) ** depth;
    }
  }

  async *#indirect(block: number, depth: number, logical: number, blocks: number): AsyncGenerator<Run> {
    if (block === 0) return;
    if (depth === 0) {
      yield { logical, count: 1, from: block };
      return;
    }
    const pointers = await this.#indexBlock(block);
    const each = (this.#blockBytes / 4) ** (depth - 1);
    for (let index = 0; index < this.#blockBytes / 4 && logical + index * each < blocks; index++) {
      yield* this.#indirect(pointers.readUInt32LE(index * 4), depth - 1, logical + index * each, blocks);
    }
  }

  async #indexBlock(block: number): Promise<Buffer> {
    this.#indexBlocks += 1;
    if (this.#indexBlocks > MAX_INDEX_BLOCKS)
      throw refused('the files of the file system are in too many pieces');
    return this.#disk.read(block * this.#blockBytes, this.#blockBytes);
  }
}

/** Entries: length of the name 0, which family 1, …, name 16; four zero bytes end them. */
function namesCapability(entries: Buffer): boolean {
  for (let at = 0; at + 16 <= entries.length && entries.readUInt32LE(at) !== 0; ) {
    const nameBytes = entries[at] ?? 0;
    const name = entries.toString('latin1', at + 16, at + 16 + nameBytes);
    if (entries[at + 1] === SECURITY_ATTRIBUTE && name === 'capability') return true;
    at += Math.ceil((16 + nameBytes) / 4) * 4;
  }
  return false;
}
