/**
 * Reads one segment (segment-format.ts), piece by piece. Its writer has read a guest's bytes and may have put anything
 * there: a link is not followed, a pipe not waited for, and every length is checked before anything is allocated.
 */
import { constants } from 'node:fs';
import { type FileHandle, open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { zstdDecompress } from 'node:zlib';
import { CtError, messageOf } from '../core/errors.ts';
import { AuditDamage, type DamageKind } from './damage.ts';
import {
  BLOCK_HEADER_BYTES,
  type BlockHeader,
  decodeBlockHeader,
  decodeIndex,
  decodeSegmentHeader,
  decodeTrailer,
  FormatError,
  INDEX_HEADER_BYTES,
  type IndexEntry,
  isIndex,
  MAX_SEGMENT_FILE_BYTES,
  SEGMENT_HEADER_BYTES,
  type SegmentHeader,
  segmentName,
  segmentNumber,
  sumsBytes,
  TRAILER_BYTES,
  type Trailer,
} from './segment-format.ts';

const decompress = promisify(zstdDecompress);

export interface StoredBlock {
  readonly offset: number;
  /** Where the next block, or the index, begins. */
  readonly end: number;
  readonly header: BlockHeader;
}

/** Numbers of the segments in a directory, ascending. Throws AUDIT_NOT_FOUND if it is not there. */
export async function segmentsOf(directory: string): Promise<number[]> {
  let names: string[];
  try {
    names = await readdir(directory);
  } catch (error) {
    throw new CtError('AUDIT_NOT_FOUND', `there is no audit record: ${messageOf(error)}`, { cause: error });
  }
  return names
    .map(segmentNumber)
    .filter((number) => number !== undefined)
    .sort((a, b) => a - b);
}

export class SegmentReader {
  readonly name: string;
  readonly #file: FileHandle;

  private constructor(name: string, file: FileHandle) {
    this.name = name;
    this.#file = file;
  }

  /** Undefined if there is no such file. Throws {@link AuditDamage} if it is no file. */
  static async open(directory: string, segment: number): Promise<SegmentReader | undefined> {
    const name = segmentName(segment);
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
    let file: FileHandle;
    try {
      file = await open(join(directory, name), flags);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT') return undefined;
      if (code === 'ELOOP') throw new AuditDamage('changed', { file: name }, 'it is no file', error);
      throw error;
    }
    const stats = await file.stat();
    if (stats.isFile() && stats.size <= MAX_SEGMENT_FILE_BYTES) return new SegmentReader(name, file);
    await file.close();
    throw new AuditDamage('changed', { file: name }, 'it is no file that we wrote');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }

  async size(): Promise<number> {
    return (await this.#file.stat()).size;
  }

  /** `length` bytes from `offset`; fewer at the end of the file. */
  async bytes(offset: number, length: number): Promise<Buffer> {
    const buffer = Buffer.allocUnsafe(length);
    let got = 0;
    while (got < length) {
      const { bytesRead } = await this.#file.read(buffer, got, length - got, offset + got);
      if (bytesRead === 0) break;
      got += bytesRead;
    }
    return buffer.subarray(0, got);
  }

  async header(): Promise<SegmentHeader> {
    const bytes = await this.bytes(0, SEGMENT_HEADER_BYTES);
    if (bytes.length < SEGMENT_HEADER_BYTES) throw this.#cutShort(bytes.length);
    return this.#decoded(0, () => decodeSegmentHeader(bytes));
  }

  /** The block at `offset`; `index` where the index begins; undefined if a whole one is not there (yet). */
  async block(offset: number): Promise<StoredBlock | 'index' | undefined> {
    const bytes = await this.bytes(offset, BLOCK_HEADER_BYTES);
    if (isIndex(bytes)) return 'index';
    if (bytes.length < BLOCK_HEADER_BYTES) return undefined;
    const header = this.#decoded(offset, () => decodeBlockHeader(bytes));
    const end = offset + BLOCK_HEADER_BYTES + header.compressedBytes;
    return end <= (await this.size()) ? { offset, end, header } : undefined;
  }

  /** The frames of a block. */
  async frames({ offset, end, header }: StoredBlock): Promise<Buffer> {
    const compressed = await this.bytes(offset + BLOCK_HEADER_BYTES, header.compressedBytes);
    let frames: Buffer;
    try {
      frames = await decompress(compressed, { maxOutputLength: header.bytes });
    } catch (error) {
      throw this.damage(offset + BLOCK_HEADER_BYTES, 'a block does not decompress', end, error);
    }
    if (frames.length !== header.bytes)
      throw this.damage(offset + 4, 'a block has another length', offset + 8);
    return frames;
  }

  /** Undefined if there is none, because the file is still being written, or its writer was killed. */
  async trailer(): Promise<Trailer | undefined> {
    const size = await this.size();
    if (size < SEGMENT_HEADER_BYTES + INDEX_HEADER_BYTES + TRAILER_BYTES) return undefined;
    const bytes = await this.bytes(size - TRAILER_BYTES, TRAILER_BYTES);
    try {
      return decodeTrailer(bytes, size);
    } catch (error) {
      if (error instanceof FormatError) return undefined;
      throw error;
    }
  }

  async index({ indexOffset, sumsOffset }: Trailer): Promise<IndexEntry[]> {
    const bytes = await this.bytes(indexOffset, sumsOffset - indexOffset);
    return this.#decoded(indexOffset, () => decodeIndex(bytes));
  }

  async sums({ sumsOffset }: Pick<Trailer, 'sumsOffset'>): Promise<Buffer> {
    return this.bytes(sumsOffset, sumsBytes(sumsOffset));
  }

  damage(from: number, message: string, to = from + 1, cause?: unknown): AuditDamage {
    return this.#damage('changed', from, message, to, cause);
  }

  #damage(kind: DamageKind, from: number, message: string, to = from + 1, cause?: unknown): AuditDamage {
    return new AuditDamage(kind, { file: this.name, from, to }, message, cause);
  }

  #cutShort(size: number): AuditDamage {
    return this.#damage('truncated', size, 'the file ends here');
  }

  #decoded<T>(offset: number, decode: () => T): T {
    try {
      return decode();
    } catch (error) {
      if (error instanceof FormatError) throw this.damage(offset + error.at, error.message);
      throw error;
    }
  }
}
