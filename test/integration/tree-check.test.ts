/** The comparison of a tree stream with what was signed: trees as `ct run` packs them, ids as git gives them. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { packTree } from '../../src/job/tree.ts';
import { CheckedTree } from '../../src/job/tree-check.ts';
import { EntryType, TREE_HEADER_BYTES, TREE_MAGIC, writeHeader } from '../../src/job/tree-format.ts';
import type { TreeExpectation } from '../../src/protocol/verify.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';

const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex');
const NOTHING: TreeExpectation = { files: {}, links: {}, directories: [] };

let scratch: Scratch;
let root = '';
before(() => {
  scratch = scratchDirectory();
});
after(() => scratch[Symbol.dispose]());
beforeEach(() => {
  root = join(scratch.path, 'tree');
  rmSync(root, { recursive: true, force: true });
  mkdirSync(root);
});
const write = (path: string, content: string): void => {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  writeFileSync(join(root, path), content);
};
const git = (...args: string[]): string =>
  execFileSync('git', ['-c', 'user.name=T', '-c', 'user.email=t@example.org', ...args], {
    cwd: root,
    encoding: 'utf8',
  }).trim();

/** How many bytes came through; throws what the check throws. */
async function passed(stream: AsyncIterable<Buffer>, expected: TreeExpectation): Promise<number> {
  const check = new CheckedTree(stream, expected);
  let bytes = 0;
  for await (const chunk of check) bytes += chunk.length;
  assert.ok(check.holds);
  return bytes;
}
const sent = (expected: TreeExpectation): Promise<number> =>
  passed(packTree({ root, respectIgnore: true }), expected);

async function* inPieces(stream: AsyncIterable<Buffer>, size: number): AsyncGenerator<Buffer> {
  for await (const chunk of stream) {
    for (let at = 0; at < chunk.length; at += size) yield chunk.subarray(at, at + size);
  }
}

describe('a signed manifest', () => {
  const expected: TreeExpectation = {
    files: { 'scripts/a.sh': sha256('a\n'), 'scripts/empty': sha256(''), 'x/deploy.sh': sha256('d\n') },
    links: { 'scripts/link': 'a.sh' },
    directories: ['scripts'],
  };
  beforeEach(() => {
    write('scripts/a.sh', 'a\n');
    write('scripts/empty', '');
    symlinkSync('a.sh', join(root, 'scripts/link'));
    write('x/deploy.sh', 'd\n');
    write('x/other', 'nobody signed it\n');
  });

  test('negative control: the tree that was signed passes, whole and in pieces of any size', async () => {
    const bytes = await sent(expected);
    for (const size of [1, 7, 29, 1000]) {
      assert.equal(await passed(inPieces(packTree({ root, respectIgnore: true }), size), expected), bytes);
    }
  });

  const TAMPERED: readonly [what: string, code: string, tamper: () => void][] = [
    ['a byte of a file', 'VERIFY_FILE_CHANGED', () => write('scripts/a.sh', 'b\n')],
    ['an empty file that has content', 'VERIFY_FILE_CHANGED', () => write('scripts/empty', ' ')],
    ['a file outside of the directories', 'VERIFY_FILE_CHANGED', () => write('x/deploy.sh', 'e\n')],
    ['a file that is gone', 'VERIFY_FILE_MISSING', () => rmSync(join(root, 'x/deploy.sh'))],
    ['a link that is gone', 'VERIFY_FILE_MISSING', () => rmSync(join(root, 'scripts/link'))],
    ['a file that was added', 'VERIFY_FILE_UNLISTED', () => write('scripts/deep/more.sh', 'm\n')],
    ['a link that was added', 'VERIFY_FILE_UNLISTED', () => symlinkSync('/etc', join(root, 'scripts/etc'))],
    [
      'a link to elsewhere',
      'VERIFY_FILE_CHANGED',
      () => {
        rmSync(join(root, 'scripts/link'));
        symlinkSync('../x/other', join(root, 'scripts/link'));
      },
    ],
    [
      'a link in place of a file, to the same content',
      'VERIFY_FILE_CHANGED',
      () => {
        write('x/same', 'a\n');
        rmSync(join(root, 'scripts/a.sh'));
        symlinkSync('../x/same', join(root, 'scripts/a.sh'));
      },
    ],
    [
      'a file in place of a link',
      'VERIFY_FILE_CHANGED',
      () => {
        rmSync(join(root, 'scripts/link'));
        write('scripts/link', 'a\n');
      },
    ],
    [
      'a link in place of a directory, to the same files',
      'VERIFY_FILE_CHANGED',
      () => {
        rmSync(join(root, 'x'), { recursive: true });
        write('y/deploy.sh', 'd\n');
        symlinkSync('y', join(root, 'x'));
      },
    ],
  ];
  for (const [what, code, tamper] of TAMPERED) {
    test(`${what} is refused with ${code}`, async () => {
      tamper();
      await assert.rejects(sent(expected), { code });
    });
  }

  test('the same path again with other content is refused, and so is what comes after the end', async () => {
    const good = [
      entry('scripts/a.sh', 'a\n'),
      entry('scripts/empty', ''),
      link('scripts/link', 'a.sh'),
      entry('x/deploy.sh', 'd\n'),
    ];
    await passed(stream(TREE_MAGIC, ...good, END), expected);
    await assert.rejects(passed(stream(TREE_MAGIC, ...good, entry('scripts/a.sh', 'b\n'), END), expected), {
      code: 'VERIFY_FILE_CHANGED',
    });
    await assert.rejects(
      passed(stream(TREE_MAGIC, ...good, END, entry('scripts/a.sh', 'b\n'), END), expected),
      {
        code: 'HOST_PROTOCOL',
      },
    );
    await assert.rejects(passed(stream(TREE_MAGIC, ...good), expected), { code: 'HOST_PROTOCOL' });
  });

  test('a path in another spelling is refused: nothing is written past the comparison', async () => {
    for (const path of [
      './scripts/a.sh',
      'scripts//a.sh',
      'x/../scripts/a.sh',
      '/scripts/a.sh',
      'scripts/a.sh/',
    ]) {
      await assert.rejects(
        passed(stream(TREE_MAGIC, entry(path, 'b\n'), END), expected),
        { code: 'HOST_PROTOCOL' },
        path,
      );
    }
  });

  test('the end of a stream that does not hold is never passed on', async () => {
    const check = new CheckedTree(stream(TREE_MAGIC, entry('scripts/a.sh', 'a\n'), END), expected);
    const seen: Buffer[] = [];
    await assert.rejects(
      async () => {
        for await (const chunk of check) seen.push(chunk);
      },
      { code: 'VERIFY_FILE_MISSING' },
    );
    assert.ok(!seen.some((chunk) => chunk.equals(END)));
    assert.ok(!check.holds);
  });
});

describe('a signed commit', () => {
  let tree = '';
  for (const format of ['sha1', 'sha256'] as const) {
    describe(format, () => {
      beforeEach(() => {
        git('init', '-q', `--object-format=${format}`);
        for (let i = 0; i < 30; i++) write(`src/${i % 3 === 0 ? 'deep/er/' : ''}f${i}`, `${i}\n`);
        write('src.txt', 'sorts between src and src/\n');
        write('run.sh', '#!/bin/sh\n');
        write('empty', '');
        write('ünïcode', 'name\n');
        chmodSync(join(root, 'run.sh'), 0o755);
        symlinkSync('run.sh', join(root, 'link'));
        write('.gitignore', 'ignored\n');
        write('ignored', 'not in the commit\n');
        git('add', '-A');
        git('commit', '-qm', 'first');
        tree = git('rev-parse', 'HEAD^{tree}');
      });

      test('negative control: a clean tree has the id that git gives it', async () => {
        assert.ok((await sent({ ...NOTHING, gitTree: tree })) > 0);
      });

      const DIRTY: readonly [string, () => void][] = [
        ['a changed file', () => write('src/f1', 'changed\n')],
        ['a removed file', () => rmSync(join(root, 'src/f1'))],
        ['a new file', () => write('new', 'x\n')],
        ['another mode', () => chmodSync(join(root, 'run.sh'), 0o644)],
        [
          'another link',
          () => {
            rmSync(join(root, 'link'));
            symlinkSync('empty', join(root, 'link'));
          },
        ],
        [
          'another commit',
          () => {
            write('src/f1', 'second\n');
            git('commit', '-qam', 'second');
          },
        ],
      ];
      for (const [what, change] of DIRTY) {
        test(`${what} is VERIFY_TREE_DIRTY`, async () => {
          change();
          await assert.rejects(sent({ ...NOTHING, gitTree: tree }), { code: 'VERIFY_TREE_DIRTY' });
        });
      }

      test('what git ignores and is sent all the same is VERIFY_TREE_DIRTY', async () => {
        const all = packTree({ root, respectIgnore: false });
        await assert.rejects(passed(all, { ...NOTHING, gitTree: tree }), { code: 'VERIFY_TREE_DIRTY' });
      });
    });
  }
});

async function* stream(...parts: Buffer[]): AsyncGenerator<Buffer> {
  yield* parts;
}

function header(type: number, name: string, size: number): Buffer {
  const bytes = Buffer.alloc(TREE_HEADER_BYTES + Buffer.byteLength(name));
  writeHeader(bytes, 0, {
    type,
    mode: 0o644,
    mtimeSeconds: 0n,
    mtimeNanoseconds: 0,
    nameBytes: Buffer.byteLength(name),
    size: BigInt(size),
  });
  bytes.write(name, TREE_HEADER_BYTES);
  return bytes;
}
function entry(name: string, content: string): Buffer {
  return Buffer.concat([header(EntryType.file, name, Buffer.byteLength(content)), Buffer.from(content)]);
}
function link(name: string, target: string): Buffer {
  return Buffer.concat([header(EntryType.symlink, name, target.length), Buffer.from(target)]);
}
const END = header(EntryType.end, '', 0);
