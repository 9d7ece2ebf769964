/** Where the tree of an image is built, and how such trees are removed. */
import {
  accessSync,
  constants,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import { runProgram } from '../core/run-program.ts';
import { PROGRAM_PATH } from './supervised.ts';

/** A tree of a large image with its packages, twice: below this, memory is left alone. */
const MEMORY_BYTES_WANTED = 4 * 1024 ** 3;

const PREFIX = 'ct-image-';

export interface ScratchOptions {
  /** Named by the user; taken as it is. */
  readonly tmpDir?: string | undefined;
  /** On the file system of CT_HOME. */
  readonly workDirectory: string;
  /** Distinguishes our leftovers from those of another CT_HOME. */
  readonly owner: string;
}

/**
 * A new directory for one build: in memory if there is plenty, because a build writes much and keeps little. The
 * caller sees to its removal (`hooks/supervise.sh` does).
 *
 * Without root the tree belongs to subordinate user ids, which must be able to pass through all directories above it.
 */
export function makeScratch(options: ScratchOptions): string {
  const isRoot = process.getuid?.() === 0;
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8');
  const base = isUsable(options.tmpDir, mounts, isRoot)
    ? options.tmpDir
    : [
        hasMemory() ? '/dev/shm' : undefined,
        isRoot ? options.workDirectory : undefined,
        '/var/tmp',
        '/tmp',
      ].find((candidate) => isUsable(candidate, mounts, isRoot));
  if (base === undefined || (options.tmpDir !== undefined && base !== options.tmpDir)) {
    const where = options.tmpDir ?? '/dev/shm, /var/tmp or /tmp';
    throw new CtError('IMAGE_BUILD_FAILED', `an image cannot be built in ${where}`, {
      hint: 'set CT_TMPDIR to a directory that every user may enter, on a file system that is not mounted noexec',
    });
  }
  try {
    return mkdtempSync(join(base, `${PREFIX}${options.owner}-`));
  } catch (error) {
    throw new CtError('IMAGE_BUILD_FAILED', `no directory can be made in ${base}: ${messageOf(error)}`, {
      hint: 'CT_TMPDIR names another place for builds',
      cause: error,
    });
  }
}

/** Removes what builds of `owner` left behind when even their supervisor was killed. Only while no build runs. */
export async function sweepScratch(owner: string, tmpDir: string | undefined): Promise<void> {
  for (const base of new Set(['/dev/shm', '/var/tmp', '/tmp', ...(tmpDir === undefined ? [] : [tmpDir])])) {
    let names: string[];
    try {
      names = readdirSync(base).filter((name) => name.startsWith(`${PREFIX}${owner}-`));
    } catch {
      continue; // not there, or not ours to see
    }
    for (const name of names) {
      const path = join(base, name);
      // The name is no proof in a directory where anybody may write.
      if (statSync(path, { throwIfNoEntry: false })?.uid === process.getuid?.()) await removeTree(path);
    }
  }
}

/** Removes a directory in which subordinate user ids of ours may own files. */
export async function removeTree(path: string): Promise<void> {
  try {
    rmSync(path, { recursive: true, force: true, maxRetries: 3 });
  } catch (error) {
    if (process.getuid?.() === 0) throw error;
    for (const name of readdirSync(path)) {
      await runProgram({
        file: 'mmdebstrap',
        // What is inside; the directory itself lies in one of ours, which that namespace may not change.
        args: ['--unshare-helper', 'find', join(path, name), '-mindepth', '1', '-delete'],
        env: { PATH: PROGRAM_PATH },
        maxOutputBytes: 65_536,
        failureCode: 'IMAGE_BUILD_FAILED',
      });
    }
    rmSync(path, { recursive: true, force: true });
  }
}

function isUsable(path: string | undefined, mounts: string, isRoot: boolean): path is string {
  if (path === undefined) return false;
  try {
    accessSync(path, constants.W_OK | constants.X_OK);
  } catch {
    return false;
  }
  return !mountOptions(mounts, path).includes('noexec') && (isRoot || isOpenToPass(path));
}

function isOpenToPass(path: string): boolean {
  for (let at = path; ; at = dirname(at)) {
    if ((statSync(at).mode & 0o001) === 0) return false;
    if (at === dirname(at)) return true;
  }
}

function hasMemory(): boolean {
  const { bavail, bsize } = statfsSync('/dev/shm');
  const available = /^MemAvailable: *([0-9]+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'));
  return bavail * bsize >= MEMORY_BYTES_WANTED && Number(available?.[1] ?? 0) * 1024 >= MEMORY_BYTES_WANTED;
}

/** Options of the mount that `path` (absolute, without links) lies on; `mountinfo` as in proc(5). */
export function mountOptions(mountinfo: string, path: string): readonly string[] {
  let best: { readonly point: string; readonly options: string } = { point: '', options: '' };
  for (const line of mountinfo.split('\n')) {
    const [, , , , point, options] = line.split(' ');
    if (point === undefined || options === undefined) continue;
    const decoded = point.replace(/\\([0-7]{3})/g, (_, digits: string) =>
      String.fromCharCode(Number.parseInt(digits, 8)),
    );
    const covers = decoded === '/' || path === decoded || path.startsWith(`${decoded}/`);
    // A later mount on the same point hides the earlier one.
    if (covers && decoded.length >= best.point.length) best = { point: decoded, options };
  }
  return best.options.split(',');
}
