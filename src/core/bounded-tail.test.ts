import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BoundedTail, printable } from './bounded-tail.ts';

test('keeps exactly the last bytes, however they were cut into chunks', () => {
  const all = Buffer.from(Array.from({ length: 1000 }, (_, i) => i % 251));
  for (const size of [1, 7, 64, 999, 1000]) {
    const tail = new BoundedTail(64);
    for (let at = 0; at < all.length; at += size) tail.push(all.subarray(at, at + size));
    assert.deepEqual(tail.bytes(), all.subarray(-64), `chunks of ${size}`);
  }
});

test('keeps all of a stream that is shorter than the limit', () => {
  const tail = new BoundedTail(64);
  tail.push(Buffer.from('short'));
  assert.equal(tail.text(), 'short');
});

test('text cannot drive a terminal', () => {
  assert.equal(printable('a\u001b[2Jb\r\nc\u009bd\te\u0007'), 'a[2Jb\ncd\te');
});
