/**
 * Keeps the record of one run while it runs: reads the guest's channel, checks frames, writes them, and notices when the
 * guest falls silent. It runs in the link process, and holds the guest back when the disk is slower than the job.
 */
import type { Readable } from 'node:stream';
import { type CtError, toCtError } from '../core/errors.ts';
import { AuditFrame } from '../protocol/audit.ts';
import { FrameParser, type ParsedFrame } from './frame-parser.ts';
import { type AuditLimits, AuditWriter } from './segment-writer.ts';
import type { AuditSummary } from './summary.ts';
import { AuditViolation } from './violation.ts';

/** Without a frame or heartbeat for so long, a guest is taken for one that is hiding something. */
export const SILENCE_MS = 2000;
const SILENCE_CHECK_MS = 250;
/** Between two looks at how far the disk is; what is read from a socket at once is no more. */
const SLICE_BYTES = 65_536;

/** Numbers of the records that come next. */
export interface AuditPosition {
  /** By CPU. */
  readonly cpus: readonly number[];
  readonly processes: number;
}

export interface AuditRecorderOptions {
  /** After the hello. It belongs to the recorder from now on. */
  readonly channel: Readable;
  /** What was read of it already. */
  readonly pending?: Buffer;
  /** Empty, and of nobody else. */
  readonly directory: string;
  readonly run: string;
  /** Of the VM. */
  readonly cpus: number;
  readonly limits?: AuditLimits;
  readonly silenceMs?: number;
  /** Milliseconds since 1970. */
  readonly now?: () => number;
  /**
   * Whether the guest is to be read on when the record is lost: its run goes on, and a guest that is not read stops its job.
   */
  readonly readsOn?: boolean;
  /** Sees every frame once it is on its way to the disk. The frame holds during the call only. */
  readonly onFrame?: (frame: ParsedFrame) => void;
}

export class AuditRecorder {
  readonly #channel: Readable;
  readonly #writer: AuditWriter;
  readonly #parser: FrameParser;
  readonly #now: () => number;
  readonly #silenceMs: number;
  readonly #readsOn: boolean;
  readonly #lost = Promise.withResolvers<CtError>();
  #failure: CtError | undefined;
  readonly #reading: Promise<void>;
  readonly #timer: NodeJS.Timeout;
  /**
   * Checks since the last frame: a host that stood still, or a process that had no time, counts once, whatever the clock says.
   */
  #silentChecks = 0;
  readonly #started = Promise.withResolvers<void>();
  /** The guest cannot be heard because it is us who do not listen. */
  #isBusy = false;
  #isFinishing = false;
  #beats: { left: number; readonly done: () => void } | undefined;
  #waiting: { readonly position: AuditPosition; readonly done: () => void } | undefined;

  constructor(options: AuditRecorderOptions) {
    this.#channel = options.channel;
    this.#now = options.now ?? Date.now;
    this.#silenceMs = options.silenceMs ?? SILENCE_MS;
    this.#readsOn = options.readsOn ?? false;
    this.#writer = new AuditWriter(options.directory, options.run, options.limits);
    this.#parser = new FrameParser(options.cpus, (frame) => {
      this.#writer.append(frame, this.#now());
      this.#silentChecks = 0;
      this.#started.resolve();
      if (frame.type === AuditFrame.heartbeat) this.#beat();
      options.onFrame?.(frame);
    });
    this.#timer = setInterval(() => this.#checkSilence(), SILENCE_CHECK_MS);
    void this.#writer.failed.then((error) => this.#fail(toCtError(error)));
    this.#reading = this.#read(options.pending);
  }

  /**
   * Resolves as soon as the record cannot be complete any more: an {@link AuditViolation}, or `STORE_FULL` and the like.
   * The run has to be ended then. Frames that are good are written until {@link finish}.
   */
  get lost(): Promise<CtError> {
    return this.#lost.promise;
  }

  /** Resolves when the first frame has come: the guest records. */
  get started(): Promise<void> {
    return this.#started.promise;
  }

  /**
   * Waits until the record has reached `position`: what the guest's kernel had numbered when the job had ended. Returns
   * whether it has: not if that takes longer than `timeoutMs`, or the record is lost before. One at a time.
   */
  async reaches(position: AuditPosition, timeoutMs: number): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    this.#waiting = { position, done: () => resolve(true) };
    const timer = setTimeout(() => resolve(false), timeoutMs);
    void this.#lost.promise.then(() => resolve(false));
    this.#checkPosition();
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#waiting = undefined;
    }
  }

  /**
   * Waits for as many heartbeats. A guest sends everything that waits between two of them, so what was recorded before this
   * call is there after two. Returns whether they came in time.
   */
  async heartbeats(count: number, timeoutMs: number): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    this.#beats = { left: count, done: () => resolve(true) };
    const timer = setTimeout(() => resolve(false), timeoutMs);
    void this.#lost.promise.then(() => resolve(false));
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#beats = undefined;
    }
  }

  #beat(): void {
    if (!this.#beats) return;
    this.#beats.left -= 1;
    if (this.#beats.left === 0) this.#beats.done();
  }

  /** Reads no more: from now on the guest may end, and is not missed. Idempotent. */
  stop(): void {
    this.#isFinishing = true;
    clearInterval(this.#timer);
    this.#channel.destroy();
  }

  /**
   * Ends the record and the channel. Legal once, when the run needs no record any more. Throws what kept it from being
   * written: then there is nothing to seal.
   */
  async finish(): Promise<AuditSummary> {
    this.stop();
    await this.#reading;
    const written = await this.#writer.finish();
    const failure = this.#failure;
    const violation = failure instanceof AuditViolation ? failure : undefined;
    return {
      ...written,
      counts: this.#parser.counts,
      ...(violation ? { violation: { reason: violation.reason, message: violation.message } } : {}),
    };
  }

  async #read(pending: Buffer = Buffer.alloc(0)): Promise<void> {
    try {
      await this.#takeOrFail(pending);
      for await (const chunk of this.#channel) await this.#takeOrFail(chunk as Buffer);
      if (!this.#failure) this.#parser.end();
      this.#fail(new AuditViolation('closed', 'the guest closed the channel while its job was running'));
    } catch (error) {
      if (error instanceof AuditViolation || this.#isOwn(error)) this.#fail(toCtError(error));
      else
        this.#fail(new AuditViolation('closed', 'the channel of the guest broke while its job was running'));
    }
  }

  /** A guest that is read on may say what it likes. */
  async #takeOrFail(chunk: Buffer): Promise<void> {
    try {
      await this.#take(chunk);
    } catch (error) {
      if (!this.#readsOn) throw error;
      this.#fail(toCtError(error));
    }
  }

  async #take(chunk: Buffer): Promise<void> {
    for (let at = 0; at < chunk.length && this.#failure === undefined; at += SLICE_BYTES) {
      this.#parser.push(chunk.subarray(at, at + SLICE_BYTES));
      this.#checkPosition();
      if (!this.#writer.isFull) continue;
      this.#isBusy = true;
      await this.#writer.ready();
      this.#isBusy = false;
      this.#silentChecks = 0;
    }
  }

  /** Errors of the writer have codes, those of the channel have not. */
  #isOwn(error: unknown): boolean {
    return error instanceof Error && error.name === 'CtError';
  }

  #checkPosition(): void {
    if (!this.#waiting) return;
    const { position, done } = this.#waiting;
    const { cpus, processRecords } = this.#parser.counts;
    const isThere = position.cpus.every((next, cpu) => (cpus[cpu]?.records ?? 0) >= next);
    if (isThere && processRecords >= position.processes) done();
  }

  #isSilent(): boolean {
    const silentMs = this.#silentChecks * SILENCE_CHECK_MS;
    return !this.#isBusy && !this.#isFinishing && silentMs > this.#silenceMs;
  }

  #checkSilence(): void {
    this.#silentChecks += 1;
    if (!this.#isSilent()) return;
    // If it was this process that had no time, something is waiting to be read, and is read before this is asked again.
    setImmediate(() => {
      if (!this.#isSilent()) return;
      this.#fail(new AuditViolation('silent', `the guest has sent nothing for ${this.#silenceMs} ms`));
    });
  }

  #fail(error: CtError): void {
    if (this.#isFinishing || this.#failure) return;
    this.#failure = error;
    clearInterval(this.#timer);
    this.#lost.resolve(error);
    if (!this.#readsOn) this.#channel.destroy();
  }
}
