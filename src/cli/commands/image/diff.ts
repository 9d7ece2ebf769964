/** `ct image diff`. */

import { CtError, messageOf } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { runProgram } from '../../../core/run-program.ts';
import { type DiffSide, diffMarkdown, diffSides, lockSide } from '../../../image/diff.ts';
import { parseLock, readLock } from '../../../image/lock-file.ts';
import { ImageStore } from '../../../image/store.ts';
import type { ParsedOptions } from '../../command.ts';
import { storedDigest } from '../../images.ts';
import type { Output } from '../../output.ts';
import { formatBytes } from '../../render/format.ts';
import { imageSizeBytes } from './ls.ts';

/** As large as a lock may be. */
const MAX_LOCK_BYTES = 8 * 1024 * 1024;

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const [from, to] = await Promise.all(parsed.positionals.map(readSide));
  if (from === undefined || to === undefined)
    throw new CtError('USAGE', '`ct image diff` compares two images');
  const diff = diffSides(from, to);
  output.write(
    'stdout',
    parsed.has('json')
      ? `${JSON.stringify({ version: 1, ...diff }, undefined, 2)}\n`
      : diffMarkdown(diff, formatBytes),
  );
  return 0;
}

/** An image by name or digest, a lock by its path, `git:REV:PATH`, or `/dev/null` for none. */
async function readSide(text: string): Promise<DiffSide> {
  if (text === '/dev/null') return { label: 'nothing', packages: [], npm: [], kernel: undefined };
  if (text.startsWith('git:'))
    return lockSide(parseLock(await readFromGit(text.slice('git:'.length)), text), text.slice('git:'.length));
  if (text.endsWith('.json')) {
    const lock = readLock(text);
    if (lock !== undefined) return lockSide(lock, text);
    throw new CtError('IMAGE_NOT_FOUND', `there is no lock ${text}`);
  }
  const store = new ImageStore(ctHomePath());
  const manifest = await store.manifest(await storedDigest(store, text));
  const inventory = manifest.inventory && (await store.readInventory(manifest.inventory));
  return {
    label: text,
    packages: inventory?.packages ?? manifest.packages,
    npm: manifest.npm ?? [],
    kernel: `Linux ${manifest.kernel.version}`,
    initramfs: manifest.initramfs.digest,
    sizeBytes: imageSizeBytes(manifest),
    ...(inventory ? { files: inventory.files } : {}),
  };
}

async function readFromGit(revisionAndPath: string): Promise<string> {
  if (!/^[A-Za-z0-9_][^:\s]*:[^\s:]+$/.test(revisionAndPath)) {
    throw new CtError('USAGE', `\`git:${revisionAndPath}\` is not of the form git:REVISION:PATH`, {
      hint: 'such as git:main:.ct/images/ci.lock.json; the path counts from the root of the repository',
    });
  }
  try {
    const bytes = await runProgram({
      file: 'git',
      args: ['show', '--no-textconv', '--end-of-options', revisionAndPath],
      maxOutputBytes: MAX_LOCK_BYTES,
      failureCode: 'IMAGE_NOT_FOUND',
    });
    return bytes.toString('utf8');
  } catch (error) {
    throw new CtError('IMAGE_NOT_FOUND', `there is no lock git:${revisionAndPath}: ${messageOf(error)}`, {
      cause: error,
    });
  }
}
