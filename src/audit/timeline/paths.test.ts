import assert from 'node:assert/strict';
import { test } from 'node:test';
import { absolutePath, isKept, isWithin, withoutChance } from './paths.ts';

test('what is there by chance is replaced', () => {
  const cases: [string, string][] = [
    ['/tmp/ccXqZpLk.s', '/tmp/cc*.s'],
    ['/tmp/ccXqZpLk', '/tmp/cc*'],
    ['/tmp/xyz.ABC123', '/tmp/xyz.*'],
    ['/tmp/tmpa8f_k3zq', '/tmp/tmp*'],
    ['/tmp/tmp.Qx7YpL9a2B/out.o', '/tmp/tmp.*/out.o'],
    ['/tmp/npm-12345/lock', '/tmp/npm-*/lock'],
    ['/tmp/go-build3829173/b001/x', '/tmp/go-build*/b001/x'],
    ['/var/tmp/4fe1a2b3', '/var/tmp/*'],
    ['/proc/4711/oom_score_adj', '/proc/*/oom_score_adj'],
    ['/home/ct/.cache/0a1b2c3d4e5f60718293a4b5c6d7e8f900112233445566778899aabbccddeeff', '/home/ct/.cache/*'],
    ['/home/ct/.npm/_logs/3f2504e0-4f89-11d3-9a0c-0305e82c3301.log', '/home/ct/.npm/_logs/*.log'],
    ['/run/user/1000/x', '/run/user/*/x'],
  ];
  for (const [path, expected] of cases) assert.equal(withoutChance(path), expected);
});

test('what a person may have written stays: a build that writes elsewhere is told', () => {
  for (const path of [
    '/etc/cron.d/update',
    '/home/ct/.ssh/authorized_keys',
    '/usr/local/bin/app',
    '/usr/lib/x86_64-linux-gnu/libssl.so.3',
    '/tmp/build/output.txt',
    '/tmp/Makefile',
    '/tmp/backdoor.so',
    '/home/ct/ccXqZpLk.s',
    '/home/ct/xyz.ABC123',
    '/opt/python3.12/bin/python',
  ]) {
    assert.equal(withoutChance(path), path);
  }
});

test('relative paths start in the working directory, and dots are resolved', () => {
  assert.equal(absolutePath('../etc/x', '/workspace'), '/etc/x');
  assert.equal(absolutePath('/workspace/./a//../b', '/'), '/workspace/b');
  assert.equal(absolutePath('x', ''), 'x');
});

test('a directory that begins alike is another one', () => {
  assert.ok(isWithin('/workspace/a', '/workspace'));
  assert.ok(isWithin('/workspace', '/workspace'));
  assert.equal(isWithin('/workspace-evil/a', '/workspace'), false);
});

test('devices that keep nothing are no files that were written', () => {
  for (const path of ['/dev/null', '/dev/pts/3', '/dev/tty', '/proc/self/fd/1', ''])
    assert.equal(isKept(path), false);
  for (const path of ['/dev/sda', '/dev/null2', '/proc/sys/kernel/core_pattern'])
    assert.ok(isKept(path), path);
});

test('a path of any length and content takes no time to speak of', () => {
  const began = performance.now();
  for (const word of ['a', 'aA1', '-', '0', '/', 'cc', '0a.'])
    withoutChance(`/tmp/${word.repeat(8000 / word.length)}`);
  assert.ok(performance.now() - began < 1000);
});
