/** Bytes of a peer that wait until enough is there: appended and taken in turn, whatever the pieces in which they come. */
export class HeldBytes {
  #memory = Buffer.alloc(0);
  #start = 0;
  #end = 0;

  get length(): number {
    return this.#end - this.#start;
  }

  /** What is held; valid until the next call of another method. */
  get bytes(): Buffer {
    return this.#memory.subarray(this.#start, this.#end);
  }

  /** Copies, and takes time in proportion to `chunk` only. The owner keeps the sum bounded. */
  append(chunk: Uint8Array): void {
    if (this.#end + chunk.length > this.#memory.length) {
      const held = this.bytes;
      // Twice as much each time: byte by byte would otherwise copy everything for each byte.
      const memory = Buffer.allocUnsafe(Math.max(256, 2 * (held.length + chunk.length)));
      memory.set(held);
      [this.#memory, this.#start, this.#end] = [memory, 0, held.length];
    }
    this.#memory.set(chunk, this.#end);
    this.#end += chunk.length;
  }

  /** Takes the first `count` bytes (all without it) out; they are the caller's. */
  take(count = this.length): Buffer {
    const taken = this.bytes.subarray(0, count);
    this.#start += taken.length;
    // What is left must not share memory that grows with what is gone.
    if (this.#start === this.#end) [this.#memory, this.#start, this.#end] = [Buffer.alloc(0), 0, 0];
    return taken;
  }
}
