import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatLock, type ImageLock, lockDigest, parseLock } from './lock-file.ts';

const entry = (name: string, version = '1.0-1') => ({
  ...{ name, version, architecture: 'amd64', sha256: 'a'.repeat(64) },
  ...{ source: name, sourceVersion: version },
});
const LOCK: ImageLock = {
  ...{
    lockVersion: 1,
    name: 'ci',
    definition: `sha256:${'b'.repeat(64)}`,
    base: 'debian',
    suite: 'bookworm',
  },
  ...{ architecture: 'amd64', builder: { ct: '0.1.0', rootfsRecipe: 2, initramfsRecipe: 1 } },
  ...{ guestAgent: `sha256:${'c'.repeat(64)}`, kernel: entry('linux-image-6.1.0-1-cloud-amd64') },
  npm: [{ name: '@a/b', version: '2.0.0-rc.1', integrity: `sha512-${'A'.repeat(86)}==` }],
  packages: [entry('bash'), entry('git', '1:2.39.5-0+deb12u3')],
};

test('a lock is read as it was written, with one package per line', () => {
  const text = formatLock(LOCK);
  assert.deepEqual(parseLock(text, 'x'), LOCK);
  assert.equal(formatLock(parseLock(text, 'x')), text);
  assert.equal(text.split('\n').filter((line) => line.includes('"name": "git"')).length, 1);
  assert.match(text, /\n$/);
  const empty = { ...LOCK, npm: [], packages: [] };
  assert.deepEqual(parseLock(formatLock(empty), 'x'), empty);
});

test('the digest of a lock is that of its packages: who made it does not count', () => {
  const other = {
    ...LOCK,
    builder: { ...LOCK.builder, ct: '9.9.9' },
    guestAgent: `sha256:${'0'.repeat(64)}`,
  };
  assert.equal(lockDigest(other), lockDigest(LOCK));
  assert.notEqual(lockDigest({ ...LOCK, packages: [entry('bash', '2')] }), lockDigest(LOCK));
  assert.notEqual(lockDigest({ ...LOCK, kernel: entry('other') }), lockDigest(LOCK));
});

test('what is not exactly a lock is IMAGE_LOCK_INVALID, and the message says where', () => {
  const change = (edit: (lock: Record<string, unknown>) => void): string => {
    const copy = JSON.parse(formatLock(LOCK)) as Record<string, unknown>;
    edit(copy);
    return JSON.stringify(copy);
  };
  const cases: readonly (readonly [string, RegExp])[] = [
    ['', /JSON/],
    ['[]', /the lock is not an object/],
    ['null', /the lock is not an object/],
    [
      change((lock) => Object.assign(lock, { lockVersion: 2 })),
      /it has version 2, and this ct knows version 1/,
    ],
    [change((lock) => Object.assign(lock, { mirror: 'x' })), /the lock has an unknown key `mirror`/],
    [change((lock) => delete lock['kernel']), /the lock has no `kernel`/],
    [change((lock) => Object.assign(lock, { name: '../x' })), /the lock: name is not of the right form/],
    [change((lock) => Object.assign(lock, { packages: {} })), /`packages` is not a list/],
    [
      change((lock) => Object.assign(lock, { packages: [entry('git'), entry('bash')] })),
      /bash is out of order/,
    ],
    [
      change((lock) => Object.assign(lock, { packages: [entry('git'), entry('git')] })),
      /git is out of order, or there twice/,
    ],
    [
      change((lock) => Object.assign(lock, { packages: [{ ...entry('git'), sha256: 'A'.repeat(64) }] })),
      /package 1: sha256/,
    ],
    [
      change((lock) => Object.assign(lock, { packages: [{ ...entry('git'), version: '1 2' }] })),
      /package 1: version/,
    ],
    [
      change((lock) => Object.assign(lock, { packages: [{ ...entry('git'), name: '-o' }] })),
      /package 1: name/,
    ],
    [
      change((lock) => Object.assign(lock, { packages: [{ ...entry('git'), url: 'x' }] })),
      /package 1 has an unknown key `url`/,
    ],
    [
      change((lock) => Object.assign(lock, { npm: [{ name: 'a', version: '1.0.0', integrity: 'sha1-x' }] })),
      /npm package 1: integrity/,
    ],
    [
      change((lock) => Object.assign(lock, { builder: { ct: '1', rootfsRecipe: -1, initramfsRecipe: 1 } })),
      /`builder`: rootfsRecipe/,
    ],
  ];
  for (const [text, message] of cases) {
    assert.throws(
      () => parseLock(text, 'ci.lock.json'),
      { code: 'IMAGE_LOCK_INVALID', message, hint: /ct image lock/ },
      text,
    );
  }
});
