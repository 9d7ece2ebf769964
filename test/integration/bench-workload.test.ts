/** The workloads of `ct bench workload`, and that its containers leave nothing, whoever ends it. */
import assert from 'node:assert/strict';
import { execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import type { CtError } from '../../src/core/errors.ts';
import { startRegistry } from '../../src/host/bench-registry.ts';
import { sweepWorkloads } from '../../src/host/bench-workload.ts';
import {
  NPM_PROJECT,
  parseWorkloadMs,
  WORKLOADS,
  type Workload,
  writeWorkload,
} from '../../src/host/workloads.ts';
import { borrowImages } from '../support/borrowed-home.ts';
import { stopHost } from '../support/host.ts';
import { testHome } from '../support/images.ts';
import { allProcesses } from '../support/processes.ts';
import { runCt } from '../support/run-ct.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { openContainers, sleepingContainer } from '../support/sleeping-container.ts';

const FIXTURE = join(import.meta.dirname, '../fixtures/bench/hold-container.ts');
/** The kernel takes a mount namespace apart some milliseconds after its last process. */
const SETTLE_MS = 5000;

/** Path → content of all files below a directory. */
function contents(directory: string): Record<string, string> {
  const paths = readdirSync(directory, { recursive: true, encoding: 'utf8' }).sort();
  const files = paths.filter((path) => statSync(join(directory, path)).isFile());
  return Object.fromEntries(files.map((path) => [path, readFileSync(join(directory, path), 'latin1')]));
}

async function write(workload: Workload, cleanup: DisposableStack): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), 'ct-workload-'));
  cleanup.defer(() => rmSync(directory, { recursive: true, force: true }));
  await writeWorkload(workload, directory, new AbortController().signal);
  return directory;
}

test('the tree of a workload is the same each time', async () => {
  using cleanup = new DisposableStack();
  for (const workload of WORKLOADS) {
    const [one, other] = [await write(workload, cleanup), await write(workload, cleanup)];
    assert.ok('workload.sh' in contents(one));
    assert.deepEqual(contents(one), contents(other));
  }
});

test('every workload runs to its end and prints its time', async () => {
  using cleanup = new DisposableStack();
  for (const workload of WORKLOADS.filter((name) => name !== 'npm')) {
    const cwd = await write(workload, cleanup);
    const output = execFileSync('bash', ['workload.sh'], { cwd, encoding: 'utf8' });
    const ms = parseWorkloadMs(output);
    assert.ok(ms !== undefined && ms > 0, `${workload}: ${output}`);
  }
});

test('npm ci && npm test runs against a registry that has what its lock file says', async (t) => {
  using cleanup = new DisposableStack();
  const { path } = cleanup.use(scratchDirectory());
  const cwd = await write('npm', cleanup);
  try {
    const { port } = cleanup.use(
      await startRegistry({
        lockFile: join(NPM_PROJECT, 'package-lock.json'),
        cacheDirectory: join(testHome, 'cache/npm'),
        workDirectory: path,
        signal: new AbortController().signal,
      }),
    );
    const env = { PATH: process.env['PATH'], HOME: path, REGISTRY: `http://127.0.0.1:${port}` };
    const { stdout } = await promisify(execFile)('bash', ['workload.sh'], { cwd, env });
    assert.ok((parseWorkloadMs(stdout) ?? 0) > 0, stdout);
  } catch (error) {
    if ((error as CtError).code !== 'IMAGE_BUILD_FAILED') throw error;
    t.skip(`the packages of the example cannot be fetched: ${(error as CtError).message}`);
  }
});

test('a workload whose program is missing says which', async () => {
  using cleanup = new DisposableStack();
  const cwd = await write('clone', cleanup);
  const run = (): string =>
    execFileSync('/bin/bash', ['workload.sh'], {
      cwd,
      encoding: 'utf8',
      stdio: 'pipe',
      env: { PATH: '/nonexistent' },
    });
  assert.throws(run, /the image has no git/);
});

function noRunc(): string | false {
  try {
    execFileSync('runc', ['--version']);
    return false;
  } catch {
    return 'runc is not installed: nothing to compare with';
  }
}

/** A CT_HOME with images, whose daemon ends with the test. */
async function home(cleanup: AsyncDisposableStack): Promise<string> {
  const { path } = cleanup.use(scratchDirectory());
  const ctHome = join(path, 'home');
  mkdirSync(ctHome, { mode: 0o700 });
  await borrowImages(ctHome);
  cleanup.defer(() => stopHost(ctHome));
  return ctHome;
}

/** Processes, mounts in any mount namespace, loop devices and files that the benchmark's containers had below `ctHome`. */
function leftovers(ctHome: string): string[] {
  const blobs = realpathSync(join(ctHome, 'blobs'));
  const found = readdirSync(ctHome).filter((name) => name.startsWith('bench-workload-'));
  for (const { pid } of allProcesses()) {
    try {
      const commandLine = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
      if (commandLine.includes('runc') && commandLine.includes(`${ctHome}/bench-`)) found.push(commandLine);
      const mounts = readFileSync(`/proc/${pid}/mountinfo`, 'utf8').split('\n');
      found.push(...mounts.filter((line) => line.includes('/bench-workload-') && line.includes(ctHome)));
    } catch {
      // it ended while we looked
    }
  }
  for (const name of readdirSync('/sys/block').filter((device) => device.startsWith('loop'))) {
    const backing = `/sys/block/${name}/loop/backing_file`;
    if (existsSync(backing) && readFileSync(backing, 'utf8').startsWith(blobs)) found.push(name);
  }
  // Of any depth: runc makes one below the cgroup of whoever starts it.
  if (existsSync('/sys/fs/cgroup')) {
    const directories = readdirSync('/sys/fs/cgroup', { recursive: true, encoding: 'utf8' });
    found.push(...directories.filter((path) => basename(path).startsWith(`ct-bench-${process.pid}-`)));
  }
  return found;
}

async function assertNothingLeft(ctHome: string): Promise<void> {
  const deadline = performance.now() + SETTLE_MS;
  while (leftovers(ctHome).length > 0 && performance.now() < deadline) await sleep(20);
  assert.deepEqual(leftovers(ctHome), []);
}

test('the smallest workload runs in a VM and in a container, and nothing is left', {
  skip: noRunc(),
}, async () => {
  await using cleanup = new AsyncDisposableStack();
  const ctHome = await home(cleanup);
  const plot = join(ctHome, '../plot.svg');
  const args = ['bench', 'workload', '-n', '1', '--vs', 'runc', '--json', '--plot', plot, 'clone'];
  const { status, stdout, stderr } = await runCt(args, { env: { CT_HOME: ctHome } });
  assert.equal(status, 0, stderr);
  const figures = JSON.parse(stdout);
  assert.equal(figures.runs, 1);
  assert.match(figures.accelerator, /^(kvm|tcg)$/);
  assert.deepEqual(Object.keys(figures.workloads), ['clone']);
  const { vm, runc, insideRatio, wholeRatio } = figures.workloads.clone;
  for (const side of [vm, runc]) {
    assert.ok(side.insideMs.p50 > 0 && side.wholeMs.p50 > side.insideMs.p50, JSON.stringify(side));
  }
  assert.ok(insideRatio > 0 && wholeRatio > 0);
  assert.match(readFileSync(plot, 'utf8'), /^<svg [\s\S]*microVM by container[\s\S]*<\/svg>\n$/);
  await assertNothingLeft(ctHome);
});

test('without runc there is nothing to compare with, and the error says how to get it', async () => {
  using scratch = scratchDirectory();
  await borrowImages(scratch.path);
  const bin = join(scratch.path, 'bin');
  mkdirSync(bin);
  // What ./ct itself needs.
  const directories = (process.env['PATH'] ?? '').split(':').filter((path) => existsSync(path));
  for (const directory of directories.toReversed()) {
    for (const name of readdirSync(directory)) {
      rmSync(join(bin, name), { force: true });
      if (name !== 'runc') symlinkSync(join(directory, name), join(bin, name));
    }
  }
  const { status, stderr } = await runCt(['bench', 'workload', '--vs', 'runc'], {
    env: { CT_HOME: scratch.path, PATH: bin },
  });
  assert.equal(status, 2);
  assert.match(stderr, /^error\[REQUIREMENT_MISSING\]: there is no runc to compare with$/m);
  assert.match(stderr, /^ {2}hint: install it \(Debian: apt-get install runc\), or leave out --vs$/m);
  await assertNothingLeft(scratch.path);
});

test('a plot that cannot be written, or a workload that does not exist, is refused before anything runs', async () => {
  using scratch = scratchDirectory();
  const refused = async (...args: string[]): Promise<string> => {
    const { status, stderr } = await runCt(['bench', 'workload', ...args], {
      env: { CT_HOME: scratch.path },
    });
    assert.equal(status, 2);
    assert.deepEqual(readdirSync(scratch.path), []);
    return stderr;
  };
  assert.match(await refused('--plot', 'plot.png'), /--plot cannot be `plot\.png`[\s\S]*ends with \.svg/);
  assert.match(await refused('--plot', '/nonexistent/plot.svg'), /\/nonexistent cannot be written/);
  assert.match(await refused('clon'), /there is no workload `clon`[\s\S]*did you mean `clone`/);
});

test('a benchmark that is cancelled ends its container, and nothing is left', {
  skip: noRunc(),
}, async () => {
  using scratch = scratchDirectory();
  await borrowImages(scratch.path);
  const cancellation = new AbortController();
  await using cleanup = new AsyncDisposableStack();
  const { sample } = await sleepingContainer(scratch.path, cancellation.signal, cleanup);
  assert.notDeepEqual(leftovers(scratch.path), [], 'the search finds a container while it runs');
  const reason = new Error('enough');
  cancellation.abort(reason);
  await assert.rejects(sample, reason);
  await cleanup.disposeAsync();
  await assertNothingLeft(scratch.path);
});

test('a benchmark that is cancelled while its container starts leaves nothing either', {
  skip: noRunc(),
}, async () => {
  using scratch = scratchDirectory();
  await borrowImages(scratch.path);
  for (const afterMs of [0, 5, 10, 15, 20, 30, 40, 60]) {
    const cancellation = new AbortController();
    await using cleanup = new AsyncDisposableStack();
    const { containers, tree } = await openContainers(scratch.path, cancellation.signal, cleanup);
    const sample = containers.sample(tree);
    const reason = new Error('enough');
    setTimeout(() => cancellation.abort(reason), afterMs);
    await assert.rejects(sample, (error) => error === reason || (error as CtError).code === 'CANCELLED');
    await cleanup.disposeAsync();
    await assertNothingLeft(scratch.path);
  }
});

test('what a killed benchmark leaves, the next one ends and removes', { skip: noRunc() }, async () => {
  using scratch = scratchDirectory();
  await borrowImages(scratch.path);
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', FIXTURE, scratch.path], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { PATH: process.env['PATH'] },
  });
  const closed = once(child, 'close');
  await once(child.stdout, 'data');
  await sweepWorkloads(scratch.path);
  assert.notDeepEqual(leftovers(scratch.path), [], 'one that still runs is let alone');
  child.kill('SIGKILL');
  await closed;
  await sweepWorkloads(scratch.path);
  await assertNothingLeft(scratch.path);
});
