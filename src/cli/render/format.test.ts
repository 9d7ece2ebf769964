import assert from 'node:assert/strict';
import { test } from 'node:test';
import { progressBar } from './format.ts';

test('a bar has one width, and no fraction leaves it', () => {
  assert.equal(progressBar(0), '[····················] 0 %');
  assert.equal(progressBar(0.42), '[########············] 42 %');
  assert.equal(progressBar(1), '[####################] 100 %');
  assert.equal(progressBar(-1), progressBar(0));
  assert.equal(progressBar(2), progressBar(1));
});
