import assert from 'node:assert/strict';
import {
  appendFileSync,
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { type PackedTree, type PackOptions, packTree, unpackTree } from './tree.ts';
import { readHeader, TREE_HEADER_BYTES, TREE_MAGIC } from './tree-format.ts';

const scratch = mkdtempSync(join(tmpdir(), 'ct-pack-'));
after(() => rmSync(scratch, { recursive: true, force: true }));
let directories = 0;

function directory(files: Record<string, string> = {}): string {
  const root = join(scratch, `d${directories++}`);
  mkdirSync(root);
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(join(root, name, '..'), { recursive: true });
    writeFileSync(join(root, name), content);
  }
  return root;
}

function pack(root: string, options: Partial<PackOptions> = {}): PackedTree {
  return packTree({ root, respectIgnore: true, ...options });
}

async function bytesOf(tree: AsyncIterable<Buffer>): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of tree) chunks.push(chunk);
  return Buffer.concat(chunks);
}

/** `F name` of every entry, in order. */
async function entries(tree: AsyncIterable<Buffer>): Promise<string[]> {
  const bytes = await bytesOf(tree);
  assert.deepEqual(bytes.subarray(0, 8), TREE_MAGIC);
  const found: string[] = [];
  let at = TREE_MAGIC.length;
  while (at < bytes.length) {
    const header = readHeader(bytes.subarray(at));
    const name = bytes.toString('latin1', at + TREE_HEADER_BYTES, at + TREE_HEADER_BYTES + header.nameBytes);
    found.push(`${String.fromCharCode(header.type)} ${name}`.trim());
    at += TREE_HEADER_BYTES + header.nameBytes + Number(header.size);
  }
  assert.equal(at, bytes.length);
  return found;
}

test('modes, links, times, empty files and directories and names of any bytes survive both ways', async () => {
  const root = directory({ 'run.sh': '#!/bin/sh\n', 'a/b/c.txt': 'c', 'a/empty': '', secret: 's' });
  const strange = Buffer.from([0x61, 0x0a, 0xff, 0xfe, 0x20, 0x22]);
  writeFileSync(Buffer.concat([Buffer.from(`${root}/`), strange]), 'x');
  chmodSync(join(root, 'run.sh'), 0o755);
  chmodSync(join(root, 'secret'), 0o440);
  mkdirSync(join(root, 'void'));
  symlinkSync('b/c.txt', join(root, 'a/link'));
  symlinkSync('nowhere', join(root, 'dangling'));
  utimesSync(join(root, 'a/b/c.txt'), 1e9, 1_234_567_890.5);
  utimesSync(join(root, 'a/b'), 1e9, 1e9);

  const tree = pack(root);
  const out = join(scratch, 'round-trip');
  const { files, bytes, warnings } = await unpackTree(tree, out);
  assert.deepEqual([files, bytes, warnings], [5, 13, []]);
  assert.deepEqual([tree.summary.files, tree.summary.symlinks, tree.summary.directories], [5, 2, 3]);
  assert.equal(lstatSync(join(out, 'run.sh')).mode & 0o7777, 0o755);
  assert.equal(lstatSync(join(out, 'secret')).mode & 0o7777, 0o440);
  assert.equal(readFileSync(join(out, 'a/b/c.txt'), 'utf8'), 'c');
  assert.equal(lstatSync(join(out, 'a/b/c.txt')).mtimeMs, 1_234_567_890_500);
  assert.equal(lstatSync(join(out, 'a/b')).mtimeMs, 1e12);
  assert.equal(readlinkSync(join(out, 'a/link')), 'b/c.txt');
  assert.equal(readlinkSync(join(out, 'dangling')), 'nowhere');
  assert.ok(lstatSync(join(out, 'void')).isDirectory());
  assert.ok(readdirSync(out, { encoding: 'buffer' }).some((name) => name.equals(strange)));
});

test('parents come before children, and each path comes once', async () => {
  const root = directory({ 'b/c/d': '', 'b/a': '', a: '' });
  assert.deepEqual(await entries(pack(root)), ['F a', 'D b', 'F b/a', 'D b/c', 'F b/c/d', 'E']);
});

test('without git, .gitignore files at every level are followed', async () => {
  const root = directory({
    '.gitignore': '*.log\n/dist/\n!keep.log\nnode_modules\n',
    'a.log': '',
    'keep.log': '',
    'dist/x': '',
    'sub/dist/x': '',
    'sub/.gitignore': '!b.log\nC\n',
    'sub/b.log': '',
    'sub/c': '',
    'sub/C': '',
    'sub/node_modules/deep/x': '',
  });
  const tree = pack(root);
  assert.deepEqual(
    (await entries(tree)).filter((entry) => entry.startsWith('F')),
    ['F .gitignore', 'F keep.log', 'F sub/.gitignore', 'F sub/b.log', 'F sub/c', 'F sub/dist/x'],
  );
  assert.deepEqual([...tree.summary.ignored].sort(), ['a.log', 'dist/', 'sub/C', 'sub/node_modules/']);
  assert.equal(tree.summary.ignoredCount, 4);
});

test('with respectIgnore off everything is sent, except what earlier runs brought back', async () => {
  const root = directory({ '.gitignore': '*\n', 'x/y': '', '.ct/out/build/z': '', '.ct/jobs.yml': '' });
  const names = await entries(pack(root, { respectIgnore: false }));
  assert.deepEqual(names, ['D .ct', 'F .gitignore', 'D x', 'F .ct/jobs.yml', 'F x/y', 'E']);
});

test('.git is sent without lock files, and not at all on request', async () => {
  const root = directory({
    '.git/HEAD': 'ref',
    '.git/index.lock': '',
    '.git/info/exclude': 'skipped\n',
    skipped: '',
  });
  const files = (await entries(pack(root))).filter((entry) => entry.startsWith('F'));
  assert.deepEqual(files, ['F .git/HEAD', 'F .git/info/exclude']);
  assert.deepEqual(await entries(pack(root, { includeGit: false })), ['E']);
});

test('credentials in .git/config and a .git that is only a pointer are worth a warning', async () => {
  const config = '[remote "o"]\n\turl = https://user:token@example.org/x\n';
  const withToken = pack(directory({ '.git/HEAD': '', '.git/config': config }));
  await bytesOf(withToken);
  assert.match(withToken.summary.warnings.join(), /credentials/);
  const worktree = pack(directory({ '.git': 'gitdir: /elsewhere' }));
  assert.deepEqual(await entries(worktree), ['E']);
  assert.match(worktree.summary.warnings.join(), /a repository elsewhere/);
});

test('a file that shrinks or grows while it is read keeps the size it had, with a warning', async () => {
  for (const change of [
    (path: string) => truncateSync(path, 600_000),
    (path: string) => appendFileSync(path, 'more'.repeat(1000)),
  ]) {
    const root = directory({ a: 'x'.repeat(1_000_000), b: 'after' });
    const tree = pack(root);
    const chunks: Buffer[] = [];
    for await (const chunk of tree) {
      if (chunks.length === 0) change(join(root, 'a'));
      chunks.push(chunk);
    }
    const out = join(scratch, `changed-${directories++}`);
    await unpackTree(source(chunks), out);
    assert.equal(lstatSync(join(out, 'a')).size, 1_000_000);
    assert.equal(readFileSync(join(out, 'b'), 'utf8'), 'after');
    assert.match(tree.summary.warnings.join(), /^a changed while it was read/);
  }
});

test('a file that vanishes before its turn is left out', async () => {
  const root = directory({ a: 'x'.repeat(300_000), b: 'gone' });
  const chunks: Buffer[] = [];
  for await (const chunk of pack(root)) {
    rmSync(join(root, 'b'), { force: true });
    chunks.push(chunk);
  }
  assert.deepEqual(await entries(source(chunks)), ['F a', 'E']);
});

test('WORKSPACE_UNREADABLE names the file', {
  skip: process.getuid?.() === 0 && 'root reads everything',
}, async () => {
  const root = directory({ 'a/private': '' });
  chmodSync(join(root, 'a/private'), 0);
  await assert.rejects(bytesOf(pack(root)), {
    code: 'WORKSPACE_UNREADABLE',
    message: /a\/private: permission denied/,
  });
});

test('WORKSPACE_UNREADABLE for a root that is missing or a file', async () => {
  await assert.rejects(bytesOf(pack(join(scratch, 'missing'))), { code: 'WORKSPACE_UNREADABLE' });
  await assert.rejects(bytesOf(pack(join(directory({ f: '' }), 'f'))), { code: 'WORKSPACE_UNREADABLE' });
});

test('an aborted pack stops with the reason', async () => {
  const controller = new AbortController();
  const root = directory({ a: 'x'.repeat(3_000_000) });
  await assert.rejects(async () => {
    for await (const _ of pack(root, { signal: AbortSignal.abort(new Error('stop')) }));
  }, /stop/);
  controller.abort();
});

async function* source(chunks: readonly Buffer[]): AsyncGenerator<Buffer> {
  yield* chunks;
}
