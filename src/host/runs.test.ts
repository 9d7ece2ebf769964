import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { CtError } from '../core/errors.ts';
import type { JobRequest } from '../protocol/run.ts';
import { Runs } from './runs.ts';
import { answerRuns, shellReference } from './runs-api.ts';

const SUCCESS = { outcome: 'success', exitCode: 0 } as const;

function scratch(): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(tmpdir(), 'ct-runs-'));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

function request(name = 'build', over: Partial<JobRequest> = {}): JobRequest {
  const step = {
    name: 'compile',
    argv: ['true'],
    env: {},
    workingDirectory: '.',
    condition: 'success',
  } as const;
  return {
    name,
    image: `sha256:${'0'.repeat(64)}`,
    cpus: 1,
    memoryMib: 512,
    diskMib: 1024,
    env: {},
    steps: [step],
    timeoutMs: 1000,
    artifacts: [],
    sendsTree: false,
    ...over,
  };
}

test('a run goes through its states, never back, and its first end counts', () => {
  using directory = scratch();
  const runs = new Runs({ ctHome: directory.path });
  const run = runs.begin(request());
  assert.ok(existsSync(run.logDirectory));
  for (const [enter, expected] of [
    ['claiming', 'claiming'],
    ['running', 'running'],
    ['staging', 'running'],
    ['destroying', 'destroying'],
    ['collecting', 'destroying'],
  ] as const) {
    run.enter(enter);
    assert.equal(runs.detail(run.id).state, expected);
  }
  run.end(SUCCESS);
  run.end({ outcome: 'infrastructure', exitCode: 125 });
  run.enter('destroying');
  run.step(0, { state: 'running' });
  const { state, outcome, exitCode, durationMs, steps } = runs.detail('latest');
  assert.deepEqual([state, outcome, exitCode, steps[0]?.state], ['ended', 'success', 0, 'skipped']);
  assert.ok(durationMs !== undefined && durationMs >= 0);
  runs.close();
});

for (const state of ['queued', 'claiming', 'staging', 'running', 'collecting'] as const) {
  test(`a run that overstays in ${state} is told to end with RUN_${state.toUpperCase()}_OVERDUE`, async () => {
    using directory = scratch();
    const runs = new Runs({ ctHome: directory.path, deadlineMs: (s) => (s === state ? 20 : 60_000) });
    const run = runs.begin(request());
    if (state !== 'queued') run.enter(state);
    await new Promise((resolve) => run.signal.addEventListener('abort', resolve));
    assert.equal(run.signal.reason.code, `RUN_${state.toUpperCase()}_OVERDUE`);
    assert.equal(runs.detail(run.id).state, state, 'whoever works on it ends it');
    run.end(SUCCESS);
    runs.close();
  });
}

test('a run that overstays in destroying is ended on the spot: nothing else would', async () => {
  using directory = scratch();
  const runs = new Runs({ ctHome: directory.path, deadlineMs: (s) => (s === 'destroying' ? 20 : 60_000) });
  const run = runs.begin(request());
  run.enter('destroying');
  await new Promise((resolve) => run.signal.addEventListener('abort', resolve));
  await new Promise((resolve) => setImmediate(resolve));
  const { state, outcome, error } = runs.detail(run.id);
  assert.deepEqual([state, outcome, error?.code], ['ended', 'infrastructure', 'RUN_DESTROYING_OVERDUE']);
  runs.close();
});

test('a record that cannot be written stops no run; its end is recorded when it can be', async () => {
  using directory = scratch();
  const complaints: unknown[] = [];
  const runs = new Runs({ ctHome: directory.path, onWriteError: (error) => complaints.push(error) });
  const run = runs.begin(request());
  const other = new DatabaseSync(join(directory.path, 'host.db'));
  other.exec('BEGIN IMMEDIATE');
  run.enter('claiming');
  run.step(0, { state: 'running' });
  runs.begin(request('unrecorded')).end(SUCCESS);
  run.end(SUCCESS, { durationMs: 1, removed: [] });
  run.destroyed({ durationMs: 2, removed: [] });
  assert.ok(complaints.length >= 4 && complaints.every((error) => /locked/.test(String(error))));
  assert.equal(runs.detail(run.id).state, 'queued');
  other.exec('ROLLBACK');
  other.close();
  await new Promise((resolve) => setTimeout(resolve, 2500));
  const { state, outcome, destruction } = runs.detail(run.id);
  assert.deepEqual([state, outcome, destruction?.durationMs], ['ended', 'success', 2]);
  runs.close();
});

test('a state that is left in time has no deadline any more', async () => {
  using directory = scratch();
  const runs = new Runs({ ctHome: directory.path, deadlineMs: (s) => (s === 'claiming' ? 30 : 60_000) });
  const run = runs.begin(request());
  run.enter('claiming');
  run.enter('running');
  await new Promise((resolve) => setTimeout(resolve, 60));
  assert.equal(run.signal.aborted, false);
  run.end(SUCCESS);
  runs.close();
});

test('runs that a daemon leaves behind are infrastructure failures, and say what they were doing', () => {
  using directory = scratch();
  const before = new Runs({ ctHome: directory.path });
  const [queued, running, ended] = [
    before.begin(request('a')),
    before.begin(request('b')),
    before.begin(request('c')),
  ];
  running.enter('running');
  running.step(0, { state: 'running' });
  ended.end(SUCCESS);
  before.close(); // as a kill would, as far as the file knows

  const after = new Runs({ ctHome: directory.path });
  assert.deepEqual(
    [queued, running, ended].map(({ id }) => {
      const { outcome, exitCode, error } = after.detail(id);
      return [outcome, exitCode, error?.code];
    }),
    [
      ['infrastructure', 125, 'HOST_DIED'],
      ['infrastructure', 125, 'HOST_DIED'],
      ['success', 0, undefined],
    ],
  );
  assert.match(after.detail(queued.id).error?.message ?? '', /never had a VM/);
  assert.match(after.detail(running.id).error?.message ?? '', /steps of the run were running/);
  assert.equal(after.detail(running.id).durationMs, undefined);
  assert.equal(after.detail(running.id).steps[0]?.state, 'interrupted');
  after.close();
});

test('runs are named by id, job, `latest`, and by a beginning or end that only one has', () => {
  using directory = scratch();
  const runs = new Runs({ ctHome: directory.path });
  const [first, second] = [runs.begin(request('build')), runs.begin(request('build'))];
  const lint = runs.begin(request('lint'));
  assert.equal(runs.resolve(first.id), first.id);
  assert.equal(runs.resolve('build'), second.id);
  assert.equal(runs.resolve('latest'), lint.id);
  assert.equal(runs.resolve(first.id.slice(-4)), first.id);
  assert.throws(() => runs.resolve(first.id.slice(0, 3)), { code: 'RUN_AMBIGUOUS' });
  for (const unknown of ['', 'test', '../../etc', '%', first.id.toUpperCase()]) {
    assert.throws(() => runs.resolve(unknown), { code: 'RUN_NOT_FOUND' }, unknown);
  }
  runs.close();
});

test('cancel aborts a run that is under way, and leaves one that has ended as it is', () => {
  using directory = scratch();
  const runs = new Runs({ ctHome: directory.path });
  const run = runs.begin(request());
  assert.equal(runs.cancel('build').state, 'queued');
  assert.ok(run.signal.reason instanceof CtError && run.signal.reason.code === 'CANCELLED');
  run.end(SUCCESS);
  assert.equal(runs.cancel('build').outcome, 'success');
  runs.close();
});

test('rm removes record and log of a run that has ended, and of no other', async () => {
  using directory = scratch();
  const runs = new Runs({ ctHome: directory.path });
  const run = runs.begin(request());
  await assert.rejects(runs.remove(run.id), { code: 'RUN_NOT_ENDED' });
  run.end(SUCCESS);
  writeFileSync(join(run.logDirectory, 'log-00000'), 'x');
  await runs.remove(run.id);
  assert.equal(existsSync(run.logDirectory), false);
  assert.throws(() => runs.detail(run.id), { code: 'RUN_NOT_FOUND' });
  runs.close();
});

test('retention keeps the newest, runs that are under way, and no log without a run', async () => {
  using directory = scratch();
  const runs = new Runs({ ctHome: directory.path });
  const busy = runs.begin(request());
  const [old, young] = [runs.begin(request()), runs.begin(request())];
  for (const run of [old, young]) run.end(SUCCESS);
  writeFileSync(join(old.logDirectory, 'log-00000'), 'x'.repeat(1000));
  const stray = join(directory.path, 'runs', 'stray');
  mkdirSync(stray);
  writeFileSync(join(stray, 'log-00000'), 'y'.repeat(10));
  assert.deepEqual(await runs.retain({ keep: 1 }), { removed: [old.id], freedBytes: 1010 });
  assert.deepEqual(readdirSync(join(directory.path, 'runs')).sort(), [busy.id, young.id].sort());
  assert.deepEqual(await runs.retain({ maxAgeDays: 1 }), { removed: [], freedBytes: 0 });
  busy.end(SUCCESS);
  assert.equal((await runs.retain({ keep: 0 })).removed.length, 2);
  runs.close();
});

test('the API answers with runs, with errors as errors, and leaves other paths alone', async () => {
  using directory = scratch();
  const runs = new Runs({ ctHome: directory.path });
  const run = runs.begin(request('npm test'));
  const body = async (method: string, path: string): Promise<unknown> =>
    (await answerRuns(method, path, runs))?.body;
  assert.deepEqual(await body('GET', '/v1/runs'), { runs: runs.list(false) });
  assert.deepEqual(await body('GET', '/v1/runs/npm%20test'), runs.detail(run.id));
  assert.equal(((await body('POST', `/v1/runs/${run.id}/cancel`)) as { run: string }).run, run.id);
  for (const [method, path, status] of [
    ['GET', '/v1/runs/none', 404],
    ['DELETE', `/v1/runs/${run.id}`, 409],
    ['POST', '/v1/gc?keep=-1', 500],
    ['GET', '/v1/runs/%ff', 500],
  ] as const) {
    assert.equal((await answerRuns(method, path, runs))?.status, status, `${method} ${path}`);
  }
  run.end(SUCCESS);
  assert.equal((await answerRuns('DELETE', `/v1/runs/${run.id}`, runs))?.status, 200);
  assert.deepEqual(await body('GET', '/v1/runs?all=1'), { runs: [] });
  for (const [method, path] of [
    ['GET', '/v1/other'],
    ['PUT', '/v1/runs'],
    ['POST', '/v1/runs/a/b/c'],
    ['GET', '/v1/runs/a/cancel'],
  ] as const) {
    assert.equal(await answerRuns(method, path, runs), undefined, `${method} ${path}`);
  }
  runs.close();
});

test('a shell is taken only while the job runs in its VM, and is on record before', () => {
  using directory = scratch();
  const runs = new Runs({ ctHome: directory.path });
  const run = runs.begin(request());
  const socket = new Socket();
  const refusal = (message: RegExp): ((error: CtError) => boolean) => {
    return ({ code, message: text, hint }) =>
      code === 'SHELL_UNAVAILABLE' && message.test(text) && hint !== undefined;
  };
  assert.throws(() => runs.shellOf('none'), { code: 'RUN_NOT_FOUND' });
  assert.throws(() => runs.shellOf('build'), refusal(/has no VM yet/));
  const uid = 4711;
  const taken: unknown[] = [];
  run.shells = (_, pending, by) => taken.push([pending.toString(), by, runs.detail(run.id).shells?.length]);
  const accept = runs.shellOf('build');
  assert.equal(runs.detail(run.id).shells, undefined);
  accept(socket, Buffer.from('p'), uid);
  assert.deepEqual(taken, [['p', uid, 1]]);
  assert.equal(runs.detail(run.id).shells?.[0]?.uid, uid);

  const other = new DatabaseSync(join(directory.path, 'host.db'));
  other.exec('BEGIN IMMEDIATE');
  assert.throws(() => accept(socket, Buffer.alloc(0), uid), refusal(/could not be put on record: .*locked/));
  other.exec('ROLLBACK');
  other.close();
  assert.equal(taken.length, 1);

  run.enter('destroying');
  run.shells = undefined;
  assert.throws(() => accept(socket, Buffer.alloc(0), uid), refusal(/is being destroyed/));
  run.end(SUCCESS);
  assert.throws(() => runs.shellOf(run.id), refusal(/has ended, and its VM with it/));
  assert.equal(runs.detail(run.id).shells?.length, 1);
  runs.close();
});

test('a request for a shell is told from others by method and path', () => {
  assert.equal(shellReference('POST', '/v1/runs/npm%20test/shell'), 'npm test');
  for (const path of [
    '/v1/runs/a/cancel',
    '/v1/runs//shell',
    '/v1/runs/a/b/shell',
    '/v1/runs/%/shell',
    '/v1/jobs',
  ]) {
    assert.equal(shellReference('POST', path), undefined, path);
  }
  assert.equal(shellReference('GET', '/v1/runs/a/shell'), undefined);
});
