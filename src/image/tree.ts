/**
 * What a root file system consists of, as hooks/customize.sh lists it right before it becomes an image. Packages decide
 * the names and contents of these files, so they are read as data of strangers: bounded, and by name only where the list
 * itself has the name.
 */
import { mkdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { CtError } from '../core/errors.ts';
import { runProgram } from '../core/run-program.ts';

/** What the hook writes, below the directory of the build. */
export const TREE_FILES = ['tree', 'sha256', 'sha1', 'keys', 'metadata.tar'] as const;

export type TreeEntryType = 'file' | 'directory' | 'link' | 'other';

export interface TreeEntry {
  /** Absolute. */
  readonly path: string;
  readonly type: TreeEntryType;
  /** The permission bits, with set-uid, set-gid and sticky. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly sizeBytes: number;
  /** Of a symbolic link. */
  readonly target?: string;
  /** Hex, of a file. */
  readonly sha256?: string;
  readonly sha1?: string;
}

export interface Tree {
  /** Sorted by path. */
  readonly entries: readonly TreeEntry[];
  /** Text files with a line that begins a private key. */
  readonly keys: readonly string[];
  /** A file that says something of packages; undefined if the tree has it not, or if it is too large to be one. */
  readonly metadata: (path: string) => string | undefined;
}

/** An image with desktop programs has half a million files of a hundred bytes. */
const MAX_LIST_BYTES = 256 * 1024 * 1024;
/** dpkg's status of two thousand packages has three megabytes. */
const MAX_METADATA_BYTES = 16 * 1024 * 1024;
const TYPES: Readonly<Record<string, TreeEntryType>> = { f: 'file', d: 'directory', l: 'link' };

/** Reads what the hook wrote into `exchange`; `scratch` must not exist. Throws IMAGE_BUILD_FAILED. */
export async function readTree(
  exchange: string,
  scratch: string,
  signal: AbortSignal | undefined,
): Promise<Tree> {
  mkdirSync(scratch, { mode: 0o700 });
  await runProgram({
    file: 'tar',
    args: [
      '--extract',
      '--no-same-owner',
      '--no-same-permissions',
      `--file=${join(exchange, 'metadata.tar')}`,
      `--directory=${scratch}`,
    ],
    maxOutputBytes: 65_536,
    failureCode: 'IMAGE_BUILD_FAILED',
    ...(signal ? { signal } : {}),
  });
  const list = (name: (typeof TREE_FILES)[number]): string => readList(join(exchange, name));
  const entries = parseTree(list('tree'), parseDigests(list('sha256')), parseDigests(list('sha1')));
  const files = new Set(entries.filter(({ type }) => type === 'file').map(({ path }) => path));
  return {
    entries,
    keys: parsePaths(list('keys')).sort(),
    metadata: (path) => {
      if (!files.has(path)) return undefined;
      const file = join(scratch, path);
      const size = statSync(file, { throwIfNoEntry: false })?.size;
      return size === undefined || size > MAX_METADATA_BYTES ? undefined : readFileSync(file, 'utf8');
    },
  };
}

function readList(path: string): string {
  if (statSync(path).size > MAX_LIST_BYTES) {
    throw new CtError('IMAGE_BUILD_FAILED', `the image has more files than can be listed (${path})`);
  }
  return readFileSync(path, 'utf8');
}

/** `type mode uid gid size`, path and link target, each ended by a zero byte (`find -printf`). */
export function parseTree(
  text: string,
  sha256: ReadonlyMap<string, string>,
  sha1: ReadonlyMap<string, string>,
): readonly TreeEntry[] {
  const fields = text.split('\0');
  const entries: TreeEntry[] = [];
  for (let at = 0; at + 2 < fields.length; at += 3) {
    const [head = '', below = '', target = ''] = fields.slice(at, at + 3);
    const match = /^([a-zD]) ([0-7]{1,4}) ([0-9]+) ([0-9]+) ([0-9]+)$/.exec(head);
    if (match === null) throw new CtError('IMAGE_BUILD_FAILED', 'the list of files of the image is damaged');
    const [, letter = '', mode = '', uid, gid, size] = match;
    const path = `/${below}`;
    const type = TYPES[letter] ?? 'other';
    const [digest, oldDigest] = [sha256.get(path), sha1.get(path)];
    if (type === 'file' && (digest === undefined || oldDigest === undefined)) {
      throw new CtError('IMAGE_BUILD_FAILED', `${path} of the image has no digest`);
    }
    entries.push({
      path,
      type,
      mode: Number.parseInt(mode, 8),
      uid: Number(uid),
      gid: Number(gid),
      // How large a directory is depends on the file system that it was made on.
      sizeBytes: type === 'file' ? Number(size) : 0,
      ...(type === 'link' ? { target } : {}),
      ...(type === 'file' ? { sha256: digest as string, sha1: oldDigest as string } : {}),
    });
  }
  return entries.sort((a, b) => (a.path < b.path ? -1 : 1));
}

/** `<hex>  ./path`, each ended by a zero byte (`sha256sum -z`). */
function parseDigests(text: string): ReadonlyMap<string, string> {
  const digests = new Map<string, string>();
  for (const line of text.split('\0')) {
    const match = /^([0-9a-f]{40}|[0-9a-f]{64}) [ *]\.(\/[\s\S]+)$/.exec(line);
    if (match !== null) digests.set(match[2] ?? '', match[1] ?? '');
  }
  return digests;
}

function parsePaths(text: string): string[] {
  return text
    .split('\0')
    .filter((path) => path.startsWith('./'))
    .map((path) => path.slice(1));
}
