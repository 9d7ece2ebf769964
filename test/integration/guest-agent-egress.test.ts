/**
 * The egress helper's code as an ordinary program under sanitizers (guest-agent/test/egress.c): connections that end in
 * every way at every moment, and a host that says what makes no sense.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { performServerHandshake, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { installRoot } from '../../src/core/install.ts';
import { startSession } from '../../src/guest/handshake.ts';
import { MAX_DNS_MESSAGE_BYTES } from '../../src/protocol/guest-link.ts';

const BUILD = join(installRoot, 'build/guest-agent');
const DEADLINE_MS = 30_000;

before(() => {
  execFileSync('make', ['-s', '-C', join(installRoot, 'guest-agent'), `OUT=${BUILD}`, 'serve'], {
    stdio: 'pipe',
  });
});

/** The helper, its session open. */
class Helper implements AsyncDisposable {
  readonly child: ChildProcess;
  readonly socket: Socket;
  ports: readonly number[] = [];
  session!: ServerHttp2Session;
  stderr = '';

  constructor() {
    this.child = spawn(join(BUILD, 'sanitized/egress'), {
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
      env: {},
    });
    this.socket = this.child.stdio[3] as Socket;
    this.socket.on('error', () => {});
    this.child.stderr?.on('data', (chunk: Buffer) => {
      this.stderr += chunk;
    });
  }

  static async start(): Promise<Helper> {
    const helper = new Helper();
    const [line] = (await once(helper.child.stdout as Socket, 'data')) as [Buffer];
    helper.ports = line.toString().trim().split('\n').map(Number);
    assert.equal(helper.ports.length, 3);
    await startSession(helper.socket, DEADLINE_MS);
    return helper;
  }

  static async open(
    onStream: (stream: ServerHttp2Stream, path: string | undefined) => void,
  ): Promise<Helper> {
    const helper = await Helper.start();
    helper.session = performServerHandshake(helper.socket, { settings: { maxConcurrentStreams: 1089 } });
    helper.session.on('error', () => {});
    helper.session.on('stream', (stream: ServerHttp2Stream, headers) => {
      stream.on('error', () => {});
      onStream(stream, headers[':path']);
    });
    return helper;
  }

  async ended(): Promise<number | null> {
    if (this.child.exitCode === null)
      await once(this.child, 'exit', { signal: AbortSignal.timeout(DEADLINE_MS) });
    return this.child.exitCode;
  }

  /** A sanitizer that finds something ends the program with a status of its own. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.session?.destroy();
    this.socket.destroy();
    try {
      const code = await this.ended();
      assert.ok(code === 0 || code === 1, `the helper ended with ${code}: ${this.stderr}`);
    } finally {
      this.child.kill('SIGKILL');
    }
  }
}

/** The same numbers in every run. */
function* numbers(seed: number): Generator<number, never> {
  for (let state = seed; ; ) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    yield state >>> 16;
  }
}

test('connections may end in every way at every moment, on both sides', async () => {
  const random = numbers(4711);
  const choose = (count: number): number => random.next().value % count;
  const endings: ((stream: ServerHttp2Stream) => void)[] = [
    (stream) => stream.respond({ ':status': 403 }, { endStream: true }),
    (stream) => stream.destroy(new Error('broken')),
    (stream) => stream.close(0),
    (stream) => {
      stream.respond({ ':status': 200 });
      stream.end(Buffer.alloc(choose(300_000)));
    },
    (stream) => {
      stream.respond({ ':status': 200 });
      stream.pipe(stream);
    },
    (stream) => {
      stream.respond({ ':status': 200 });
      stream.write(Buffer.alloc(choose(500_000)));
      setTimeout(() => stream.destroy(new Error('broken')), choose(20));
    },
  ];
  await using helper = await Helper.open((stream) => {
    const ending = endings[choose(endings.length)];
    setTimeout(() => !stream.destroyed && ending?.(stream), choose(10));
  });
  const one = async (): Promise<void> => {
    const socket = connect({ port: helper.ports[choose(2)] ?? 0, host: 'localhost', autoSelectFamily: true });
    const closed = new Promise((resolve) => socket.once('close', resolve));
    socket.on('error', () => {});
    const how = choose(5);
    if (how !== 0) socket.resume();
    socket.write(Buffer.alloc(choose(200_000)));
    if (how === 1 || how === 0) socket.end();
    await sleep(choose(30));
    if (how === 2) socket.resetAndDestroy();
    else if (how === 3) socket.destroy();
    else setTimeout(() => socket.destroy(), 200);
    await closed;
  };
  for (let round = 0; round < 10; round++) await Promise.all(Array.from({ length: 60 }, one));
  assert.equal(helper.child.exitCode, null, helper.stderr);
  // It still serves, and nothing is left behind.
  const last = connect(helper.ports[0] ?? 0, '127.0.0.1');
  await once(last, 'connect');
  last.destroy();
});

test('an answer that is too long, or none, is dropped; the next one arrives', async () => {
  let asked = 0;
  await using helper = await Helper.open((stream, path) => {
    assert.equal(path, '/v1/dns');
    asked += 1;
    stream.resume();
    if (asked === 1) stream.respond({ ':status': 200 });
    if (asked === 1) stream.end(Buffer.alloc(MAX_DNS_MESSAGE_BYTES + 1));
    else if (asked === 2) stream.respond({ ':status': 500 }, { endStream: true });
    else if (asked === 3) stream.destroy(new Error('broken'));
    else
      stream.once('end', () => {
        stream.respond({ ':status': 200 });
        stream.end('answer');
      });
  });
  const socket = createSocket('udp4');
  try {
    const answers: string[] = [];
    socket.on('message', (message) => answers.push(message.toString()));
    for (let count = 1; count <= 4; count++) {
      socket.send('question', helper.ports[2] ?? 0, '127.0.0.1');
      while (asked < count && helper.child.exitCode === null) await sleep(5);
    }
    while (answers.length === 0 && helper.child.exitCode === null) await sleep(5);
    assert.deepEqual(answers, ['answer'], helper.stderr);
  } finally {
    socket.close();
  }
});

const SETTINGS = Buffer.from('000000040000000000', 'hex');
const NONSENSE: readonly (readonly [string, Buffer])[] = [
  ['bytes that are no frames', Buffer.alloc(50_000, 0xff)],
  [
    'data on a stream that nobody opened',
    Buffer.concat([SETTINGS, Buffer.from('0000010000000000012a', 'hex')]),
  ],
  [
    'a promise',
    Buffer.concat([SETTINGS, Buffer.from('000004050400000001', 'hex'), Buffer.from('00000002', 'hex')]),
  ],
  [
    'credit beyond what there can be',
    Buffer.concat([SETTINGS, Buffer.from('0000040800000000007fffffff', 'hex')]),
  ],
];
for (const [what, bytes] of NONSENSE) {
  test(`a host that says ${what} ends the helper`, async () => {
    await using helper = await Helper.start();
    helper.socket.resume();
    helper.socket.write(bytes);
    assert.equal(await helper.ended(), 1, helper.stderr);
  });
}

test('a host that hangs up ends the helper', async () => {
  await using helper = await Helper.open(() => {});
  await sleep(100);
  helper.socket.destroy();
  assert.equal(await helper.ended(), 0, helper.stderr);
});
