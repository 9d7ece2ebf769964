/** The daemon's handle of a link process: one command at a time, every wait with three exits. */
import { type ChildProcess, spawn } from 'node:child_process';
import type { Socket } from 'node:net';
import type { Readable } from 'node:stream';
import { BoundedTail } from '../core/bounded-tail.ts';
import { CtError, messageOf, toCtError } from '../core/errors.ts';
import { entryPoint, launcherPath } from '../core/install.ts';
import { MAX_STEPS } from '../protocol/limits.ts';
import type { EgressAnswer, EgressOrigin, EgressQuestion } from './egress-messages.ts';
import { GuardedChannel } from './guarded-channel.ts';
import { type AuditPlace, LinkJail, type LinkJailOptions } from './link-jail.ts';
import {
  type LinkCall,
  type LinkCommand,
  type LinkProgress,
  type LinkReply,
  parseLinkReply,
} from './link-messages.ts';
import type { DetectReport } from './run-detections.ts';
import { LINK_STATES } from './run-state.ts';

/** Heap of a link process; trees and output stream through it, and hostile peers are bounded by it. */
const LINK_HEAP_MIB = 96;
/** A link process that runs answers at once. One that misses all of these in a row is kept busy by its guest. */
const HEARTBEAT_INTERVAL_MS = 2000;
const MAX_MISSED_HEARTBEATS = 10;
/** What a link process may take beyond the time it was given: it keeps that time itself, and says why it ended. */
const OVERTIME_MS = 30_000;
/** A probe is a tiny program; an emulated, overloaded guest needs seconds. */
const PROBE_TIMEOUT_MS = 60_000;
/** Two GiB are read twice. */
const RECOVER_TIMEOUT_MS = 300_000;
const MAX_TIMER_MS = 2 ** 31 - 1;
/** Of a link process's stderr the end is kept; one that says more than this is not ours any more. */
const MAX_STDERR_BYTES = 1024 * 1024;

/** Beside the jail: for tests, which are less patient or play the link process themselves. */
export interface LinkOptions extends LinkJailOptions {
  readonly program?: string;
  readonly heartbeatIntervalMs?: number;
  readonly overtimeMs?: number;
}

interface Waiting {
  readonly answer: LinkReply['type'];
  readonly resolve: (reply: LinkReply) => void;
  readonly reject: (error: CtError) => void;
}

/** Begin and end of every step, the states, that the audit record is lost, and that the guest is done. */
const MAX_PROGRESS = 2 * MAX_STEPS + LINK_STATES.length + 2;
const PROGRESS: ReadonlySet<string> = new Set<LinkProgress['type']>([
  'audit-lost',
  'guest-done',
  'state',
  'step',
]);

/** What each command is answered with, unless it fails. */
const ANSWERS = {
  'await-ready': 'ready',
  open: 'opened',
  probe: 'probed',
  'warm-up': 'probed',
  'recover-audit': 'audit-recovered',
  job: 'job-done',
} as const satisfies Record<LinkCall['type'], LinkReply['type']>;

export class Link {
  readonly pid: number;
  /** Settles when the process has ended and its jail is gone; never rejects. */
  readonly exited: Promise<void>;
  readonly #jail: LinkJail;
  readonly #child: ChildProcess;
  readonly #channel: GuardedChannel | undefined;
  readonly #options: LinkOptions;
  readonly #stderr = new BoundedTail(8192);
  #stderrBytes = 0;
  #waiting: Waiting | undefined;
  #onProgress: (progress: LinkProgress) => void = () => {};
  #progressLeft = MAX_PROGRESS;
  #heartbeat: NodeJS.Timeout | undefined;
  #missedHeartbeats = 0;
  /** Why we killed it. */
  #verdict: CtError | undefined;
  #hasExited = false;
  readonly #handedOver = new Set<Disposable>();
  #onQuestion: ((question: EgressQuestion | EgressOrigin) => void) | undefined;
  #onDetect: ((report: DetectReport) => Promise<void>) | undefined;
  #isJudging = false;

  constructor(options: LinkOptions = {}) {
    this.#options = options;
    const program = options.program ?? entryPoint('host/link-process');
    this.#jail = new LinkJail(program, options);
    this.#child = spawn(
      launcherPath,
      [
        ...['exec', '--die-with-parent', '--harden', ...this.#jail.options, '--keep', '3', '--'],
        process.execPath,
        ...[`--max-old-space-size=${LINK_HEAP_MIB}`, '--disable-warning=ExperimentalWarning'],
        program,
      ],
      // No compile cache: Node keeps one per user id, and the jail takes no writes. It would save nothing measurable.
      { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], env: {}, detached: true },
    );
    this.pid = this.#child.pid ?? -1;
    (this.#child.stderr as Readable | null)?.on('data', (chunk: Buffer) => this.#complain(chunk));
    if (this.#child.pid !== undefined) {
      this.#channel = new GuardedChannel(this.#child, {
        onMessage: (message) => this.#receive(message),
        onViolation: (what) => this.#condemn(new CtError('LINK_DIED', `the link process of the VM: ${what}`)),
      });
    }
    this.exited = new Promise((resolve) => {
      const ended = (how: string): void => {
        const { cgroup } = this.#jail;
        const detail = cgroup?.hitMemoryLimit() ? `it reached its limit of ${cgroup.memoryMib} MiB` : how;
        clearInterval(this.#heartbeat);
        this.#hasExited = true;
        for (const handle of this.#handedOver) handle[Symbol.dispose]();
        this.#verdict ??= this.#died(detail);
        this.#settle((waiting) => waiting.reject(this.#died()));
        this.#jail
          .remove()
          .catch((error) => process.stderr.write(`ct host: ${messageOf(error)}\n`))
          .finally(resolve);
      };
      this.#child.once('error', (error) => ended(error.message));
      this.#child.once('close', (code, signal) => ended(signal ?? `exit code ${code}`));
    });
  }

  get running(): boolean {
    return !this.#hasExited;
  }

  /**
   * Sends a command and waits for its answer; one at a time. Throws the error the process reports; LINK_DIED; LINK_STUCK
   * if it does not answer heartbeats, or does not end the command in the time it was given. It is dead after the latter two.
   */
  async call(command: LinkCall, socket?: Socket): Promise<LinkReply> {
    if (this.#hasExited || this.#verdict) {
      socket?.destroy();
      throw this.#died();
    }
    const { promise, resolve, reject } = Promise.withResolvers<LinkReply>();
    this.#waiting = { answer: ANSWERS[command.type], resolve, reject };
    const patienceMs = Math.min(timeoutOf(command) + (this.#options.overtimeMs ?? OVERTIME_MS), MAX_TIMER_MS);
    const deadline = setTimeout(() => {
      const message = `the link process of the VM did not end \`${command.type}\` within ${patienceMs / 1000} s`;
      this.#condemn(new CtError('LINK_STUCK', message));
    }, patienceMs);
    this.#watch();
    this.#send(command, socket);
    try {
      const reply = await promise;
      if (reply.type === 'failed')
        throw new CtError(reply.error.code, reply.error.message, { hint: reply.error.hint });
      return reply;
    } finally {
      clearTimeout(deadline);
    }
  }

  /** Moves what the process writes to `directory`, which is empty, and returns what a command has to call it. */
  giveLogs(directory: string): string {
    return this.#jail.giveLogs(directory);
  }

  /** The same for its audit record. */
  giveAudit(directory: string): string {
    return this.#jail.giveAudit(directory);
  }

  /** What {@link giveAudit} will move, for what is to lie there before. */
  get auditPlace(): AuditPlace {
    return this.#jail.auditPlace;
  }

  /** Who is told how the job goes; nobody at first. */
  set onProgress(handler: (progress: LinkProgress) => void) {
    this.#onProgress = handler;
  }

  /** Who answers questions about the network; whoever asks one without that is ended. The handler throws LINK_DIED. */
  set onQuestion(handler: ((question: EgressQuestion | EgressOrigin) => void) | undefined) {
    this.#onQuestion = handler;
  }

  /** Who judges what the process has chosen of the guest's events; then it is told that it may send more. */
  set onDetect(handler: ((report: DetectReport) => Promise<void>) | undefined) {
    this.#onDetect = handler;
  }

  /** Answers a question; to be disposed of when the connection, if it gave one, is over. */
  answer(id: number, answer: EgressAnswer, socket?: Socket): Disposable {
    if (!this.#hasExited) return this.#send({ type: 'egress-answer', id, answer }, socket);
    socket?.destroy();
    return { [Symbol.dispose]: () => {} };
  }

  /** Sends a command that has no answer. */
  tell(command: LinkCommand, socket?: Socket): void {
    if (!this.#hasExited) this.#send(command, socket);
    else socket?.destroy();
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.exited;
  }

  /** Disposal forgets the socket, and closes what the process has never taken of it. */
  #send(command: LinkCommand, socket?: Socket): Disposable {
    const onError = (error: Error | null): void => {
      // It has ended, which is about to be reported with the reason; or it has closed its end, and is of no use.
      if (error) this.#child.kill('SIGKILL');
    };
    this.#channel?.grant();
    if (!socket) {
      this.#child.send(command, onError);
      return { [Symbol.dispose]: () => {} };
    }
    const handle = handOver(socket);
    this.#handedOver.add(handle);
    this.#child.send(command, socket, { keepOpen: false }, onError);
    return {
      [Symbol.dispose]: () => {
        if (this.#handedOver.delete(handle)) handle[Symbol.dispose]();
      },
    };
  }

  /**
   * From the first command on, guest bytes may keep the process from ever returning to its event loop (an HPACK bomb
   * does). Missed beats are counted rather than timed, so that a daemon that was itself held up blames nobody.
   */
  #watch(): void {
    if (this.#heartbeat) return;
    const intervalMs = this.#options.heartbeatIntervalMs ?? HEARTBEAT_INTERVAL_MS;
    this.#heartbeat = setInterval(() => {
      if (this.#hasExited || this.#verdict) return;
      if (this.#missedHeartbeats >= MAX_MISSED_HEARTBEATS) {
        const silenceMs = this.#missedHeartbeats * intervalMs;
        const message = `the link process of the VM did not answer for ${silenceMs / 1000} s; its guest keeps it busy, or this host is overloaded`;
        this.#condemn(new CtError('LINK_STUCK', message));
        return;
      }
      this.#missedHeartbeats++;
      this.#send({ type: 'heartbeat' });
      void this.#checkLogs();
    }, intervalMs).unref();
  }

  async #checkLogs(): Promise<void> {
    if (!(await this.#jail.isOverfull())) return;
    const message =
      'the link process of the VM wrote more than a log or a record where these belong; all of it was removed';
    this.#condemn(new CtError('LINK_DIED', message));
  }

  #receive(message: unknown): void {
    let reply: LinkReply;
    try {
      reply = parseLinkReply(message);
    } catch (error) {
      this.#condemn(error as CtError);
      return;
    }
    if (reply.type === 'alive') {
      this.#missedHeartbeats = 0;
      return;
    }
    if (isProgress(reply)) {
      this.#progress(reply);
      return;
    }
    if (reply.type === 'egress' || reply.type === 'egress-by') {
      this.#question(reply);
      return;
    }
    if (reply.type === 'detect') {
      void this.#detect(reply);
      return;
    }
    if (reply.type !== 'failed' && reply.type !== this.#waiting?.answer) {
      const message = `the link process of the VM said \`${reply.type}\`, which nobody asked`;
      this.#condemn(new CtError('LINK_DIED', message));
      return;
    }
    this.#settle((waiting) => waiting.resolve(reply));
  }

  /** Only while a job is under way: a step starts and ends once, and each is written to a disk. */
  #progress(progress: LinkProgress): void {
    if (this.#waiting?.answer === 'job-done' && this.#progressLeft > 0) {
      this.#progressLeft--;
      this.#onProgress(progress);
      return;
    }
    const message = 'the link process of the VM tells more of its job than there is to tell';
    this.#condemn(new CtError('LINK_DIED', message));
  }

  async #detect(report: DetectReport): Promise<void> {
    if (!this.#onDetect || this.#isJudging || this.#waiting?.answer !== 'job-done') {
      const message = 'the link process of the VM tells of events that nobody asked for';
      this.#condemn(new CtError('LINK_DIED', message));
      return;
    }
    this.#isJudging = true;
    try {
      await this.#onDetect(report);
      this.#isJudging = false;
      this.tell({ type: 'detect-answer' });
    } catch (error) {
      this.#condemn(toCtError(error));
    }
  }

  #question(question: EgressQuestion | EgressOrigin): void {
    try {
      if (!this.#onQuestion) {
        throw new CtError('LINK_DIED', 'the link process of the VM asks for a network without a job');
      }
      this.#onQuestion(question);
    } catch (error) {
      this.#condemn(toCtError(error));
    }
  }

  /** It is not ours any more. */
  #condemn(verdict: CtError): void {
    this.#verdict ??= verdict;
    this.#child.kill('SIGKILL');
    this.#settle((waiting) => waiting.reject(this.#died()));
  }

  #complain(chunk: Buffer): void {
    this.#stderr.push(chunk);
    this.#stderrBytes += chunk.length;
    if (this.#stderrBytes > MAX_STDERR_BYTES && !this.#verdict) {
      this.#condemn(new CtError('LINK_DIED', 'the link process of the VM floods its stderr'));
    }
  }

  #settle(how: (waiting: Waiting) => void): void {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting) how(waiting);
  }

  #died(how?: string): CtError {
    if (this.#verdict) return this.#verdict;
    const parts = [how === undefined ? '' : ` (${how})`, this.#stderr.text().trim()];
    const detail = parts[1] === '' ? parts[0] : `${parts[0]}: ${parts[1]}`;
    return new CtError('LINK_DIED', `the link process of the VM ended${detail}`);
  }
}

function isProgress(reply: LinkReply): reply is LinkProgress {
  return PROGRESS.has(reply.type);
}

/**
 * To be called before a socket is sent: until the other process has acknowledged it, Node would read on here, and drop
 * what it reads. Disposal closes what that process has never taken, which Node would keep open.
 */
function handOver(socket: Socket): Disposable {
  const holder = socket as unknown as { readonly _handle: { readStop?(): void; close(): void } | null };
  const { _handle: handle } = holder;
  handle?.readStop?.();
  return {
    [Symbol.dispose]: () => {
      if (holder._handle) socket.destroy();
      else handle?.close();
    },
  };
}

/** The time that the process is given for a command; it keeps it itself. */
function timeoutOf(command: LinkCall): number {
  switch (command.type) {
    case 'await-ready':
      return command.timeoutMs;
    case 'open':
      return 2 * command.timeoutMs; // the hello, then the identity
    case 'probe':
    case 'warm-up':
      return PROBE_TIMEOUT_MS;
    case 'recover-audit':
      return RECOVER_TIMEOUT_MS;
    case 'job':
      return command.request.timeoutMs;
  }
}
