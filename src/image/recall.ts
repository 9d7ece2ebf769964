/**
 * Remembers which image a name stood for, so that a run need not read definitions and hash programs to find that nothing
 * has changed: below CT_HOME, `recall/<name>.json` lists every file the answer depends on with its size and times.
 * Imports nothing heavy; every `ct run` passes here.
 */
import { mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildId } from '../core/install.ts';
import type { BuiltImage, ImageInputs } from './build.ts';

interface Recall {
  /** What builds images may have changed too. */
  readonly build: string;
  readonly digest: string;
  readonly files: readonly FileState[];
  /** The parts of the image itself: gone or replaced, it has to be looked at closely. */
  readonly blobs: readonly FileState[];
}

type FileState = readonly [path: string, sizeBytes: number, mtimeMs: number, ctimeMs: number];

/** Digest of the image that `inputs` stand for, if nothing has changed since it was found; touches and throws nothing. */
export function recallImage(inputs: ImageInputs): string | undefined {
  try {
    const { build, digest, files, blobs } = JSON.parse(readFileSync(recallPath(inputs), 'utf8')) as Recall;
    if (build !== buildId() || !sameFiles(files, dependencies(inputs))) return undefined;
    return sameFiles(blobs, blobs.map(([path]) => path).map(fileState)) ? digest : undefined;
  } catch {
    return undefined;
  }
}

/** Call it with what a thorough look has found. A failure costs the next run some time and nothing else. */
export function rememberImage(inputs: ImageInputs, { digest, manifest }: BuiltImage): void {
  try {
    const refs = [digest, manifest.rootfs.digest, manifest.kernel.digest, manifest.initramfs.digest];
    const blobs = refs.map((ref) => fileState(join(inputs.ctHome, 'blobs', ref.replace(':', '/'))));
    const recall: Recall = { build: buildId(), digest, files: dependencies(inputs), blobs };
    const path = recallPath(inputs);
    mkdirSync(join(inputs.ctHome, 'recall'), { recursive: true, mode: 0o700 });
    writeFileSync(`${path}.${process.pid}`, JSON.stringify(recall), { mode: 0o600 });
    renameSync(`${path}.${process.pid}`, path);
  } catch {
    // A full or read-only file system: whoever needs to write there will say so.
  }
}

function recallPath({ ctHome, name }: ImageInputs): string {
  if (!/^[A-Za-z0-9][\w.-]*$/.test(name)) throw new Error('no name of an image');
  return join(ctHome, 'recall', `${name}.json`);
}

/** All definitions count: one may extend another, and a new one may come before it. */
function dependencies(inputs: ImageInputs): FileState[] {
  const definitions = inputs.definitionDirs.flatMap((directory) =>
    namesIn(directory).map((name) => join(directory, name)),
  );
  return [...definitions, inputs.guestAgentPath, inputs.probePath].map(fileState);
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory).sort();
  } catch {
    return []; // a project without images of its own
  }
}

function fileState(path: string): FileState {
  const { size, mtimeMs, ctimeMs } = statSync(path);
  return [path, size, mtimeMs, ctimeMs];
}

function sameFiles(known: readonly FileState[], now: readonly FileState[]): boolean {
  return known.length === now.length && known.every((state, at) => String(state) === String(now[at]));
}
