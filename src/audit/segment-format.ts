/**
 * Files of an audit record: `segment-00000`, `segment-00001`, … in a directory of its own. Numbers are little endian.
 *
 *     header   0   8 bytes `CTAUDIT1`    8  u32  number of the segment   12  u32  0
 *              16  32 bytes run id, then zeros
 *              48  32 bytes head of the chain before it                  80  u64  frames before it
 *              88  u64  when it was begun, ms since 1970, host
 *     block    0   u32  magic            4  u32  bytes of frames         8  u32  bytes as compressed
 *              12  u32  frames           16 u32  system calls            20 u32  process records
 *              24  u64  when its first and 32 its last frame came, ms since 1970, host
 *              40  u64  least and 48 greatest time of its records, ns of the guest's clock; 0 without records
 *              56  u64  frames before it in the whole record
 *              64  32 bytes head of the chain after it, then the frames, compressed (zstd)
 *     index    0   u32  magic            4  u32  entries, one for each block
 *       entry  0   u64  offset of the block                              8 and 16  u64  times as above
 *              24  u8   IndexFlag        25 u8   kinds of process records, as bits
 *              26  u16  threads          28 u16  system calls            30 u16  0
 *              32  u32 each thread, then u16 each system call, both ascending
 *     sums     of everything before, in pieces of 1024 bytes: the first 16 bytes of the SHA-256 of each
 *     trailer  0   u32  magic            4  u32  0      8  u64  offset of the index     16  u64  offset of the sums
 *
 * The chain: the first head is the SHA-256 of `ct-audit-v1`, NUL and the run id; each frame makes the head SHA-256 (head,
 * frame), over header and payload as they came. What is in no frame (times of the host, the index) is covered by the digests
 * of the files, which are sealed with the head (seal.ts).
 *
 * The process that writes has read a guest's bytes, so whoever reads checks each field before use. A file whose writer was
 * killed has neither index, sums nor trailer, and may end within a block.
 */
import { createHash } from 'node:crypto';
import { SYSCALL_RECORD_BYTES } from '../protocol/audit.ts';

export const SEGMENT_HEADER_BYTES = 96;
export const BLOCK_HEADER_BYTES = 96;
export const INDEX_HEADER_BYTES = 8;
export const INDEX_ENTRY_BYTES = 32;
export const TRAILER_BYTES = 24;
export const PIECE_BYTES = 1024;
export const SUM_BYTES = 16;
export const HEAD_BYTES = 32;
export const MAX_RUN_ID_BYTES = 32;

/** Frames of one block; a reader allocates as much at once. */
export const MAX_BLOCK_BYTES = 1024 * 1024;
/** zstd adds less than this to what it cannot compress. */
export const MAX_COMPRESSED_BYTES = MAX_BLOCK_BYTES + 8192;
/** Of a segment: blocks of a guest that sends nothing but zeros are small, and an index has to fit into memory. */
export const MAX_SEGMENT_BLOCKS = 4096;
/** Distinct threads and system calls that one block names; of one with more, the index says only that there are more. */
export const MAX_INDEXED = 128;
const MAX_INDEX_ENTRY_BYTES = INDEX_ENTRY_BYTES + MAX_INDEXED * (4 + 2);
const MAX_INDEX_BYTES = INDEX_HEADER_BYTES + MAX_SEGMENT_BLOCKS * MAX_INDEX_ENTRY_BYTES;
/** Segments of a record; they are named one by one in its seal. */
export const MAX_SEGMENTS = 256;
/** A file that is larger was not written by us: 1 GiB, eight times what a segment is closed at at most. */
export const MAX_SEGMENT_FILE_BYTES = 1024 * 1024 * 1024;

const SEGMENT_MAGIC = Buffer.from('CTAUDIT1');
const BLOCK_MAGIC = 0x314b4c42;
const INDEX_MAGIC = 0x31584449;
const TRAILER_MAGIC = 0x31444e45;
/** Of system calls by the table of i386 in an index. */
export const COMPAT_CODE = 0x8000;

export const IndexFlag = { manyThreads: 1, manySyscalls: 2 } as const;

export interface SegmentHeader {
  readonly segment: number;
  readonly run: string;
  readonly head: Buffer;
  readonly framesBefore: number;
  readonly startedMs: number;
}

export interface BlockHeader {
  readonly bytes: number;
  readonly compressedBytes: number;
  readonly frames: number;
  readonly syscalls: number;
  readonly processRecords: number;
  readonly firstMs: number;
  readonly lastMs: number;
  readonly firstNs: number;
  readonly lastNs: number;
  readonly framesBefore: number;
  readonly head: Buffer;
}

export interface IndexEntry {
  readonly offset: number;
  readonly firstNs: number;
  readonly lastNs: number;
  readonly flags: number;
  /** Bit n: there is a process record of kind n. */
  readonly kinds: number;
  readonly threads: readonly number[];
  /** Numbers, with {@link COMPAT_CODE} where they are of i386. */
  readonly syscalls: readonly number[];
}

export interface Trailer {
  readonly indexOffset: number;
  readonly sumsOffset: number;
}

/** Bytes of a file that are not what they have to be. `at` is where, from the beginning of what was decoded. */
export class FormatError extends Error {
  readonly at: number;

  constructor(at: number, message: string) {
    super(message);
    this.at = at;
  }
}

export function segmentName(segment: number): string {
  return `segment-${String(segment).padStart(5, '0')}`;
}

/** The number in the name of a file, if it is that of a segment. */
export function segmentNumber(name: string): number | undefined {
  const digits = /^segment-(\d{5})$/.exec(name)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

export function firstHead(run: string): Buffer {
  return createHash('sha256').update(`ct-audit-v1\0${run}`).digest();
}

export function nextHead(head: Buffer, frame: Buffer): Buffer {
  return createHash('sha256').update(head).update(frame).digest();
}

export function encodeSegmentHeader({ segment, run, head, framesBefore, startedMs }: SegmentHeader): Buffer {
  const bytes = Buffer.alloc(SEGMENT_HEADER_BYTES);
  if (!isRunId(run)) throw new RangeError('a run id has up to 32 lower-case letters and digits');
  SEGMENT_MAGIC.copy(bytes);
  bytes.writeUInt32LE(segment, 8);
  bytes.write(run, 16);
  head.copy(bytes, 48);
  writeNumber(bytes, framesBefore, 80);
  writeNumber(bytes, startedMs, 88);
  return bytes;
}

export function decodeSegmentHeader(bytes: Buffer): SegmentHeader {
  requireEqual(bytes, 0, SEGMENT_MAGIC, 'it does not begin like a segment');
  requireZero(bytes, 12, 4);
  const id = bytes.subarray(16, 16 + MAX_RUN_ID_BYTES);
  const end = id.indexOf(0);
  const run = id.toString('latin1', 0, end === -1 ? MAX_RUN_ID_BYTES : end);
  if (!isRunId(run)) throw new FormatError(16, 'it names no run');
  requireZero(bytes, 16 + run.length, MAX_RUN_ID_BYTES - run.length);
  return {
    segment: bytes.readUInt32LE(8),
    run,
    head: Buffer.from(bytes.subarray(48, 80)),
    framesBefore: readNumber(bytes, 80),
    startedMs: readNumber(bytes, 88),
  };
}

export function encodeBlockHeader(block: BlockHeader): Buffer {
  const bytes = Buffer.alloc(BLOCK_HEADER_BYTES);
  const small = [
    BLOCK_MAGIC,
    block.bytes,
    block.compressedBytes,
    block.frames,
    block.syscalls,
    block.processRecords,
  ];
  for (const [index, value] of small.entries()) bytes.writeUInt32LE(value, index * 4);
  const large = [block.firstMs, block.lastMs, block.firstNs, block.lastNs, block.framesBefore];
  for (const [index, value] of large.entries()) writeNumber(bytes, value, 24 + index * 8);
  block.head.copy(bytes, 64);
  return bytes;
}

export function decodeBlockHeader(bytes: Buffer): BlockHeader {
  if (bytes.readUInt32LE(0) !== BLOCK_MAGIC) throw new FormatError(0, 'no block begins here');
  const block = {
    bytes: bytes.readUInt32LE(4),
    compressedBytes: bytes.readUInt32LE(8),
    frames: bytes.readUInt32LE(12),
    syscalls: bytes.readUInt32LE(16),
    processRecords: bytes.readUInt32LE(20),
    firstMs: readNumber(bytes, 24),
    lastMs: readNumber(bytes, 32),
    firstNs: readNumber(bytes, 40),
    lastNs: readNumber(bytes, 48),
    framesBefore: readNumber(bytes, 56),
    head: Buffer.from(bytes.subarray(64, 96)),
  };
  if (block.bytes === 0 || block.bytes > MAX_BLOCK_BYTES) throw new FormatError(4, 'a block is too large');
  if (block.compressedBytes === 0 || block.compressedBytes > MAX_COMPRESSED_BYTES) {
    throw new FormatError(8, 'a block is too large');
  }
  if (block.syscalls > block.bytes / SYSCALL_RECORD_BYTES) {
    throw new FormatError(16, 'a block has more system calls than fit');
  }
  return block;
}

/** Whether an index begins where a block could. */
export function isIndex(bytes: Buffer): boolean {
  return bytes.length >= INDEX_HEADER_BYTES && bytes.readUInt32LE(0) === INDEX_MAGIC;
}

export function encodeIndex(entries: readonly IndexEntry[]): Buffer {
  const header = Buffer.alloc(INDEX_HEADER_BYTES);
  header.writeUInt32LE(INDEX_MAGIC, 0);
  header.writeUInt32LE(entries.length, 4);
  return Buffer.concat([header, ...entries.map(encodeIndexEntry)]);
}

function encodeIndexEntry(entry: IndexEntry): Buffer {
  const { offset, firstNs, lastNs, flags, kinds, threads, syscalls } = entry;
  const bytes = Buffer.alloc(INDEX_ENTRY_BYTES + threads.length * 4 + syscalls.length * 2);
  writeNumber(bytes, offset, 0);
  writeNumber(bytes, firstNs, 8);
  writeNumber(bytes, lastNs, 16);
  bytes.writeUInt8(flags, 24);
  bytes.writeUInt8(kinds, 25);
  bytes.writeUInt16LE(threads.length, 26);
  bytes.writeUInt16LE(syscalls.length, 28);
  for (const [index, thread] of threads.entries()) bytes.writeUInt32LE(thread, INDEX_ENTRY_BYTES + index * 4);
  const start = INDEX_ENTRY_BYTES + threads.length * 4;
  for (const [index, code] of syscalls.entries()) bytes.writeUInt16LE(code, start + index * 2);
  return bytes;
}

export function decodeIndex(bytes: Buffer): IndexEntry[] {
  if (bytes.length > MAX_INDEX_BYTES) throw new FormatError(0, 'its index is too large');
  if (!isIndex(bytes)) throw new FormatError(0, 'no index begins where it should');
  const count = bytes.readUInt32LE(4);
  if (count > MAX_SEGMENT_BLOCKS) throw new FormatError(4, 'its index has too many entries');
  const entries: IndexEntry[] = [];
  let at = INDEX_HEADER_BYTES;
  for (let index = 0; index < count; index += 1) {
    if (at + INDEX_ENTRY_BYTES > bytes.length) throw new FormatError(at, 'its index is cut short');
    const [threads, syscalls] = [bytes.readUInt16LE(at + 26), bytes.readUInt16LE(at + 28)];
    const end = at + INDEX_ENTRY_BYTES + threads * 4 + syscalls * 2;
    if (threads > MAX_INDEXED || syscalls > MAX_INDEXED || end > bytes.length) {
      throw new FormatError(at + 26, 'an entry of its index is too large');
    }
    const start = at + INDEX_ENTRY_BYTES;
    entries.push({
      offset: readNumber(bytes, at),
      firstNs: readNumber(bytes, at + 8),
      lastNs: readNumber(bytes, at + 16),
      flags: bytes.readUInt8(at + 24),
      kinds: bytes.readUInt8(at + 25),
      threads: Array.from({ length: threads }, (_, each) => bytes.readUInt32LE(start + each * 4)),
      syscalls: Array.from({ length: syscalls }, (_, each) =>
        bytes.readUInt16LE(start + threads * 4 + each * 2),
      ),
    });
    at = end;
  }
  if (at !== bytes.length) throw new FormatError(at, 'bytes follow the last entry of its index');
  return entries;
}

export function encodeTrailer({ indexOffset, sumsOffset }: Trailer): Buffer {
  const bytes = Buffer.alloc(TRAILER_BYTES);
  bytes.writeUInt32LE(TRAILER_MAGIC, 0);
  writeNumber(bytes, indexOffset, 8);
  writeNumber(bytes, sumsOffset, 16);
  return bytes;
}

/** Of a file of `fileBytes`; throws {@link FormatError} unless index, sums and trailer fill it exactly. */
export function decodeTrailer(bytes: Buffer, fileBytes: number): Trailer {
  if (bytes.readUInt32LE(0) !== TRAILER_MAGIC) throw new FormatError(0, 'it does not end like a segment');
  requireZero(bytes, 4, 4);
  const [indexOffset, sumsOffset] = [readNumber(bytes, 8), readNumber(bytes, 16)];
  if (indexOffset < SEGMENT_HEADER_BYTES || indexOffset > sumsOffset) {
    throw new FormatError(8, 'its index does not lie where it could');
  }
  if (sumsOffset + sumsBytes(sumsOffset) + TRAILER_BYTES !== fileBytes) {
    throw new FormatError(16, 'its sums do not lie where they could');
  }
  if (sumsOffset - indexOffset > MAX_INDEX_BYTES) throw new FormatError(8, 'its index is too large');
  return { indexOffset, sumsOffset };
}

/** Bytes of the sums of so many bytes. */
export function sumsBytes(bytes: number): number {
  return Math.ceil(bytes / PIECE_BYTES) * SUM_BYTES;
}

export function isRunId(run: string): boolean {
  return /^[0-9a-z]{1,32}$/.test(run);
}

function requireEqual(bytes: Buffer, at: number, wanted: Buffer, message: string): void {
  for (let index = 0; index < wanted.length; index += 1) {
    if (bytes[at + index] !== wanted[index]) throw new FormatError(at + index, message);
  }
}

function requireZero(bytes: Buffer, at: number, length: number): void {
  for (let index = at; index < at + length; index += 1) {
    if (bytes[index] !== 0) throw new FormatError(index, 'something is where zeros are due');
  }
}

function writeNumber(bytes: Buffer, value: number, at: number): void {
  bytes.writeBigUInt64LE(BigInt(value), at);
}

function readNumber(bytes: Buffer, at: number): number {
  const value = bytes.readBigUInt64LE(at);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new FormatError(at, 'a number is out of range');
  return Number(value);
}
