/**
 * A link process that its guest has taken over, and one that its guest keeps from ever returning to its event loop: the
 * daemon's end (src/host/link.ts) stays alive and small, and ends it. The daemon is this process.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, readdirSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Dialer } from '../../src/host/dialer.ts';
import { EgressGate } from '../../src/host/egress-gate.ts';
import { Link, type LinkOptions } from '../../src/host/link.ts';
import type { LinkCall } from '../../src/host/link-messages.ts';
import { indexDestinations } from '../../src/policy/destination.ts';
import type { EgressRequest } from '../../src/policy/input.ts';
import { peakMib } from '../support/hostile-host.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';

const DAEMON_MAX_GROWTH_MIB = 24;
/** Of a node process that is killed while it writes at full speed. */
const ENDED_MS = 10_000;

/** `write` fills the channel as fast as it takes bytes; nothing here uses Node's IPC but the acknowledgement of handles. */
const PRELUDE = `
import fs from 'node:fs';
const write = (bytes) => {
  for (let at = 0; at < bytes.length;) {
    try { at += fs.writeSync(3, bytes, at); } catch (error) { if (error.code !== 'EAGAIN') process.exit(1); }
  }
};
const say = (message) => write(Buffer.from(JSON.stringify(message) + '\\n'));
const hold = () => setTimeout(() => {}, 60_000);
const MIB = 1024 * 1024;
`;

let scratch: Scratch;
before(() => {
  scratch = scratchDirectory();
  chmodSync(scratch.path, 0o755); // the link process is another user
});
after(() => scratch[Symbol.dispose]());

let programs = 0;
function program(source: string): string {
  const path = join(scratch.path, `link-${programs++}.mjs`);
  writeFileSync(path, PRELUDE + source);
  return path;
}

function hostile(source: string, options: LinkOptions = {}): Link & AsyncDisposable {
  const link = new Link({ program: program(source), ...options });
  return Object.assign(link, { [Symbol.asyncDispose]: () => link.kill() });
}

const READY: LinkCall = { type: 'await-ready', timeoutMs: 20_000 };

describe('a link process that says what it must not ends with LINK_DIED, and the daemon lives on', () => {
  const cases: readonly [what: string, source: string, message: RegExp][] = [
    ['text that is not JSON', `write(Buffer.from('garbage\\n')); hold();`, /not JSON/],
    ['binary garbage', `write(Buffer.alloc(1000, 0xff)); write(Buffer.from('\\n')); hold();`, /not JSON/],
    [
      'a line that never ends',
      `const part = Buffer.alloc(MIB, 'a'); write(Buffer.from('"')); for (;;) write(part);`,
      /more than 262144 bytes/,
    ],
    [
      'answers without end',
      `const part = Buffer.from('{"type":"alive"}\\n'.repeat(10_000)); for (;;) write(part);`,
      /more than 262144 bytes/,
    ],
    [
      'nested JSON without end',
      `write(Buffer.from('['.repeat(200_000) + '\\n')); hold();`,
      /not JSON|malformed/,
    ],
    ['a message of unknown type', `say({ type: 'shell', argv: ['id'] }); hold();`, /malformed/],
    ['null', 'say(null); hold();', /malformed/],
    ['a number', 'say(7); hold();', /malformed/],
    [
      'the end of a job that nobody started',
      `say({ type: 'job-done', result: { outcome: 'success', exitCode: 0 } }); hold();`,
      /said `job-done`, which nobody asked/,
    ],
    [
      'progress of a job that nobody started',
      `say({ type: 'step', step: 0, state: 'running' }); hold();`,
      /more of its job than there is/,
    ],
    [
      'events of a job that nobody started',
      `say({ type: 'detect', missed: 0, clockOffsetMs: 0, batch: [{ time_ns: '0', pid: 1, started_ns: '0',
         event: { kind: 'denied', denied: { what: 'exec', path: '/x', refused: true, args: [] }, process: { binary: '', program: '', uid: 0, sockets: [], connections: [] } } }] });
       hold();`,
      /events that nobody asked for/,
    ],
    [
      'events of no kind',
      `say({ type: 'detect', missed: 0, clockOffsetMs: 0, batch: [{}] }); hold();`,
      /malformed/,
    ],
    [
      'a lost record of no reason',
      `say({ type: 'audit-lost', loss: { reason: '', message: '' } }); hold();`,
      /malformed/,
    ],
    [
      'a lost record of a job that nobody started',
      `say({ type: 'audit-lost', loss: { reason: 'gap', message: '' } }); hold();`,
      /more of its job than there is/,
    ],
    [
      'an audit summary that is none',
      `say({ type: 'job-done', result: { outcome: 'success', exitCode: 0 }, audit: { kind: 'recorded', summary: {} } }); hold();`,
      /malformed/,
    ],
    ['an acknowledgement of no handle', `say({ cmd: 'NODE_HANDLE_ACK' }); hold();`, /not its to send/],
    ['a refusal of a handle', `say({ cmd: 'NODE_HANDLE_NACK' }); hold();`, /not its to send/],
    [
      'a handle of unknown type',
      `say({ cmd: 'NODE_HANDLE', type: '__proto__', msg: { type: 'ready' } }); hold();`,
      /not its to send/,
    ],
    [
      'a descriptor',
      `import net from 'node:net';
       const server = net.createServer().listen(0, '127.0.0.1', () => process.send({ type: 'ready' }, server));
       server.on('error', () => { const pipe = new net.Socket({ fd: 2 }); process.send({ type: 'ready' }, pipe); });
       hold();`,
      /it sent a descriptor/,
    ],
    ['endless complaints', `for (;;) fs.writeSync(2, 'x'.repeat(65536));`, /floods its stderr/],
  ];
  for (const [what, source, message] of cases) {
    test(what, async () => {
      const beforeMib = peakMib(process.pid);
      const startedAt = performance.now();
      await using link = hostile(source);
      await assert.rejects(link.call(READY), { code: 'LINK_DIED', message });
      await link.exited;
      assert.ok(performance.now() - startedAt < ENDED_MS);
      await assert.rejects(link.call(READY), { code: 'LINK_DIED', message });
      const growthMib = peakMib(process.pid) - beforeMib;
      assert.ok(growthMib < DAEMON_MAX_GROWTH_MIB, `the daemon grew by ${growthMib} MiB`);
    });
  }
});

test("the control: Node's own end of the channel is ended by one line that is not JSON, and filled by a long one", async () => {
  const parent = (source: string): string => `
    import { spawn } from 'node:child_process';
    import { readFileSync } from 'node:fs';
    const child = spawn(process.execPath, [${JSON.stringify(program(source))}],
      { stdio: ['ignore', 'ignore', 'ignore', 'ipc'] });
    child.on('message', () => {});
    child.on('exit', () => console.log(/^VmHWM:\\s+(\\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]));`;
  const run = async (source: string): Promise<{ code: number | null; peak: number }> => {
    const child = spawn(process.execPath, ['--input-type=module', '-e', parent(source)], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => {
      out += chunk.toString();
    });
    const [code] = (await once(child, 'close')) as [number | null];
    return { code, peak: Number(out) / 1024 };
  };
  const [garbage, long] = await Promise.all([
    run(`write(Buffer.from('garbage\\n')); setTimeout(() => {}, 1000);`),
    run(
      `const part = Buffer.alloc(MIB, 'a'); write(Buffer.from('"')); for (let i = 0; i < 150; i++) write(part);`,
    ),
  ]);
  assert.notEqual(garbage.code, 0);
  assert.ok(long.peak > 200, `${long.peak} MiB`);
});

describe('a link process that does not come to an end', { concurrency: 3 }, () => {
  /** Answers heartbeats as an honest one does. */
  const honest = `process.on('message', (m) => { if (m.type === 'heartbeat') say({ type: 'alive' }); });`;

  test('is LINK_STUCK when it never returns to its event loop', async () => {
    await using link = hostile(`process.on('message', () => { for (;;); });`, { heartbeatIntervalMs: 100 });
    await assert.rejects(link.call(READY), { code: 'LINK_STUCK', message: /did not answer for 1 s/ });
    await link.exited;
  });

  test('holds its VM for the whole of its time where nobody counts heartbeats: the control', async () => {
    await using link = hostile(`process.on('message', () => { for (;;); });`, {
      heartbeatIntervalMs: 100_000,
    });
    const call = link.call(READY).catch((error) => error);
    assert.equal(await Promise.race([call, sleep(3000, 'held')]), 'held');
  });

  test('is LINK_STUCK when it is stopped', async () => {
    await using link = hostile(honest, { heartbeatIntervalMs: 100 });
    const call = link.call(READY);
    call.catch(() => {});
    await sleep(500);
    process.kill(link.pid, 'SIGSTOP');
    await assert.rejects(call, { code: 'LINK_STUCK' });
    await link.exited;
  });

  test('is left alone while it answers heartbeats: the control', async () => {
    await using link = hostile(honest, { heartbeatIntervalMs: 100 });
    const call = link.call(READY);
    const first = await Promise.race([call.catch((error) => error), sleep(3000, 'lives')]);
    assert.equal(first, 'lives');
    await link.kill();
    await assert.rejects(call, { code: 'LINK_DIED', message: /SIGKILL/ });
  });

  test('is LINK_STUCK when it answers heartbeats but never ends what it was told to do', async () => {
    await using link = hostile(honest, { heartbeatIntervalMs: 100, overtimeMs: 500 });
    await assert.rejects(link.call({ ...READY, timeoutMs: 1000 }), {
      code: 'LINK_STUCK',
      message: /did not end `await-ready` within 1.5 s/,
    });
  });

  test('does not outlive its job by more than the overtime', async () => {
    await using link = hostile(honest, { heartbeatIntervalMs: 100, overtimeMs: 500 });
    const request = { timeoutMs: 1000 };
    const command = {
      type: 'job',
      run: 'x',
      request,
      pending: '',
      logDirectory: '/out',
    } as unknown as LinkCall;
    await assert.rejects(link.call(command), { code: 'LINK_STUCK', message: /did not end `job`/ });
  });

  test('and takes no bytes cannot make the daemon keep more than the heartbeats it missed', async () => {
    await using link = hostile('for (;;);', { heartbeatIntervalMs: 50 });
    const beforeMib = peakMib(process.pid);
    await assert.rejects(link.call(READY), { code: 'LINK_STUCK' });
    assert.ok(peakMib(process.pid) - beforeMib < DAEMON_MAX_GROWTH_MIB);
  });
});

test('a link process that dies says how, and what it wrote last, without control characters', async () => {
  await using link = hostile(`fs.writeSync(2, 'out of \\x1b[31mmemory\\n'); process.exit(3);`);
  await assert.rejects(link.call(READY), {
    code: 'LINK_DIED',
    message: 'the link process of the VM ended (exit code 3): out of [31mmemory',
  });
});

/** A socket as the daemon has it when a client has connected, and the client's end. */
async function connection(): Promise<AsyncDisposable & { readonly socket: Socket; readonly client: Socket }> {
  const server = createServer().listen(join(scratch.path, `socket-${programs++}`));
  await once(server, 'listening');
  const accepted = once(server, 'connection') as Promise<[Socket]>;
  const client = connect(String(server.address()));
  const [socket] = await accepted;
  const dispose = async (): Promise<void> => {
    client.destroy();
    server.close();
  };
  return { socket, client, [Symbol.asyncDispose]: dispose };
}

test('a link process that acknowledges a handle twice ends with LINK_DIED', async () => {
  await using link = hostile(`
    process.on('message', () => { for (let i = 0; i < 3; i++) say({ cmd: 'NODE_HANDLE_ACK' }); });`);
  await using given = await connection();
  await assert.rejects(link.call(READY, given.socket), { code: 'LINK_DIED', message: /not its to send/ });
});

test('a link process that never takes its handle is LINK_STUCK, and the client loses its connection', async () => {
  await using link = hostile('for (;;);', { heartbeatIntervalMs: 50 });
  await using given = await connection();
  const closed = once(given.client, 'close');
  given.client.resume();
  await assert.rejects(link.call(READY, given.socket), { code: 'LINK_STUCK' });
  await link.exited;
  await closed;
});

test('handles still reach an honest link process, one after another, and are acknowledged', async () => {
  await using link = hostile(`
    process.on('message', (m, socket) => {
      if (m.type === 'heartbeat') return say({ type: 'alive' });
      socket.end('hello');
      say({ type: m.type === 'open' ? 'opened' : 'ready', timings: {} });
    });`);
  const identity = { hostname: 'x', volumeCipher: 'none' };
  for (const command of [READY, { type: 'open', identity, timeoutMs: 5000 }, READY] as const) {
    await using given = await connection();
    await link.call(command, given.socket);
    const [greeting] = await once(given.client, 'data');
    assert.equal(String(greeting), 'hello');
  }
});

describe('a link process that its guest has taken over has no network but what policy gives', () => {
  /** One question after another; `ask(question, answer => …)`. Heartbeats are answered. */
  const ASKING = `
    let id = 0;
    const waiting = new Map();
    const ask = (question, then) => { waiting.set(++id, then); say({ type: 'egress', id, ...question }); };
    const done = () => say({ type: 'job-done', result: { outcome: 'success', exitCode: 0 } });
    process.on('message', (m, socket) => {
      if (m.type === 'heartbeat') say({ type: 'alive' });
      if (m.type === 'job') start();
      if (m.type === 'egress-answer') waiting.get(m.id)?.(m.answer, socket);
    });
    const dns = (name) => ({ ask: 'dns', name, queryType: 'A' });
  `;
  const JOB = {
    type: 'job',
    run: 'x',
    request: { timeoutMs: 20_000 },
    pending: '',
    logDirectory: '/out',
  } as unknown as LinkCall;

  interface Attacked extends AsyncDisposable {
    readonly link: Link;
    /** What policy was asked. */
    readonly asked: EgressRequest[];
    readonly port: number;
    /** Connections that reached the server. */
    readonly reached: () => number;
  }

  /** Policy allows `good.test`, which is a server that greets; `slow.test` is never decided. */
  async function attacked(source: (port: number) => string, options: LinkOptions = {}): Promise<Attacked> {
    let reached = 0;
    const server = createServer((socket) => {
      reached += 1;
      socket.on('error', () => {}).end('hello');
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    const link = hostile(ASKING + source(port), options);
    const asked: EgressRequest[] = [];
    const meta = { path: 'ct/egress/decision', revision: 'r', evaluation_ns: 1 };
    const gate = new EgressGate(
      {
        run: { job: 'job', trust: 'local' },
        steps: [],
        network: { mode: 'enforce', allow: indexDestinations([]) },
        policy: {
          decideEgress: ({ request }) => {
            asked.push(request);
            const host = request.kind === 'dns' ? request.name : request.kind === 'other' ? '' : request.host;
            if (host === 'slow.test') return new Promise(() => {});
            return host === 'good.test'
              ? { decision: { action: 'allow' }, meta }
              : { decision: { action: 'deny', denial: { rule: 'test', message: 'no' } }, meta };
          },
        },
        dial: new Dialer().session(new Map([['good.test', '127.0.0.1']])),
        record: { add: () => 'id', repeat: () => {} },
        onDenial: () => {},
        onOrigin: () => {},
      },
      {
        answer: (id, answer, socket) => link.answer(id, answer, socket),
        tell: () => {},
        terminate: () => {},
      },
    );
    link.onQuestion = (said) =>
      said.type === 'egress' ? gate.question(said) : gate.origin(said.id, said.by);
    return {
      link,
      asked,
      port,
      reached: () => reached,
      [Symbol.asyncDispose]: async () => {
        gate.close();
        server.close();
        await link.kill();
      },
    };
  }

  const cases: readonly [what: string, source: string, message: RegExp][] = [
    [
      'more questions at a time than any guest needs',
      `for (let i = 0; i < 201; i++) ask(dns('slow.test'));`,
      /more than 200/,
    ],
    ['an id twice', `ask(dns('a.test')); id = 0; ask(dns('a.test'));`, /out of turn/],
    ['an id from the future', `id = 10; ask(dns('a.test'));`, /out of turn/],
    [
      'whose question it was that nobody asked',
      `process.send({ type: 'egress-by', id: 1, by: { pid: 1, binary: '/x' } });`,
      /did not ask/,
    ],
    [
      'a process that is none',
      `ask({ ...dns('a.test'), by: { pid: 1, binary: 'x'.repeat(5000) } });`,
      /malformed/,
    ],
    ['a name that is none', `ask(dns('a.test\\0.good.test'));`, /malformed/],
    ['a name in another spelling', `ask(dns('GOOD.test'));`, /malformed/],
    [
      'an address for a name',
      `ask({ ask: 'connect', host: '127.0.0.1', literal: false, port: 80 });`,
      /malformed/,
    ],
    [
      'a name for an address',
      `ask({ ask: 'connect', host: 'good.test', literal: true, port: 80 });`,
      /malformed/,
    ],
    [
      'a port beyond all ports',
      `ask({ ask: 'connect', host: 'good.test', literal: false, port: 65616 });`,
      /malformed/,
    ],
    ['a long name', `ask(dns('a.'.repeat(130) + 'test'));`, /malformed/],
    [
      'a connection that it does not have',
      `ask({ ask: 'inspect', connection: 1, facts: { protocol: 'ssh' } });`,
      /does not have/,
    ],
    ['the end of one', `ask({ ask: 'closed', connection: 1, sent: 0, received: 0 });`, /does not have/],
    ['a question that nobody knows', `ask({ ask: 'allow', host: 'evil.test' });`, /malformed/],
    [
      'an answer in place of a question',
      `say({ type: 'egress-answer', id: 1, answer: { allowed: true } });`,
      /malformed/,
    ],
    [
      'questions after the end of its job',
      `done(); setTimeout(() => { ask(dns('a.test')); ask(dns('a.test')); id = 0; ask(dns('a.test')); }, 300);`,
      /out of turn/,
    ],
  ];
  for (const [what, source, message] of cases) {
    test(`and that sends ${what} is ended`, async () => {
      await using attack = await attacked(() => `const start = () => { ${source} hold(); };`);
      const call = attack.link.call(JOB);
      if (what === 'questions after the end of its job') {
        await call;
        await attack.link.exited;
        await assert.rejects(attack.link.call(JOB), { code: 'LINK_DIED', message });
        return;
      }
      await assert.rejects(call, { code: 'LINK_DIED', message });
      assert.equal(attack.reached(), 0);
    });
  }

  test('questions before there is a job end it', async () => {
    await using link = hostile(
      `say({ type: 'egress', id: 1, ask: 'dns', name: 'a.test', queryType: 'A' }); hold();`,
    );
    await assert.rejects(link.call(READY), { code: 'LINK_DIED', message: /without a job/ });
  });

  test('it gets no socket to what is denied, however it asks', async () => {
    await using attack = await attacked(
      (port) => `const start = () => {
        const targets = [['evil.test', false], ['127.0.0.1', true], ['::ffff:127.0.0.1', true], ['good.test.evil.test', false]];
        let left = targets.length;
        for (const [host, literal] of targets) {
          ask({ ask: 'connect', host, literal, port: ${port} }, (answer, socket) => {
            if (answer.connected || socket) process.exit(9);
            if (--left === 0) done();
          });
        }
      };`,
    );
    const reply = await attack.link.call(JOB);
    assert.equal(reply.type, 'job-done');
    assert.equal(attack.reached(), 0);
    assert.equal(attack.asked.length, 3); // the two spellings of one address are one question
  });

  test('what is allowed it gets, and may read: the control', async () => {
    await using attack = await attacked(
      (
        port,
      ) => `const start = () => ask({ ask: 'connect', host: 'good.test', literal: false, port: ${port} }, (answer, socket) => {
        socket.on('data', (bytes) => {
          if (String(bytes) === 'hello') ask({ ask: 'closed', connection: answer.connection, sent: 0, received: 5 }, done);
        });
      });`,
    );
    const reply = await attack.link.call(JOB);
    assert.equal(reply.type, 'job-done');
    assert.equal(attack.reached(), 1);
  });

  test('a flood of questions, each asked when one is answered, holds up nobody and fills nothing', async () => {
    await using attack = await attacked(
      () => `const start = () => {
        const next = () => ask(dns('n' + id + '.test'), next);
        for (let i = 0; i < 190; i++) next();
        setTimeout(() => done(), 3000);
        setTimeout(() => process.exit(0), 3500);
      };`,
    );
    const beforeMib = peakMib(process.pid);
    const delay = monitorEventLoopDelay({ resolution: 5 });
    delay.enable();
    await attack.link.call(JOB);
    delay.disable();
    assert.ok(attack.asked.length > 1000, `${attack.asked.length} questions`);
    // Not the longest: a busy machine may let this process wait.
    const delayMs = delay.percentile(99) / 1e6;
    assert.ok(delayMs < 50, `${delayMs} ms`);
    assert.ok(attack.asked.length < 5000 + 4 * 2000, `${attack.asked.length} questions`);
    attack.asked.length = 0;
    assert.ok(peakMib(process.pid) - beforeMib < 3 * DAEMON_MAX_GROWTH_MIB);
  });

  test('one that never takes its sockets is LINK_STUCK, and the servers lose their connections', async () => {
    await using attack = await attacked(
      (port) => `const start = () => {
        for (let i = 0; i < 100; i++) ask({ ask: 'connect', host: 'good.test', literal: false, port: ${port} });
        for (;;);
      };`,
      { heartbeatIntervalMs: 100 },
    );
    await assert.rejects(attack.link.call(JOB), { code: 'LINK_STUCK' });
    await attack.link.exited;
    await sleep(100);
    const sockets = process.getActiveResourcesInfo().filter((name) => name === 'TCPSocketWrap');
    assert.equal(sockets.length, 0);
  });
});

test('a hostile link process leaves the daemon no descriptors', () => {
  const fds = readdirSync('/proc/self/fd').length;
  assert.ok(fds < 64, `${fds} descriptors are open`);
});
