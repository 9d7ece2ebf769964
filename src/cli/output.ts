/** The way to the terminal: one ordered queue for stdout and stderr that never blocks the event loop. */
import { write } from 'node:fs';
import { isatty } from 'node:tty';

/** Above this much waiting, `write` returns a promise, so that whoever produces waits for whoever reads. */
const HIGH_WATER_BYTES = 1024 * 1024;
/** Small writes are joined up to this. */
const MAX_WRITE_BYTES = 256 * 1024;
/** Our stdout may be a non-blocking pipe that we share: then try again after this long. */
const RETRY_MS = 5;

export type Stream = 'stdout' | 'stderr';
const FILE_DESCRIPTORS: Readonly<Record<Stream, number>> = { stdout: 1, stderr: 2 };

/** What renderings need of an {@link Output}. */
export interface Sink {
  readonly isTty: Readonly<Record<Stream, boolean>>;
  /** A promise means that much is waiting: await it before producing more. */
  write(stream: Stream, data: string | Uint8Array): undefined | Promise<void>;
  /** What is written waits for somebody who has the terminal alone: a status line would be out of date. */
  readonly isTaken?: boolean;
}

interface Piece {
  readonly stream: Stream;
  readonly bytes: Uint8Array;
}

/** Until it settles, nothing that was written later goes out. */
type Barrier = () => Promise<void>;

/** The terminal for one that needs it alone; until disposal, all else that is written waits. */
export interface Exclusive extends Disposable {
  write(stream: Stream, bytes: Uint8Array): Promise<void>;
}

/**
 * Writes to our stdout and stderr in the order of the calls, also across the two. `process.stdout` would block the
 * whole process on a pipe that nobody reads, and with it the signal handlers that are to cancel a run.
 */
export class Output implements Sink {
  readonly isTty: Readonly<Record<Stream, boolean>> = { stdout: isatty(1), stderr: isatty(2) };
  readonly #queue: (Piece | Barrier)[] = [];
  #isBroken = false;
  #queuedBytes = 0;
  #pump: Promise<void> | undefined;
  #waiters: (() => void)[] = [];
  #taken = 0;
  #onBroken: () => void = () => {};

  /**
   * Called once when a reader of our output is gone (EPIPE). All that is written later is dropped, on both streams: most
   * programs would be dead by then.
   */
  set onBroken(handler: () => void) {
    this.#onBroken = handler;
    if (this.#isBroken) handler();
  }

  get isBroken(): boolean {
    return this.#isBroken;
  }

  write(stream: Stream, data: string | Uint8Array): undefined | Promise<void> {
    const bytes = typeof data === 'string' ? Buffer.from(data) : data;
    if (bytes.length === 0 || this.#isBroken) return undefined;
    this.#queue.push({ stream, bytes });
    this.#queuedBytes += bytes.length;
    this.#pump ??= this.#run();
    if (this.#queuedBytes < HIGH_WATER_BYTES) return undefined;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiters.push(resolve);
    return promise;
  }

  get isTaken(): boolean {
    return this.#taken > 0;
  }

  /** Resolves when all that was written before has gone out, and nobody else has the terminal alone. */
  async take(): Promise<Exclusive> {
    const entered = Promise.withResolvers<void>();
    const left = Promise.withResolvers<void>();
    this.#taken++;
    this.#queue.push(() => {
      entered.resolve();
      return left.promise;
    });
    this.#pump ??= this.#run();
    await entered.promise;
    let isHeld = true;
    return {
      write: (stream, bytes) => this.#writeAll({ stream, bytes }),
      [Symbol.dispose]: () => {
        if (isHeld) this.#taken--;
        isHeld = false;
        left.resolve();
      },
    };
  }

  /** Resolves when all that was written has gone out or was dropped. */
  async flush(): Promise<void> {
    while (this.#pump) await this.#pump;
  }

  async #run(): Promise<void> {
    // What is written in the same turn goes out together.
    await undefined;
    for (let next = this.#take(); next; next = this.#take()) {
      if (typeof next === 'function') await next();
      else await this.#writeAll(next);
      if (this.#queuedBytes < HIGH_WATER_BYTES) {
        const waiters = this.#waiters;
        this.#waiters = [];
        for (const wake of waiters) wake();
      }
    }
    this.#pump = undefined;
  }

  #take(): Piece | Barrier | undefined {
    const first = this.#queue.shift();
    if (!first || typeof first === 'function') return first;
    const parts = [first.bytes];
    let bytes = first.bytes.length;
    for (let next = this.#queue[0]; next; next = this.#queue[0]) {
      if (typeof next === 'function' || next.stream !== first.stream) break;
      if (bytes + next.bytes.length > MAX_WRITE_BYTES) break;
      parts.push(next.bytes);
      bytes += next.bytes.length;
      this.#queue.shift();
    }
    this.#queuedBytes -= bytes;
    return { stream: first.stream, bytes: parts.length === 1 ? first.bytes : Buffer.concat(parts) };
  }

  async #writeAll({ stream, bytes }: Piece): Promise<void> {
    for (let at = 0; at < bytes.length && !this.#isBroken; ) {
      const result = await writeOnce(FILE_DESCRIPTORS[stream], bytes.subarray(at));
      if (typeof result === 'number') at += result;
      else if (result === 'EAGAIN') await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      else this.#break();
    }
  }

  #break(): void {
    this.#isBroken = true;
    this.#onBroken();
  }
}

function writeOnce(fd: number, bytes: Uint8Array): Promise<number | string> {
  const { promise, resolve } = Promise.withResolvers<number | string>();
  write(fd, bytes, 0, bytes.length, null, (error, written) =>
    resolve(error ? (error.code ?? 'EIO') : written),
  );
  return promise;
}
