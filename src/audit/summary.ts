/**
 * What the writer of a record says about it when the run ends. It comes from a link process, whose guest may have taken
 * it over: the host daemon takes it in through {@link parseAuditSummary}, and seals it.
 */
import type { AuditCounts, CpuCounts } from './frame-parser.ts';
import { MAX_CPUS } from './frame-parser.ts';
import { MAX_SEGMENT_FILE_BYTES, MAX_SEGMENTS } from './segment-format.ts';
import { AUDIT_VIOLATION_REASONS, type AuditViolationReason } from './violation.ts';

export interface SegmentSummary {
  readonly bytes: number;
  /** Before the sums. */
  readonly bodyBytes: number;
  /** Of the whole file, in hex. */
  readonly sha256: string;
  /** Of the sums in it, in hex. */
  readonly sumsSha256: string;
}

export interface AuditSummary {
  /** Head of the chain, in hex. */
  readonly head: string;
  readonly counts: AuditCounts;
  readonly segments: readonly SegmentSummary[];
  /** When the first and the last frame came, ms since 1970, by the host's clock; 0 if none came. */
  readonly firstMs: number;
  readonly lastMs: number;
  /** Why the record ends before the run, if it does. */
  readonly violation?: { readonly reason: AuditViolationReason; readonly message: string };
}

export const MAX_MESSAGE_LENGTH = 500;

/** Reads a summary that somebody else wrote. Throws RangeError, with what is wrong. */
export function parseAuditSummary(value: unknown): AuditSummary {
  const summary = objectOf(value, 'the summary');
  const { segments, violation } = summary;
  if (!Array.isArray(segments) || segments.length === 0 || segments.length > MAX_SEGMENTS) {
    throw new RangeError('the segments are none or too many');
  }
  return {
    head: hexOf(summary['head'], 'the head'),
    counts: parseCounts(summary['counts']),
    segments: segments.map(parseSegment),
    firstMs: countOf(summary['firstMs'], 'firstMs'),
    lastMs: countOf(summary['lastMs'], 'lastMs'),
    ...(violation === undefined ? {} : { violation: parseViolation(violation) }),
  };
}

function parseCounts(value: unknown): AuditCounts {
  const counts = objectOf(value, 'the counts');
  const cpus = counts['cpus'];
  if (!Array.isArray(cpus) || cpus.length === 0 || cpus.length > MAX_CPUS) {
    throw new RangeError('the processors are none or too many');
  }
  const count = (name: string): number => countOf(counts[name], name);
  return {
    frames: count('frames'),
    bytes: count('bytes'),
    cpus: cpus.map((each, index): CpuCounts => {
      const cpu = objectOf(each, `processor ${index}`);
      return {
        frames: countOf(cpu['frames'], 'frames'),
        records: countOf(cpu['records'], 'records'),
        backwards: countOf(cpu['backwards'], 'backwards'),
      };
    }),
    processFrames: count('processFrames'),
    processRecords: count('processRecords'),
    heartbeats: count('heartbeats'),
    firstNs: count('firstNs'),
    lastNs: count('lastNs'),
  };
}

function parseSegment(value: unknown, index: number): SegmentSummary {
  const segment = objectOf(value, `segment ${index}`);
  const bytes = countOf(segment['bytes'], 'bytes');
  if (bytes > MAX_SEGMENT_FILE_BYTES) throw new RangeError(`segment ${index} is too large`);
  return {
    bytes,
    bodyBytes: countOf(segment['bodyBytes'], 'bodyBytes'),
    sha256: hexOf(segment['sha256'], 'sha256'),
    sumsSha256: hexOf(segment['sumsSha256'], 'sumsSha256'),
  };
}

function parseViolation(value: unknown): NonNullable<AuditSummary['violation']> {
  const { reason, message } = objectOf(value, 'the violation');
  if (typeof reason !== 'string' || !AUDIT_VIOLATION_REASONS.includes(reason))
    throw new RangeError('the violation has no reason');
  if (typeof message !== 'string' || message.length > MAX_MESSAGE_LENGTH) {
    throw new RangeError('the violation has no short message');
  }
  return { reason: reason as AuditViolationReason, message };
}

function objectOf(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new RangeError(`${what} is no object`);
  return value as Record<string, unknown>;
}

function countOf(value: unknown, what: string): number {
  if (!Number.isSafeInteger(value) || (value as number) < 0) throw new RangeError(`${what} is no count`);
  return value as number;
}

function hexOf(value: unknown, what: string): string {
  if (typeof value !== 'string' || !/^[0-9a-f]{64}$/.test(value))
    throw new RangeError(`${what} is no digest`);
  return value;
}
