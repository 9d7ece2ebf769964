/** A file system in a file, so that a test can look at every byte that reached the "disk". Needs root. */
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
} from 'node:fs';
import { join } from 'node:path';

export interface LoopDisk extends Disposable {
  readonly mountPoint: string;
  /** Writes everything back and unmounts. */
  unmount(): void;
  /** Whether `marker` lies anywhere on the raw disk. Legal when unmounted. */
  contains(marker: Buffer): boolean;
}

export const loopDiskObstacle: string | undefined =
  process.getuid?.() === 0 ? undefined : 'mounting a loop device needs root';

export function loopDisk(directory: string, sizeMib: number): LoopDisk {
  const image = join(directory, 'disk.img');
  const mountPoint = join(directory, 'mnt');
  mkdirSync(mountPoint);
  const fd = openSync(image, 'w', 0o600);
  ftruncateSync(fd, sizeMib * 1024 * 1024);
  closeSync(fd);
  execFileSync('mke2fs', ['-q', '-F', '-t', 'ext4', '-m', '0', image]);
  execFileSync('mount', ['-o', 'loop', image, mountPoint]);
  let mounted = true;
  const unmount = (): void => {
    if (!mounted) return;
    try {
      execFileSync('umount', [mountPoint]);
    } catch (error) {
      throw new Error(`still in use:\n${usersOf(mountPoint)}`, { cause: error });
    }
    mounted = false;
  };
  return {
    mountPoint,
    unmount,
    contains: (marker) => fileContains(image, marker),
    [Symbol.dispose]: unmount,
  };
}

/** Reads in pieces that overlap by the length of the marker. */
export function fileContains(path: string, marker: Buffer): boolean {
  const fd = openSync(path, 'r');
  try {
    const buffer = Buffer.alloc(16 * 1024 * 1024);
    let kept = 0;
    for (;;) {
      const bytes = readSync(fd, buffer, kept, buffer.length - kept, null);
      if (bytes === 0) return false;
      const filled = kept + bytes;
      if (buffer.subarray(0, filled).includes(marker)) return true;
      kept = Math.min(filled, marker.length - 1);
      buffer.copy(buffer, 0, filled - kept, filled);
    }
  } finally {
    closeSync(fd);
  }
}

/** Which processes have something open below `path`, and what. */
function usersOf(path: string): string {
  const users: string[] = [];
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      const open = ['cwd', 'root', 'exe', ...readdirSync(`/proc/${pid}/fd`).map((fd) => `fd/${fd}`)]
        .map((name) => readlinkSync(`/proc/${pid}/${name}`))
        .filter((target) => target.startsWith(path));
      const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').slice(0, 200);
      if (open.length > 0) users.push(`${pid} ${command}: ${open.join(', ')}`);
    } catch {
      // it has ended, or is a thread of the kernel
    }
  }
  return users.join('\n');
}
