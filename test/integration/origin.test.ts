import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { findOrigin, repositoryOf } from '../../src/cli/origin.ts';
import { scratchDirectory } from '../support/scratch.ts';

const PATH = process.env['PATH'] ?? '';

test('a work tree tells repository, ref and commit; the actor is the account', async () => {
  using scratch = scratchDirectory();
  const env = { PATH, HOME: scratch.path, USER: 'somebody-else' };
  const git = (...args: string[]): string =>
    execFileSync('git', ['-C', scratch.path, ...args], { env, encoding: 'utf8' }).trim();
  const actor = userInfo().username;
  git('init', '--quiet', '--initial-branch', 'topic/x');
  assert.deepEqual(await findOrigin(scratch.path, env), { trust: 'local', ref: 'refs/heads/topic/x', actor });
  git('remote', 'add', 'origin', 'https://bob:hunter22@forge.example/Team/App.git');
  git('-c', 'user.name=x', '-c', 'user.email=x@example.org', 'commit', '--quiet', '--allow-empty', '-m', 'x');
  const below = join(scratch.path, 'below');
  mkdirSync(below);
  const commit = git('rev-parse', 'HEAD');
  assert.deepEqual(await findOrigin(below, env), {
    trust: 'local',
    repository: 'team/app',
    ref: 'refs/heads/topic/x',
    commit,
    actor,
  });
  git('checkout', '--quiet', '--detach');
  assert.equal((await findOrigin(below, env)).ref, undefined);
});

test('without git, without a work tree, and with a git that hangs on to nothing there is only the user', async () => {
  using scratch = scratchDirectory();
  const only = { trust: 'local', actor: userInfo().username };
  assert.deepEqual(await findOrigin(scratch.path, { PATH, HOME: scratch.path }), only);
  assert.deepEqual(await findOrigin(scratch.path, { PATH: '/nonexistent' }), only);
  const flood = join(scratch.path, 'git');
  writeFileSync(flood, '#!/bin/sh\nexec /usr/bin/yes\n');
  chmodSync(flood, 0o755);
  assert.deepEqual(await findOrigin(scratch.path, { PATH: `${scratch.path}:/usr/bin:/bin` }), only);
});

test('repositories are told by owner and name, whatever the form of the URL, and never with a password', () => {
  for (const remote of [
    'https://forge.example/Owner/Name.git',
    'https://bob:hunter22@forge.example:8443/Owner/Name/',
    'https://forge.example/owner/name?token=hunter22',
    'git@forge.example:Owner/Name.git',
    'forge.example:owner/name',
    'ssh://git@forge.example:2222/owner/name.git',
    'git://forge.example/owner/name',
  ]) {
    assert.equal(repositoryOf(remote), 'owner/name', remote);
  }
  assert.equal(repositoryOf('https://forge.example/Group/Sub/Name.git'), 'group/sub/name');
  for (const remote of [
    '/srv/git/name.git',
    '../name',
    'file:///srv/owner/name',
    'https://forge.example/name',
    'x',
  ]) {
    assert.equal(repositoryOf(remote), undefined, remote);
  }
});
