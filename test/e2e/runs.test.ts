/** Runs as others see them: from another terminal while they run, and later. Real daemon, real VMs. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { findHost } from '../../src/host/client.ts';
import { borrowImages } from '../support/borrowed-home.ts';
import { stopHost } from '../support/host.ts';
import { type CtOutcome, ctPath, runCt } from '../support/run-ct.ts';

let directory = '';
let ctHome = '';
let env: { readonly CT_HOME: string };

const ct = (...args: string[]): Promise<CtOutcome> => runCt(args, { cwd: join(directory, 'project'), env });

async function ctOk(...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await ct(...args);
  assert.equal(status, 0, `ct ${args.join(' ')}: ${stderr}`);
  return stdout;
}

// biome-ignore lint/suspicious/noExplicitAny: documents of the CLI, checked key by key
type Json = any;

const lines = (text: string): Json[] =>
  text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line));

const inspect = async (run: string): Promise<Json> => JSON.parse(await ctOk('inspect', run, '--json'));
const ps = async (...args: string[]): Promise<Json[]> => lines(await ctOk('ps', '--json', ...args));

interface Background {
  readonly child: ReturnType<typeof spawn>;
  readonly end: Promise<CtOutcome>;
  /** Resolves when stdout contains `text`. */
  readonly said: (text: string) => Promise<void>;
}

function start(...args: string[]): Background {
  const child = spawn(ctPath, args, {
    cwd: join(directory, 'project'),
    env: { PATH: process.env['PATH'], HOME: process.env['HOME'], CI: 'true', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let [stdout, stderr] = ['', ''];
  child.stdout?.on('data', (chunk: Buffer) => {
    stdout += chunk.toString();
  });
  child.stderr?.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const end = once(child, 'close').then(([status, signal]) => ({ status, signal, stdout, stderr }));
  const said = async (text: string): Promise<void> => {
    for (let i = 0; !stdout.includes(text); i++) {
      assert.ok(i < 600 && child.exitCode === null, `ct ${args.join(' ')} never said ${text}: ${stderr}`);
      await sleep(50);
    }
  };
  return { child, end, said };
}

const sleeper = async (): Promise<Background> => {
  const job = start('run', '--', 'sh', '-c', 'echo started; sleep 300');
  await job.said('started');
  return job;
};

async function eventually(what: string, holds: () => Promise<boolean>): Promise<void> {
  for (let i = 0; i < 200; i++) {
    if (await holds()) return;
    await sleep(100);
  }
  assert.fail(`not within 20 s: ${what}`);
}

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'ct-runs-'));
  ctHome = join(directory, 'home');
  mkdirSync(ctHome, { mode: 0o700 });
  env = { CT_HOME: ctHome };
  await borrowImages(ctHome);
  mkdirSync(join(directory, 'project'));
  writeFileSync(
    join(directory, 'project', 'ct.yml'),
    `version: 1
jobs:
  steps:
    steps:
      - {name: one, run: 'echo first; echo first-err >&2'}
      - {name: two, run: 'echo second; echo "why it failed" >&2; exit 3'}
      - {name: three, run: 'echo never'}
      - {name: four, run: 'echo fourth', if: always()}
`,
  );
  await ctOk('run', '--', 'true'); // starts the daemon and makes the template
});
after(async () => {
  await stopHost(ctHome);
  rmSync(directory, { recursive: true, force: true });
});

test('ps shows a run while it runs, with its state, and -a when it has ended', async () => {
  const job = await sleeper();
  const [running, ...others] = await ps();
  assert.equal(others.length, 0);
  assert.deepEqual(
    [running.job, running.state, running.exit, running.outcome, running.ended],
    ['sh -c echo started; sleep 300', 'running', null, null, null],
  );
  assert.ok(running.duration > 0);
  assert.match(await ctOk('ps'), new RegExp(`^RUN .*\\n${running.run}  sh -c .* running `));
  job.child.kill('SIGINT');
  await job.end;
  await eventually('the run has ended', async () => (await ps()).length === 0);
  const [newest, before] = await ps('--all');
  assert.deepEqual(
    [newest.run, newest.state, newest.outcome, newest.exit],
    [running.run, 'ended', 'cancelled', 130],
  );
  assert.deepEqual(
    [before.job, before.outcome, before.exit, before.image],
    ['true', 'success', 0, 'debian-12'],
  );
  assert.ok(newest.started >= before.started && before.ended > before.started);
});

test('logs after the fact are what was printed, on stdout and stderr apart, byte by byte', async () => {
  const script = 'printf "a\\033[31mb\\377\\000c"; echo err >&2; head -c 200000 /dev/zero; echo end';
  const printed = await ct('run', '--', 'sh', '-c', script);
  const logged = await ct('logs');
  assert.deepEqual([logged.status, logged.stdout === printed.stdout], [0, true]);
  assert.equal(logged.stderr, printed.stderr);
  assert.equal(printed.stdout.length, 200_000 + Buffer.from('a\u001b[31mb\ufffd\0cend\n').length - 2);
});

test('logs of a job show its steps as `ct run` did; --failed, --step and --timestamps pick and mark', async () => {
  const printed = await ct('run', 'steps');
  assert.equal(printed.status, 1);
  const logged = await ct('logs', 'steps');
  assert.equal(logged.stdout, 'first\nsecond\nfourth\n');
  assert.equal(logged.stdout, printed.stdout);
  const comparable = (text: string): string => text.replaceAll(/\(\d.*?\)$/gm, '(…)');
  assert.equal(comparable(logged.stderr), comparable(printed.stderr));

  const failed = await ct('logs', '--failed', 'steps');
  assert.equal(failed.stdout, 'second\n');
  assert.match(failed.stderr, /^why it failed\n/);
  assert.equal((await ct('logs', '--step', '4', 'steps')).stdout, 'fourth\n');
  assert.equal((await ct('logs', '--step', 'one', '--step', '2', 'steps')).stdout, 'first\nsecond\n');
  const stamped = await ct('logs', '-t', '--step', 'one', 'steps');
  assert.match(stamped.stdout, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z first\n$/);
  const lines = (await ct('logs', '--json', '--step', 'one', '--step', '2', 'steps')).stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  assert.deepEqual(
    lines
      .filter(({ type, stream }) => type === 'output' && stream === 'stdout')
      .map(({ step, text }) => ({ step, text })),
    [
      { step: 0, text: 'first\n' },
      { step: 1, text: 'second\n' },
    ],
  );
  assert.ok(lines.every(({ time }) => /^\d{4}-\d\d-\d\dT/.test(String(time))));
  const unknown = await ct('logs', '--step', 'fuor', 'steps');
  assert.deepEqual([unknown.status, /did you mean `four`/.test(unknown.stderr)], [2, true]);
  assert.match((await ct('logs', '--failed', 'true')).stderr, /no step .* failed/);
});

test('logs -f from another terminal follows a run to its end', async () => {
  const job = start('run', '--', 'sh', '-c', 'for i in 1 2 3 4 5 6; do echo "line $i"; sleep 0.5; done');
  await job.said('line 1');
  const follower = start('logs', '--follow', 'latest');
  await follower.said('line 2');
  assert.equal((await ps())[0]?.state, 'running', 'it shows lines while the job runs');
  const [printed, followed] = [await job.end, await follower.end];
  assert.equal(followed.status, 0, followed.stderr);
  assert.equal(followed.stdout, printed.stdout);
  assert.equal((await ps()).length, 0);
});

test('what a client did not read is in the log, when the client stops reading and is killed', async () => {
  const job = start('run', '--', 'sh', '-c', 'echo started; sleep 1; seq 1 20000; echo stuck >&2; sleep 300');
  await job.said('started');
  const [run] = await ps();
  job.child.kill('SIGSTOP');
  const follower = start('logs', '-f', run.run);
  await follower.said('\n20000\n');
  job.child.kill('SIGKILL');
  await job.end;
  const followed = await follower.end;
  assert.equal(followed.status, 0);
  assert.equal(followed.stdout, (await ct('logs', run.run)).stdout);
  assert.equal((await inspect(run.run)).outcome, 'cancelled');
});

test('cancel from another terminal ends the run: its client exits with 130', async () => {
  const job = await sleeper();
  const [{ run }] = await ps();
  assert.equal(await ctOk('cancel', run.slice(-5)), `${run}\n`);
  const { status, stderr } = await job.end;
  assert.equal(status, 130, stderr);
  assert.match(stderr, /error\[CANCELLED\]: the run was cancelled by `ct cancel`/);
  const again = await ct('cancel', run);
  assert.deepEqual([again.status, again.stdout], [0, '']);
  assert.match(again.stderr, /had ended already \(cancelled\)/);
});

/** Of every run that had a VM; its cgroups beside these, where there are any. */
const REMOVED = new Set(['vmm', 'volume', 'link']);

test('cancel ends a run whose client does not react', async () => {
  const job = await sleeper();
  const [{ run }] = await ps();
  job.child.kill('SIGSTOP');
  try {
    assert.equal(await ctOk('cancel', run), `${run}\n`);
    const { outcome, error, destruction } = await inspect(run);
    assert.deepEqual([outcome, error.code], ['cancelled', 'CANCELLED']);
    const removed: Json[] = destruction.removed;
    assert.deepEqual(new Set(removed.map(({ what }) => what).filter((what) => what !== 'cgroup')), REMOVED);
  } finally {
    // One that is stopped would keep this file from its end.
    job.child.kill('SIGKILL');
    await job.end;
  }
});

test('a run that waits for cpus is queued; cancel ends it before it has a VM', async () => {
  const host = await findHost(ctHome);
  assert.ok(host);
  const cpus = String((await host.info()).cpus);
  const job = start('run', '--cpu', cpus, '--', 'sh', '-c', 'echo started; sleep 300');
  await job.said('started');
  const waiting = start('run', '--', 'echo', 'never');
  await eventually('both are there', async () => (await ps()).length === 2);
  const [queued, running] = await ps();
  assert.deepEqual([queued.state, running.state], ['queued', 'running']);
  await ctOk('cancel', 'echo never', running.run);
  const outcomes = [await waiting.end, await job.end];
  assert.deepEqual(
    outcomes.map(({ status }) => status),
    [130, 130],
  );
  const { outcome, vm, destruction, steps } = await inspect(queued.run);
  assert.deepEqual([outcome, vm, destruction, steps[0].state], ['cancelled', null, null, 'skipped']);
});

test('inspect has the VM, the steps, the time of every state, and the proof of the destruction', async () => {
  const document = await inspect('steps');
  assert.deepEqual(
    [document.version, document.job, document.state, document.outcome, document.exit, document.error.code],
    [1, 'steps', 'ended', 'failure', 3, 'JOB_FAILED'],
  );
  assert.match(document.vm.vmm, /^qemu /);
  assert.ok(['kvm', 'tcg'].includes(document.vm.accelerator));
  assert.deepEqual(
    document.steps.map(({ name, state, exitCode }: Json) => [name, state, exitCode]),
    [
      ['one', 'success', 0],
      ['two', 'failure', 3],
      ['three', 'skipped', undefined],
      ['four', 'success', 0],
    ],
  );
  assert.deepEqual(Object.keys(document.statesMs), [
    'queued',
    'claiming',
    'staging',
    'running',
    'destroying',
  ]);
  const removed: Json[] = document.destruction.removed;
  assert.deepEqual(new Set(removed.map(({ what }) => what).filter((what) => what !== 'cgroup')), REMOVED);
  for (const { what, proof } of removed) {
    if (what === 'cgroup')
      assert.ok(!existsSync(/there is no (\S+) any more/.exec(proof)?.[1] ?? '/'), proof);
    if (what === 'volume' || what === 'cgroup') continue;
    const pid = /process (\d+) was reaped/.exec(proof)?.[1];
    assert.ok(pid && !existsSync(`/proc/${pid}`), `${what}: ${proof}`);
  }
  assert.ok(document.destruction.durationMs < 5000);
  assert.match(await ctOk('inspect', 'steps'), /\nstep 2 +two: failure, exit code 3.*\n/);
});

test('names that a job file gives drive no terminal in our lines', async () => {
  const name = 'sh -c :\u001b[2J\u001b]0;x\u0007';
  await ct('run', '--', 'sh', '-c', ':\u001b[2J\u001b]0;x\u0007');
  for (const args of [['ps', '-a'], ['inspect'], ['logs', '--failed']]) {
    const { stdout, stderr } = await ct(...args);
    const ours = stdout + stderr.replace(/^sh: .*$/gm, ''); // what the shell of the job says is the job's
    assert.doesNotMatch(ours, /(?!\n)\p{Cc}/u, args.join(' '));
  }
  assert.ok((await ps('-a'))[0]?.job.startsWith(name.slice(0, 7)));
});

test('rm removes a run and its log, but none that is under way; gc removes the rest', async () => {
  const job = await sleeper();
  const [{ run: busy }] = await ps();
  const refused = await ct('rm', 'steps', busy);
  assert.equal(refused.status, 2);
  assert.match(refused.stderr, /error\[RUN_NOT_ENDED\].*\n +hint: .*ct cancel/);
  await ctOk('cancel', busy);
  await job.end;
  const { log } = await inspect(busy);
  assert.equal(statSync(log).isDirectory(), true);
  assert.equal(await ctOk('rm', busy), `${busy}\n`);
  assert.equal(existsSync(log), false);
  const gone = await ct('logs', busy);
  assert.equal(gone.status, 2);
  assert.match(gone.stderr, /error\[RUN_NOT_FOUND\]/);
  const [kept] = await ps('-a');
  assert.match(await ctOk('gc', '--keep', '1'), /^removed \d+ runs, /);
  assert.deepEqual(
    (await ps('-a')).map(({ run }) => run),
    [kept.run],
  );
  assert.deepEqual(readdirSync(join(ctHome, 'runs')), [kept.run]);
});

test('kill -9 of the daemon leaves a truthful record and the log; followers come to an end', async () => {
  const job = await sleeper();
  const [{ run }] = await ps();
  const follower = start('logs', '-f', run);
  await follower.said('started');
  const host = await findHost(ctHome);
  assert.ok(host);
  process.kill((await host.info()).pid, 'SIGKILL');
  assert.equal((await job.end).status, 125);
  const followed = await follower.end;
  assert.equal(followed.status, 0);
  assert.match(followed.stderr, /error\[HOST_DIED\]/);

  const document = await inspect(run);
  assert.deepEqual(
    [document.state, document.outcome, document.exit, document.error.code],
    ['ended', 'infrastructure', 125, 'HOST_DIED'],
  );
  assert.match(document.error.message, /while the steps of the run were running/);
  assert.deepEqual([document.ended, document.duration, document.destruction], [null, null, null]);
  assert.equal(document.steps[0].state, 'interrupted');
  assert.equal((await ct('logs', run)).stdout, 'started\n');
  assert.deepEqual(await ps(), []);
});
