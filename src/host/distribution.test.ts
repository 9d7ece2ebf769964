import assert from 'node:assert/strict';
import { test } from 'node:test';
import { distribution, ratio } from './distribution.ts';

test('percentiles are samples by nearest rank, whatever the order', () => {
  const samples = Array.from({ length: 20 }, (_, index) => 20 - index);
  assert.deepEqual(distribution(samples), { p50: 10, p95: 19, min: 1, max: 20 });
  assert.deepEqual(distribution([3, 1, 2]), { p50: 2, p95: 3, min: 1, max: 3 });
});

test('of one sample every percentile is that sample, rounded to a tenth', () => {
  assert.deepEqual(distribution([12.345]), { p50: 12.3, p95: 12.3, min: 12.3, max: 12.3 });
});

test('the samples stay in their order', () => {
  const samples = [2, 1];
  distribution(samples);
  assert.deepEqual(samples, [2, 1]);
});

test('a ratio is that of the medians, rounded to a hundredth', () => {
  assert.equal(ratio(distribution([10, 20, 900]), distribution([15, 15, 15])), 1.33);
  assert.equal(ratio(distribution([7]), distribution([7])), 1);
});
