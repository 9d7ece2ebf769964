import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DEMAND_WINDOW_MS, KEEP_WARM_MS, type Poolable, WarmPool } from './pool.ts';

class FakeMachine implements Poolable {
  readonly shape: string;
  readonly #gone = Promise.withResolvers<void>();
  destroyed = 0;

  constructor(shape: string) {
    this.shape = shape;
  }

  get ended(): Promise<void> {
    return this.#gone.promise;
  }

  die(): void {
    this.#gone.resolve();
  }

  async destroy(): Promise<void> {
    this.destroyed++;
    this.#gone.resolve();
  }
}

function makePool(maxItems = 10, fill?: (shape: string) => Promise<FakeMachine>) {
  const clock = { now: 1 };
  const made: FakeMachine[] = [];
  const errors: unknown[] = [];
  const pool = new WarmPool<string, FakeMachine>({
    keyOf: (shape) => shape,
    maxItems,
    fill:
      fill ??
      (async (shape) => {
        const machine = new FakeMachine(shape);
        made.push(machine);
        return machine;
      }),
    onFillError: (error) => errors.push(error),
    now: () => clock.now,
  });
  return { pool, clock, made, errors };
}

test('the first job of a shape finds nothing, the second a warm machine, and never the same twice', async () => {
  const { pool } = makePool();
  assert.equal(pool.take('a'), undefined);
  pool.refill();
  await pool.settled();
  const first = pool.take('a');
  assert.equal(first?.shape, 'a');
  pool.refill();
  await pool.settled();
  assert.notEqual(pool.take('a'), first);
});

test('the pool holds as many as were asked for at the same time, and no more than its budget', async () => {
  const { pool, clock } = makePool(3);
  for (let i = 0; i < 5; i++) pool.take('a');
  pool.refill();
  await pool.settled();
  assert.equal(pool.size, 3);
  await pool.forget('a');
  pool.take('a');
  pool.take('a');
  clock.now += DEMAND_WINDOW_MS + 1;
  pool.take('a');
  pool.refill();
  await pool.settled();
  assert.equal(pool.size, 1);
});

test('a shape that nobody asks for any more is given up', async () => {
  const { pool, clock, made } = makePool();
  pool.take('a');
  pool.refill();
  await pool.settled();
  clock.now += KEEP_WARM_MS + 1;
  pool.take('b');
  pool.refill();
  await pool.settled();
  assert.deepEqual(
    made.map(({ shape, destroyed }) => [shape, destroyed]),
    [
      ['a', 1],
      ['b', 0],
    ],
  );
});

test('a burst of one shape leaves room for another, once it is over', async () => {
  const { pool, clock, made } = makePool(3);
  for (let i = 0; i < 5; i++) pool.take('a');
  pool.refill();
  await pool.settled();
  pool.take('b');
  pool.refill();
  await pool.settled();
  assert.equal(pool.take('b'), undefined, 'all of the burst may still be wanted');
  clock.now += DEMAND_WINDOW_MS + 1;
  pool.take('b');
  pool.refill();
  await pool.settled();
  assert.equal(pool.size, 3);
  assert.equal(pool.take('b')?.shape, 'b');
  assert.equal(made.filter(({ destroyed }) => destroyed > 0).length, 1);
});

test('a machine that dies in the pool is cleaned up and not handed out', async () => {
  const { pool, made } = makePool();
  pool.take('a');
  pool.refill();
  await pool.settled();
  made[0]?.die();
  await new Promise(setImmediate);
  assert.equal(made[0]?.destroyed, 1);
  assert.equal(pool.take('a'), undefined);
});

test('a failure to fill is reported once and not repeated at once', async () => {
  const { pool, errors } = makePool(10, () => Promise.reject(new Error('no memory')));
  pool.take('a');
  pool.refill();
  await pool.settled();
  pool.refill();
  await pool.settled();
  assert.equal(errors.length, 1);
});

test('close destroys what is ready, and what is being filled', async () => {
  const gate = Promise.withResolvers<FakeMachine>();
  const { pool } = makePool(10, () => gate.promise);
  pool.take('a');
  pool.refill();
  const closing = pool.close();
  const machine = new FakeMachine('a');
  gate.resolve(machine);
  await closing;
  assert.equal(machine.destroyed, 1);
  assert.equal(pool.size, 0);
});

test('what is given up of several shapes is gone, also what was being made meanwhile; others stay', async () => {
  const wait = Promise.withResolvers<void>();
  const made: FakeMachine[] = [];
  const { pool } = makePool(10, async (shape) => {
    const machine = new FakeMachine(shape);
    made.push(machine);
    if (made.length === 3) await wait.promise;
    return machine;
  });
  for (const shape of ['bad/1', 'good/1']) pool.take(shape);
  pool.refill();
  await pool.settled();
  pool.take('bad/2');
  pool.refill(); // and hangs
  const givenUp = pool.forgetAll((shape) => shape.startsWith('bad/'));
  wait.resolve();
  await givenUp;
  await pool.settled();
  assert.deepEqual(made.map(({ shape, destroyed }) => [shape, destroyed]).sort(), [
    ['bad/1', 1],
    ['bad/2', 1],
    ['good/1', 0],
  ]);
  assert.equal(pool.take('bad/1'), undefined);
  assert.equal(pool.take('good/1')?.shape, 'good/1');
});
