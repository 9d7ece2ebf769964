import assert from 'node:assert/strict';
import { test } from 'node:test';
import { explainUnknown, outOfSpace, parseSimulation } from './apt.ts';

test('what apt would install is read from its simulation', () => {
  const output = [
    'Inst libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64]) []',
    'Inst git (1:2.39.5-0+deb12u3 Debian:12.15/oldstable, Debian-Security:12/oldstable-security [amd64])',
    'Inst adduser [3.100] (3.134 Debian:12.15/oldstable [all])',
    'Conf libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64])',
  ].join('\n');
  assert.deepEqual(parseSimulation(output), [
    { name: 'adduser', version: '3.134', architecture: 'all' },
    { name: 'git', version: '1:2.39.5-0+deb12u3', architecture: 'amd64' },
    { name: 'libc6', version: '2.36-9+deb12u14', architecture: 'amd64' },
  ]);
});

test('a full disk is recognised in the output of apt and dpkg', () => {
  assert.equal(outOfSpace('dpkg: error: failed to write: No space left on device\n')?.code, 'STORE_FULL');
  assert.equal(outOfSpace("E: You don't have enough free space in /x/.\n")?.code, 'STORE_FULL');
  assert.equal(outOfSpace('E: Unable to locate package x\n'), undefined);
});

test('a package or version that does not exist is IMAGE_DEFINITION_INVALID', () => {
  const explain = (message: string) =>
    explainUnknown(`apt-get failed: it exited with 100\nE: ${message}`, 'bookworm');
  assert.equal(explain('Unable to locate package gti')?.message, 'Debian bookworm has no package `gti`');
  assert.equal(
    explain("Package 'x' has no installation candidate")?.message,
    'Debian bookworm has no package `x`',
  );
  assert.equal(
    explain("Version '9' for 'git' was not found")?.message,
    'Debian bookworm has no package `git=9`',
  );
  assert.equal(explain('Unable to correct problems, you have held broken packages.'), undefined);
});
