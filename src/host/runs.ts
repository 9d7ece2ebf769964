/** The runs of this host: those that are under way, with a deadline for every state, and the record of those that were. */
import { randomBytes } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { lstat, opendir, readdir, rm } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import { resultOf } from '../job/outcome.ts';
import type { ImageStanding, JobRequest, JobResult } from '../protocol/run.ts';
import type { Destruction, RetentionResult, RunAuditInfo, RunDetail, RunInfo, RunStep } from './api.ts';
import { AuditRecords, type AuditRecordsOptions } from './audit-records.ts';
import { DecisionLogs } from './decision-log.ts';
import { sealedInfo } from './run-audit.ts';
import {
  deadlineMs,
  interruptedError,
  mayFollow,
  overdueError,
  type RunState,
  type UnendedState,
} from './run-state.ts';
import { RunStore } from './run-store.ts';

export const DEFAULT_KEEP_RUNS = 200;
export const DEFAULT_MAX_AGE_DAYS = 14;
/** What some of a job's last runs did is what it does. */
const BASELINE_RUNS = 10;
const DAY_MS = 24 * 60 * 60 * 1000;
/** An end that could not be recorded is tried again after this long. */
const RETRY_MS = 2000;
/** What names the newest run of all. */
const LATEST = 'latest';

export interface RunsOptions extends AuditRecordsOptions {
  readonly onSetAside?: (why: string) => void;
  /** Something of a run could not be recorded, e.g. because the disk is full. The run goes on. */
  readonly onWriteError?: (error: unknown) => void;
  /** Only tests have other deadlines. */
  readonly deadlineMs?: typeof deadlineMs;
}

export class Runs {
  readonly #store: RunStore;
  readonly #directory: string;
  readonly #deadlineMs: typeof deadlineMs;
  readonly #onWriteError: (error: unknown) => void;
  readonly #live = new Map<string, LiveRun>();
  /** Of policy, about each run; removed with it. */
  readonly decisions: DecisionLogs;
  /** Of the system calls of each run; removed with it. */
  readonly audit: AuditRecords;
  /** Runs whose audit record the end of an earlier daemon has cut off. */
  #interrupted: readonly string[];

  /** Opens the record. Whatever had not ended there was interrupted by the end of the daemon that ran it. */
  constructor(options: RunsOptions) {
    this.#directory = join(options.ctHome, 'runs');
    this.#deadlineMs = options.deadlineMs ?? deadlineMs;
    this.#onWriteError = options.onWriteError ?? (() => {});
    mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
    this.decisions = new DecisionLogs(options.ctHome);
    this.audit = new AuditRecords(options);
    this.#store = RunStore.open(join(options.ctHome, 'host.db'), options.onSetAside);
    for (const { run, state } of this.#store.list('unended')) {
      this.#store.end(run, { nowMs: Date.now(), ...resultOf(interruptedError(state as UnendedState)) });
    }
    this.#interrupted = this.#store.recording();
  }

  /** Seals the audit records that the end of an earlier daemon has cut off, as far as they go. Never rejects. */
  async sealInterrupted(): Promise<void> {
    const interrupted = this.#interrupted;
    this.#interrupted = [];
    for (const run of interrupted) {
      try {
        await this.#sealInterrupted(run);
      } catch (error) {
        this.#onWriteError(error);
      }
    }
  }

  async #sealInterrupted(run: string): Promise<void> {
    const detail = this.#store.detail(run);
    if (!detail?.audit || !detail.vm) return;
    const { audit, shape, image, imageStanding, vm, outcome, error } = detail;
    const { mode, policy } = audit;
    try {
      const report = await this.audit.recover(run, shape.cpus);
      if (report.kind === 'lost') {
        this.#store.setAudit(run, { mode, policy, state: 'unsealed', ...report.loss });
        return;
      }
      const facts = {
        run,
        policy,
        image: image.digest,
        ...(imageStanding ? { imageMade: imageStanding.made, imageSigners: imageStanding.signers } : {}),
        vmm: vm.vmm,
        accelerator: vm.accelerator,
        outcome: outcome ?? 'infrastructure',
        ...(error ? { error: error.code } : {}),
        sealedAt: new Date().toISOString(),
      };
      await this.audit.seal(facts, report.summary);
      await this.audit.released(run);
      this.#store.setAudit(run, { mode, policy, ...sealedInfo(report.summary) });
    } catch (cause) {
      this.#store.setAudit(run, {
        mode,
        policy,
        state: 'unsealed',
        reason: 'store',
        message: messageOf(cause),
      });
    }
  }

  close(): void {
    this.#store.close();
  }

  /** Records a run as queued; its log directory exists. Throws if that cannot be made. */
  begin(request: JobRequest): LiveRun {
    const createdAtMs = Date.now();
    const run = this.#newId();
    const logDirectory = this.#logDirectory(run);
    mkdirSync(logDirectory, { mode: 0o700 });
    try {
      this.#store.create({
        run,
        job: request.name,
        imageDigest: request.image,
        shape: { cpus: request.cpus, memoryMib: request.memoryMib, diskMib: request.diskMib },
        steps: request.steps.map(({ name }) => name),
        createdAtMs,
      });
    } catch (error) {
      this.#onWriteError(error);
    }
    const live = new LiveRun(this.#store, {
      run,
      logDirectory,
      createdAtMs,
      deadlineMs: (state) => this.#deadlineMs(state, request.timeoutMs),
      onEnd: () => this.#live.delete(run),
      onWriteError: this.#onWriteError,
    });
    this.#live.set(run, live);
    return live;
  }

  /** `host:port` that the last runs of a job connected to; null if there is nothing to go by. */
  baselineOf(job: string): readonly string[] | null {
    return this.#store.destinationsOf(job, BASELINE_RUNS) ?? null;
  }

  /** Newest first. */
  list(all: boolean): RunInfo[] {
    return this.#store.list(all ? 'all' : 'unended');
  }

  /** Throws what {@link resolve} throws. */
  detail(reference: string): RunDetail {
    const run = this.resolve(reference);
    const detail = this.#store.detail(run);
    if (!detail) throw notFound(reference);
    return { ...detail, logDirectory: this.#logDirectory(run) };
  }

  /** What policy decided about a run, as a JSON array (decision-log.ts). Throws what {@link resolve} throws. */
  decisionsJson(reference: string): Promise<string> {
    return this.decisions.json(this.resolve(reference));
  }

  /** Ends a run that has not ended; the answer does not wait for that. */
  cancel(reference: string): RunDetail {
    const run = this.resolve(reference);
    this.#live.get(run)?.abort(new CtError('CANCELLED', 'the run was cancelled by `ct cancel`'));
    return this.detail(run);
  }

  /**
   * What takes the connection of a client that wants a shell in the VM of a run. Throws RUN_NOT_FOUND, RUN_AMBIGUOUS or
   * SHELL_UNAVAILABLE.
   */
  shellOf(reference: string): ShellAcceptor {
    const run = this.resolve(reference);
    const live = this.#live.get(run);
    if (live) return live.shellAcceptor;
    throw new CtError('SHELL_UNAVAILABLE', `run ${run} has ended, and its VM with it`, {
      hint: `what it wrote: ct logs ${run}; \`ct run --shell-on-failure\` opens a shell before the VM is destroyed`,
    });
  }

  /** Removes the record and the log of a run. Throws RUN_NOT_ENDED. */
  async remove(reference: string): Promise<RunInfo> {
    const run = this.resolve(reference);
    const info = this.#store.info(run);
    if (!info) throw notFound(reference);
    if (!this.#store.remove(run)) {
      throw new CtError('RUN_NOT_ENDED', `run ${run} is ${info.state}`, {
        hint: `end it first: ct cancel ${run}`,
      });
    }
    await this.#removeLog(run);
    return info;
  }

  /** Removes ended runs beyond `keep` or older than `maxAgeDays`, and logs that belong to no run. */
  async retain({
    keep = DEFAULT_KEEP_RUNS,
    maxAgeDays = DEFAULT_MAX_AGE_DAYS,
  } = {}): Promise<RetentionResult> {
    const removed: string[] = [];
    let freedBytes = 0;
    for (const run of this.#store.expired(keep, Date.now() - maxAgeDays * DAY_MS)) {
      if (!this.#store.remove(run)) continue;
      removed.push(run);
      freedBytes += await this.#removeLog(run);
    }
    // A daemon that was killed between the two removals of a run leaves its log.
    for (const name of [
      ...(await readdir(this.#directory)),
      ...(await this.decisions.runs()),
      ...(await this.audit.runs()),
    ]) {
      if (this.#store.info(name) === undefined) freedBytes += await this.#removeLog(name);
    }
    return { removed, freedBytes };
  }

  /**
   * The id of a run by what users call it: `latest`, its id, the name of its job (the latest of them), or a beginning
   * or end that only one id has. Throws RUN_NOT_FOUND or RUN_AMBIGUOUS.
   */
  resolve(reference: string): string {
    if (reference === LATEST) {
      const latest = this.#store.latest();
      if (latest === undefined)
        throw new CtError('RUN_NOT_FOUND', 'no run is kept', { hint: 'start one: ct run' });
      return latest;
    }
    if (this.#store.info(reference)) return reference;
    const ofJob = this.#store.latest(reference);
    if (ofJob !== undefined) return ofJob;
    const [first, ...others] = reference === '' ? [] : this.#store.matching(reference);
    if (first === undefined) throw notFound(reference);
    if (others.length > 0) {
      throw new CtError(
        'RUN_AMBIGUOUS',
        `several runs match \`${reference}\`: ${[first, ...others].join(', ')}`,
        {
          hint: 'write more of the id; the end of an id differs more than its beginning',
        },
      );
    }
    return first;
  }

  #newId(): string {
    for (;;) {
      const id = newRunId(Date.now());
      if (this.#store.info(id) === undefined) return id;
    }
  }

  #logDirectory(run: string): string {
    return join(this.#directory, run);
  }

  /**
   * Returns the bytes it took. What lies there was written by a process that has read guest bytes, and may be more than
   * a log: the daemon goes on with its work meanwhile, and no link is followed.
   */
  async #removeLog(run: string): Promise<number> {
    const directory = this.#logDirectory(run);
    let bytes = 0;
    try {
      for await (const { name } of await opendir(directory))
        bytes += (await lstat(join(directory, name))).size;
    } catch {
      // It is no directory, or gone: there is nothing to count.
    }
    await rm(directory, { recursive: true, force: true });
    return bytes + (await this.decisions.remove(run)) + (await this.audit.remove(run));
  }
}

/** Takes over a connection; `pending` is what was read of it, `uid` who made it. */
export type ShellAcceptor = (socket: Socket, pending: Buffer, uid: number) => void;
type ShellTaker = (socket: Socket, pending: Buffer, uid: number) => void;

interface LiveRunOptions {
  readonly run: string;
  readonly logDirectory: string;
  readonly createdAtMs: number;
  readonly deadlineMs: (state: UnendedState) => number;
  readonly onEnd: () => void;
  readonly onWriteError: (error: unknown) => void;
}

/**
 * A run that has not ended. Every change of state is in the record before anybody acts on it, unless the record cannot be
 * written: that is no reason to stop a run, and its end is tried again until it is recorded.
 */
export class LiveRun {
  readonly id: string;
  readonly logDirectory: string;
  readonly #store: RunStore;
  readonly #options: LiveRunOptions;
  readonly #controller = new AbortController();
  readonly #unrecorded: (() => void)[] = [];
  #state: RunState = 'queued';
  #timer: NodeJS.Timeout | undefined;
  #shells: ShellTaker | undefined;

  constructor(store: RunStore, options: LiveRunOptions) {
    this.id = options.run;
    this.logDirectory = options.logDirectory;
    this.#store = store;
    this.#options = options;
    this.#setDeadline('queued');
  }

  get state(): RunState {
    return this.#state;
  }

  /** Aborted with a CtError when somebody cancels the run or it overstays in a state: whoever works on it ends it. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  abort(reason: CtError): void {
    this.#controller.abort(reason);
  }

  /** Who takes shells, as long as the job runs in its VM. */
  set shells(taker: ShellTaker | undefined) {
    this.#shells = taker;
  }

  /** Puts every shell on record before it is there. Throws SHELL_UNAVAILABLE; the acceptor does so, too. */
  get shellAcceptor(): ShellAcceptor {
    const current = (): ShellTaker => {
      if (this.#shells) return this.#shells;
      const isOver = this.#state === 'destroying' || this.#state === 'ended';
      throw new CtError(
        'SHELL_UNAVAILABLE',
        isOver ? `the VM of run ${this.id} is being destroyed` : `run ${this.id} has no VM yet`,
        { hint: isOver ? `what it wrote: ct logs ${this.id}` : 'wait until `ct ps` shows it as running' },
      );
    };
    current();
    return (socket, pending, uid) => {
      const accept = current();
      try {
        this.#store.addShell(this.id, { openedAtMs: Date.now(), uid });
      } catch (error) {
        // Unlike a run, a shell that is not on record is not to be.
        throw new CtError('SHELL_UNAVAILABLE', `the shell could not be put on record: ${messageOf(error)}`, {
          hint: 'the file system of CT_HOME may be full; try again',
          cause: error,
        });
      }
      accept(socket, pending, uid);
    };
  }

  /** States only go forwards; another one is ignored, as a link process may say what it likes. */
  enter(state: UnendedState): void {
    if (!mayFollow(this.#state, state)) return;
    this.#state = state;
    this.#record(() => this.#store.setState(this.id, state, Date.now()));
    this.#setDeadline(state);
  }

  claimed(vm: NonNullable<RunDetail['vm']>, imageName: string): void {
    this.#record(() => this.#store.setVm(this.id, vm, imageName));
  }

  /** For the baseline of later runs of its job. */
  destinations(destinations: readonly string[]): void {
    this.#record(() => this.#store.setDestinations(this.id, destinations));
  }

  /** What policy went by when it decided about the image. */
  image(standing: ImageStanding): void {
    this.#record(() => this.#store.setImage(this.id, standing));
  }

  audit(info: RunAuditInfo): void {
    this.#record(() => this.#store.setAudit(this.id, info));
  }

  /** A position that the job does not have changes nothing. */
  step(position: number, step: Omit<RunStep, 'name'>): void {
    if (this.#state === 'ended') return;
    this.#record(() => this.#store.setStep(this.id, position, step));
  }

  /** The first end counts. Call it before the client hears of it: the daemon may be killed between the two. */
  end(result: JobResult, destruction?: Destruction): void {
    if (this.#state === 'ended') return;
    clearTimeout(this.#timer);
    this.#state = 'ended';
    const nowMs = Date.now();
    const end = {
      nowMs,
      durationMs: nowMs - this.#options.createdAtMs,
      ...result,
      ...(destruction ? { destruction } : {}),
    };
    this.#untilRecorded(() => this.#store.end(this.id, end));
    this.#options.onEnd();
  }

  /** What else is known to be gone of a run that has ended. */
  destroyed(destruction: Destruction): void {
    this.#untilRecorded(() => this.#store.setDestruction(this.id, destruction));
  }

  #record(write: () => void): boolean {
    try {
      write();
      return true;
    } catch (error) {
      this.#options.onWriteError(error);
      return false;
    }
  }

  /** One write after the other, in the order of the calls. */
  #untilRecorded(write: () => void): void {
    this.#unrecorded.push(write);
    if (this.#unrecorded.length === 1) this.#writeUnrecorded();
  }

  #writeUnrecorded(): void {
    for (let next = this.#unrecorded[0]; next; next = this.#unrecorded[0]) {
      if (!this.#record(next)) {
        setTimeout(() => this.#writeUnrecorded(), RETRY_MS).unref();
        return;
      }
      this.#unrecorded.shift();
    }
  }

  #setDeadline(state: UnendedState): void {
    clearTimeout(this.#timer);
    const limitMs = this.#options.deadlineMs(state);
    this.#timer = setTimeout(() => {
      const error = overdueError(state, limitMs);
      this.#controller.abort(error);
      // Nothing comes after the destruction that could end it; all else ends because of the signal.
      if (state === 'destroying') this.end(resultOf(error));
    }, limitMs);
    this.#timer.unref();
  }
}

/** 50 bits of time and chance as 10 lower-case characters without look-alikes; sorts by time, to the second. */
function newRunId(nowMs: number): string {
  const alphabet = '0123456789abcdefghjkmnpqrstvwxyz';
  let value = (BigInt(Math.floor(nowMs / 1000)) << 20n) | BigInt(randomBytes(3).readUIntBE(0, 3) & 0xfffff);
  let id = '';
  for (let i = 0; i < 10; i++) {
    id = alphabet[Number(value & 31n)] + id;
    value >>= 5n;
  }
  return id;
}

function notFound(reference: string): CtError {
  return new CtError('RUN_NOT_FOUND', `no run is called \`${reference.slice(0, 300)}\``, {
    hint: '`ct ps -a` lists the runs that are kept; a run has the name of its job, too',
  });
}
