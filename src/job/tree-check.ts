/**
 * Compares a tree stream with what was signed while it passes by: the daemon has verified signatures of digests, and here are
 * the bytes that really go into the VM. The stream comes from the client, who may be wrong or lie.
 */
import { createHash, type Hash } from 'node:crypto';
import { CtError } from '../core/errors.ts';
import { printable } from '../core/source-text.ts';
import { MAX_PATH_BYTES } from '../protocol/limits.ts';
import type { TreeExpectation } from '../protocol/verify.ts';
import { GitTree } from './git-tree.ts';
import { EntryType, readHeader, TREE_HEADER_BYTES, TREE_MAGIC } from './tree-format.ts';

/** A target of a link is a path. */
const MAX_LINK_BYTES = MAX_PATH_BYTES;

/**
 * Passes the stream on, and throws before it passes on its end if it is not what is expected: VERIFY_FILE_CHANGED,
 * VERIFY_FILE_MISSING, VERIFY_FILE_UNLISTED, VERIFY_TREE_DIRTY; HOST_PROTOCOL for a stream that is malformed. Nothing of what
 * was passed on may be used before `holds`.
 */
export class CheckedTree implements AsyncIterable<Buffer> {
  readonly #tree: AsyncIterable<Buffer>;
  readonly #check: TreeCheck;
  #holds = false;

  constructor(tree: AsyncIterable<Buffer>, expected: TreeExpectation) {
    this.#tree = tree;
    this.#check = new TreeCheck(expected);
  }

  /** All of it has come, and is what was expected. */
  get holds(): boolean {
    return this.#holds;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    for await (const chunk of this.#tree) {
      this.#check.push(chunk);
      if (this.#check.ended && !this.#holds) {
        this.#check.end();
        this.#holds = true;
      }
      yield chunk;
    }
    if (!this.#holds) this.#check.end();
  }
}

type Reading = 'magic' | 'header' | 'name' | 'content' | 'ended';

class TreeCheck {
  readonly #files: ReadonlyMap<string, string>;
  readonly #links: ReadonlyMap<string, string>;
  readonly #directories: readonly string[];
  readonly #absent: ReadonlySet<string>;
  /** Directories above what is expected: a link in their place would lead elsewhere. */
  readonly #parents = new Set<string>();
  readonly #gitTree: { readonly id: string; readonly tree: GitTree } | undefined;
  readonly #missing: Set<string>;

  #reading: Reading = 'magic';
  /** What was read of magic, header, name or target of a link. */
  #held: Buffer[] = [];
  #heldBytes = 0;
  #wantedBytes = TREE_MAGIC.length;
  #header = readHeader(Buffer.alloc(TREE_HEADER_BYTES));
  /** Of the entry; undefined if it is not UTF-8. */
  #path: string | undefined;
  #name: Buffer = Buffer.alloc(0);
  #contentLeft = 0n;
  #hash: Hash | undefined;
  #blob: Hash | undefined;

  constructor({ files, links, directories, absent = [], gitTree }: TreeExpectation) {
    this.#absent = new Set(absent);
    this.#files = new Map(Object.entries(files));
    this.#links = new Map(Object.entries(links));
    this.#directories = directories;
    this.#missing = new Set([...this.#files.keys(), ...this.#links.keys()]);
    for (const path of [...this.#missing, ...directories.map((directory) => `${directory}/`)]) {
      for (let at = path.indexOf('/'); at !== -1; at = path.indexOf('/', at + 1)) {
        this.#parents.add(path.slice(0, at));
      }
    }
    if (gitTree !== undefined) {
      this.#gitTree = { id: gitTree, tree: new GitTree(gitTree.length === 40 ? 'sha1' : 'sha256') };
    }
  }

  push(chunk: Buffer): void {
    for (let at = 0; at < chunk.length; ) {
      if (this.#reading === 'ended') throw malformed('goes on after its end');
      if (this.#reading === 'content' && this.#header.type === EntryType.file) {
        const left = chunk.length - at;
        const count = this.#contentLeft < BigInt(left) ? Number(this.#contentLeft) : left;
        const part = chunk.subarray(at, at + count);
        this.#hash?.update(part);
        this.#blob?.update(part);
        this.#contentLeft -= BigInt(count);
        at += count;
        if (this.#contentLeft === 0n) this.#fileEnd();
        continue;
      }
      const part = chunk.subarray(at, at + this.#wantedBytes - this.#heldBytes);
      this.#held.push(part);
      this.#heldBytes += part.length;
      at += part.length;
      if (this.#heldBytes === this.#wantedBytes) this.#step(this.#take());
    }
  }

  get ended(): boolean {
    return this.#reading === 'ended';
  }

  /** To be called when the stream has ended. */
  end(): void {
    if (this.#reading !== 'ended') throw malformed('is cut short');
    const [missing, ...others] = this.#missing;
    if (missing !== undefined) {
      const more = others.length === 0 ? '' : `, and ${others.length} more`;
      throw new CtError(
        'VERIFY_FILE_MISSING',
        `${printable(missing)}${more}: signed, and not in the working tree`,
        {
          hint: 'what git ignores is not sent; sign again if it was removed on purpose: ct sign',
        },
      );
    }
    if (this.#gitTree && this.#gitTree.tree.id() !== this.#gitTree.id) {
      throw new CtError('VERIFY_TREE_DIRTY', 'the working tree is not that of the signed commit', {
        hint: 'commit what changed, and remove what git does not know (git status); filters such as LFS change files, too',
      });
    }
  }

  #take(): Buffer {
    const bytes = this.#held.length === 1 ? (this.#held[0] as Buffer) : Buffer.concat(this.#held);
    this.#held = [];
    this.#heldBytes = 0;
    return bytes;
  }

  #want(reading: Reading, bytes: number): void {
    this.#reading = reading;
    this.#wantedBytes = bytes;
  }

  #step(bytes: Buffer): void {
    switch (this.#reading) {
      case 'magic':
        if (!bytes.equals(TREE_MAGIC)) throw malformed('is none');
        this.#want('header', TREE_HEADER_BYTES);
        return;
      case 'header':
        this.#header = readHeader(bytes);
        if (this.#header.type === EntryType.end) {
          this.#want('ended', 0);
          return;
        }
        if (this.#header.nameBytes === 0 || this.#header.nameBytes > MAX_PATH_BYTES) {
          throw malformed('has a name of no length that names have');
        }
        this.#want('name', this.#header.nameBytes);
        return;
      case 'name':
        this.#entry(Buffer.from(bytes));
        return;
      default:
        this.#linkEnd(bytes);
    }
  }

  #entry(name: Buffer): void {
    this.#name = name;
    const path = name.toString('utf8');
    // Bytes that are not UTF-8 all read as the same character: such a name is that of nothing that was signed.
    this.#path = Buffer.from(path).equals(name) ? path : undefined;
    const parts = path.split('/');
    if (parts.some((part) => part === '' || part === '.' || part === '..')) {
      throw malformed('has a path with more than one spelling');
    }
    const { type, size } = this.#header;
    const isGit = parts[0] === '.git';
    if (type === EntryType.directory) {
      if (size !== 0n) throw malformed('has a directory with content');
      if (this.#path !== undefined && this.#missingOrKnown(this.#path)) throw this.#changed();
      if (!isGit) this.#gitTree?.tree.directory(name);
      this.#want('header', TREE_HEADER_BYTES);
      return;
    }
    if (this.#path !== undefined && this.#parents.has(this.#path)) throw this.#changed();
    this.#requireListed(path);
    if (type === EntryType.symlink) {
      if (size > BigInt(MAX_LINK_BYTES)) throw malformed('has a link that is too long');
      if (size === 0n) this.#linkEnd(Buffer.alloc(0));
      else this.#want('content', Number(size));
      return;
    }
    if (type !== EntryType.file) throw malformed('has an entry of a kind that there is not');
    this.#contentLeft = size;
    this.#hash =
      this.#path !== undefined && this.#missingOrKnown(this.#path) ? createHash('sha256') : undefined;
    this.#blob = isGit ? undefined : this.#gitTree?.tree.blob(size);
    this.#want('content', 0);
    if (size === 0n) this.#fileEnd();
  }

  #fileEnd(): void {
    const path = this.#path ?? '';
    if (this.#hash) {
      if (this.#hash.digest('hex') !== this.#files.get(path)) throw this.#changed();
      this.#missing.delete(path);
    }
    if (this.#blob) {
      const executable = (this.#header.mode & 0o100) !== 0;
      this.#gitTree?.tree.entry(this.#name, executable ? '100755' : '100644', this.#blob.digest());
    }
    this.#want('header', TREE_HEADER_BYTES);
  }

  #linkEnd(target: Buffer): void {
    const path = this.#path;
    if (path !== undefined && this.#missingOrKnown(path)) {
      const wanted = this.#links.get(path);
      if (wanted === undefined || !Buffer.from(wanted).equals(target)) throw this.#changed();
      this.#missing.delete(path);
    }
    if (this.#gitTree && path?.split('/')[0] !== '.git') {
      const blob = this.#gitTree.tree.blob(BigInt(target.length)).update(target).digest();
      this.#gitTree.tree.entry(this.#name, '120000', blob);
    }
    this.#want('header', TREE_HEADER_BYTES);
  }

  /** Whether it is one of those that were signed, each time that it comes. */
  #missingOrKnown(path: string): boolean {
    return this.#files.has(path) || this.#links.has(path);
  }

  #requireListed(path: string): void {
    if (this.#path !== undefined && this.#missingOrKnown(this.#path)) return;
    if (this.#absent.has(path)) {
      throw new CtError(
        'VERIFY_EVIDENCE_MISSING',
        `${printable(path)} is in the working tree, and was not verified`,
      );
    }
    const directory = this.#directories.find((candidate) => path.startsWith(`${candidate}/`));
    if (directory === undefined) return;
    throw new CtError(
      'VERIFY_FILE_UNLISTED',
      `${printable(path)} was not signed, and all of ${printable(directory)} is`,
      { hint: 'remove it, or sign again: ct sign' },
    );
  }

  #changed(): CtError {
    return new CtError('VERIFY_FILE_CHANGED', `${printable(this.#path ?? '')} is not as it was signed`, {
      hint: 'ct sign --check says what changed; sign again if that is right: ct sign',
    });
  }
}

function malformed(what: string): CtError {
  return new CtError('HOST_PROTOCOL', `the working tree as the client sends it ${what}`);
}
