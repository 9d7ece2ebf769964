import { createHash, hash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { PieceSums } from './piece-sums.ts';
import {
  encodeIndex,
  encodeSegmentHeader,
  encodeTrailer,
  type IndexEntry,
  type SegmentHeader,
  segmentName,
} from './segment-format.ts';
import type { SegmentSummary } from './summary.ts';

/** One segment while it is written: appends, and keeps the digests of what was appended. */
export class SegmentFile {
  readonly #file: FileHandle;
  readonly #sha256 = createHash('sha256');
  readonly #sums = new PieceSums();
  readonly #entries: IndexEntry[] = [];
  #bytes = 0;

  private constructor(file: FileHandle) {
    this.#file = file;
  }

  static async create(directory: string, header: SegmentHeader): Promise<SegmentFile> {
    // O_EXCL and O_NOFOLLOW: the file is new, and lies where it seems to.
    const flags =
      constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
    const segment = new SegmentFile(await open(join(directory, segmentName(header.segment)), flags, 0o600));
    try {
      await segment.#append(encodeSegmentHeader(header), true);
    } catch (error) {
      await segment.abandon();
      throw error;
    }
    return segment;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get blocks(): number {
    return this.#entries.length;
  }

  async addBlock(header: Buffer, compressed: Buffer, entry: IndexEntry): Promise<void> {
    const offset = this.#bytes;
    await this.#append(Buffer.concat([header, compressed]), true);
    this.#entries.push({ ...entry, offset });
  }

  /** Writes index, sums and trailer; returns when all of it is on the disk. Closes the file, also if that fails. */
  async finish(): Promise<SegmentSummary> {
    try {
      const indexOffset = this.#bytes;
      await this.#append(encodeIndex(this.#entries), true);
      const bodyBytes = this.#bytes;
      const sums = this.#sums.end();
      await this.#append(sums, false);
      await this.#append(encodeTrailer({ indexOffset, sumsOffset: bodyBytes }), false);
      await this.#file.sync();
      return {
        bytes: this.#bytes,
        bodyBytes,
        sha256: this.#sha256.digest('hex'),
        sumsSha256: hash('sha256', sums, 'hex'),
      };
    } finally {
      await this.#file.close();
    }
  }

  /** Closes it as it is. */
  async abandon(): Promise<void> {
    await this.#file.close();
  }

  async #append(bytes: Buffer, isBody: boolean): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      at += (await this.#file.write(bytes, at)).bytesWritten;
    }
    this.#bytes += bytes.length;
    this.#sha256.update(bytes);
    if (isBody) this.#sums.add(bytes);
  }
}
