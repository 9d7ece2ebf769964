/**
 * Entry of the link process: one per VM, the only process that reads what a guest sends. It knows nothing but its own
 * run, opens no files but the log and the audit record of it, and starts no programs; when it falls, only that run falls.
 */
import type { Socket } from 'node:net';
import { Readable } from 'node:stream';
import { CtError, errorReport, messageOf } from '../core/errors.ts';
import { EgressProxy } from '../egress/proxy.ts';
import { awaitReady } from '../guest/handshake.ts';
import { GuestSession } from '../guest/session.ts';
import { ClientChannel } from '../job/client-channel.ts';
import { runJob } from '../job/runner.ts';
import { Shells } from '../job/shells.ts';
import { emptyTree } from '../job/tree-format.ts';
import { PROBE_PATH } from '../protocol/guest-link.ts';
import type { JobResult } from '../protocol/run.ts';
import { ConnectOrigins } from './connect-origins.ts';
import { LinkAudit, recoverAudit } from './link-audit.ts';
import { LinkEgressControl } from './link-egress.ts';
import { LinkJournal } from './link-journal.ts';
import type { LinkCommand, LinkSaid } from './link-messages.ts';

/** For the guest's answer to the first bytes; one that is emulated on a busy host takes seconds. */
const EGRESS_TIMEOUT_MS = 60_000;

const VM_END_MS = 200;
/** For what the guest has recorded and not sent when its job ends; a job that was cancelled has to be gone before long. */
const AUDIT_PATIENCE_MS = 20_000;
const CANCELLED_PATIENCE_MS = 2000;

let session: GuestSession | undefined;
/** The client of the job that is under way. */
let running: ClientChannel | undefined;
let shells: Shells | undefined;
let isEnding = false;
const origins = new ConnectOrigins();
const audit = new LinkAudit((loss) => reply({ type: 'audit-lost', loss }), reply);
const egress: {
  readonly control: LinkEgressControl;
  /** Until its proxy is started. */
  channel?: Socket | undefined;
  proxy?: EgressProxy;
  /** Why there is no network, or no longer. */
  failure?: string;
} = { control: new LinkEgressControl(reply, origins) };
let finished: { client: ClientChannel; result: JobResult } | undefined;

function reply(message: LinkSaid): void {
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
    case 'egress-channel':
      egress.channel = required(socket).on('error', () => {});
      return;
    case 'detect-answer':
      audit.judged();
      return;
    case 'audit-channel':
      audit.give(required(socket));
      return;
    case 'recover-audit': {
      const { directory, run, cpus } = command;
      reply({ type: 'audit-recovered', report: await recoverAudit(directory, run, cpus) });
      return;
    }
    case 'egress-answer':
      egress.control.answered(command.id, command.answer, socket);
      return;
    case 'event':
      // Not awaited: a client that does not read holds up its job, not what is said about it.
      void running?.event(command.event);
      return;
    case 'probe':
      await probe(required(session), command.user);
      return;
    case 'warm-up':
      await warmUp(required(session), command.user);
      startEgress();
      reply({ type: 'probed' });
      return;
    case 'job': {
      const journal = new LinkJournal(command.logDirectory, command.request, reply);
      const client = new ClientChannel(required(socket), Buffer.from(command.pending, 'base64'), journal);
      running = client;
      for (const event of command.told) journal.event(event);
      if (command.audit) {
        const nameOf = (address: string): string | undefined => egress.proxy?.nameOf(address);
        audit.begin({
          run: command.run,
          nameOf,
          onProcess: (event) => origins.add(event),
          ...command.audit,
        });
      } else audit.discard();
      const current = required(session);
      current.watch();
      // Nobody waits until the client of the job has read that a shell was opened.
      shells = new Shells((event) => void client.event(event));
      await client.event(command.claimed);
      tellEgressFailure(client); // of a VM that waited for this job
      const { run, request, image } = command;
      egress.control.open();
      const result = await runJob({
        run,
        request,
        image,
        session: current,
        client,
        shells,
        settings: command.settings,
        ...(command.expected ? { expected: command.expected } : {}),
        code: command.code,
        onPackages: (manager, problem) => audit.notePackages(manager, problem),
        ...(command.audit?.required ? { beforeAll: () => audit.working() } : {}),
        onStep: ({ network }) => egress.control.beginStep(network !== 'none'),
        onRunning: startEgress,
      });
      shells.end(
        new CtError(
          'SHELL_ENDED',
          `the job has ended (${result.outcome}), and its VM and this shell with it`,
          {
            hint: `what it wrote: ct logs ${run}`,
          },
        ),
      );
      egress.control.close();
      const report = await audit.end(current, isEnding ? CANCELLED_PATIENCE_MS : AUDIT_PATIENCE_MS, () => {
        isEnding = true;
        current.close();
        // Of a VM that has failed its end says why.
        if (result.outcome !== 'infrastructure') reply({ type: 'guest-done' });
      });
      current.close();
      if (journal.failure !== undefined) {
        const message = `the log of this run is not complete: ${journal.failure}`;
        void client.event({ type: 'notice', level: 'warning', message }); // not a reason to wait for who does not read
      }
      finished = { client, result };
      reply({ type: 'job-done', result, ...(report ? { audit: report } : {}) });
      return;
    }
    case 'shell':
      await required(shells).serve(required(socket), Buffer.from(command.pending, 'base64'), command.uid);
      return;
    case 'cancel':
      isEnding = true;
      running?.cancel(new CtError(command.error.code, command.error.message, { hint: command.error.hint }));
      return;
    case 'heartbeat':
      reply({ type: 'alive' });
      return;
    case 'destroyed': {
      if (finished) {
        const { client } = finished;
        await client.event({ type: 'destroyed', durationMs: command.durationMs });
        const result = command.result ? client.masked(command.result) : finished.result;
        await client.event({ type: 'done', result });
        await client.end();
      }
      process.exit(0);
    }
  }
}

/**
 * Serves the network of the guest, once. A guest needs time for it that its first program would have to wait for, so it
 * begins when that runs, or before there is a job; what asks earlier waits. Without it a job has no network, and goes on.
 */
function startEgress(): void {
  const { channel, control } = egress;
  if (!channel) return;
  egress.channel = undefined;
  void EgressProxy.open(channel, control, EGRESS_TIMEOUT_MS)
    .then((proxy) => {
      egress.proxy = proxy;
      return proxy.lost;
    })
    .catch((error: unknown) => {
      egress.failure = `the VM has no network: ${messageOf(error)}`;
      // The network ends with its VM, too, and then that is what is to be told: it is known a moment later.
      setTimeout(() => {
        if (running && !finished && !isEnding) tellEgressFailure(running);
      }, VM_END_MS);
    });
}

function tellEgressFailure(client: ClientChannel): void {
  if (egress.failure === undefined) return;
  void client.event({ type: 'notice', level: 'warning', message: egress.failure });
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
