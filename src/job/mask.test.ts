import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes, randomInt } from 'node:crypto';
import { test } from 'node:test';
import { inspect } from 'node:util';
import { MAX_JOB_SECRETS_BYTES, MAX_SECRET_BYTES } from '../protocol/limits.ts';
import { Masker } from './mask.ts';
import { SecretValues } from './secret-values.ts';

function secretsOf(...values: (string | Buffer)[]): SecretValues {
  const secrets = new SecretValues();
  for (const [index, value] of values.entries()) secrets.add(`S${index}`, Buffer.from(value));
  return secrets;
}

function maskerOf(...values: (string | Buffer)[]): Masker {
  return new Masker(secretsOf(...values));
}

/** Everything `text` becomes when it arrives in chunks that `cut` chooses. */
function inChunks(masker: Masker, text: Buffer, cut: (left: number) => number): string {
  const stream = masker.stream();
  const out: Buffer[] = [];
  for (let at = 0; at < text.length; ) {
    const size = Math.min(text.length - at, cut(text.length - at));
    out.push(stream.push(Buffer.from(text.subarray(at, at + size))));
    at += size;
  }
  out.push(stream.flush());
  return Buffer.concat(out).toString('latin1');
}

const VALUE = 'pa55 w/rd+"quote\'s"';

test('the control: a masker of another secret leaves the text alone', () => {
  const text = `token ${VALUE} and ${Buffer.from(VALUE).toString('base64')}`;
  assert.equal(maskerOf('something else').text(text), text);
});

test('a value is masked wherever it stands, once per stretch', () => {
  const masker = maskerOf('hunter22', 'ter22aa');
  assert.equal(masker.text('hunter22'), '***');
  assert.equal(masker.text('a hunter22 b hunter22'), 'a *** b ***');
  assert.equal(masker.text('hunter22hunter22'), '***');
  assert.equal(masker.text('hunter22aa!'), '***!', 'values that overlap');
  assert.equal(masker.text('hunter2 hunte'), 'hunter2 hunte', 'parts are no secret');
  assert.equal(maskerOf('aaaa').text('aaaaaaaaa aaa'), '*** aaa');
  assert.equal(maskerOf('abcdef', 'bcde').text('abcdeX abcdef bcde'), 'a***X *** ***');
});

const ENCODINGS: readonly [name: string, encode: (value: string) => string][] = [
  ['base64 with padding', (value) => Buffer.from(value).toString('base64')],
  ['base64 of a line', (value) => Buffer.from(`${value}\n`).toString('base64')],
  ['base64url', (value) => Buffer.from(value).toString('base64url')],
  ['hex', (value) => Buffer.from(value).toString('hex')],
  ['HEX', (value) => Buffer.from(value).toString('hex').toUpperCase()],
  ['encodeURIComponent', encodeURIComponent],
  ['a form', (value) => new URLSearchParams({ v: value }).toString().slice(2)],
  ['JSON', (value) => JSON.stringify(value).slice(1, -1)],
];

for (const [name, encode] of ENCODINGS) {
  test(`${name} is masked`, () => {
    for (const value of [VALUE, 'üñí→🔑 key', 'plainToken123', randomBytes(40).toString('hex')]) {
      assert.equal(maskerOf(value).text(`<${encode(value)}>`), '<***>', value);
    }
  });
}

test('base64 is masked at every alignment, but for the characters that its neighbours share', () => {
  for (const value of [VALUE, 'plainToken123', '>>>???~~~']) {
    const masker = maskerOf(value);
    for (let before = 0; before < 9; before++) {
      for (const encoding of ['base64', 'base64url'] as const) {
        const text = Buffer.from(`${'x'.repeat(before)}${value}yyy`).toString(encoding);
        const masked = masker.text(text);
        assert.ok(masked.includes('***'), text);
        const shared = masked.replace('***', '').replaceAll('=', '').length;
        const others = Math.ceil((before * 8) / 6) + Math.ceil((3 * 8) / 6) + 1;
        assert.ok(shared <= others, `${text} became ${masked}`);
      }
    }
  }
});

test('what the tools of a guest make of a value is masked', () => {
  const value = `${randomBytes(60).toString('base64')}'x"y`;
  const masker = maskerOf(value);
  const sh = (script: string): string =>
    execFileSync('sh', ['-c', script], { input: value, encoding: 'utf8' });
  assert.match(masker.text(sh('base64')), /^\*\*\*\n\*\*\*\n$/);
  assert.match(masker.text(sh('base64 -w64')), /^\*\*\*\n\*\*\*\n$/);
  assert.match(masker.text(sh('{ cat; echo; } | base64')), /^\*\*\*\n\*\*\*\n$/);
  assert.match(masker.text(sh('od -An -tx1 -v | tr -d " \\n"')), /^\*\*\*$/);
  assert.match(
    masker.text(
      execFileSync('bash', ['-c', 'set -x; : "$V" 2>&1'], { env: { V: value }, stdio: 'pipe' }).toString(),
    ),
    /^$/,
  );
  assert.match(masker.text(`+ : '${value.replaceAll("'", "'\\''")}'`), /^\+ : '\*\*\*'$/);
});

test('each line of a value of several lines is masked, short ones and blank ones are not', () => {
  const key = '-----BEGIN KEY-----\r\nMIIEvQIBADANBgkq\r\n  indented line\n\n}\n-----END KEY-----\n';
  const masker = maskerOf(key);
  assert.equal(masker.text('one MIIEvQIBADANBgkq two'), 'one *** two');
  assert.equal(masker.text('x indented line y'), 'x *** y');
  assert.equal(masker.text('{ a: 1 }\n\n'), '{ a: 1 }\n\n');
  assert.equal(masker.text(key), '***\n');
  assert.equal(masker.text(JSON.stringify({ key })), '{"key":"***\\n"}');
});

test('cut at any place the result is that of the whole (random values, texts and cuts)', () => {
  for (let round = 0; round < 300; round++) {
    const letters = 'ab'.slice(0, randomInt(1, 3));
    const word = (length: number): string =>
      Array.from({ length }, () => letters[randomInt(letters.length)]).join('');
    const values = Array.from({ length: randomInt(1, 5) }, () => word(randomInt(4, 12)));
    const masker = maskerOf(...values);
    const pieces = Array.from({ length: randomInt(0, 20) }, () => {
      const value = values[randomInt(values.length)] as string;
      return [value, word(randomInt(1, 6)), ' ', Buffer.from(value).toString('base64')][
        randomInt(4)
      ] as string;
    });
    const text = Buffer.from(pieces.join(''));
    const whole = inChunks(masker, text, () => text.length);
    for (const cut of [() => 1, () => 2, (left: number) => randomInt(1, left + 1), () => randomInt(1, 8)]) {
      assert.equal(inChunks(masker, text, cut), whole, `${JSON.stringify(values)} in ${text}`);
    }
    for (const value of values) assert.ok(!whole.includes(value), `${value} in ${whole} of ${text}`);
  }
});

test('what cannot be a secret is given out at once, the rest when it is clear or flushed', () => {
  const stream = maskerOf('hunter22-abcdefgh').stream();
  const push = (text: string): string => stream.push(Buffer.from(text)).toString();
  assert.equal(push('Password: '), 'Password: ');
  assert.equal(push('go hunt'), 'go ');
  assert.equal(stream.heldBytes, 4);
  assert.equal(push('ing'), 'hunting');
  assert.equal(push('hunt'), '');
  assert.equal(stream.flushShort().toString(), 'hunt', 'a prompt may begin like a secret');
  assert.equal(push('er22-abcdefgh!'), '***!', 'the rest is hidden all the same');
  assert.equal(push('hunter22-abc'), '');
  assert.equal(stream.flushShort().toString(), '', 'so much is no accident');
  assert.equal(stream.heldBytes, 12);
  assert.equal(push('defgh'), '***');
  assert.equal(push('hunter22'), '');
  assert.equal(stream.flush().toString(), 'hunter22', 'the end: it did not become a secret');
});

test('a short secret is not shown in two halves', () => {
  const stream = maskerOf('abcd').stream();
  stream.push(Buffer.from('abc'));
  assert.equal(stream.flushShort().length, 0);
  assert.equal(stream.push(Buffer.from('d')).toString(), '***');
});

for (const [name, value, near] of [
  ['one that fails at its last byte', `${'a'.repeat(1000)}b`, 'a'],
  ['one of all its own prefixes', `${'ab'.repeat(20_000)}c`, 'ab'],
  ['many that match at every byte', 'aaaa', 'a'],
] as const) {
  test(`100 MB of near-matches take linear time: ${name}`, { timeout: 60_000 }, () => {
    const stream = maskerOf(value).stream();
    const chunk = Buffer.from(near.repeat(65_536 / near.length));
    let out = 0;
    let most = 0;
    for (let i = 0; i < 1600; i++) {
      out += stream.push(chunk).length;
      most = Math.max(most, stream.heldBytes);
    }
    out += stream.flush().length;
    assert.equal(out, value === 'aaaa' ? 3 : 1600 * chunk.length);
    assert.ok(most <= value.length, `${most} bytes were held`);
  });
}

test('bytes that come one by one cost no more the longer the secret is', { timeout: 60_000 }, () => {
  const value = 'ab'.repeat(20_000);
  const stream = maskerOf(`${value}c`).stream();
  for (let round = 0; round < 10; round++) {
    for (let at = 0; at < value.length; at++) stream.push(Buffer.from(value.slice(at, at + 1)));
  }
  assert.ok(stream.heldBytes <= value.length);
});

test('the largest secrets fit the memory of a link process', () => {
  const before = process.memoryUsage().arrayBuffers;
  const masker = maskerOf(
    Buffer.from(randomBytes(MAX_SECRET_BYTES).map((byte) => byte || 1)),
    Buffer.from(randomBytes(MAX_JOB_SECRETS_BYTES - MAX_SECRET_BYTES).map((byte) => byte || 1)),
  );
  assert.equal(masker.text('nothing'), 'nothing');
  const mib = (process.memoryUsage().arrayBuffers - before) / 1024 / 1024;
  assert.ok(mib < 100, `${mib} MiB`);
});

test('a scan names the secrets that a stream holds as they are, and changes nothing', () => {
  const masker = maskerOf('hunter22', 'other-one\n', 'absent-value');
  const scan = masker.scan();
  for (const chunk of ['x hunt', 'er2', '2 y ', 'other-one']) scan.push(Buffer.from(chunk));
  assert.deepEqual(scan.found, ['S0', 'S1']);
  assert.deepEqual(masker.scan().found, []);
});

test('nothing prints the values, and they are wiped', () => {
  const secrets = secretsOf('hunter22');
  const masker = new Masker(secrets);
  for (const object of [secrets, masker, { secrets, masker }, [secrets], new Map([[1, masker]])]) {
    for (const text of [
      inspect(object, { depth: 10, showHidden: true }),
      JSON.stringify(object),
      `${object}`,
    ]) {
      assert.ok(!text.includes('hunter22') && !text.includes('68 75 6e'), text);
    }
  }
  const value = secrets.get('S0');
  secrets[Symbol.dispose]();
  assert.deepEqual(value, Buffer.alloc(8));
  assert.throws(() => secrets.get('S0'), { code: 'HOST_PROTOCOL' });
  masker[Symbol.dispose]();
  assert.equal(masker.text('hunter22'), 'hunter22', 'it has forgotten');
});

test('SECRET_UNUSABLE refuses values that cannot be masked or passed on, and does not show them', () => {
  const refused: [Buffer, RegExp][] = [
    [Buffer.from('abc'), /fewer than 4/],
    [Buffer.from('abc\n'), /fewer than 4/],
    [Buffer.from(''), /blank/],
    [Buffer.from('    \n'), /blank/],
    [Buffer.from('ab\0cd'), /NUL/],
    [Buffer.alloc(MAX_SECRET_BYTES + 1, 'x'), /longer than/],
  ];
  for (const [value, message] of refused) {
    const text = value.toString();
    assert.throws(
      () => new SecretValues().add('NAME', value),
      (error: Error & { code?: string }) =>
        error.code === 'SECRET_UNUSABLE' &&
        message.test(error.message) &&
        !(text.trim() && error.message.includes(text)),
    );
    assert.ok(
      value.every((byte) => byte === 0),
      'wiped',
    );
  }
  const secrets = secretsOf(Buffer.alloc(MAX_SECRET_BYTES, 'x'));
  assert.throws(() => secrets.add('MORE', Buffer.alloc(MAX_SECRET_BYTES, 'y')), /together/);
});
