/**
 * Many byte strings searched for at once: the automaton of Aho and Corasick (CACM 18(6), 1975). One pass, a bounded
 * number of steps per byte whatever the text is, so that a hostile text costs no more than a friendly one.
 *
 * Nodes lie in flat arrays outside the JavaScript heap, with children as lists of siblings: nearly every node has one
 * child, and a table of 256 for each would take fifty times the memory.
 */
export class Automaton {
  /** Per node: bytes from the root to it, which are the last bytes of the text read so far. */
  readonly depth: Int32Array;
  /** Per node: 1 + index of the longest pattern that ends here, 0 if none does. */
  readonly match: Int32Array;
  /** Length per pattern. */
  readonly lengths: readonly number[];
  /** Child of the root per byte, 0 without one. */
  readonly #roots = new Int32Array(256);
  readonly #bytes: Uint8Array;
  readonly #firstChild: Int32Array;
  readonly #nextSibling: Int32Array;
  readonly #fail: Int32Array;
  #nodes = 1;

  /** Empty patterns are not allowed; duplicates are. The patterns are copied. */
  constructor(patterns: readonly Uint8Array[]) {
    const size = patterns.reduce((sum, pattern) => sum + pattern.length, 1);
    this.depth = new Int32Array(size);
    this.match = new Int32Array(size);
    this.lengths = patterns.map((pattern) => pattern.length);
    this.#bytes = new Uint8Array(size);
    this.#firstChild = new Int32Array(size);
    this.#nextSibling = new Int32Array(size);
    this.#fail = new Int32Array(size);
    for (const [index, pattern] of patterns.entries()) this.match[this.#insert(pattern)] = index + 1;
    this.#link();
  }

  /** Node after `byte`; starts at node 0. */
  next(node: number, byte: number): number {
    let at = node;
    while (at !== 0) {
      const child = this.#child(at, byte);
      if (child !== 0) return child;
      at = this.#fail[at] as number;
    }
    return this.#roots[byte] as number;
  }

  /** Index of the first byte at or after `from` that begins a pattern; `bytes.length` if none does. */
  firstCandidate(bytes: Uint8Array, from: number): number {
    const roots = this.#roots;
    let at = from;
    while (at < bytes.length && roots[bytes[at] as number] === 0) at++;
    return at;
  }

  /** Overwrites what it knows of the patterns; finds nothing afterwards. */
  wipe(): void {
    this.#bytes.fill(0);
    this.#roots.fill(0);
    this.match.fill(0);
  }

  #child(node: number, byte: number): number {
    let child = this.#firstChild[node] as number;
    while (child !== 0 && this.#bytes[child] !== byte) child = this.#nextSibling[child] as number;
    return child;
  }

  #insert(pattern: Uint8Array): number {
    let node = 0;
    for (const byte of pattern) {
      const existing = node === 0 ? (this.#roots[byte] as number) : this.#child(node, byte);
      node = existing === 0 ? this.#addChild(node, byte) : existing;
    }
    return node;
  }

  #addChild(parent: number, byte: number): number {
    const node = this.#nodes++;
    this.#bytes[node] = byte;
    this.depth[node] = (this.depth[parent] as number) + 1;
    if (parent === 0) this.#roots[byte] = node;
    this.#nextSibling[node] = this.#firstChild[parent] as number;
    this.#firstChild[parent] = node;
    return node;
  }

  /** Breadth first: where to go on when a node has no child for a byte is known of all shorter ones by then. */
  #link(): void {
    const queue = new Int32Array(this.#nodes);
    let end = 1; // the root
    for (let at = 0; at < end; at++) {
      const node = queue[at] as number;
      for (
        let child = this.#firstChild[node] as number;
        child !== 0;
        child = this.#nextSibling[child] as number
      ) {
        queue[end++] = child;
        if (node === 0) continue;
        const fail = this.next(this.#fail[node] as number, this.#bytes[child] as number);
        this.#fail[child] = fail;
        // A pattern that ends at the node itself is the longest: any other is a suffix of it.
        if (this.match[child] === 0) this.match[child] = this.match[fail] as number;
      }
    }
  }
}
