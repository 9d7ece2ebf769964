import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Alert } from '../../src/audit/alert.ts';
import { readAlertConfig } from '../../src/audit/alert-config.ts';
import { AlertFile, alertDirectory, readAlerts } from '../../src/audit/alert-file.ts';
import { type AlertLimits, Alerts } from '../../src/audit/alerts.ts';
import { installRoot } from '../../src/core/install.ts';
import { scratchDirectory } from '../support/scratch.ts';

const KEY = 'a key of more than sixteen bytes';
const FAST: AlertLimits = {
  repeatMs: 60_000,
  delivery: { answerTimeoutMs: 300, maxAttempts: 4, backOffMs: () => 20 },
};

const alert = (over: Partial<Alert> = {}): Alert => ({
  version: 1,
  id: '6d5e1a52-0000-4000-8000-000000000001',
  time: '2026-01-31T09:05:07.000Z',
  severity: 'critical',
  title: 'the job asked for evil.example, which is banned',
  rule: 'ct.egress.banned',
  action: 'terminated',
  run: { id: 'r1', job: 'build', repository: 'a/b', step: 'test' },
  destination: { host: 'evil.example', port: 443, protocol: 'tls' },
  evidence: { file: '/ct/decisions.jsonl', id: 'd1' },
  count: 1,
  ...over,
});

interface Received {
  readonly headers: IncomingMessage['headers'];
  readonly body: string;
  readonly atMs: number;
}

/** A receiver on loopback. `answer` may leave a request without one. */
class Receiver implements AsyncDisposable {
  readonly received: Received[] = [];
  readonly server: Server;
  readonly scheme: string;

  constructor(
    answer: (response: ServerResponse, count: number) => void,
    tls?: { readonly key: string; readonly cert: string },
  ) {
    const serve = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
      let body = '';
      for await (const chunk of request) body += chunk;
      this.received.push({ headers: request.headers, body, atMs: Date.now() });
      answer(response, this.received.length);
    };
    const listener = (request: IncomingMessage, response: ServerResponse): void =>
      void serve(request, response).catch(() => {});
    this.server = tls ? createTlsServer(tls, listener) : createServer(listener);
    this.scheme = tls ? 'https' : 'http';
  }

  async listen(): Promise<this> {
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
    return this;
  }

  get url(): string {
    return `${this.scheme}://127.0.0.1:${(this.server.address() as AddressInfo).port}/hook?token=t0ken`;
  }

  get ids(): unknown[] {
    return this.received.map(({ headers }) => headers['idempotency-key']);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.server.closeAllConnections();
    this.server.close();
    await once(this.server, 'close');
  }
}

const ok = (response: ServerResponse): void => void response.writeHead(204).end();

/** `alerts.yml` with these webhooks, read as an operator's is. */
function configure(directory: string, ...webhooks: Record<string, unknown>[]) {
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, 'key'), `${KEY}\n`, { mode: 0o600 });
  writeFileSync(join(directory, 'alerts.yml'), JSON.stringify({ webhooks }), { mode: 0o644 });
  return readAlertConfig(directory);
}

async function until(condition: () => boolean, what: string): Promise<void> {
  for (const startedAt = performance.now(); !condition(); await sleep(5)) {
    assert.ok(performance.now() - startedAt < 10_000, what);
  }
}

async function allAlerts(directory: string): Promise<Alert[]> {
  const alerts: Alert[] = [];
  for await (const alert of readAlerts(directory)) alerts.push(alert);
  return alerts;
}

/** What docs/alerts.md tells receivers to do, written without a look at the sender. */
function verify({ headers, body }: Received, nowSeconds: number): boolean {
  const parts = new Map(
    String(headers['x-ct-signature'])
      .split(',')
      .map((part) => part.split('=') as [string, string]),
  );
  const time = Number(parts.get('t'));
  const expected = createHmac('sha256', KEY).update(`${time}.${body}`).digest('hex');
  return expected === parts.get('v1') && Math.abs(nowSeconds - time) <= 300;
}

test('an alert becomes a line of a private file, and a request whose signature holds for its body and time only', async () => {
  using scratch = scratchDirectory();
  await using receiver = await new Receiver(ok).listen();
  const config = configure(join(scratch.path, 'policy'), {
    name: 'sec',
    url: receiver.url,
    secret_file: 'key',
  });
  const directory = alertDirectory(scratch.path);
  const problems: string[] = [];
  const alerts = new Alerts(directory, { config, onProblem: (text) => problems.push(text), limits: FAST });
  alerts.file(alert());
  assert.deepEqual(await allAlerts(directory), [alert()], 'in the file at once');
  await until(() => receiver.received.length === 1, 'a request');
  await until(() => alerts.waiting === 0, 'delivered');
  await alerts.close();
  assert.deepEqual(problems, []);
  assert.equal(statSync(directory).mode & 0o777, 0o700);
  assert.equal(statSync(join(directory, 'alerts.jsonl')).mode & 0o777, 0o600);
  assert.deepEqual(readdirSync(join(directory, 'outbox')), []);

  const [request] = receiver.received;
  assert.ok(request);
  assert.deepEqual(JSON.parse(request.body), alert());
  assert.equal(request.headers['idempotency-key'], alert().id);
  const nowSeconds = Date.now() / 1000;
  assert.ok(verify(request, nowSeconds));
  assert.ok(!verify({ ...request, body: request.body.replace('evil', 'good') }, nowSeconds), 'another body');
  assert.ok(!verify(request, nowSeconds + 3600), 'an hour later');
  const moved = String(request.headers['x-ct-signature']).replace(/t=\d+/, `t=${Math.floor(nowSeconds) + 1}`);
  assert.ok(!verify({ ...request, headers: { 'x-ct-signature': moved } }, nowSeconds), 'another time');
});

test('a webhook that answers 500 is tried again with the same id, and given up in the end', async () => {
  using scratch = scratchDirectory();
  await using flaky = await new Receiver((response, count) =>
    response.writeHead(count < 3 ? 500 : 200).end(),
  ).listen();
  await using broken = await new Receiver((response) => response.writeHead(503).end()).listen();
  await using refusing = await new Receiver((response) => response.writeHead(404).end()).listen();
  await using moved = await new Receiver((response) =>
    response.writeHead(302, { location: flaky.url }).end(),
  ).listen();
  const config = configure(
    join(scratch.path, 'policy'),
    ...Object.entries({ flaky, broken, refusing, moved }).map(([name, { url }]) => ({ name, url })),
  );
  const problems: string[] = [];
  const directory = alertDirectory(scratch.path);
  const alerts = new Alerts(directory, { config, onProblem: (text) => problems.push(text), limits: FAST });
  alerts.file(alert());
  await until(() => alerts.waiting === 0, 'nothing waits');
  await alerts.close();
  assert.deepEqual(flaky.ids, Array(3).fill(alert().id));
  assert.equal(broken.received.length, FAST.delivery.maxAttempts);
  assert.equal(refusing.received.length, 1, 'a 404 does not go away');
  assert.equal(moved.received.length, 1, 'a redirect is not followed');
  assert.deepEqual(
    problems.sort().map((text) => text.replace(/alert \S+ /, '')),
    [
      'webhook broken: was not delivered in 4 attempts (HTTP status 503); it is in the alert file',
      'webhook moved: was not delivered (HTTP status 302); it is in the alert file',
      'webhook refusing: was not delivered (HTTP status 404); it is in the alert file',
    ],
  );
  assert.doesNotMatch(problems.join(), /t0ken/, 'URLs may be secrets');
});

test('Retry-After is honoured, in seconds', async () => {
  using scratch = scratchDirectory();
  await using receiver = await new Receiver((response, count) =>
    count === 1 ? response.writeHead(429, { 'retry-after': '1' }).end() : ok(response),
  ).listen();
  const config = configure(join(scratch.path, 'policy'), { name: 'sec', url: receiver.url });
  const alerts = new Alerts(alertDirectory(scratch.path), { config, onProblem: assert.fail, limits: FAST });
  alerts.file(alert());
  await until(() => alerts.waiting === 0, 'delivered');
  await alerts.close();
  const [first, second] = receiver.received;
  assert.ok((second?.atMs ?? 0) - (first?.atMs ?? 0) >= 990);
});

test('a webhook that hangs delays neither who files alerts nor another webhook', async () => {
  using scratch = scratchDirectory();
  await using hanging = await new Receiver(() => {}).listen();
  await using fine = await new Receiver(ok).listen();
  const config = configure(
    join(scratch.path, 'policy'),
    { name: 'hanging', url: hanging.url },
    { name: 'fine', url: fine.url },
  );
  const limits = { ...FAST, delivery: { ...FAST.delivery, answerTimeoutMs: 60_000 } };
  const alerts = new Alerts(alertDirectory(scratch.path), { config, onProblem: assert.fail, limits });
  const startedAt = performance.now();
  for (let i = 0; i < 20; i++) alerts.file(alert({ id: `a${i}`, run: { id: `r${i}`, job: 'build' } }));
  assert.ok(performance.now() - startedAt < 1000, 'filing does not wait');
  await until(() => fine.received.length === 20 && hanging.received.length === 1, 'the other one has all');
  assert.equal(alerts.waiting, 20);
  const closingAt = performance.now();
  await alerts.close();
  assert.ok(performance.now() - closingAt < 5000, 'the daemon can end');
  assert.equal(readdirSync(join(alertDirectory(scratch.path), 'outbox')).length, 20, 'kept for the next one');
});

test('a time-out is a failure: the next attempt may succeed', async () => {
  using scratch = scratchDirectory();
  await using receiver = await new Receiver((response, count) => {
    if (count > 1) ok(response);
  }).listen();
  const config = configure(join(scratch.path, 'policy'), { name: 'sec', url: receiver.url });
  const alerts = new Alerts(alertDirectory(scratch.path), { config, onProblem: assert.fail, limits: FAST });
  alerts.file(alert());
  await until(() => alerts.waiting === 0, 'delivered');
  await alerts.close();
  assert.equal(receiver.received.length, 2);
});

test('after kill -9 what was filed is in the file, and the next process delivers what was not', async () => {
  using scratch = scratchDirectory();
  let isUp = false;
  await using receiver = await new Receiver((response) =>
    isUp ? ok(response) : response.writeHead(500).end(),
  ).listen();
  const policy = join(scratch.path, 'policy');
  const config = configure(policy, { name: 'sec', url: receiver.url });
  const directory = alertDirectory(scratch.path);
  const script = `
    const { Alerts } = await import(${JSON.stringify(join(installRoot, 'src/audit/alerts.ts'))});
    const { readAlertConfig } = await import(${JSON.stringify(join(installRoot, 'src/audit/alert-config.ts'))});
    const alerts = new Alerts(process.argv[1], { config: readAlertConfig(process.argv[2]), onProblem: () => {} });
    for (let i = 0; ; i++) {
      alerts.file({ ...JSON.parse(process.argv[3]), id: 'a' + i, run: { id: 'r' + i, job: 'build' } });
      if (i === 20) console.log('filed');
      if (i > 20) await new Promise((resolve) => setTimeout(resolve, 1));
    }`;
  const args = ['--input-type=module', '--eval', script, directory, policy, JSON.stringify(alert())];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(child.stdout, 'data');
  await until(() => receiver.received.length > 0, 'a first attempt');
  child.kill('SIGKILL');
  await once(child, 'exit');

  const filed = await allAlerts(directory);
  assert.ok(filed.length > 20);
  assert.deepEqual(
    filed.map(({ id }) => id),
    filed.map((_, i) => `a${i}`),
  );
  isUp = true;
  receiver.received.length = 0;
  const alerts = new Alerts(directory, { config, onProblem: assert.fail, limits: FAST });
  const waiting = alerts.waiting;
  assert.ok(waiting > 20 && waiting <= 200, `${waiting}`);
  await until(() => alerts.waiting <= 1, 'all but the one that waits for its second attempt');
  await alerts.close();
  assert.equal(new Set(receiver.ids).size, receiver.ids.length, 'none twice');
});

test('a line that was cut short is removed by the next writer, and costs no other line', async () => {
  using scratch = scratchDirectory();
  const file = new AlertFile(scratch.path);
  file.append(alert());
  await file.close();
  appendFileSync(file.path, '{"version":1,"id":"cut');
  assert.equal((await allAlerts(scratch.path)).length, 1, 'a reader passes over it');
  const next = new AlertFile(scratch.path);
  next.append(alert({ id: 'second' }));
  await next.close();
  assert.deepEqual(
    (await allAlerts(scratch.path)).map(({ id }) => id),
    [alert().id, 'second'],
  );
  assert.doesNotMatch(readFileSync(file.path, 'utf8'), /cut/);
  writeFileSync(file.path, 'x'.repeat(200_000));
  const last = new AlertFile(scratch.path);
  await last.close();
  assert.equal(statSync(file.path).size, 0);
});

test('the file is bounded: full ones are renamed, the oldest goes, and a follower misses nothing', async () => {
  using scratch = scratchDirectory();
  const file = new AlertFile(scratch.path, { fileBytes: 5000, maxEarlierFiles: 2 });
  const followed: string[] = [];
  const stop = new AbortController();
  const following = (async () => {
    for await (const { id } of readAlerts(scratch.path, stop.signal)) followed.push(id);
  })();
  const ids = Array.from({ length: 60 }, (_, i) => `a${i}`);
  for (const id of ids) {
    file.append(alert({ id }));
    await sleep(10);
  }
  await until(() => followed.length === 60, `followed ${followed.length}`);
  stop.abort();
  await following;
  assert.deepEqual(followed, ids);
  await file.close();
  const names = readdirSync(scratch.path).sort();
  assert.equal(names.length, 3);
  for (const name of names) assert.ok(statSync(join(scratch.path, name)).size <= 5000);
  const kept = (await allAlerts(scratch.path)).map(({ id }) => id);
  assert.ok(kept.length > 10 && kept.length < 60);
  assert.deepEqual(kept, ids.slice(-kept.length), 'the newest, in order');
});

test('the same again is counted, and told as a number', async () => {
  using scratch = scratchDirectory();
  await using receiver = await new Receiver(ok).listen();
  const config = configure(join(scratch.path, 'policy'), { name: 'sec', url: receiver.url });
  const directory = alertDirectory(scratch.path);
  const limits = { ...FAST, repeatMs: 200 };
  const alerts = new Alerts(directory, { config, onProblem: assert.fail, limits });
  for (let i = 1; i <= 5; i++) alerts.file(alert({ id: `a${i}`, count: i }));
  alerts.file(alert({ id: 'other', destination: { host: 'other.example' } }));
  await until(() => receiver.received.length === 2, 'two requests');
  await until(() => receiver.received.length === 3, 'a third when the time is up');
  await sleep(400);
  await alerts.close();
  const bodies = receiver.received.map(({ body }) => JSON.parse(body) as Alert);
  assert.deepEqual(
    bodies.map(({ title, count }) => [title.replace(alert().title, 'T'), count]),
    [
      ['T', 1],
      ['T', 1],
      ['T (4 more)', 5],
    ],
  );
  assert.equal(new Set(bodies.map(({ id }) => id)).size, 3);
  assert.deepEqual(await allAlerts(directory), bodies, 'the file says the same');
});

test('what was only counted when the daemon ends is told before', async () => {
  using scratch = scratchDirectory();
  const alerts = new Alerts(scratch.path, { config: { webhooks: [] }, onProblem: assert.fail });
  for (let i = 1; i <= 3; i++) alerts.file(alert({ count: i }));
  await alerts.close();
  assert.deepEqual(
    (await allAlerts(scratch.path)).map(({ count }) => count),
    [1, 3],
  );
});

test('a job that tries ten thousand names fills neither the file nor the queue, and its end is still told', async () => {
  using scratch = scratchDirectory();
  const alerts = new Alerts(scratch.path, { config: { webhooks: [] }, onProblem: assert.fail });
  for (let i = 0; i < 10_000; i++) {
    alerts.file(
      alert({ action: 'denied', rule: 'ct.egress.not_allowed', destination: { host: `n${i}.example` } }),
    );
  }
  alerts.file(alert());
  await alerts.close();
  const filed = await allAlerts(scratch.path);
  assert.ok(filed.length < 100, `${filed.length} lines`);
  assert.ok(filed.some(({ action }) => action === 'terminated'));
  const counted = filed.filter(({ title }) => title.endsWith('more)')).map(({ count }) => count);
  assert.deepEqual(counted, [10_000 - 50]);
});

test('a webhook that is down for long costs a bounded queue', async () => {
  using scratch = scratchDirectory();
  await using receiver = await new Receiver(() => {}).listen();
  const config = configure(join(scratch.path, 'policy'), { name: 'sec', url: receiver.url });
  const problems: string[] = [];
  const directory = alertDirectory(scratch.path);
  const alerts = new Alerts(directory, { config, onProblem: (text) => problems.push(text) });
  for (let i = 0; i < 500; i++) alerts.file(alert({ id: `a${i}`, run: { id: `r${i}`, job: 'build' } }));
  assert.equal(alerts.waiting, 200);
  assert.equal(readdirSync(join(directory, 'outbox')).length, 200);
  assert.equal(problems.length, 1);
  await alerts.close();
  assert.equal((await allAlerts(directory)).length, 500);
});

test('TLS is verified, whatever the environment says', async () => {
  using scratch = scratchDirectory();
  const [key, cert] = [join(scratch.path, 'key.pem'), join(scratch.path, 'cert.pem')];
  const request = 'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=receiver';
  const names = ['-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', key, '-out', cert];
  execFileSync('openssl', [...request.split(' '), ...names], { stdio: 'ignore' });
  const tls = { key: readFileSync(key, 'utf8'), cert: readFileSync(cert, 'utf8') };
  await using receiver = await new Receiver(ok, tls).listen();
  const config = configure(
    join(scratch.path, 'policy'),
    { name: 'trusting', url: receiver.url, ca_file: cert },
    { name: 'strict', url: receiver.url },
  );
  const problems: string[] = [];
  process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0';
  try {
    const alerts = new Alerts(alertDirectory(scratch.path), {
      config,
      onProblem: (text) => problems.push(text),
      limits: FAST,
    });
    alerts.file(alert());
    await until(() => alerts.waiting === 0, 'settled');
    await alerts.close();
  } finally {
    delete process.env['NODE_TLS_REJECT_UNAUTHORIZED'];
  }
  assert.equal(receiver.received.length, 1, 'the webhook that knows the authority');
  assert.match(
    problems.join('\n'),
    /^webhook strict: .* was not delivered in 4 attempts \(.*certificate.*\)/,
  );
});

test('what a guest chose cannot format, mention, link or break a line', async () => {
  using scratch = scratchDirectory();
  await using slack = await new Receiver(ok).listen();
  const config = configure(join(scratch.path, 'policy'), { name: 'chat', url: slack.url, format: 'slack' });
  const directory = alertDirectory(scratch.path);
  const alerts = new Alerts(directory, { config, onProblem: assert.fail, limits: FAST });
  const hostile = 'a<!channel>\n<http://evil.example|click>&*b*\u001b[2J\u202e\u2028\ud800\r{"version":1}';
  alerts.file(
    alert({
      title: hostile,
      run: { id: 'r1', job: hostile, step: hostile },
      process: { pid: 7, binary: hostile, arguments: hostile.repeat(1000) },
      destination: { host: hostile },
    }),
  );
  await until(() => slack.received.length === 1, 'a request');
  await alerts.close();
  const body = slack.received[0]?.body ?? '';
  const message = JSON.parse(body) as {
    text: string;
    mrkdwn: boolean;
    blocks: { text?: { type: string; text: string }; fields?: { type: string; text: string }[] }[];
  };
  const texts = message.blocks.flatMap(({ text, fields = [] }) => [...(text ? [text] : []), ...fields]);
  assert.ok(texts.length > 5);
  assert.equal(message.mrkdwn, false);
  for (const { type } of texts) assert.equal(type, 'plain_text');
  for (const text of [message.text, ...texts.map(({ text }) => text)]) {
    assert.doesNotMatch(text, /[<>]|&(?!(amp|lt|gt);)|\p{Cc}|\p{Cf}|\u2028|\p{Cs}/u);
    assert.ok(text.length < 2000);
  }
  assert.match(message.text, /^a&lt;!channel&gt; &lt;http:\/\/evil\.example\|click&gt;&amp;\*b\*\[2J/);
  const lines = readFileSync(join(directory, 'alerts.jsonl'), 'utf8').trimEnd().split('\n');
  assert.equal(lines.length, 1);
  assert.doesNotMatch(lines[0] ?? '', /\p{Cc}|\p{Cf}|\\u|\\n/u);
});

test('CONFIG_INVALID: a configuration that would leak alerts or secrets is refused, and says where', () => {
  using scratch = scratchDirectory();
  const hook = { name: 'sec', url: 'https://hooks.example.com/x' };
  assert.equal(configure(scratch.path, hook).webhooks[0]?.url.hostname, 'hooks.example.com');
  assert.equal(configure(scratch.path, { ...hook, secret_file: 'key' }).webhooks[0]?.secret?.toString(), KEY);
  writeFileSync(join(scratch.path, 'short'), 'short', { mode: 0o600 });
  writeFileSync(join(scratch.path, 'open'), KEY, { mode: 0o644 });
  writeFileSync(join(scratch.path, 'url'), 'https://hooks.example.com/t0ken\n', { mode: 0o600 });
  const { url: _, ...unplaced } = hook;
  assert.equal(configure(scratch.path, { ...unplaced, url_file: 'url' }).webhooks[0]?.url.pathname, '/t0ken');
  const wrong: [Record<string, unknown>[], RegExp][] = [
    [[{ ...hook, url: 'http://hooks.example.com/t0ken' }], /in the clear/],
    [[{ ...hook, url: 'http://127.0.0.1.evil.example/t0ken' }], /in the clear/],
    [[{ ...hook, url: 'https://me:t0ken@hooks.example.com/' }], /name or password/],
    [[{ ...hook, url: 'ftp://hooks.example.com/t0ken' }], /none of https/],
    [[{ ...hook, url_file: 'url' }], /either/],
    [[unplaced], /either/],
    [[{ ...hook, secret_file: 'open' }], /read by other users/],
    [[{ ...hook, secret_file: 'short' }], /fewer than 16/],
    [[{ ...hook, secret_file: 'none' }], /does not exist/],
    [[hook, hook], /twice/],
    [[{ ...hook, events: ['exploded'] }], /`recorded` or `denied` or `terminated`/],
    [[{ ...hook, insecure: true }], /unknown key `insecure`/],
  ];
  for (const [webhooks, message] of wrong) {
    assert.throws(
      () => configure(scratch.path, ...webhooks),
      (error: Error & { code?: string; hint?: string }) => {
        assert.equal(error.code, 'CONFIG_INVALID');
        assert.match(error.message, message);
        return !`${error.message}${error.hint}`.includes('t0ken');
      },
      JSON.stringify(webhooks),
    );
  }
  configure(scratch.path, hook);
  chmodSync(join(scratch.path, 'alerts.yml'), 0o666);
  assert.throws(() => readAlertConfig(scratch.path), { code: 'CONFIG_INVALID', message: /by other users/ });
});

test('what waits for a webhook survives a start without it, and a time without it, but not for ever', async () => {
  using scratch = scratchDirectory();
  let isUp = false;
  await using receiver = await new Receiver((response) =>
    isUp ? ok(response) : response.writeHead(500).end(),
  ).listen();
  const config = configure(join(scratch.path, 'policy'), { name: 'sec', url: receiver.url });
  const none = { webhooks: [] };
  const problems: string[] = [];
  const onProblem = (text: string): void => void problems.push(text);
  const directory = alertDirectory(scratch.path);
  const slow = { ...FAST, delivery: { ...FAST.delivery, backOffMs: () => 60_000 } };
  const alerts = new Alerts(directory, { config, onProblem, limits: slow });
  alerts.file(alert());
  await until(() => receiver.received.length === 1, 'a first attempt');
  await sleep(50);
  alerts.configure(none);
  await sleep(50);
  assert.equal(alerts.waiting, 0);
  alerts.configure(config);
  assert.equal(alerts.waiting, 1, 'it came back');
  await alerts.close();

  const outbox = join(directory, 'outbox');
  const [file = ''] = readdirSync(outbox);
  const waiting = JSON.parse(readFileSync(join(outbox, file), 'utf8'));
  writeFileSync(join(outbox, file), JSON.stringify({ ...waiting, dueMs: Date.now() }), { mode: 0o600 });
  writeFileSync(join(outbox, '0-old.json'), JSON.stringify({ ...waiting, filedMs: 1, webhook: 'gone' }));
  writeFileSync(join(outbox, '0-broken.json'), '{');
  isUp = true;
  const next = new Alerts(directory, { config: none, onProblem, limits: slow });
  assert.deepEqual(readdirSync(outbox), [file], 'what nobody waits for is gone');
  assert.deepEqual(problems, ['alerts given up, because their webhook has not been configured for a day: 1']);
  next.configure(config);
  await until(() => next.waiting === 0, 'delivered');
  await next.close();
  assert.deepEqual(receiver.ids, [alert().id, alert().id]);
});

test('only alerts with the actions that a webhook asks for are sent to it', async () => {
  using scratch = scratchDirectory();
  await using receiver = await new Receiver(ok).listen();
  const config = configure(join(scratch.path, 'policy'), {
    name: 'sec',
    url: receiver.url,
    events: ['terminated'],
  });
  const alerts = new Alerts(alertDirectory(scratch.path), { config, onProblem: assert.fail, limits: FAST });
  alerts.file(alert({ id: 'denied', action: 'denied' }));
  alerts.file(alert({ id: 'ended' }));
  await until(() => alerts.waiting === 0, 'delivered');
  await alerts.close();
  assert.deepEqual(receiver.ids, ['ended']);
});

test('STATE_DIRECTORY_UNSAFE: a directory that others can read is refused', () => {
  using scratch = scratchDirectory();
  chmodSync(scratch.path, 0o755);
  assert.throws(() => new AlertFile(scratch.path), { code: 'STATE_DIRECTORY_UNSAFE' });
});
