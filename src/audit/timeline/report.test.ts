import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Actor, makeBuild, npmCi, reverseShell, SyntheticRun } from '../../../test/support/audit-run.ts';
import { namesInOrder } from './destinations.ts';
import {
  buildReport,
  childrenOf,
  MAX_ENTRIES,
  MAX_NODES,
  type Report,
  type ReportOptions,
} from './report.ts';

const OPTIONS: ReportOptions = {
  workspace: '/workspace',
  nameOf: namesInOrder(['registry.example', 'other.example']),
  steps: [],
};

async function reportOf(run: SyntheticRun, options = OPTIONS): Promise<Report> {
  return buildReport(run.stream(), options);
}

test('a build is a tree below its step, with how each process ended', async () => {
  const run = new SyntheticRun();
  makeBuild(run, ['main']);
  const { processes } = await reportOf(run);
  const children = childrenOf(processes);
  const [shell] = children.get(undefined) ?? [];
  assert.deepEqual([shell?.binary, shell?.command], ['/bin/sh', "/bin/sh -e -c 'make && make install'"]);
  const names = (id: number | undefined): string[] => (children.get(id) ?? []).map(({ binary }) => binary);
  assert.deepEqual(names(shell?.id), ['/usr/bin/make', '/usr/bin/install']);
  const make = children.get(shell?.id)?.[0];
  assert.equal(make?.digest, 'aa'.repeat(32));
  assert.ok(make?.endNs !== undefined && make.endNs > make.startNs && make.status === 0);
});

test('files written outside of the workspace are told, those within are not', async () => {
  const run = new SyntheticRun();
  makeBuild(run, ['main']);
  const shell = run.step('x');
  shell.file('write', '/dev/null').file('write', '../etc/passwd').file('unlink', '/workspace/a');
  shell.file('setuid', '/workspace/su', 0o4755).file('read', '/etc/shadow');
  const { written, processes } = await reportOf(run);
  const told = written.map(({ what, path, process }) => [what, path, processes[process ?? -1]?.binary]);
  assert.equal(told.length, 4);
  assert.match(told[0]?.[1] ?? '', /^\/tmp\/cc/);
  assert.deepEqual(told.slice(1), [
    ['write', '/usr/local/bin/app', '/usr/bin/install'],
    ['write', '/etc/passwd', '/bin/sh'],
    ['setuid', '/workspace/su', '/bin/sh'],
  ]);
});

test('destinations have the names that were asked for, whichever family was connected to', async () => {
  const run = new SyntheticRun();
  npmCi(run);
  const node = run.step('x');
  node.connect('198.18.1.2', 22, { result: -111 }).connect('192.0.2.1', 80).connect('127.0.0.1', 9);
  node.connect('198.18.1.3', 1).connect('198.18.0.1', 53, { protocol: 17 });
  const { destinations } = await reportOf(run);
  assert.deepEqual(
    destinations.map(({ host, port, count, refused }) => [host, port, count, refused]),
    [
      ['registry.example', 443, 2, 0],
      ['other.example', 22, 1, 1],
      ['192.0.2.1', 80, 1, 0],
      ['198.18.1.3', 1, 1, 0],
    ],
  );
});

test('a process that ran several programs is one, with those before', async () => {
  const run = new SyntheticRun();
  reverseShell(run);
  const { processes, programs } = await reportOf(run);
  const last = processes.at(-1);
  assert.deepEqual([last?.binary, last?.earlier], ['/bin/sh', ['/usr/bin/python3']]);
  assert.deepEqual(
    programs.map(({ path, count }) => [path, count]),
    [
      ['/bin/sh', 2],
      ['/usr/bin/python3', 1],
    ],
  );
});

test('processes of the guest agent belong to the step that ran when they were started', async () => {
  const run = new SyntheticRun();
  const first = run.step('a');
  for (let ms = 0; ms < 20; ms += 1) run.tick();
  const second = run.step('b');
  const steps = [
    { name: 'one', startNs: first.startedNs - 1n },
    { name: 'two', startNs: second.startedNs + 1n },
  ];
  const early = { name: 'early', startNs: first.startedNs + 10_000_000_000n };
  const stepsOf = async (run: SyntheticRun): Promise<unknown[]> =>
    (await reportOf(run, { ...OPTIONS, steps })).processes.map(({ step }) => step);
  assert.deepEqual(await stepsOf(run), [0, 1]);
  // The one that was started last is neither: told by time, all of them are as close as they can be.
  run.step('a shell');
  assert.deepEqual(await stepsOf(run), [0, 1, 1]);
  const none = await reportOf(run, { ...OPTIONS, steps: [early] });
  assert.equal(none.processes[0]?.step, undefined);
});

test('clocks that are apart do not move processes to other steps, as long as each step has one', async () => {
  const run = new SyntheticRun();
  const agent = new Actor(run, { pid: 1, startedNs: 0n }, 0);
  agent.fork().exit(); // it moves the working tree into the VM
  const roots = [run.step('a'), run.step('b'), run.step('c')];
  const steps = roots.map(({ startedNs }, index) => ({
    name: `${index}`,
    startNs: startedNs - 250_000_000n,
  }));
  const { processes } = await reportOf(run, { ...OPTIONS, steps });
  assert.deepEqual(
    processes.map(({ step, binary }) => [step, binary]),
    [
      [undefined, '/init'],
      [0, '/bin/sh'],
      [1, '/bin/sh'],
      [2, '/bin/sh'],
    ],
  );
});

test('the first process of a step needs no record of its fork: what starts it is not recorded', async () => {
  const run = new SyntheticRun();
  makeBuild(run, ['main']);
  const { processes } = await buildReport(
    (async function* () {
      for (const event of run.events()) if (event.kind !== 'fork' || event.process.pid !== 1) yield event;
    })(),
    OPTIONS,
  );
  assert.deepEqual(
    [processes[0]?.binary, processes[0]?.origin, processes[0]?.parent],
    ['/bin/sh', 'exec', undefined],
  );
  assert.equal(processes.filter(({ parent }) => parent === undefined).length, 1);
});

test('denials are counted by what was refused', async () => {
  const run = new SyntheticRun();
  const shell = run.step('x');
  shell
    .denied('exec', '/tmp/tool', 'ab'.repeat(32))
    .denied('exec', '/tmp/tool', 'ab'.repeat(32))
    .denied('ptrace', '');
  const { refused } = await reportOf(run);
  assert.deepEqual(
    refused.map(({ what, path, count }) => [what, path, count]),
    [
      ['exec', '/tmp/tool', 2],
      ['ptrace', '', 1],
    ],
  );
});

test('a run of endless processes and files has a report of bounded size, which counts the rest', async () => {
  const run = new SyntheticRun();
  const shell = run.step('x');
  for (let index = 0; index < MAX_NODES + 500; index += 1) {
    const child = shell.fork();
    if (index <= MAX_ENTRIES + 100) child.file('write', `/etc/${index}`);
    child.exit();
  }
  const report = await reportOf(run);
  assert.equal(report.processes.length, MAX_NODES);
  assert.equal(report.omitted.processes, 501);
  assert.equal(report.written.length, MAX_ENTRIES);
  assert.equal(report.omitted.entries, 101);
});

test('every node comes after its parent, also if processes claim to be each other’s parents', async () => {
  const run = new SyntheticRun();
  const a = run.step('x');
  const b = a.fork();
  const events = run.events();
  const [fork] = events.filter(({ kind }) => kind === 'fork').slice(-1);
  assert.ok(fork?.kind === 'fork');
  const back = { ...fork, process: fork.child, child: { pid: a.pid, startedNs: a.startedNs } };
  const { processes } = await buildReport(
    (async function* () {
      yield* events;
      yield back;
      yield fork;
    })(),
    OPTIONS,
  );
  assert.ok(processes.some(({ pid }) => pid === b.pid));
  for (const { id, parent } of processes) assert.ok(parent === undefined || parent < id);
});
