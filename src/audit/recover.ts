/**
 * A record whose writer was killed, made whole as far as it goes: the last segment, which has no end, is written again up to
 * its last complete block. What was complete stays as it is.
 */
import { createHash, hash } from 'node:crypto';
import { rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { AuditDamage } from './damage.ts';
import { SegmentFile } from './segment-file.ts';
import { BLOCK_HEADER_BYTES, segmentName } from './segment-format.ts';
import { SegmentReader, segmentsOf } from './segment-reader.ts';
import { RecordWalk } from './segment-walk.ts';
import type { AuditSummary, SegmentSummary } from './summary.ts';

/** Where the segment without an end lies while it is written again. */
const CUT_SEGMENT = 'cut';
const READ_BYTES = 1024 * 1024;

/**
 * Legal when nobody writes there any more. Throws {@link AuditDamage} where what is there is no record, and what keeps it from
 * being written.
 */
export async function recoverRecord(directory: string, run: string, cpus: number): Promise<AuditSummary> {
  const walk = new RecordWalk(run, cpus);
  const segments: SegmentSummary[] = [];
  const numbers = await segmentsOf(directory);
  for (const [index, number] of numbers.entries()) {
    if (number !== index) {
      throw new AuditDamage('segment-missing', { file: segmentName(index) }, 'the file is missing');
    }
    const isLast = index === numbers.length - 1;
    segments.push(await recoverSegment(directory, number, isLast, walk));
  }
  if (segments.length === 0) {
    throw new AuditDamage('segment-missing', { file: segmentName(0) }, 'the file is missing');
  }
  const message = 'whoever kept the record was killed while the job was running';
  return {
    head: walk.head.toString('hex'),
    counts: walk.parser.counts,
    segments,
    firstMs: walk.firstMs,
    lastMs: walk.lastMs,
    violation: { reason: 'interrupted', message },
  };
}

async function recoverSegment(
  directory: string,
  number: number,
  isLast: boolean,
  walk: RecordWalk,
): Promise<SegmentSummary> {
  const reader = await SegmentReader.open(directory, number);
  if (!reader) throw new AuditDamage('segment-missing', { file: segmentName(number) }, 'the file is missing');
  await using _closed = reader;
  const { isEnded, end, entries } = await walk.segment(reader, number);
  if (isEnded) return summaryOf(reader);
  if (!isLast) {
    const place = { file: reader.name, from: end, to: await reader.size() };
    throw new AuditDamage('truncated', place, 'the segment has no end, and is not the last one');
  }
  await rename(join(directory, reader.name), join(directory, CUT_SEGMENT));
  const again = await SegmentFile.create(directory, await reader.header());
  for (const [index, entry] of entries.entries()) {
    const { offset } = entry;
    const bytes = await reader.bytes(offset, (entries[index + 1]?.offset ?? end) - offset);
    await again.addBlock(bytes.subarray(0, BLOCK_HEADER_BYTES), bytes.subarray(BLOCK_HEADER_BYTES), entry);
  }
  const summary = await again.finish();
  await rm(join(directory, CUT_SEGMENT));
  return summary;
}

/** Of a segment that was walked through to its end. */
async function summaryOf(reader: SegmentReader): Promise<SegmentSummary> {
  const trailer = await reader.trailer();
  if (!trailer) throw reader.damage(0, 'the segment has no end');
  const bytes = await reader.size();
  const whole = createHash('sha256');
  for (let at = 0; at < bytes; at += READ_BYTES) {
    whole.update(await reader.bytes(at, Math.min(READ_BYTES, bytes - at)));
  }
  return {
    bytes,
    bodyBytes: trailer.sumsOffset,
    sha256: whole.digest('hex'),
    sumsSha256: hash('sha256', await reader.sums(trailer), 'hex'),
  };
}
