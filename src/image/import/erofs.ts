/**
 * Writes a {@link FileTree} as an EROFS file system, uncompressed, in the layout of the kernel's documentation
 * (Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h). mkfs.erofs needs a directory with the right owners, and
 * so root or a user namespace, and a stranger's files unpacked on this machine; this needs neither.
 *
 *     block 0   1024 bytes of nothing, superblock (128 bytes), inodes
 *     …         inodes: 64 bytes each, then the last part of their data if it fits into the same block
 *     …         data: whole blocks
 *
 * An inode's number is its offset divided by 32. Directories are made of blocks, each with its entries (12 bytes) and
 * then their names; entries are sorted by bytes over the whole directory, `.` and `..` among them.
 */
import { open } from 'node:fs/promises';
import { CtError, toCtError } from '../../core/errors.ts';
import type { ContentSpool } from './content-spool.ts';
import type { DirectoryNode, TreeNode } from './file-tree.ts';

const BLOCK_BYTES = 4096;
const BLOCK_BITS = 12;
const SUPERBLOCK_OFFSET = 1024;
const SUPERBLOCK_BYTES = 128;
const INODE_BYTES = 64;
const SLOT_BYTES = 32;
const DIRENT_BYTES = 12;
const MAGIC = 0xe0f5e1e2;
/** EROFS_FEATURE_COMPAT_MTIME: times are those of contents. */
const FEATURE_COMPAT = 2;
/** The lowest bit says that the inode has 64 bytes, the next three how its data lies. */
const FORMAT_PLAIN = 1 | (0 << 1);
const FORMAT_INLINE = 1 | (2 << 1);
const BUFFER_BYTES = 1024 * 1024;

const TYPES = {
  file: { mode: 0o100000, direntType: 1 },
  directory: { mode: 0o040000, direntType: 2 },
  symlink: { mode: 0o120000, direntType: 7 },
} as const;

export interface ErofsOptions {
  readonly root: DirectoryNode;
  readonly spool: ContentSpool;
  /** Is created; the caller removes it after a failure. */
  readonly path: string;
  /** Time of every file, in seconds since 1970. */
  readonly timeSeconds: number;
  /** Hex. */
  readonly uuid: string;
  readonly signal?: AbortSignal | undefined;
}

interface Inode {
  readonly node: TreeNode;
  readonly parent: Inode | undefined;
  readonly sizeBytes: number;
  /** Names and nodes of a directory's block, one array for each block. */
  readonly direntBlocks: readonly (readonly Dirent[])[] | undefined;
  linkCount: number;
  offset: number;
  firstBlock: number;
}

interface Dirent {
  /** A byte string. */
  readonly name: string;
  readonly to: TreeNode | '.' | '..';
}

/** The same tree always gives the same bytes. Throws CANCELLED, STORE_FULL. */
export async function writeErofs(options: ErofsOptions): Promise<void> {
  const inodes = layOut(options.root);
  const all = [...inodes.values()];
  let offset = SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES;
  for (const inode of all) {
    const bytes = INODE_BYTES + inlineBytes(inode);
    if ((offset % BLOCK_BYTES) + bytes > BLOCK_BYTES) offset = roundUp(offset, BLOCK_BYTES);
    inode.offset = offset;
    offset = roundUp(offset + bytes, SLOT_BYTES);
  }
  let block = Math.ceil(offset / BLOCK_BYTES);
  for (const inode of all) {
    inode.firstBlock = block;
    block += wholeBlocks(inode);
  }
  const file = await open(options.path, 'wx', 0o600);
  try {
    const out = new Output(file, options.signal);
    await out.padTo(SUPERBLOCK_OFFSET);
    await out.write(superblock(options, inodes.get(options.root) as Inode, all.length, block));
    for (const inode of all) {
      await out.padTo(inode.offset);
      await out.write(encodeInode(inode, options.timeSeconds));
      const start = wholeBlocks(inode) * BLOCK_BYTES;
      if (inlineBytes(inode) > 0)
        await out.write(await contents(inode, inodes, options.spool, start, BLOCK_BYTES));
    }
    for (const inode of all) {
      const blocks = wholeBlocks(inode);
      if (blocks === 0) continue;
      await out.padTo(inode.firstBlock * BLOCK_BYTES);
      const end = blocks * BLOCK_BYTES;
      for (let at = 0; at < end; at += BUFFER_BYTES) {
        await out.write(await contents(inode, inodes, options.spool, at, Math.min(BUFFER_BYTES, end - at)));
      }
    }
    await out.padTo(block * BLOCK_BYTES);
    await out.flush();
  } catch (error) {
    throw toCtError(error);
  } finally {
    await file.close();
  }
}

/** Every file once, in the order of a walk with sorted names. */
function layOut(root: DirectoryNode): Map<TreeNode, Inode> {
  const inodes = new Map<TreeNode, Inode>();
  const visit = (node: TreeNode, parent: Inode | undefined): void => {
    const known = inodes.get(node);
    if (known !== undefined) {
      known.linkCount += 1;
      return;
    }
    const direntBlocks = node.kind === 'directory' ? splitDirents(node) : undefined;
    const inode: Inode = {
      node,
      parent,
      direntBlocks,
      sizeBytes: sizeOf(node, direntBlocks),
      linkCount: 1,
      offset: 0,
      firstBlock: 0,
    };
    inodes.set(node, inode);
    if (node.kind !== 'directory') return;
    const children = [...node.children].sort(([a], [b]) => compareBytes(a, b));
    for (const [, child] of children) visit(child, inode);
    inode.linkCount = 2 + children.filter(([, child]) => child.kind === 'directory').length;
  };
  visit(root, undefined);
  return inodes;
}

function sizeOf(node: TreeNode, direntBlocks: Inode['direntBlocks']): number {
  if (node.kind === 'file') return node.data.sizeBytes;
  if (node.kind === 'symlink') return node.target.length;
  const blocks = direntBlocks ?? [];
  return (blocks.length - 1) * BLOCK_BYTES + direntBytes(blocks.at(-1) ?? []);
}

function splitDirents({ children }: DirectoryNode): Dirent[][] {
  const entries: Dirent[] = [...children].map(([name, to]) => ({ name, to }));
  entries.push({ name: '.', to: '.' }, { name: '..', to: '..' });
  entries.sort((a, b) => compareBytes(a.name, b.name));
  const blocks: Dirent[][] = [[]];
  let used = 0;
  for (const entry of entries) {
    const bytes = DIRENT_BYTES + entry.name.length;
    if (used + bytes > BLOCK_BYTES) {
      blocks.push([]);
      used = 0;
    }
    blocks.at(-1)?.push(entry);
    used += bytes;
  }
  return blocks;
}

function direntBytes(entries: readonly Dirent[]): number {
  return entries.reduce((sum, { name }) => sum + DIRENT_BYTES + name.length, 0);
}

/** Of byte strings, the order of memcmp. */
function compareBytes(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** The part after the last whole block lies behind the inode, if both fit into one block. */
function inlineBytes({ sizeBytes }: Inode): number {
  const rest = sizeBytes % BLOCK_BYTES;
  return rest <= BLOCK_BYTES - INODE_BYTES ? rest : 0;
}

function wholeBlocks(inode: Inode): number {
  return Math.ceil((inode.sizeBytes - inlineBytes(inode)) / BLOCK_BYTES);
}

/** Bytes of an inode's data; a multiple of the block size may reach beyond its end, and is filled up with zeros. */
async function contents(
  { node, parent, direntBlocks, offset }: Inode,
  inodes: ReadonlyMap<TreeNode, Inode>,
  spool: ContentSpool,
  start: number,
  length: number,
): Promise<Buffer> {
  if (node.kind === 'file') return spool.read(node.data, start, length);
  if (node.kind === 'symlink') return Buffer.from(node.target, 'latin1').subarray(start, start + length);
  const first = start / BLOCK_BYTES;
  const blocks = (direntBlocks ?? []).slice(first, first + Math.ceil(length / BLOCK_BYTES));
  const numberOf = (to: Dirent['to']): number => {
    if (to === '.') return offset / SLOT_BYTES;
    if (to === '..') return (parent?.offset ?? offset) / SLOT_BYTES;
    return (inodes.get(to)?.offset ?? 0) / SLOT_BYTES;
  };
  const encoded = blocks.map((entries) => encodeDirents(entries, numberOf));
  const isLast = first + blocks.length === direntBlocks?.length;
  return Buffer.concat(
    encoded.map((bytes, index) =>
      isLast && index === encoded.length - 1 ? bytes : Buffer.concat([bytes], BLOCK_BYTES),
    ),
  );
}

function encodeDirents(entries: readonly Dirent[], numberOf: (to: Dirent['to']) => number): Buffer {
  const bytes = Buffer.alloc(direntBytes(entries));
  let nameOffset = entries.length * DIRENT_BYTES;
  for (const [index, { name, to }] of entries.entries()) {
    const at = index * DIRENT_BYTES;
    bytes.writeBigUInt64LE(BigInt(numberOf(to)), at);
    bytes.writeUInt16LE(nameOffset, at + 8);
    bytes.writeUInt8(
      typeof to === 'string' ? TYPES.directory.direntType : TYPES[to.kind].direntType,
      at + 10,
    );
    nameOffset += bytes.write(name, nameOffset, 'latin1');
  }
  return bytes;
}

function encodeInode(inode: Inode, timeSeconds: number): Buffer {
  const { node, sizeBytes, linkCount, firstBlock, offset } = inode;
  const bytes = Buffer.alloc(INODE_BYTES);
  bytes.writeUInt16LE(inlineBytes(inode) > 0 ? FORMAT_INLINE : FORMAT_PLAIN, 0);
  bytes.writeUInt16LE(TYPES[node.kind].mode | node.mode, 4);
  bytes.writeBigUInt64LE(BigInt(sizeBytes), 8);
  bytes.writeUInt32LE(firstBlock, 16);
  bytes.writeUInt32LE((offset / SLOT_BYTES) >>> 0, 20); // for stat(2) of 32-bit programs only
  bytes.writeUInt32LE(node.uid, 24);
  bytes.writeUInt32LE(node.gid, 28);
  bytes.writeBigUInt64LE(BigInt(timeSeconds), 32);
  bytes.writeUInt32LE(linkCount, 44);
  return bytes;
}

function superblock(options: ErofsOptions, root: Inode, inodeCount: number, blocks: number): Buffer {
  // The superblock holds it in 32 bits: 16 TiB.
  if (blocks > 0xffff_ffff) throw new CtError('INTERNAL', 'a file system with more than 2^32 blocks');
  const bytes = Buffer.alloc(SUPERBLOCK_BYTES);
  bytes.writeUInt32LE(MAGIC, 0);
  bytes.writeUInt32LE(FEATURE_COMPAT, 8);
  bytes.writeUInt8(BLOCK_BITS, 12);
  bytes.writeUInt16LE(root.offset / SLOT_BYTES, 14);
  bytes.writeBigUInt64LE(BigInt(inodeCount), 16);
  bytes.writeBigUInt64LE(BigInt(options.timeSeconds), 24);
  bytes.writeUInt32LE(blocks, 36);
  Buffer.from(options.uuid, 'hex').copy(bytes, 48, 0, 16);
  return bytes;
}

function roundUp(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}

class Output {
  readonly #file: Awaited<ReturnType<typeof open>>;
  readonly #signal: AbortSignal | undefined;
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #position = 0;

  constructor(file: Awaited<ReturnType<typeof open>>, signal: AbortSignal | undefined) {
    this.#file = file;
    this.#signal = signal;
  }

  async write(bytes: Buffer): Promise<void> {
    this.#pending.push(bytes);
    this.#pendingBytes += bytes.length;
    this.#position += bytes.length;
    if (this.#pendingBytes >= BUFFER_BYTES) await this.flush();
  }

  async padTo(position: number): Promise<void> {
    if (position > this.#position) await this.write(Buffer.alloc(position - this.#position));
  }

  async flush(): Promise<void> {
    if (this.#signal?.aborted) throw new CtError('CANCELLED', 'the import was cancelled');
    const bytes = Buffer.concat(this.#pending);
    this.#pending = [];
    this.#pendingBytes = 0;
    for (let at = 0; at < bytes.length; ) at += (await this.#file.write(bytes, at)).bytesWritten;
  }
}
