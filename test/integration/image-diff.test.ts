/** What a reviewer reads: `ct image diff` of locks in git, and the script of the CI templates. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { formatLock, type ImageLock } from '../../src/image/lock-file.ts';
import { updateDatabase } from '../../src/image/scan/update.ts';
import { affected, osvRecord } from '../fixtures/vuln/records.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';

let scratch: Scratch;
let ct: string;

const entry = (name: string, version: string) => ({
  ...{ name, version, architecture: 'amd64', sha256: 'a'.repeat(64) },
  ...{ source: name, sourceVersion: version },
});

function lockOf(...packages: ImageLock['packages']): string {
  return formatLock({
    ...{
      lockVersion: 1,
      name: 'ci',
      definition: `sha256:${'b'.repeat(64)}`,
      base: 'debian',
      suite: 'bookworm',
    },
    ...{ architecture: 'amd64', builder: { ct: '0.1.0', rootfsRecipe: 2, initramfsRecipe: 1 } },
    ...{
      guestAgent: `sha256:${'c'.repeat(64)}`,
      kernel: entry('linux-image-6.1.0-1-cloud-amd64', '6.1.1-1'),
    },
    ...{ npm: [], packages },
  });
}

function git(...args: readonly string[]): string {
  const identity = ['-c', 'user.name=tester', '-c', 'user.email=tester@example.com'];
  return execFileSync('git', [...identity, ...args], {
    cwd: scratch.path,
    encoding: 'utf8',
    stdio: 'pipe',
  }).trim();
}

function write(path: string, text: string): void {
  mkdirSync(join(scratch.path, path, '..'), { recursive: true });
  writeFileSync(join(scratch.path, path), text);
}

function diff(...args: readonly string[]) {
  const { status, stdout, stderr } = spawnSync(ct, ['image', 'diff', ...args], {
    cwd: scratch.path,
    encoding: 'utf8',
  });
  return { status, stdout, stderr };
}

before(() => {
  scratch = scratchDirectory();
  ct = join(scratch.path, 'ct');
  writeFileSync(ct, `#!/bin/sh\nexec '${process.execPath}' '${join(installRoot, 'src/cli/main.ts')}' "$@"\n`);
  chmodSync(ct, 0o755);
  git('init', '--quiet', '--initial-branch=main');
  write('.ct/images/ci.lock.json', lockOf(entry('git', '1:2.39.5-0+deb12u2'), entry('make', '4.3-4.1')));
  write('.ct/images/gone.lock.json', lockOf(entry('zip', '3.0-13')));
  write('package.lock.json', '{}');
  git('add', '.ct', 'package.lock.json');
  git('commit', '--quiet', '--message=base');
  git('checkout', '--quiet', '-b', 'change');
  write(
    '.ct/images/ci.lock.json',
    lockOf(entry('cmake', '3.25.1-1'), entry('git', '1:2.39.5-0+deb12u3'), entry('make', '4.3-4.1')),
  );
  write('.ct/images/own.lock.json', lockOf(entry('bash', '5.2.15-2')));
  write('package.lock.json', '{"changed":true}');
  git('rm', '--quiet', '.ct/images/gone.lock.json');
  git('add', '.ct', 'package.lock.json');
  git('commit', '--quiet', '--message=change');
  // Commits of others on main are no part of the change.
  git('checkout', '--quiet', 'main');
  write('.ct/images/ci.lock.json', lockOf(entry('git', '1:2.39.5-0+deb12u2')));
  git('commit', '--quiet', '--all', '--message=other');
  git('checkout', '--quiet', 'change');
});
after(() => scratch[Symbol.dispose]());

test('locks of a revision and of the working tree are compared, as Markdown and as JSON', () => {
  const sides = ['git:change~1:.ct/images/ci.lock.json', '.ct/images/ci.lock.json'];
  const { status, stdout, stderr } = diff(...sides);
  assert.equal(status, 0, stderr);
  assert.match(stdout, /^Packages: 1 added, 0 removed, 1 changed\.$/m);
  assert.match(stdout, /^\| `cmake` \| added \| {2}\| `3\.25\.1-1` \|$/m);
  assert.match(stdout, /^\| `git` \| upgraded \| `1:2\.39\.5-0\+deb12u2` \| `1:2\.39\.5-0\+deb12u3` \|$/m);
  const json = JSON.parse(diff(...sides, '--json').stdout);
  assert.deepEqual(
    json.packages.map(({ change }: { change: string }) => change),
    ['added', 'upgraded'],
  );
});

test('what is not there, or no lock, is an error that says so', () => {
  const cases: readonly (readonly [string, RegExp])[] = [
    ['git:main:.ct/images/none.lock.json', /IMAGE_NOT_FOUND/],
    ['git:nowhere:.ct/images/ci.lock.json', /IMAGE_NOT_FOUND/],
    ['git:--output=/tmp/x:y', /USAGE/],
    ['git:main', /USAGE/],
    ['none.lock.json', /IMAGE_NOT_FOUND/],
    ['package.lock.json', /IMAGE_LOCK_INVALID/],
    ['git:main:package.lock.json', /IMAGE_LOCK_INVALID/],
  ];
  for (const [side, message] of cases) {
    const { status, stderr } = diff('/dev/null', side);
    assert.notEqual(status, 0, side);
    assert.match(stderr, message, side);
  }
});

test('the script of the CI templates tells of every lock that a change touches, and of nothing else', () => {
  const script = join(installRoot, 'deploy/ci/image-diff.sh');
  const run = (base: string, head: string) =>
    spawnSync(script, [base, head], { cwd: scratch.path, encoding: 'utf8', env: { ...process.env, CT: ct } });
  const { status, stdout, stderr } = run('main', 'change');
  assert.equal(status, 0, stderr);
  assert.deepEqual(stdout.match(/^## .*$/gm), [
    '## `.ct/images/ci.lock.json`',
    '## `.ct/images/gone.lock.json`',
    '## `.ct/images/own.lock.json`',
  ]);
  assert.match(stdout, /`cmake` \| added/);
  assert.match(stdout, /`zip` \| removed/);
  assert.match(stdout, /`bash` \| added/);
  assert.doesNotMatch(stdout, /`make`/);
  const same = run('change', 'change');
  assert.equal(same.status, 0, same.stderr);
  assert.equal(same.stdout, '');
});

test('with a database of vulnerabilities, a comparison of locks says which come and go with the packages', async () => {
  const ctHome = join(scratch.path, 'vulnerable-home');
  const feed = join(scratch.path, 'feed.jsonl');
  const records = [
    osvRecord('DEBIAN-CVE-2026-1', { affected: [affected('Debian:12', 'openssl', '3.0.12-1')] }),
    osvRecord('DEBIAN-CVE-2026-2', { affected: [affected('Debian:12', 'curl', '8.0-1')] }),
    osvRecord('DEBIAN-CVE-2026-3', { affected: [affected('Debian:12', 'bash', '5.3-1')] }),
  ];
  writeFileSync(feed, records.map((record) => `${JSON.stringify(record)}\n`).join(''));
  const signal = new AbortController().signal;
  await updateDatabase({ ctHome, feeds: [feed], now: new Date(), signal });
  write('from.json', lockOf(entry('bash', '5.2-1'), entry('openssl', '3.0.11-1')));
  write('to.json', lockOf(entry('bash', '5.2-2'), entry('curl', '7.88-1'), entry('openssl', '3.0.12-1')));
  const compare = (home: string) =>
    spawnSync(ct, ['image', 'diff', 'from.json', 'to.json'], {
      cwd: scratch.path,
      encoding: 'utf8',
      env: { ...process.env, CT_HOME: home },
    });
  const { status, stdout, stderr } = compare(ctHome);
  assert.equal(status, 0, stderr);
  assert.match(stdout, /^Vulnerabilities: 1 new, 1 gone, 1 as before\.$/m);
  assert.match(stdout, /^\| `CVE-2026-2` \| new \| [a-z]+ \| `curl` `7\.88-1` \| `8\.0-1` \|$/m);
  assert.match(stdout, /^\| `CVE-2026-1` \| gone \|/m);
  assert.doesNotMatch(compare(join(scratch.path, 'no-home')).stdout, /Vulnerabilities/);
});
