/** A job's network from the guest's channel to a server, past link process, daemon and policy; the guest is the test. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { DecisionLogEntry } from '../../src/policy/log-entry.ts';
import type { JobResult } from '../../src/protocol/run.ts';
import { playedHost } from '../support/egress-guest-host.ts';

/** From the question that breaks a ban to a VMM that has ended. */
const VIOLATION_MS = 100;

const server = createServer({ allowHalfOpen: true }, (socket) => {
  socket.on('error', () => {});
  socket.pipe(socket);
});
let port = 0;
before(async () => {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  port = (server.address() as { port: number }).port;
});
after(() => void server.close());

const policy = (more = '') =>
  `{mode: audit, allow: ['*'], ban: [banned.test], block: [blocked.test], resolve: {good.test: 127.0.0.1, other.test: 127.0.0.1}${more}}`;
const network = () => ({ allow: [`tcp://good.test:${port}`], mode: 'enforce' as const });

const decisionsOf = async (host: Awaited<ReturnType<typeof playedHost>>): Promise<DecisionLogEntry[]> =>
  (await host.client.decisions('latest')).filter(
    (line): line is DecisionLogEntry => (line as { input?: unknown }).input !== undefined,
  );

test('a job reaches what it was given, by name, and nothing else; both are on record', async () => {
  await using host = await playedHost(policy());
  const { guest, result, events } = await host.start({ network: network() });
  const process = await guest.control.startProcess();
  const address = await guest.resolve('good.test');
  assert.match(String(address), /^198\.1[89]\./);
  const { status, stream } = await guest.connect(`${address}:${port}`);
  assert.equal(status, 200);
  stream.write('there and back');
  const [echo] = await once(stream, 'data');
  assert.equal(String(echo), 'there and back');
  stream.end(); // half-closed
  stream.resume();
  await once(stream, 'end');
  assert.equal(await guest.resolve('other.test'), 3);
  const literal = await guest.connect(`127.0.0.1:${port}`);
  assert.equal(literal.status, 403);
  void guest.control.endProcess(process);
  assert.equal((await result).outcome, 'success');
  const [admitted] = events.filter(({ type }) => type === 'admitted');
  assert.ok(
    admitted?.type === 'admitted' && admitted.mode === 'enforce' && /^[0-9a-f]{64}$/.test(admitted.policy),
  );
  assert.deepEqual(
    events
      .filter(({ type }) => type === 'network')
      .map((event) => event.type === 'network' && [event.action, event.host, event.rule]),
    [
      ['denied', 'other.test', 'ct.egress.not_allowed'],
      ['denied', '127.0.0.1', 'ct.egress.literal'],
    ],
  );
  const decisions = await decisionsOf(host);
  assert.equal(decisions[0]?.path, 'ct/admission/decision');
  assert.equal(decisions[1]?.path, 'ct/image/decision');
  const kinds = decisions.slice(2).map(({ input }) => 'request' in input && input.request.kind);
  assert.deepEqual(kinds.slice(0, 3), ['dns', 'connect', 'address']);
  const run = (await host.client.run('latest')).run;
  const log = join(host.ctHome, 'decisions', `${run}.jsonl`);
  assert.match(readFileSync(log, 'utf8'), /"ct\.egress\.literal"/);
  await host.client.removeRun(run);
  assert.equal(existsSync(log), false);
});

test('a job without network gets none, and neither does a step without it', async () => {
  await using host = await playedHost(policy().replace('mode: audit', 'mode: enforce'));
  const bare = await host.start({});
  const process = await bare.guest.control.startProcess();
  assert.equal(await bare.guest.resolve('good.test'), 3);
  void bare.guest.control.endProcess(process);
  assert.equal((await bare.result).outcome, 'success');
  const step = {
    name: 'step',
    argv: ['true'],
    env: {},
    workingDirectory: '.',
    condition: 'success',
  } as const;
  const two = await host.start({ network: network(), steps: [{ ...step, network: 'none' }, step] });
  const first = await two.guest.control.startProcess();
  assert.equal(await two.guest.resolve('good.test'), 3);
  void two.guest.control.endProcess(first);
  const second = await two.guest.control.startProcess();
  assert.match(String(await two.guest.resolve('good.test')), /^198\./);
  void two.guest.control.endProcess(second);
  assert.equal((await two.result).outcome, 'success');
});

test(`a banned name ends the run: its VM is dead within ${VIOLATION_MS} ms, it exits with 122, and an alert says why`, async () => {
  await using host = await playedHost(policy());
  const { guest, result, events } = await host.start({ network: network() });
  await guest.control.startProcess();
  await guest.egress();
  await guest.resolve('good.test');
  const startedAt = performance.now();
  void guest.resolve('banned.test').catch(() => {});
  await guest.exited;
  const tookMs = performance.now() - startedAt;
  const ended: JobResult = await result;
  assert.ok(tookMs <= VIOLATION_MS, `${tookMs} ms`);
  assert.equal(ended.outcome, 'violation');
  assert.equal(ended.exitCode, 122);
  assert.equal(ended.error?.code, 'POLICY_VIOLATION');
  assert.match(ended.error?.message ?? '', /banned\.test.*ct\.egress\.banned/);
  assert.ok(ended.error?.hint);
  const told = events.find((event) => event.type === 'network');
  assert.ok(told?.type === 'network' && told.action === 'terminated' && told.host === 'banned.test');
  const detail = await host.client.run('latest');
  assert.equal(detail.outcome, 'violation');
  assert.equal(host.alerts.length, 1);
  const [alert] = host.alerts;
  assert.equal(alert?.rule, 'ct.egress.banned');
  assert.equal(alert?.action, 'terminated');
  assert.equal(alert?.run.step, 'step');
  const evidence = readFileSync(alert?.evidence.file ?? '', 'utf8').split('\n');
  assert.ok(
    evidence.some((line) => line.includes(alert?.evidence.id ?? 'none') && line.includes('banned.test')),
  );
  console.log(`banned question to dead VM: ${tookMs.toFixed(1)} ms`);
});

test('the same job without the ban goes on: the control', async () => {
  await using host = await playedHost(policy().replace('ban: [banned.test], ', ''));
  const { guest, result } = await host.start({ network: network() });
  const process = await guest.control.startProcess();
  assert.equal(await guest.resolve('banned.test'), 3);
  void guest.control.endProcess(process);
  assert.equal((await result).outcome, 'success');
  assert.equal(host.alerts.length, 0);
});

test('mode audit lets pass what no rule allows, and says so; what is blocked it denies, with an alert', async () => {
  await using host = await playedHost(policy());
  const { guest, result, events } = await host.start({ network: { allow: [], mode: 'audit' } });
  const process = await guest.control.startProcess();
  const address = await guest.resolve('other.test');
  const { status, stream } = await guest.connect(`${address}:${port}`);
  assert.equal(status, 200);
  stream.write('x');
  await once(stream, 'data');
  stream.destroy();
  assert.equal(await guest.resolve('blocked.test'), 3);
  void guest.control.endProcess(process);
  assert.equal((await result).outcome, 'success');
  assert.ok(events.some((event) => event.type === 'network' && event.action === 'recorded'));
  assert.deepEqual(
    host.alerts.map(({ rule, action }) => [rule, action]),
    [['ct.egress.blocked', 'denied']],
  );
});

test('POLICY_DENIED: what policy does not let in takes no VM, exits with 122 and is on record with every reason', async () => {
  await using host = await playedHost(`{mode: enforce, allow: [good.test]}`);
  const failure = (await host
    .start({ cpus: 5, network: { allow: ['evil.test'] } })
    .catch((error: { result: JobResult }) => error.result)) as JobResult;
  assert.equal(failure.outcome, 'violation');
  assert.equal(failure.exitCode, 122);
  assert.equal(failure.error?.code, 'POLICY_DENIED');
  assert.match(failure.error?.message ?? '', /cpus/i);
  assert.match(failure.error?.message ?? '', /evil\.test/);
  assert.ok(failure.error?.hint);
  const [entry] = await decisionsOf(host);
  assert.equal(entry?.result && 'allow' in entry.result && entry.result.allow, false);
  const control = await host.start({ cpus: 4, network: { allow: ['https://good.test'] } });
  const process = await control.guest.control.startProcess();
  void control.guest.control.endProcess(process);
  assert.equal((await control.result).outcome, 'success');
});

test('policy is read again when its file changes, and a broken one lets nobody in and says where it is broken', async () => {
  await using host = await playedHost(policy());
  const { revision } = await host.client.policy();
  host.setPolicy('{mode: never, allow: []}');
  await assert.rejects(host.client.policy(), { code: 'POLICY_INVALID' });
  const failure = (await host.start({}).catch((error: { result: JobResult }) => error.result)) as JobResult;
  assert.equal(failure.error?.code, 'POLICY_INVALID');
  assert.match(failure.error?.message ?? '', /data\.yml:2:/);
  host.setPolicy('{mode: terminate, allow: []}');
  const changed = await host.client.policy();
  assert.equal(changed.mode, 'terminate');
  assert.notEqual(changed.revision, revision);
});

test('what policy would say is asked without a run', async () => {
  await using host = await playedHost(`{mode: enforce, allow: [good.test]}`);
  const request = {
    name: 'job',
    image: 'debian-12',
    cpus: 1,
    memoryMib: 256,
    diskMib: 64,
    env: {},
    steps: [],
    timeoutMs: 1000,
    artifacts: [],
    sendsTree: false,
  };
  const yes = await host.client.checkPolicy({ ...request, network: { allow: ['good.test'] } });
  assert.equal(yes.decision.allow, true);
  const no = await host.client.checkPolicy({ ...request, network: { allow: ['evil.test'] } });
  assert.equal(no.decision.allow, false);
  assert.deepEqual(await host.client.runs('all'), []);
  await assert.rejects(host.client.checkPolicy({ ...request, cpus: -1 }), { code: 'HOST_PROTOCOL' });
});

test('a hundred connections at once and a thousand one after another leave nothing behind in the daemon', async () => {
  await using host = await playedHost(policy());
  const { guest, result } = await host.start({ network: network() });
  const running = await guest.control.startProcess();
  const address = await guest.resolve('good.test');
  const once1 = async (): Promise<void> => {
    const { status, stream } = await guest.connect(`${address}:${port}`);
    assert.equal(status, 200);
    stream.write('x');
    await once(stream, 'data');
    stream.end();
    stream.resume();
    await once(stream, 'close');
  };
  await Promise.all(Array.from({ length: 100 }, once1));
  const connections = (): Promise<number> =>
    new Promise((resolve, reject) =>
      server.getConnections((error, count) => (error ? reject(error) : resolve(count))),
    );
  const handles = (): number =>
    (process.getActiveResourcesInfo?.() ?? []).filter((name) => name === 'TCPSocketWrap').length;
  for (let i = 0; i < 10; i++) await Promise.all(Array.from({ length: 100 }, once1));
  await sleep(100);
  assert.equal(await connections(), 0);
  assert.ok(handles() < 10, `${handles()} sockets`);
  void guest.control.endProcess(running);
  assert.equal((await result).outcome, 'success');
});

test('a connection that a step leaves open does not outlive the beginning of one without network', async () => {
  await using host = await playedHost(policy());
  const step = {
    name: 'step',
    argv: ['true'],
    env: {},
    workingDirectory: '.',
    condition: 'success',
  } as const;
  const { guest, result } = await host.start({
    network: network(),
    steps: [step, { ...step, network: 'none' }],
  });
  const first = await guest.control.startProcess();
  const address = await guest.resolve('good.test');
  const { stream } = await guest.connect(`${address}:${port}`);
  stream.write('x');
  await once(stream, 'data');
  const closed = new Promise((resolve) => stream.once('close', resolve));
  void guest.control.endProcess(first);
  const second = await guest.control.startProcess();
  await closed;
  assert.equal((await guest.connect(`${address}:${port}`)).status, 403);
  void guest.control.endProcess(second);
  assert.equal((await result).outcome, 'success');
});

test('a run that ends takes its connections with it', async () => {
  await using host = await playedHost(policy());
  const { guest, result } = await host.start({ network: network() });
  const process = await guest.control.startProcess();
  const address = await guest.resolve('good.test');
  const accepted = once(server, 'connection') as Promise<[Socket]>;
  const { stream } = await guest.connect(`${address}:${port}`);
  const [socket] = await accepted;
  const closed = new Promise((resolve) => socket.once('close', resolve));
  stream.write('x');
  void guest.control.endProcess(process);
  assert.equal((await result).outcome, 'success');
  await closed;
});
