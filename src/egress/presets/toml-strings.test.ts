import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readTomlStrings, tomlPath } from './toml-strings.ts';

function read(text: string): Record<string, string | boolean> {
  return Object.fromEntries(
    [...readTomlStrings(text)].map(([path, value]) => [path.split('\0').join(' / '), value]),
  );
}

test('tables, dotted and quoted keys, inline tables, both kinds of strings', () => {
  const text = `
top = "a" # comment
[one.'two.x']
"three four" = 'C:\\n'
five.six = "\\u00e9\\n"
on = true
[seven]
inline = { a = "1", b.c = '2', d = { e = false } }
`;
  assert.deepEqual(read(text), {
    top: 'a',
    'one / two.x / three four': 'C:\\n',
    'one / two.x / five / six': 'é\n',
    'one / two.x / on': true,
    'seven / inline / a': '1',
    'seven / inline / b / c': '2',
    'seven / inline / d / e': false,
  });
});

test('what is no string or boolean is passed over, and what stands in a multi-line string is no setting', () => {
  const text = `
number = 5
list = ["a = 'x'"]
long = """
[registries.evil]
index = "https://evil.example"
"""
[[array]]
index = "https://evil.example"
[ok]
a = "1"
`;
  const found = readTomlStrings(text);
  assert.equal(found.get(tomlPath('registries', 'evil', 'index')), undefined);
  assert.equal(found.get(tomlPath('ok', 'a')), '1');
});

test('broken lines give no value and take no time', () => {
  for (const text of ['= "x"', 'a', 'a = "x', '[a', 'a = {b = "1"', 'a = {b}', 'a.= "1"', 'a = "\\q"']) {
    const values = Object.values(read(text));
    assert.ok(values.length === 0 || text === 'a = {b = "1"', text);
  }
  const startedAt = performance.now();
  for (const piece of ['a.', '{a=', '"\\', "'", '[', '""" ']) readTomlStrings(`a = ${piece.repeat(20_000)}`);
  assert.ok(performance.now() - startedAt < 2000);
});
