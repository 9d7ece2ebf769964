/**
 * The receiving side on the host: a tree stream from a guest becomes files.
 *
 * Every byte is the guest's and may be hostile (layout: tree-format.ts). It is parsed once, here; every length
 * is checked before anything is allocated for it. Nothing is written outside of a directory made for this
 * stream, and nothing reaches its destination before the stream has ended well:
 *
 * - names are relative, without empty, `.` or `..` components, and everything but a directory comes once;
 * - a parent is a directory of the same stream, so no entry leads through a symbolic link;
 * - symbolic links are made last; those that are absolute or would climb out are left out with a warning;
 * - modes lose everything but the permission bits.
 */
import {
  chmodSync,
  closeSync,
  constants,
  fchmodSync,
  futimesSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import { printable } from '../core/source-text.ts';
import { MAX_PATH_BYTES } from '../protocol/limits.ts';
import { EntryType, readHeader, TREE_HEADER_BYTES, TREE_MAGIC } from './tree-format.ts';

/** Entries of one stream; each costs memory here. Guest-controlled. */
const MAX_ENTRIES = 500_000;

/** All names and link targets of one stream together, for the same reason. */
const MAX_NAME_BYTES_TOTAL = 128 * 1024 * 1024;

/** NAME_MAX of Linux. */
const MAX_COMPONENT_BYTES = 255;

const DEFAULT_MAX_BYTES = 64 * 2 ** 30;
const MAX_WARNINGS = 20;
/** Times outside (1970 to about 2500) come from broken clocks, and some file systems refuse them. */
const MAX_MTIME_SECONDS = 2n ** 34n - 1n;
/** Timers and sockets of this process are not kept waiting longer than this by synchronous writes. */
const MAX_BLOCKING_MS = 20;

export interface UnpackOptions {
  /** Content bytes of all files; more is refused with ARTIFACT_REFUSED. Default 64 GiB. */
  readonly maxBytes?: number;
  readonly signal?: AbortSignal;
}

export interface UnpackSummary {
  readonly files: number;
  readonly bytes: number;
  /** E.g. symbolic links that point outside and were left out. At most 20. */
  readonly warnings: readonly string[];
}

/**
 * Writes the tree of `stream` into `directory`, which is made if it is missing; files that are there already are
 * replaced, others stay.
 *
 * Throws ARTIFACT_REFUSED if the stream is malformed, hostile, cut short or too large; STORE_FULL;
 * ARTIFACT_WRITE_FAILED; the reason of `signal` when it aborts. After any of these, and while the stream is
 * being received, `directory` is as it was: the files come together in a directory beside it, which is removed
 * on failure. (A failure of the last step, moving them into a directory that has other files, can leave some.)
 */
export async function unpackTree(
  stream: AsyncIterable<Uint8Array>,
  directory: string,
  options: UnpackOptions = {},
): Promise<UnpackSummary> {
  const destination = resolve(directory);
  let staging: string | undefined;
  try {
    mkdirSync(dirname(destination), { recursive: true });
    // Nobody else can look in; the directory inside has the mode that any new one gets.
    staging = mkdtempSync(join(dirname(destination), `.${basename(destination).slice(0, 100)}.partial-`));
    const tree = join(staging, 'tree');
    mkdirSync(tree);
    const unpacker = new Unpacker(stream, tree, options);
    await unpacker.run();
    moveInto(tree, destination);
    const { files, bytes, warnings } = unpacker;
    return { files, bytes, warnings };
  } catch (error) {
    options.signal?.throwIfAborted();
    throw writeError(error, destination);
  } finally {
    if (staging !== undefined) rmSync(staging, { recursive: true, force: true, maxRetries: 2 });
  }
}

class Unpacker {
  files = 0;
  bytes = 0;
  readonly warnings: string[] = [];
  readonly #input: ByteReader;
  readonly #root: Buffer;
  readonly #maxBytes: number;
  /** Type of every path so far, by its bytes as latin1. */
  readonly #types = new Map<string, number>();
  readonly #directories: { path: Buffer; mode: number; mtime: number }[] = [];
  readonly #links: { name: Buffer; path: Buffer; target: Buffer; mtime: number }[] = [];
  #nameBytes = 0;
  #entries = 0;

  constructor(stream: AsyncIterable<Uint8Array>, root: string, options: UnpackOptions) {
    this.#input = new ByteReader(stream, options.signal);
    this.#root = Buffer.from(root);
    this.#maxBytes = options.maxBytes ?? DEFAULT_MAX_BYTES;
  }

  async run(): Promise<void> {
    try {
      const magic = await this.#input.read(TREE_MAGIC.length);
      if (!magic.equals(TREE_MAGIC)) throw refused('it does not begin as a tree stream');
      while (await this.#entry());
      await this.#input.expectEnd();
    } finally {
      this.#input.close();
    }
    for (const link of this.#links) this.#makeLink(link);
    // Deepest first: making entries in a directory has changed its time, and its mode may forbid to.
    for (const { path, mode, mtime } of this.#directories.reverse()) {
      // The owner can always list and remove what a run brought, or the next run could not replace it.
      chmodSync(path, mode | 0o700);
      utimesSync(path, mtime, mtime);
    }
  }

  /** False at the end. */
  async #entry(): Promise<boolean> {
    const header = readHeader(await this.#input.read(TREE_HEADER_BYTES));
    const { type, nameBytes, size, mtimeSeconds, mtimeNanoseconds } = header;
    if (type === EntryType.end) {
      if (
        nameBytes !== 0 ||
        size !== 0n ||
        header.mode !== 0 ||
        mtimeSeconds !== 0n ||
        mtimeNanoseconds !== 0
      ) {
        throw refused('its end entry is not empty');
      }
      return false;
    }
    if (type !== EntryType.file && type !== EntryType.directory && type !== EntryType.symlink) {
      throw refused(`it has an entry of the unknown type ${type}`);
    }
    if (nameBytes > MAX_PATH_BYTES) throw refused(`it has a name of ${nameBytes} bytes`);
    if (mtimeNanoseconds >= 1e9) throw refused('it has a time with too many nanoseconds');
    if (++this.#entries > MAX_ENTRIES) throw refused(`it has more than ${MAX_ENTRIES} entries`);
    this.#countNameBytes(nameBytes);
    const name = await this.#input.read(nameBytes);
    this.#checkName(name, type);
    const path = Buffer.concat([this.#root, SLASH_BYTES, name]);
    const inRange = mtimeSeconds >= 0n && mtimeSeconds <= MAX_MTIME_SECONDS;
    const mtime = inRange ? Number(mtimeSeconds) + mtimeNanoseconds / 1e9 : Date.now() / 1000;
    const mode = header.mode & 0o777;

    if (type === EntryType.directory) {
      if (size !== 0n) throw refused(`the directory ${shown(name)} has content`);
      if (!this.#types.has(name.toString('latin1'))) mkdirSync(path, 0o700);
      this.#directories.push({ path, mode, mtime });
    } else if (type === EntryType.symlink) {
      if (size === 0n || size > BigInt(MAX_PATH_BYTES))
        throw refused(`the link ${shown(name)} has a target of ${size} bytes`);
      this.#countNameBytes(Number(size));
      const target = await this.#input.read(Number(size));
      if (target.includes(0)) throw refused(`the target of the link ${shown(name)} has a NUL byte`);
      this.#links.push({ name, path, target, mtime });
    } else {
      if (size > BigInt(this.#maxBytes - this.bytes))
        throw refused(`its files are larger than ${this.#maxBytes} bytes`);
      this.bytes += Number(size);
      this.files++;
      await this.#file(path, Number(size), mode, mtime);
    }
    this.#types.set(name.toString('latin1'), type);
    return true;
  }

  #countNameBytes(count: number): void {
    this.#nameBytes += count;
    if (this.#nameBytes > MAX_NAME_BYTES_TOTAL)
      throw refused(`its names are longer than ${MAX_NAME_BYTES_TOTAL} bytes`);
  }

  #checkName(name: Buffer, type: number): void {
    const text = name.toString('latin1');
    if (text.includes('\0')) throw refused('it has a name with a NUL byte');
    if (text.startsWith('/')) throw refused(`the name ${shown(name)} is absolute`);
    for (const component of text.split('/')) {
      if (component === '' || component === '.' || component === '..') {
        throw refused(`the name ${shown(name)} has an empty, \`.\` or \`..\` component`);
      }
      if (component.length > MAX_COMPONENT_BYTES)
        throw refused('it has a name with a component of more than 255 bytes');
    }
    const slash = text.lastIndexOf('/');
    if (slash !== -1) {
      const parent = this.#types.get(text.slice(0, slash));
      if (parent === EntryType.symlink) throw refused(`${shown(name)} leads through a symbolic link`);
      if (parent !== EntryType.directory) throw refused(`${shown(name)} comes before its directory`);
    }
    const earlier = this.#types.get(text);
    if (earlier !== undefined && !(earlier === EntryType.directory && type === EntryType.directory)) {
      throw refused(`${shown(name)} comes twice`);
    }
  }

  async #file(path: Buffer, size: number, mode: number, mtime: number): Promise<void> {
    const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
    const fd = openSync(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
    try {
      for (let left = size; left > 0; ) {
        const chunk = await this.#input.some(left);
        left -= chunk.length;
        for (let at = 0; at < chunk.length; ) at += writeSync(fd, chunk, at);
      }
      fchmodSync(fd, mode);
      futimesSync(fd, mtime, mtime);
    } finally {
      closeSync(fd);
    }
  }

  #makeLink(link: { name: Buffer; path: Buffer; target: Buffer; mtime: number }): void {
    const { name, path, target, mtime } = link;
    if (!staysInside(name, target)) {
      if (this.warnings.length < MAX_WARNINGS) {
        this.warnings.push(
          `the symbolic link ${shown(name)} points outside of the artifacts and was left out`,
        );
      }
      return;
    }
    symlinkSync(target, path);
    lutimesSync(path, mtime, mtime);
  }
}

/**
 * Whether a link leads to a place inside, whatever the other links are: it may climb with leading `..` as far
 * as the root (its own parents are real directories, so this is exact), then only descend. By induction a chain
 * of such links stays inside as well. `a/../b` would be exact only if `a` were no link, so it is not taken.
 */
function staysInside(name: Buffer, target: Buffer): boolean {
  const text = target.toString('latin1');
  if (text.startsWith('/')) return false;
  let depth = name.toString('latin1').split('/').length - 1;
  let descending = false;
  for (const component of text.split('/')) {
    if (component === '' || component === '.') continue;
    if (component !== '..') descending = true;
    else if (descending || --depth < 0) return false;
  }
  return true;
}

/** Exact reads from chunks, without copying content and without holding more than one chunk. */
class ByteReader {
  readonly #iterator: AsyncIterator<Uint8Array>;
  readonly #signal: AbortSignal | undefined;
  /** Rejects when the signal aborts: a stream that stalls must not keep us. */
  readonly #aborted: Promise<never> | undefined;
  #chunk: Buffer = Buffer.alloc(0);
  #turnStartedAt = performance.now();

  constructor(stream: AsyncIterable<Uint8Array>, signal: AbortSignal | undefined) {
    this.#iterator = stream[Symbol.asyncIterator]();
    this.#signal = signal;
    this.#aborted =
      signal &&
      new Promise((_, reject) => {
        signal.addEventListener('abort', () => reject(signal.reason), { once: true });
      });
    this.#aborted?.catch(() => {});
  }

  /** `length` bytes, a copy; lengths are bounded by the callers. */
  async read(length: number): Promise<Buffer> {
    const result = Buffer.alloc(length);
    for (let used = 0; used < length; ) used += (await this.some(length - used)).copy(result, used);
    return result;
  }

  /** At least one byte and at most `limit`; valid until the next call. */
  async some(limit: number): Promise<Buffer> {
    if (this.#chunk.length === 0 && !(await this.#next())) throw refused('it was cut short');
    const taken = this.#chunk.subarray(0, limit);
    this.#chunk = this.#chunk.subarray(taken.length);
    return taken;
  }

  async expectEnd(): Promise<void> {
    if (this.#chunk.length > 0 || (await this.#next())) throw refused('it goes on after its end');
  }

  /** Tells the sender that nothing more is read; not awaited, because a sender that hangs would hang us. */
  close(): void {
    Promise.resolve(this.#iterator.return?.()).catch(() => {});
  }

  /** False at the end of the stream. */
  async #next(): Promise<boolean> {
    do {
      this.#signal?.throwIfAborted();
      if (performance.now() - this.#turnStartedAt > MAX_BLOCKING_MS) {
        await new Promise((done) => setImmediate(done));
        this.#turnStartedAt = performance.now();
      }
      const next = this.#iterator.next();
      const { value, done } = await (this.#aborted === undefined
        ? next
        : Promise.race([next, this.#aborted]));
      if (done) return false;
      this.#chunk = Buffer.from(value.buffer, value.byteOffset, value.byteLength);
    } while (this.#chunk.length === 0);
    return true;
  }
}

/** Moves the content of one directory into another; real directories are merged, anything else is replaced. */
function moveInto(from: string, to: string): void {
  const existing = lstatSync(to, { throwIfNoEntry: false });
  if (existing === undefined) renameSync(from, to);
  else if (existing.isDirectory()) moveChildren(Buffer.from(from), Buffer.from(to));
  else throw new Error(`${printable(to)} is in the way`);
}

function moveChildren(from: Buffer, to: Buffer): void {
  for (const child of readdirSync(from, { withFileTypes: true, encoding: 'buffer' })) {
    const source = Buffer.concat([from, SLASH_BYTES, child.name]);
    const target = Buffer.concat([to, SLASH_BYTES, child.name]);
    const existing = lstatSync(target, { throwIfNoEntry: false });
    if (child.isDirectory() && existing?.isDirectory()) {
      moveChildren(source, target);
    } else if (existing !== undefined && (child.isDirectory() || existing.isDirectory())) {
      throw new Error(`${shown(target)} is in the way`);
    } else {
      // Replaces a file or a link without following it.
      renameSync(source, target);
    }
  }
}

const SLASH_BYTES = Buffer.from('/');

function shown(name: Buffer): string {
  const text = printable(name.toString('utf8'));
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}

function refused(why: string): CtError {
  return new CtError('ARTIFACT_REFUSED', `the artifacts from the VM were refused: ${why}`);
}

function writeError(error: unknown, destination: string): CtError {
  if (error instanceof CtError) return error;
  const { code } = error as NodeJS.ErrnoException;
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new CtError('STORE_FULL', `there is no space left for the artifacts in ${dirname(destination)}`, {
      hint: 'free some space, or let the job keep fewer files',
      cause: error,
    });
  }
  if (code === 'ENAMETOOLONG') return refused(`a path is too long below ${dirname(destination)}`);
  return new CtError(
    'ARTIFACT_WRITE_FAILED',
    `cannot write artifacts to ${destination}: ${messageOf(error)}`,
    {
      cause: error,
    },
  );
}
