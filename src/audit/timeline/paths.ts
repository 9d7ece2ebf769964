/** Paths as the guest's processes give them: what lies where, and which differ from run to run by chance. */
import { posix } from 'node:path';

/** Devices that keep nothing: to write to them changes nothing. */
const SINKS =
  /^\/dev\/(null|zero|full|random|urandom|tty|ptmx|console|stdout|stderr|pts\/[0-9]+)$|^\/proc\/self\/fd\/|^\/dev\/fd\//;
const TEMPORARY = /^\/(tmp|var\/tmp|dev\/shm|run)(?=\/|$)/;

/** A path without `.` and `..`; relative ones start in `cwd`. */
export function absolutePath(path: string, cwd: string): string {
  if (path.startsWith('/')) return posix.normalize(path);
  return cwd.startsWith('/') ? posix.join(cwd, path) : path;
}

export function isWithin(path: string, directory: string): boolean {
  return path === directory || path.startsWith(`${directory}/`);
}

/** Something that is still there, or was, after it was written. */
export function isKept(path: string): boolean {
  return path !== '' && !SINKS.test(path);
}

/**
 * The path with what is there by chance replaced by `*`: numbers of processes, names that mkstemp(3) and the like make up, UUIDs
 * and digests. In directories for temporary files that is every word that looks made up; elsewhere only what no person writes.
 */
export function withoutChance(path: string): string {
  const isTemporary = TEMPORARY.test(path);
  return path
    .split('/')
    .map((name, index, all) => {
      if (all[index - 1] === 'proc' && index === 2 && /^[0-9]+$/.test(name)) return '*';
      const plain = name
        .replaceAll(/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/gi, '*')
        .replaceAll(/(?<![0-9a-z])[0-9a-f]{16,128}(?![0-9a-z])/gi, '*')
        .replaceAll(/(?<![0-9A-Za-z])[0-9]{3,20}(?![0-9A-Za-z])/g, '*');
      return isTemporary ? withoutMadeUp(plain) : plain;
    })
    .join('/');
}

/** Six characters, as mkstemp(3) makes them up: after `cc` by GCC, after a separator, or a whole name. */
function withoutMadeUp(name: string): string {
  return name
    .replace(/^cc[A-Za-z0-9]{6}(?=\.|$)/, 'cc*')
    .replace(/^(tmp|npm|pip|go-build|rustc)[A-Za-z0-9_]{6,32}(?=\.|$)/, '$1*')
    .replaceAll(/(?<=^|[._-])([A-Za-z0-9]{6,12})(?=$|[._-])/g, (word) => (looksMadeUp(word) ? '*' : word))
    .replaceAll(/(?<![0-9a-z])[0-9a-f]{8,}(?![0-9a-z])/gi, '*');
}

/** Letters of both cases, or digits among letters, not in the way that words and versions have them. */
function looksMadeUp(word: string): boolean {
  if (/^[A-Z]?[a-z]+[0-9]{0,2}$|^[A-Z]+[0-9]{0,2}$/.test(word)) return false;
  const kinds = [/[a-z]/, /[A-Z]/, /[0-9]/].filter((kind) => kind.test(word)).length;
  return kinds >= 2;
}
