/**
 * The workspace volume: a sparse file that has no name while it is in use, and the blocks of the empty file system
 * that the guest agent writes to it through dm-crypt (so that no mkfs has to run in the guest).
 */
import { closeSync, ftruncateSync, openSync, rmSync } from 'node:fs';
import { open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { runProgram } from '../core/run-program.ts';

const MIB = 1024 * 1024;
/** The blocks of a file system of 1 TiB are about 3 MB. */
const MAX_BLOCKS_BYTES = 16 * MIB;

/**
 * Creates the backing file of a volume and returns its only descriptor; the name is gone before this returns, so
 * that the kernel frees the blocks when the VMM and we have closed it, whatever happens in between.
 */
export function createVolume(directory: string, sizeMib: number): number {
  const path = join(directory, `volume-${process.pid}-${process.hrtime.bigint()}`);
  const fd = openSync(path, 'wx+', 0o600);
  try {
    rmSync(path);
    ftruncateSync(fd, sizeMib * MIB);
    return fd;
  } catch (error) {
    closeSync(fd);
    rmSync(path, { force: true });
    throw error;
  }
}

/**
 * The non-empty blocks of a fresh ext4 of `sizeMib`, in the format of docs/guest-link.md; about 60 KB for 10 GiB and
 * made in 15 ms, so nothing is cached. No journal: the volume never outlives its VM. UUID and hash seed are fixed:
 * the blocks are the same for every VM of a template, and secret to nobody.
 */
export async function volumeBlocks(options: {
  /** On a file system with sparse files. */
  readonly scratchDirectory: string;
  readonly launcherPath: string;
  readonly sizeMib: number;
}): Promise<Buffer> {
  const scratch = join(options.scratchDirectory, `mkfs-${process.pid}-${process.hrtime.bigint()}`);
  await using cleanup = new AsyncDisposableStack();
  cleanup.defer(() => rm(scratch, { force: true }));
  const file = await open(scratch, 'wx+', 0o600);
  cleanup.defer(() => file.close());
  await file.truncate(options.sizeMib * MIB);
  const mkfsArgs = [
    ...['-q', '-F', '-t', 'ext4', '-b', '4096', '-m', '0', '-I', '256', '-i', '16384'],
    ...['-O', '^has_journal,^resize_inode,^metadata_csum,uninit_bg,sparse_super2,extra_isize'],
    ...['-U', 'c7000000-0000-4000-8000-000000000001'],
    ...['-E', 'lazy_itable_init=1,nodiscard,num_backup_sb=0,hash_seed=c7000000-0000-4000-8000-000000000002'],
    scratch,
  ];
  await runProgram({
    file: 'mke2fs',
    args: mkfsArgs,
    maxOutputBytes: 65_536,
    failureCode: 'VMM_START_FAILED',
  });
  return runProgram({
    file: options.launcherPath,
    args: ['blocks', '0'],
    stdin: file.fd,
    maxOutputBytes: MAX_BLOCKS_BYTES,
    failureCode: 'VMM_START_FAILED',
  });
}
