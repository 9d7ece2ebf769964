/** The last `maxBytes` of a byte stream that somebody else controls; constant memory. */
export class BoundedTail {
  #chunks: Buffer[] = [];
  #bytes = 0;
  readonly #maxBytes: number;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  push(chunk: Uint8Array): void {
    this.#chunks.push(Buffer.from(chunk.subarray(Math.max(0, chunk.length - this.#maxBytes))));
    this.#bytes += this.#chunks.at(-1)?.length ?? 0;
    while (this.#bytes - (this.#chunks[0]?.length ?? 0) >= this.#maxBytes) {
      this.#bytes -= this.#chunks.shift()?.length ?? 0;
    }
  }

  bytes(): Buffer {
    const all = Buffer.concat(this.#chunks);
    return all.subarray(Math.max(0, all.length - this.#maxBytes));
  }

  /** As text for an error message: printable characters and line breaks only, so it cannot drive a terminal. */
  text(): string {
    return printable(this.bytes().toString('utf8'));
  }
}

/** `text` without the control characters (C0, C1, DEL) that could move a cursor or hide a line. */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: removing them is the purpose
  return text.replaceAll('\r\n', '\n').replaceAll(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, '');
}
