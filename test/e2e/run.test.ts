/** `ct run` with real VMs: what users and scripts see of jobs that succeed, fail, hang, and are killed. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { findHost } from '../../src/host/client.ts';
import { stopHost } from '../support/host.ts';
import { testHome, testImage } from '../support/images.ts';
import { allProcesses, childProcesses, descendantsOf } from '../support/processes.ts';
import { type CtOutcome, ctPath, runCt } from '../support/run-ct.ts';

let directory = '';
const env = { CT_HOME: testHome };

function project(name: string, files: Readonly<Record<string, string>>): string {
  const path = join(directory, name);
  for (const [file, content] of Object.entries(files)) {
    mkdirSync(join(path, file, '..'), { recursive: true });
    writeFileSync(join(path, file), content);
  }
  return path;
}

const jobs = (body: string): Readonly<Record<string, string>> => ({ 'ct.yml': `version: 1\njobs:\n${body}` });

async function hostPid(): Promise<number> {
  const host = await findHost(testHome);
  assert.ok(host, 'no host daemon runs');
  return (await host.info()).pid;
}

/** VMMs that run or ran a job and are there; not those that wait for their first one. */
async function vmms(): Promise<number[]> {
  const host = await findHost(testHome);
  assert.ok(host, 'no host daemon runs');
  const runs = await host.runs('all');
  const ofRuns = await Promise.all(runs.map(async ({ run }) => (await host.run(run)).vm?.pid));
  return childProcesses((await host.info()).pid)
    .filter(({ name, pid }) => name.startsWith('qemu') && ofRuns.includes(pid))
    .map(({ pid }) => pid);
}

before(async () => {
  await testImage('debian-12');
  directory = mkdtempSync(join(tmpdir(), 'ct-run-'));
  // The first run of this build starts the daemon and makes the template.
  const first = await runCt(['run', '--', 'true'], { cwd: directory, env });
  assert.equal(first.status, 0, first.stderr);
});
after(async () => {
  await stopHost(testHome);
  rmSync(directory, { recursive: true, force: true });
});

test('the ad hoc form passes stdin, stdout, stderr and the exit code through, and says nothing itself', async () => {
  const outcome = await runCt(['run', '--', 'sh', '-c', 'cat; echo err >&2; exit 42'], {
    cwd: directory,
    env,
    input: 'in\u001b[31mput\n',
  });
  assert.deepEqual([outcome.status, outcome.stdout], [42, 'in\u001b[31mput\n']);
  assert.match(outcome.stderr, /^err\n/);
});

test('second and later runs are served by clones of the same template', async () => {
  for (let i = 0; i < 2; i++) {
    const { stdout, status } = await runCt(['run', '--progress=rawjson', '--', 'true'], {
      cwd: directory,
      env,
    });
    assert.equal(status, 0, stdout);
    const events = stdout
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line));
    const types = events.map((line) => line.event?.type ?? line.type);
    assert.ok(!types.includes('preparing'), 'a template was made again');
    const claimed = events.map((line) => line.event ?? line).find(({ type }) => type === 'claimed');
    assert.match(claimed.source, /^(warm-)?clone$/);
  }
});

for (const [command, expected] of [
  [['false'], 1],
  [['sh', '-c', 'kill -SEGV $$'], 139],
  [['no-such-program'], 127],
  [['/etc/passwd'], 126],
] as const) {
  test(`the ad hoc form exits ${expected} for \`${command.join(' ')}\``, async () => {
    const { status, stderr } = await runCt(['run', '--', ...command], { cwd: directory, env });
    assert.equal(status, expected, stderr);
  });
}

test('a job sees its tree and variables; artifacts come back; ignored files stay here', async () => {
  const root = project('artifacts', {
    ...jobs(`  build:
    env: {GREETING: hello}
    steps:
      - name: build
        run: |
          mkdir -p out/bin
          echo "$GREETING $WHO" > out/greeting
          cp input out/copy
          printf '#!/bin/sh\\n' > out/bin/tool; chmod 755 out/bin/tool
          ln -s ../greeting out/bin/link
          test ! -e secret.env
    artifacts: {paths: [out/**]}
`),
    input: 'data\n',
    'secret.env': 'x',
    '.gitignore': 'secret.env\n',
  });
  const outcome = await runCt(['run', 'build', '-e', 'WHO=world'], { cwd: root, env });
  assert.equal(outcome.status, 0, outcome.stderr + outcome.stdout);
  const out = join(root, '.ct/out/build/out');
  assert.equal(readFileSync(join(out, 'greeting'), 'utf8'), 'hello world\n');
  assert.equal(readFileSync(join(out, 'copy'), 'utf8'), 'data\n');
  assert.equal(readFileSync(join(out, 'bin/link'), 'utf8'), 'hello world\n');
  assert.equal(statSync(join(out, 'bin/tool')).mode & 0o777, 0o755);
});

test('a failing step ends the job with 1; failure() and always() steps still run, artifacts are still collected', async () => {
  const root = project('failure', {
    ...jobs(`  build:
    steps:
      - {name: one, run: 'echo one > log; exit 7'}
      - {name: two, run: 'echo two >> log'}
      - {name: on failure, run: 'echo three >> log', if: failure()}
      - {name: always, run: 'echo four >> log', if: always()}
    artifacts: {paths: [log]}
`),
  });
  const { status, stdout } = await runCt(['run', 'build', '--json'], { cwd: root, env });
  assert.equal(status, 1);
  assert.equal(readFileSync(join(root, '.ct/out/build/log'), 'utf8'), 'one\nthree\nfour\n');
  assert.equal(JSON.parse(stdout).jobs[0].exitCode, 7);
});

test('independent jobs run side by side, needs waits, dependents of a failed job are skipped', async () => {
  const root = project('graph', {
    ...jobs(`  a: {resources: {memory: 512M}, steps: [{run: 'sleep 2'}]}
  b: {resources: {memory: 512M}, steps: [{run: 'sleep 2; exit 1'}]}
  c: {needs: a, resources: {memory: 512M}, steps: [{run: 'true'}]}
  d: {needs: b, resources: {memory: 512M}, steps: [{run: 'true'}]}
`),
  });
  const { status, stdout } = await runCt(['run', '--json', 'a', 'b', 'c', 'd'], { cwd: root, env });
  assert.equal(status, 1, stdout);
  const ends = Object.fromEntries(
    (JSON.parse(stdout).jobs as { name: string; outcome: string }[]).map(({ name, outcome }) => [
      name,
      outcome,
    ]),
  );
  assert.deepEqual(ends, { a: 'success', b: 'failure', c: 'success', d: 'skipped' });
});

test('a step that needs the network fails with a hint that says why', async () => {
  const outcome = await runCt(['run', '--', 'curl', '-sS', 'https://example.invalid/'], {
    cwd: directory,
    env,
  });
  assert.equal(outcome.status, 6);
  assert.match(outcome.stderr, /network/);
});

test('a step that ignores SIGTERM and outlives its timeout is killed: 124, and what is to run always runs', async () => {
  const root = project('timeout', {
    ...jobs(`  build:
    steps:
      - {name: stubborn, run: "trap '' TERM INT HUP; while :; do sleep 1; done", timeout: 3s}
      - {name: never, run: 'echo never > log'}
      - {name: clean up, run: 'echo cleaned > log', if: always()}
    artifacts: {paths: [log]}
`),
  });
  const outcome = await runCt(['run', 'build'], { cwd: root, env });
  assert.equal(outcome.status, 124, outcome.stderr);
  assert.match(outcome.stderr, /STEP_TIMEOUT/);
  assert.equal(readFileSync(join(root, '.ct/out/build/log'), 'utf8'), 'cleaned\n');
  assert.deepEqual(await vmms(), []);
});

test('a gigabyte of output arrives whole, in bounded memory', { timeout: 240_000 }, async () => {
  const child = spawn(ctPath, ['run', '--', 'sh', '-c', 'head -c 1000000000 /dev/zero'], {
    cwd: directory,
    env: { PATH: process.env['PATH'], HOME: process.env['HOME'], ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let bytes = 0;
  let peakKib = 0;
  const sample = setInterval(() => {
    for (const { rssKib } of descendantsOf(child.pid ?? 0)) peakKib = Math.max(peakKib, rssKib);
  }, 200);
  child.stdout?.on('data', (chunk: Buffer) => {
    bytes += chunk.length;
  });
  const [status] = await once(child, 'close');
  clearInterval(sample);
  assert.deepEqual([status, bytes], [0, 1_000_000_000]);
  assert.ok(peakKib < 400 * 1024, `the client took ${peakKib} KiB`);
});

/** Starts a job that says `started` and then sleeps; resolves when it has said so. */
async function startSleeper(): Promise<{ child: ReturnType<typeof spawn>; end: Promise<CtOutcome> }> {
  const child = spawn(ctPath, ['run', '--', 'sh', '-c', 'echo started; sleep 300'], {
    cwd: directory,
    env: { PATH: process.env['PATH'], HOME: process.env['HOME'], CI: 'true', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  const { promise, resolve } = Promise.withResolvers<void>();
  child.stdout?.on('data', (chunk: Buffer) => {
    stdout += chunk.toString();
    if (stdout.includes('started')) resolve();
  });
  child.stderr?.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const end = once(child, 'close').then(([status, signal]) => ({ status, signal, stdout, stderr }));
  await Promise.race([promise, end.then(() => assert.fail(`the job ended early: ${stderr}`))]);
  return { child, end };
}

async function eventually(what: string, holds: () => Promise<boolean> | boolean): Promise<void> {
  for (let i = 0; i < 100; i++) {
    if (await holds()) return;
    await sleep(100);
  }
  assert.fail(`not within 10 s: ${what}`);
}

test('Ctrl-C cancels: 130, and the VM is gone', async () => {
  const { child, end } = await startSleeper();
  assert.equal((await vmms()).length, 1);
  child.kill('SIGINT');
  assert.equal((await end).status, 130);
  assert.deepEqual(await vmms(), []);
});

test('kill -9 of the client destroys its VM', async () => {
  const { child, end } = await startSleeper();
  child.kill('SIGKILL');
  await end;
  await eventually('the VM is gone', async () => (await vmms()).length === 0);
});

test('kill -9 of the VMM ends the job with 125 and says so', async () => {
  const { end } = await startSleeper();
  for (const pid of await vmms()) process.kill(pid, 'SIGKILL');
  const { status, stderr } = await end;
  assert.equal(status, 125);
  assert.match(stderr, /error\[VMM_DIED\].*SIGKILL/);
});

test('kill -9 of the link process ends the job with 125, and the VM is gone', async () => {
  const { end } = await startSleeper();
  const daemon = await hostPid();
  const busy = childProcesses(daemon).filter(({ name }) => !name.startsWith('qemu'));
  for (const { pid } of busy) process.kill(pid, 'SIGKILL');
  const { status, stderr } = await end;
  assert.equal(status, 125);
  assert.match(stderr, /LINK_DIED/);
  await eventually('the VM is gone', async () => (await vmms()).length === 0);
});

test('kill -9 of the daemon takes every process with it; the next run starts afresh', async () => {
  const { end } = await startSleeper();
  const daemon = await hostPid();
  const family = descendantsOf(daemon);
  assert.ok(family.length >= 2);
  process.kill(daemon, 'SIGKILL');
  const { status } = await end;
  assert.equal(status, 125);
  await eventually('VMM and link process are gone', () =>
    family.every(
      ({ pid, startTime }) => !allProcesses().some((p) => p.pid === pid && p.startTime === startTime),
    ),
  );
  const again = await runCt(['run', '--', 'echo', 'again'], { cwd: directory, env });
  assert.deepEqual([again.status, again.stdout], [0, 'again\n'], again.stderr);
  const runs = (await runCt(['ps', '-a', '--json'], { env })).stdout.split('\n').slice(0, 2);
  assert.deepEqual(
    runs
      .map((line) => JSON.parse(line))
      .map(({ job, state, outcome, error }) => [job, state, outcome, error]),
    [
      ['echo again', 'ended', 'success', null],
      ['sh -c echo started; sleep 300', 'ended', 'infrastructure', 'HOST_DIED'],
    ],
  );
  assert.deepEqual(readdirSync(join(testHome, 'scratch')), []);
  const ofTheNext = `link-${await hostPid()}-`; // a link process that waits for a job
  const links = readdirSync(join(testHome, 'links'));
  assert.deepEqual(
    links.filter((name) => !name.startsWith(ofTheNext)),
    [],
  );
});
