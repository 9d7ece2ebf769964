/**
 * Entry of the link process: one per VM, the only process that reads what a guest sends. It knows nothing but its own
 * run, opens no files but the log of it, and starts no programs; when it falls, only that run falls.
 */
import type { Socket } from 'node:net';
import { Readable } from 'node:stream';
import { CtError, errorReport, messageOf } from '../core/errors.ts';
import { awaitReady } from '../guest/handshake.ts';
import { GuestSession } from '../guest/session.ts';
import { ClientChannel } from '../job/client-channel.ts';
import { runJob } from '../job/runner.ts';
import { Shells } from '../job/shells.ts';
import { emptyTree } from '../job/tree-format.ts';
import { PROBE_PATH } from '../protocol/guest-link.ts';
import type { JobResult } from '../protocol/run.ts';
import { LinkJournal } from './link-journal.ts';
import type { LinkCommand, LinkReply } from './link-messages.ts';

let session: GuestSession | undefined;
/** The client of the job that is under way. */
let running: ClientChannel | undefined;
let shells: Shells | undefined;
let finished: { client: ClientChannel; result: JobResult } | undefined;

function reply(message: LinkReply): void {
  process.send?.(message);
}

async function handle(command: LinkCommand, socket: Socket | undefined): Promise<void> {
  switch (command.type) {
    case 'await-ready':
      await awaitReady(required(socket), command.timeoutMs);
      reply({ type: 'ready' });
      return;
    case 'open': {
      const opened = await GuestSession.open(required(socket), command.identity, command.timeoutMs);
      session = opened.session;
      reply({ type: 'opened', timings: opened.timings });
      return;
    }
    case 'probe':
      await probe(required(session), command.user);
      return;
    case 'warm-up':
      await warmUp(required(session), command.user);
      reply({ type: 'probed' });
      return;
    case 'job': {
      const journal = new LinkJournal(command.logDirectory, command.request, reply);
      const client = new ClientChannel(required(socket), Buffer.from(command.pending, 'base64'), journal);
      running = client;
      const current = required(session);
      current.watch();
      // Nobody waits until the client of the job has read that a shell was opened.
      shells = new Shells((event) => void client.event(event));
      await client.event(command.claimed);
      const { run, request, image } = command;
      const result = await runJob({ run, request, image, session: current, client, shells });
      shells.end(
        new CtError(
          'SHELL_ENDED',
          `the job has ended (${result.outcome}), and its VM and this shell with it`,
          {
            hint: `what it wrote: ct logs ${run}`,
          },
        ),
      );
      current.close();
      if (journal.failure !== undefined) {
        const message = `the log of this run is not complete: ${journal.failure}`;
        void client.event({ type: 'notice', level: 'warning', message }); // not a reason to wait for who does not read
      }
      finished = { client, result };
      reply({ type: 'job-done', result });
      return;
    }
    case 'shell':
      await required(shells).serve(required(socket), Buffer.from(command.pending, 'base64'), command.uid);
      return;
    case 'cancel':
      running?.cancel(new CtError(command.error.code, command.error.message, { hint: command.error.hint }));
      return;
    case 'heartbeat':
      reply({ type: 'alive' });
      return;
    case 'destroyed': {
      if (finished) {
        const { client, result } = finished;
        await client.event({ type: 'destroyed', durationMs: command.durationMs });
        const error = result.outcome === 'infrastructure' ? (command.error ?? result.error) : result.error;
        await client.event({ type: 'done', result: error === undefined ? result : { ...result, error } });
        await client.end();
      }
      process.exit(0);
    }
  }
}

/**
 * What every job does is done once, for nothing: the emulator then has translated that code, and the dynamic loader, the C
 * library and the shell are in the guest's page cache. An image without a shell is as good.
 */
async function warmUp(current: GuestSession, user: { uid: number; gid: number }): Promise<void> {
  const { uid, gid } = user;
  const common = { env: { PATH: '/usr/bin:/bin' }, cwd: '/', uid, gid, onOutput: () => {} };
  await current.exec({ ...common, argv: ['/tmp'], builtin: 'tree-in', stdin: Readable.from([emptyTree()]) });
  await current.exec({ ...common, argv: ['sh', '-c', ':'] });
}

async function probe(current: GuestSession, user: { uid: number; gid: number }): Promise<void> {
  let answered = false;
  const result = await current.exec({
    argv: [PROBE_PATH],
    env: {},
    cwd: '/',
    uid: user.uid,
    gid: user.gid,
    onOutput: () => {
      if (!answered) reply({ type: 'probed' });
      answered = true;
    },
  });
  if (!answered)
    throw new CtError('GUEST_PROTOCOL', `the probe program wrote nothing (${JSON.stringify(result)})`);
}

function required<T>(value: T | undefined): T {
  if (value === undefined) throw new CtError('INTERNAL', 'a link command came without what it needs');
  return value;
}

process.on('message', (command: LinkCommand, socket?: Socket) => {
  handle(command, socket).catch((error: unknown) => reply({ type: 'failed', error: errorReport(error) }));
});
// The daemon is gone: so is the VM, and nobody waits for the result.
process.on('disconnect', () => process.exit(1));
process.on('uncaughtException', (error) => {
  reply({ type: 'failed', error: { code: 'INTERNAL', message: messageOf(error) } });
  process.exit(70);
});
