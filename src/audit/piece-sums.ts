import { hash } from 'node:crypto';
import { PIECE_BYTES, SUM_BYTES } from './segment-format.ts';

/** A digest of each piece of a file, so that a change can be found without the bytes that were there (locate.ts). */
export class PieceSums {
  readonly #sums: Buffer[] = [];
  readonly #piece = Buffer.allocUnsafe(PIECE_BYTES);
  #held = 0;

  add(bytes: Buffer): void {
    let at = 0;
    while (at < bytes.length) {
      if (this.#held === 0 && bytes.length - at >= PIECE_BYTES) {
        this.#sums.push(sumOf(bytes.subarray(at, at + PIECE_BYTES)));
        at += PIECE_BYTES;
        continue;
      }
      const taken = Math.min(PIECE_BYTES - this.#held, bytes.length - at);
      bytes.copy(this.#piece, this.#held, at, at + taken);
      this.#held += taken;
      at += taken;
      if (this.#held === PIECE_BYTES) this.#close();
    }
  }

  /** The sums of everything that was added; nothing is added after this. */
  end(): Buffer {
    if (this.#held > 0) this.#close();
    return Buffer.concat(this.#sums);
  }

  #close(): void {
    this.#sums.push(sumOf(this.#piece.subarray(0, this.#held)));
    this.#held = 0;
  }
}

export function sumOf(piece: Buffer): Buffer {
  return Buffer.from(hash('sha256', piece, 'buffer').subarray(0, SUM_BYTES));
}
