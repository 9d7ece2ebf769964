/**
 * Keeps the record of one run while it runs: reads the guest's channel, checks frames, writes them, and notices when the
 * guest falls silent. It runs in the link process, and holds the guest back when the disk is slower than the job.
 */
import type { Readable } from 'node:stream';
import { type CtError, toCtError } from '../core/errors.ts';
import { AuditFrame } from '../protocol/audit.ts';
import { FrameParser } from './frame-parser.ts';
import { type AuditLimits, AuditWriter } from './segment-writer.ts';
import type { AuditSummary } from './summary.ts';
import { AuditViolation } from './violation.ts';

/** Without a frame or heartbeat for so long, a guest is taken for one that is hiding something. */
export const SILENCE_MS = 2000;
const SILENCE_CHECK_MS = 250;
/** Between two looks at how far the disk is; what is read from a socket at once is no more. */
const SLICE_BYTES = 65_536;
/** A heartbeat says that everything before it was sent; the first one may have been on its way already. */
const HEARTBEATS_UNTIL_SETTLED = 2;

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
  /** Milliseconds that only grow. */
  readonly monotonic?: () => number;
}

export class AuditRecorder {
  readonly #channel: Readable;
  readonly #writer: AuditWriter;
  readonly #parser: FrameParser;
  readonly #now: () => number;
  readonly #monotonic: () => number;
  readonly #silenceMs: number;
  readonly #lost = Promise.withResolvers<CtError>();
  #failure: CtError | undefined;
  readonly #reading: Promise<void>;
  readonly #timer: NodeJS.Timeout;
  #heardAt: number;
  /** The guest cannot be heard because it is us who do not listen. */
  #isBusy = false;
  #isFinishing = false;
  #heartbeats = 0;
  readonly #waiting: { readonly from: number; readonly done: () => void }[] = [];

  constructor(options: AuditRecorderOptions) {
    this.#channel = options.channel;
    this.#now = options.now ?? Date.now;
    this.#monotonic = options.monotonic ?? performance.now.bind(performance);
    this.#silenceMs = options.silenceMs ?? SILENCE_MS;
    this.#writer = new AuditWriter(options.directory, options.run, options.limits);
    this.#parser = new FrameParser(options.cpus, (frame) => {
      this.#writer.append(frame, this.#now());
      this.#heardAt = this.#monotonic();
      if (frame.type === AuditFrame.heartbeat) this.#heartbeat();
    });
    this.#heardAt = this.#monotonic();
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

  /** Resolves when everything that happened in the guest before this call is on record, or never will be. */
  async settled(): Promise<void> {
    if (this.#failure) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.push({ from: this.#heartbeats, done: resolve });
    await Promise.race([promise, this.#lost.promise]);
  }

  /**
   * Ends the record and the channel. Legal once, when the run needs no record any more. Throws what kept it from being
   * written: then there is nothing to seal.
   */
  async finish(): Promise<AuditSummary> {
    this.#isFinishing = true;
    clearInterval(this.#timer);
    this.#channel.destroy();
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
      await this.#take(pending);
      for await (const chunk of this.#channel) await this.#take(chunk as Buffer);
      this.#parser.end();
      this.#fail(new AuditViolation('closed', 'the guest closed the channel while its job was running'));
    } catch (error) {
      if (error instanceof AuditViolation || this.#isOwn(error)) this.#fail(toCtError(error));
      else
        this.#fail(new AuditViolation('closed', 'the channel of the guest broke while its job was running'));
    }
  }

  async #take(chunk: Buffer): Promise<void> {
    for (let at = 0; at < chunk.length && this.#failure === undefined; at += SLICE_BYTES) {
      this.#parser.push(chunk.subarray(at, at + SLICE_BYTES));
      if (!this.#writer.isFull) continue;
      this.#isBusy = true;
      await this.#writer.ready();
      this.#isBusy = false;
      this.#heardAt = this.#monotonic();
    }
  }

  /** Errors of the writer have codes, those of the channel have not. */
  #isOwn(error: unknown): boolean {
    return error instanceof Error && error.name === 'CtError';
  }

  #heartbeat(): void {
    this.#heartbeats += 1;
    while (this.#waiting[0] && this.#heartbeats >= this.#waiting[0].from + HEARTBEATS_UNTIL_SETTLED) {
      this.#waiting.shift()?.done();
    }
  }

  #isSilent(): boolean {
    return !this.#isBusy && !this.#isFinishing && this.#monotonic() - this.#heardAt > this.#silenceMs;
  }

  #checkSilence(): void {
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
    this.#channel.destroy();
  }
}
