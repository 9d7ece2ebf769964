/**
 * Takes secrets out of what leaves the link process. A net under accidents, not a wall: a job can write what it may
 * read in a form nobody thinks of (docs/secrets.md).
 */
import { inspect } from 'node:util';
import { Automaton } from './automaton.ts';
import { maskPatterns } from './mask-patterns.ts';
import { type SecretValues, withoutFinalNewline } from './secret-values.ts';

const MASK = Buffer.from('***');
/** Held-back bytes that may be shown when nothing follows them: the start of some prompt rather than of a secret. */
const MAX_FLUSHED_BYTES = 7;

/** Knows the secrets of one job in all their forms (mask-patterns.ts). */
export class Masker implements Disposable {
  readonly #automaton: Automaton;
  readonly #literals: Automaton;
  readonly #names: readonly string[];
  /** What {@link MaskStream.flushShort} may show: never most of a secret. */
  readonly #flushable: number;

  constructor(secrets: SecretValues) {
    this.#names = secrets.names();
    const values = this.#names.map((name) => secrets.get(name));
    const patterns = values.flatMap((value) => maskPatterns(value));
    this.#automaton = new Automaton(patterns);
    this.#literals = new Automaton(values.map((value) => withoutFinalNewline(value)));
    const shortest = Math.min(...patterns.map(({ length }) => length));
    this.#flushable = Math.min(MAX_FLUSHED_BYTES, shortest >> 1);
    for (const pattern of patterns) pattern.fill(0);
  }

  /** For one stream of output: what is split over several chunks is found, too. */
  stream(): MaskStream {
    return new MaskStream(this.#automaton, this.#flushable);
  }

  text(text: string): string {
    const stream = this.stream();
    return Buffer.concat([stream.push(Buffer.from(text)), stream.flush()]).toString('utf8');
  }

  /** For one stream that is not masked: which secrets it holds as they are. */
  scan(): SecretScan {
    return new SecretScan(this.#literals, this.#names);
  }

  [Symbol.dispose](): void {
    this.#automaton.wipe();
    this.#literals.wipe();
  }

  toJSON(): string {
    return 'Masker';
  }

  [inspect.custom](): string {
    return 'Masker';
  }
}

interface Cover {
  start: number;
  end: number;
}

/**
 * Bytes go through as soon as they cannot be part of a secret any more; only what may be the beginning of one is held
 * back, which is exactly as long as the automaton is deep. Offsets count from the start of the stream.
 */
export class MaskStream {
  readonly #automaton: Automaton;
  readonly #flushable: number;
  #node = 0;
  /** Everything before has been given out. */
  #given = 0;
  #end = 0;
  /** The bytes from `#given` to `#end`. */
  #held: Buffer[] = [];
  /** Chunks at the front of `#held` that are used up; taken off many at a time, since one is a byte at worst. */
  #used = 0;
  /** What is to be hidden of them: in order, disjoint. */
  #covers: Cover[] = [];
  /** The last that was given out is a mask: what adjoins it needs no other. */
  #inMask = false;

  constructor(automaton: Automaton, flushable: number) {
    this.#automaton = automaton;
    this.#flushable = flushable;
  }

  /** Bytes that wait for what follows. */
  get heldBytes(): number {
    return this.#end - this.#given;
  }

  /** Returns what can be given out by now. Keeps `chunk`, which must not be changed afterwards. */
  push(chunk: Buffer): Buffer {
    const automaton = this.#automaton;
    const { match, lengths, depth } = automaton;
    let node = this.#node;
    for (let at = 0; at < chunk.length; at++) {
      if (node === 0) {
        at = automaton.firstCandidate(chunk, at);
        if (at === chunk.length) break;
      }
      node = automaton.next(node, chunk[at] as number);
      const found = match[node] as number;
      if (found === 0) continue;
      const end = this.#end + at + 1;
      this.#cover(end - (lengths[found - 1] as number), end);
    }
    this.#node = node;
    this.#held.push(chunk);
    this.#end += chunk.length;
    return this.#give(this.#end - (depth[node] as number));
  }

  /** Gives out what is held back; if a secret goes on after all, the rest of it is hidden. */
  flush(): Buffer {
    return this.#give(this.#end);
  }

  /** The same if it is so little that it is nobody's secret; else what is held back waits on. */
  flushShort(): Buffer {
    return this.heldBytes <= this.#flushable ? this.flush() : Buffer.alloc(0);
  }

  /** `end` grows from call to call. */
  #cover(start: number, end: number): void {
    const covers = this.#covers;
    while (covers.length > 0 && (covers.at(-1) as Cover).start >= start) covers.pop();
    const last = covers.at(-1);
    if (last && last.end >= start) last.end = end;
    else covers.push({ start, end });
  }

  #give(clear: number): Buffer {
    const parts: Buffer[] = [];
    let next = 0;
    let upTo = clear;
    // What is hidden stays hidden, whatever else may begin within it.
    for (const cover of this.#covers) {
      if (cover.start > upTo) break;
      upTo = Math.max(upTo, cover.end);
    }
    while (this.#given < upTo) {
      const cover = this.#covers[next];
      if (cover && cover.end <= this.#given) {
        next++;
      } else if (cover && cover.start <= this.#given) {
        if (!this.#inMask) parts.push(MASK);
        this.#inMask = true;
        this.#take(Math.min(cover.end, upTo) - this.#given);
      } else {
        parts.push(...this.#take(Math.min(cover?.start ?? upTo, upTo) - this.#given));
        this.#inMask = false;
      }
    }
    if (next > 0) this.#covers.splice(0, next);
    return parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
  }

  /** The next `bytes` of what is held. */
  #take(bytes: number): Buffer[] {
    const held = this.#held;
    const taken: Buffer[] = [];
    let wanted = bytes;
    while (wanted > 0) {
      const chunk = held[this.#used] as Buffer;
      taken.push(chunk.subarray(0, wanted));
      if (chunk.length > wanted) held[this.#used] = chunk.subarray(wanted);
      else this.#used++;
      wanted -= Math.min(wanted, chunk.length);
    }
    if (this.#used * 2 >= held.length) {
      this.#held = held.slice(this.#used);
      this.#used = 0;
    }
    this.#given += bytes;
    return taken;
  }
}

/** Looks for secrets and changes nothing. */
export class SecretScan {
  readonly #automaton: Automaton;
  readonly #names: readonly string[];
  readonly #found = new Set<number>();
  #node = 0;

  constructor(automaton: Automaton, names: readonly string[]) {
    this.#automaton = automaton;
    this.#names = names;
  }

  push(chunk: Uint8Array): void {
    const automaton = this.#automaton;
    let node = this.#node;
    for (let at = 0; at < chunk.length; at++) {
      if (node === 0) {
        at = automaton.firstCandidate(chunk, at);
        if (at === chunk.length) break;
      }
      node = automaton.next(node, chunk[at] as number);
      const found = automaton.match[node] as number;
      if (found !== 0) this.#found.add(found - 1);
    }
    this.#node = node;
  }

  get found(): readonly string[] {
    return [...this.#found].map((index) => this.#names[index] as string);
  }
}
