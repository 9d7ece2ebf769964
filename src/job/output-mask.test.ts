import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { encodeRecord, RecordDecoder } from '../protocol/records.ts';
import { ClientRecord, type RunEvent, ServerRecord } from '../protocol/run.ts';
import { encodeSecret } from '../protocol/secret-record.ts';
import { ClientChannel } from './client-channel.ts';
import { Masker } from './mask.ts';
import { OutputMask } from './output-mask.ts';
import { SecretValues } from './secret-values.ts';

const VALUE = 'hunter22-hunter22';

function masker(): Masker {
  const secrets = new SecretValues();
  secrets.add('TOKEN', Buffer.from(VALUE));
  return new Masker(secrets);
}

function collecting(): { mask: OutputMask; seen: string[] } {
  const seen: string[] = [];
  const mask = new OutputMask(masker(), async (stream, step, bytes) => {
    seen.push(`${stream} ${step}: ${bytes}`);
  });
  return { mask, seen };
}

test('streams are masked each by itself, and what waits comes with the end of the step', async () => {
  const { mask, seen } = collecting();
  await mask.output('stdout', 0, Buffer.from('a hunter22-'));
  await mask.output('stderr', 0, Buffer.from('hunter22'));
  await mask.output('stdout', 0, Buffer.from('hunter22 b'));
  await mask.endStep();
  assert.deepEqual(seen, ['stdout 0: a ', 'stdout 0: *** b', 'stderr 0: hunter22']);
  await mask.output('stderr', 1, Buffer.from('-hunter22'));
  assert.equal(seen.at(-1), 'stderr 1: -', 'steps are different outputs');
});

test('a prompt that begins like a secret appears soon, most of a secret does not', async () => {
  const { mask, seen } = collecting();
  await mask.output('stdout', 0, Buffer.from('go on? hun'));
  await mask.output('stderr', 0, Buffer.from('hunter22-'));
  assert.deepEqual(seen, ['stdout 0: go on? ']);
  await sleep(300);
  assert.deepEqual(seen, ['stdout 0: go on? ', 'stdout 0: hun']);
  await mask.output('stdout', 0, Buffer.from('ter22-hunter22\n'));
  assert.equal(seen.at(-1), 'stdout 0: ***\n');
  await mask.endStep();
});

test('texts of events and results are masked, and nothing else of them', () => {
  const { mask } = collecting();
  const text = `not ${VALUE}`;
  const error = { code: 'JOB_FAILED', message: text, hint: text } as const;
  const hidden = { code: 'JOB_FAILED', message: 'not ***', hint: 'not ***' };
  const result = { outcome: 'failure', exitCode: 1, error } as const;
  assert.deepEqual(mask.result(result), { ...result, error: hidden });
  assert.deepEqual(mask.event({ type: 'done', result }), {
    type: 'done',
    result: { ...result, error: hidden },
  });
  assert.deepEqual(mask.event({ type: 'notice', level: 'info', message: text }), {
    type: 'notice',
    level: 'info',
    message: 'not ***',
  });
  const end = { type: 'step-end', step: 0, name: 's', outcome: 'failure', durationMs: 1 } as const;
  assert.deepEqual(mask.event({ ...end, hint: text }), { ...end, hint: 'not ***' });
  assert.deepEqual(mask.event(end), end);
});

test('after its end nothing comes through, least of all unmasked', async () => {
  const { mask, seen } = collecting();
  await mask.output('stdout', 0, Buffer.from('hun'));
  mask[Symbol.dispose]();
  await mask.output('stdout', 0, Buffer.from(`more ${VALUE}`));
  await mask.endStep();
  await sleep(150);
  assert.deepEqual(seen, []);
  assert.deepEqual(mask.event({ type: 'notice', level: 'info', message: VALUE }), {
    type: 'notice',
    level: 'info',
    message: '***',
  });
});

/** A link process's channel, and the client's end of it. */
async function channel(): Promise<{ link: ClientChannel; client: Socket; journal: string[] }> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = connect((server.address() as AddressInfo).port, '127.0.0.1');
  const [socket] = (await once(server, 'connection')) as [Socket];
  server.close();
  const journal: string[] = [];
  const link = new ClientChannel(socket, Buffer.alloc(0), {
    event: (event: RunEvent) => journal.push(JSON.stringify(event)),
    output: (stream, _, bytes) => journal.push(`${stream}: ${bytes}`),
  });
  return { link, client, journal };
}

test('client and journal see the same, masked', async () => {
  const { link, client, journal } = await channel();
  client.write(encodeRecord(ClientRecord.secret, encodeSecret('TOKEN', Buffer.from(VALUE))));
  client.write(encodeRecord(ClientRecord.secretsEnd));
  const secrets = await link.secrets.expect(['TOKEN']);
  link.maskWith((emit) => new OutputMask(new Masker(secrets), emit));
  const output: string[] = [];
  const decoder = new RecordDecoder((type, payload) => {
    if (type === ServerRecord.stdout) output.push(payload.subarray(2).toString());
    else output.push(payload.toString());
  });
  client.on('data', (chunk: Buffer) => decoder.push(chunk));
  await link.output('stdout', 3, Buffer.from(`${'x'.repeat(70_000)}${VALUE}y`));
  await link.event({ type: 'notice', level: 'warning', message: VALUE });
  await link.endOutput();
  await link.end();
  await once(client, 'end');
  const told = output.join('');
  assert.ok(told.startsWith(`${'x'.repeat(70_000)}***y{`), told.slice(-200));
  assert.ok(told.endsWith('"message":"***"}'));
  assert.equal(journal.join(''), `stdout: ${told}`);
});

test('a client that sends other secrets than it is asked for is refused', async () => {
  for (const [names, message] of [
    [['TOKEN', 'KEY'], /did not send the secret `KEY`/],
    [['KEY'], /KEY/],
    [[], /sent the secret `TOKEN`, which no step names/],
  ] as const) {
    const { link, client } = await channel();
    client.write(encodeRecord(ClientRecord.secret, encodeSecret('TOKEN', Buffer.from(VALUE))));
    client.write(encodeRecord(ClientRecord.secretsEnd));
    await assert.rejects(link.secrets.expect(names), { code: 'HOST_PROTOCOL', message });
    client.destroy();
  }
});

for (const [what, records] of [
  [
    'one after the last',
    [encodeRecord(ClientRecord.secretsEnd), encodeRecord(ClientRecord.secret, '\u0001Axxxx')],
  ],
  ['a name that is none', [encodeRecord(ClientRecord.secret, '\u0002a-xxxx')]],
  ['a name that is cut', [encodeRecord(ClientRecord.secret, '\u0005ab')]],
  ['an empty record', [encodeRecord(ClientRecord.secret)]],
  ['a value that is too short', [encodeRecord(ClientRecord.secret, '\u0001Axx')]],
  ['a value with NUL', [encodeRecord(ClientRecord.secret, '\u0001Axxx\0x')]],
] as const) {
  test(`a client's malformed secret ends its job: ${what}`, async () => {
    const { link, client } = await channel();
    client.on('error', () => {});
    for (const record of records) client.write(record);
    const reason = await link.cancelled;
    assert.equal(reason.code, 'HOST_PROTOCOL');
    client.destroy();
  });
}

test('a client that leaves does not take the values from a run that is at its end', async () => {
  const { link, client } = await channel();
  client.write(encodeRecord(ClientRecord.secret, encodeSecret('TOKEN', Buffer.from(VALUE))));
  client.write(encodeRecord(ClientRecord.secretsEnd));
  const secrets = await link.secrets.expect(['TOKEN']);
  client.destroy();
  await link.cancelled;
  assert.equal(`${secrets.get('TOKEN')}`, VALUE);
});

test('a client that leaves before its secrets ends the wait', async () => {
  const { link, client } = await channel();
  client.destroy();
  await assert.rejects(link.secrets.expect(['TOKEN']), { code: 'CANCELLED' });
});
