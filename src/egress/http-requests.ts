/**
 * The client's half of a plain HTTP/1.x connection, followed exactly (RFC 9112): each request with its host, in the order and
 * with the bytes in which they came. Guest-controlled; holds at most one head, or one line of a chunked body.
 */
import { HeldBytes } from './held-bytes.ts';
import { MAX_HEAD_BYTES, parseField, parseRequestHead } from './http-head.ts';

/** Size in hexadecimal and extensions, which nobody uses. */
const MAX_CHUNK_LINE_BYTES = 256;
const MAX_TRAILER_BYTES = 8192;
const CHUNK_LINE = /^([0-9A-Fa-f]{1,12})(?:;[\t\x20-\x7e]*)?$/;
/** What would change how the message is read, too late. */
const FORBIDDEN_TRAILERS = new Set(['host', 'content-length', 'transfer-encoding', 'connection', 'upgrade']);
const LF = 0x0a;
const CR = 0x0d;

export type HttpItem =
  /** Must not pass before the host was decided about. */
  | {
      readonly kind: 'request';
      readonly host: string | null;
      readonly bytes: Buffer;
      /** Lower case; only if nothing but the answer decides what the client says next. */
      readonly upgrade: string | null;
    }
  | { readonly kind: 'body'; readonly bytes: Buffer }
  /** The connection cannot be followed from here on; `bytes` are all that follow so far. Last item. */
  | { readonly kind: 'violation'; readonly reason: string; readonly bytes: Buffer };

type State = 'head' | 'body' | 'chunk-line' | 'chunk-data' | 'chunk-end' | 'trailers' | 'violated';

export class HttpRequests {
  #state: State = 'head';
  readonly #held = new HeldBytes();
  /** Of the held bytes, those that were searched for the end of a line, and where the line begins. */
  #scanned = 0;
  #lineStart = 0;
  #lines: string[] = [];
  #bodyLeft = 0;
  #requests = 0;

  /** In the middle of a head or of another part that is held. */
  get isHolding(): boolean {
    return this.#held.length > 0;
  }

  push(chunk: Buffer): void {
    this.#held.append(chunk);
  }

  /** The next item of what was pushed; undefined: more has to be pushed. Never throws. */
  next(): HttpItem | undefined {
    switch (this.#state) {
      case 'head':
        return this.#head();
      case 'body':
      case 'chunk-data':
        return this.#body();
      case 'chunk-line':
        return this.#chunkLine();
      case 'chunk-end':
        return this.#chunkEnd();
      case 'trailers':
        return this.#trailers();
      case 'violated':
        return undefined;
    }
  }

  /** The held bytes, for whoever is to forward them without looking. Nothing may be pushed afterwards. */
  release(): Buffer {
    this.#state = 'violated';
    return this.#held.take();
  }

  #head(): HttpItem | undefined {
    const problem = this.#readLines(MAX_HEAD_BYTES, 'a request');
    if (problem !== undefined) return problem === 'more' ? undefined : this.#violation(problem);
    const head = parseRequestHead(this.#lines);
    if (typeof head === 'string') return this.#violation(head);
    const bytes = this.#takeLines();
    this.#requests += 1;
    if (head.body === 'chunked') this.#state = 'chunk-line';
    else if (head.body > 0) [this.#state, this.#bodyLeft] = ['body', head.body];
    // After earlier requests, or with a body, one cannot tell by the next bytes of the server: these are read as HTTP.
    const upgrade = this.#requests === 1 && head.body === 0 ? head.upgrade : null;
    return { kind: 'request', host: head.host, bytes, upgrade };
  }

  #body(): HttpItem | undefined {
    if (this.#held.length === 0) return undefined;
    const bytes = this.#held.take(Math.min(this.#bodyLeft, this.#held.length));
    this.#bodyLeft -= bytes.length;
    if (this.#bodyLeft === 0) this.#state = this.#state === 'body' ? 'head' : 'chunk-end';
    return { kind: 'body', bytes };
  }

  #chunkLine(): HttpItem | undefined {
    const end = this.#held.bytes.indexOf(LF);
    if (end < 0 && this.#held.length <= MAX_CHUNK_LINE_BYTES) return undefined;
    const line = this.#held.bytes.toString('latin1', 0, Math.max(end - 1, 0));
    const size = CHUNK_LINE.exec(line)?.[1];
    if (size === undefined || end > MAX_CHUNK_LINE_BYTES || this.#held.bytes[end - 1] !== CR) {
      return this.#violation('a malformed chunk');
    }
    this.#bodyLeft = Number.parseInt(size, 16);
    this.#state = this.#bodyLeft === 0 ? 'trailers' : 'chunk-data';
    return { kind: 'body', bytes: this.#held.take(end + 1) };
  }

  #chunkEnd(): HttpItem | undefined {
    const { bytes } = this.#held;
    if ((bytes.length > 0 && bytes[0] !== CR) || (bytes.length > 1 && bytes[1] !== LF)) {
      return this.#violation('a chunk that does not end where it says');
    }
    if (bytes.length < 2) return undefined;
    this.#state = 'chunk-line';
    return { kind: 'body', bytes: this.#held.take(2) };
  }

  #trailers(): HttpItem | undefined {
    const problem = this.#readLines(MAX_TRAILER_BYTES, 'trailers');
    if (problem !== undefined) return problem === 'more' ? undefined : this.#violation(problem);
    for (const line of this.#lines) {
      const name = parseField(line)?.[0];
      if (name === undefined || FORBIDDEN_TRAILERS.has(name)) return this.#violation('a malformed trailer');
    }
    this.#state = 'head';
    return { kind: 'body', bytes: this.#takeLines() };
  }

  /** Reads lines up to an empty one, each byte once: undefined when it was found, `more`, or what is wrong. */
  #readLines(maxBytes: number, what: string): 'more' | string | undefined {
    const { bytes } = this.#held;
    for (;;) {
      const end = bytes.indexOf(LF, this.#scanned);
      if ((end < 0 ? bytes.length : end + 1) > maxBytes)
        return `${what} with a head of more than ${maxBytes} bytes`;
      this.#scanned = end < 0 ? bytes.length : end + 1;
      if (end < 0) return 'more';
      if (bytes[end - 1] !== CR || end - 1 < this.#lineStart)
        return `${what} with a line that ends without CR`;
      const line = bytes.toString('latin1', this.#lineStart, end - 1);
      this.#lineStart = end + 1;
      if (line === '') return undefined;
      this.#lines.push(line);
    }
  }

  #takeLines(): Buffer {
    const bytes = this.#held.take(this.#lineStart);
    [this.#scanned, this.#lineStart, this.#lines] = [0, 0, []];
    return bytes;
  }

  #violation(reason: string): HttpItem {
    return { kind: 'violation', reason, bytes: this.release() };
  }
}
