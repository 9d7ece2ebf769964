import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';
import { test } from 'node:test';
import { Dialer, Unreachable } from '../../src/host/dialer.ts';

const NEVER = new AbortController().signal;

async function listening(
  host = '127.0.0.1',
): Promise<AsyncDisposable & { server: Server; port: number; sockets: Socket[] }> {
  const sockets: Socket[] = [];
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {});
    sockets.push(socket);
  });
  server.listen(0, host);
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  return {
    server,
    port,
    sockets,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

test('names that the operator has fixed need no resolver, and say where their address comes from', async () => {
  const dialer = new Dialer({ resolver: () => Promise.reject(new Error('asked')) });
  const session = dialer.session(new Map([['mirror.test', '127.0.0.1']]));
  assert.deepEqual(await session.resolve('mirror.test', NEVER), [
    { address: '127.0.0.1', classes: ['host', 'loopback'], source: 'operator' },
  ]);
  await assert.rejects(session.resolve('other.test', NEVER), Unreachable);
});

test('all addresses of a name are told, canonical and with their classes', async () => {
  const dialer = new Dialer({
    resolver: async () => [
      { address: '::FFFF:10.0.0.1', family: 6 },
      { address: '8.8.8.8', family: 4 },
      { address: '8.8.8.8', family: 4 },
    ],
  });
  assert.deepEqual(await dialer.session().resolve('mixed.test', NEVER), [
    { address: '10.0.0.1', classes: ['private', 'translated'], source: 'resolver' },
    { address: '8.8.8.8', classes: [], source: 'resolver' },
  ]);
});

test('a name is asked for once, also by many at once; a failure is not remembered', async () => {
  let asked = 0;
  const dialer = new Dialer({
    resolver: async () => {
      asked += 1;
      if (asked === 1) throw Object.assign(new Error('no'), { code: 'EAI_AGAIN' });
      return [{ address: '8.8.8.8', family: 4 }];
    },
  });
  const session = dialer.session();
  await assert.rejects(session.resolve('a.test', NEVER), {
    message: 'the resolver of this host cannot say now',
  });
  await Promise.all(Array.from({ length: 20 }, () => session.resolve('a.test', NEVER)));
  assert.equal(asked, 2);
});

test('a run has four lookups under way at most, and the others follow', async () => {
  let [open, most] = [0, 0];
  const dialer = new Dialer({
    resolver: async () => {
      most = Math.max(most, ++open);
      await new Promise((resolve) => setTimeout(resolve, 5));
      open -= 1;
      return [{ address: '8.8.8.8', family: 4 }];
    },
  });
  const session = dialer.session();
  await Promise.all(Array.from({ length: 20 }, (_, i) => session.resolve(`${i}.test`, NEVER)));
  assert.equal(most, 4);
});

test('a lookup counts until the resolver is done, also when nobody waits for it any more; other runs go on', async () => {
  const stuck: (() => void)[] = [];
  let asked = 0;
  const dialer = new Dialer({
    resolveTimeoutMs: 20,
    resolver: async (host) => {
      asked += 1;
      if (host.startsWith('slow')) await new Promise<void>((resolve) => stuck.push(resolve));
      return [{ address: '8.8.8.8', family: 4 }];
    },
  });
  const [hostile, other] = [dialer.session(), dialer.session()];
  const ended = new AbortController();
  const outcomes = Array.from({ length: 12 }, (_, i) =>
    hostile.resolve(`slow${i}.test`, ended.signal).then(
      () => 'found',
      (error: Error) => error.message,
    ),
  );
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal(asked, 4);
  assert.match(String(await outcomes[3]), /did not answer in time/);
  assert.equal((await other.resolve('quick.test', NEVER)).length, 1);
  assert.equal(asked, 5);
  // The end of the run: what waits is never asked for.
  stuck.shift()?.();
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(asked, 6, 'the control: a place that is free is taken');
  ended.abort(new Error('over'));
  for (const answer of stuck) answer();
  assert.deepEqual(await Promise.all(outcomes.slice(5)), Array(7).fill('over'));
  assert.equal(asked, 6);
});

test('a socket is handed out paused and unread, and half-closes', async () => {
  await using there = await listening();
  there.server.on('connection', (socket: Socket) => socket.end('greeting'));
  const socket = await new Dialer().session().connect(['127.0.0.1'], there.port, NEVER);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(socket.bytesRead, 0);
  assert.equal(socket.isPaused(), true);
  assert.equal(socket.allowHalfOpen, true);
  socket.resume();
  const [greeting] = await once(socket, 'data');
  assert.equal(String(greeting), 'greeting');
  socket.destroy();
});

test('an address that refuses is followed by the next at once, of the other family first', async () => {
  await using there = await listening('127.0.0.1');
  const startedAt = performance.now();
  const session = new Dialer({ attemptDelayMs: 5000 }).session();
  const socket = await session.connect(['::1', '127.0.0.1'], there.port, NEVER);
  assert.ok(performance.now() - startedAt < 1000);
  assert.equal(socket.remoteAddress, '127.0.0.1');
  socket.destroy();
});

/** A listener whose queue is full: the kernel answers no further SYN. */
async function silent(): Promise<AsyncDisposable & { readonly port: number }> {
  const { spawn } = await import('node:child_process');
  const child = spawn('python3', [
    '-c',
    `
import socket, sys
s = socket.socket(); s.bind(('127.0.0.3', 0)); s.listen(0); port = s.getsockname()[1]
kept = []
for _ in range(3):
    c = socket.socket(); c.setblocking(False); c.connect_ex(('127.0.0.3', port)); kept.append(c)
print(port, flush=True); sys.stdin.read()`,
  ]);
  const [line] = await once(child.stdout, 'data');
  return {
    port: Number(String(line)),
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL');
      await once(child, 'exit');
    },
  };
}

test('an address that does not answer gets a rival after its head start; none of them in time is unreachable', async () => {
  await using quiet = await silent();
  const server = createServer((socket) => socket.destroy());
  server.listen(quiet.port, '127.0.0.1');
  await once(server, 'listening');
  const startedAt = performance.now();
  const session = new Dialer({ connectTimeoutMs: 600 }).session();
  const socket = await session.connect(['127.0.0.3', '127.0.0.1'], quiet.port, NEVER);
  const tookMs = performance.now() - startedAt;
  assert.ok(tookMs >= 240 && tookMs < 550, `${tookMs} ms`);
  assert.equal(socket.remoteAddress, '127.0.0.1');
  socket.destroy();
  server.close();
  await assert.rejects(session.connect(['127.0.0.3'], quiet.port, NEVER), {
    message: 'no answer within 0.6 s',
  });
});

test('rivals of one run are bounded, and every connection has one attempt', async () => {
  await using quiet = await silent();
  await using there = await listening();
  const sockets = (): number =>
    process.getActiveResourcesInfo().filter((name) => name === 'TCPSocketWrap').length;
  const before = sockets();
  const session = new Dialer({ attemptDelayMs: 1 }).session();
  const ending = new AbortController();
  const nowhere = Array.from({ length: 200 }, () => '127.0.0.3');
  const few = session.connect(nowhere.slice(0, 20), quiet.port, ending.signal);
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.equal(sockets() - before, 20, 'the control: all addresses are tried');
  const many = Array.from({ length: 3 }, () => session.connect(nowhere, quiet.port, ending.signal));
  await new Promise((resolve) => setTimeout(resolve, 1000));
  assert.equal(sockets() - before, 256);
  const winner = await session.connect(['127.0.0.1'], there.port, NEVER);
  winner.destroy();
  ending.abort(new Error('over'));
  const results = await Promise.allSettled([few, ...many]);
  assert.ok(results.every(({ status }) => status === 'rejected'));
  const again = session.connect(nowhere.slice(0, 20), quiet.port, AbortSignal.timeout(300));
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.ok(sockets() - before >= 20, 'all places were given back');
  await assert.rejects(again);
});

test('nobody there is unreachable and says why; an end of the run ends the attempt', async () => {
  const { port } = await (async () => {
    await using there = await listening();
    return { port: there.port };
  })();
  const session = new Dialer().session();
  await assert.rejects(session.connect(['127.0.0.1'], port, NEVER), {
    message: 'connection refused (127.0.0.1)',
  });
  await assert.rejects(session.connect([], port, NEVER), Unreachable);
  await using quiet = await silent();
  const ending = new AbortController();
  const attempt = session.connect(['127.0.0.3'], quiet.port, ending.signal);
  ending.abort(new Error('over'));
  await assert.rejects(attempt, { message: 'over' });
});
