import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { CtError } from './errors.ts';
import {
  formatPosition,
  formatProblems,
  parseYaml,
  printable,
  problemsError,
  readSource,
  SourceText,
  type YamlNode,
} from './yaml-source.ts';

const directory = mkdtempSync(join(tmpdir(), 'ct-yaml-'));
after(() => rmSync(directory, { recursive: true }));

function parse(text: string): ReturnType<typeof parseYaml> {
  return parseYaml(new SourceText('a.yml', text), 'JOB_FILE_INVALID');
}

/** Plain values of a tree that has parsed. */
function values(node: YamlNode | undefined): unknown {
  if (node === undefined) return undefined;
  if (node.kind === 'list') return node.items.map(values);
  if (node.kind === 'map')
    return Object.fromEntries(node.entries.map((entry) => [entry.key, values(entry.value)]));
  return node.type === 'null' ? null : node.text;
}

function messages(text: string): string[] {
  return parse(text).problems.map((problem) => `${formatPosition(problem.span)} ${problem.message}`);
}

function readError(content: string | Buffer, maxBytes = 1000): CtError {
  const path = join(directory, 'a.yml');
  writeFileSync(path, content);
  try {
    readSource(path, 'a.yml', { maxBytes, code: 'JOB_FILE_INVALID', missingCode: 'JOB_FILE_NOT_FOUND' });
  } catch (error) {
    assert.ok(error instanceof CtError);
    return error;
  }
  assert.fail('it was read');
}

test('a file of exactly the limit is read, one byte more is refused', () => {
  const path = join(directory, 'limit.yml');
  const options = { maxBytes: 10, code: 'JOB_FILE_INVALID', missingCode: 'JOB_FILE_NOT_FOUND' } as const;
  writeFileSync(path, 'a: 1234567');
  assert.equal(readSource(path, 'a.yml', options).text, 'a: 1234567');
  assert.match(readError('a: 12345678', 10).message, /larger than 10 bytes/);
});

test('a huge sparse file is refused without being read', () => {
  const path = join(directory, 'huge.yml');
  writeFileSync(path, '');
  truncateSync(path, 100 * 2 ** 30);
  const startedAt = performance.now();
  assert.throws(
    () =>
      readSource(path, 'huge.yml', {
        maxBytes: 1e6,
        code: 'JOB_FILE_INVALID',
        missingCode: 'JOB_FILE_NOT_FOUND',
      }),
    { code: 'JOB_FILE_INVALID' },
  );
  assert.ok(performance.now() - startedAt < 1000);
});

test('a missing file has a code of its own, a directory and a device are no files', () => {
  const options = { maxBytes: 10, code: 'JOB_FILE_INVALID', missingCode: 'JOB_FILE_NOT_FOUND' } as const;
  assert.throws(() => readSource(join(directory, 'none'), 'none', options), { code: 'JOB_FILE_NOT_FOUND' });
  assert.throws(() => readSource(directory, 'dir', options), { code: 'JOB_FILE_INVALID' });
  assert.throws(() => readSource('/dev/zero', 'zero', options), {
    code: 'JOB_FILE_INVALID',
    message: /not a regular file/,
  });
});

test('binary, UTF-16 and Latin-1 files are refused with the reason', () => {
  assert.match(readError(Buffer.from('a: \0b')).message, /binary: it has a NUL byte at offset 3/);
  assert.match(readError(Buffer.from('\ufeffa: 1', 'utf16le')).message, /UTF-16/);
  assert.match(readError(Buffer.from([0x61, 0x3a, 0x20, 0xe4])).message, /not UTF-8/);
});

test('a byte order mark is dropped and Windows line ends are line ends', () => {
  const path = join(directory, 'bom.yml');
  writeFileSync(path, '\ufeffa: 1\r\nb: |\r\n  x\r\n  y\r\nc: d\r\n');
  const source = readSource(path, 'bom.yml', {
    maxBytes: 100,
    code: 'JOB_FILE_INVALID',
    missingCode: 'JOB_FILE_NOT_FOUND',
  });
  assert.deepEqual(values(parseYaml(source, 'JOB_FILE_INVALID').root), { a: '1', b: 'x\ny\n', c: 'd' });
  assert.equal(source.line(1), 'a: 1');
});

test('numbers and booleans keep the characters that were written', () => {
  assert.deepEqual(values(parse('[3.10, 010, 0x1F, True, 1_000, ~, "3.10"]').root), [
    '3.10',
    '010',
    '0x1F',
    'True',
    '1_000',
    null,
    '3.10',
  ]);
});

test('a duplicate key names both places', () => {
  assert.deepEqual(messages('a: 1\nb:\n  c: 1\n  c: 2\n'), [
    'a.yml:4:3 duplicate key `c`; it is first given at a.yml:3:3',
  ]);
});

test('aliases and merge keys are followed, and a key given beside a merge wins', () => {
  const text = 'x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: [*x]\nw: {<<: [{a: 9}, *x]}\n';
  assert.deepEqual(values(parse(text).root), {
    x: { a: '1', b: '2' },
    y: { a: '1', b: '3' },
    z: [{ a: '1', b: '2' }],
    w: { a: '9', b: '2' },
  });
  assert.match(messages('x: &x 1\ny: {<<: *x}')[0] ?? '', /`<<` merges mappings/);
});

test('a billion laughs are refused at once', () => {
  let text = 'a0: &a0 [x,x,x,x,x,x,x,x,x]\n';
  for (let level = 1; level < 60; level++) {
    text += `a${level}: &a${level} [${Array(9).fill(`*a${level - 1}`)}]\n`;
  }
  const startedAt = performance.now();
  assert.match(messages(text)[0] ?? '', /more than 100000 values/);
  assert.ok(performance.now() - startedAt < 1000);
});

test('an alias inside its own anchor and an unknown alias are refused', () => {
  assert.match(messages('a: &a [*a]')[0] ?? '', /inside the anchor/);
  assert.match(messages('a: *b\nb: &b 1')[0] ?? '', /alias/);
});

test('deep nesting of every kind is an error, not a stack overflow', () => {
  for (const text of ['['.repeat(200_000), '{a: '.repeat(50_000), '- '.repeat(100_000)]) {
    assert.match(messages(text).join('\n'), /nested/, text.slice(0, 10));
  }
  const block = Array.from({ length: 60 }, (_, level) => `${' '.repeat(level)}a:`).join('\n');
  assert.match(messages(block).join('\n'), /nested/);
});

test('a file with very many keys is checked for duplicates in linear time', () => {
  const text = Array.from({ length: 80_000 }, (_, index) => `k${index}: 1`).join('\n');
  const startedAt = performance.now();
  assert.deepEqual(messages(text), []);
  assert.ok(performance.now() - startedAt < 10_000);
});

test('syntax errors have a position: tabs, several documents, tags, list keys, control characters', () => {
  assert.match(messages('a:\n\tb: 1')[0] ?? '', /^a\.yml:2:1 YAML does not allow tabs/);
  assert.match(messages('a: 1\n---\nb: 2')[0] ?? '', /^a\.yml:2:1 the file has more than one/);
  assert.match(messages('a: !foo 1')[0] ?? '', /^a\.yml:1:4 YAML tags/);
  assert.match(messages('? [a]\n: b')[0] ?? '', /a key must be/);
  assert.match(messages('a: \u001b[31m')[0] ?? '', /^a\.yml:1:4 control character U\+001B/);
  assert.match(messages('a: "x\\0y"')[0] ?? '', /NUL/);
  assert.match(messages('a: "x')[0] ?? '', /^a\.yml:1:6 not valid YAML: Missing closing/);
  assert.equal(messages(']'.repeat(1000)).length, 3);
});

test('an empty document has neither root nor problems', () => {
  assert.deepEqual(parse(''), { root: undefined, problems: [] });
  assert.deepEqual(parse('# nothing\n'), { root: undefined, problems: [] });
});

test('a report shows position, rule, line, caret and hint', () => {
  const source = new SourceText('a.yml', 'one: 1\n\ttwo: three\n');
  const report = formatProblems([
    { code: 'JOB_FILE_INVALID', span: { source, start: 13, end: 18 }, message: 'wrong', hint: 'write 3' },
  ]);
  assert.equal(report, 'a.yml:2:7: wrong\n  2 |  two: three\n    |       ^^^^^\n    = write 3');
});

test('a report shows at most twenty problems, in file order, and a window of a long line', () => {
  const source = new SourceText('a.yml', `${'x'.repeat(5000)}\n`);
  const problems = Array.from({ length: 50 }, (_, index) => ({
    code: 'JOB_FILE_INVALID' as const,
    span: { source, start: 4000 - index, end: 4001 - index },
    message: `p${index}`,
  }));
  const report = formatProblems(problems);
  assert.match(report, /^a\.yml:1:3952: p49\n/);
  assert.equal(report.match(/: p\d+\n/g)?.length, 20);
  assert.match(report, /and more problems$/);
  assert.ok(Math.max(...report.split('\n').map((line) => line.length)) < 120);
});

test('escape sequences and direction marks of a file do not reach the terminal', () => {
  assert.equal(printable('a\u001b[31m\u202eb\tc\u0085'), 'a?[31m?b c?');
  const source = new SourceText('a.yml', 'k\u202e: 1');
  const span = { source, start: 0, end: 2 };
  assert.doesNotMatch(formatProblems([{ code: 'JOB_FILE_INVALID', span, message: 'k\u202e' }]), /\u202e/);
});

test('the code of an error is that of its problems if they agree', () => {
  const source = new SourceText('a.yml', 'a');
  const span = { source, start: 0, end: 1 };
  const one = { code: 'NOT_SUPPORTED_YET', span, message: 'x' } as const;
  const other = { code: 'JOB_EXPRESSION_INVALID', span, message: 'x' } as const;
  assert.equal(problemsError([one, one], 'JOB_FILE_INVALID').code, 'NOT_SUPPORTED_YET');
  assert.equal(problemsError([one, other], 'JOB_FILE_INVALID').code, 'JOB_FILE_INVALID');
});
