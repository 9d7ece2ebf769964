/** One VM with its link process, from claim to teardown. */
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import type { Socket } from 'node:net';
import { CtError, errorReport } from '../core/errors.ts';
import type { Identity } from '../guest/session.ts';
import type { ImageManifest } from '../image/manifest.ts';
import { resultOf } from '../job/outcome.ts';
import type { CodeSettings } from '../protocol/code.ts';
import type { GuestNetworkSettings } from '../protocol/network.ts';
import type { JobRequest, JobResult, RunEvent } from '../protocol/run.ts';
import type { TreeExpectation } from '../protocol/verify.ts';
import type { Vm } from '../vmm/driver.ts';
import type { Removed } from './api.ts';
import type { AuditLoss, AuditReport } from './audit-messages.ts';
import type { EgressGate, EgressPeer } from './egress-gate.ts';
import type { Link } from './link.ts';
import type { LinkCall, LinkReply } from './link-messages.ts';
import type { RunAudit } from './run-audit.ts';
import type { RunDetections } from './run-detections.ts';
import type { LiveRun } from './runs.ts';

/** Emulated hosts under load restore in seconds rather than milliseconds; a lost guest takes no longer than this. */
const OPEN_TIMEOUT_MS = 30_000;
/** How long the link process may take to flush the end of a run to its client. */
const FAREWELL_TIMEOUT_MS = 10_000;

/** How long a job that is to end may take to stop its step and say so; then it is killed. */
const CANCEL_GRACE_MS = 5000;

const VM_EXIT_GRACE_MS = 500;
/** How the end of a VM looks from its link process. Any other error is its own, and the VM ended because of it. */
const SIGNS_OF_DEATH: ReadonlySet<string> = new Set(['VMM_DIED', 'GUEST_PROTOCOL', 'GUEST_UNRESPONSIVE']);
/** TLS and tokens tolerate a few seconds. */
const MAX_CLOCK_DRIFT_MS = 2000;

export class Machine {
  readonly #vm: Vm;
  readonly #link: Link;
  readonly #image: ImageManifest;
  readonly #openedAtOffsetMs = clockOffsetMs();
  #vmExit: string | undefined;
  #destroyed: Promise<number> | undefined;

  private constructor(vm: Vm, link: Link, image: ImageManifest) {
    this.#vm = vm;
    this.#link = link;
    this.#image = image;
    void vm.exited.then(({ code, signal, reason }) => {
      this.#vmExit = reason ?? (signal === null ? `exit code ${code}` : signal);
    });
  }

  /**
   * Adopts a VM that boots or restores, gives it a link process and an identity. `startVm` is called here so that the
   * channel changes hands before any byte is read. The VM is destroyed if this throws.
   */
  static async open(options: {
    readonly link: Link;
    readonly startVm: () => Vm;
    readonly image: ImageManifest;
    readonly volumeCipher: string;
    /** Cold boots say when they are ready; clones are. */
    readonly bootTimeoutMs?: number;
  }): Promise<Machine> {
    let vm: Vm;
    try {
      vm = options.startVm();
    } catch (error) {
      await options.link.kill();
      throw error;
    }
    const machine = new Machine(vm, options.link, options.image);
    try {
      const identity: Identity = {
        hostname: `ct-${randomBytes(6).toString('hex')}`,
        volumeCipher: options.volumeCipher,
      };
      const timeoutMs = OPEN_TIMEOUT_MS + (options.bootTimeoutMs ?? 0);
      const opened = machine.#call({ type: 'open', identity, timeoutMs }, vm.control);
      options.link.tell({ type: 'egress-channel' }, vm.egress);
      options.link.tell({ type: 'audit-channel' }, vm.audit);
      await opened;
      return machine;
    } catch (error) {
      if (error instanceof CtError && error.code === 'VMM_EXITED_EARLY')
        await machine.#vmGone(VM_EXIT_GRACE_MS);
      const diagnosed = machine.#diagnose(error, 'VMM_RESTORE_FAILED');
      await machine.destroy();
      throw diagnosed;
    }
  }

  /** Settles when the VMM or the link process has ended. */
  get ended(): Promise<unknown> {
    return Promise.race([this.#vm.exited, this.#link.exited]);
  }

  /** Whether the guest's clock can still be right: it stands still while the host sleeps. */
  get clockIsRight(): boolean {
    return Math.abs(clockOffsetMs() - this.#openedAtOffsetMs) < MAX_CLOCK_DRIFT_MS;
  }

  get imageName(): string {
    return this.#image.name;
  }

  get vmPid(): number {
    return this.#vm.pid;
  }

  get linkPid(): number {
    return this.#link.pid;
  }

  /** Runs what every job runs, for nothing, so that the next one finds it warm. */
  async warmUp(): Promise<void> {
    await this.#call({ type: 'warm-up', user: this.#image.user });
  }

  /** Runs the probe program; settles when its first byte has arrived on the host. */
  async probe(): Promise<void> {
    await this.#call({ type: 'probe', user: this.#image.user });
  }

  /**
   * Runs a job for the client behind `socket`, which the link process takes over; then destroys the VM. `run` is told
   * how it goes and how it ends, and ends it early by its signal. `openGate` makes what answers the questions about the
   * network; when policy ends the run, the VM is killed in the same turn.
   */
  async runJob(options: {
    readonly run: LiveRun;
    readonly request: JobRequest;
    /** What the client was told, for the log. */
    readonly told: readonly RunEvent[];
    readonly claimed: RunEvent;
    readonly socket: Socket;
    readonly pending: Buffer;
    readonly openGate: (peer: EgressPeer) => EgressGate;
    readonly settings?: GuestNetworkSettings | undefined;
    /** Absent: all code may run. `hasNetwork`: steps that do not say otherwise have one. */
    readonly code?: { readonly settings: CodeSettings; readonly hasNetwork: boolean } | undefined;
    /** What the tree has to be. */
    readonly expected?: TreeExpectation | undefined;
    /** Absent: the run is not on record. */
    readonly audit?: RunAudit | undefined;
    /** Judges what is recorded. */
    readonly detections?: RunDetections | undefined;
  }): Promise<JobResult> {
    const { name, user, env } = this.#image;
    const { run, audit } = options;
    let result: JobResult;
    /** What the link process made of it. */
    let said: JobResult | undefined;
    let violation: CtError | undefined;
    let report: AuditReport | undefined;
    const terminate = (error: CtError): void => {
      violation ??= error;
      void this.#destroyVm().catch(() => {}); // awaited below
      run.abort(error);
    };
    const tell = (event: RunEvent): void => this.#link.tell({ type: 'event', event });
    const gate = options.openGate({
      answer: (id, answer, socket) => this.#link.answer(id, answer, socket),
      tell,
      terminate,
    });
    this.#link.onQuestion = (said) =>
      said.type === 'egress' ? gate.question(said) : gate.origin(said.id, said.by);
    const { detections } = options;
    this.#link.onDetect = detections && ((detected) => detections.judge(detected, { tell, terminate }));
    this.#link.onProgress = (progress) => {
      if (progress.type === 'state') run.enter(progress.state);
      else if (progress.type === 'audit-lost') void this.#recordLost(progress.loss, audit, terminate);
      else if (progress.type === 'guest-done')
        void this.#destroyVm().catch(() => {}); // awaited below
      else {
        gate.step = progress.state === 'running' ? progress.step : undefined;
        run.step(progress.step, progress);
      }
    };
    using _ending = this.#endWith(run.signal);
    run.shells = (socket, pending, uid) =>
      this.#link.tell({ type: 'shell', uid, pending: pending.toString('base64') }, socket);
    try {
      const reply = await this.#call(
        {
          type: 'job',
          run: run.id,
          request: options.request,
          image: { name, user, env },
          told: options.told,
          claimed: options.claimed,
          pending: options.pending.toString('base64'),
          logDirectory: this.#link.giveLogs(run.logDirectory),
          ...(options.settings === undefined ? {} : { settings: options.settings }),
          ...(options.code && { code: options.code }),
          ...(options.expected === undefined ? {} : { expected: options.expected }),
          ...(audit && {
            audit: {
              directory: this.#link.giveAudit(audit.directory),
              cpus: audit.cpus,
              required: audit.isRequired,
            },
          }),
        },
        options.socket,
      );
      if (reply.type !== 'job-done') throw new CtError('LINK_DIED', 'the link process gave the wrong answer');
      said = reply.result;
      report = reply.audit ?? { kind: 'lost', loss: UNSAID };
      result = said;
      // The guest's channel closes a moment before its process has ended and says why.
      const mayHaveDied = result.error !== undefined && SIGNS_OF_DEATH.has(result.error.code);
      if (mayHaveDied) await this.#vmGone(VM_EXIT_GRACE_MS);
      if (mayHaveDied && this.#vmExit !== undefined) {
        const diagnosed = this.#diagnose(
          new CtError('VMM_DIED', `the VMM ended while the job ran (${this.#vmExit})`),
          'VMM_DIED',
        );
        result = { ...result, error: { code: diagnosed.code, message: diagnosed.message } };
      }
    } catch (cause) {
      const failure = this.#diagnose(cause, 'VMM_DIED');
      // A job that was to end and did not was killed: then this is why, and not that its link process died.
      result = run.signal.aborted
        ? resultOf(run.signal.reason as CtError)
        : {
            outcome: 'infrastructure',
            exitCode: failure.exitStatus,
            error: { code: failure.code, message: failure.message },
          };
    }
    // Whatever the link process says of it: the VM was killed for this.
    if (violation) result = resultOf(violation);
    run.shells = undefined;
    gate.close();
    run.enter('destroying');
    const [durationMs, audited] = await Promise.all([this.#destroyVm(), audit?.end(report, result)]);
    if (audited?.loss) this.#link.tell({ type: 'event', event: warning(audited.loss) });
    result = audited?.result ?? result;
    // On record before anybody hears of it: whoever waits for the run may ask at once what became of it.
    const removed = this.#removed();
    run.end(result, { durationMs, removed });
    this.#link.tell(
      result === said ? { type: 'destroyed', durationMs } : { type: 'destroyed', durationMs, result },
    );
    const timer = setTimeout(() => void this.#link.kill(), FAREWELL_TIMEOUT_MS);
    await this.#link.exited;
    clearTimeout(timer);
    await audit?.released(result);
    run.destroyed({
      durationMs,
      removed: [...removed, { what: 'link', proof: `process ${this.#link.pid} was reaped` }],
    });
    return result;
  }

  /** The link process says that the record of the run cannot be whole any more. */
  async #recordLost(
    loss: AuditLoss,
    audit: RunAudit | undefined,
    terminate: (error: CtError) => void,
  ): Promise<void> {
    // A VM that we have ended says no more.
    if (!audit || this.#destroyed) return;
    // One that has ended by itself takes its record along, and that it has ended is what becomes of the run.
    if (loss.reason === 'closed') await this.#vmGone(VM_EXIT_GRACE_MS);
    if (this.#destroyed) return;
    const error = audit.lost(loss);
    if (this.#vmExit !== undefined) return;
    if (error) terminate(error);
    else this.#link.tell({ type: 'event', event: warning(loss) });
  }

  /** From now until disposal: ends the job when `signal` says so, first with a word to the link process, then without. */
  #endWith(signal: AbortSignal): Disposable {
    let timer: NodeJS.Timeout | undefined;
    const end = (): void => {
      this.#link.tell({ type: 'cancel', error: errorReport(signal.reason) });
      timer = setTimeout(() => void this.#link.kill(), CANCEL_GRACE_MS);
    };
    if (signal.aborted) end();
    else signal.addEventListener('abort', end, { once: true });
    return {
      [Symbol.dispose]: () => {
        signal.removeEventListener('abort', end);
        clearTimeout(timer);
      },
    };
  }

  /** Legal after the VM was destroyed: the kernel has said so. */
  #removed(): readonly Removed[] {
    return [
      { what: 'vmm', proof: `process ${this.#vm.pid} was reaped (${this.#vmExit ?? 'it had ended'})` },
      { what: 'volume', proof: 'its file has no name, and the last process that had it open has ended' },
      ...this.#vm.cgroupDirectories
        .filter((directory) => !existsSync(directory))
        .map((directory) => ({ what: 'cgroup' as const, proof: `there is no ${directory} any more` })),
    ];
  }

  /** Ordered teardown: VMM (its volume goes with it), then link process. Idempotent; returns its duration in ms. */
  async destroy(): Promise<number> {
    const durationMs = await this.#destroyVm();
    await this.#link.kill();
    return durationMs;
  }

  #destroyVm(): Promise<number> {
    this.#destroyed ??= (async () => {
      const startedAt = performance.now();
      await this.#vm.destroy();
      return performance.now() - startedAt;
    })();
    return this.#destroyed;
  }

  async #call(command: LinkCall, socket?: Socket): Promise<LinkReply> {
    return this.#link.call(command, socket);
  }

  async #vmGone(graceMs: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const grace = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, graceMs);
    });
    await Promise.race([this.#vm.exited, grace]);
    clearTimeout(timer);
  }

  /** Adds what the console said, and turns "the channel closed" into "the VMM died" where that is the reason. */
  #diagnose(error: unknown, whenVmGone: 'VMM_RESTORE_FAILED' | 'VMM_DIED'): CtError {
    const failure =
      error instanceof CtError ? error : new CtError('INTERNAL', String(error), { cause: error });
    const diagnostics = this.#vm.diagnostics();
    const detail = diagnostics === '' ? '' : `\n${diagnostics}`;
    const code = this.#vmExit === undefined ? failure.code : whenVmGone;
    const exit =
      this.#vmExit === undefined || failure.message.includes(this.#vmExit) ? '' : ` (VMM: ${this.#vmExit})`;
    return new CtError(code, `${failure.message}${exit}${detail}`, { hint: failure.hint, cause: error });
  }
}

const UNSAID: AuditLoss = {
  reason: 'unsent',
  message: 'the link process of the VM says nothing about the audit record',
};

function warning({ message }: AuditLoss): RunEvent {
  return { type: 'notice', level: 'warning', message: `the run is not wholly on record: ${message}` };
}

/** Wall clock against the clock that guests run by; changes when the host sleeps or its clock is set. */
function clockOffsetMs(): number {
  return Date.now() - performance.now();
}
