/** Masks what a link process tells of its job: the output of the steps, and the texts of events and results. */
import type { ErrorReport } from '../core/errors.ts';
import type { JobResult, RunEvent } from '../protocol/run.ts';
import type { Masker, MaskStream } from './mask.ts';

/** So long may the last bytes of an output wait for what follows; a prompt has no more to say. */
const FLUSH_AFTER_MS = 100;

type StreamName = 'stdout' | 'stderr';
type Emit = (stream: StreamName, step: number, bytes: Buffer) => Promise<void>;

interface MaskedStream {
  readonly name: StreamName;
  readonly step: number;
  readonly mask: MaskStream;
}

export class OutputMask implements Disposable {
  readonly #masker: Masker;
  readonly #emit: Emit;
  readonly #streams = new Map<StreamName, MaskedStream>();
  #timer: NodeJS.Timeout | undefined;
  #isClosed = false;

  constructor(masker: Masker, emit: Emit) {
    this.#masker = masker;
    this.#emit = emit;
  }

  /** Settles when the reader can take more. */
  output(name: StreamName, step: number, bytes: Buffer): Promise<void> {
    if (this.#isClosed) return Promise.resolve();
    let stream = this.#streams.get(name);
    if (stream?.step !== step) {
      stream = { name, step, mask: this.#masker.stream() };
      this.#streams.set(name, stream);
    }
    const clear = stream.mask.push(bytes);
    if (stream.mask.heldBytes > 0) this.#timer ??= setTimeout(() => this.#flushShort(), FLUSH_AFTER_MS);
    return this.#send(stream, clear);
  }

  /** Gives out what waits: the step has ended, and nothing follows. */
  async endStep(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    for (const stream of streams) await this.#send(stream, stream.mask.flush());
  }

  event(event: RunEvent): RunEvent {
    switch (event.type) {
      case 'notice':
        return { ...event, message: this.#text(event.message) };
      case 'step-end':
        return event.hint === undefined ? event : { ...event, hint: this.#text(event.hint) };
      case 'done':
        return { ...event, result: this.result(event.result) };
      default:
        return event;
    }
  }

  result(result: JobResult): JobResult {
    return result.error === undefined ? result : { ...result, error: this.#error(result.error) };
  }

  /** Forgets the secrets. A job that was given up may still write: of that nothing is let through any more. */
  [Symbol.dispose](): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    this.#streams.clear();
    this.#masker[Symbol.dispose]();
  }

  #text(text: string): string {
    return this.#isClosed ? '***' : this.#masker.text(text);
  }

  #error({ code, message, hint }: ErrorReport): ErrorReport {
    const masked = { code, message: this.#text(message) };
    return hint === undefined ? masked : { ...masked, hint: this.#text(hint) };
  }

  #flushShort(): void {
    this.#timer = undefined;
    for (const stream of this.#streams.values()) void this.#send(stream, stream.mask.flushShort());
  }

  #send(stream: MaskedStream, bytes: Buffer): Promise<void> {
    return bytes.length === 0 ? Promise.resolve() : this.#emit(stream.name, stream.step, bytes);
  }
}
