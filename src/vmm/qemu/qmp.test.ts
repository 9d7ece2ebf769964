import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { QmpClient } from './qmp.ts';

/** A socket whose other end the test plays. */
class FakeSocket extends Duplex {
  readonly sent: string[] = [];

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.sent.push(chunk.toString());
    done();
  }
}

function connect(): { fake: FakeSocket; client: QmpClient } {
  const fake = new FakeSocket();
  return { fake, client: new QmpClient(fake as unknown as Socket) };
}

const greeting = '{"QMP": {"version": {}, "capabilities": []}}\r\n';

test('commands are answered in order, across chunk borders', async () => {
  const { fake, client } = connect();
  const started = client.start();
  fake.push(greeting.slice(0, 10));
  fake.push(greeting.slice(10));
  while (fake.sent.length === 0) await setImmediate();
  fake.push('{"return": {}}\r\n');
  await started;
  const answers = Promise.all([client.command('stop'), client.command('query-status')]);
  fake.push('{"return": {}}\r\n{"return": {"running": false}}\r\n');
  assert.deepEqual(await answers, [{}, { running: false }]);
});

test('a refused command rejects with VMM_COMMAND_FAILED and the description', async () => {
  const { fake, client } = connect();
  fake.push(greeting);
  const refused = client.command('migrate');
  fake.push('{"error": {"class": "GenericError", "desc": "no such uri"}}\r\n');
  await assert.rejects(refused, { code: 'VMM_COMMAND_FAILED', message: 'QMP migrate: no such uri' });
});

test('events reach only who waits for them and accepts them', async () => {
  const { fake, client } = connect();
  const completed = client.event('MIGRATION', (data) => (data as { status: string }).status === 'completed');
  fake.push('{"event": "RESET"}\r\n{"event": "MIGRATION", "data": {"status": "active"}}\r\n');
  fake.push('{"event": "MIGRATION", "data": {"status": "completed"}}\r\n');
  assert.deepEqual(await completed, { status: 'completed' });
});

for (const [what, bytes] of [
  ['a line that is not JSON', 'hello\r\n'],
  ['a message that is no object', '7\r\n'],
  ['an endless line', 'x'.repeat(300 * 1024)],
] as const) {
  test(`${what} ends the conversation with VMM_COMMAND_FAILED`, async () => {
    const { fake, client } = connect();
    const waiting = client.start();
    fake.push(bytes);
    await assert.rejects(waiting, { code: 'VMM_COMMAND_FAILED' });
    await assert.rejects(client.command('stop'), { code: 'VMM_COMMAND_FAILED' });
    assert.equal(fake.destroyed, true);
  });
}

test('everything that waits rejects when the VMM closes the socket', async () => {
  const { fake, client } = connect();
  fake.push(greeting);
  const command = client.command('stop');
  const event = client.event('MIGRATION');
  fake.destroy();
  await assert.rejects(command, { code: 'VMM_COMMAND_FAILED' });
  await assert.rejects(event, { code: 'VMM_COMMAND_FAILED' });
});
