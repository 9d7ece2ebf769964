/** What the proxy of one VM costs: memory of idle connections, and time that its event loop is busy. In a process of its own. */
import assert from 'node:assert/strict';
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { HELLO_MAGIC, HELLO_NONCE_BYTES } from '../../src/protocol/guest-link.ts';
import { EgressGuest, listen } from '../support/egress-guest.ts';
import { clientHello } from '../support/egress-hello.ts';

const CONNECTIONS = 500;
const MAX_BYTES_PER_CONNECTION = 64 * 1024;
const MAX_BUSY_MS = 50;
const BULK_BYTES = 256 * 1024 * 1024;
/** Of either direction; so slow is no machine, only a proxy that does something wrong. */
const MIN_MIB_PER_SECOND = 30;

interface Figures {
  readonly rssBytes: number;
  readonly maxBusyMs: number;
}

const sockets = new Set<Socket>();
const block = Buffer.alloc(256 * 1024, 'x');
/** Says back what it hears; after `send\n` it sends BULK_BYTES, after `take\n` it counts as many and says `done`. */
const server = createServer({ allowHalfOpen: true }, (socket) => {
  sockets.add(socket);
  socket.on('error', () => {}).on('close', () => sockets.delete(socket));
  let taken: number | undefined;
  socket.on('data', (chunk) => {
    if (taken !== undefined) taken += chunk.length;
    else if (chunk.toString('latin1') === 'send\n') send(socket);
    else if (chunk.toString('latin1') === 'take\n') taken = 0;
    else socket.write(chunk);
    if (taken !== undefined && taken >= BULK_BYTES) socket.end('done');
  });
  // After `send` it is the end of the bulk that counts.
  socket.on('end', () => socket.writableNeedDrain || socket.end());
});

function send(socket: Socket): void {
  let left = BULK_BYTES;
  const write = (): void => {
    while (left > 0) {
      left -= block.length;
      if (!socket.write(block)) {
        socket.once('drain', write);
        return;
      }
    }
    socket.end();
  };
  write();
}

let child: ChildProcess;
let guest: EgressGuest;

before(async () => {
  const program = join(import.meta.dirname, '../support/egress-proxy-process.ts');
  child = fork(program, [String(await listen(server))], { execArgv: ['--expose-gc'] });
  const [{ port }] = (await once(child, 'message')) as [{ port: number }];
  const wire = connect({ port, host: '127.0.0.1' });
  let hello = Buffer.alloc(0);
  while (hello.length < HELLO_MAGIC.length + HELLO_NONCE_BYTES) {
    await once(wire, 'readable');
    hello = Buffer.concat([hello, (wire.read() as Buffer | null) ?? Buffer.alloc(0)]);
  }
  wire.write(hello);
  guest = new EgressGuest(wire);
});
after(() => {
  guest.http2.destroy();
  child.kill('SIGKILL');
  for (const socket of sockets) socket.destroy();
  server.close();
});

async function measure(): Promise<Figures> {
  const answer = once(child, 'message');
  child.send('measure');
  return (await answer)[0] as Figures;
}

async function openAll(first: Buffer): Promise<void> {
  await Promise.all(
    Array.from({ length: CONNECTIONS }, async () => {
      const stream = guest.connect('192.0.2.7:443');
      assert.equal(await stream.status, 200);
      stream.http2.write(first);
      assert.equal((await stream.bytes(first.length)).length, first.length);
    }),
  );
}

test('500 connections at once: none lost, the event loop is never busy for long, and an idle one costs little', async (t) => {
  const hello = await clientHello({ servername: 'a.example' });
  const warmUp = guest.connect('192.0.2.7:443');
  warmUp.http2.end(hello);
  await warmUp.ended;
  const before = await measure();
  await openAll(hello);
  const { maxBusyMs } = await measure();
  await sleep(300);
  const idle = await measure();
  const bytesEach = (idle.rssBytes - before.rssBytes) / CONNECTIONS;
  t.diagnostic(
    `an idle connection takes ${(bytesEach / 1024).toFixed(1)} KiB; the loop was busy for ${maxBusyMs.toFixed(1)} ms at most`,
  );
  assert.ok(bytesEach <= MAX_BYTES_PER_CONNECTION, `${bytesEach} bytes each`);
  assert.ok(maxBusyMs <= MAX_BUSY_MS, `${maxBusyMs} ms`);
});

for (const direction of ['to', 'from'] as const) {
  test(`bulk passes ${direction} the guest beside 500 idle connections`, async (t) => {
    await measure();
    const rate = await bulk(direction);
    const { maxBusyMs } = await measure();
    t.diagnostic(`${rate.toFixed(0)} MiB/s; the loop was busy for ${maxBusyMs.toFixed(1)} ms at most`);
    assert.ok(rate >= MIN_MIB_PER_SECOND, `${rate} MiB/s`);
    assert.ok(maxBusyMs <= MAX_BUSY_MS, `${maxBusyMs} ms`);
  });
}

/** MiB per second. */
async function bulk(direction: 'to' | 'from'): Promise<number> {
  const stream = guest.http2.request({ ':method': 'CONNECT', ':authority': '192.0.2.7:99' });
  const began = performance.now();
  stream.write(direction === 'to' ? 'send\n' : 'take\n');
  let received = 0;
  stream.on('data', (chunk: Buffer) => {
    received += chunk.length;
  });
  if (direction === 'from') {
    // The word is to come alone.
    await sleep(50);
    for (let sent = 0; sent < BULK_BYTES; sent += block.length) {
      if (!stream.write(block)) await once(stream, 'drain');
    }
  }
  stream.end();
  await once(stream, 'end');
  assert.equal(received, direction === 'to' ? BULK_BYTES : 4);
  return BULK_BYTES / 2 ** 20 / ((performance.now() - began) / 1000);
}
