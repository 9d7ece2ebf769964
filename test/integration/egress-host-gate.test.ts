/** The daemon's side of egress for one run, with a policy that the test makes and real connections on loopback. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { CtError } from '../../src/core/errors.ts';
import { Dialer, type DialerOptions } from '../../src/host/dialer.ts';
import {
  EgressGate,
  type EgressGateOptions,
  type EgressPolicy,
  MAX_CONNECTIONS,
  type RecordedDecision,
} from '../../src/host/egress-gate.ts';
import type { EgressAnswer, EgressAsk } from '../../src/host/egress-messages.ts';
import type { EgressDecision } from '../../src/policy/decision.ts';
import { indexDestinations } from '../../src/policy/destination.ts';
import type { EgressInput, EgressRequest } from '../../src/policy/input.ts';
import type { RunEvent } from '../../src/protocol/run.ts';

const ALLOW: EgressDecision = { action: 'allow', allowed_by: 'test' };
const DENY: EgressDecision = {
  action: 'deny',
  denial: { rule: 'test.denied', message: 'the test denies it', hint: 'ask the test' },
};
const TERMINATE: EgressDecision = { action: 'terminate', denial: { rule: 'test.banned', message: 'banned' } };

const server = createServer({ allowHalfOpen: true }, (socket) => {
  socket.on('error', () => {});
  socket.end('hello');
});
let port = 0;
before(async () => {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  port = (server.address() as { port: number }).port;
});
after(() => server.close());

class World {
  readonly asked: EgressInput[] = [];
  readonly recorded: { input: EgressInput; decision: EgressDecision }[] = [];
  readonly repeats: string[] = [];
  readonly told: RunEvent[] = [];
  readonly denials: RecordedDecision[] = [];
  readonly sockets: Socket[] = [];
  readonly disposed: number[] = [];
  terminated: CtError | undefined;
  recordError: Error | undefined;
  readonly gate: EgressGate;
  #id = 0;
  readonly #waiting = new Map<number, (answer: EgressAnswer) => void>();

  constructor(
    decide: (request: EgressRequest, input: EgressInput) => EgressDecision | Promise<EgressDecision>,
    options: Partial<EgressGateOptions> & { readonly dialer?: DialerOptions } = {},
  ) {
    const meta = { path: 'ct/egress/decision', revision: 'r', evaluation_ns: 1 };
    const policy: EgressPolicy = {
      decideEgress: (input) => {
        this.asked.push(input);
        const decision = decide(input.request, input);
        return decision instanceof Promise
          ? decision.then((late) => ({ decision: late, meta }))
          : { decision, meta };
      },
    };
    const resolver = async () => [{ address: '127.0.0.1', family: 4 }];
    this.gate = new EgressGate(
      {
        run: { id: 'run', job: 'job', trust: 'local' },
        steps: [{ name: 'one' }, { name: 'two', network: 'none' }],
        network: { mode: 'enforce', allow: indexDestinations([]) },
        policy,
        dial: new Dialer(options.dialer ?? { resolver }).session(),
        record: {
          add: (input, { decision }) => {
            if (this.recordError) throw this.recordError;
            this.recorded.push({ input, decision });
            return `d${this.recorded.length}`;
          },
          repeat: (id) => this.repeats.push(id),
        },
        onDenial: (denied) => this.denials.push(denied),
        onOrigin: () => {},
        ...options,
      },
      {
        answer: (id, answer, socket) => {
          if (socket) this.sockets.push(socket);
          this.#waiting.get(id)?.(answer);
          return { [Symbol.dispose]: () => void this.disposed.push(id) };
        },
        tell: (event) => void this.told.push(event),
        terminate: (error) => {
          this.terminated = error;
        },
      },
    );
  }

  ask(ask: EgressAsk): Promise<EgressAnswer> {
    const id = ++this.#id;
    const answer = new Promise<EgressAnswer>((resolve) => this.#waiting.set(id, resolve));
    this.gate.question({ type: 'egress', id, ...ask });
    return answer;
  }

  connect(host = 'a.test', literal = false): Promise<EgressAnswer> {
    return this.ask({ ask: 'connect', host, literal, port });
  }
}

const dns = (name: string): EgressAsk => ({ ask: 'dns', name, queryType: 'A' });

test('a connection is decided about twice, made to the address that was decided about, and handed over', async () => {
  const world = new World(() => ALLOW);
  assert.deepEqual(await world.connect(), { connected: true, connection: 1 });
  assert.deepEqual(
    world.asked.map(({ request }) => request),
    [
      { kind: 'connect', host: 'a.test', port, literal: false },
      {
        kind: 'address',
        host: 'a.test',
        port,
        literal: false,
        addresses: [{ address: '127.0.0.1', classes: ['host', 'loopback'], source: 'resolver' }],
      },
    ],
  );
  const [socket] = world.sockets;
  assert.ok(socket);
  assert.equal(socket.bytesRead, 0);
  const [greeting] = await once(socket.resume(), 'data');
  assert.equal(String(greeting), 'hello');
  const verdict = await world.ask({
    ask: 'inspect',
    connection: 1,
    facts: { protocol: 'tls', sni: 'b', ech: true },
  });
  assert.deepEqual(verdict, { allowed: true });
  assert.deepEqual(world.asked.at(-1)?.request, {
    kind: 'stream',
    host: 'a.test',
    port,
    literal: false,
    protocol: 'tls',
    sni: 'b',
    ech: true,
  });
  assert.deepEqual(await world.ask({ ask: 'closed', connection: 1, sent: 1, received: 2 }), { heard: true });
  assert.deepEqual(world.disposed, [1]);
  assert.deepEqual(world.told, []);
  socket.destroy();
});

test('nothing is resolved for a connection that is denied, and nothing connected to an address that is', async () => {
  let resolved = 0;
  let connected = 0;
  const count = (): void => void connected++;
  server.on('connection', count);
  const resolver = async () => {
    resolved += 1;
    return [{ address: '127.0.0.1', family: 4 }];
  };
  const denied = new World(() => DENY, { dialer: { resolver } });
  assert.deepEqual(await denied.connect(), {
    connected: false,
    reason: 'denied',
    message: 'the test denies it',
  });
  assert.equal(resolved, 0);
  const rebound = new World(({ kind }) => (kind === 'address' ? DENY : ALLOW), { dialer: { resolver } });
  assert.deepEqual(await rebound.connect(), {
    connected: false,
    reason: 'denied',
    message: 'the test denies it',
  });
  assert.equal(resolved, 1);
  await sleep(50);
  assert.equal(connected, 0);
  const control = new World(() => ALLOW, { dialer: { resolver } });
  assert.deepEqual(await control.connect(), { connected: true, connection: 1 });
  await sleep(50);
  assert.equal(connected, 1);
  server.off('connection', count);
  for (const socket of control.sockets) socket.destroy();
});

test('a literal address is not resolved, but classified', async () => {
  const world = new World(() => ALLOW, { dialer: { resolver: () => Promise.reject(new Error('asked')) } });
  assert.deepEqual(await world.connect('127.0.0.1', true), { connected: true, connection: 1 });
  const request = world.asked[1]?.request;
  assert.deepEqual(request?.kind === 'address' && request.addresses, [
    { address: '127.0.0.1', classes: ['host', 'loopback'], source: 'literal' },
  ]);
  world.sockets[0]?.destroy();
});

test('a name that does not resolve and a port where nobody is are unreachable, not denied, and the log of the job says so once', async () => {
  const world = new World(() => ALLOW, {
    dialer: { resolver: () => Promise.reject(Object.assign(new Error(), { code: 'ENOTFOUND' })) },
  });
  assert.deepEqual(await world.connect(), {
    connected: false,
    reason: 'unreachable',
    message: `a.test port ${port}: no such host`,
  });
  await world.connect();
  const refused = await world.ask({ ask: 'connect', host: '127.0.0.9', literal: true, port: 1 });
  assert.ok('reason' in refused && refused.reason === 'unreachable');
  assert.deepEqual(world.told, [
    { type: 'unreached', host: 'a.test', port, message: 'no such host' },
    { type: 'unreached', host: '127.0.0.9', port: 1, message: 'connection refused (127.0.0.9)' },
  ]);
});

test('what was asked before is answered without an evaluation, and counted; another step is another question', async () => {
  const world = new World(() => DENY);
  await Promise.all([world.ask(dns('a.test')), world.ask(dns('a.test')), world.ask(dns('a.test'))]);
  assert.equal(world.asked.length, 1);
  assert.deepEqual(world.repeats, ['d1', 'd1']);
  world.gate.step = 1;
  await world.ask(dns('a.test'));
  assert.deepEqual(world.asked[1]?.step, { index: 1, name: 'two', network: false });
  world.gate.step = 0;
  await world.ask(dns('a.test'));
  world.gate.step = 1;
  await world.ask(dns('a.test'));
  assert.equal(world.asked.length, 3);
  assert.equal(world.denials.length, 6);
  assert.equal(world.denials.at(-1)?.count, 2);
});

test('what a step leaves behind when it ends has no more than the step had, until another begins', async () => {
  const world = new World((_, { step }) => (step?.network === false ? DENY : ALLOW));
  world.gate.step = 1;
  world.gate.step = undefined;
  assert.deepEqual(await world.connect(), {
    connected: false,
    reason: 'denied',
    message: 'the test denies it',
  });
  assert.equal(world.denials[0]?.step, 'two');
  world.gate.step = 0;
  world.gate.step = undefined;
  assert.deepEqual(await world.connect(), { connected: true, connection: 1 }, 'the control');
  world.sockets[0]?.destroy();
});

test('policy sees of the allow list what can be about the name', async () => {
  const rule = (host: string) =>
    ({ rule: host, host, port: 1, protocol: 'tcp', addresses: 'public' }) as const;
  const world = new World(() => ALLOW, {
    network: { mode: 'audit', allow: indexDestinations([rule('a.test'), rule('b.test'), rule('*.test')]) },
  });
  await world.ask(dns('a.test'));
  assert.deepEqual(world.asked[0]?.network, {
    mode: 'audit',
    allow: { exact: { 'a.test': [rule('a.test')] }, below: { test: [rule('*.test')] }, any: [] },
  });
});

test('a refusal is in the log of the job once per rule and destination, and so is what audit lets pass', async () => {
  const world = new World(({ kind }) =>
    kind === 'dns'
      ? { action: 'allow', denial: { rule: 'test.denied', message: 'not\u001b[2J allowed' } }
      : DENY,
  );
  await Promise.all([world.ask(dns('a.test')), world.ask(dns('a.test')), world.connect(), world.connect()]);
  await world.ask({ ask: 'attempted', attempt: { what: 'raw-socket' } });
  assert.deepEqual(world.told, [
    { type: 'network', action: 'recorded', host: 'a.test', rule: 'test.denied', message: 'not[2J allowed' },
    {
      type: 'network',
      action: 'denied',
      host: 'a.test',
      port,
      rule: 'test.denied',
      message: 'the test denies it',
      hint: 'ask the test',
    },
    {
      type: 'network',
      action: 'denied',
      rule: 'test.denied',
      message: 'the test denies it',
      hint: 'ask the test',
    },
  ]);
});

test('a thousand refusals are a hundred lines in the log of the job, and one that says so', async () => {
  const world = new World(() => DENY);
  for (let at = 0; at < 1000; at += 100) {
    await Promise.all(Array.from({ length: 100 }, (_, i) => world.ask(dns(`n${at + i}.test`))));
  }
  assert.equal(world.told.length, 101);
  assert.equal(world.told.at(-1)?.type, 'notice');
  assert.equal(world.recorded.length, 1000);
});

test('a decision that ends the run does so in its own turn, and nothing is answered after it', async () => {
  const world = new World(({ kind }) => (kind === 'dns' ? TERMINATE : ALLOW));
  const open = await world.connect();
  assert.ok('connected' in open && open.connected);
  let answered = 0;
  for (const ask of [dns('a.test'), dns('b.test')]) void world.ask(ask).then(() => answered++);
  void world.connect('c.test').then(() => answered++);
  let turns = 0;
  while (!world.terminated) {
    assert.ok(++turns < 10);
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.equal(world.terminated.code, 'POLICY_VIOLATION');
  assert.equal(world.terminated.exitStatus, 122);
  assert.match(world.terminated.message, /^banned: the job was ended by the rule test\.banned$/);
  assert.equal(world.told.at(-1)?.type === 'network' && world.told.at(-1)?.type, 'network');
  await sleep(100);
  assert.equal(answered, 0);
  assert.equal(world.sockets.length, 1);
  assert.equal(world.asked.length, 3);
  world.gate.question({ type: 'egress', id: 99, ...dns('late.test') });
  world.sockets[0]?.destroy();
});

test('a connection that is made while the run ends is closed, not handed over', async () => {
  const resolving = Promise.withResolvers<[{ address: string; family: number }]>();
  const world = new World(() => ALLOW, { dialer: { resolver: () => resolving.promise } });
  void world.connect();
  await sleep(20);
  world.gate.close();
  resolving.resolve([{ address: '127.0.0.1', family: 4 }]);
  await sleep(50);
  assert.equal(world.sockets.length, 0);
});

test('what cannot be recorded is denied, and so is what policy cannot decide; neither is remembered', async () => {
  let fails = true;
  const world = new World(() => {
    if (fails) throw new Error('no policy');
    return ALLOW;
  });
  assert.deepEqual(await world.ask(dns('a.test')), { allowed: false, message: 'no policy' });
  fails = false;
  world.recordError = new Error('disk full');
  const answer = await world.ask(dns('a.test'));
  assert.ok('allowed' in answer && !answer.allowed && /recorded.*disk full/.test(answer.message));
  world.recordError = undefined;
  assert.deepEqual(await world.ask(dns('a.test')), { allowed: true });
});

test('whoever has filled the record first does not get around a ban, nor around what operators hear of', async () => {
  const world = new World(({ kind, ...request }) =>
    kind === 'dns' && 'name' in request && request.name === 'banned.test' ? TERMINATE : DENY,
  );
  world.recordError = new Error('the run has used up its 10000 decisions');
  const answer = await world.ask(dns('a.test'));
  assert.ok('allowed' in answer && !answer.allowed && /recorded/.test(answer.message));
  assert.deepEqual(
    world.denials.map(({ id, decision }) => [id, decision]),
    [['unrecorded', DENY]],
  );
  assert.equal(world.terminated, undefined);
  void world.ask(dns('banned.test'));
  await sleep(20);
  assert.equal((world.terminated as CtError | undefined)?.code, 'POLICY_VIOLATION');
  assert.equal(world.denials.at(-1)?.decision.action, 'terminate');

  const control = new World(() => ALLOW);
  control.recordError = new Error('disk full');
  const denied = await control.ask(dns('banned.test'));
  assert.ok('allowed' in denied && !denied.allowed);
  assert.deepEqual([control.terminated, control.denials], [undefined, []]);
});

test('a policy that answers from elsewhere is asked each time; the record tells the same answer once', async () => {
  let decision = ALLOW;
  const world = new World(async () => decision);
  for (let i = 0; i < 3; i++) assert.deepEqual(await world.ask(dns('a.test')), { allowed: true });
  assert.equal(world.asked.length, 3);
  assert.deepEqual([world.recorded.length, world.repeats], [1, ['d1', 'd1']]);
  decision = DENY;
  const [first, second] = await Promise.all([world.ask(dns('a.test')), world.ask(dns('a.test'))]);
  assert.ok(
    first && 'allowed' in first && !first.allowed && second && 'allowed' in second && !second.allowed,
  );
  assert.equal(world.asked.length, 4);
  assert.equal(world.recorded.length, 2);

  const control = new World(() => decision);
  await control.ask(dns('a.test'));
  decision = ALLOW;
  const kept = await control.ask(dns('a.test'));
  assert.ok('allowed' in kept && !kept.allowed);
});

test('questions that are expensive to decide about take a part of the time of the daemon, not all of it', async () => {
  const evaluationMs = 5;
  const evaluationsIn = async (spentMs: number, windowMs: number): Promise<number> => {
    const world = new World(() => {
      for (const until = performance.now() + spentMs; performance.now() < until; );
      return DENY;
    });
    let asks = true;
    let name = 0;
    const asking = Array.from({ length: 20 }, async () => {
      while (asks) await Promise.race([world.ask(dns(`n${name++}.test`)), sleep(windowMs)]);
    });
    await sleep(windowMs);
    asks = false;
    world.gate.close();
    await Promise.all(asking);
    return world.asked.length;
  };
  // What may be spent at once is 250 ms, and then a tenth of the time.
  const expensive = await evaluationsIn(evaluationMs, 1500);
  assert.ok(expensive >= 30 && expensive <= 110, `${expensive} evaluations of ${evaluationMs} ms in 1.5 s`);
  const cheap = await evaluationsIn(0, 500);
  assert.ok(cheap > 500, `the control: ${cheap} cheap evaluations`);
});

test('a slow policy holds up nobody else', async () => {
  const slow = Promise.withResolvers<EgressDecision>();
  const world = new World((request) =>
    request.kind === 'dns' && request.name === 'slow.test' ? slow.promise : ALLOW,
  );
  const first = world.ask(dns('slow.test'));
  assert.deepEqual(await world.ask(dns('fast.test')), { allowed: true });
  slow.resolve(DENY);
  assert.deepEqual(await first, { allowed: false, message: 'the test denies it', hint: 'ask the test' });
});

test('two hundred questions at a time are answered, one evaluation per turn of the event loop', async () => {
  let evaluatedInTurn = 0;
  let most = 0;
  const world = new World(() => {
    most = Math.max(most, ++evaluatedInTurn);
    setImmediate(() => {
      evaluatedInTurn = 0;
    });
    return ALLOW;
  });
  const answers = await Promise.all(Array.from({ length: 200 }, (_, i) => world.ask(dns(`n${i}.test`))));
  assert.ok(answers.every((answer) => 'allowed' in answer && answer.allowed));
  assert.ok(most <= 2, `${most} evaluations in a turn`);
});

test('LINK_DIED: what no honest link process asks', async () => {
  const died = { code: 'LINK_DIED' };
  const flood = new World(() => new Promise(() => {}));
  for (let i = 0; i < 200; i++) void flood.ask(dns(`n${i}.test`));
  assert.throws(() => void flood.gate.question({ type: 'egress', id: 201, ...dns('n.test') }), died);
  const reused = new World(() => ALLOW);
  await reused.ask(dns('a.test'));
  for (const id of [1, 0, 3])
    assert.throws(() => reused.gate.question({ type: 'egress', id, ...dns('b.test') }), died);
  const strange = new World(() => ALLOW);
  const facts = { protocol: 'ssh' } as const;
  assert.throws(
    () => strange.gate.question({ type: 'egress', id: 1, ask: 'inspect', connection: 1, facts }),
    died,
  );
  const closed = new World(() => ALLOW);
  await closed.connect();
  const over = { ask: 'closed', connection: 1, sent: 0, received: 0 } as const;
  await closed.ask(over);
  assert.throws(() => closed.gate.question({ type: 'egress', id: 3, ...over }), died);
  for (const socket of closed.sockets) socket.destroy();
});

test(`a run has ${MAX_CONNECTIONS} connections at most, and may make another when one is closed`, async () => {
  const world = new World(() => ALLOW);
  for (let i = 0; i < MAX_CONNECTIONS; i += 50) {
    await Promise.all(Array.from({ length: 50 }, () => world.connect()));
    for (const socket of world.sockets.splice(0)) socket.destroy();
  }
  const refused = await world.connect();
  assert.ok(
    'reason' in refused && refused.reason === 'unreachable' && /1000 connections/.test(refused.message),
  );
  await world.ask({ ask: 'closed', connection: 7, sent: 0, received: 0 });
  const made = await world.connect();
  assert.ok('connected' in made && made.connected);
  for (const socket of world.sockets) socket.destroy();
});

test('whose question it was is known with it or told later, and an end of the run does not wait for that', async () => {
  const by = { pid: 7, binary: '/usr/bin/curl', arguments: 'curl https://a.test' };
  const told: unknown[] = [];
  const world = new World(() => ({ ...DENY, action: 'terminate' }), {
    onOrigin: (question, origin) => told.push([question, origin]),
  });
  void world.ask({ ask: 'dns', name: 'a.test', queryType: 'A', by });
  await sleep(20);
  assert.ok(world.terminated);
  assert.deepEqual(
    world.denials.map(({ asker }) => asker),
    [{ question: 1, by }],
  );
  world.gate.origin(1, by);
  assert.deepEqual(told, [[1, by]]);
  assert.throws(() => world.gate.origin(2, by), { code: 'LINK_DIED' });
});

test('what is found out about a stream is by whoever connected', async () => {
  const by = { pid: 7, binary: '/usr/bin/curl' };
  const world = new World(({ kind }) => (kind === 'stream' ? DENY : ALLOW));
  await world.ask({ ask: 'connect', host: 'a.test', literal: false, port, by });
  await world.ask({ ask: 'inspect', connection: 1, facts: { protocol: 'ssh' } });
  assert.deepEqual(
    world.denials.map(({ asker }) => asker),
    [{ question: 2, by }],
  );
  world.sockets[0]?.destroy();
});
