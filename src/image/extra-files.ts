/** Files that a definition adds to its packages: copied for a build if they are the ones that it names. */
import { createHash } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CtError } from '../core/errors.ts';
import type { ImageFile } from './definition.ts';

/** Read into memory. What is larger is a package's. */
const MAX_BYTES = 64 * 1024 * 1024;

/**
 * Copies them into `directory`, numbered, and returns the plan for hooks/customize.sh: `number mode path` per line. Throws
 * IMAGE_DEFINITION_INVALID if one is not there or is another.
 */
export function copyFiles(files: readonly ImageFile[], directory: string): string {
  return files
    .map((file, index) => {
      writeFileSync(join(directory, String(index)), readExactly(file), { mode: 0o644 });
      return `${index} ${file.executable ? '0755' : '0644'} ${file.path.slice(1)}\n`;
    })
    .join('');
}

function readExactly({ source, sha256, path }: ImageFile): Buffer {
  let fd: number;
  try {
    // A pipe would wait for somebody to write.
    fd = openSync(source, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW);
  } catch (cause) {
    throw new CtError('IMAGE_DEFINITION_INVALID', `${source}, to be ${path} of the image, cannot be read`, {
      cause,
    });
  }
  try {
    const stats = fstatSync(fd);
    if (!stats.isFile() || stats.size > MAX_BYTES) {
      throw new CtError('IMAGE_DEFINITION_INVALID', `${source} is no file of at most ${MAX_BYTES} bytes`);
    }
    const contents = readFileSync(fd);
    const found = createHash('sha256').update(contents).digest('hex');
    if (found === sha256) return contents;
    throw new CtError('IMAGE_DEFINITION_INVALID', `${source} has the SHA-256 ${found} instead of ${sha256}`, {
      hint: 'if the change is meant, write the new one into the definition',
    });
  } finally {
    closeSync(fd);
  }
}
