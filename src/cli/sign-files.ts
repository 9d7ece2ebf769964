/** Which files a manifest is made of, and what of them has changed since. Reads the tree as the caller. */
import { createHash } from 'node:crypto';
import { createReadStream, lstatSync, readlinkSync } from 'node:fs';
import { join, relative, resolve, sep } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import { printable } from '../core/source-text.ts';
import { IgnoredPaths, listTree } from '../job/tree-list.ts';
import { MAX_SIGNED_DIGESTS } from '../protocol/limits.ts';
import { isBelow, isTreePath, linkedPath, type Manifest } from '../verification/manifest.ts';

/**
 * What `paths` (as the user names them) are in the tree below `root`: of a directory everything in it that would be sent to a
 * VM. Throws USAGE for paths that cannot be signed, WORKSPACE_UNREADABLE.
 */
export async function collectManifest(root: string, paths: readonly string[]): Promise<Manifest> {
  const named = [...new Set(paths.map((path) => treePath(root, path)))];
  const directories = named.filter((path) => kindOf(root, path) === 'directory');
  for (const path of named) requirePlainParents(root, path);
  const files = new Map<string, string>();
  const links = new Map<string, string>();
  const listed = directories.length === 0 ? [] : await namesBelow(root, directories);
  for (const path of [...named.filter((path) => !directories.includes(path)), ...listed]) {
    const kind = kindOf(root, path);
    if (kind === 'directory') continue;
    if (kind === 'link') links.set(path, readlinkSync(join(root, path)));
    else files.set(path, await digestOf(join(root, path)));
    if (files.size > MAX_SIGNED_DIGESTS) {
      throw new CtError(
        'USAGE',
        `there are more than ${MAX_SIGNED_DIGESTS} files; name what has to be signed`,
      );
    }
  }
  if (files.size === 0)
    throw new CtError('USAGE', `there is no file to sign in ${named.map(printable).join(', ')}`);
  for (const [path, target] of links) requireCovered(path, target, { files, links, directories });
  return { files, links, directories };
}

export interface ManifestChange {
  readonly path: string;
  readonly what: 'changed' | 'missing' | 'unlisted';
}

/** How the tree differs from a manifest; empty if it does not. */
export async function compareManifest(root: string, manifest: Manifest): Promise<readonly ManifestChange[]> {
  const { files, links, directories } = manifest;
  const changes: ManifestChange[] = [];
  for (const [path, hex] of files) {
    const kind = findKind(root, path);
    if (kind === undefined) changes.push({ path, what: 'missing' });
    else if (kind !== 'file' || (await digestOf(join(root, path))) !== hex)
      changes.push({ path, what: 'changed' });
  }
  for (const [path, target] of links) {
    const kind = findKind(root, path);
    if (kind === undefined) changes.push({ path, what: 'missing' });
    else if (kind !== 'link' || readlinkSync(join(root, path)) !== target)
      changes.push({ path, what: 'changed' });
  }
  const present = directories.filter((path) => findKind(root, path) === 'directory');
  for (const path of present.length === 0 ? [] : await namesBelow(root, present)) {
    if (!files.has(path) && !links.has(path) && findKind(root, path) !== 'directory') {
      changes.push({ path, what: 'unlisted' });
    }
  }
  return changes.sort((a, b) => (a.path < b.path ? -1 : 1));
}

/** Relative to `root`. */
function treePath(root: string, path: string): string {
  const found = relative(root, resolve(root, path)).split(sep).join('/');
  if (found === '') {
    throw new CtError('USAGE', 'the whole tree cannot be signed, only files and directories in it', {
      hint: 'a signed commit stands for the whole tree: `verify: {commit: true}` (docs/verify.md)',
    });
  }
  if (found.startsWith('../') || found === '..' || !isTreePath(found)) {
    throw new CtError('USAGE', `${printable(path)} is not below ${root}, or in .git`);
  }
  return found;
}

async function namesBelow(root: string, directories: readonly string[]): Promise<string[]> {
  const lister = await listTree({
    root,
    respectIgnore: true,
    includeGit: false,
    ignored: new IgnoredPaths(),
    signal: undefined,
  });
  const names = new Set<string>();
  for await (const batch of lister.names) {
    for (const bytes of batch) {
      const name = bytes.toString('utf8').replace(/\/$/, '');
      if (!directories.some((directory) => isBelow(name, directory))) continue;
      const kind = findKind(root, name);
      if (kind === undefined) continue; // git knows it, and it was removed
      if (!Buffer.from(name).equals(bytes) && !bytes.toString('latin1').endsWith('/')) {
        throw new CtError('USAGE', `the name of ${printable(name)} is not UTF-8, so it cannot be signed`);
      }
      if (kind === 'directory' && lister.directoriesAreRepositories) {
        throw new CtError(
          'USAGE',
          `${printable(name)} is a repository of its own: sign the files in it by themselves`,
        );
      }
      names.add(name);
    }
  }
  return [...names];
}

function kindOf(root: string, path: string): 'file' | 'directory' | 'link' {
  const kind = findKind(root, path);
  if (kind === undefined) throw new CtError('USAGE', `${printable(path)} is no file, directory or link here`);
  return kind;
}

/** Undefined for what is not there, and for what never gets into a VM. */
function findKind(root: string, path: string): 'file' | 'directory' | 'link' | undefined {
  try {
    const stat = lstatSync(join(root, path));
    return stat.isFile()
      ? 'file'
      : stat.isDirectory()
        ? 'directory'
        : stat.isSymbolicLink()
          ? 'link'
          : undefined;
  } catch {
    return undefined;
  }
}

function requirePlainParents(root: string, path: string): void {
  const parts = path.split('/');
  for (let count = 1; count < parts.length; count++) {
    const parent = parts.slice(0, count).join('/');
    if (kindOf(root, parent) === 'link') {
      throw new CtError('USAGE', `${printable(path)} is reached by the link ${printable(parent)}`, {
        hint: 'name it by the path that it has without links',
      });
    }
  }
}

/** What a link leads to has to be signed as well: otherwise who changes that changes what is signed. */
function requireCovered(path: string, target: string, { files, links, directories }: Manifest): void {
  const end = linkedPath(path, target);
  const covered =
    end !== undefined &&
    (files.has(end) ||
      links.has(end) ||
      directories.some((directory) => directory === end || isBelow(end, directory)));
  if (covered) return;
  throw new CtError(
    'USAGE',
    `the link ${printable(path)} leads ${end === undefined ? 'out of the tree' : `to ${printable(end)}, which is not signed`}`,
    { hint: 'sign what it leads to as well, or replace the link by a copy' },
  );
}

async function digestOf(path: string): Promise<string> {
  const hash = createHash('sha256');
  try {
    for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  } catch (error) {
    throw new CtError('WORKSPACE_UNREADABLE', `cannot read ${printable(path)}: ${messageOf(error)}`, {
      cause: error,
    });
  }
  return hash.digest('hex');
}
