/** The whole way as a user without any privilege: daemon, jail in a user namespace, VM, artifacts. */
import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import { chmodSync, chownSync, cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { promisify } from 'node:util';
import { installRoot } from '../../src/core/install.ts';
import { testHome, testImage } from '../support/images.ts';
import { allProcesses } from '../support/processes.ts';
import { ctPath, runCt } from '../support/run-ct.ts';
import { scratchDirectory } from '../support/scratch.ts';

const UID = 54_321;
const AS_USER = ['--reuid', String(UID), '--regid', String(UID), '--clear-groups', '--no-new-privs'];

function obstacle(): string | false {
  if (process.getuid?.() !== 0)
    return 'only root can become another user; run as one, every other test is this test';
  try {
    execFileSync('setpriv', [...AS_USER, 'test', '-r', join(installRoot, 'package.json')]);
    return false;
  } catch {
    return `other users cannot read ${installRoot}`;
  }
}

before(async () => {
  await testImage('debian-12');
  await runCt(['--version']); // bundles, if a source has changed: the other user could not
});

test('an unprivileged user runs a job in a VM, and gets its artifacts', { skip: obstacle() }, async () => {
  using scratch = scratchDirectory();
  chmodSync(scratch.path, 0o755);
  const home = join(scratch.path, 'home');
  const ctHome = join(home, 'ct');
  const tree = join(home, 'tree');
  for (const path of [home, ctHome, tree]) mkdirSync(path, { mode: 0o700 });
  for (const part of ['blobs', 'images', 'recall', 'parts']) {
    cpSync(join(testHome, part), join(ctHome, part), { recursive: true });
  }
  writeFileSync(
    join(tree, 'ct.yml'),
    'version: 1\njobs:\n  build:\n    resources: {memory: 512M}\n    steps: [{run: id -u > who}]\n    artifacts: {paths: [who]}\n',
  );
  for (const entry of readdirSync(home, { recursive: true, encoding: 'utf8' }))
    chownSync(join(home, entry), UID, UID);
  chownSync(home, UID, UID);

  const env = {
    PATH: process.env['PATH'] ?? '',
    HOME: home,
    CT_HOME: ctHome,
    CT_HOST_IDLE_SECONDS: '1',
    CI: 'true',
  };
  const { stdout, stderr } = await promisify(execFile)(
    'setpriv',
    [...AS_USER, ctPath, 'run', '--json', 'build'],
    {
      cwd: tree,
      env,
    },
  );
  assert.equal(JSON.parse(stdout).jobs[0].outcome, 'success', stderr);
  assert.equal(readFileSync(join(tree, '.ct/out/build/who'), 'utf8'), '1000\n');
  // Idle for a second, the daemon leaves, and so does everything else of that user.
  for (let i = 0; i < 100 && processesOf(UID).length > 0; i++) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.deepEqual(processesOf(UID), []);
});

function processesOf(uid: number): string[] {
  return allProcesses()
    .filter(({ pid }) => {
      try {
        return new RegExp(`^Uid:\\s+${uid}\\s`, 'm').test(readFileSync(`/proc/${pid}/status`, 'utf8'));
      } catch {
        return false; // it has ended
      }
    })
    .map(({ pid, name }) => `${pid} ${name}`);
}
