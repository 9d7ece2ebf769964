/** docs/threat-model.md claims only what a test attacks: every line names tests, and these exist. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';

interface Citation {
  readonly file: string;
  readonly names: readonly string[];
}

/** `[label](../path.test.ts) “name”, “name”; …` */
function citationsOf(cell: string): Citation[] {
  return [...cell.matchAll(/\]\(\.\.\/([^)]+\.test\.ts)\)((?:,? “[^”]+”)+)/g)].map(
    ([, file = '', names = '']) => ({
      file,
      names: [...names.matchAll(/“([^”]+)”/g)].map(([, name = '']) => name),
    }),
  );
}

/** Rows of the tables, without their heads. */
function rowsOf(document: string): string[][] {
  return document
    .split('\n')
    .filter((line) => line.startsWith('|') && !/^\|[-| ]+\|$/.test(line) && !line.startsWith('| what they'))
    .map((line) =>
      line
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    );
}

/**
 * Whether `source` has a test or suite called `name`. Where a name is put together, each part that is put in must stand
 * in the source itself, as a row of a table does.
 */
function hasTest(source: string, name: string): boolean {
  const quoted = (text: string): boolean => {
    const escaped = text.replaceAll('\\', '\\\\').replaceAll("'", "\\'");
    return [`'${text}'`, `'${escaped}'`, `"${text}"`, `\`${text}\``].some((literal) =>
      source.includes(literal),
    );
  };
  if (quoted(name)) return true;
  const templates = [...source.matchAll(/\b(?:test|describe)\(\s*`((?:[^`\\]|\\.)*)`/g)].map(
    ([, text = '']) => text,
  );
  return templates.some((template) => {
    const parts = template.split(/\$\{(?:[^{}]|\{[^{}]*\})*\}/);
    const pattern = parts.map((part) => part.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('(.*?)');
    const inserted = new RegExp(`^${pattern}$`).exec(name)?.slice(1);
    return inserted?.every((text) => text === '' || mentions(source, text)) ?? false;
  });
}

/** Names may have been made of words of a table (`dies-at-start`), or from a constant that another file has. */
function mentions(source: string, text: string): boolean {
  return (
    [text.trim(), text.trim().replaceAll(' ', '-')].some((one) => source.includes(one)) || KNOWN.has(text)
  );
}

/** What names are made of that their file does not spell out: the cipher of volumes. */
const KNOWN = new Set(['64:aes-xts-plain64']);

const document = readFileSync(join(installRoot, 'docs/threat-model.md'), 'utf8');

test('every line of the threat model names a test that attacks it', () => {
  const rows = rowsOf(document);
  assert.ok(rows.length > 40, `${rows.length} rows`);
  const bare = rows.filter((row) => row.length !== 3 || citationsOf(row[2] ?? '').length === 0);
  assert.deepEqual(bare, []);
});

test('every test that the threat model names exists', () => {
  const missing = citationsOf(document).flatMap(({ file, names }) => {
    const path = join(installRoot, file);
    if (!existsSync(path)) return [file];
    const source = readFileSync(path, 'utf8');
    return names.filter((name) => !hasTest(source, name)).map((name) => `${file}: ${name}`);
  });
  assert.deepEqual(missing, []);
});

test('the check finds what is missing: the control', () => {
  const template = '$' + '{what}';
  const source = `test('one', () => {});\nfor (const what of ['two']) test(\`${template} and ${template}\`, () => {});`;
  assert.deepEqual(
    ['one', 'two and two', 'three', 'three and two', 'on'].map((name) => hasTest(source, name)),
    [true, true, false, false, false],
  );
  assert.deepEqual(citationsOf('[a](../x.test.ts) “b”, “c”; [d](../y.test.ts) “e”'), [
    { file: 'x.test.ts', names: ['b', 'c'] },
    { file: 'y.test.ts', names: ['e'] },
  ]);
});
