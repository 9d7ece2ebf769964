import assert from 'node:assert/strict';
import { test } from 'node:test';
import { filesOf, type Inputs, inputNames, MANAGERS, problemOf, withVerification } from './packages.ts';
import { EntryType, TREE_HEADER_BYTES, TREE_MAGIC, writeHeader } from './tree-format.ts';

const GOOD = lock({ 'node_modules/a': { version: '1.0.0', integrity: 'sha512-x' } });

function lock(packages: object): string {
  return JSON.stringify({ lockfileVersion: 3, packages: { '': { name: 'app' }, ...packages } });
}

function inputs(files: Readonly<Record<string, string>>): Inputs {
  return new Map(Object.entries(files).map(([name, text]) => [name, Buffer.from(text)]));
}

function problem(before: Readonly<Record<string, string>>, now = before): unknown {
  return problemOf('npm', inputs(before), inputs(now));
}

test('packages may be installed if nothing that decides about them has changed, and each has a digest', () => {
  const files = { 'package.json': '{}', 'package-lock.json': GOOD };
  assert.equal(problem(files), undefined);
  assert.deepEqual(problem({ 'package.json': '{}' }), { problem: 'no-lock', path: 'package-lock.json' });
  for (const path of ['package.json', 'package-lock.json', 'npm-shrinkwrap.json', '.npmrc']) {
    assert.deepEqual(problem(files, { ...files, [path]: 'other' }), { problem: 'changed', path });
  }
  const { 'package-lock.json': _, ...gone } = files;
  assert.deepEqual(problem(files, gone), { problem: 'changed', path: 'package-lock.json' });
});

test('members of a workspace, which the lock file names, may not change, either', () => {
  const entries = { 'packages/own': {}, 'node_modules/own': { resolved: 'packages/own', link: true } };
  const files = { 'package-lock.json': lock(entries), 'packages/own/package.json': '{}' };
  assert.deepEqual(inputNames('npm', inputs(files)).slice(4), ['packages/own/package.json']);
  assert.equal(problem(files), undefined);
  const now = { ...files, 'packages/own/package.json': '{"scripts": {}}' };
  assert.deepEqual(problem(files, now), { problem: 'changed', path: 'packages/own/package.json' });
});

test('a package without a digest is named, also one that is said to be bundled; of links others vouch', () => {
  const others = {
    'node_modules/own': { resolved: 'packages/own', link: true },
    'node_modules/a': { integrity: 'sha512-x' },
    'node_modules/a/node_modules/b': { inBundle: true, integrity: 'sha512-x' },
  };
  const withLock = (text: string): unknown => problem({ 'package-lock.json': text });
  assert.equal(withLock(lock(others)), undefined);
  for (const entry of [
    { resolved: 'git+ssh://git@x/y.git#1' },
    {},
    null,
    { integrity: 'md5-x' },
    { integrity: 1 },
    // npm fetches what the archive does not bundle, and what is in a lock file that an archive brings.
    { inBundle: true },
    { integrity: 'sha512-x', hasShrinkwrap: true },
  ]) {
    const path = 'node_modules/g';
    assert.deepEqual(withLock(lock({ ...others, [path]: entry })), { problem: 'no-digest', path });
  }
  assert.deepEqual(withLock('{'), { problem: 'no-digest', path: 'package-lock.json' });
  assert.ok(withLock('{"lockfileVersion": 1, "dependencies": {}}'));
});

test('the lock file that npm prefers is the one that counts', () => {
  const files = { 'npm-shrinkwrap.json': lock({ 'node_modules/x': {} }), 'package-lock.json': GOOD };
  assert.deepEqual(problem(files), { problem: 'no-digest', path: 'node_modules/x' });
});

function treeStream(entries: readonly (readonly [type: number, name: string, content: string])[]): Buffer {
  const parts: Buffer[] = [TREE_MAGIC];
  for (const [type, name, content] of [...entries, [EntryType.end, '', ''] as const]) {
    const header = Buffer.alloc(TREE_HEADER_BYTES);
    const sizes = { nameBytes: Buffer.byteLength(name), size: BigInt(Buffer.byteLength(content)) };
    writeHeader(header, 0, { type, mode: 0o644, mtimeSeconds: 0n, mtimeNanoseconds: 0, ...sizes });
    parts.push(header, Buffer.from(name + content));
  }
  return Buffer.concat(parts);
}

test('a tree stream gives its files; a link is another thing than a file with its target in it', () => {
  const [file, link] = [EntryType.file, EntryType.symlink].map((type) =>
    filesOf(treeStream([[type, 'a', 'b']])),
  );
  assert.equal(file?.get('a')?.toString(), 'b');
  assert.ok(link?.has('a'));
  assert.notDeepEqual(file, link);
});

test('a tree stream that is cut, or says sizes that it does not have, gives nothing', () => {
  const stream = treeStream([[EntryType.file, 'a', 'content']]);
  for (let length = 0; length < stream.length; length += 1) {
    assert.equal(filesOf(stream.subarray(0, length)), undefined, String(length));
  }
  const huge = Buffer.from(stream);
  huge.writeBigUInt64BE(2n ** 63n, TREE_MAGIC.length + 21);
  assert.equal(filesOf(huge), undefined);
  const many = Array.from({ length: 2000 }, (_, index) => [EntryType.file, `f${index}`, ''] as const);
  assert.equal(filesOf(treeStream(many)), undefined);
});

test('the output of npm tells an archive with another digest from any other failure', () => {
  const { mismatch } = MANAGERS.npm;
  assert.match('npm error code EINTEGRITY\nnpm error sha512-x integrity checksum failed', mismatch);
  assert.doesNotMatch('npm error code ENOTCACHED\nnpm error request to http://x failed', mismatch);
});

test('the step that checks has the variables of the step, no secret and no network', () => {
  const step = {
    name: 'install',
    argv: ['sh', '{0}'],
    script: 'npm ci\n',
    env: { A: '1' },
    workingDirectory: 'web',
    condition: 'success',
    timeoutMs: 5000,
    secrets: [{ name: 'NPM_TOKEN', env: 'NPM_TOKEN' }],
  } as const;
  const [fetch, verify] = withVerification('npm', step);
  assert.deepEqual(fetch, {
    ...step,
    env: { npm_config_ignore_scripts: 'true', npm_config_bin_links: 'false', A: '1' },
    packages: { manager: 'npm', role: 'fetch' },
  });
  assert.deepEqual(verify, {
    name: 'npm: packages are those of the lock file',
    argv: ['npm', 'ci', '--offline', '--no-audit', '--no-fund'],
    env: { A: '1' },
    workingDirectory: 'web',
    condition: 'success',
    timeoutMs: 5000,
    network: 'none',
    packages: { manager: 'npm', role: 'verify' },
  });
});
