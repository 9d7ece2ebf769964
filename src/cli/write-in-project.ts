/** Files that a command leaves in a project, which need not be its user's friend. */
import { constants } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { CtError, messageOf } from '../core/errors.ts';

/** A project may have a link there, to a file of whoever runs this. */
const NOT_THROUGH_LINKS = constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_NOFOLLOW;

/** `shown`: what messages call it. Throws USAGE if it cannot be written, or is a link. */
export async function writeInProject(
  path: string,
  content: string | Uint8Array,
  shown: string = path,
): Promise<void> {
  try {
    await writeFile(path, content, { flag: NOT_THROUGH_LINKS });
  } catch (error) {
    throw new CtError('USAGE', `${shown} cannot be written: ${messageOf(error)}`, { cause: error });
  }
}
