/**
 * Finds the first byte of a segment that is not what was sealed. The seal has digests of the file and of the sums in it;
 * the sums have a digest of every piece. So the piece is known, and within it a byte that was changed alone is found by
 * trying: the piece has its digest again when the byte is put back.
 */
import { createHash, hash } from 'node:crypto';
import { AuditDamage } from './damage.ts';
import { PieceSums, sumOf } from './piece-sums.ts';
import { encodeTrailer, PIECE_BYTES, SUM_BYTES, sumsBytes } from './segment-format.ts';
import type { SegmentReader } from './segment-reader.ts';
import type { SegmentSummary } from './summary.ts';

const READ_BYTES = 1024 * 1024;

export interface FileDigests {
  readonly bytes: number;
  readonly sha256: string;
  /** Of the first bytes that are sealed. */
  readonly prefixSha256: string;
  /** Computed over what lies where the body is sealed to be. */
  readonly sums: Buffer;
}

/** Reads the whole file. */
export async function digestsOf(reader: SegmentReader, sealed: SegmentSummary): Promise<FileDigests> {
  const bytes = await reader.size();
  const whole = createHash('sha256');
  const prefix = createHash('sha256');
  const sums = new PieceSums();
  for (let at = 0; at < bytes; at += READ_BYTES) {
    const chunk = await reader.bytes(at, Math.min(READ_BYTES, bytes - at));
    whole.update(chunk);
    if (at < sealed.bytes) prefix.update(chunk.subarray(0, sealed.bytes - at));
    if (at < sealed.bodyBytes) sums.add(chunk.subarray(0, sealed.bodyBytes - at));
  }
  return {
    bytes,
    sha256: whole.digest('hex'),
    prefixSha256: prefix.digest('hex'),
    sums: sums.end(),
  };
}

/**
 * What was done to a file that has not the digest it was sealed with; undefined if the sums do not tell. `indexOffset`: of
 * the file as it is, if it can be walked through.
 */
export async function locate(
  reader: SegmentReader,
  sealed: SegmentSummary,
  found: FileDigests,
  indexOffset: number | undefined,
): Promise<AuditDamage | undefined> {
  const place = (from: number, to = from + 1) => ({ file: reader.name, from, to });
  if (found.bytes > sealed.bytes && found.prefixSha256 === sealed.sha256) {
    const spare = found.bytes - sealed.bytes;
    return new AuditDamage('extended', place(sealed.bytes), `${spare} bytes were appended`);
  }
  if (found.bytes < sealed.bodyBytes + sumsBytes(sealed.bodyBytes)) return undefined;
  const sums = await reader.sums({ sumsOffset: sealed.bodyBytes });
  const isBodyWhole = hash('sha256', found.sums, 'hex') === sealed.sumsSha256;
  if (isBodyWhole) {
    const rest = await reader.bytes(sealed.bodyBytes, sealed.bytes - sealed.bodyBytes);
    const trailer = encodeTrailer({ indexOffset: indexOffset ?? 0, sumsOffset: sealed.bodyBytes });
    const wanted = Buffer.concat([found.sums, trailer]);
    const at = firstDifference(rest, wanted);
    if (at === rest.length && rest.length < wanted.length) return missing(reader, sealed, found);
    return new AuditDamage('changed', place(sealed.bodyBytes + at), 'it is not what was written');
  }
  if (hash('sha256', sums, 'hex') !== sealed.sumsSha256) return undefined;
  const piece = Math.floor(firstDifference(found.sums, sums) / SUM_BYTES);
  const from = piece * PIECE_BYTES;
  const bytes = await reader.bytes(from, Math.min(PIECE_BYTES, sealed.bodyBytes - from));
  const wanted = sums.subarray(piece * SUM_BYTES, (piece + 1) * SUM_BYTES);
  const at = changedByte(bytes, wanted);
  return at === undefined
    ? new AuditDamage('changed', place(from, from + bytes.length), 'it is not what was written')
    : new AuditDamage(
        'changed',
        place(from + at.offset),
        `it is 0x${hex(at.is)}, and 0x${hex(at.was)} was written`,
      );
}

/** The end is gone; what is there has been proved to be as it was. */
export function missing(reader: SegmentReader, sealed: SegmentSummary, found: FileDigests): AuditDamage {
  return new AuditDamage(
    'truncated',
    { file: reader.name, from: found.bytes, to: found.bytes + 1 },
    `the file ends here; ${sealed.bytes - found.bytes} bytes are missing`,
  );
}

function firstDifference(a: Buffer, b: Buffer): number {
  const length = Math.min(a.length, b.length);
  for (let at = 0; at < length; at += 1) if (a[at] !== b[at]) return at;
  return length;
}

/** First every bit (8,192 digests), then every byte (261,120): about a second. */
function changedByte(piece: Buffer, wanted: Buffer): { offset: number; is: number; was: number } | undefined {
  const isWanted = (): boolean => sumOf(piece).equals(wanted);
  const bits = [1, 2, 4, 8, 16, 32, 64, 128];
  const others = Array.from({ length: 255 }, (_, index) => index + 1).filter((mask) => !bits.includes(mask));
  for (const masks of [bits, others]) {
    for (let offset = 0; offset < piece.length; offset += 1) {
      const is = piece[offset] as number;
      for (const mask of masks) {
        piece[offset] = is ^ mask;
        if (isWanted()) return { offset, is, was: is ^ mask };
      }
      piece[offset] = is;
    }
  }
  return undefined;
}

function hex(byte: number): string {
  return byte.toString(16).padStart(2, '0');
}
