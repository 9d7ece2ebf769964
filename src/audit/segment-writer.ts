/**
 * Writes the record of a run: frames as they came into blocks, which are chained, compressed and appended to segments
 * (segment-format.ts). It chains while frames come in; compressing and writing happen on other threads, of a few blocks
 * at a time, and {@link AuditWriter.ready} holds whoever brings frames back until they have caught up. Memory is bounded by
 * that: four blocks as they came and as many as compressed, less than 8 MiB.
 */
import { open } from 'node:fs/promises';
import { promisify } from 'node:util';
import { constants as zlibConstants, zstdCompress } from 'node:zlib';
import { toCtError } from '../core/errors.ts';
import { BlockPresence } from './block-presence.ts';
import { MAX_FRAME_BYTES, type ParsedFrame } from './frame-parser.ts';
import { SegmentFile } from './segment-file.ts';
import {
  encodeBlockHeader,
  firstHead,
  type IndexEntry,
  MAX_BLOCK_BYTES,
  MAX_SEGMENT_BLOCKS,
  MAX_SEGMENTS,
  nextHead,
} from './segment-format.ts';
import type { SegmentSummary } from './summary.ts';
import { AuditViolation } from './violation.ts';

const MIB = 1024 * 1024;

export interface AuditLimits {
  /** Frames of one block; at least one frame has to fit. */
  readonly blockBytes: number;
  /** A segment is closed when it has become as large as this. */
  readonly segmentBytes: number;
  /** A record that has become as large as this ends its run. */
  readonly runBytes: number;
  /** Records are in a file, for who follows the run, after this time. */
  readonly flushMs: number;
}

export const DEFAULT_AUDIT_LIMITS: AuditLimits = {
  blockBytes: MAX_BLOCK_BYTES,
  segmentBytes: 64 * MIB,
  runBytes: 2048 * MIB,
  flushMs: 250,
};

/** Heartbeats alone need not be in a file soon. */
const HEARTBEAT_FLUSH_MS = 10_000;
/** Blocks that are being compressed and written: more would only take memory, as there is one processor for all. */
const MAX_BLOCKS_UNDER_WAY = 2;
/** The fastest level: what it leaves is 6 to 10 bytes a call, and one processor has to chain and compress. */
const ZSTD_LEVEL = 1;

const compress = promisify(zstdCompress);

export interface WrittenRecord {
  /** Of the chain, in hex. */
  readonly head: string;
  readonly segments: readonly SegmentSummary[];
  readonly firstMs: number;
  readonly lastMs: number;
}

interface Block {
  readonly buffer: Buffer;
  readonly compressed: Promise<Buffer>;
  readonly bytes: number;
  readonly frames: number;
  readonly syscalls: number;
  readonly processRecords: number;
  readonly framesBefore: number;
  readonly firstMs: number;
  readonly lastMs: number;
  readonly headBefore: Buffer;
  readonly head: Buffer;
  readonly entry: IndexEntry;
}

export class AuditWriter {
  readonly #directory: string;
  readonly #run: string;
  readonly #limits: AuditLimits;
  readonly #failed = Promise.withResolvers<Error>();
  #failure: Error | undefined;
  #violation: AuditViolation | undefined;
  #head: Buffer;
  #buffer: Buffer;
  #used = 0;
  #blockHead: Buffer;
  #blockFrames = 0;
  #frames = 0;
  readonly #presence = new BlockPresence();
  #blockFirstMs = 0;
  #firstMs = 0;
  #lastMs = 0;
  #timer: NodeJS.Timeout | undefined;
  #isTimerShort = false;
  readonly #spare: Buffer[] = [];
  #underWay = 0;
  #onRoom = Promise.withResolvers<void>();
  #written: Promise<void>;
  #segment: SegmentFile | undefined;
  readonly #segments: SegmentSummary[] = [];
  #bytes = 0;

  /** `directory` is there, empty, and of nobody else. */
  constructor(directory: string, run: string, limits: AuditLimits = DEFAULT_AUDIT_LIMITS) {
    if (limits.blockBytes < MAX_FRAME_BYTES || limits.blockBytes > MAX_BLOCK_BYTES) {
      throw new RangeError(`blocks of ${limits.blockBytes} bytes`);
    }
    this.#directory = directory;
    this.#run = run;
    this.#limits = limits;
    this.#head = firstHead(run);
    this.#blockHead = this.#head;
    this.#buffer = this.#newBuffer();
    // The first segment says that there is a record, before anything is in it.
    this.#written = this.#guarded(() => this.#openSegment(this.#head, 0));
  }

  /** Resolves if the record cannot be kept any more; `append` then throws the same. */
  get failed(): Promise<Error> {
    return this.#failed.promise;
  }

  /** Adds a checked frame, which came at `nowMs`. Throws what {@link failed} resolves to. */
  append(frame: ParsedFrame, nowMs: number): void {
    const failure = this.#failure ?? this.#violation;
    if (failure) throw failure;
    const { bytes } = frame;
    if (this.#used + bytes.length > this.#limits.blockBytes) this.flush();
    this.#head = nextHead(this.#head, bytes);
    bytes.copy(this.#buffer, this.#used);
    this.#used += bytes.length;
    this.#frames += 1;
    if (this.#frames === 1) this.#firstMs = nowMs;
    this.#blockFrames += 1;
    if (this.#blockFrames === 1) this.#blockFirstMs = nowMs;
    this.#lastMs = nowMs;
    this.#presence.add(frame);
    this.#setTimer();
  }

  /** Resolves when there is room for what one read of the channel brings; at once, most of the time. */
  async ready(): Promise<void> {
    while (this.#underWay >= MAX_BLOCKS_UNDER_WAY && this.#failure === undefined) await this.#onRoom.promise;
  }

  /** Whether {@link ready} would wait. */
  get isFull(): boolean {
    return this.#underWay >= MAX_BLOCKS_UNDER_WAY && this.#failure === undefined;
  }

  /** Begins to write what has come so far. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#used === 0) return;
    const { frames, syscalls, processRecords } = this.#presence;
    const compressed = compress(this.#buffer.subarray(0, this.#used), {
      params: { [zlibConstants.ZSTD_c_compressionLevel]: ZSTD_LEVEL },
    });
    const block: Block = {
      buffer: this.#buffer,
      compressed,
      bytes: this.#used,
      frames,
      syscalls,
      processRecords,
      framesBefore: this.#frames - this.#blockFrames,
      firstMs: this.#blockFirstMs,
      lastMs: this.#lastMs,
      headBefore: this.#blockHead,
      head: this.#head,
      entry: this.#presence.take(0),
    };
    this.#blockHead = this.#head;
    this.#blockFrames = 0;
    this.#used = 0;
    this.#buffer = this.#spare.pop() ?? this.#newBuffer();
    this.#underWay += 1;
    compressed.catch(() => {}); // it is awaited when its turn comes
    this.#written = this.#written
      .then(() => this.#guarded(() => this.#write(block)))
      .then(() => {
        this.#underWay -= 1;
        this.#onRoom.resolve();
        this.#onRoom = Promise.withResolvers();
      });
  }

  /**
   * Ends the record: everything is on the disk when this resolves. Legal once. Throws what kept it from being written;
   * a record that became too large is whole, and complete up to its end.
   */
  async finish(): Promise<WrittenRecord> {
    this.flush();
    await this.#written;
    await this.#guarded(async () => {
      await this.#closeSegment();
      const directory = await open(this.#directory);
      await directory.sync().finally(() => directory.close());
    });
    if (this.#failure) throw this.#failure;
    return {
      head: this.#head.toString('hex'),
      segments: this.#segments,
      firstMs: this.#firstMs,
      lastMs: this.#lastMs,
    };
  }

  async #write(block: Block): Promise<void> {
    const compressed = await block.compressed;
    this.#spare.push(block.buffer);
    if (!this.#segment) await this.#openSegment(block.headBefore, block.framesBefore);
    const segment = this.#segment as SegmentFile;
    const { firstNs, lastNs } = block.entry;
    const header = encodeBlockHeader({
      bytes: block.bytes,
      compressedBytes: compressed.length,
      frames: block.frames,
      syscalls: block.syscalls,
      processRecords: block.processRecords,
      firstMs: block.firstMs,
      lastMs: block.lastMs,
      firstNs,
      lastNs,
      framesBefore: block.framesBefore,
      head: block.head,
    });
    await segment.addBlock(header, compressed, block.entry);
    if (segment.bytes >= this.#limits.segmentBytes || segment.blocks >= MAX_SEGMENT_BLOCKS) {
      await this.#closeSegment();
    }
    if (this.#bytes + (this.#segment?.bytes ?? 0) >= this.#limits.runBytes) this.#fill(this.#limits.runBytes);
    else if (this.#segments.length >= MAX_SEGMENTS - 2 * MAX_BLOCKS_UNDER_WAY) this.#fill(this.#bytes);
  }

  /** What is on its way still gets its place. */
  #fill(bytes: number): void {
    this.#violation ??= new AuditViolation('full', `the record has reached ${Math.floor(bytes / MIB)} MiB`);
    this.#failed.resolve(this.#violation);
  }

  async #openSegment(head: Buffer, framesBefore: number): Promise<void> {
    this.#segment = await SegmentFile.create(this.#directory, {
      segment: this.#segments.length,
      run: this.#run,
      head,
      framesBefore,
      startedMs: Date.now(),
    });
  }

  async #closeSegment(): Promise<void> {
    const segment = this.#segment;
    this.#segment = undefined;
    if (!segment) return;
    const summary = await segment.finish();
    this.#bytes += summary.bytes;
    this.#segments.push(summary);
  }

  /** After a failure nothing more is written: what follows a hole would look like a record. */
  async #guarded(write: () => Promise<void>): Promise<void> {
    try {
      if (this.#failure === undefined) await write();
    } catch (error) {
      this.#failure = toCtError(error);
      this.#failed.resolve(this.#failure);
      await this.#segment?.abandon().catch(() => {});
      this.#segment = undefined;
    }
  }

  #setTimer(): void {
    const isShort = this.#presence.hasRecords;
    if (this.#timer !== undefined && (this.#isTimerShort || !isShort)) return;
    clearTimeout(this.#timer);
    this.#isTimerShort = isShort;
    this.#timer = setTimeout(() => this.flush(), isShort ? this.#limits.flushMs : HEARTBEAT_FLUSH_MS);
  }

  #newBuffer(): Buffer {
    return Buffer.allocUnsafeSlow(this.#limits.blockBytes);
  }
}
