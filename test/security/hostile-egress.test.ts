/**
 * The proxy of one VM with a hostile guest as its HTTP/2 client. Whatever it sends: what reaches the control is canonical,
 * the process stays, its memory stays bounded, and at worst the session ends. Each attack has the honest request beside it.
 */
import assert from 'node:assert/strict';
import { createServer, type Socket } from 'node:net';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { isHostName } from '../../src/egress/host-name.ts';
import { MAX_STREAMS } from '../../src/egress/proxy.ts';
import { canonicalAddress } from '../../src/policy/address.ts';
import { EgressPath } from '../../src/protocol/guest-link.ts';
import { dnsQuery, readDnsAnswer } from '../support/egress-dns.ts';
import { FrameGuest, literalHeaders } from '../support/egress-frames.ts';
import {
  EgressGuest,
  type EgressLink,
  egressLink,
  type FakeControl,
  listen,
  until,
} from '../support/egress-guest.ts';
import { clientHello } from '../support/egress-hello.ts';
import { SeededRandom } from '../support/egress-random.ts';
import { Flag, Frame, frame } from '../support/fake-guest.ts';

const A = 1;
/** A link process has 256 MiB, of which it takes 60 itself; here the attacker lives in the same process. */
const MAX_GROWTH_MIB = 150;

let serverPort = 0;
const sockets = new Set<Socket>();
const server = createServer({ allowHalfOpen: true }, (socket) => {
  sockets.add(socket);
  socket.on('error', () => {}).on('close', () => sockets.delete(socket));
  socket.pipe(socket);
});
before(async () => {
  serverPort = await listen(server);
});
after(() => {
  for (const socket of sockets) socket.destroy();
  server.close();
});

async function hostile(): Promise<EgressLink> {
  const link = await egressLink();
  link.control.port = serverPort;
  link.proxy.lost.catch(() => {});
  return link;
}

/** Nothing but names and addresses in their one form was asked about. */
function assertCanonical(control: FakeControl): void {
  for (const { host, literal, port } of control.destinations) {
    assert.equal(literal ? canonicalAddress(host) : host, host);
    assert.equal(literal || isHostName(host), true, host);
    assert.ok(Number.isInteger(port) && port >= 1 && port <= 65_535);
  }
  for (const question of control.names) assert.ok(isHostName(question.split(' ')[1] ?? ''), question);
  for (const facts of control.facts) {
    const name = facts.protocol === 'tls' ? facts.sni : facts.protocol === 'http' ? facts.httpHost : null;
    assert.ok(name === null || isHostName(name) || canonicalAddress(name) === name, String(name));
  }
}

async function isServed(guest: EgressGuest): Promise<boolean> {
  const stream = guest.connect('192.0.2.99:7');
  if ((await stream.status) !== 200) return false;
  stream.http2.end('ping\n');
  await stream.ended;
  return stream.text === 'ping\n';
}

/** A new session in the same process is served as ever. */
async function assertProcessServes(): Promise<void> {
  await using link = await hostile();
  assert.ok(await isServed(new EgressGuest(link.wire)));
}

function growthMib(sinceBytes: number): number {
  return (process.memoryUsage().rss - sinceBytes) / 2 ** 20;
}

test('an authority that is not exactly an address and a port is refused, and nobody is asked about it', async () => {
  const forged: (string | Buffer)[] = [
    'evil.example:443',
    'localhost:80',
    'a.example',
    '',
    ':443',
    '192.0.2.7',
    '192.0.2.7:',
    '192.0.2.7:0',
    '192.0.2.7:70000',
    '192.0.2.7:65536',
    '192.0.2.7:0443',
    '192.0.2.7:+443',
    '192.0.2.7:-1',
    '192.0.2.7:443 ',
    ' 192.0.2.7:443',
    '192.0.2.7:443:443',
    '192.0.2.7:4.43',
    '192.0.2.7:0x1bb',
    'user@192.0.2.7:443',
    'user:password@192.0.2.7:443',
    '192.0.2.7:443/path',
    '192.0.2.7:443?x',
    '192.0.2.7:443#x',
    'http://192.0.2.7:443',
    '192.0.2.7:443,192.0.2.8:443',
    '192.0.2.7\t:443',
    Buffer.from('192.0.2.7\0:443'),
    Buffer.from('192.0.2.7:443\0'),
    Buffer.from('192.0.2.7:443\r\nhost: x'),
    Buffer.from('１９２.0.2.7:443'),
    Buffer.from('192。0。2。7:443'),
    Buffer.from('192.0.2.7:４４３'),
    Buffer.of(0xff, 0xfe, 0x3a, 0x38, 0x30),
    '127.1:80',
    '0177.0.0.1:80',
    '0x7f.0.0.1:80',
    '0x7f000001:80',
    '2130706433:80',
    '127.0.0.01:80',
    '127.0.0.1.:80',
    '256.0.0.1:80',
    '1.2.3.4.5:80',
    '[192.0.2.7]:443',
    '2001:db8::7:443',
    '[2001:db8::7]',
    '[2001:db8::7',
    '2001:db8::7]:443',
    '[[2001:db8::7]]:443',
    '[fe80::1%eth0]:80',
    '[fe80::1%25eth0]:80',
    '[::1%lo]:80',
    '[::ffff:0x7f.0.0.1]:80',
    '[::ffff:127.1]:80',
    '[1:2:3:4:5:6:7:8:9]:80',
    '[1::2::3]:80',
    '[12345::]:80',
    '[v1.x]:80',
    '*:80',
    `${'1'.repeat(300)}:80`,
  ];
  await using link = await hostile();
  const guest = new FrameGuest(link.wire);
  let answered = 0;
  for (const authority of forged) {
    const { stream, bytes } = guest.connect(authority);
    await guest.send(bytes);
    await until(
      () => guest.isAnswered(stream),
      `an answer to ${JSON.stringify(authority.toString('latin1'))}`,
    );
    assert.equal(guest.isClosed, false, authority.toString('latin1'));
    assert.ok(
      !guest.of(stream).some(({ payload }) => payload[0] === 0x88),
      `200 for ${authority.toString('latin1')}`,
    );
    if (guest.of(stream).some(({ type }) => type === Frame.headers)) answered += 1;
  }
  assert.deepEqual(link.control.destinations, []);
  // Each leaves an event, unless HTTP/2 itself refuses it (RFC 9113, 8.2.1: a reset, and there never was a request).
  const seen = link.control.attempts.length;
  assert.ok(seen > 30 && seen === answered, `${seen} events, ${answered} requests`);
  assert.ok(link.control.attempts.every(({ what }) => what === 'forged-request'));
  for (const [authority, host] of [
    ['127.0.0.1:80', '127.0.0.1'],
    ['[::ffff:127.0.0.1]:80', '127.0.0.1'],
    ['[::FFFF:7F00:1]:80', '127.0.0.1'],
    ['[0:0:0:0:0:0:0:1]:80', '::1'],
    ['0.0.0.0:80', '0.0.0.0'],
    ['169.254.169.254:80', '169.254.169.254'],
  ] as const) {
    const { stream, bytes } = guest.connect(authority);
    await guest.send(bytes);
    await until(() => guest.isAnswered(stream), `an answer to ${authority}`);
    assert.deepEqual(
      link.control.destinations.at(-1),
      { host, literal: true, port: 80 },
      'negative control: one form for the control',
    );
  }
  assertCanonical(link.control);
  assert.equal(link.control.attempts.length, seen, 'negative control: an honest request is no event');
});

test('requests that are none of the three are refused, and nobody is asked about them', async () => {
  await using link = await hostile();
  const guest = new FrameGuest(link.wire);
  const authority = [':authority', '192.0.2.7:443'] as const;
  const post = [
    [':method', 'POST'],
    [':scheme', 'http'],
  ] as const;
  const forged: (readonly (readonly [string, string])[])[] = [
    [[':method', 'CONNECT']],
    [[':method', 'CONNECT'], authority, authority],
    [[':method', 'CONNECT'], authority, [':path', '/']],
    [[':method', 'CONNECT'], authority, [':scheme', 'http']],
    [[':method', 'CONNECT'], authority, [':protocol', 'websocket']],
    [[':method', 'CONNECT'], [':method', 'CONNECT'], authority],
    [[':method', 'CONNECT'], [':unknown', 'x'], authority],
    [authority, ['x', 'y'], [':method', 'CONNECT']],
    [[':method', 'connect'], authority],
    [[':method', 'GET'], [':scheme', 'http'], authority, [':path', '/']],
    [[':method', 'GET'], [':scheme', 'http'], authority, [':path', EgressPath.dns]],
    [...post, authority, [':path', '/v1/../v1/dns']],
    [...post, authority, [':path', '/v1/DNS']],
    [...post, authority, [':path', '/v1/exec']],
    [...post, authority, [':path', `${EgressPath.dns}?x`]],
    [...post, authority, [':path', 'http://127.0.0.1/']],
  ];
  for (const fields of forged) {
    const { stream, bytes } = guest.request(fields);
    await guest.send(bytes);
    await until(() => guest.isAnswered(stream), `an answer to ${JSON.stringify(fields)}`);
    assert.ok(!guest.of(stream).some(({ payload }) => payload[0] === 0x88), JSON.stringify(fields));
    assert.equal(guest.isClosed, false);
  }
  assert.deepEqual([link.control.destinations, link.control.names], [[], []]);
  const { stream, bytes } = guest.connect('192.0.2.7:443');
  await guest.send(bytes);
  await until(() => guest.of(stream).some(({ payload }) => payload[0] === 0x88), '200: negative control');
});

test('a refusal on an open connection is a reset, without an end before it', async () => {
  await using link = await hostile();
  link.control.allowsStream = () => false;
  const guest = new FrameGuest(link.wire);
  const { stream, bytes } = guest.connect('192.0.2.7:443');
  await guest.send(bytes, frame(Frame.data, 0, stream, Buffer.from('something\n')));
  await until(() => guest.of(stream).some(({ type }) => type === Frame.rstStream), 'the reset');
  assert.deepEqual(
    guest.of(stream).map(({ type, flags }) => [type, flags & Flag.endStream]),
    [
      [Frame.headers, 0],
      [Frame.rstStream, 0],
    ],
  );
  assert.equal(guest.of(stream)[1]?.payload.readUInt32BE(0), 10, 'CONNECT_ERROR');
});

test('malformed requests without end end the session', async () => {
  await using link = await hostile();
  const guest = new FrameGuest(link.wire);
  let sent = 0;
  while (!guest.isClosed && sent < 5000) {
    await guest.send(...Array.from({ length: 20 }, () => guest.connect('evil.example:443').bytes));
    sent += 20;
  }
  assert.ok(guest.isClosed, 'the session is over');
  await assert.rejects(link.proxy.lost, { code: 'GUEST_PROTOCOL' });
  assert.deepEqual(link.control.destinations, []);
  await assertProcessServes();
});

const FLOODS: readonly [what: string, flood: (guest: FrameGuest, round: number) => Uint8Array[]][] = [
  ['garbage', (_guest, round) => [Buffer.alloc(4096, round)]],
  [
    'CONTINUATION frames',
    (guest, round) =>
      round === 0
        ? [frame(Frame.headers, 0, guest.nextStream(), literalHeaders([[':method', 'CONNECT']]))]
        : Array.from({ length: 50 }, () =>
            frame(Frame.continuation, 0, 1, literalHeaders([['x', 'y'.repeat(100)]])),
          ),
  ],
  [
    'a header that is too long',
    (guest) => [
      guest.request([
        [':method', 'CONNECT'],
        ['x', 'y'.repeat(8000)],
      ]).bytes,
    ],
  ],
  [
    'many header fields',
    (guest) => [
      guest.request([
        [':method', 'CONNECT'],
        [':authority', '192.0.2.7:1'],
        ...Array.from({ length: 800 }, (_, index) => [`x${index}`, ''] as const),
      ]).bytes,
    ],
  ],
  [
    'resets at once',
    (guest) =>
      Array.from({ length: 100 }, () => guest.connect('192.0.2.7:443')).flatMap(({ stream, bytes }) => [
        bytes,
        frame(Frame.rstStream, 0, stream, Buffer.of(0, 0, 0, 8)),
      ]),
  ],
  [
    'resets of questions and of connections to the resolver',
    (guest) =>
      Array.from({ length: 100 }, (_, index) =>
        index % 2 === 0
          ? guest.connect('198.18.0.1:53')
          : guest.request(
              [
                [':method', 'POST'],
                [':scheme', 'http'],
                [':path', EgressPath.events],
              ],
              Flag.endHeaders | Flag.endStream,
            ),
      ).flatMap(({ stream, bytes }) => [bytes, frame(Frame.rstStream, 0, stream, Buffer.of(0, 0, 0, 8))]),
  ],
  [
    'settings',
    () => Array.from({ length: 200 }, () => frame(Frame.settings, 0, 0, Buffer.of(0, 4, 0, 1, 0, 0))),
  ],
  ['pings', () => Array.from({ length: 200 }, () => frame(Frame.ping, 0, 0, Buffer.alloc(8)))],
  ['data without a stream', () => [frame(Frame.data, 0, 999, Buffer.alloc(1000))]],
  ['pushes', () => [frame(Frame.pushPromise, Flag.endHeaders, 1, Buffer.of(0, 0, 0, 2, 0x88))]],
  [
    'priorities',
    () =>
      Array.from({ length: 200 }, (_, index) =>
        frame(Frame.priority, 0, 2 * index + 1, Buffer.of(0, 0, 0, 0, 1)),
      ),
  ],
  [
    'data beyond the window',
    (guest, round) => [
      round === 0 ? guest.connect('192.0.2.7:443').bytes : frame(Frame.data, 0, 1, Buffer.alloc(16_384, 'x')),
    ],
  ],
];

for (const [what, flood] of FLOODS) {
  test(`a flood of ${what} is survived, or ends the session`, async () => {
    await using link = await hostile();
    const guest = new FrameGuest(link.wire);
    const rss = process.memoryUsage().rss;
    const deadline = performance.now() + 2500;
    for (let round = 0; round < 400 && performance.now() < deadline; round++) {
      if (!(await guest.send(...flood(guest, round)))) break;
    }
    assert.ok(growthMib(rss) < MAX_GROWTH_MIB, `${growthMib(rss)} MiB more`);
    assertCanonical(link.control);
    await assertProcessServes();
  });
}

test('10,000 connections: as many at once as there may be, the rest is refused, and all are given back', async () => {
  await using link = await hostile();
  let [pending, most] = [0, 0];
  const release = Promise.withResolvers<void>();
  const { connect } = link.control;
  link.control.connect = async (destination) => {
    pending += 1;
    most = Math.max(most, pending);
    await release.promise;
    pending -= 1;
    return connect.call(link.control, destination);
  };
  link.control.allowsConnect = () => false;
  const guest = new FrameGuest(link.wire);
  const rss = process.memoryUsage().rss;
  const streams: number[] = [];
  for (let sent = 0; sent < 10_000 && !guest.isClosed; sent += 100) {
    const requests = Array.from({ length: 100 }, () => guest.connect('192.0.2.7:443'));
    streams.push(...requests.map(({ stream }) => stream));
    await guest.send(...requests.map(({ bytes }) => bytes));
  }
  await sleep(200);
  assert.ok(most <= 128, `${most} connections were being made at once`);
  assert.ok(growthMib(rss) < MAX_GROWTH_MIB, `${growthMib(rss)} MiB more`);
  const refused = guest.frames.filter(({ type }) => type === Frame.rstStream).length;
  release.resolve();
  if (!guest.isClosed) {
    assert.ok(refused >= 10_000 - 2 * MAX_STREAMS, `${refused} refused`);
    await until(() => link.control.destinations.length >= MAX_STREAMS, 'those that may be are asked about');
  }
  assert.ok(link.control.destinations.length <= MAX_STREAMS);
  await assertProcessServes();
});

test('hellos and requests that never end are not forwarded, and not kept for ever', async () => {
  await using link = await egressLink({ times: { incompleteMs: 300, ambiguousMs: 300 } });
  link.control.port = serverPort;
  link.control.allowsStream = (facts) => facts.protocol !== 'unknown';
  const guest = new EgressGuest(link.wire);
  const hello = await clientHello({ servername: 'a.example' });
  const slow = Array.from({ length: 50 }, (_, index) => guest.connect(`192.0.2.${index + 1}:443`));
  const began = performance.now();
  let at = 0;
  const timer = setInterval(() => {
    for (const [index, stream] of slow.entries()) {
      if (stream.http2.writable)
        stream.http2.write(index % 2 === 0 ? hello.subarray(at, at + 1) : 'GET'.slice(at, at + 1) || 'x');
    }
    at += 1;
  }, 20);
  const codes = await Promise.all(slow.map(({ closed }) => closed));
  clearInterval(timer);
  assert.ok(performance.now() - began < 3000);
  assert.ok(codes.every((code) => code === 10));
  assert.deepEqual([...new Set([...link.control.over.values()].map(({ sent }) => sent))], [0]);
  const many = guest.connect('192.0.2.7:443');
  many.http2.on('error', () => {});
  const tiny = Buffer.concat([Buffer.of(22, 3, 1, 0x40, 0), Buffer.of(1, 0, 0x3f, 0xf0)]);
  for (let index = 0; index < 12_000 && !many.http2.closed; index++) {
    many.http2.write(Buffer.of(tiny[index] ?? 0));
    if (index % 200 === 0) await sleep(1);
  }
  assert.equal(await many.closed, 10, 'or too many segments');
  link.control.allowsStream = () => true;
  assert.ok(await isServed(guest), 'negative control');
});

test('noise for DNS: answered or refused, and only host names are asked about', async () => {
  await using link = await hostile();
  link.control.allowsName = (name) => name.endsWith('.example');
  const guest = new EgressGuest(link.wire);
  const random = new SeededRandom(5353);
  const query = dnsQuery('www.a.example', A, { edns: true });
  const bodies = Array.from({ length: 600 }, (_, index) =>
    index % 3 === 0
      ? Buffer.from(Array.from({ length: random.below(100) }, () => random.below(256)))
      : random.mutated(query),
  );
  for (let at = 0; at < bodies.length; at += 50) {
    const answers = await Promise.all(
      bodies.slice(at, at + 50).map((body) => guest.post(EgressPath.dns, body)),
    );
    for (const { status, body } of answers) {
      assert.ok(status === 200 || status === 400, String(status));
      if (status === 200) readDnsAnswer(body);
    }
  }
  assert.equal((await guest.post(EgressPath.dns, Buffer.alloc(5000))).status, 413);
  assertCanonical(link.control);
  const { body } = await guest.post(EgressPath.dns, query);
  assert.equal(readDnsAnswer(body).rcode, 0, 'negative control');
});

test('a flood of questions: few wait for the control at once, and every one has an answer', async () => {
  await using link = await hostile();
  let [pending, most] = [0, 0];
  link.control.dns = async () => {
    pending += 1;
    most = Math.max(most, pending);
    await sleep(2);
    pending -= 1;
    return { allowed: false, message: 'no' };
  };
  const guest = new EgressGuest(link.wire);
  const answers = await Promise.all(
    Array.from({ length: 900 }, (_, index) => guest.post(EgressPath.dns, dnsQuery(`n${index}.evil`, A))),
  );
  assert.ok(most <= 64, `${most} at once`);
  const rcodes = new Set(answers.map(({ body }) => readDnsAnswer(body).rcode));
  assert.ok([...rcodes].every((rcode) => rcode === 2 || rcode === 3));
});

test('streams that are never read cost a bounded amount of memory, and others go on', async () => {
  const block = Buffer.alloc(256 * 1024, 'x');
  const flood = createServer((socket) => {
    socket.on('error', () => {});
    const write = (): void => {
      while (socket.write(block));
      socket.once('drain', write);
    };
    write();
    sockets.add(socket);
  });
  await using link = await hostile();
  link.control.port = await listen(flood);
  const guest = new FrameGuest(link.wire);
  const rss = process.memoryUsage().rss;
  const requests = Array.from({ length: 100 }, () => guest.connect('192.0.2.7:443'));
  await guest.send(...requests.map(({ bytes }) => bytes));
  guest.stopReading();
  await sleep(1000);
  assert.ok(growthMib(rss) < MAX_GROWTH_MIB, `${growthMib(rss)} MiB more`);
  for (const socket of sockets) socket.destroy();
  flood.close();
  guest.destroy();
  await assertProcessServes();
});

test('servers that never read cost a bounded amount of memory, and others go on', async () => {
  const deaf = createServer({ pauseOnConnect: true }, (socket) => {
    socket.on('error', () => {});
    sockets.add(socket);
  });
  await using link = await hostile();
  link.control.port = await listen(deaf);
  const guest = new EgressGuest(link.wire);
  const rss = process.memoryUsage().rss;
  const streams = Array.from({ length: 200 }, () => guest.connect('192.0.2.7:443'));
  const block = Buffer.alloc(64 * 1024, 10);
  const deadline = performance.now() + 1500;
  while (performance.now() < deadline) {
    for (const { http2 } of streams) if (!http2.writableNeedDrain) http2.write(block);
    await sleep(1);
  }
  assert.ok(growthMib(rss) < MAX_GROWTH_MIB, `${growthMib(rss)} MiB more`);
  link.control.port = serverPort;
  assert.ok(await isServed(guest), 'negative control');
  for (const socket of sockets) socket.destroy();
  deaf.close();
});
