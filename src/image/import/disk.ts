/** Disks as sources of images: what a Packer build with QEMU leaves. */
import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { CtError } from '../../core/errors.ts';
import { type BlockReader, rawDisk } from '../disk/block-reader.ts';
import { readExt } from '../disk/ext4.ts';
import { findFileSystem } from '../disk/partitions.ts';
import { openQcow2 } from '../disk/qcow2.ts';
import type { ContentSpool } from './content-spool.ts';
import type { DirectoryNode, FileTree, TreeNode } from './file-tree.ts';
import { refused } from './refusal.ts';

const HASHED_AT_ONCE_BYTES = 1024 * 1024;

/**
 * Reads the ext4 file system of a disk into the tree, and returns a digest of what was read: names, owners, modes and
 * contents. Throws IMAGE_IMPORT_REFUSED, USAGE, CANCELLED.
 */
export async function openDisk(
  kind: 'raw' | 'qcow2',
  path: string,
  options: {
    readonly tree: FileTree;
    readonly spool: ContentSpool;
    readonly partition?: number | undefined;
    readonly signal?: AbortSignal | undefined;
  },
): Promise<string> {
  let file: FileHandle;
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const { code = 'unknown error' } = error as NodeJS.ErrnoException;
    throw new CtError('USAGE', `${path} cannot be opened (${code})`, { cause: error });
  }
  try {
    const stats = await file.stat();
    if (!stats.isFile()) throw refused(`${path} is no file`);
    const raw = rawDisk(file, stats.size);
    const disk: BlockReader = kind === 'raw' ? raw : await openQcow2(raw);
    await readExt(await findFileSystem(disk, options.partition), {
      ...options,
      onFile: () => {
        if (options.signal?.aborted) throw new CtError('CANCELLED', 'the import was cancelled');
      },
    });
  } finally {
    await file.close();
  }
  return treeDigest(options.tree.root, options.spool);
}

async function treeDigest(root: DirectoryNode, spool: ContentSpool): Promise<string> {
  const hash = createHash('sha256');
  const seen = new Map<TreeNode, number>();
  const visit = async (node: TreeNode, name: string): Promise<void> => {
    const before = seen.get(node);
    if (before === undefined) seen.set(node, seen.size);
    const size =
      node.kind === 'file' ? node.data.sizeBytes : node.kind === 'symlink' ? node.target : node.children.size;
    const { kind, mode, uid, gid } = node;
    hash.update(JSON.stringify([name, before ?? null, kind, mode, uid, gid, size]));
    if (before !== undefined || node.kind === 'symlink') return;
    if (node.kind === 'file') {
      for (let at = 0; at < node.data.sizeBytes; at += HASHED_AT_ONCE_BYTES) {
        hash.update(await spool.read(node.data, at, HASHED_AT_ONCE_BYTES));
      }
      return;
    }
    const children = [...node.children].sort(([a], [b]) => (a < b ? -1 : 1));
    for (const [childName, child] of children) await visit(child, childName);
  };
  await visit(root, '');
  return `sha256:${hash.digest('hex')}`;
}
