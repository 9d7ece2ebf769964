import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encodeCpio } from './cpio.ts';

test('an archive has the bytes of the newc format', () => {
  const archive = encodeCpio([
    { name: 'dev', mode: 0o040755 },
    { name: 'init', mode: 0o100755, data: Buffer.from('hello') },
  ]);
  assert.equal(
    archive.toString('latin1'),
    [
      '070701' + '00000001' + '000041ed' + '00000000' + '00000000' + '00000001' + '00000000',
      '00000000' + '00000000' + '00000000' + '00000000' + '00000000' + '00000004' + '00000000' + 'dev\0\0\0',
      '070701' + '00000002' + '000081ed' + '00000000' + '00000000' + '00000001' + '00000000',
      '00000005' + '00000000' + '00000000' + '00000000' + '00000000' + '00000005' + '00000000' + 'init\0\0',
      'hello\0\0\0',
      '070701' + '00000000' + '00000000' + '00000000' + '00000000' + '00000001' + '00000000',
      '00000000' + '00000000' + '00000000' + '00000000' + '00000000' + '0000000b' + '00000000',
      'TRAILER!!!\0\0\0\0',
    ].join(''),
  );
});

test('every archive is a multiple of four bytes, so that archives can be concatenated', () => {
  for (let length = 0; length < 9; length++) {
    const archive = encodeCpio([
      { name: 'x'.repeat(length + 1), mode: 0o100644, data: Buffer.alloc(length) },
    ]);
    assert.equal(archive.length % 4, 0);
  }
});

test('names that are absolute or climb are refused', () => {
  for (const name of ['/init', '../init', 'a//b', './a', '', 'a\0b']) {
    assert.throws(() => encodeCpio([{ name, mode: 0o100644 }]), TypeError);
  }
});
