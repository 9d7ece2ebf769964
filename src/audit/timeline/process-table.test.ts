import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeBuild, SyntheticRun } from '../../../test/support/audit-run.ts';
import type { ExecEvent, ProcessEvent } from '../records.ts';
import { type Process, ProcessTable } from './process-table.ts';

const isProcess = (event: { kind: string }): event is ProcessEvent => event.kind !== 'syscall';

function tableOf(run: SyntheticRun): { table: ProcessTable; processes: Process[] } {
  const table = new ProcessTable();
  const processes = run
    .events()
    .filter(isProcess)
    .map((event) => table.apply(event));
  return { table, processes };
}

const by = { sequence: 0, timeNs: 10n, thread: 5, parentPid: 1, uid: 0, gid: 0, isCut: false };

const exec = (process: ExecEvent['process'], binary: string, args: string[] = []): ExecEvent => ({
  ...by,
  thread: process.pid,
  kind: 'exec',
  process,
  binary,
  args,
  cwd: '/',
  device: 0,
  inode: 0n,
});

test('a build is a tree: every process has the parent that forked it and what it ran', () => {
  const run = new SyntheticRun();
  makeBuild(run, ['main']);
  const { table, processes } = tableOf(run);
  const assembler = processes.find(({ binary }) => binary === '/usr/bin/as');
  assert.ok(assembler);
  const line: string[] = [];
  for (let at: Process | undefined = assembler; at; at = table.parentOf(at)) line.push(at.binary);
  assert.deepEqual(line, [
    '/usr/bin/as',
    '/usr/bin/x86_64-linux-gnu-gcc-12',
    '/usr/bin/make',
    '/bin/sh',
    '/init',
  ]);
  assert.equal(assembler.status, 0);
  assert.equal(assembler.origin, 'exec');
});

test('a fork is what its parent was until it runs something itself', () => {
  const run = new SyntheticRun();
  const child = run.step('true').fork();
  const { table } = tableOf(run);
  const process = table.get(child);
  assert.deepEqual([process?.binary, process?.origin], ['/bin/sh', 'fork']);
});

test('a record that comes before that of its fork gets its parent later', () => {
  const table = new ProcessTable();
  const child = { pid: 6, startedNs: 8n };
  const early = table.apply({ ...by, kind: 'exit', process: child, status: 0 });
  assert.deepEqual([early.origin, early.parent], ['unknown', undefined]);
  const parent = table.apply(exec({ pid: 5, startedNs: 1n }, '/bin/sh'));
  table.apply({ ...by, kind: 'fork', process: { pid: 5, startedNs: 1n }, child });
  assert.equal(table.parentOf(early), parent);
  assert.deepEqual([early.origin, early.binary], ['fork', '/bin/sh']);
});

test('a number that comes again is another process, and its thread belongs to the newer', () => {
  const table = new ProcessTable();
  const old = table.apply(exec({ pid: 5, startedNs: 1n }, '/bin/old'));
  table.apply({ ...by, kind: 'exit', process: old, status: 0 });
  const young = table.apply(exec({ pid: 5, startedNs: 9n }, '/bin/young'));
  assert.notEqual(old, young);
  assert.equal(table.ofThread(5), young);
  assert.equal(table.get({ pid: 5, startedNs: 1n }), old);
});

test('threads are known from records and from what clone returned', () => {
  const table = new ProcessTable();
  const process = table.apply({ ...exec({ pid: 5, startedNs: 1n }, '/bin/a'), thread: 6 });
  assert.equal(table.ofThread(6), process);
  table.cloned(6, 7);
  assert.equal(table.ofThread(7), process);
  assert.equal(table.ofThread(8), undefined);
  const child = table.apply(exec({ pid: 9, startedNs: 3n }, '/bin/b'));
  table.cloned(5, 9);
  assert.equal(table.ofThread(9), child, 'a process is no thread of another');
});

test('a process that claims to have forked itself, or to be its own parent, is no loop', () => {
  const table = new ProcessTable();
  const key = { pid: 5, startedNs: 1n };
  table.apply({ ...by, kind: 'fork', process: key, parentPid: 5, child: key });
  assert.equal(table.get(key)?.parent, undefined);
});

test('memory is bounded whatever a guest claims, and running processes that were given up are counted', () => {
  const table = new ProcessTable({ processes: 100, bytes: 1_000_000, threads: 10 });
  for (let pid = 1; pid <= 5000; pid += 1) {
    const key = { pid, startedNs: BigInt(pid) };
    table.apply({ ...exec(key, '/bin/x', ['y'.repeat(pid % 7 === 0 ? 4000 : 10)]), thread: pid + 100_000 });
    table.apply({ ...by, kind: 'fork', process: key, child: { pid: pid + 1, startedNs: BigInt(pid) } });
  }
  assert.ok(table.size <= 100, `${table.size} processes`);
  assert.ok(table.forgotten > 5000, `${table.forgotten} given up`);
  assert.equal(table.ofThread(100_001), undefined);
  assert.ok(table.ofThread(105_000));
  assert.equal(new ProcessTable().forgotten, 0);
});

test('those that ended are given up before those that run', () => {
  const table = new ProcessTable({ processes: 50, bytes: 1_000_000, threads: 10 });
  const make = table.apply(exec({ pid: 1, startedNs: 1n }, '/usr/bin/make'));
  for (let pid = 2; pid < 1000; pid += 1) {
    const process = { pid, startedNs: BigInt(pid) };
    table.apply(exec(process, '/usr/bin/cc'));
    table.apply({ ...by, kind: 'exit', process, status: 0 });
  }
  assert.equal(table.get(make), make);
  assert.equal(table.forgotten, 0);
});

test('records in any order, of any process, never throw', () => {
  const run = new SyntheticRun();
  makeBuild(run);
  const events = run.events().filter(isProcess);
  let state = 7;
  for (let round = 0; round < 50; round += 1) {
    const shuffled = [...events];
    for (let at = shuffled.length - 1; at > 0; at -= 1) {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      const other = (state >>> 8) % (at + 1);
      [shuffled[at], shuffled[other]] = [shuffled[other] as ProcessEvent, shuffled[at] as ProcessEvent];
    }
    const table = new ProcessTable({ processes: 5, bytes: 20_000, threads: 2 });
    for (const event of shuffled) {
      const process = table.apply(event);
      for (let at: Process | undefined = process, depth = 0; at; at = table.parentOf(at), depth += 1) {
        assert.ok(depth < 100, 'a loop of parents');
      }
    }
  }
});
