/**
 * Goes through a segment from its first byte to its last and checks all that it says about itself: numbers, chain, the
 * frames, and that header, index and sums are those that the frames give.
 */
import { BlockPresence } from './block-presence.ts';
import { AuditDamage } from './damage.ts';
import { FrameParser, type ParsedFrame } from './frame-parser.ts';
import { PieceSums } from './piece-sums.ts';
import {
  BLOCK_HEADER_BYTES,
  type BlockHeader,
  encodeIndex,
  encodeTrailer,
  firstHead,
  type IndexEntry,
  nextHead,
  SEGMENT_HEADER_BYTES,
} from './segment-format.ts';
import type { SegmentReader, StoredBlock } from './segment-reader.ts';
import { AuditViolation } from './violation.ts';

const READ_BYTES = 1024 * 1024;

export interface WalkedSegment {
  readonly isEnded: boolean;
  readonly end: number;
  readonly entries: readonly IndexEntry[];
}

/** What has been walked through, over all segments. */
export class RecordWalk {
  readonly parser: FrameParser;
  head: Buffer;
  firstMs = 0;
  lastMs = 0;
  readonly #run: string;
  readonly #presence = new BlockPresence();

  constructor(run: string, cpus: number) {
    this.#run = run;
    this.head = firstHead(run);
    this.parser = new FrameParser(cpus, (frame) => this.#frame(frame));
  }

  /**
   * Walks through the next segment. Returns whether it was ended: if not, its writer was killed, and `end` is where that
   * left it. `entries`: of the index that belongs to its blocks. Throws {@link AuditDamage} at the first thing that is not as it has to be.
   */
  async segment(reader: SegmentReader, number: number): Promise<WalkedSegment> {
    await this.#header(reader, number);
    const entries: IndexEntry[] = [];
    for (let at = SEGMENT_HEADER_BYTES; ; ) {
      const block = await reader.block(at);
      if (block === undefined) return { isEnded: false, end: at, entries };
      if (block === 'index') {
        await this.#tail(reader, at, entries);
        return { isEnded: true, end: at, entries };
      }
      entries.push(await this.#block(reader, block));
      at = block.end;
    }
  }

  async #header(reader: SegmentReader, number: number): Promise<void> {
    const header = await reader.header();
    if (header.run !== this.#run) {
      throw new AuditDamage(
        'segment-foreign',
        { file: reader.name, from: 16, to: 48 },
        `it is of the run ${header.run}`,
      );
    }
    if (header.segment !== number) {
      const message = `it is segment ${header.segment}, where ${number} belongs`;
      throw new AuditDamage('segment-moved', { file: reader.name, from: 8, to: 12 }, message);
    }
    if (!header.head.equals(this.head)) {
      throw reader.damage(48, 'it does not continue the chain of the segment before it', 80);
    }
    if (header.framesBefore !== this.parser.counts.frames) {
      throw reader.damage(80, 'it does not count the frames before it', 88);
    }
  }

  async #block(reader: SegmentReader, block: StoredBlock): Promise<IndexEntry> {
    const { header, offset, end } = block;
    const at = (field: number): number => offset + field;
    const before = this.parser.counts.frames;
    if (header.framesBefore !== before)
      throw reader.damage(at(56), 'it does not count the frames before it', at(64));
    const frames = await reader.frames(block);
    try {
      this.parser.push(frames);
      this.parser.end();
    } catch (error) {
      if (!(error instanceof AuditViolation)) throw error;
      throw reader.damage(
        at(BLOCK_HEADER_BYTES),
        `its frames are not those of a record: ${error.message}`,
        end,
        error,
      );
    }
    if (!header.head.equals(this.head)) {
      throw reader.damage(at(64), 'the frames of a block do not give the head of its chain', end);
    }
    const { frames: count, syscalls, processRecords } = this.#presence;
    const entry = this.#presence.take(offset);
    const wanted: [keyof BlockHeader, number, number][] = [
      ['frames', count, 12],
      ['syscalls', syscalls, 16],
      ['processRecords', processRecords, 20],
      ['firstNs', entry.firstNs, 40],
      ['lastNs', entry.lastNs, 48],
    ];
    for (const [field, value, where] of wanted) {
      if (header[field] !== value) throw reader.damage(at(where), 'a block does not count what is in it');
    }
    if (header.firstMs > header.lastMs) throw reader.damage(at(24), 'a block ended before it began', at(40));
    if (before === 0) this.firstMs = header.firstMs;
    this.lastMs = header.lastMs;
    return entry;
  }

  /** Index, sums and trailer follow from what comes before them. */
  async #tail(reader: SegmentReader, indexOffset: number, entries: readonly IndexEntry[]): Promise<void> {
    const index = encodeIndex(entries);
    const sums = new PieceSums();
    for (let at = 0; at < indexOffset; at += READ_BYTES) {
      sums.add(await reader.bytes(at, Math.min(READ_BYTES, indexOffset - at)));
    }
    sums.add(index);
    const sumsOffset = indexOffset + index.length;
    const wanted = Buffer.concat([index, sums.end(), encodeTrailer({ indexOffset, sumsOffset })]);
    const found = await reader.bytes(indexOffset, wanted.length + 1);
    for (let at = 0; at < wanted.length; at += 1) {
      if (at === found.length) {
        const place = { file: reader.name, from: indexOffset + at, to: indexOffset + at + 1 };
        throw new AuditDamage('truncated', place, 'the file ends here, within its index or sums');
      }
      if (found[at] !== wanted[at]) {
        throw reader.damage(indexOffset + at, 'index, sums and trailer are not those of its blocks');
      }
    }
    if (found.length > wanted.length) {
      const place = { file: reader.name, from: indexOffset + wanted.length };
      throw new AuditDamage(
        'extended',
        { ...place, to: place.from + 1 },
        'bytes follow the end of the segment',
      );
    }
  }

  #frame(frame: ParsedFrame): void {
    this.head = nextHead(this.head, frame.bytes);
    this.#presence.add(frame);
  }
}

/** Where the index of a file begins, going from block to block; undefined if that leads nowhere. */
export async function indexOffsetOf(reader: SegmentReader): Promise<number | undefined> {
  try {
    for (let at = SEGMENT_HEADER_BYTES; ; ) {
      const block = await reader.block(at);
      if (block === 'index') return at;
      if (block === undefined) return undefined;
      at = block.end;
    }
  } catch (error) {
    if (error instanceof AuditDamage) return undefined;
    throw error;
  }
}
