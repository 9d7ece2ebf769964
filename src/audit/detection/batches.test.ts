import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeBuild, npmCi, reverseShell, SyntheticRun } from '../../../test/support/audit-run.ts';
import { batches, MAX_BATCH_BYTES, MAX_BATCH_EVENTS, parseBatch, type SentCandidate } from './batches.ts';
import { type Candidate, Candidates } from './candidates.ts';

function candidatesOf(act: (run: SyntheticRun) => void): Candidate[] {
  const run = new SyntheticRun();
  act(run);
  const candidates = new Candidates(() => undefined);
  for (const event of run.events()) candidates.add(event);
  return candidates.take(true);
}

const every = candidatesOf((run) => {
  makeBuild(run);
  npmCi(run);
  reverseShell(run);
  const shell = run.step('x').denied('library', '/tmp/x.so').file('read', '/proc/1/mem');
  shell.call('ptrace', [16n, 1n]).spawn('/bin/x', ['x'], { digest: 'ab'.repeat(32) });
});

const sentOf = (candidates: readonly Candidate[]): SentCandidate[][] =>
  JSON.parse(JSON.stringify(batches(candidates))) as SentCandidate[][];

test('what is sent arrives as it was, in order', () => {
  const kinds = new Set(every.map(({ event }) => event.kind));
  assert.deepEqual([...kinds].sort(), ['connect', 'denied', 'exec', 'file', 'syscall']);
  assert.deepEqual(
    sentOf(every).flatMap((batch) => parseBatch(batch) ?? []),
    every,
  );
});

test('the largest events fit: every batch is bounded in number and bytes', () => {
  const large = candidatesOf((run) => {
    let shell = run.step('x');
    for (let index = 0; index < 200; index += 1) {
      const path = `/${'\x01'.repeat(3800)}${index}`;
      shell = shell.spawn(path, ['a', ...Array<string>(1500).fill('\x01')], { cwd: '/' });
      shell.file('write', path);
    }
  });
  assert.ok(large.length > 350);
  const sent = batches(large);
  for (const batch of sent) {
    assert.ok(batch.length <= MAX_BATCH_EVENTS);
    assert.ok(Buffer.byteLength(JSON.stringify(batch)) <= MAX_BATCH_BYTES + 2);
    assert.ok(parseBatch(JSON.parse(JSON.stringify(batch))));
  }
  assert.deepEqual(batches([]), []);
});

test('what the host itself has found about packages arrives, and nothing that resembles it', () => {
  const process = { binary: '', program: '', uid: 0, sockets: [], connections: [] };
  const packages = { manager: 'npm', problem: 'changed', path: 'package-lock.json' } as const;
  const candidate: Candidate = {
    event: { kind: 'packages', packages, process },
    timeNs: 0n,
    process: { pid: 0, startedNs: 0n },
  };
  assert.deepEqual(parseBatch(sentOf([candidate])[0]), [candidate]);
  const [[sent] = []] = sentOf([candidate]);
  for (const change of [{ problem: 'other' }, { path: 'x'.repeat(5000) }, { manager: 1 }, { more: 1 }]) {
    const event = { ...sent?.event, packages: { ...packages, ...change } };
    assert.equal(parseBatch([{ ...sent, event }]), undefined, JSON.stringify(change).slice(0, 100));
  }
});

test('a batch that is none is refused', () => {
  const [good = []] = sentOf(every);
  const [first] = good;
  assert.ok(first && parseBatch([first]));
  const { event, ...rest } = first;
  const inProcess = (change: object): unknown => ({
    ...rest,
    event: { ...event, process: { ...event.process, ...change } },
  });
  const inExec = (change: object): unknown => ({
    ...rest,
    event: { ...event, exec: { path: '/x', args: [], ...change } },
  });
  assert.ok(event.kind === 'exec' && parseBatch([inExec({})]) && parseBatch([inProcess({})]));
  const wrong: unknown[] = [
    null,
    {},
    [],
    [null],
    Array(MAX_BATCH_EVENTS + 1).fill(first),
    [{ ...first, more: 1 }],
    [{ ...first, time_ns: 5 }],
    [{ ...first, time_ns: '-1' }],
    [{ ...first, pid: 1.5 }],
    [{ ...first, event: null }],
    [{ ...first, event: { ...event, kind: 'constructor' } }],
    [{ ...first, event: { ...event, kind: 'file' } }],
    [{ ...first, event: { ...event, more: 1 } }],
    [inProcess({ uid: -1 })],
    [inProcess({ sockets: [3] })],
    [inProcess({ sockets: [0, 1, 2, 0] })],
    [inProcess({ connections: Array(9).fill('a:1') })],
    [inProcess({ parent: null })],
    [inProcess({ binary: 'x'.repeat(5000) })],
    [inExec({ path: 1 })],
    [inExec({ args: [1] })],
    [inExec({ args: ['x'.repeat(9000)] })],
    [inExec({ args: Array(300).fill('') })],
    [inExec({ digest: 'AB' })],
    [inExec({ constructor: 1 })],
  ];
  for (const value of wrong) assert.equal(parseBatch(value), undefined, JSON.stringify(value)?.slice(0, 200));
});
