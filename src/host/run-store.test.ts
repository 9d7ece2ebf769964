import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { type NewRun, RunStore } from './run-store.ts';

function scratch(): Disposable & { readonly path: string; readonly file: string } {
  const path = mkdtempSync(join(tmpdir(), 'ct-store-'));
  return {
    path,
    file: join(path, 'host.db'),
    [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }),
  };
}

const shape = { cpus: 1, memoryMib: 512, diskMib: 1024 };

function newRun(run: string, over: Partial<NewRun> = {}): NewRun {
  return {
    run,
    job: 'build',
    imageDigest: 'sha256:0',
    shape,
    steps: ['one', 'two'],
    createdAtMs: 1000,
    ...over,
  };
}

test('a run is kept from its beginning to its end, and is there when the file is opened again', () => {
  using directory = scratch();
  const store = RunStore.open(directory.file);
  store.create(newRun('a1'));
  assert.deepEqual(store.list('unended'), [
    {
      run: 'a1',
      job: 'build',
      state: 'queued',
      image: { digest: 'sha256:0' },
      shape,
      createdAtMs: 1000,
      stateSinceMs: 1000,
    },
  ]);
  store.setState('a1', 'claiming', 1010);
  const vm = { source: 'clone', accelerator: 'tcg', vmm: 'qemu 7.2', pid: 7, claimMs: 12.5 } as const;
  store.setVm('a1', vm, 'debian-12');
  store.setState('a1', 'running', 1030);
  store.setStep('a1', 0, { state: 'failure', exitCode: 3, durationMs: 7.25 });
  store.setStep('a1', 9, { state: 'success' });
  const error = { code: 'JOB_FAILED', message: 'step “one” failed', hint: 'look' } as const;
  const destruction = { durationMs: 4, removed: [{ what: 'vmm', proof: 'process 1 was reaped' }] } as const;
  store.end('a1', { nowMs: 1100, durationMs: 100, outcome: 'failure', exitCode: 3, error, destruction });
  store.close();

  const again = RunStore.open(directory.file);
  assert.deepEqual(again.detail('a1'), {
    run: 'a1',
    job: 'build',
    state: 'ended',
    image: { digest: 'sha256:0', name: 'debian-12' },
    shape,
    createdAtMs: 1000,
    stateSinceMs: 1100,
    durationMs: 100,
    outcome: 'failure',
    exitCode: 3,
    error,
    vm,
    steps: [
      { name: 'one', state: 'failure', exitCode: 3, durationMs: 7.25 },
      { name: 'two', state: 'skipped' },
    ],
    statesMs: { queued: 10, claiming: 20, running: 70 },
    destruction,
  });
  assert.deepEqual(again.list('unended'), []);
  again.close();
});

test('where nobody saw the end, no duration is made up, and a step that ran counts as interrupted', () => {
  using directory = scratch();
  const store = RunStore.open(directory.file);
  store.create(newRun('a1'));
  store.setState('a1', 'running', 1020);
  store.setStep('a1', 0, { state: 'running' });
  store.end('a1', { nowMs: 99_000, outcome: 'infrastructure', exitCode: 125 });
  const detail = store.detail('a1');
  assert.equal(detail?.durationMs, undefined);
  assert.deepEqual(detail?.statesMs, { queued: 20 });
  assert.deepEqual(
    detail?.steps.map(({ state }) => state),
    ['interrupted', 'skipped'],
  );
  store.close();
});

test('lists are newest first, also within a millisecond; names and parts of ids are found', () => {
  using directory = scratch();
  const store = RunStore.open(directory.file);
  store.create(newRun('aa11', { createdAtMs: 5 }));
  store.create(newRun('aa22', { createdAtMs: 7, job: 'test' }));
  store.create(newRun('ab33', { createdAtMs: 7 }));
  assert.deepEqual(
    store.list('all').map(({ run }) => run),
    ['ab33', 'aa22', 'aa11'],
  );
  assert.equal(store.latest(), 'ab33');
  assert.equal(store.latest('test'), 'aa22');
  assert.equal(store.latest('lint'), undefined);
  assert.deepEqual(store.matching('aa'), ['aa22', 'aa11']);
  assert.deepEqual(store.matching('33'), ['ab33']);
  for (const odd of ['%', '_', "'", 'aa11%', '\0']) assert.deepEqual(store.matching(odd), [], odd);
  store.close();
});

test('retention finds ended runs only: those beyond a number, and those that are too old', () => {
  using directory = scratch();
  const store = RunStore.open(directory.file);
  for (let i = 1; i <= 5; i++) store.create(newRun(`r${i}`, { createdAtMs: i * 100 }));
  for (const run of ['r2', 'r3', 'r4', 'r5']) {
    store.end(run, { nowMs: 900, durationMs: 1, outcome: 'success', exitCode: 0 });
  }
  assert.deepEqual(store.expired(2, 0), ['r3', 'r2']);
  assert.deepEqual(store.expired(10, 300), ['r2']);
  assert.equal(store.remove('r1'), false, 'it has not ended');
  assert.equal(store.remove('r2'), true);
  assert.equal(store.detail('r2'), undefined);
  store.close();
});

test('a failed creation leaves nothing', () => {
  using directory = scratch();
  const store = RunStore.open(directory.file);
  store.create(newRun('a1'));
  assert.throws(() => store.create(newRun('a1', { steps: ['x'] })));
  assert.deepEqual(
    store.detail('a1')?.steps.map(({ name }) => name),
    ['one', 'two'],
  );
  store.create(newRun('a2'));
  store.close();
});

test('a file that is damaged or of a later version is set aside, and the record begins anew', () => {
  for (const spoil of [
    (file: string) =>
      writeFileSync(file, 'not a database, but long enough to be looked at as one. '.repeat(40)),
    (file: string) => {
      const database = new DatabaseSync(file);
      database.exec('PRAGMA user_version = 99');
      database.close();
    },
  ]) {
    using directory = scratch();
    spoil(directory.file);
    const before = readFileSync(directory.file);
    let why = '';
    const store = RunStore.open(directory.file, (reason) => {
      why = reason;
    });
    assert.match(why, /database|version 99/);
    assert.deepEqual(store.list('all'), []);
    store.create(newRun('a1'));
    store.close();
    assert.equal(readFileSync(`${directory.file}.unusable`).length, before.length);
    assert.equal(statSync(directory.file).mode & 0o777, 0o600);
  }
});
