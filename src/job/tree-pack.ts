/** The sending side: a directory as a tree stream, in bounded memory. */
import {
  type BigIntStats,
  closeSync,
  constants,
  existsSync,
  fstatSync,
  lstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  readSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import { printable } from '../core/source-text.ts';
import { MAX_PATH_BYTES } from '../protocol/limits.ts';
import { EntryType, TREE_HEADER_BYTES, TREE_MAGIC, writeHeader } from './tree-format.ts';
import { IgnoredPaths, listTree, walkAll } from './tree-list.ts';

/** One chunk of the stream: large enough that a system call and a wake-up per chunk do not count. */
const CHUNK_BYTES = 256 * 1024;

/** Timers and sockets of this process are not kept waiting longer than this by synchronous reads. */
const MAX_BLOCKING_MS = 20;

const MAX_WARNINGS = 20;

export interface PackOptions {
  readonly root: string;
  /** Leave out what git would not list. */
  readonly respectIgnore: boolean;
  /** Send `.git` too, so that `git describe` and the like work in the job. Default true. */
  readonly includeGit?: boolean;
  readonly signal?: AbortSignal;
}

export interface TreeSummary {
  readonly files: number;
  readonly directories: number;
  readonly symlinks: number;
  /** Content bytes of files. */
  readonly bytes: number;
  /** Shortest paths that ignore rules left out, `node_modules/` for a whole directory; at most 50. */
  readonly ignored: readonly string[];
  /** How many there are in all. */
  readonly ignoredCount: number;
  /** At most 20 lines for the user, e.g. about a file that changed while it was read. */
  readonly warnings: readonly string[];
}

/** Iterate it once; `summary` is complete when the iteration has ended. */
export interface PackedTree extends AsyncIterable<Buffer> {
  readonly summary: TreeSummary;
}

/**
 * The tree below `root` as a tree stream. Nothing is opened before the iteration begins; each chunk is a buffer
 * of its own. What is listed in `.ct/out` is left out, and so are sockets, pipes and devices.
 *
 * The iteration throws WORKSPACE_UNREADABLE naming the file; the reason of `signal` when it aborts. A file that
 * changes while it is read is padded or cut to the size it had, with a warning; one that vanishes is left out.
 */
export function packTree(options: PackOptions): PackedTree {
  const packer = new Packer(options);
  return { summary: packer, [Symbol.asyncIterator]: () => packer.chunks() };
}

class Packer implements TreeSummary {
  files = 0;
  directories = 0;
  symlinks = 0;
  bytes = 0;
  readonly warnings: string[] = [];
  readonly #ignored = new IgnoredPaths();
  readonly #options: PackOptions;
  readonly #root: Buffer;
  /** Directories already in the stream, as latin1. */
  readonly #sent = new Set<string>();
  #chunk = Buffer.allocUnsafeSlow(CHUNK_BYTES);
  #used = 0;

  constructor(options: PackOptions) {
    this.#options = options;
    this.#root = Buffer.from(resolve(options.root));
  }

  get ignored(): readonly string[] {
    return this.#ignored.names;
  }

  get ignoredCount(): number {
    return this.#ignored.count;
  }

  async *chunks(): AsyncGenerator<Buffer> {
    const { signal, includeGit = true } = this.#options;
    this.#requireDirectory();
    let turnStartedAt = performance.now();
    const breathe = async (): Promise<void> => {
      if (performance.now() - turnStartedAt < MAX_BLOCKING_MS) return;
      await new Promise((done) => setImmediate(done));
      turnStartedAt = performance.now();
      signal?.throwIfAborted();
    };
    signal?.throwIfAborted();
    TREE_MAGIC.copy(this.#chunk);
    this.#used = TREE_MAGIC.length;
    for await (const names of this.#names(Buffer.alloc(0))) {
      for (const name of names) {
        yield* this.#entry(name);
        await breathe();
      }
    }
    if (includeGit) {
      for await (const names of this.#gitDirectory()) {
        for (const name of names) {
          yield* this.#entry(name);
          await breathe();
        }
      }
    }
    yield* this.#header({ type: EntryType.end, mode: 0, size: 0n, name: Buffer.alloc(0) });
    if (this.#used > 0) yield this.#take();
  }

  /** Names below `prefix`, and below every repository in it, relative to the root. */
  async *#names(prefix: Buffer): AsyncGenerator<readonly Buffer[]> {
    const { respectIgnore, includeGit = true, signal } = this.#options;
    const ignored = prefix.length === 0 ? this.#ignored : new IgnoredPaths();
    const lister = await listTree({
      root: this.#path(prefix).toString(),
      respectIgnore,
      includeGit,
      ignored,
      signal,
    });
    for await (const listed of lister.names) {
      const names = prefix.length === 0 ? listed : listed.map((name) => joinBytes(prefix, name));
      if (!lister.directoriesAreRepositories) {
        yield names;
        continue;
      }
      for (const name of names) {
        yield [name];
        if (!this.#isDirectory(name)) continue;
        const gitLink = joinBytes(name, Buffer.from('.git'));
        if (!existsSync(this.#path(gitLink))) continue;
        yield* this.#names(name);
        if (!includeGit) continue;
        yield [gitLink];
        if (this.#isDirectory(gitLink)) yield* prefixed(gitLink, walkAll(this.#path(gitLink), isLockFile));
      }
    }
  }

  /** `.git` of the root. Lock files stay out: they belong to a git that runs here, not in the job. */
  async *#gitDirectory(): AsyncGenerator<readonly Buffer[]> {
    const name = Buffer.from('.git');
    const path = join(this.#root.toString(), '.git');
    const stat = lstatSync(path, { throwIfNoEntry: false });
    if (stat === undefined) return;
    if (!stat.isDirectory()) {
      this.#warn(
        '.git refers to a repository elsewhere and is not sent: git commands will not work in the job',
      );
      return;
    }
    if (holdsCredentials(join(path, 'config'))) {
      this.#warn('.git/config, which the job can read, seems to hold credentials');
    }
    yield [name];
    yield* prefixed(name, walkAll(Buffer.from(path), isLockFile));
  }

  #requireDirectory(): void {
    try {
      if (lstatSync(this.#root, { throwIfNoEntry: true }).isSymbolicLink()) return;
      if (lstatSync(this.#root).isDirectory()) return;
    } catch (error) {
      throw unreadable(this.#root, error);
    }
    throw new CtError('WORKSPACE_UNREADABLE', `${this.#root.toString()} is not a directory`);
  }

  #path(name: Buffer): Buffer {
    return name.length === 0 ? this.#root : joinBytes(this.#root, name);
  }

  #isDirectory(name: Buffer): boolean {
    return lstatSync(this.#path(name), { throwIfNoEntry: false })?.isDirectory() ?? false;
  }

  #warn(message: string): void {
    if (this.warnings.length < MAX_WARNINGS) this.warnings.push(message);
  }

  // -------------------------------------------------------------------------------------------- entries

  *#entry(name: Buffer): Generator<Buffer> {
    if (this.#sent.has(name.toString('latin1'))) return;
    if (!(yield* this.#parents(name))) return;
    const path = this.#path(name);
    const stat = this.#lstat(path);
    if (stat === undefined) return;
    if (stat.isFile()) yield* this.#file(name, path);
    else if (stat.isSymbolicLink()) yield* this.#symlink(name, path, stat);
    else if (stat.isDirectory()) yield* this.#directory(name, stat);
    else this.#warn(`${shown(name)} is no file and not sent`);
  }

  /** False if a parent is no directory any more: then the path leads elsewhere, or nowhere. */
  *#parents(name: Buffer): Generator<Buffer, boolean> {
    for (let at = name.indexOf(SLASH); at !== -1; at = name.indexOf(SLASH, at + 1)) {
      const parent = name.subarray(0, at);
      if (this.#sent.has(parent.toString('latin1'))) continue;
      const stat = this.#lstat(this.#path(parent));
      if (!stat?.isDirectory()) return false;
      yield* this.#directory(parent, stat);
    }
    return true;
  }

  *#directory(name: Buffer, stat: BigIntStats): Generator<Buffer> {
    this.#sent.add(name.toString('latin1'));
    this.directories++;
    yield* this.#header({
      type: EntryType.directory,
      mode: Number(stat.mode),
      mtimeNs: stat.mtimeNs,
      size: 0n,
      name,
    });
  }

  *#symlink(name: Buffer, path: Buffer, stat: BigIntStats): Generator<Buffer> {
    let target: Buffer;
    try {
      target = readlinkSync(path, { encoding: 'buffer' });
    } catch (error) {
      if (vanished(error)) return;
      throw unreadable(path, error);
    }
    this.symlinks++;
    const size = BigInt(target.length);
    yield* this.#header({ type: EntryType.symlink, mode: 0o777, mtimeNs: stat.mtimeNs, size, name });
    yield* this.#write(target);
  }

  *#file(name: Buffer, path: Buffer): Generator<Buffer> {
    let fd: number;
    try {
      // NOFOLLOW and NONBLOCK: what was a file a moment ago may be a link or a pipe now.
      fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    } catch (error) {
      if (vanished(error)) return;
      throw unreadable(path, error);
    }
    try {
      const stat = fstatSync(fd, { bigint: true });
      if (!stat.isFile()) return;
      this.files++;
      const { mtimeNs, size } = stat;
      yield* this.#header({ type: EntryType.file, mode: Number(stat.mode), mtimeNs, size, name });
      yield* this.#content(fd, path, Number(size));
      const now = fstatSync(fd, { bigint: true });
      if (now.size !== size || now.mtimeNs !== mtimeNs) {
        this.#warn(`${shown(name)} changed while it was read; the job may see a mixture`);
      }
    } finally {
      closeSync(fd);
    }
  }

  /** Exactly `size` bytes, which the header has promised. */
  *#content(fd: number, path: Buffer, size: number): Generator<Buffer> {
    this.bytes += size;
    let ended = false;
    for (let left = size; left > 0; ) {
      if (this.#used === CHUNK_BYTES) yield this.#take();
      const room = Math.min(left, CHUNK_BYTES - this.#used);
      let count = 0;
      try {
        if (!ended) count = readSync(fd, this.#chunk, this.#used, room, null);
      } catch (error) {
        throw unreadable(path, error);
      }
      if (count === 0) {
        ended = true;
        count = room;
        this.#chunk.fill(0, this.#used, this.#used + count);
      }
      this.#used += count;
      left -= count;
    }
  }

  #lstat(path: Buffer): BigIntStats | undefined {
    try {
      return lstatSync(path, { bigint: true });
    } catch (error) {
      if (vanished(error)) return undefined;
      throw unreadable(path, error);
    }
  }

  // -------------------------------------------------------------------------------------------- output

  *#header(entry: {
    type: number;
    mode: number;
    mtimeNs?: bigint;
    size: bigint;
    name: Buffer;
  }): Generator<Buffer> {
    const { type, mode, mtimeNs = 0n, size, name } = entry;
    if (name.length > MAX_PATH_BYTES) {
      throw new CtError(
        'WORKSPACE_UNREADABLE',
        `the path ${shown(name)} is longer than ${MAX_PATH_BYTES} bytes`,
      );
    }
    if (this.#used + TREE_HEADER_BYTES > CHUNK_BYTES) yield this.#take();
    // Rounded down, so that times before 1970 keep positive nanoseconds.
    const mtimeNanoseconds = Number(((mtimeNs % BILLION) + BILLION) % BILLION);
    writeHeader(this.#chunk, this.#used, {
      type,
      mode: mode & 0o777,
      mtimeSeconds: (mtimeNs - BigInt(mtimeNanoseconds)) / BILLION,
      mtimeNanoseconds,
      nameBytes: name.length,
      size,
    });
    this.#used += TREE_HEADER_BYTES;
    yield* this.#write(name);
  }

  *#write(bytes: Buffer): Generator<Buffer> {
    for (let at = 0; at < bytes.length; ) {
      if (this.#used === CHUNK_BYTES) yield this.#take();
      const count = bytes.copy(this.#chunk, this.#used, at);
      this.#used += count;
      at += count;
    }
  }

  /** The chunk so far; it is the receiver's from now on. */
  #take(): Buffer {
    const chunk = this.#chunk.subarray(0, this.#used);
    this.#chunk = Buffer.allocUnsafeSlow(CHUNK_BYTES);
    this.#used = 0;
    return chunk;
  }
}

const SLASH = 0x2f;
const SLASH_BYTES = Buffer.from('/');
const BILLION = 1_000_000_000n;

function joinBytes(directory: Buffer, name: Buffer): Buffer {
  return Buffer.concat([directory, SLASH_BYTES, name]);
}

async function* prefixed(
  prefix: Buffer,
  batches: AsyncIterable<readonly Buffer[]>,
): AsyncGenerator<readonly Buffer[]> {
  for await (const names of batches) yield names.map((name) => joinBytes(prefix, name));
}

function isLockFile(name: string): boolean {
  return name.endsWith('.lock');
}

/** A password in a URL, or a header with a token as CI checkouts leave it. */
function holdsCredentials(config: string): boolean {
  try {
    return /:\/\/[^/\s@]*:[^/\s@]+@|extraheader\s*=/i.test(readFileSync(config, 'latin1'));
  } catch {
    return false;
  }
}

function vanished(error: unknown): boolean {
  return ['ENOENT', 'ENOTDIR', 'ELOOP'].includes((error as NodeJS.ErrnoException).code ?? '');
}

function shown(name: Buffer): string {
  return printable(name.toString('utf8'));
}

function unreadable(path: Buffer, cause: unknown): CtError {
  const why = (cause as NodeJS.ErrnoException).code === 'EACCES' ? 'permission denied' : messageOf(cause);
  return new CtError('WORKSPACE_UNREADABLE', `cannot read ${shown(path)}: ${printable(why)}`, {
    hint: 'make it readable, or ignore it in .gitignore',
    cause,
  });
}
