import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseCpuList } from './bench-container.ts';

test('lists of cpus are ranges and single ones', () => {
  assert.deepEqual(parseCpuList('0'), [0]);
  assert.deepEqual(parseCpuList('0-2,5'), [0, 1, 2, 5]);
  assert.deepEqual(parseCpuList('3,8-9'), [3, 8, 9]);
});
