import assert from 'node:assert/strict';
import { test } from 'node:test';
import { jsonPieces } from './json-stream.ts';

async function pieces(text: string, shape: 'objects' | 'members', chunkBytes: number): Promise<unknown[]> {
  const bytes = Buffer.from(text);
  const chunks = (async function* () {
    for (let at = 0; at < bytes.length; at += chunkBytes) yield bytes.subarray(at, at + chunkBytes);
  })();
  const found: unknown[] = [];
  for await (const { key, value } of jsonPieces(chunks, { shape, maxValueBytes: 1000, name: 'x' })) {
    found.push(shape === 'members' ? [key, value] : value);
  }
  return found;
}

const VALUES = [{}, { a: '}{"\\' }, { 'ä{': ['[', { b: ']"' }] }, { c: 'é\u2028🙂', d: [1, null, true] }];

test('values come out whole, wherever the text is cut into chunks', async () => {
  const texts = [
    VALUES.map((value) => JSON.stringify(value)).join('\n'),
    VALUES.map((value) => JSON.stringify(value, undefined, 3)).join(''),
    JSON.stringify(VALUES),
    ` [\n${VALUES.map((value) => ` ${JSON.stringify(value)} `).join(',\n')}\n] \n`,
  ];
  for (const text of texts) {
    for (const chunkBytes of [1, 2, 3, 7, 1000]) {
      assert.deepEqual(await pieces(text, 'objects', chunkBytes), VALUES, `${chunkBytes}: ${text}`);
    }
  }
  assert.deepEqual(await pieces('[]', 'objects', 1), []);
});

test('members come out with their keys', async () => {
  const object = { a: { x: 1 }, 'b "\\': {}, ö: { y: [{}] } };
  for (const chunkBytes of [1, 2, 1000]) {
    assert.deepEqual(await pieces(JSON.stringify(object), 'members', chunkBytes), Object.entries(object));
    assert.deepEqual(
      await pieces(JSON.stringify(object, undefined, 2), 'members', chunkBytes),
      Object.entries(object),
    );
  }
  assert.deepEqual(await pieces(' { } ', 'members', 1), []);
});

test('what is no such text is refused with VULN_DB_INVALID', async () => {
  const objects = [
    '',
    ' ',
    '[',
    '[{}',
    '[{},',
    '[{},]',
    '[,{}]',
    '[{}{}]',
    '[{}]]',
    '[{}] {}',
    '{',
    '{"a"',
    '{]',
    '1',
    '"a"',
    '[1]',
    '[[]]',
    '{},{}',
  ];
  const members = [
    '',
    '[]',
    '{',
    '{"a"}',
    '{"a":1}',
    '{"a":{}',
    '{"a":{},}',
    '{,}',
    '{"a":{}"b":{}}',
    '{"a":{}}{}',
    '{a:{}}',
    '{"a" {}}',
    '{"a"::{}}',
  ];
  for (const text of objects)
    await assert.rejects(pieces(text, 'objects', 1), { code: 'VULN_DB_INVALID' }, text);
  for (const text of members)
    await assert.rejects(pieces(text, 'members', 1), { code: 'VULN_DB_INVALID' }, text);
  await assert.rejects(pieces(`{"a":"${'x'.repeat(1000)}"}`, 'objects', 64), { code: 'VULN_DB_INVALID' });
});
