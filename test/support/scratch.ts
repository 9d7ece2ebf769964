/** A directory that goes with the test. */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface Scratch extends Disposable {
  readonly path: string;
}

export function scratchDirectory(prefix = 'ct-test-'): Scratch {
  const path = mkdtempSync(join(tmpdir(), prefix));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** Makes one new directory of 0700 below `scratch` for each call, and returns its path. */
export function numberedDirectories(scratch: Scratch): () => string {
  let count = 0;
  return () => {
    const path = join(scratch.path, String(++count));
    mkdirSync(path, { mode: 0o700 });
    return path;
  };
}
