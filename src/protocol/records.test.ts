import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MAX_RECORD_BYTES } from './limits.ts';
import { encodeChunked, encodeRecord, RecordDecoder } from './records.ts';

test('records survive any cutting into chunks', () => {
  const records: [number, string][] = [
    [1, ''],
    [2, 'x'],
    [255, 'y'.repeat(5000)],
    [3, ''],
  ];
  const wire = Buffer.concat(records.map(([type, text]) => encodeRecord(type, text)));
  for (const size of [1, 2, 5, 6, 4999, wire.length]) {
    const seen: [number, string][] = [];
    const decoder = new RecordDecoder((type, payload) => seen.push([type, payload.toString()]));
    for (let at = 0; at < wire.length; at += size) decoder.push(wire.subarray(at, at + size));
    assert.deepEqual(seen, records, `chunks of ${size}`);
    assert.equal(decoder.pendingBytes, 0);
  }
});

test('the decoder throws GUEST_PROTOCOL on an announced length beyond the limit, before the payload arrives', () => {
  const header = Buffer.alloc(5);
  header.writeUInt32BE(MAX_RECORD_BYTES + 1, 1);
  const decoder = new RecordDecoder(() => assert.fail('no record is complete'));
  assert.throws(() => decoder.push(header), { code: 'GUEST_PROTOCOL' });
});

test('encodeChunked cuts at the limit and keeps every byte', () => {
  const data = Buffer.alloc(MAX_RECORD_BYTES * 2 + 1, 7);
  const sizes = [...encodeChunked(9, data)].map((record) => record.length - 5);
  assert.deepEqual(sizes, [MAX_RECORD_BYTES, MAX_RECORD_BYTES, 1]);
  assert.throws(() => encodeRecord(9, data), { code: 'HOST_PROTOCOL' });
});

test('bytes of an incomplete record can be taken to another decoder', () => {
  const wire = encodeRecord(7, 'payload');
  const first = new RecordDecoder(() => assert.fail('incomplete'));
  first.push(wire.subarray(0, 8));
  const seen: string[] = [];
  const second = new RecordDecoder((_, payload) => seen.push(payload.toString()));
  second.push(first.takePending());
  second.push(wire.subarray(8));
  assert.deepEqual(seen, ['payload']);
  assert.equal(first.pendingBytes, 0);
});

test('a record that comes byte by byte takes linear time', () => {
  const record = encodeRecord(1, Buffer.alloc(MAX_RECORD_BYTES, 'x'));
  const bytes = Array.from(record, (byte) => Buffer.of(byte));
  let records = 0;
  const decoder = new RecordDecoder((_, payload) => {
    assert.equal(payload.length, MAX_RECORD_BYTES);
    records++;
  });
  const startedAt = performance.now();
  for (let i = 0; i < 10; i++) for (const byte of bytes) decoder.push(byte);
  assert.equal(records, 10);
  // Copied anew for every byte it would be 20 GB.
  assert.ok(performance.now() - startedAt < 2000, `${performance.now() - startedAt} ms`);
});
