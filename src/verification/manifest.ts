/**
 * Signed manifests of files: an in-toto statement whose subjects are paths of a working tree with their SHA-256, and whose
 * predicate says which directories it covers whole and which symbolic links are in them. docs/verify.md describes it.
 */
import { CtError } from '../core/errors.ts';
import { hasKeys } from '../core/json.ts';
import { MAX_PATH_BYTES, MAX_SIGNED_DIGESTS } from '../protocol/limits.ts';
import { buildStatement, type Statement } from './statement.ts';

export const MANIFEST_PREDICATE_TYPE = 'urn:ct:manifest:v1';

/** Paths are relative to the workspace, with `/`, in the order of their bytes. */
export interface Manifest {
  /** Lower-case hex SHA-256 by path; at least one. */
  readonly files: ReadonlyMap<string, string>;
  /** Targets by path, as the links have them. */
  readonly links: ReadonlyMap<string, string>;
  /** Nothing else may be in them. */
  readonly directories: readonly string[];
}

/** The same files give the same bytes. */
export function manifestStatement({ files, links, directories }: Manifest): Statement {
  return buildStatement({
    subjects: sorted(files).map(([name, hex]) => ({ name, digest: `sha256:${hex}` })),
    predicateType: MANIFEST_PREDICATE_TYPE,
    predicate: {
      directories: [...directories].sort(compareBytes),
      links: sorted(links).map(([path, target]) => ({ path, target })),
    },
  });
}

/**
 * Reads what a verified statement of this type says. Throws SIGNATURE_MALFORMED for a path that is none below the workspace, one
 * that is there twice, or anything that the format does not have.
 */
export function parseManifest(statement: Statement): Manifest {
  const files = new Map<string, string>();
  const links = new Map<string, string>();
  const add = <T>(map: Map<string, T>, path: unknown, value: T): void => {
    if (typeof path !== 'string' || !isTreePath(path))
      throw malformed('a path in it is none below a workspace');
    if (files.has(path) || links.has(path)) throw malformed(`${JSON.stringify(path)} is in it twice`);
    map.set(path, value);
  };
  if (statement.subject.length > MAX_SIGNED_DIGESTS)
    throw malformed(`it has more than ${MAX_SIGNED_DIGESTS} files`);
  for (const { name, digest } of statement.subject) {
    const { sha256, ...others } = digest;
    if (sha256 === undefined || Object.keys(others).length > 0)
      throw malformed('a file has not exactly a SHA-256');
    add(files, name, sha256);
  }
  const { predicate } = statement;
  if (!hasKeys(predicate, ['directories', 'links'])) throw malformed('its predicate is another');
  const { directories, links: listed } = predicate;
  if (!isShortList(directories) || !isShortList(listed)) throw malformed('its predicate is another');
  for (const link of listed) {
    if (!hasKeys(link, ['path', 'target']) || typeof link['target'] !== 'string')
      throw malformed('a link has no target');
    add(links, link['path'], link['target']);
  }
  for (const directory of directories) {
    if (typeof directory !== 'string' || !isTreePath(directory)) {
      throw malformed('a directory in it is none below a workspace');
    }
  }
  return { files, links, directories: directories as string[] };
}

/** Whether it is a path below a workspace in its one spelling, and not in the repository's own directory. */
export function isTreePath(path: string): boolean {
  return (
    path.isWellFormed() &&
    !path.includes('\0') &&
    Buffer.byteLength(path) <= MAX_PATH_BYTES &&
    path.split('/').every((part) => part !== '' && part !== '.' && part !== '..') &&
    path.split('/')[0] !== '.git'
  );
}

/** The path a link leads to, as its spelling has it; undefined if that is outside of the tree, or the tree itself. */
export function linkedPath(link: string, target: string): string | undefined {
  if (target === '' || target.startsWith('/')) return undefined;
  const parts = link.split('/').slice(0, -1);
  for (const part of target.split('/')) {
    if (part === '' || part === '.') continue;
    if (part !== '..') parts.push(part);
    else if (parts.pop() === undefined) return undefined;
  }
  return parts.length === 0 ? undefined : parts.join('/');
}

export function isBelow(path: string, directory: string): boolean {
  return path.startsWith(`${directory}/`);
}

/** As git and C sort names. */
export function compareBytes(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

function sorted<T>(map: ReadonlyMap<string, T>): [string, T][] {
  return [...map].sort(([a], [b]) => compareBytes(a, b));
}

function isShortList(value: unknown): value is readonly unknown[] {
  return Array.isArray(value) && value.length <= MAX_SIGNED_DIGESTS;
}

function malformed(reason: string): CtError {
  return new CtError('SIGNATURE_MALFORMED', `what is signed is no manifest of files: ${reason}`);
}
