/** Packing with a real git, large files, full disks: what needs programs or mounts. */
import assert from 'node:assert/strict';
import { type ExecFileSyncOptions, execFileSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { type PackOptions, packTree, type TreeSummary, unpackTree } from '../../src/job/tree.ts';

const scratch = mkdtempSync(join(tmpdir(), 'ct-job-tree-'));
after(() => rmSync(scratch, { recursive: true, force: true }));
const isRoot = process.getuid?.() === 0;
let places = 0;

function place(): string {
  return join(scratch, `p${places++}`);
}

function put(root: string, files: Record<string, string>): string {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), content);
  }
  return root;
}

function git(cwd: string, ...args: string[]): string {
  const options: ExecFileSyncOptions = {
    cwd,
    env: { PATH: process.env['PATH'], HOME: scratch, GIT_CONFIG_NOSYSTEM: '1' },
    stdio: ['ignore', 'pipe', 'ignore'],
  };
  const who = ['-c', 'user.name=t', '-c', 'user.email=t@example.org', '-c', 'protocol.file.allow=always'];
  return execFileSync('git', [...who, ...args], { ...options, encoding: 'utf8' });
}

function repository(files: Record<string, string>): string {
  const root = put(place(), files);
  git(root, 'init', '-q', '-b', 'main');
  return root;
}

/** Packs, unpacks and returns the files that arrived, without those of `.git`. */
async function arrive(
  root: string,
  options: Partial<PackOptions> = {},
): Promise<{ files: string[]; out: string; summary: TreeSummary }> {
  const tree = packTree({ root, respectIgnore: true, ...options });
  const out = place();
  await unpackTree(tree, out);
  const files = execFileSync('find', ['.', '-name', '.git', '-prune', '-o', '!', '-type', 'd', '-print'], {
    cwd: out,
    encoding: 'utf8',
  });
  return {
    files: files
      .trim()
      .split('\n')
      .map((name) => name.slice(2))
      .sort(),
    out,
    summary: tree.summary,
  };
}

test('in a git work tree exactly what git lists is sent, tracked although ignored included', async () => {
  const root = repository({
    '.gitignore': 'build/\n*.o\n!keep.o\n',
    'tracked.o': '',
    'keep.o': '',
    'new.txt': '',
    'build/x': '',
    'sub/.gitignore': '/local\n',
    'sub/local': '',
    'sub/deep/local': '',
    gone: '',
    excluded: '',
  });
  git(root, 'add', '-f', '.gitignore', 'tracked.o', 'gone');
  rmSync(join(root, 'gone'));
  appendFileSync(join(root, '.git/info/exclude'), 'excluded\n');
  const { files, summary } = await arrive(root);
  assert.deepEqual(files, [
    '.gitignore',
    'keep.o',
    'new.txt',
    'sub/.gitignore',
    'sub/deep/local',
    'tracked.o',
  ]);
  assert.deepEqual([...summary.ignored].sort(), ['build/', 'excluded', 'sub/local']);
});

test('without git the same files are chosen as with it', async () => {
  const files = {
    '.gitignore': '# c\n*.o\n!keep.o\n/top\nd?r/\n**/cache/\na/**/z\n\\#hash\ntrailing \\ \n',
    'x.o': '',
    'keep.o': '',
    top: '',
    'sub/top': '',
    'dir/x': '',
    'sub/dir/x': '',
    'sub/cache/x': '',
    'a/b/c/z': '',
    'a/z': '',
    '#hash': '',
    'sub/.gitignore': '!x.o\nlocal/\n!local/y\n',
    'sub/x.o': '',
    'sub/local/y': '',
    Top: '',
    'ü.o': '',
    'ü.txt': '',
  };
  const withGit = await arrive(repository(files));
  const without = await arrive(put(place(), files));
  assert.deepEqual(without.files, withGit.files);
  assert.ok(without.files.includes('ü.txt') && !without.files.includes('ü.o'));
});

test('git works in the tree that arrives: describe, status and log', async () => {
  const root = repository({ a: '1' });
  git(root, 'add', '.');
  git(root, 'commit', '-qm', 'one');
  git(root, 'tag', 'v1');
  const { out } = await arrive(root);
  assert.equal(git(out, 'describe', '--tags').trim(), 'v1');
  assert.equal(git(out, 'status', '--porcelain'), '');
});

test('submodules and clones inside the tree come with their files', async () => {
  const library = repository({ 'lib.txt': '', '.gitignore': 'skip\n' });
  git(library, 'add', '.');
  git(library, 'commit', '-qm', 'one');
  const root = repository({ a: '' });
  git(root, 'submodule', 'add', '-q', library, 'vendor/library');
  git(root, 'clone', '-q', library, 'clone');
  put(root, { 'vendor/library/skip': '', 'vendor/library/new': '' });
  const { files, out } = await arrive(root);
  assert.deepEqual(files, [
    '.gitmodules',
    'a',
    'clone/.gitignore',
    'clone/lib.txt',
    'vendor/library/.gitignore',
    'vendor/library/lib.txt',
    'vendor/library/new',
  ]);
  assert.match(git(join(out, 'vendor/library'), 'log', '--oneline'), /one/);
  assert.match(git(join(out, 'clone'), 'log', '--oneline'), /one/);
});

test('a tracked path whose directory has become a link is not followed', async () => {
  const root = repository({ 'd/secret': 'tracked', 'outside/secret': 'not tracked' });
  git(root, 'add', 'd');
  rmSync(join(root, 'd'), { recursive: true });
  symlinkSync(join(root, 'outside'), join(root, 'd'));
  const { files, summary } = await arrive(root);
  assert.deepEqual(files, ['outside/secret']);
  assert.equal(summary.symlinks, 1);
});

test('a file in a merge conflict comes once', async () => {
  const root = repository({ a: '1' });
  git(root, 'add', '.');
  git(root, 'commit', '-qm', 'one');
  git(root, 'checkout', '-qb', 'other');
  writeFileSync(join(root, 'a'), '2');
  git(root, 'commit', '-qam', 'two');
  git(root, 'checkout', '-q', 'main');
  writeFileSync(join(root, 'a'), '3');
  git(root, 'commit', '-qam', 'three');
  assert.throws(() => git(root, 'merge', '-q', 'other'));
  assert.deepEqual((await arrive(root)).files, ['a']);
});

test('a directory that the repository around it ignores is sent all the same', async () => {
  const root = repository({
    '.gitignore': 'build/\n',
    'build/project/a': '',
    'build/project/.gitignore': 'b\n',
    'build/project/b': '',
  });
  assert.deepEqual((await arrive(join(root, 'build/project'))).files, ['.gitignore', 'a']);
  assert.deepEqual((await arrive(put(root, { 'src/c': '' }))).files, ['.gitignore', 'src/c']);
  assert.deepEqual((await arrive(join(root, 'src'))).files, ['c']);
});

test('variables that git sets in its hooks do not change what is listed', async () => {
  const root = repository({ a: '' });
  const other = repository({ b: '' });
  process.env['GIT_DIR'] = join(other, '.git');
  try {
    assert.deepEqual((await arrive(root)).files, ['a']);
  } finally {
    delete process.env['GIT_DIR'];
  }
});

test('the configuration of the repository cannot make packing run a program', async () => {
  const root = repository({ a: '' });
  const marker = join(scratch, 'ran');
  const script = join(root, 'evil.sh');
  writeFileSync(script, `#!/bin/sh\ntouch ${marker}\n`);
  chmodSync(script, 0o755);
  git(root, 'config', 'core.fsmonitor', script);
  await arrive(root);
  assert.deepEqual(readdirSync(scratch).includes('ran'), false);
});

test('a file over 4 GiB is announced and sent whole, in bounded memory', { timeout: 120_000 }, async () => {
  const root = put(place(), { large: '' });
  const size = 4 * 2 ** 30 + 5;
  truncateSync(join(root, 'large'), size);
  const before = process.memoryUsage().rss;
  let bytes = 0;
  let peak = 0;
  for await (const chunk of packTree({ root, respectIgnore: true })) {
    bytes += chunk.length;
    peak = Math.max(peak, process.memoryUsage.rss());
  }
  assert.equal(bytes, 8 + 29 + 'large'.length + size + 29);
  assert.ok(peak - before < 300 * 2 ** 20, `${(peak - before) / 2 ** 20} MiB`);
});

test('20,000 files are packed and unpacked in seconds', { timeout: 120_000 }, async () => {
  const root = place();
  for (let directory = 0; directory < 200; directory++) {
    mkdirSync(join(root, `d${directory}`), { recursive: true });
    for (let file = 0; file < 100; file++) writeFileSync(join(root, `d${directory}/f${file}`), 'content');
  }
  git(root, 'init', '-q');
  const startedAt = performance.now();
  const out = place();
  const { files } = await unpackTree(packTree({ root, respectIgnore: true, includeGit: false }), out);
  assert.equal(files, 20_000);
  assert.ok(performance.now() - startedAt < 30_000);
});

test('STORE_FULL when the disk is full, and nothing of the artifacts is left', {
  skip: !isRoot && 'mounting needs root',
}, async () => {
  const small = place();
  mkdirSync(small);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', small]);
  try {
    const root = put(place(), { large: 'x'.repeat(3_000_000) });
    await assert.rejects(unpackTree(packTree({ root, respectIgnore: true }), join(small, 'out')), {
      code: 'STORE_FULL',
    });
    assert.deepEqual(readdirSync(small), []);
  } finally {
    execFileSync('umount', [small]);
  }
});

test('WORKSPACE_UNREADABLE names the file that another user may not read', async () => {
  const root = put(place(), { 'a/private': '', ok: '' });
  chmodSync(join(root, 'a/private'), 0);
  const program = `
    const { packTree } = await import(${JSON.stringify(new URL('../../src/job/tree.ts', import.meta.url).href)});
    try { for await (const _ of packTree({ root: ${JSON.stringify(root)}, respectIgnore: true })); }
    catch (error) { console.log(error.code, error.message); }`;
  if (isRoot)
    for (const path of [scratch, root, join(root, 'a'), join(root, 'a/private')])
      chownSync(path, 65_534, 65_534);
  const output = execFileSync(process.execPath, ['--input-type=module', '-e', program], {
    encoding: 'utf8',
    env: { PATH: process.env['PATH'] },
    ...(isRoot ? { uid: 65_534, gid: 65_534 } : {}),
  });
  assert.match(output, /^WORKSPACE_UNREADABLE .*a\/private: permission denied/);
});
