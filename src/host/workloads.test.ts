import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseWorkloadMs } from './workloads.ts';

test('the time of a workload is read from its line, and from nothing else', () => {
  assert.equal(parseWorkloadMs('noise\nworkload-us 1234567\nsum 5\n'), 1234.567);
  for (const output of [
    '',
    'workload-us',
    'workload-us -5',
    'x workload-us 5',
    `workload-us ${'9'.repeat(30)}`,
    'workload-us 1e9',
  ]) {
    assert.equal(parseWorkloadMs(output), undefined, output);
  }
});
