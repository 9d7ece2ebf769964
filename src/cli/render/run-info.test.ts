import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { RunDetail, RunInfo } from '../../host/client.ts';
import { UNSTYLED } from './format.ts';
import { inspectJson, inspectPage, runJson, runTable } from './run-info.ts';

const RUNNING: RunInfo = {
  run: 'n1',
  job: 'build\u001b[2J\nspoof',
  state: 'running',
  image: { digest: `sha256:${'a'.repeat(64)}`, name: 'debian-12' },
  shape: { cpus: 1, memoryMib: 512, diskMib: 1024 },
  createdAtMs: 1000,
  stateSinceMs: 2000,
};

const ENDED: RunDetail = {
  ...RUNNING,
  state: 'ended',
  stateSinceMs: 4500,
  durationMs: 3500,
  outcome: 'failure',
  exitCode: 3,
  error: { code: 'JOB_FAILED', message: 'step “a\u001b[31m” failed' },
  vm: { source: 'clone', accelerator: 'tcg', vmm: 'qemu 7.2', pid: 7, claimMs: 9 },
  steps: [{ name: 'a\u0007', state: 'failure', exitCode: 3, durationMs: 1500 }],
  statesMs: { queued: 1 },
  destruction: { durationMs: 4, removed: [{ what: 'vmm', proof: 'process 7 was reaped' }] },
  logDirectory: '/home/ct/runs/n1',
};

test('JSON of a run has every key, null where nothing is known', () => {
  assert.deepEqual(runJson(RUNNING, 3250), {
    run: 'n1',
    job: RUNNING.job,
    state: 'running',
    outcome: null,
    exit: null,
    error: null,
    image: 'debian-12',
    started: '1970-01-01T00:00:01.000Z',
    ended: null,
    duration: 2.25,
  });
  const { outcome, exit, error, ended, duration } = runJson(ENDED, 99_999);
  assert.deepEqual(
    [outcome, exit, error, ended, duration],
    ['failure', 3, 'JOB_FAILED', '1970-01-01T00:00:04.500Z', 3.5],
  );
  const { durationMs: _, ...unseen } = ENDED;
  assert.deepEqual([runJson(unseen, 99_999).ended, runJson(unseen, 99_999).duration], [null, null]);
});

test('the table and the page are lines of ours, whatever names contain', () => {
  const table = runTable([RUNNING, ENDED], 3250);
  assert.equal(table.split('\n').length, 4);
  assert.match(table, /^RUN {2}JOB .*\nn1 {3}build\[2J spoof {2}running .* 2\.3 s .*\nn1 .* failure {2}3 /);
  const page = inspectPage(ENDED, UNSTYLED, 0);
  assert.match(page, /\nstep 1 +a: failure, exit code 3, 1\.5 s\n/);
  assert.match(page, /\n {2}vmm +process 7 was reaped\n/);
  assert.match(page, /\nerror\[JOB_FAILED\]: step “a\[31m” failed\n$/);
  assert.doesNotMatch(table + page, /(?!\n)\p{Cc}/u);
});

test('the document of inspect keeps what the table shortens', () => {
  const document = inspectJson(ENDED, 0);
  assert.deepEqual(document['error'], ENDED.error);
  assert.deepEqual(document['image'], ENDED.image);
  assert.deepEqual(document['destruction'], ENDED.destruction);
  assert.deepEqual(document['shells'], []);
  const withShell = { ...ENDED, shells: [{ openedAtMs: 1_700_000_000_000, uid: 1000 }] };
  assert.deepEqual(inspectJson(withShell, 0)['shells'], [{ opened: '2023-11-14T22:13:20.000Z', uid: 1000 }]);
  assert.match(inspectPage(withShell, UNSTYLED, 0), /\nshell +opened 2023-11-1\d .* by user 1000\n/);
  const { vm: _, destruction: __, error: ___, ...bare } = ENDED;
  const unknown = inspectJson(bare, 0);
  assert.deepEqual([unknown['vm'], unknown['destruction'], unknown['error']], [null, null, null]);
});
