import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { syscallName, syscallNumber } from './syscalls.ts';
import { namesOf } from './write-syscalls.ts';

const HEADERS = '/usr/include/x86_64-linux-gnu/asm';

test('numbers have the names of the two tables of x86', () => {
  assert.equal(syscallName(257), 'openat');
  assert.equal(syscallName(5, true), 'open');
  assert.equal(syscallName(5), 'fstat');
  assert.equal(syscallNumber('execve'), 59);
  assert.equal(syscallNumber('execve', true), 11);
});

test('numbers without a call have no name, names without a call no number', () => {
  for (const number of [-1, 400, 65_535, 1.5]) assert.equal(syscallName(number), undefined);
  for (const name of ['', '-', 'socketcall', '__proto__']) assert.equal(syscallNumber(name), undefined);
});

for (const [file, isCompat] of [
  ['unistd_64.h', false],
  ['unistd_32.h', true],
] as const) {
  const header = `${HEADERS}/${file}`;
  const skip = existsSync(header) ? false : `${header} is not installed`;
  test(`what ${file} of this machine defines has the same number here, unless it is newer`, { skip }, () => {
    const names = namesOf(readFileSync(header, 'utf8'));
    assert.ok(names.length > 400, `only ${names.length} found`);
    for (const [number, name] of names.entries()) {
      const ours = syscallName(number, isCompat);
      if (name === '' || (ours === undefined && number > 450)) continue;
      assert.equal(ours, name, `number ${number}`);
    }
  });
}
