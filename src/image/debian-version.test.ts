import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
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

/** A generator of its own (mulberry32): a failure must come again. */
function randomNumbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

test('dpkg itself has the same order for thousands of pairs', {
  skip: hasDpkg ? false : 'dpkg is not installed',
}, () => {
  const random = randomNumbers(20_250_101);
  const pick = <T>(list: readonly T[]): T => list[random(list.length)] as T;
  const piece = (): string =>
    pick([
      '0',
      '1',
      '9',
      '10',
      '00',
      '007',
      '12',
      'a',
      'b',
      'Z',
      '.',
      '+',
      '~',
      '~~',
      '-',
      'rc',
      'deb12u',
      '+b',
      '99999999999999999999',
    ]);
  const version = (): string => {
    const body = `${random(10)}${Array.from({ length: random(6) }, piece).join('')}`;
    const epoch = random(4) === 0 ? `${random(3)}:` : '';
    const revision =
      random(2) === 0
        ? `-${random(3)}${Array.from({ length: random(3) }, piece)
            .join('')
            .replaceAll('-', '')}`
        : '';
    return `${epoch}${body}${revision}`.replace(/-$/, '-1');
  };
  const pairs = Array.from({ length: 3000 }, () => {
    const a = version();
    // Near neighbours are where orders differ.
    const at = a.indexOf(':') + 2 + random(a.length - a.indexOf(':') - 1);
    const near = `${a.slice(0, at)}${piece()}${a.slice(at)}`.replace(/-$/, '-1');
    return [a, random(2) === 0 ? version() : near] as const;
  });
  // One process for all: the shell only loops over its arguments.
  const script =
    'while [ $# -gt 0 ]; do if dpkg --compare-versions "$1" lt "$2"; then echo -1; elif dpkg --compare-versions "$1" eq "$2"; then echo 0; else echo 1; fi; shift 2; done';
  const answers: number[] = [];
  for (let at = 0; at < pairs.length; at += 500) {
    const output = execFileSync('sh', ['-c', script, 'sh', ...pairs.slice(at, at + 500).flat()], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    answers.push(...output.trim().split('\n').map(Number));
  }
  assert.equal(answers.length, pairs.length);
  for (const [index, [a, b]] of pairs.entries()) {
    assert.equal(Math.sign(compareDebianVersions(a, b)), answers[index], `${a} and ${b}`);
  }
  assert.deepEqual([...new Set(answers)].sort(), [-1, 0, 1]);
});
