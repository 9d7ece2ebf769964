import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Range } from './advisory.ts';
import { fixAfter, isInRanges, orderOf } from './ranges.ts';
import { compareSemver } from './semver.ts';

const debian = orderOf('Debian:12');
const npm = orderOf('npm');

function affected(version: string, ranges: readonly Range[], order = debian): boolean {
  return isInRanges(version, ranges, order);
}

test('a version is affected from where it was introduced up to the fix', () => {
  const range: Range = [
    ['introduced', '1.0-1'],
    ['fixed', '1.2-3+deb12u1'],
  ];
  assert.equal(affected('1.0-1', [range]), true);
  assert.equal(affected('1.2-3', [range]), true);
  assert.equal(affected('1.2-3+deb12u1~rc', [range]), true);
  assert.equal(affected('1.2-3+deb12u1', [range]), false);
  assert.equal(affected('0.9-9', [range]), false);
  assert.equal(affected('1:0.1', [range]), false);
});

test('without a fix all later versions are affected, and `0` comes before every version', () => {
  assert.equal(affected('0~~', [[['introduced', '0']]]), true);
  assert.equal(affected('99:1', [[['introduced', '0']]]), true);
});

test('the last affected version is affected, the next is not', () => {
  const range: Range = [
    ['introduced', '0'],
    ['last_affected', '1.9.9'],
  ];
  assert.equal(affected('1.9.9', [range], npm), true);
  assert.equal(affected('1.9.10', [range], npm), false);
});

test('events count by their version, whatever their order in the feed, and one branch may be fixed twice', () => {
  const range: Range = [
    ['fixed', '2.1.0'],
    ['introduced', '2.0.0'],
    ['fixed', '1.1.0'],
    ['introduced', '1.0.0'],
  ];
  const states = ['0.9.0', '1.0.5', '1.5.0', '2.0.0', '2.1.0'].map((version) =>
    affected(version, [range], npm),
  );
  assert.deepEqual(states, [false, true, false, true, false]);
  assert.equal(fixAfter('1.0.5', [range], npm), '1.1.0');
  assert.equal(fixAfter('2.0.1', [range], npm), '2.1.0');
});

test('a limit ends what a range is about', () => {
  const range: Range = [
    ['introduced', '0'],
    ['limit', '2.0.0'],
  ];
  assert.equal(affected('1.9.9', [range], npm), true);
  assert.equal(affected('2.0.0', [range], npm), false);
  assert.equal(
    affected(
      '9.0.0',
      [
        [
          ['introduced', '0'],
          ['limit', '*'],
        ],
      ],
      npm,
    ),
    true,
  );
});

test('who is in several ranges has to leave all of them', () => {
  const ranges: readonly Range[] = [
    [
      ['introduced', '0'],
      ['fixed', '2.0.0'],
    ],
    [
      ['introduced', '1.0.0'],
      ['fixed', '3.0.0'],
    ],
  ];
  assert.equal(fixAfter('1.5.0', ranges, npm), '3.0.0');
  assert.equal(fixAfter('1.5.0', [...ranges, [['introduced', '0']]], npm), undefined);
});

test('semantic versions are in the order of the specification', () => {
  const versions =
    '1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0 1.0.1 1.2 1.10.0 2.0.0 10.0.0'.split(
      ' ',
    );
  for (const [i, a] of versions.entries()) {
    for (const [j, b] of versions.entries()) {
      assert.equal(Math.sign(compareSemver(a, b)), Math.sign(i - j), `${a} and ${b}`);
    }
  }
  assert.equal(compareSemver('1.0.0+a', '1.0.0+b'), 0);
  assert.ok(compareSemver('not a version', '0.0.0-0') < 0);
});
