/** dm-verity: the hash tree behind a file system, and the root hash that stands for all of it. */
import { statSync } from 'node:fs';
import { CtError } from '../core/errors.ts';
import { runProgram } from '../core/run-program.ts';
import type { ImageManifest } from './manifest.ts';
import { PROGRAM_PATH } from './supervised.ts';

export type Verity = ImageManifest['rootfs']['verity'];

const BLOCK_BYTES = 4096;

/**
 * Appends the hash tree to the file system in `path`. No superblock: the numbers that it would hold come from the
 * manifest, by way of the kernel command line. `salt` is hex; the same file system and salt give the same bytes.
 * Throws IMAGE_BUILD_FAILED.
 */
export async function appendHashTree(path: string, salt: string, signal?: AbortSignal): Promise<Verity> {
  const sizeBytes = statSync(path).size;
  if (sizeBytes === 0 || sizeBytes % BLOCK_BYTES !== 0) {
    throw new CtError('IMAGE_BUILD_FAILED', `the file system is not made of ${BLOCK_BYTES}-byte blocks`);
  }
  const dataBlocks = sizeBytes / BLOCK_BYTES;
  const output = await runProgram({
    file: 'veritysetup',
    args: [
      'format',
      '--no-superblock',
      '--hash=sha256',
      '--format=1',
      `--data-block-size=${BLOCK_BYTES}`,
      `--hash-block-size=${BLOCK_BYTES}`,
      `--data-blocks=${dataBlocks}`,
      `--hash-offset=${sizeBytes}`,
      `--salt=${salt}`,
      path,
      path,
    ],
    env: { PATH: PROGRAM_PATH },
    maxOutputBytes: 65_536,
    failureCode: 'IMAGE_BUILD_FAILED',
    ...(signal ? { signal } : {}),
  });
  const rootHash = /^Root hash:\s+([0-9a-f]{64})$/m.exec(output.toString('utf8'))?.[1];
  if (rootHash === undefined) throw new CtError('IMAGE_BUILD_FAILED', 'veritysetup printed no root hash');
  return {
    algorithm: 'sha256',
    blockBytes: BLOCK_BYTES,
    dataBlocks,
    hashStartBlock: dataBlocks,
    rootHash,
    salt,
  };
}
