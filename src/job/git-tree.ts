/**
 * The id that git gives a tree (gitformat-… "tree objects": `<mode> <name>\0<id of the entry>`, sorted by name with a slash
 * behind those of directories), from its files one by one. Empty directories are not part of it, as for git.
 */
import { createHash, type Hash } from 'node:crypto';
import { CtError } from '../core/errors.ts';

/** Names and ids are held in memory until all have come. */
const MAX_ENTRIES = 200_000;

type Mode = '100644' | '100755' | '120000';

interface Directory {
  /** By name as latin1, which is as many characters as bytes. */
  readonly entries: Map<string, Directory | { readonly mode: Mode; readonly id: Buffer }>;
}

export class GitTree {
  readonly #algorithm: 'sha1' | 'sha256';
  readonly #root: Directory = { entries: new Map() };
  #count = 0;

  constructor(algorithm: 'sha1' | 'sha256') {
    this.#algorithm = algorithm;
  }

  /** Takes the content of a file of that size; its digest is the id. */
  blob(size: bigint): Hash {
    return createHash(this.#algorithm).update(`blob ${size}\0`);
  }

  /** Throws VERIFY_TREE_DIRTY for a path that is there twice, or of something else as well. */
  entry(path: Buffer, mode: Mode, id: Buffer): void {
    const parts = path.toString('latin1').split('/');
    const name = parts.pop() ?? '';
    const directory = this.#at(parts, path);
    if (directory.entries.has(name)) throw twice(path);
    this.#countOne();
    directory.entries.set(name, { mode, id });
  }

  /** What is a directory cannot be a file or link as well. */
  directory(path: Buffer): void {
    this.#at(path.toString('latin1').split('/'), path);
  }

  /** In hex. */
  id(): string {
    return (this.#idOf(this.#root) ?? this.#hash(Buffer.alloc(0))).toString('hex');
  }

  #countOne(): void {
    if (++this.#count <= MAX_ENTRIES) return;
    throw new CtError(
      'VERIFY_TREE_DIRTY',
      `the tree has more than ${MAX_ENTRIES} entries, so it cannot be compared`,
    );
  }

  #at(parts: readonly string[], path: Buffer): Directory {
    let directory = this.#root;
    for (const part of parts) {
      const known = directory.entries.get(part);
      const found = known ?? { entries: new Map() };
      if ('mode' in found) throw twice(path);
      if (known === undefined) {
        this.#countOne();
        directory.entries.set(part, found);
      }
      directory = found;
    }
    return directory;
  }

  #idOf({ entries }: Directory): Buffer | undefined {
    const lines: { readonly order: Buffer; readonly bytes: Buffer }[] = [];
    for (const [name, entry] of entries) {
      const isDirectory = 'entries' in entry;
      const id = isDirectory ? this.#idOf(entry) : entry.id;
      if (id === undefined) continue;
      const mode = isDirectory ? '40000' : entry.mode;
      lines.push({
        order: Buffer.from(isDirectory ? `${name}/` : name, 'latin1'),
        bytes: Buffer.concat([Buffer.from(`${mode} ${name}\0`, 'latin1'), id]),
      });
    }
    if (lines.length === 0) return undefined;
    lines.sort((a, b) => Buffer.compare(a.order, b.order));
    return this.#hash(Buffer.concat(lines.map(({ bytes }) => bytes)));
  }

  #hash(content: Buffer): Buffer {
    return createHash(this.#algorithm).update(`tree ${content.length}\0`).update(content).digest();
  }
}

function twice(path: Buffer): CtError {
  return new CtError('VERIFY_TREE_DIRTY', `the tree has ${JSON.stringify(path.toString('utf8'))} twice`);
}
