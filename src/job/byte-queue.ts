/** Chunks between a socket and one reader; an empty chunk ends it. */
export class ByteQueue implements AsyncIterable<Buffer> {
  bytes = 0;
  readonly #chunks: Buffer[] = [];
  readonly #onTaken: () => void;
  #ended = false;
  #error: Error | undefined;
  #wake: (() => void) | undefined;

  constructor(onTaken: () => void) {
    this.#onTaken = onTaken;
  }

  push(payload: Buffer): void {
    if (this.#ended) return;
    if (payload.length === 0) {
      this.#ended = true;
    } else {
      this.#chunks.push(Buffer.from(payload));
      this.bytes += payload.length;
    }
    this.#wake?.();
  }

  fail(error: Error): void {
    if (this.#ended) return;
    this.#error = error;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    for (;;) {
      const chunk = this.#chunks.shift();
      if (chunk) {
        this.bytes -= chunk.length;
        this.#onTaken();
        yield chunk;
      } else if (this.#ended) {
        return;
      } else if (this.#error) {
        throw this.#error;
      } else {
        const { promise, resolve } = Promise.withResolvers<void>();
        this.#wake = resolve;
        await promise;
        this.#wake = undefined;
      }
    }
  }
}
