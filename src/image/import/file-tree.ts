/**
 * The files of an image to be, in memory: what layers and disks are read into, and what is written as a file system.
 *
 * Nothing of a stranger is ever unpacked on this machine: a path is a walk through these objects, so there is no link
 * and no `..` that could lead out of them, and no owner or mode needs a privilege. Only the contents of files lie on
 * disk, one after the other in one file without names (content-spool.ts).
 *
 * Names and link targets are byte strings: one character for each byte, as Linux has bytes.
 */
import type { Extent } from './content-spool.ts';
import { refused, shown } from './refusal.ts';

/** Debian's desktop has some 300,000; each takes about 300 bytes here. */
export const MAX_ENTRIES = 500_000;
/** PATH_MAX and NAME_MAX of Linux. */
const MAX_PATH_BYTES = 4096;
const MAX_NAME_BYTES = 255;
/** Far beyond every real tree; whoever walks the tree may recurse. */
const MAX_DEPTH = 128;
/** As many as Linux follows (path_resolution(7)). */
const MAX_LINKS_FOLLOWED = 40;
/** The last two are no ids for the kernel. */
const MAX_ID = 0xffff_fffd;

export interface Attributes {
  /** Permission bits, 0 to 07777. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
}

interface Common extends Attributes {
  /** Number of the layer it came with, from 0. */
  readonly layer: number;
}

export interface FileNode extends Common {
  readonly kind: 'file';
  readonly data: Extent;
  /** It has file capabilities, which are not kept. */
  readonly capabilities: boolean;
}

export interface SymlinkNode extends Common {
  readonly kind: 'symlink';
  readonly target: string;
}

export interface DirectoryNode extends Attributes {
  readonly kind: 'directory';
  mode: number;
  uid: number;
  gid: number;
  layer: number;
  readonly children: Map<string, TreeNode>;
}

/** One object in several directories is a file with several hard links. */
export type TreeNode = FileNode | SymlinkNode | DirectoryNode;

export const ROOT_ATTRIBUTES: Attributes = { mode: 0o755, uid: 0, gid: 0 };

/** All methods throw IMAGE_IMPORT_REFUSED. */
export class FileTree {
  readonly root: DirectoryNode = { kind: 'directory', ...ROOT_ATTRIBUTES, layer: 0, children: new Map() };
  #entries = 0;
  readonly #whiteouts = new WeakMap<DirectoryNode, Set<string>>();

  addDirectory(path: string, attributes: Attributes, layer: number): void {
    checkAttributes(path, attributes);
    const names = splitPath(path);
    const { mode, uid, gid } = attributes;
    const last = names.at(-1);
    if (last === undefined) {
      Object.assign(this.root, { mode, uid, gid });
      return;
    }
    const parent = this.#parentFor(names, layer, path);
    const existing = parent.children.get(last);
    if (existing?.kind === 'directory') {
      Object.assign(existing, { mode, uid, gid, layer });
      return;
    }
    this.#put(parent, last, { kind: 'directory', mode, uid, gid, layer, children: new Map() }, layer, path);
  }

  addFile(path: string, attributes: Attributes, data: Extent, layer: number, capabilities = false): void {
    checkAttributes(path, attributes);
    const { mode, uid, gid } = attributes;
    this.#add(path, { kind: 'file', mode, uid, gid, data, layer, capabilities }, layer);
  }

  addSymlink(path: string, target: string, attributes: Attributes, layer: number): void {
    checkAttributes(path, attributes);
    if (target === '' || target.length >= MAX_PATH_BYTES || target.includes('\0')) {
      throw refused(`the symbolic link ${shown(path)} has no usable target`);
    }
    const { uid, gid } = attributes;
    this.#add(path, { kind: 'symlink', mode: 0o777, uid, gid, target, layer }, layer);
  }

  /** A further name for a file that is there. */
  addHardLink(path: string, targetPath: string, layer: number): void {
    const names = splitPath(targetPath);
    const name = names.at(-1);
    const parent = name === undefined ? undefined : this.#walk(names.slice(0, -1), layer, targetPath, false);
    const target = name === undefined ? undefined : parent?.children.get(name);
    // A layer that links to a file has it: tools that make layers copy files of lower ones before they link them.
    if (target === undefined || target.kind === 'directory' || target.layer !== layer) {
      throw refused(
        `the hard link ${shown(path)} leads to ${shown(targetPath)}, which is no file of its layer`,
      );
    }
    const own = splitPath(path);
    if (this.#walk(own.slice(0, -1), layer, path, false)?.children.get(own.at(-1) ?? '') === target) {
      throw refused(`the hard link ${shown(path)} leads to itself`);
    }
    this.#add(path, target, layer);
  }

  /** Hides what lower layers have under this name. */
  whiteOut(directoryPath: string, name: string, layer: number): void {
    checkName(name, `${directoryPath}/${name}`);
    const directory = this.#walk(splitPath(directoryPath), layer, directoryPath, false);
    if (directory !== undefined) this.#noteWhiteout(directory, name, layer);
    const hidden = directory?.children.get(name);
    if (hidden !== undefined && !keepsOnly(hidden, layer)) directory?.children.delete(name);
  }

  /** Hides what lower layers have in this directory. */
  whiteOutAll(directoryPath: string, layer: number): void {
    const directory = this.#walk(splitPath(directoryPath), layer, directoryPath, false);
    if (directory === undefined) return;
    this.#noteWhiteout(directory, '', layer);
    keepChildrenOnly(directory, layer);
  }

  /** What is at `path`; links are not followed. For paths that we name ourselves. */
  get(path: string): TreeNode | undefined {
    let at: TreeNode | undefined = this.root;
    for (const name of splitPath(path)) at = at?.kind === 'directory' ? at.children.get(name) : undefined;
    return at;
  }

  /** Puts a node in place of whatever is at `path`, whose parents must be directories or absent. */
  replace(path: string, node: TreeNode): void {
    const names = splitPath(path);
    let at = this.root;
    for (const name of names.slice(0, -1)) {
      let next = at.children.get(name);
      if (next === undefined) {
        next = { kind: 'directory', ...ROOT_ATTRIBUTES, layer: 0, children: new Map() };
        at.children.set(name, next);
      }
      if (next.kind !== 'directory')
        throw refused(`${shown(name)} in ${shown(path)} is no directory in this image`);
      at = next;
    }
    at.children.set(names.at(-1) ?? '', node);
  }

  #add(path: string, node: FileNode | SymlinkNode, layer: number): void {
    const names = splitPath(path);
    const last = names.at(-1);
    if (last === undefined) throw refused('the root of the image is no directory');
    this.#put(this.#parentFor(names, layer, path), last, node, layer, path);
  }

  #put(parent: DirectoryNode, name: string, node: TreeNode, layer: number, path: string): void {
    const existing = parent.children.get(name);
    // Which of two would count depends on who reads: a scanner may see one, a machine the other.
    if (existing !== undefined && (existing.layer === layer || holdsLayer(existing, layer))) {
      throw refused(`${shown(path)} is twice in one layer`);
    }
    this.#count();
    parent.children.set(name, node);
  }

  /** Each looks at what it hides: the same one again and again would look without end. */
  #noteWhiteout(directory: DirectoryNode, name: string, layer: number): void {
    this.#count();
    const key = `${layer}/${name}`;
    const seen = this.#whiteouts.get(directory) ?? new Set();
    if (seen.has(key)) throw refused(`${shown(name)} is hidden twice by one layer`);
    this.#whiteouts.set(directory, seen.add(key));
  }

  #count(): void {
    this.#entries += 1;
    if (this.#entries > MAX_ENTRIES) throw refused(`there are more than ${MAX_ENTRIES} files`);
  }

  #parentFor(names: readonly string[], layer: number, path: string): DirectoryNode {
    return this.#walk(names.slice(0, -1), layer, path, true) as DirectoryNode;
  }

  /**
   * The directory that `names` lead to. Links of lower layers are followed, as a container runtime does; they must lead
   * to directories that are there, and never above the root. Links of the same layer are not: an archive of real files
   * has nothing below a link. Undefined if a directory is missing and none shall be made.
   */
  #walk(names: readonly string[], layer: number, path: string, create: boolean): DirectoryNode | undefined {
    const above: DirectoryNode[] = [];
    let at = this.root;
    let links = 0;
    const queue = names.map((name) => ({ name, ofLink: false })).reverse();
    for (let step = queue.pop(); step !== undefined; step = queue.pop()) {
      const { name, ofLink } = step;
      if (name === '..') {
        const up = above.pop();
        if (up === undefined) throw refused(`${shown(path)} leads out of the image through a link`);
        at = up;
        continue;
      }
      const next = at.children.get(name);
      if (next === undefined) {
        if (!create && !ofLink) return undefined;
        if (ofLink) throw refused(`${shown(path)} leads through a link to what is not there`);
        const made: DirectoryNode = { kind: 'directory', ...ROOT_ATTRIBUTES, layer, children: new Map() };
        this.#count();
        at.children.set(name, made);
        above.push(at);
        at = made;
        continue;
      }
      if (next.kind === 'directory') {
        above.push(at);
        at = next;
        continue;
      }
      if (next.kind === 'file') throw refused(`${shown(path)} leads through a file`);
      if (next.layer === layer) throw refused(`${shown(path)} leads through a link of its own layer`);
      links += 1;
      if (links > MAX_LINKS_FOLLOWED) throw refused(`${shown(path)} leads through too many links`);
      if (next.target.startsWith('/')) {
        above.length = 0;
        at = this.root;
      }
      const steps = next.target.split('/').filter((part) => part !== '' && part !== '.');
      queue.push(...steps.map((part) => ({ name: part, ofLink: true })).reverse());
    }
    return at;
  }
}

/** Takes apart the path of an entry. Leading `./` and trailing `/` are usual; nothing else that is not a plain name is. */
export function splitPath(path: string): readonly string[] {
  if (path.length > MAX_PATH_BYTES) throw refused(`a path has more than ${MAX_PATH_BYTES} bytes`);
  if (path.startsWith('/')) throw refused(`${shown(path)} is an absolute path`);
  const names = path.split('/').filter((name) => name !== '' && name !== '.');
  for (const name of names) checkName(name, path);
  if (names.length > MAX_DEPTH) throw refused(`${shown(path)} is deeper than ${MAX_DEPTH} directories`);
  return names;
}

function checkName(name: string, path: string): void {
  if (name === '' || name === '.' || name === '..' || name.includes('/') || name.includes('\0')) {
    throw refused(`${shown(path)} is no path of a file in an image`);
  }
  if (name.length > MAX_NAME_BYTES) throw refused(`a name has more than ${MAX_NAME_BYTES} bytes`);
}

function checkAttributes(path: string, { mode, uid, gid }: Attributes): void {
  if (!isId(uid) || !isId(gid) || !Number.isInteger(mode) || mode < 0 || mode > 0o7777) {
    throw refused(`${shown(path)} has an owner or a mode that cannot be`);
  }
}

function isId(id: number): boolean {
  return Number.isInteger(id) && id >= 0 && id <= MAX_ID;
}

/** Whether anything of `layer` is in it; what is of lower layers is removed from it. */
function keepsOnly(node: TreeNode, layer: number): boolean {
  if (node.kind !== 'directory') return node.layer === layer;
  const kept = keepChildrenOnly(node, layer);
  return kept || node.layer === layer;
}

function keepChildrenOnly(directory: DirectoryNode, layer: number): boolean {
  for (const [name, child] of directory.children) {
    if (!keepsOnly(child, layer)) directory.children.delete(name);
  }
  return directory.children.size > 0;
}

function holdsLayer(node: TreeNode, layer: number): boolean {
  if (node.kind !== 'directory') return false;
  for (const child of node.children.values()) {
    if (child.layer === layer || holdsLayer(child, layer)) return true;
  }
  return false;
}
