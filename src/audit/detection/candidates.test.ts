import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Actor, makeBuild, npmCi, reverseShell, SyntheticRun } from '../../../test/support/audit-run.ts';
import type { DetectEvent } from '../../policy/detection.ts';
import type { AuditEvent } from '../records.ts';
import { Candidates, MAX_WAITING } from './candidates.ts';

function candidatesOf(events: readonly AuditEvent[]): DetectEvent[] {
  const candidates = new Candidates((address) => (address === '198.18.1.9' ? 'evil.example' : undefined));
  for (const event of events) candidates.add(event);
  return candidates.take(true).map(({ event }) => event);
}

const of = <K extends DetectEvent['kind']>(events: readonly DetectEvent[], kind: K) =>
  events.filter((event): event is Extract<DetectEvent, { kind: K }> => event.kind === kind);

test('a shell on a connection shows as one: descriptors that became the socket, and where that leads', () => {
  const run = new SyntheticRun();
  reverseShell(run);
  const shell = of(candidatesOf(run.events()), 'exec').at(-1);
  assert.equal(shell?.exec.path, '/bin/sh');
  assert.deepEqual(shell?.process.sockets, [0, 1, 2]);
  assert.deepEqual(shell?.process.connections, ['evil.example:4444']);
});

test('records of different CPUs may come in another order than they happened', () => {
  const run = new SyntheticRun();
  reverseShell(run);
  const events = run.events();
  const late = [
    ...events.filter(({ kind }) => kind !== 'syscall'),
    ...events.filter(({ kind }) => kind === 'syscall'),
  ];
  assert.deepEqual(of(candidatesOf(late), 'exec').at(-1)?.process.sockets, [0, 1, 2]);
});

test('a fork inherits sockets and connections; a descriptor that was closed and came again is none', () => {
  const run = new SyntheticRun();
  const node = run.step('x').spawn('/usr/bin/node', ['node']);
  node.connect('192.0.2.1', 443, { fd: 20 }).connect('192.0.2.1', 443, { fd: 21, result: -115 });
  const onSocket = node.fork().call('dup2', [20n, 0n], 0n).call('dup3', [21n, 1n, 0n], 1n);
  onSocket.exec('/bin/sh', ['sh']);
  node.call('close', [20n]).call('close', [21n]);
  const onPipe = node.fork().call('dup2', [20n, 0n], 0n).call('dup2', [21n, 1n], 1n);
  onPipe.exec('/bin/bash', ['bash']);
  const [socket, pipe] = of(candidatesOf(run.events()), 'exec').slice(-2);
  assert.deepEqual(socket?.process.sockets, [0, 1]);
  assert.deepEqual(pipe?.process.sockets, []);
  assert.deepEqual(pipe?.process.connections, ['192.0.2.1:443']);
});

test('a standard descriptor that is replaced by something else is no socket any more', () => {
  const run = new SyntheticRun();
  const python = run.step('x').spawn('/usr/bin/python3', ['python3']);
  python.connect('192.0.2.1', 1, { fd: 3 }).call('dup2', [3n, 0n], 0n).call('fcntl', [3n, 0n, 10n], 10n);
  python
    .call('dup2', [5n, 0n], 0n)
    .call('dup2', [10n, 2n], 2n)
    .call('close_range', [3n, 2n ** 32n - 1n]);
  python.call('dup2', [10n, 1n], 1n).exec('/bin/sh', ['sh']);
  assert.deepEqual(of(candidatesOf(run.events()), 'exec').at(-1)?.process.sockets, [2]);
});

test('connections that failed, and those within the VM, are none', () => {
  const run = new SyntheticRun();
  const shell = run
    .step('x')
    .connect('127.0.0.1', 5432, { fd: 3 })
    .connect('192.0.2.1', 1, { fd: 4, result: -111 });
  shell.call('dup2', [4n, 0n], 0n).exec('/bin/sh', ['sh']);
  const events = candidatesOf(run.events());
  assert.deepEqual(of(events, 'exec').at(-1)?.process.sockets, []);
  assert.deepEqual(
    of(events, 'connect').map(({ connect }) => connect.host),
    ['192.0.2.1'],
  );
});

test('whose memory is reached for: its own, that of what it started, or of others', () => {
  const run = new SyntheticRun();
  const other = run.step('other');
  const debuggerOf = run.step('gdb').spawn('/usr/bin/gdb', ['gdb']);
  const child = debuggerOf.spawn('/bin/app', ['app']).spawn('/bin/app2', ['app2']);
  const reaches = (pid: number): void => {
    debuggerOf.call('ptrace', [16n, BigInt(pid)]).call('process_vm_readv', [BigInt(pid)], -1n);
    debuggerOf.file('read', `/proc/${pid}/mem`);
  };
  reaches(child.pid);
  reaches(other.pid);
  reaches(1);
  debuggerOf.file('read', '/proc/self/mem').file('read', `/proc/${debuggerOf.pid}/mem`);
  debuggerOf.call('ptrace', [0n, 0n]).call('ptrace', [2n, BigInt(other.pid)]);
  const events = candidatesOf(run.events());
  assert.deepEqual(
    of(events, 'syscall').map(({ syscall }) => [syscall.name, syscall.target]),
    [
      ['ptrace', 'descendant'],
      ['process_vm_readv', 'descendant'],
      ['ptrace', 'other'],
      ['process_vm_readv', 'other'],
    ],
  );
  assert.deepEqual(
    of(events, 'file').map(({ file }) => file.target),
    ['descendant', 'other', 'other', 'self', 'self'],
  );
});

test('programs are called by the script that an interpreter runs', () => {
  const run = new SyntheticRun();
  npmCi(run);
  run.step('x').spawn('/usr/bin/node', ['node', '-e', '1']).file('read', '/a');
  const names = candidatesOf(run.events()).map(({ process }) => process.program);
  assert.ok(names.includes('npm'));
  assert.equal(names.at(-1), 'node');
});

test('a user that becomes another one by what it runs shows as such', () => {
  const run = new SyntheticRun();
  const shell = run.step('x');
  const events = run.events();
  const exec = events.find(({ kind }) => kind === 'exec');
  assert.ok(exec?.kind === 'exec');
  const later = { ...exec, timeNs: exec.timeNs + 1n, uid: 0, binary: '/tmp/root' };
  const found = of(candidatesOf([...events, later]), 'exec').at(-1);
  assert.deepEqual([found?.exec.earlier, found?.process.uid], [{ uid: 1000, binary: '/bin/sh' }, 0]);
  assert.ok(shell.pid > 0);
});

test('the same again is judged once', () => {
  const run = new SyntheticRun();
  const shell = run.step('x');
  for (let round = 0; round < 100; round += 1) shell.file('write', '/etc/crontab');
  assert.equal(of(candidatesOf(run.events()), 'file').length, 1);
});

test('of ordinary system calls none waits, and a build with threads of others is no error', () => {
  const run = new SyntheticRun();
  makeBuild(run);
  const stranger = new Actor(run, { pid: 9999, startedNs: 1n }, 0);
  stranger.call('read', [3n]).call('close', [3n]).call('dup2', [3n, 0n]).call('ptrace', [16n, 5n]);
  const events = run.events();
  assert.equal(of(candidatesOf(events), 'syscall').length, 1);
});

test('what was refused is judged however much else waits, with its digest and command line', () => {
  const run = new SyntheticRun();
  const shell = run.step('x').connect('192.0.2.1', 1);
  const [close] = new SyntheticRunCalls(shell.pid).events();
  assert.ok(close);
  const candidates = new Candidates(() => undefined);
  for (let round = 0; round < MAX_WAITING + 10; round += 1) candidates.add(close);
  const before = candidates.missed;
  shell.denied('exec', '/tmp/x', 'ab'.repeat(32));
  const refused = run.events().find(({ kind }) => kind === 'denied');
  assert.ok(refused);
  candidates.add(refused);
  assert.equal(candidates.missed, before);
  const [found] = of(
    candidates.take(true).map(({ event }) => event),
    'denied',
  ).map(({ denied }) => denied);
  assert.deepEqual([found?.path, found?.refused, found?.digest], ['/tmp/x', true, 'ab'.repeat(32)]);
});

test('a guest that floods is bounded, and what was passed over is counted', () => {
  const run = new SyntheticRun();
  const shell = run.step('x').connect('192.0.2.1', 1);
  const [close] = new SyntheticRunCalls(shell.pid).events();
  assert.ok(close);
  const candidates = new Candidates(() => undefined);
  for (const event of run.events()) candidates.add(event);
  for (let round = 0; round < MAX_WAITING + 1000; round += 1) candidates.add(close);
  assert.ok(candidates.missed >= 1000);
  candidates.take();
  const before = candidates.missed;
  candidates.add(close);
  assert.equal(candidates.missed, before, 'there is room again');
});

class SyntheticRunCalls extends SyntheticRun {
  constructor(pid: number) {
    super();
    new Actor(this, { pid, startedNs: 0n }, 0).call('close', [3n]);
  }
}
