import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Capacity } from './capacity.ts';

const never = new AbortController().signal;
const ignore = (): void => {};

test('a job that fits starts at once, one that does not waits until another gives back', async () => {
  const capacity = new Capacity({ cpus: 2, memoryMib: 1000 });
  const first = await capacity.take({ cpus: 2, memoryMib: 100 }, never, ignore);
  let queued = false;
  const second = capacity.take({ cpus: 1, memoryMib: 100 }, never, () => {
    queued = true;
  });
  assert.equal(queued, true);
  assert.equal(capacity.waiting, 1);
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  (await second)[Symbol.dispose]();
  assert.equal(capacity.waiting, 0);
  // Giving back twice has not made capacity out of nothing.
  const third = await capacity.take({ cpus: 2, memoryMib: 1000 }, never, ignore);
  const fourth = capacity.take({ cpus: 1, memoryMib: 1 }, never, ignore);
  assert.equal(capacity.waiting, 1);
  third[Symbol.dispose]();
  await fourth;
});

test('a small job does not overtake a large one that waits', async () => {
  const capacity = new Capacity({ cpus: 2, memoryMib: 1000 });
  const running = await capacity.take({ cpus: 1, memoryMib: 1 }, never, ignore);
  const order: string[] = [];
  const large = capacity.take({ cpus: 2, memoryMib: 1 }, never, ignore).then((taken) => {
    order.push('large');
    taken[Symbol.dispose]();
  });
  const small = capacity.take({ cpus: 1, memoryMib: 1 }, never, ignore).then(() => order.push('small'));
  running[Symbol.dispose]();
  await Promise.all([large, small]);
  assert.deepEqual(order, ['large', 'small']);
});

test('take rejects with RESOURCES_EXCEED_HOST when the host could never run the job', async () => {
  const capacity = new Capacity({ cpus: 2, memoryMib: 1000 });
  await assert.rejects(capacity.take({ cpus: 1, memoryMib: 1001 }, never, ignore), {
    code: 'RESOURCES_EXCEED_HOST',
  });
  await assert.rejects(capacity.take({ cpus: 3, memoryMib: 1 }, never, ignore), {
    code: 'RESOURCES_EXCEED_HOST',
  });
});

test('an aborted job leaves the queue and lets the next one through', async () => {
  const capacity = new Capacity({ cpus: 2, memoryMib: 1000 });
  const running = await capacity.take({ cpus: 1, memoryMib: 1 }, never, ignore);
  const controller = new AbortController();
  const large = capacity.take({ cpus: 2, memoryMib: 1 }, controller.signal, ignore);
  const small = capacity.take({ cpus: 1, memoryMib: 1 }, never, ignore);
  const reason = new Error('gone');
  controller.abort(reason);
  await assert.rejects(large, reason);
  (await small)[Symbol.dispose]();
  running[Symbol.dispose]();
});
