/** The projects in examples/, as their readers run them. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync } from 'node:fs';
import { join } from 'node:path';
import { installRoot } from '../../src/core/install.ts';
import { stopHost } from './host.ts';
import { testHome, testImage } from './images.ts';
import { runCt } from './run-ct.ts';
import { scratchDirectory } from './scratch.ts';

/** Runs the job `test` of an example in a copy of it, in a VM with the network that it asks for. */
export async function exampleTest(name: string, image: string): Promise<string> {
  await testImage(image);
  using scratch = scratchDirectory();
  const project = join(scratch.path, name);
  cpSync(join(installRoot, 'examples', name), project, {
    recursive: true,
    filter: (path) => !/\/(?:node_modules|venv|wheels|__pycache__)$/.test(path),
  });
  try {
    const { status, stdout, stderr } = await runCt(['run', 'test'], {
      cwd: project,
      env: { CT_HOME: testHome },
    });
    assert.equal(status, 0, `${stdout}\n${stderr}`);
    return stdout + stderr;
  } finally {
    await stopHost(testHome);
  }
}

/** Whether a program of this machine does its work; it may need a network of its own. */
export function works(file: string, ...args: readonly string[]): boolean {
  return spawnSync(file, args, { cwd: '/', encoding: 'utf8', timeout: 60_000 }).status === 0;
}
