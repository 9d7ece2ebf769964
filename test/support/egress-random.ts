/** Random numbers that are the same in every run: a failure can be had again. */
export class SeededRandom {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 0 to `limit` - 1. */
  below(limit: number): number {
    // xorshift32 (Marsaglia 2003).
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    this.#state >>>= 0;
    return this.#state % limit;
  }

  /** A copy of `bytes` with a few changed, left out, doubled or put in. */
  mutated(bytes: Buffer): Buffer {
    let result = Buffer.from(bytes);
    for (let left = 1 + this.below(3); left > 0; left--) {
      const at = this.below(result.length || 1);
      const [before, after] = [result.subarray(0, at), result.subarray(at)];
      const kind = this.below(4);
      if (kind === 0 && result.length > 0) result[at] = this.below(256);
      else if (kind === 1) result = Buffer.concat([before, after.subarray(1 + this.below(4))]);
      else if (kind === 2) result = Buffer.concat([before, Buffer.of(this.below(256)), after]);
      else result = Buffer.concat([before, after.subarray(0, 1 + this.below(8)), after]);
    }
    return result;
  }

  /** `bytes` in pieces of random length. */
  pieces(bytes: Buffer): Buffer[] {
    const pieces: Buffer[] = [];
    for (let at = 0; at < bytes.length; ) {
      const length = 1 + this.below(this.below(2) === 0 ? 3 : 200);
      pieces.push(bytes.subarray(at, at + length));
      at += length;
    }
    return pieces;
  }
}
