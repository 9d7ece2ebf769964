import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { compareDebianVersions } from './debian-version.ts';

/** In order; entries of one line are equal. */
const ORDER: readonly (readonly string[])[] = [
  ['1.0~~'],
  ['1.0~~a'],
  ['1.0~beta1~svn1245'],
  ['1.0~beta1'],
  ['1.0', '1.0-0', '0:1.0', '01.0', '1.00'],
  ['1.0-1~deb12u1'],
  ['1.0-1'],
  ['1.0-1+b1'],
  ['1.0-1+deb12u1'],
  ['1.0-1+deb12u2'],
  ['1.0-1+deb12u10'],
  ['1.0-1.1'],
  ['1.0a'],
  ['1.0+dfsg-1'],
  ['1.0.1'],
  ['1.2-3-1'],
  ['1.2-3-10'],
  ['1.10'],
  ['2.0z'],
  ['2.0+1'],
  ['99999999999999999998'],
  ['99999999999999999999'],
  ['1:0.1'],
  ['2:0'],
];

test('versions are in the order of deb-version(7)', () => {
  for (const [i, line] of ORDER.entries()) {
    for (const [j, other] of ORDER.entries()) {
      for (const a of line)
        for (const b of other) {
          assert.equal(Math.sign(compareDebianVersions(a, b)), Math.sign(i - j), `${a} and ${b}`);
        }
    }
  }
});

const hasDpkg = spawnSync('dpkg', ['--version'], { stdio: 'ignore' }).status === 0;

test('dpkg itself has the same order', { skip: hasDpkg ? false : 'dpkg is not installed' }, () => {
  // dpkg's numbers are those of C: the longest above are none of its.
  const versions = ORDER.flat().filter((version) => !/[0-9]{10}/.test(version));
  const pieces = ['0', '1', '10', 'a', 'z', '~', '+', '.', '-', 'rc', '~rc', '+b', '.0'];
  for (let seed = 1; versions.length < 100; seed = (seed * 48_271) % 2_147_483_647) {
    const tail = Array.from(
      { length: 1 + (seed % 5) },
      (_, at) => pieces[(seed >> (3 * at)) % pieces.length],
    );
    versions.push(`1${tail.join('')}`.replace(/-$/, ''));
  }
  let pairs = 0;
  for (const [at, a] of versions.entries()) {
    const b = versions[(at * 7 + 3) % versions.length] ?? '';
    const relation = ['lt', 'eq', 'gt'][Math.sign(compareDebianVersions(a, b)) + 1] ?? '';
    const { status } = spawnSync('dpkg', ['--compare-versions', a, relation, b]);
    assert.equal(status, 0, `${a} ${relation} ${b}`);
    pairs += 1;
  }
  assert.equal(pairs, versions.length);
});
