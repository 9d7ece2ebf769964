import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { formatPosition, readSource, SourceText } from './source-text.ts';
import { parseYaml, type YamlNode } from './yaml-source.ts';

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
