/** Several jobs on one terminal: whole lines of each, behind its name. */

const NEWLINE = 0x0a;
const ESCAPE = 0x1b;
/** Guest-controlled: a longer line is cut into several. */
export const MAX_LINE_BYTES = 65_536;

const END_OF_LINE = Buffer.from('\n');
const RESET = Buffer.from('\x1b[0m');

export class LinePrefixer {
  readonly #prefix: () => string;
  /** Ends colours that a line has left on, before the next prefix. */
  readonly #reset: boolean;
  #carry: Buffer[] = [];
  #carryBytes = 0;

  /** A function is asked anew when a line is complete. */
  constructor(prefix: string | (() => string), options: { readonly reset: boolean }) {
    this.#prefix = typeof prefix === 'string' ? () => prefix : prefix;
    this.#reset = options.reset;
  }

  /** The lines that are complete now, each with its prefix; the bytes within them untouched. */
  push(bytes: Buffer): Buffer {
    const out: Buffer[] = [];
    let start = 0;
    for (let end = bytes.indexOf(NEWLINE); end >= 0; end = bytes.indexOf(NEWLINE, start)) {
      this.#emit(out, bytes.subarray(start, end));
      start = end + 1;
    }
    let rest = bytes.subarray(start);
    while (this.#carryBytes + rest.length > MAX_LINE_BYTES) {
      const room = MAX_LINE_BYTES - this.#carryBytes;
      this.#emit(out, rest.subarray(0, room));
      rest = rest.subarray(room);
    }
    if (rest.length > 0) {
      this.#carry.push(Buffer.from(rest));
      this.#carryBytes += rest.length;
    }
    return Buffer.concat(out);
  }

  /** What is left of a last line without an end. */
  end(): Buffer {
    const out: Buffer[] = [];
    if (this.#carryBytes > 0) this.#emit(out, Buffer.alloc(0));
    return Buffer.concat(out);
  }

  #emit(out: Buffer[], rest: Buffer): void {
    out.push(Buffer.from(this.#prefix()), ...this.#carry, rest);
    if (this.#reset && [...this.#carry, rest].some((part) => part.includes(ESCAPE))) out.push(RESET);
    out.push(END_OF_LINE);
    this.#carry = [];
    this.#carryBytes = 0;
  }
}
