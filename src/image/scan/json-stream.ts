/**
 * Cuts a long JSON text into its values without holding it whole: a sequence of objects (one per line or not), one array of
 * objects, or the members of one object. What is cut out is parsed by JSON.parse; the text around it is checked here.
 * Feeds come from outside: one value takes at most `maxValueBytes`, and nests at most {@link MAX_DEPTH} deep.
 */
import { CtError } from '../../core/errors.ts';

/** Records nest some eight levels deep. */
const MAX_DEPTH = 64;

const [QUOTE, BACKSLASH, COMMA, COLON] = [0x22, 0x5c, 0x2c, 0x3a];
const [OPEN_ARRAY, CLOSE_ARRAY, OPEN_OBJECT, CLOSE_OBJECT] = [0x5b, 0x5d, 0x7b, 0x7d];

export interface JsonPiece {
  /** With `members`: of the outer object. */
  readonly key: string;
  readonly value: unknown;
}

export interface JsonStreamOptions {
  /** `objects`: a sequence or an array of objects. `members`: of one object, whose values are objects. */
  readonly shape: 'objects' | 'members';
  readonly maxValueBytes: number;
  /** Called in messages: a path or URL. */
  readonly name: string;
}

/** Throws VULN_DB_INVALID where the text is not of the shape, too large or cut short. */
export async function* jsonPieces(
  chunks: AsyncIterable<Uint8Array>,
  options: JsonStreamOptions,
): AsyncGenerator<JsonPiece> {
  const splitter = new Splitter(options);
  for await (const chunk of chunks) yield* splitter.push(chunk);
  splitter.end();
}

/** What may come next outside of a value. */
type State = 'start' | 'value' | 'first-value' | 'separator' | 'key' | 'first-key' | 'colon' | 'done';

class Splitter {
  readonly #options: JsonStreamOptions;
  #state: State = 'start';
  /** Outermost container: of an array or object; none for a sequence. */
  #container: 'array' | 'object' | 'none' = 'none';
  /** Of the value or key that has begun: depth within it, whether in a string, and the bytes of earlier chunks. */
  #inside: 'value' | 'key' | undefined;
  #depth = 0;
  #inString = false;
  #escaped = false;
  #parts: Uint8Array[] = [];
  #bytes = 0;
  #key = '';
  #offset = 0;

  constructor(options: JsonStreamOptions) {
    this.#options = options;
  }

  *push(chunk: Uint8Array): Generator<JsonPiece> {
    let from = 0;
    for (let at = 0; at < chunk.length; at++) {
      const byte = chunk[at] ?? 0;
      if (this.#inside === undefined) {
        if (this.#begins(byte)) from = at;
        else continue;
      }
      if (!this.#ends(byte)) continue;
      const text = this.#cut(chunk.subarray(from, at + 1));
      if (this.#inside === 'key') {
        this.#key = String(this.#parse(text));
        this.#state = 'colon';
      } else {
        this.#state = this.#container === 'none' ? 'value' : 'separator';
        yield { key: this.#key, value: this.#parse(text) };
      }
      this.#inside = undefined;
    }
    if (this.#inside !== undefined) this.#keep(chunk.slice(from));
    this.#offset += chunk.length;
  }

  end(): void {
    // A sequence ends after any value; there is no sign of it.
    const isEnded = this.#state === 'done' || (this.#container === 'none' && this.#state === 'value');
    if (this.#inside !== undefined || !isEnded) throw this.#wrong('ends too early');
  }

  /** Whether a value or key begins with this byte; checks what stands between them. */
  #begins(byte: number): boolean {
    if (byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09) return false;
    const state = this.#state;
    if (state === 'start') return this.#open(byte);
    if (byte === OPEN_OBJECT && (state === 'value' || state === 'first-value')) return this.#enter('value');
    if (byte === QUOTE && (state === 'key' || state === 'first-key')) return this.#enter('key');
    if (byte === COLON && state === 'colon') {
      this.#state = 'value';
      return false;
    }
    if (byte === COMMA && state === 'separator') {
      this.#state = this.#container === 'object' ? 'key' : 'value';
      return false;
    }
    const canClose = state === 'separator' || state === 'first-value' || state === 'first-key';
    if (canClose && byte === (this.#container === 'object' ? CLOSE_OBJECT : CLOSE_ARRAY)) {
      this.#state = 'done';
      return false;
    }
    throw this.#wrong('is not the JSON that is expected there');
  }

  #open(byte: number): boolean {
    if (this.#options.shape === 'members' && byte === OPEN_OBJECT) {
      this.#container = 'object';
      this.#state = 'first-key';
      return false;
    }
    if (this.#options.shape === 'objects' && byte === OPEN_ARRAY) {
      this.#container = 'array';
      this.#state = 'first-value';
      return false;
    }
    if (this.#options.shape === 'objects' && byte === OPEN_OBJECT) return this.#enter('value');
    throw this.#wrong('is not the JSON that is expected');
  }

  #enter(what: 'value' | 'key'): true {
    this.#inside = what;
    this.#depth = 0;
    this.#inString = false;
    this.#escaped = false;
    return true;
  }

  /** Whether the value or key is complete with this byte. */
  #ends(byte: number): boolean {
    if (this.#inString) {
      if (this.#escaped) this.#escaped = false;
      else if (byte === BACKSLASH) this.#escaped = true;
      else if (byte === QUOTE) {
        this.#inString = false;
        return this.#depth === 0;
      }
      return false;
    }
    if (byte === QUOTE) this.#inString = true;
    else if (byte === OPEN_OBJECT || byte === OPEN_ARRAY) {
      this.#depth += 1;
      if (this.#depth > MAX_DEPTH) throw this.#wrong(`nests more than ${MAX_DEPTH} levels deep`);
    } else if (byte === CLOSE_OBJECT || byte === CLOSE_ARRAY) {
      this.#depth -= 1;
      return this.#depth === 0;
    }
    return false;
  }

  #keep(part: Uint8Array): void {
    this.#bytes += part.length;
    if (this.#bytes > this.#options.maxValueBytes) {
      throw this.#wrong(`holds a value of more than ${this.#options.maxValueBytes} bytes`);
    }
    this.#parts.push(part);
  }

  #cut(last: Uint8Array): string {
    this.#keep(last);
    const bytes = this.#parts.length === 1 ? last : Buffer.concat(this.#parts);
    this.#parts = [];
    this.#bytes = 0;
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8');
  }

  #parse(text: string): unknown {
    try {
      return JSON.parse(text);
    } catch {
      throw this.#wrong('is not valid JSON');
    }
  }

  #wrong(what: string): CtError {
    const { name } = this.#options;
    return new CtError('VULN_DB_INVALID', `${name} ${what} (near byte ${this.#offset})`, {
      hint: 'the file is damaged or no feed of a known format; the database is as it was',
    });
  }
}
