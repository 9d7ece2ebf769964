import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileName, parseRecords, sourceOf } from './packages.ts';

test('file names escape the colon of an epoch, as apt does', () => {
  assert.equal(
    fileName({ name: 'git', version: '1:2.39.5-0+deb12u3', architecture: 'amd64' }),
    'git_1%3a2.39.5-0+deb12u3_amd64.deb',
  );
});

test('records are read from apt-cache with digest and source; one without a digest is none', () => {
  const output = [
    'Package: a\nVersion: 1:2-3+b1\nArchitecture: amd64\nSource: b (1:2-3)\nDescription: x\n y\nSHA256: ab12\n',
    'Package: c\nVersion: 1\nArchitecture: all\nMD5sum: 00\n',
  ].join('\n');
  assert.deepEqual(
    [...parseRecords(output)],
    [
      [
        'a=1:2-3+b1',
        {
          ...{ name: 'a', version: '1:2-3+b1', architecture: 'amd64', sha256: 'ab12' },
          ...{ source: 'b', sourceVersion: '1:2-3' },
        },
      ],
    ],
  );
});

test('a source package has the name and version of the package unless the field says otherwise', () => {
  assert.deepEqual(sourceOf(undefined, 'git', '1'), { source: 'git', sourceVersion: '1' });
  assert.deepEqual(sourceOf('util-linux', 'mount', '2'), { source: 'util-linux', sourceVersion: '2' });
  assert.deepEqual(sourceOf('gcc-12 (12.2-3)', 'cpp', '4:12'), { source: 'gcc-12', sourceVersion: '12.2-3' });
});
