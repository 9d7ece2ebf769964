import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseOutput } from './bench-egress.ts';
import { lockedPackages } from './bench-registry.ts';

test('figures are read from the lines of the client, and from nothing else', () => {
  const values = parseOutput(
    'phase one 1\ndownload 15\nlatency 3\nlatency 4\nlost -1\ndownload 1e9\n/bin/sh: x 5\n',
  );
  assert.deepEqual(
    [...values],
    [
      ['download', [15]],
      ['latency', [3, 4]],
    ],
  );
});

test('the packages of a lock file are those of its places, scoped ones too, without the project', () => {
  const text = JSON.stringify({
    packages: {
      '': { version: '1.0.0' },
      'node_modules/a': { version: '1.2.3', integrity: 'sha512-a' },
      'node_modules/a/node_modules/@s/b': { version: '4.5.6', integrity: 'sha512-b' },
    },
  });
  assert.deepEqual(lockedPackages(text), [
    { name: 'a', version: '1.2.3', integrity: 'sha512-a' },
    { name: '@s/b', version: '4.5.6', integrity: 'sha512-b' },
  ]);
});
