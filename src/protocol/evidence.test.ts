import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Evidence, encodeEvidence, parseEvidence } from './evidence.ts';

const EVIDENCE: Evidence = {
  parts: [
    { kind: 'commit', path: '', bytes: Buffer.from('tree') },
    { kind: 'manifest', path: 'ct.signed.json', bytes: Buffer.alloc(0) },
    { kind: 'lock', path: 'package-lock.json', bytes: Buffer.from('{}') },
  ],
  dirty: ['a', 'b'],
};

test('evidence arrives as it was sent', () => {
  assert.deepEqual(parseEvidence(encodeEvidence(EVIDENCE)), EVIDENCE);
  assert.equal(parseEvidence(encodeEvidence({ parts: [], dirty: Array(100).fill('x') })).dirty.length, 20);
});

test('HOST_PROTOCOL for anything that is cut, longer, or says something twice', () => {
  const good = encodeEvidence(EVIDENCE);
  const header = (text: string, rest = ''): Buffer => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(Buffer.byteLength(text));
    return Buffer.concat([length, Buffer.from(text), Buffer.from(rest)]);
  };
  const part = '{"kind":"lock","path":"a","bytes":1}';
  const wrong = [
    Buffer.alloc(0),
    Buffer.of(0xff, 0xff, 0xff, 0xff),
    ...Array.from({ length: good.length }, (_, end) => good.subarray(0, end)),
    Buffer.concat([good, Buffer.of(0)]),
    header('{"parts":[]}'),
    header('{"parts":{},"dirty":[]}'),
    header('{"parts":[],"dirty":[1]}'),
    header('{"parts":[],"dirty":[],"more":1}'),
    header(`{"parts":[${part},${part}],"dirty":[]}`, 'xx'),
    header(`{"parts":[${part.replace('lock', 'key')}],"dirty":[]}`, 'x'),
    header(`{"parts":[${part.replace('1', '-1')}],"dirty":[]}`),
    header(`{"parts":[${part.replace('1', '1e9')}],"dirty":[]}`, 'x'),
    header(`{"parts":[${part.replace('"a"', `"${'a'.repeat(5000)}"`)}],"dirty":[]}`, 'x'),
  ];
  for (const bytes of wrong)
    assert.throws(() => parseEvidence(bytes), { code: 'HOST_PROTOCOL' }, bytes.toString());
});
