import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CtError } from '../core/errors.ts';
import type { JobResult } from '../protocol/run.ts';
import type { PlannedJob } from './plan.ts';
import { type JobEnd, runPlan } from './schedule.ts';

const SUCCESS: JobResult = { outcome: 'success', exitCode: 0 };
const FAILURE: JobResult = { outcome: 'failure', exitCode: 1 };

function job(name: string, options: Partial<PlannedJob> = {}): PlannedJob {
  return {
    name,
    needs: [],
    image: 'debian-12',
    cpus: 1,
    memoryMib: 1024,
    diskMib: 1024,
    env: {},
    steps: [],
    timeoutMs: 1000,
    artifacts: [],
    directory: name,
    ...options,
  };
}

/** Jobs that end when the test says so, and a record of what started and ended. */
class FakeHost {
  readonly log: string[] = [];
  readonly #running = new Map<string, PromiseWithResolvers<JobResult>>();

  readonly runOne = (planned: PlannedJob, signal: AbortSignal): Promise<JobResult> => {
    this.log.push(`+${planned.name}`);
    const ended = Promise.withResolvers<JobResult>();
    this.#running.set(planned.name, ended);
    signal.addEventListener('abort', () => ended.resolve({ outcome: 'cancelled', exitCode: 130 }));
    return ended.promise;
  };

  readonly onEnd = (planned: PlannedJob, end: JobEnd): void => {
    this.log.push(`${end.state === 'ran' ? '-' : end.state === 'skipped' ? '!' : 'x'}${planned.name}`);
  };

  async finish(name: string, result: JobResult | Error = SUCCESS): Promise<void> {
    const ended = this.#running.get(name);
    assert.ok(ended, `${name} is not running`);
    if (result instanceof Error) ended.reject(result);
    else ended.resolve(result);
    // Everything that follows from it happens in microtasks.
    await new Promise((resolve) => setImmediate(resolve));
  }
}

const capacity = { cpus: 2, memoryMib: 4096 };

test('independent jobs run side by side, and one starts when all it needs have succeeded', async () => {
  const host = new FakeHost();
  const jobs = [job('a'), job('b'), job('c', { needs: ['a', 'b'] })];
  const done = runPlan({ jobs }, { capacity, ...host, signal: new AbortController().signal });
  assert.deepEqual(host.log, ['+a', '+b']);
  await host.finish('b');
  assert.deepEqual(host.log, ['+a', '+b', '-b']);
  await host.finish('a');
  assert.deepEqual(host.log.slice(3), ['-a', '+c']);
  await host.finish('c');
  assert.deepEqual([...(await done).keys()], ['a', 'b', 'c']);
});

test('cpus and memory are never exceeded, and a small job may pass a large one', async () => {
  const host = new FakeHost();
  const jobs = [job('a'), job('large', { cpus: 2 }), job('b'), job('fat', { memoryMib: 4096 })];
  const done = runPlan({ jobs }, { capacity, ...host, signal: new AbortController().signal });
  assert.deepEqual(host.log, ['+a', '+b']);
  await host.finish('a');
  assert.deepEqual(host.log, ['+a', '+b', '-a']);
  await host.finish('b');
  assert.deepEqual(host.log.slice(3), ['-b', '+large']);
  await host.finish('large');
  assert.deepEqual(host.log.slice(5), ['-large', '+fat']);
  await host.finish('fat');
  await done;
});

test('a job larger than the host runs alone rather than never', async () => {
  const host = new FakeHost();
  const jobs = [job('a'), job('huge', { cpus: 99 })];
  const done = runPlan({ jobs }, { capacity, ...host, signal: new AbortController().signal });
  await host.finish('a');
  await host.finish('huge');
  assert.deepEqual(host.log, ['+a', '-a', '+huge', '-huge']);
  await done;
});

test('a failed job skips its dependents, which name it, and the others go on', async () => {
  const host = new FakeHost();
  const jobs = [job('a'), job('b', { needs: ['a'] }), job('c', { needs: ['b'] }), job('d')];
  const done = runPlan({ jobs }, { capacity, ...host, signal: new AbortController().signal });
  await host.finish('a', FAILURE);
  await host.finish('d');
  const ends = await done;
  assert.deepEqual(ends.get('b'), { state: 'skipped', because: 'a' });
  assert.deepEqual(ends.get('c'), { state: 'skipped', because: 'a' });
  assert.deepEqual(ends.get('d'), { state: 'ran', result: SUCCESS });
  assert.deepEqual(host.log, ['+a', '+d', '-a', '!b', '!c', '-d']);
});

test('a rejection becomes a result with the outcome of its kind', async () => {
  const host = new FakeHost();
  const jobs = [job('a'), job('b')];
  const done = runPlan({ jobs }, { capacity, ...host, signal: new AbortController().signal });
  await host.finish('a', new CtError('VMM_DIED', 'it died'));
  await host.finish('b', new CtError('JOB_TIMEOUT', 'too long'));
  const ends = await done;
  assert.deepEqual(ends.get('a'), {
    state: 'ran',
    result: { outcome: 'infrastructure', exitCode: 125, error: { code: 'VMM_DIED', message: 'it died' } },
  });
  assert.equal((ends.get('b') as { result: JobResult }).result.outcome, 'timeout');
});

test('an abort stops what runs, waits for it and starts nothing more', async () => {
  const host = new FakeHost();
  const controller = new AbortController();
  const jobs = [job('a'), job('b', { cpus: 2 }), job('c', { needs: ['a'] })];
  const done = runPlan({ jobs }, { capacity, ...host, signal: controller.signal });
  controller.abort();
  const ends = await done;
  assert.deepEqual(host.log, ['+a', '-a', 'xb', 'xc']);
  assert.equal((ends.get('a') as { result: JobResult }).result.outcome, 'cancelled');
  assert.deepEqual(ends.get('c'), { state: 'cancelled' });
});

test('a run cancelled before it begins starts nothing', async () => {
  const host = new FakeHost();
  const ends = await runPlan({ jobs: [job('a')] }, { capacity, ...host, signal: AbortSignal.abort() });
  assert.deepEqual(host.log, ['xa']);
  assert.deepEqual(ends.get('a'), { state: 'cancelled' });
});
