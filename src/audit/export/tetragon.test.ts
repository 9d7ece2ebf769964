import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  encodeSyscall,
  makeBuild,
  npmCi,
  reverseShell,
  SyntheticRun,
} from '../../../test/support/audit-run.ts';
import { schemaProblems } from '../../../test/support/tetragon-schema.ts';
import { DeniedWhat, FileWhat, SyscallFlag } from '../../protocol/audit.ts';
import type { DeniedName, FileName } from '../records.ts';
import { TetragonLines } from './tetragon.ts';

type Fields = Readonly<Record<string, unknown>>;

interface Line {
  readonly [kind: string]: unknown;
  readonly node_name: string;
  readonly time: string;
}

const OFFSET_NS = 1_800_000_000_123_456_789n;

function lines(run: SyntheticRun, syscalls = false): Line[] {
  const renderer = new TetragonLines({ nodeName: 'ct-run', clockOffsetNs: OFFSET_NS, syscalls });
  const text = run
    .events()
    .map((event) => renderer.render(event))
    .join('');
  assert.ok(text === '' || text.endsWith('\n'));
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Line);
}

/** The events of one kind, without what surrounds them. */
function ofKind(all: readonly Line[], kind: string): Fields[] {
  return all.flatMap((line) => (kind in line ? [fields(line[kind])] : []));
}

function fields(value: unknown): Fields {
  assert.ok(typeof value === 'object' && value !== null);
  return value as Fields;
}

function everything(): SyntheticRun {
  const run = new SyntheticRun();
  makeBuild(run);
  npmCi(run);
  reverseShell(run);
  const shell = run.step('odd');
  // All that there are: one that is added has to be thought of.
  for (const what of Object.keys(DeniedWhat) as DeniedName[]) {
    shell.denied(what, what === 'bpf' ? '' : '/tmp/x', what === 'exec' ? 'cd'.repeat(32) : '');
  }
  for (const what of Object.keys(FileWhat) as FileName[]) shell.file(what, '/etc/x', 0o4755);
  for (const address of ['192.0.2.1', '2001:db8::1']) {
    for (const protocol of [6, 17]) shell.connect(address, 443, { protocol });
  }
  shell.call('mmap', [0n, 4096n, 3n, 34n, 2n ** 64n - 1n, 5n], -12n);
  shell.call('getpid', [], 9n, 77_777);
  run.add(
    'syscall',
    encodeSyscall({ timeNs: 2n ** 64n - 1n, thread: 2 ** 32 - 1, number: 65_535, flags: SyscallFlag.compat }),
  );
  shell.killed(9);
  return run;
}

test('every line of every kind of run is what the schema of Tetragon accepts', () => {
  const all = lines(everything(), true);
  assert.ok(all.length > 70, `${all.length} lines`);
  const kinds = new Set(all.map((line) => Object.keys(line)[0]));
  assert.deepEqual([...kinds].sort(), [
    'process_exec',
    'process_exit',
    'process_kprobe',
    'process_lsm',
    'process_tracepoint',
  ]);
  for (const line of all) assert.deepEqual(schemaProblems(line), [], JSON.stringify(line));
});

test('the check of the schema finds what is wrong with a line', () => {
  const [good] = lines(everything());
  const wrong: [object, RegExp][] = [
    [{ ...good, time: '2026-01-31 09:00' }, /event\.time: no time/],
    [{ ...good, process_lsm: {} }, /at once/],
    [{ process_exec: { process: { pid: '1' } } }, /pid: no uint32/],
    [{ process_exec: { process: { execId: 'x' } } }, /no such field/],
    [{ process_kprobe: { args: [{ size_arg: 1 }] } }, /size_arg: no uint64/],
    [{ process_kprobe: { args: [{ size_arg: '1', int_arg: 1 }] } }, /size_arg and int_arg at once/],
    [{ process_lsm: { action: 'DENY' } }, /no KprobeAction/],
  ];
  for (const [line, problem] of wrong) assert.match(schemaProblems(line).join(), problem);
});

test('process_exec has ids in the form of Tetragon, and each parent has been told before', () => {
  const run = new SyntheticRun();
  makeBuild(run);
  const all = lines(run);
  const known = new Set<string>();
  for (const event of ofKind(all, 'process_exec')) {
    const [process, parent] = [fields(event['process']), fields(event['parent'])];
    const id = String(process['exec_id']);
    assert.match(Buffer.from(id, 'base64').toString(), /^ct-run:[0-9]+:[0-9]+$/);
    assert.equal(parent['exec_id'], process['parent_exec_id']);
    if (process['binary'] !== '/bin/sh')
      assert.ok(known.has(String(parent['exec_id'])), String(process['binary']));
    known.add(id);
  }
  assert.ok(known.size >= 11);
});

test('process_exec says what was run, when and by whom, and its digest follows as process_lsm', () => {
  const run = new SyntheticRun();
  run
    .step('x')
    .spawn('/bin/cat', ['cat', 'a b', '', 'c"d', 'plain'], { cwd: '/tmp', digest: 'ef'.repeat(32) });
  const all = lines(run);
  const process = fields(ofKind(all, 'process_exec')[1]?.['process']);
  assert.equal(process['arguments'], '"a b" "" "c\\"d" plain');
  assert.equal(process['cwd'], '/tmp');
  assert.equal(process['flags'], 'execve');
  assert.equal(process['uid'], 1000);
  assert.match(String(process['start_time']), /^2027-01-15T08:00:05\.[0-9]{6}789Z$/);
  const [lsm] = ofKind(all, 'process_lsm');
  assert.equal(lsm?.['ima_hash'], `sha256:${'ef'.repeat(32)}`);
  assert.equal(lsm?.['action'], 'KPROBE_ACTION_POST');
});

test('process_exit has the status, or the name of the signal', () => {
  const run = new SyntheticRun();
  run.step('a').exit(3);
  run.step('b').killed(9);
  run.step('c').killed(40);
  const exits = ofKind(lines(run), 'process_exit').map(({ status, signal }) => [status, signal]);
  assert.deepEqual(exits, [
    [3, undefined],
    [undefined, 'SIGKILL'],
    [undefined, '40'],
  ]);
});

test('system calls are there only if asked for, with ABI, result and all arguments', () => {
  const run = new SyntheticRun();
  const shell = run.step('x');
  shell.call('mmap', [0n, 4096n, 3n, 34n, 2n ** 64n - 1n, 5n], -12n);
  const flags = SyscallFlag.compat | SyscallFlag.atEntry;
  run.add('syscall', encodeSyscall({ timeNs: 1n, thread: shell.pid, number: 11, flags }));
  assert.equal(ofKind(lines(run), 'process_tracepoint').length, 0);
  const [mmap, execve] = ofKind(lines(run, true), 'process_tracepoint');
  assert.deepEqual(mmap?.['args'], [
    { syscall_id: { id: 9, abi: 'x64' } },
    { long_arg: '-12', label: 'ret' },
    ...['0', '4096', '3', '34', '18446744073709551615', '5'].map((size_arg) => ({ size_arg })),
  ]);
  assert.deepEqual([mmap?.['subsys'], mmap?.['event']], ['raw_syscalls', 'sys_exit']);
  assert.equal(fields(mmap?.['process'])['binary'], '/bin/sh');
  assert.equal(execve?.['event'], 'sys_enter');
  assert.deepEqual(fields(execve?.['args'])[0], { syscall_id: { id: 11, abi: 'i386' } });
});

test('a thread nobody saw before is marked as missed; one that clone returned belongs to its process', () => {
  const run = new SyntheticRun();
  const shell = run.step('x');
  shell.call('getpid', [], 1n, 500).call('clone3', [], 501n).call('getpid', [], 1n, 501);
  const [missed, , thread] = ofKind(lines(run, true), 'process_tracepoint').map(({ process }) =>
    fields(process),
  );
  assert.deepEqual([missed?.['flags'], missed?.['pid'], missed?.['binary']], ['miss', 500, undefined]);
  assert.deepEqual([thread?.['tid'], thread?.['pid'], thread?.['binary']], [501, shell.pid, '/bin/sh']);
});

test('denials are process_lsm with the hook, the digest and what was done', () => {
  const run = new SyntheticRun();
  run.step('x').denied('library', '/tmp/evil.so', 'ab'.repeat(32));
  const [{ process: _, parent: __, ...denial } = {}] = ofKind(lines(run), 'process_lsm');
  assert.deepEqual(denial, {
    function_name: 'mmap_file',
    policy_name: 'ct.exec',
    message: 'library denied',
    args: [{ file_arg: { path: '/tmp/evil.so' } }],
    action: 'KPROBE_ACTION_OVERRIDE',
    ima_hash: `sha256:${'ab'.repeat(32)}`,
  });
});

test('strings of the guest cannot leave their line', () => {
  const run = new SyntheticRun();
  run.step('x').spawn('/tmp/a\n{"process_exec":{}}\u2028\u0000', ['a', '\r\n"\\']);
  const all = lines(run);
  assert.equal(all.length, 2);
  for (const line of all) assert.deepEqual(schemaProblems(line), []);
});
