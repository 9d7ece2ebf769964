import { refused } from './refusal.ts';

/** Reads a stream in pieces of the sizes that a format asks for. */
export class ByteSource {
  readonly #chunks: AsyncIterator<Uint8Array>;
  readonly #what: string;
  #chunk: Uint8Array = new Uint8Array();

  /** `what` names it in messages: `layer 2`. */
  constructor(chunks: AsyncIterable<Uint8Array>, what: string) {
    this.#chunks = chunks[Symbol.asyncIterator]();
    this.#what = what;
  }

  /** Bytes that the stream has given and nobody has taken yet. */
  get buffered(): number {
    return this.#chunk.length;
  }

  /** Exactly `length` bytes, which the caller has bounded; undefined at the end. Throws IMAGE_IMPORT_REFUSED if it ends within. */
  async take(length: number): Promise<Buffer | undefined> {
    if (this.#chunk.length >= length) return this.#cut(length);
    const parts: Buffer[] = [];
    let missing = length;
    while (missing > 0) {
      if (!(await this.#fill())) {
        if (parts.length === 0) return undefined;
        throw this.#truncated();
      }
      const part = this.#cut(Math.min(missing, this.#chunk.length));
      parts.push(part);
      missing -= part.length;
    }
    return Buffer.concat(parts);
  }

  /** Hands `length` bytes over in pieces, as they come. */
  async forward(length: number, to: (piece: Buffer) => Promise<void>): Promise<void> {
    for (let missing = length; missing > 0; ) {
      if (!(await this.#fill())) throw this.#truncated();
      const piece = this.#cut(Math.min(missing, this.#chunk.length));
      missing -= piece.length;
      await to(piece);
    }
  }

  /** Ends the stream, read to its end or not. */
  async close(): Promise<void> {
    await this.#chunks.return?.();
  }

  #cut(length: number): Buffer {
    const { buffer, byteOffset } = this.#chunk;
    const piece = Buffer.from(buffer, byteOffset, length);
    this.#chunk = this.#chunk.subarray(length);
    return piece;
  }

  async #fill(): Promise<boolean> {
    while (this.#chunk.length === 0) {
      const next = await this.#chunks.next();
      if (next.done) return false;
      this.#chunk = next.value;
    }
    return true;
  }

  #truncated(): Error {
    return refused(`${this.#what} ends in the middle of a file`);
  }
}
