/**
 * A child of the daemon that is not trusted, and that speaks on without reading: what it is told has to be kept by the daemon,
 * which all runs share. The child is a shell, so that nothing in it reads its channel by itself.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { GuardedChannel } from '../../src/host/guarded-channel.ts';

const SPEAKS_ON = 'while :; do echo "{}" >&3; sleep 0.01; done';
/** Reads line by line, and acknowledges descriptors as Node does. */
const READS = `
process.on('message', (message, handle) => handle?.destroy());
setInterval(() => process.send({}), 10);`;

interface Talk extends AsyncDisposable {
  readonly child: ChildProcess;
  readonly violations: string[];
  messages: number;
}

function talk(program: readonly [string, ...string[]], onMessage: (child: ChildProcess) => void): Talk {
  const [file, ...args] = program;
  const child = spawn(file, args, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
  const violations: string[] = [];
  const self: Talk = {
    child,
    violations,
    messages: 0,
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL');
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    },
  };
  const channel = new GuardedChannel(child, {
    onMessage: () => {
      self.messages += 1;
      channel.grant();
      onMessage(child);
    },
    onViolation: (what) => violations.push(what),
  });
  return self;
}

const answer = { type: 'egress-answer', answer: { allowed: false, message: 'x'.repeat(8000) } };
const tellHundred = (child: ChildProcess): void => {
  for (let i = 0; i < 100; i++) child.send(answer, () => {});
};

test('a child that asks on without reading its answers is ended before they fill the daemon; one that reads is not', async () => {
  await using hostile = talk(['/bin/sh', '-c', SPEAKS_ON], tellHundred);
  await using control = talk([process.execPath, '-e', READS], tellHundred);
  for (let i = 0; i < 500 && hostile.violations.length === 0; i++) await sleep(10);
  assert.deepEqual(hostile.violations, ['it speaks on, and does not read what it is told']);
  // 0.8 MB each time
  assert.ok(hostile.messages <= 15, `${hostile.messages} messages`);
  for (let i = 0; i < 500 && control.messages <= 30; i++) await sleep(10);
  assert.ok(control.messages > 30, `the control: ${control.messages} messages`);
  assert.deepEqual(control.violations, []);
});

/** Sends the child a connected socket. What is returned closes it if the child has never taken it, which Node does not do. */
async function hand(child: ChildProcess, port: number): Promise<() => void> {
  const socket = connect(port, '127.0.0.1').on('error', () => {});
  await once(socket, 'connect');
  const holder = socket as unknown as { readonly _handle: { close(): void } | null };
  const { _handle: handle } = holder;
  child.send({ type: 'egress-answer' }, socket, () => {});
  return () => {
    if (holder._handle) socket.destroy();
    else handle?.close();
  };
}

test('the same behind a descriptor that it never takes', async () => {
  const server = createServer((socket) => socket.on('error', () => {}));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  const tell = (child: ChildProcess): void => {
    for (let i = 0; i < 100; i++) child.send({ type: 'heartbeat' }, () => {});
  };
  await using hostile = talk(['/bin/sh', '-c', SPEAKS_ON], tell);
  await using control = talk([process.execPath, '-e', READS], tell);
  const sent = await Promise.all([hostile, control].map(({ child }) => hand(child, port)));
  for (let i = 0; i < 500 && hostile.violations.length === 0; i++) await sleep(10);
  assert.equal(hostile.violations.length, 1);
  assert.ok(hostile.messages <= 20, `${hostile.messages} messages`);
  for (let i = 0; i < 500 && control.messages <= 30; i++) await sleep(10);
  assert.ok(control.messages > 30 && control.violations.length === 0, 'the control');
  for (const close of sent) close();
  server.close();
});
