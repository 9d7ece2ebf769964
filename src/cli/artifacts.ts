/** Where the artifacts of a run land. */
import { lstat, mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import { unpackTree } from '../job/tree.ts';
import type { ArtifactsRecord } from './render/record.ts';

export interface ArtifactsTarget {
  /** Root of the project. */
  readonly root: string;
  /** Given by the user: the artifacts are added to what is there. Otherwise `.ct/out`, where each run replaces them. */
  readonly chosen: string | undefined;
  /** Name of the job as a path component. */
  readonly jobDirectory: string;
}

/** Takes away what an earlier run left in `.ct/out`, so that nobody mistakes it for this run's. */
export async function clearArtifacts(target: ArtifactsTarget): Promise<void> {
  if (target.chosen !== undefined) return;
  await requireRealDirectories(target.root);
  await rm(join(target.root, '.ct/out', target.jobDirectory), { recursive: true, force: true });
}

/** Receives a tree stream, which is hostile. Throws ARTIFACT_REFUSED, ARTIFACT_WRITE_FAILED, STORE_FULL. */
export async function receiveArtifacts(
  target: ArtifactsTarget,
  stream: AsyncIterable<Buffer>,
  signal: AbortSignal,
): Promise<ArtifactsRecord & { readonly warnings: readonly string[] }> {
  const { root, chosen, jobDirectory } = target;
  const directory = join(chosen ?? join(root, '.ct/out'), jobDirectory);
  const partial = chosen === undefined ? `${directory}.partial-${process.pid}` : directory;
  try {
    if (chosen === undefined) await prepareOut(root);
    await mkdir(partial, { recursive: true });
    const { files, bytes, warnings } = await unpackTree(stream, partial, { signal });
    if (partial !== directory) {
      await rm(directory, { recursive: true, force: true });
      await rename(partial, directory);
    }
    return { directory, files, bytes, warnings };
  } catch (error) {
    if (partial !== directory) await rm(partial, { recursive: true, force: true });
    if (error instanceof CtError || (error as NodeJS.ErrnoException).code === 'ENOSPC') throw error;
    throw new CtError(
      'ARTIFACT_WRITE_FAILED',
      `artifacts could not be written to ${directory}: ${messageOf(error)}`,
      {
        cause: error,
      },
    );
  }
}

async function prepareOut(root: string): Promise<void> {
  await requireRealDirectories(root);
  const out = join(root, '.ct/out');
  await mkdir(out, { recursive: true });
  // Ignores itself too: a project need not know of it.
  await writeFile(join(out, '.gitignore'), '*\n', { flag: 'wx' }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error;
  });
}

/** A checkout may come with `.ct/out` as a link to somewhere else; what is there is not ours to replace. */
async function requireRealDirectories(root: string): Promise<void> {
  for (const path of [join(root, '.ct'), join(root, '.ct/out')]) {
    const stats = await lstat(path).catch(() => undefined);
    if (!stats || stats.isDirectory()) continue;
    throw new CtError('ARTIFACT_WRITE_FAILED', `${path} is not a directory`, {
      hint: 'remove it, or choose a place with --artifacts DIR',
    });
  }
}
