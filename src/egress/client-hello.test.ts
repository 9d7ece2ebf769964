import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ConnectionOptions } from 'node:tls';
import {
  clientHello,
  craftHello,
  nameSeenByOpenssl,
  sniExtension,
  tlsRecord,
  u16,
} from '../../test/support/egress-hello.ts';
import { SeededRandom } from '../../test/support/egress-random.ts';
import { ClientHelloReader, type ClientHelloState, MAX_HELLO_BYTES } from './client-hello.ts';

function read(...pieces: readonly Buffer[]): ClientHelloState {
  const reader = new ClientHelloReader();
  let state: ClientHelloState = { kind: 'needs-more' };
  for (const piece of pieces) state = reader.push(piece);
  return state;
}

const named = (sni: string | null, ech = false): ClientHelloState => ({ kind: 'hello', sni, ech });

/** The same message in records of `size` bytes. */
function inRecords(hello: Buffer, size: number): Buffer {
  const message = hello.subarray(5);
  const records: Buffer[] = [];
  for (let at = 0; at < message.length; at += size) records.push(tlsRecord(message.subarray(at, at + size)));
  return Buffer.concat(records);
}

const VARIANTS: readonly ConnectionOptions[] = [
  {},
  { minVersion: 'TLSv1.3' },
  { maxVersion: 'TLSv1.2' },
  { ALPNProtocols: ['h2', 'http/1.1'] },
  { ciphers: 'ECDHE-RSA-AES128-GCM-SHA256', maxVersion: 'TLSv1.2' },
  { ecdhCurve: 'X25519:P-256:P-384' },
];

test('the name in hellos of real clients is found, in whatever case it was written', async () => {
  for (const options of VARIANTS) {
    const hello = await clientHello({ ...options, servername: 'Registry.Example.com' });
    assert.deepEqual(read(hello), named('registry.example.com'), JSON.stringify(options));
    assert.deepEqual(read(await clientHello(options)), named(null), 'no name, no SNI');
  }
});

test('a hello is read alike at every split and in records of every size', async () => {
  const hello = await clientHello({ servername: 'a.example', ALPNProtocols: ['http/1.1'] });
  for (let at = 1; at < hello.length; at++) {
    assert.equal(read(hello.subarray(0, at)).kind, 'needs-more', `${at} bytes`);
    assert.deepEqual(read(hello.subarray(0, at), hello.subarray(at)), named('a.example'));
  }
  for (const size of [1, 2, 3, 4, 5, 64, 100, hello.length - 6]) {
    if (hello.length / size > 700) continue;
    const wire = inRecords(hello, size);
    assert.deepEqual(read(wire), named('a.example'), `records of ${size}`);
    assert.deepEqual(read(...Array.from(wire, (byte) => Buffer.of(byte))), named('a.example'));
  }
});

test('a hidden name is told, also one of GREASE', () => {
  for (const type of [0xfe0d, 0xfe0a, 0xffce]) {
    assert.deepEqual(
      read(craftHello([sniExtension('front.example'), [type, Buffer.alloc(40)]])),
      named('front.example', true),
    );
  }
  assert.deepEqual(
    read(craftHello([sniExtension('front.example'), [0xfe0e, Buffer.alloc(4)]])),
    named('front.example'),
  );
});

test('what servers might read differently is malformed', () => {
  const sni = sniExtension('a.example');
  const nameType = Buffer.from(sni[1]);
  nameType[2] = 1;
  const good = craftHello([sni]);
  const cases: [string, Buffer][] = [
    ['SNI twice', craftHello([sni, sniExtension('b.example')])],
    ['any extension twice', craftHello([sni, [16, Buffer.alloc(2)], [16, Buffer.alloc(2)]])],
    ['two names', craftHello([sniExtension('a.example', 'b.example')])],
    ['no name', craftHello([sniExtension()])],
    ['an empty name', craftHello([sniExtension('')])],
    ['another type of name', craftHello([[0, nameType]])],
    ['an empty extension', craftHello([[0, Buffer.alloc(0)]])],
    ['bytes after the list', craftHello([[0, Buffer.concat([sni[1], Buffer.of(0)])]])],
    ['NUL', craftHello([sniExtension('a.example\0.evil.example')])],
    ['a final dot', craftHello([sniExtension('a.example.')])],
    ['an address', craftHello([sniExtension('192.0.2.7')])],
    ['an IPv6 address', craftHello([sniExtension('2001:db8::1')])],
    ['a name that is an address to some', craftHello([sniExtension('0x7f.1')])],
    ['UTF-8', craftHello([sniExtension(Buffer.from('ä.example'))])],
    ['a long name', craftHello([sniExtension(`${'a.'.repeat(130)}example`)])],
    ['a wildcard', craftHello([sniExtension('*.example')])],
    [
      'bytes after the extensions',
      tlsRecord(Buffer.concat([Buffer.of(1, 0), u16(good.length - 9 + 1), good.subarray(9), Buffer.of(0)])),
    ],
    ['a message after it', tlsRecord(Buffer.concat([good.subarray(5), Buffer.of(1)]))],
    ['another message', tlsRecord(Buffer.of(2, 0, 0, 1, 0))],
    ['an empty record', Buffer.concat([tlsRecord(good.subarray(5, 20)), tlsRecord(Buffer.alloc(0))])],
    ['a record that is too long', Buffer.of(22, 3, 1, 0x40, 1)],
    ['an alert in the middle', Buffer.concat([tlsRecord(good.subarray(5, 20)), Buffer.of(21, 3, 1, 0, 2)])],
    ['a hello that is too long', tlsRecord(Buffer.of(1, 0xff, 0xff, 0xff))],
    [
      'records without end',
      Buffer.concat(
        Array.from({ length: 5000 }, (_, index) =>
          tlsRecord(index === 0 ? Buffer.of(1, 0, 0x3f, 0xff) : Buffer.of(0)),
        ),
      ),
    ],
  ];
  for (const [what, bytes] of cases) assert.equal(read(bytes).kind, 'malformed', what);
  assert.deepEqual(read(good), named('a.example'), 'negative control');
});

test('other protocols are not TLS', () => {
  for (const bytes of [
    Buffer.from('GET / HTTP/1.1\r\n'),
    Buffer.of(0x80, 0x2e, 1, 3, 1),
    Buffer.of(22, 2, 0),
    Buffer.of(23, 3, 3),
  ]) {
    assert.equal(read(bytes).kind, 'not-tls');
  }
});

test('whatever changes, no name is found that OpenSSL does not find, and nothing is held without bound', async () => {
  const random = new SeededRandom(20_261_124);
  const hellos = [
    await clientHello({ servername: 'allowed.example' }),
    await clientHello({ servername: 'allowed.example', maxVersion: 'TLSv1.2' }),
    inRecords(await clientHello({ servername: 'allowed.example' }), 50),
  ];
  let bothFound = 0;
  for (let round = 0; round < 3000; round++) {
    const bytes = random.mutated(hellos[round % hellos.length] as Buffer);
    const whole = read(bytes);
    assert.deepEqual(read(...random.pieces(bytes)), whole, bytes.toString('hex'));
    if (whole.kind !== 'hello' || whole.sni === null || round % 4 !== 0) continue;
    const theirs = await nameSeenByOpenssl(bytes);
    if (theirs === undefined) continue; // a hello that it refuses for another reason reaches nobody
    bothFound += 1;
    assert.equal(theirs.toLowerCase(), whole.sni, bytes.toString('hex'));
  }
  assert.ok(bothFound > 20, `only ${bothFound} compared`);
  for (let round = 0; round < 300; round++) {
    const noise = Buffer.from(Array.from({ length: 600 }, () => random.below(256)));
    noise.set([22, 3, 1], 0);
    read(...random.pieces(noise));
  }
  const endless = new ClientHelloReader();
  for (
    let sent = 0;
    sent < 4 * MAX_HELLO_BYTES && endless.push(tlsRecord(Buffer.of(1))).kind === 'needs-more';
    sent += 6
  );
  assert.equal(endless.push(Buffer.of(0)).kind, 'malformed');
});
