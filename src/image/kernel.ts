/** The kernel: Debian's own, for virtual machines, taken out of its package without installing it. */
import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { CtError } from '../core/errors.ts';
import { runProgram } from '../core/run-program.ts';
import { modulesSegment } from './initramfs.ts';

export interface UnpackedKernel {
  /** As `uname -r` says it. */
  readonly version: string;
  readonly imagePath: string;
  /** Part of an initramfs, see {@link modulesSegment}. */
  readonly modules: Buffer;
}

/** Unpacks a kernel package into `directory`. Throws IMAGE_BUILD_FAILED if it is not laid out as Debian's are. */
export async function unpackKernel(
  packagePath: string,
  directory: string,
  signal?: AbortSignal,
): Promise<UnpackedKernel> {
  mkdirSync(directory);
  await runProgram({
    file: 'dpkg-deb',
    args: ['--extract', packagePath, directory],
    maxOutputBytes: 65_536,
    failureCode: 'IMAGE_BUILD_FAILED',
    ...(signal ? { signal } : {}),
  });
  const versions = readdirSync(join(directory, 'lib/modules'));
  const [version] = versions;
  if (version === undefined || versions.length > 1) {
    throw new CtError(
      'IMAGE_BUILD_FAILED',
      `the kernel package has ${versions.length} sets of modules, not one`,
    );
  }
  return {
    version,
    imagePath: join(directory, 'boot', `vmlinuz-${version}`),
    modules: modulesSegment(directory, version),
  };
}
