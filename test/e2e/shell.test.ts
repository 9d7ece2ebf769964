/** Shells in the VMs of runs. Real daemon, real VMs, real terminals on both sides. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { borrowImages } from '../support/borrowed-home.ts';
import { stopHost } from '../support/host.ts';
import { type CtOutcome, ctPath, runCt } from '../support/run-ct.ts';
import { type TerminalProgram, Terminals } from '../support/terminal.ts';

const SIGTERM = 15;

let directory = '';
let project = '';
let ctHome = '';
let env: { readonly CT_HOME: string };
let terminals: Terminals;

const ct = (...args: string[]): Promise<CtOutcome> => runCt(args, { cwd: project, env });
const onTerminal = (...args: string[]): TerminalProgram =>
  terminals.run([ctPath, ...args], { cwd: project, env });
/** Runs `ct ARGS…` on a terminal between two looks at the settings of that terminal. */
const between = (...args: string[]): TerminalProgram =>
  terminals.run(
    [
      'sh',
      '-c',
      'echo "before=$(stty -g)."; "$@"; echo "status=$? after=$(stty -g)."',
      'sh',
      ctPath,
      ...args,
    ],
    { cwd: project, env },
  );

function assertRestored(program: TerminalProgram): void {
  const [, before] = /before=(.*)\./.exec(program.shown) ?? assert.fail(program.shown);
  const [, after] = /after=(.*)\./.exec(program.shown) ?? assert.fail(program.shown);
  assert.equal(after, before);
}

// biome-ignore lint/suspicious/noExplicitAny: documents of the CLI, checked key by key
type Json = any;

async function inspect(run: string): Promise<Json> {
  const { status, stdout, stderr } = await ct('inspect', run, '--json');
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout);
}

/** A job of ct.yml that is running its step until it is disposed of. */
async function running(
  job: string,
): Promise<AsyncDisposable & { readonly run: string; end: Promise<CtOutcome> }> {
  const end = ct('run', job);
  let ended: CtOutcome | undefined;
  void end.then((outcome) => {
    ended = outcome;
  });
  for (const startedAt = performance.now(); ; await sleep(50)) {
    const inTime = performance.now() - startedAt < 40_000;
    assert.ok(inTime && !ended, `${job} does not run: ${ended?.stderr}`);
    const { stdout } = await ct('ps', '--json');
    const [found] = stdout
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line) as Json)
      .filter((line) => line.job === job && line.state === 'running');
    if (!found) continue;
    const { run } = found;
    return {
      run,
      end,
      [Symbol.asyncDispose]: async () => {
        await ct('cancel', run);
        await end;
      },
    };
  }
}

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'ct-shell-'));
  ctHome = join(directory, 'home');
  project = join(directory, 'project');
  mkdirSync(ctHome, { mode: 0o700 });
  env = { CT_HOME: ctHome };
  await borrowImages(ctHome);
  mkdirSync(join(project, 'sub'), { recursive: true });
  writeFileSync(join(project, 'sub', 'file'), 'content\n');
  writeFileSync(
    join(project, 'ct.yml'),
    `version: 1
defaults:
  resources: {memory: 512M}
jobs:
  waits:
    env: {OF_JOB: from-the-job}
    steps:
      - {name: wait, run: sleep 300, working-directory: sub, env: {OF_STEP: from-the-step}}
  ends:
    steps:
      - {name: wait, run: 'until [ -e /tmp/stop ]; do sleep 0.1; done'}
  secretive:
    secrets: [PASSWORD]
    steps:
      - {name: wait, run: 'echo $PASSWORD > /tmp/leak; sleep 300', secrets: {PASSWORD: env}}
  fails:
    artifacts: {paths: [made]}
    steps:
      - {name: breaks, run: 'echo before > state; exit 7', env: {OF_STEP: from-the-step}}
      - {name: skipped, run: 'echo never'}
      - {name: cleans, run: 'cat state; echo made > made', if: always()}
  one:
    steps: [{name: breaks, run: 'echo of-one; exit 1'}]
  two:
    steps: [{name: breaks, run: 'echo of-two; exit 1'}]
  short:
    timeout: 15s
    steps:
      - {name: breaks, run: exit 7}
`,
  );
  assert.equal((await ct('run', '--', 'true')).status, 0); // starts the daemon and makes the template
  terminals = await Terminals.open();
});

after(async () => {
  await terminals?.[Symbol.asyncDispose]();
  await stopHost(ctHome);
  rmSync(directory, { recursive: true, force: true });
});

test('a shell has a terminal of its own, in the place of the step that runs; it is on record', async () => {
  await using job = await running('waits');
  const shell = between('shell', 'waits');
  await shell.said(/a shell in the VM of run .* leave it with exit or Ctrl-D/);
  shell.type('tty; stty size; pwd; id -un; echo "[$OF_JOB $OF_STEP $CT_JOB $TERM]"\n');
  await shell.said(/\/dev\/pts\/\d+\n24 80\n\/workspace\/sub\n(?!root)\w+\n/);
  await shell.said(/\[from-the-job from-the-step waits xterm-256color\]/);
  shell.resize(50, 132);
  await sleep(500);
  shell.type('stty size; cat file\n');
  await shell.said(/50 132\ncontent\n/);
  shell.type('ps -e -o args= | grep -c "^sleep 300$"\n');
  await shell.said(/\n1\n/);
  shell.type('sleep 200\n');
  await sleep(500);
  shell.type('\x03');
  shell.type('echo interrupted=$?\n');
  await shell.said(/\^C[\s\S]*interrupted=130\n/);
  shell.type('exit 42\n');
  await shell.said(/status=42 /);
  assert.equal(await shell.exitCode(), 0);
  assertRestored(shell);

  const { shells } = await inspect(job.run);
  assert.equal(shells.length, 1);
  assert.equal(shells[0].uid, process.getuid?.());
  assert.ok(Math.abs(Date.now() - Date.parse(shells[0].opened)) < 120_000);
  const log = await ct('logs', job.run);
  assert.match(log.stderr, /user \d+ opened a shell in the VM[\s\S]*a shell in the VM ended \(42\)/);
});

test('without a terminal a command has pipes, and its output and exit status are its own', async () => {
  await using job = await running('waits');
  const piped = await runCt(['shell', job.run, '--', 'sh', '-c', 'cat; echo err >&2; tty; exit 3'], {
    cwd: project,
    env,
    input: 'through stdin\n',
  });
  assert.deepEqual([piped.status, piped.stdout, piped.stderr], [3, 'through stdin\nnot a tty\n', 'err\n']);
  const large = await ct('shell', job.run, '--', 'head', '-c', '3000000', '/dev/zero');
  assert.deepEqual([large.status, large.stdout.length], [0, 3_000_000]);
  const missing = await ct('shell', job.run, '--', 'no-such-program');
  assert.equal(missing.status, 127);
  assert.match(missing.stderr, /no-such-program cannot be started: .*No such file/);
  const endless = await Promise.all([1, 2, 3, 4, 5].map(() => ct('shell', job.run, '--', 'sleep', '3')));
  assert.deepEqual(
    endless.map(({ status }) => status).sort(),
    [0, 0, 0, 0, 2],
    endless.map(({ stderr }) => stderr).join(''),
  );
  assert.match(endless.map(({ stderr }) => stderr).join(''), /error\[SHELL_UNAVAILABLE\]: 4 shells are open/);
});

test('without a terminal a signal goes to the command in the VM, and the second one ends ct', async () => {
  await using job = await running('waits');
  const start = (
    script: string,
  ): { said: Promise<unknown>; child: ChildProcess; end: Promise<unknown[]> } => {
    const child = spawn(ctPath, ['shell', job.run, '--', 'sh', '-c', script], {
      cwd: project,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    return { child, said: once(child.stdout, 'data'), end: once(child, 'exit') };
  };
  const tidy = start('trap "exit 9" TERM; echo ready; while :; do sleep 0.1; done');
  await tidy.said;
  tidy.child.kill('SIGTERM');
  assert.deepEqual(await tidy.end, [9, null]);
  const stubborn = start('trap "" TERM; echo ready; while :; do sleep 0.1; done');
  await stubborn.said;
  stubborn.child.kill('SIGTERM');
  await sleep(500);
  assert.equal(stubborn.child.exitCode, null);
  stubborn.child.kill('SIGTERM');
  assert.deepEqual(await stubborn.end, [null, 'SIGTERM']);
});

test('a shell whose client does not read holds up neither the job nor its end', async () => {
  await using job = await running('ends');
  const stalled = spawn(ctPath, ['shell', job.run, '--', 'yes'], {
    cwd: project,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const ended = once(stalled, 'exit');
  await sleep(2000);
  const stop = await ct('shell', job.run, '--', 'touch', '/tmp/stop');
  assert.equal(stop.status, 0, stop.stderr);
  assert.equal((await job.end).status, 0);
  stalled.stdout.resume();
  assert.deepEqual(await ended, [125, null]);
});

test('when the job ends, so does the shell: it says so, and the terminal is as it was', async () => {
  await using job = await running('ends');
  const shell = between('shell', job.run);
  await shell.said(/leave it with/);
  shell.type('trap "" HUP TERM; sleep 1000 & touch /tmp/stop; sleep 1000\n');
  assert.equal((await job.end).status, 0);
  await shell.said(/error\[SHELL_ENDED\]: the job has ended \(success\), and its VM and this shell with it/);
  await shell.said(/status=125 /);
  assertRestored(shell);
  const later = await ct('shell', job.run);
  assert.equal(later.status, 2);
  assert.match(
    later.stderr,
    /error\[SHELL_UNAVAILABLE\]: run \w+ has ended.*\n {2}hint: .*ct logs .*--shell-on-failure/,
  );
  assert.equal((await inspect(job.run)).outcome, 'success');
});

test('a shell that is killed by a signal or whose window is closed leaves the terminal as it was, and nothing in the VM', async () => {
  await using job = await running('waits');
  const inner = 'echo ct=$$; exec "$0" shell "$1"';
  const script = `echo "before=$(stty -g)."; sh -c '${inner}' "$0" "$1"; echo "status=$? after=$(stty -g)."`;
  const shell = terminals.run(['sh', '-c', script, ctPath, job.run], { cwd: project, env });
  const [, client = ''] = await shell.said(/ct=(\d+)\n/);
  await shell.said(/leave it with/);
  shell.type('echo pid=$$\n');
  const [, pid = ''] = await shell.said(/pid=(\d+)\n/);
  const there = (process: string): Promise<CtOutcome> => ct('shell', job.run, '--', 'kill', '-0', process);
  assert.equal((await there(pid)).status, 0);
  process.kill(Number(client), 'SIGTERM');
  await shell.said(/status=143 /);
  assertRestored(shell);
  for (let i = 0; (await there(pid)).status === 0; i++) assert.ok(i < 50, 'the shell is still in the VM');

  const closed = onTerminal('shell', job.run);
  await closed.said(/leave it with/);
  closed.type('trap "" HUP; echo pid=$$\n');
  const [, other = ''] = await closed.said(/pid=(\d+)\n/);
  closed.hangUp();
  await assert.rejects(closed.end);
  for (let i = 0; (await there(other)).status === 0; i++) assert.ok(i < 50, 'the shell is still in the VM');
});

test('secrets of the job are masked in what a shell shows, and are not in its environment', async () => {
  const secret = 'correct-horse-battery';
  const end = runCt(['run', '-s', 'PASSWORD', 'secretive'], {
    cwd: project,
    env: { ...env, PASSWORD: secret },
  });
  let shown: CtOutcome;
  for (let i = 0; ; i++) {
    shown = await ct('shell', 'secretive', '--', 'sh', '-c', 'cat /tmp/leak; echo "[$PASSWORD]"');
    if (shown.status === 0 && shown.stdout.startsWith('***')) break;
    assert.ok(i < 100, `${shown.stdout}${shown.stderr}`);
    await sleep(100);
  }
  assert.equal(shown.stdout, '***\n[]\n');
  const control = await ct('shell', 'secretive', '--', 'sh', '-c', 'wc -c < /tmp/leak');
  assert.equal(control.stdout, `${secret.length + 1}\n`);
  await ct('cancel', 'secretive');
  assert.equal((await end).status, 130);
});

test('a run that nobody knows is reported as by every command', async () => {
  const unknown = await ct('shell', 'no-such-run');
  assert.equal(unknown.status, 2);
  assert.match(unknown.stderr, /error\[RUN_NOT_FOUND\].*\n {2}hint: /);
});

test('--shell-on-failure opens a shell where the step failed, then the job goes on and fails', async () => {
  const run = between('run', '--shell-on-failure', 'fails');
  await run.said(/step “breaks” of fails failed; this is a shell in its VM[\s\S]*Its timeout still counts/);
  run.type('echo "[$OF_STEP]"; cat state; echo changed > state; tty\n');
  await run.said(/\[from-the-step\]\nbefore\n\/dev\/pts\//);
  run.type('exit\n');
  await run.said(/cleans[\s\S]*changed\n/);
  await run.said(/status=1 /);
  assertRestored(run);
  assert.doesNotMatch(run.shown, /never/);
  assert.match(run.shown, /artifacts: 1 file/);
  const detail = await inspect('latest');
  assert.deepEqual([detail.outcome, detail.exit, detail.shells.length], ['failure', 7, 1]);
});

test('shells of jobs that fail side by side come one after another, and have the terminal alone', async () => {
  const run = between('run', '--shell-on-failure', 'one', 'two');
  const [, first = ''] = await run.said(/step “breaks” of (one|two) failed; this is a shell/);
  run.type('sleep 3; echo first-$CT_JOB\n');
  await run.said(new RegExp(`first-${first}\n`));
  const since = run.shown.slice(run.shown.indexOf('this is a shell'));
  assert.doesNotMatch(since, /✗|of-one|of-two|│/);
  run.type('exit\n');
  const [, second = ''] = await run.said(/step “breaks” of (one|two) failed; this is a shell/);
  assert.deepEqual([first, second].sort(), ['one', 'two']);
  run.type('exit\n');
  await run.said(/status=1 /);
  assertRestored(run);
  assert.match(run.shown, /of-one/);
  assert.match(run.shown, /of-two/);
});

test('the timeout of the job ends a shell that was opened on failure', async () => {
  const run = between('run', '--shell-on-failure', 'short');
  await run.said(/this is a shell in its VM/);
  await run.said(/the shell ended: the job has ended \(timeout\)/);
  await run.said(/status=124 /);
  assertRestored(run);
});

test('SIGTERM ends a run whose shell is open, and the terminal is as it was', async () => {
  const run = onTerminal('run', '--shell-on-failure', 'fails');
  await run.said(/this is a shell in its VM/);
  run.signal(SIGTERM);
  assert.equal(await run.exitCode(), 130);
  assert.equal((await inspect('latest')).outcome, 'cancelled');
});

test('--shell-on-failure without a terminal is refused with a hint', async () => {
  const { status, stderr } = await ct('run', '--shell-on-failure', 'fails');
  assert.equal(status, 2);
  assert.match(stderr, /error\[USAGE\]: --shell-on-failure needs a terminal.*\n {2}hint: .*ct shell RUN/);
});
