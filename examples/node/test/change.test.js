import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseChange } from '../src/change.js';

test('a change has a kind and a text', () => {
  assert.deepEqual(parseChange('a.yml', 'kind: fixed\ntext: |\n  No more crash.\n'), {
    kind: 'fixed',
    text: 'No more crash.',
  });
});

test('an unknown kind or an empty text is an error that names the file', () => {
  assert.throws(() => parseChange('a.yml', 'kind: broken\ntext: x\n'), /^Error: a\.yml: kind must be one of/);
  assert.throws(() => parseChange('b.yml', 'kind: fixed\ntext: " "\n'), /^Error: b\.yml: text is missing/);
  assert.throws(() => parseChange('c.yml', ''), /^Error: c\.yml: kind/);
});
