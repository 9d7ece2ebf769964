/** The proxy of one VM with an honest guest: a guest that speaks HTTP/2 over a socket pair, and servers on loopback. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { createServer as createHttpServer } from 'node:http';
import { createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect as connectTls } from 'node:tls';
import type { ProxyOptions } from '../../src/egress/proxy.ts';
import { ATTEMPT_BYTES, Attempt, EgressPath } from '../../src/protocol/guest-link.ts';
import { dnsQuery, readDnsAnswer } from '../support/egress-dns.ts';
import {
  EgressGuest,
  type EgressLink,
  egressLink,
  type GuestStream,
  listen,
  until,
} from '../support/egress-guest.ts';
import { clientHello } from '../support/egress-hello.ts';

const CONNECT_ERROR = 0x0a;
const servers: Server[] = [];
after(() => {
  for (const server of servers) server.close();
});

/** A server for one kind of connection. */
async function outside(serve: (socket: Socket) => void): Promise<number> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {});
    serve(socket);
  });
  servers.push(server);
  server.unref();
  return listen(server);
}

const echo = (): Promise<number> => outside((socket) => socket.pipe(socket));

interface Setup extends AsyncDisposable {
  readonly link: EgressLink;
  readonly guest: EgressGuest;
}

async function setup(port: number | undefined, options: ProxyOptions = {}): Promise<Setup> {
  const link = await egressLink(options);
  link.control.port = port;
  return {
    link,
    guest: new EgressGuest(link.wire),
    [Symbol.asyncDispose]: () => link[Symbol.asyncDispose](),
  };
}

const A = 1;

async function resolve(guest: EgressGuest, name: string): Promise<string> {
  const { status, body } = await guest.post(EgressPath.dns, dnsQuery(name, A));
  assert.equal(status, 200);
  const [answer = ''] = readDnsAnswer(body).answers;
  return Buffer.from(answer, 'hex').join('.');
}

async function assertReset(stream: GuestStream): Promise<void> {
  assert.equal(await stream.closed, CONNECT_ERROR);
  assert.equal(stream.text, '');
}

test('a connection to the address of a name is one to the name; any other address is a literal', async () => {
  await using made = await setup(await echo());
  const { guest, link } = made;
  const address = await resolve(guest, 'Db.Example');
  await guest.connect(`${address}:5432`).status;
  await guest.connect(`[fd63:7463::c612:101]:80`).status;
  await guest.connect('192.0.2.7:443').status;
  await guest.connect('198.18.9.9:443').status;
  await guest.connect('[::ffff:192.0.2.8]:443').status;
  await guest.connect('[2001:DB8:0:0::0007]:443').status;
  assert.deepEqual(link.control.destinations, [
    { host: 'db.example', literal: false, port: 5432 },
    { host: 'db.example', literal: false, port: 80 },
    { host: '192.0.2.7', literal: true, port: 443 },
    { host: '198.18.9.9', literal: true, port: 443 },
    { host: '192.0.2.8', literal: true, port: 443 },
    { host: '2001:db8::7', literal: true, port: 443 },
  ]);
});

test('denied is 403, unreachable 502, and nothing is left of either', async () => {
  await using made = await setup(undefined);
  const { guest, link } = made;
  assert.equal(await guest.connect('192.0.2.7:443').status, 502);
  link.control.allowsConnect = () => false;
  assert.equal(await guest.connect('192.0.2.7:443').status, 403);
  link.control.connect = () => Promise.reject(new Error('no daemon'));
  assert.equal(await guest.connect('192.0.2.7:443').status, 502);
  assert.equal(link.control.over.size, 0);
});

test('a denied name does not exist, also over TCP; questions over TCP are answered one after another', async () => {
  await using made = await setup(undefined);
  const { guest, link } = made;
  link.control.allowsName = (name) => name === 'a.example';
  const framed = (message: Buffer): Buffer => Buffer.concat([Buffer.of(0, message.length), message]);
  const stream = guest.connect('198.18.0.1:53');
  assert.equal(await stream.status, 200);
  const both = Buffer.concat([
    framed(dnsQuery('a.example', A, { id: 1 })),
    framed(dnsQuery('b.example', A, { id: 2 })),
  ]);
  for (const byte of both) stream.http2.write(Buffer.of(byte));
  stream.http2.end();
  await stream.ended;
  const first = stream.received.readUInt16BE(0);
  const answers = [stream.received.subarray(2, 2 + first), stream.received.subarray(4 + first)].map(
    readDnsAnswer,
  );
  assert.deepEqual(
    answers.map(({ id, rcode }) => [id, rcode]),
    [
      [1, 0],
      [2, 3],
    ],
  );
  assert.deepEqual(link.control.destinations, [], 'nobody was asked for a connection');
});

test('attempts are passed on; a record that is none is refused, and is an attempt itself', async () => {
  await using made = await setup(undefined);
  const { guest, link } = made;
  const udp = Buffer.alloc(ATTEMPT_BYTES);
  udp.set([Attempt.udp, 2, 0, 53, 8, 8, 8, 8]);
  const udp6 = Buffer.alloc(ATTEMPT_BYTES);
  udp6.set([Attempt.udp, 10, 0x01, 0xbb, 0x20, 0x01, 0x0d, 0xb8]);
  udp6[19] = 7;
  const raw = Buffer.alloc(ATTEMPT_BYTES);
  raw.set([Attempt.rawSocket, 2]);
  const suppressed = Buffer.alloc(ATTEMPT_BYTES);
  suppressed.set([Attempt.suppressed]);
  assert.equal(
    (await guest.post(EgressPath.events, Buffer.concat([udp, udp6, raw, suppressed]))).status,
    204,
  );
  assert.deepEqual(link.control.attempts, [
    { what: 'udp', address: '8.8.8.8', port: 53 },
    { what: 'udp', address: '2001:db8::7', port: 443 },
    { what: 'raw-socket' },
  ]);
  for (const body of [Buffer.alloc(0), udp.subarray(1), Buffer.alloc(ATTEMPT_BYTES, 9)]) {
    assert.equal((await guest.post(EgressPath.events, body)).status, 400);
  }
  // No guest agent sends such records.
  assert.deepEqual(link.control.attempts.slice(3), Array(3).fill({ what: 'forged-request' }));
});

test('TLS: nothing passes before the name was decided about, then everything does', async () => {
  const seen: Buffer[] = [];
  const port = await outside((socket) => {
    socket.on('data', (chunk: Buffer) => seen.push(chunk));
    socket.once('data', () => socket.write('from the server'));
  });
  const hello = await clientHello({ servername: 'a.example' });
  await using made = await setup(port);
  const { guest, link } = made;
  const decided = Promise.withResolvers<boolean>();
  link.control.allowsStream = () => decided.promise;
  const stream = guest.connect('192.0.2.7:443');
  await stream.status;
  for (const byte of hello) stream.http2.write(Buffer.of(byte));
  await until(() => link.control.facts.length > 0, 'the hello is asked about');
  await sleep(50);
  assert.deepEqual(link.control.facts, [{ protocol: 'tls', sni: 'a.example', ech: false }]);
  assert.equal(seen.length, 0);
  assert.equal(stream.text, '');
  decided.resolve(true);
  await stream.bytes(15);
  stream.http2.write('more');
  await until(() => Buffer.concat(seen).length === hello.length + 4, 'the server has it');
  assert.deepEqual(Buffer.concat(seen), Buffer.concat([hello, Buffer.from('more')]));
  assert.equal(stream.text, 'from the server');
  assert.equal(link.control.facts.length, 1, 'the rest is not looked at');
});

test('TLS that is denied is reset, and the server hears nothing', async () => {
  let bytes = 0;
  const ended = Promise.withResolvers<void>();
  const port = await outside((socket) => {
    socket.on('data', (chunk) => {
      bytes += chunk.length;
    });
    socket.on('close', () => ended.resolve());
  });
  await using made = await setup(port);
  const { guest, link } = made;
  link.control.allowsStream = (facts) => facts.protocol === 'tls' && facts.sni === 'a.example';
  for (const first of [
    await clientHello({ servername: 'evil.example' }),
    await clientHello({}),
    'GET / HTTP/1.1\r\nHost: a.example\r\n\r\n',
    'SSH-2.0-x\r\n',
    '\x16\x03\x01\x00\x00',
    'lower case\r\n',
  ]) {
    const stream = guest.connect('192.0.2.7:443');
    stream.http2.write(first);
    await assertReset(stream);
  }
  await ended.promise;
  await until(() => link.control.over.size === 6, 'all are over');
  assert.equal(bytes, 0);
  assert.deepEqual(
    [...link.control.over.values()].filter(({ sent, received }) => sent + received > 0),
    [],
  );
  assert.deepEqual(
    link.control.facts.map(({ protocol }) => protocol),
    ['tls', 'tls', 'http', 'ssh', 'unknown', 'unknown'],
  );
});

test('a real TLS client reaches a real TLS server through it', async () => {
  const { createServer: createTlsServer } = await import('node:tls');
  // A key that is shared beforehand needs no certificate.
  const psk = randomBytes(16);
  const options = { ciphers: 'PSK', maxVersion: 'TLSv1.2' as const };
  const server = createTlsServer({ ...options, pskCallback: () => psk }, (socket) => socket.end('hello'));
  servers.push(server);
  await using made = await setup(await listen(server));
  const { guest, link } = made;
  const stream = guest.http2.request({ ':method': 'CONNECT', ':authority': '192.0.2.7:443' });
  const socket = connectTls({
    ...options,
    socket: stream as Duplex,
    servername: 'a.example',
    checkServerIdentity: () => undefined,
    pskCallback: () => ({ psk, identity: 'x' }),
  });
  let text = '';
  for await (const chunk of socket) text += chunk;
  assert.equal(text, 'hello');
  assert.deepEqual(link.control.facts, [{ protocol: 'tls', sni: 'a.example', ech: false }]);
});

test('plain HTTP: every request of a connection is asked about, and a denied one ends it', async () => {
  const urls: string[] = [];
  const server = createHttpServer((request, response) => {
    urls.push(`${request.headers.host}${request.url}`);
    request.resume().on('end', () => response.end(`<${request.url}>`));
  });
  servers.push(server);
  await using made = await setup(await listen(server));
  const { guest, link } = made;
  link.control.allowsStream = (facts) => facts.protocol === 'http' && facts.httpHost === 'a.example';
  const stream = guest.connect('192.0.2.7:80');
  stream.http2.write(
    'GET /1 HTTP/1.1\r\nHost: A.example\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a.example:80\r\nContent-Length: 5\r\n\r\nhel',
  );
  await until(() => stream.text.includes('</1>'), 'the first answer');
  stream.http2.write('loGET /3 HTTP/1.1\r\nHost: a.example\r\n\r\n');
  await until(() => stream.text.includes('</3>'), 'the third answer');
  stream.http2.write('GET /4 HTTP/1.1\r\nHost: evil.example\r\n\r\n');
  assert.equal(await stream.closed, CONNECT_ERROR);
  assert.deepEqual(urls, ['A.example/1', 'a.example:80/2', 'a.example/3']);
  assert.equal(link.control.facts.length, 4);
});

test('a request that cannot be followed is asked about as unknown, and passes where anything may', async () => {
  const text = 'GET / HTTP/1.1\nHost: a.example\n\n';
  await using made = await setup(await echo());
  const { guest, link } = made;
  const raw = guest.connect('192.0.2.7:80');
  raw.http2.end(text);
  await raw.ended;
  assert.equal(raw.text, text);
  link.control.allowsStream = ({ protocol }) => protocol === 'http';
  const strict = guest.connect('192.0.2.7:80');
  strict.http2.write(`GET / HTTP/1.1\r\nHost: a.example\r\n\r\n${text}`);
  assert.equal(await strict.closed, CONNECT_ERROR);
  assert.ok(!strict.text.includes('\n\n'), 'the second request did not pass');
});

test('a websocket goes on once the server has switched, and its bytes are its own', async () => {
  const port = await outside((socket) => {
    let head = '';
    socket.on('data', (chunk: Buffer) => {
      const isSwitched = head.endsWith('\r\n\r\n');
      if (isSwitched) socket.write(chunk);
      head += isSwitched ? '' : chunk.toString('latin1');
      if (!isSwitched && head.endsWith('\r\n\r\n'))
        socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x02hi');
    });
  });
  await using made = await setup(port);
  const { guest, link } = made;
  const stream = guest.connect('192.0.2.7:80');
  stream.http2.write(
    'GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n',
  );
  await until(() => stream.text.endsWith('\x81\x02hi'), 'the switch');
  stream.http2.write(Buffer.from('\x81\x85 masked', 'latin1'));
  await until(() => stream.text.endsWith('\x81\x85 masked'), 'the echo');
  assert.deepEqual(link.control.facts, [{ protocol: 'http', httpHost: 'a.example' }]);
});

test('a server that does not switch goes on with HTTP, and so does the looking', async () => {
  const port = await outside((socket) =>
    socket.on('data', () => socket.write('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n')),
  );
  await using made = await setup(port);
  const { guest, link } = made;
  link.control.allowsStream = (facts) => facts.protocol === 'http' && facts.httpHost === 'a.example';
  const stream = guest.connect('192.0.2.7:80');
  const offer = 'GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n';
  // Sent along, in the hope that it passes as part of the websocket.
  stream.http2.write(`${offer}GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n`);
  assert.equal(await stream.closed, CONNECT_ERROR);
  assert.deepEqual(link.control.facts.at(-1), { protocol: 'http', httpHost: 'evil.example' });
});

test('a switch to anything but a websocket is asked about as unknown', async () => {
  const port = await outside((socket) =>
    socket.on('data', () => socket.write('HTTP/1.1 101 x\r\nUpgrade: h2c\r\n\r\n')),
  );
  await using made = await setup(port);
  const { guest, link } = made;
  link.control.allowsStream = ({ protocol }) => protocol === 'http';
  const stream = guest.connect('192.0.2.7:80');
  stream.http2.write(
    'GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n',
  );
  await assertReset(stream);
  assert.deepEqual(link.control.facts.at(-1), { protocol: 'unknown' });
});

test('SSH passes when the guest says its line, and a banner waits for that', async () => {
  const port = await outside((socket) => {
    socket.write('SSH-2.0-server\r\n');
    socket.on('data', (chunk) => socket.write(chunk));
  });
  await using made = await setup(port, { times: { serverFirstMs: 100 } });
  const { guest, link } = made;
  const prompt = guest.connect('192.0.2.7:22');
  prompt.http2.write('SSH-2.0-client\r\n');
  await until(() => prompt.text === 'SSH-2.0-server\r\nSSH-2.0-client\r\n', 'both lines');
  const patient = guest.connect('192.0.2.7:22');
  await until(() => patient.text === 'SSH-2.0-server\r\n', 'the banner of the server');
  patient.http2.write('SSH-2.0-late\r\n');
  await until(() => patient.text.endsWith('SSH-2.0-late\r\n'), 'the line of the guest');
  assert.deepEqual(link.control.facts, [{ protocol: 'ssh' }, { protocol: 'ssh' }]);
  link.control.allowsStream = ({ protocol }) => protocol === 'ssh';
  const liar = guest.connect('192.0.2.7:22');
  await until(() => liar.text === 'SSH-2.0-server\r\n', 'the banner of the server');
  liar.http2.write('something else\r\n');
  assert.equal(await liar.closed, CONNECT_ERROR);
});

test('where the server speaks first, its protocol is asked about as unknown at once', async () => {
  const port = await outside((socket) => {
    socket.write('220 mail.example\r\n');
    socket.on('data', (chunk) => socket.write(chunk));
  });
  await using made = await setup(port);
  const { guest, link } = made;
  const stream = guest.connect('192.0.2.7:25');
  const began = performance.now();
  await stream.bytes(18);
  assert.ok(performance.now() - began < 200);
  stream.http2.write('EHLO x\r\n');
  await until(() => stream.text.endsWith('EHLO x\r\n'), 'the echo');
  assert.deepEqual(link.control.facts, [{ protocol: 'unknown' }]);
  link.control.allowsStream = () => false;
  await assertReset(guest.connect('192.0.2.7:25'));
});

test('a connection on which nobody speaks is left alone, and ends as it likes', async () => {
  const ended = Promise.withResolvers<void>();
  const port = await outside((socket) => {
    socket.resume().on('end', () => {
      socket.end('HTTP/1.1 408 Request Timeout\r\n\r\n');
      ended.resolve();
    });
  });
  await using made = await setup(port, { times: { serverFirstMs: 20, ambiguousMs: 20, incompleteMs: 20 } });
  const { guest, link } = made;
  const stream = guest.connect('192.0.2.7:443');
  await stream.status;
  await sleep(150);
  assert.equal(stream.http2.closed, false);
  stream.http2.end();
  await ended.promise;
  await stream.ended;
  assert.equal(stream.text, '', 'what was said in parting was never allowed');
  assert.equal(await stream.closed, 0);
  assert.deepEqual(link.control.facts, []);
});

test('what stays incomplete is asked about as unknown when its time is over', async () => {
  await using made = await setup(await echo(), { times: { ambiguousMs: 100, incompleteMs: 200 } });
  const { guest, link } = made;
  link.control.allowsStream = ({ protocol }) => protocol === 'http';
  const hello = await clientHello({ servername: 'a.example' });
  const beginnings: [string | Buffer, number][] = [
    ['PING', 100],
    [hello.subarray(0, 100), 200],
    ['GET / HTTP/1.1\r\nHost:', 200],
    ['GET / HTTP/1.1\r\nHost: a.example\r\n\r\nGET /2 HT', 200],
  ];
  for (const [beginning, afterMs] of beginnings) {
    const stream = guest.connect('192.0.2.7:443');
    await stream.status;
    const began = performance.now();
    stream.http2.write(beginning);
    assert.equal(await stream.closed, CONNECT_ERROR);
    assert.ok(performance.now() - began >= afterMs - 10);
    assert.deepEqual(link.control.facts.at(-1), { protocol: 'unknown' });
  }
});

test('each side can end its half, and the other goes on', async () => {
  const heard = Promise.withResolvers<string>();
  const port = await outside((socket) => {
    let text = '';
    socket.on('data', (chunk) => {
      text += chunk;
    });
    socket.on('end', () => {
      heard.resolve(text);
      setTimeout(() => socket.end('answer after the end'), 50);
    });
  });
  await using made = await setup(port);
  const { guest, link } = made;
  const stream = guest.connect('192.0.2.7:99');
  stream.http2.end('all that I say');
  assert.equal(await heard.promise, 'all that I say');
  await stream.ended;
  assert.equal(stream.text, 'answer after the end');
  await until(() => link.control.over.size === 1, 'the connection is over');
  assert.deepEqual(link.control.over.get(1), { sent: 14, received: 20 });

  const late = Promise.withResolvers<string>();
  const closing = await outside((socket) => {
    socket.end('goodbye');
    let text = '';
    socket.on('data', (chunk) => {
      text += chunk;
    });
    socket.on('end', () => late.resolve(text));
  });
  link.control.port = closing;
  const other = guest.connect('192.0.2.7:99');
  await other.ended;
  assert.equal(other.text, 'goodbye');
  other.http2.end('said after the goodbye');
  assert.equal(await late.promise, 'said after the goodbye');
});

test('a reset on one side is a reset on the other', async () => {
  const sockets: Socket[] = [];
  const errors: string[] = [];
  const port = await outside((socket) => {
    sockets.push(socket);
    socket.on('error', (error: NodeJS.ErrnoException) => errors.push(String(error.code)));
    socket.resume();
  });
  await using made = await setup(port);
  const { guest, link } = made;
  const first = guest.connect('192.0.2.7:99');
  first.http2.write('hello\n');
  await until(() => sockets[0] !== undefined && sockets[0].bytesRead > 0, 'the server has heard something');
  sockets[0]?.resetAndDestroy();
  assert.equal(await first.closed, CONNECT_ERROR);
  const second = guest.connect('192.0.2.7:99');
  second.http2.write('hello\n');
  await until(() => sockets[1] !== undefined && sockets[1].bytesRead > 0, 'the server has heard something');
  second.reset(8);
  await until(() => errors.length === 1, 'the server hears of the reset');
  assert.deepEqual(errors, ['ECONNRESET']);
  await until(() => link.control.over.size === 2, 'both are over');
});

test('a side that does not read makes the other wait, and nothing is lost', async () => {
  const total = 24 * 1024 * 1024;
  const block = randomBytes(1024 * 1024);
  let written = 0;
  let [heldUp, received] = [true, 0];
  const hash = createHash('sha256');
  const port = await outside((socket) => {
    socket.pause();
    setTimeout(() => {
      heldUp = false;
      socket.on('data', (chunk) => {
        received += chunk.length;
        hash.update(chunk);
      });
    }, 400);
    const write = (): void => {
      while (written < total) {
        written += block.length;
        if (!socket.write(block)) {
          socket.once('drain', write);
          return;
        }
      }
      socket.end();
    };
    socket.once('readable', () => setTimeout(write, 1));
    socket.on('resume', () => {});
    setTimeout(write, 50);
  });
  await using made = await setup(port);
  const { guest } = made;
  const stream = guest.http2.request({ ':method': 'CONNECT', ':authority': '192.0.2.7:99' });
  stream.on('error', () => {});
  stream.write('begin\n');
  let pushed = 6;
  const expected = createHash('sha256').update('begin\n');
  while (pushed < total) {
    expected.update(block);
    pushed += block.length;
    if (!stream.write(block))
      await Promise.race([new Promise((resolve) => stream.once('drain', resolve)), sleep(1000)]);
    if (heldUp) assert.ok(stream.writableLength <= total);
  }
  stream.end();
  await until(() => written > 0, 'the server began');
  const before = written;
  assert.ok(before < total, 'the server waits for the guest');
  let down = 0;
  stream.on('data', (chunk: Buffer) => {
    down += chunk.length;
  });
  await until(() => received === pushed && down >= total, 'everything has arrived', 20_000);
  assert.equal(hash.digest('hex'), expected.digest('hex'));
});

test('the loss of the guest ends every connection', async () => {
  const closed = Promise.withResolvers<void>();
  const port = await outside((socket) => socket.resume().on('close', () => closed.resolve()));
  const made = await setup(port);
  const stream = made.guest.connect('192.0.2.7:99');
  stream.http2.write('hello\n');
  await until(() => made.link.control.facts.length === 1, 'it was asked about');
  made.link.wire.destroy();
  await assert.rejects(made.link.proxy.lost, { code: 'GUEST_PROTOCOL' });
  await closed.promise;
  await until(() => made.link.control.over.size === 1, 'the control hears of it');
  await made[Symbol.asyncDispose]();
});
