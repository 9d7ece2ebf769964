/**
 * Proves that a stored record is what was sealed, and complete; or says what is wrong, and where.
 *
 * Two things are checked that an attacker cannot both keep: the digests of all files are those of the signed seal, and the
 * frames in them give the head of the chain, the counts and the order that the seal has. The first tells any later change to
 * the byte; the second, that what was sealed is a record without gaps.
 */
import { hash } from 'node:crypto';
import { AuditDamage, type DamageKind, type DamagePlace } from './damage.ts';
import { MAX_CPUS } from './frame-parser.ts';
import type { SealTrust } from './host-key.ts';
import { digestsOf, type FileDigests, locate, missing } from './locate.ts';
import { type AuditSeal, readSeal, verifySeal } from './seal.ts';
import { segmentName } from './segment-format.ts';
import { SegmentReader, segmentsOf } from './segment-reader.ts';
import { indexOffsetOf, RecordWalk } from './segment-walk.ts';
import type { AuditSummary, SegmentSummary } from './summary.ts';

/** Why a record that nobody changed is not a whole one. */
export type IncompleteKind =
  /** No seal: the host daemon was killed, or somebody removed it. Nobody vouches for the files. */
  | 'seal-missing'
  /** The seal itself says that the record ends before the run did. */
  | 'violation';

export type AuditVerdict =
  | { readonly status: 'proved'; readonly seal: AuditSeal }
  | {
      readonly status: 'tampered';
      readonly damage: DamageKind;
      readonly place: DamagePlace;
      readonly message: string;
    }
  | {
      readonly status: 'incomplete';
      readonly reason: IncompleteKind;
      readonly message: string;
      /** Absent without one. */
      readonly seal?: AuditSeal;
      /** Frames that are there, in order and unbroken from the first. */
      readonly frames: number;
    };

export interface VerifyAuditOptions {
  readonly directory: string;
  readonly run: string;
  readonly trust: SealTrust;
  readonly now: Date;
}

/** Throws AUDIT_NOT_FOUND if there is nothing, and errors of the file system. */
export async function verifyAudit({ directory, run, trust, now }: VerifyAuditOptions): Promise<AuditVerdict> {
  const segments = await segmentsOf(directory);
  try {
    const bundle = await readSeal(directory);
    if (bundle === undefined) return await verifyUnsealed(directory, run, segments);
    const seal = verifySeal(bundle, run, trust, now);
    await checkFiles(directory, seal, segments);
    await checkContent(directory, seal);
    const { violation, counts } = seal.record;
    if (violation === undefined) return { status: 'proved', seal };
    const message = `the record is as it was sealed, but ends before the run did: ${violation.message}`;
    return { status: 'incomplete', reason: 'violation', message, seal, frames: counts.frames };
  } catch (error) {
    if (!(error instanceof AuditDamage)) throw error;
    const { damage, place, message } = error;
    return { status: 'tampered', damage, place, message };
  }
}

/** Every file is, byte by byte, what was sealed. */
async function checkFiles(directory: string, seal: AuditSeal, present: readonly number[]): Promise<void> {
  const { segments } = seal.record;
  const walk = walkOf(seal);
  for (const [number, sealed] of segments.entries()) {
    const reader = await SegmentReader.open(directory, number);
    if (!reader) {
      throw new AuditDamage('segment-missing', { file: segmentName(number) }, 'the file is missing');
    }
    await using _closed = reader;
    const found = await digestsOf(reader, sealed);
    if (found.sha256 === sealed.sha256) {
      const isDescribed =
        found.bytes === sealed.bytes && hash('sha256', found.sums, 'hex') === sealed.sumsSha256;
      if (isDescribed) continue;
      const message = `its description of ${reader.name} is not that of the file`;
      throw new AuditDamage('contradiction', { file: 'seal.json' }, message);
    }
    throw await explain({
      reader,
      number,
      found,
      sealed,
      segments,
      walk: () => walkTo(directory, number, walk),
    });
  }
  const extra = present.find((number) => number >= segments.length);
  if (extra !== undefined) {
    const message = `the record has ${segments.length} segments, and this is none of them`;
    throw new AuditDamage('segment-extra', { file: segmentName(extra) }, message);
  }
}

interface Suspect {
  readonly reader: SegmentReader;
  readonly number: number;
  readonly found: FileDigests;
  readonly sealed: SegmentSummary;
  readonly segments: readonly SegmentSummary[];
  /** Goes through the record up to and with this segment. */
  readonly walk: () => Promise<AuditDamage | undefined>;
}

/** What was done to a file that is not what was sealed; from the plainest to what can only be narrowed down. */
async function explain(suspect: Suspect): Promise<AuditDamage> {
  const { reader, number, found, sealed, segments, walk } = suspect;
  const other = segments.findIndex(({ sha256 }) => sha256 === found.sha256);
  if (other !== -1) {
    const message = `it is segment ${other}, where ${number} belongs`;
    return new AuditDamage('segment-moved', { file: reader.name }, message);
  }
  const located = await locate(reader, sealed, found, await indexOffsetOf(reader));
  if (located && (located.damage !== 'changed' || spanOf(located.place) === 1)) return located;
  const walked = await walk();
  if (walked?.damage === 'segment-foreign' || walked?.damage === 'segment-moved') return walked;
  if (located) return located;
  if (found.bytes < sealed.bytes) {
    return walked && walked.damage !== 'truncated' ? walked : missing(reader, sealed, found);
  }
  const place = { file: reader.name, from: 0, to: found.bytes };
  return walked ?? new AuditDamage('changed', place, 'it is not what was written');
}

function spanOf({ from, to }: DamagePlace): number {
  return from === undefined || to === undefined ? Number.POSITIVE_INFINITY : to - from;
}

async function walkTo(directory: string, last: number, walk: RecordWalk): Promise<AuditDamage | undefined> {
  try {
    for (let number = 0; number <= last; number += 1) {
      const reader = await SegmentReader.open(directory, number);
      if (!reader) return undefined;
      await using _closed = reader;
      await walk.segment(reader, number);
    }
  } catch (error) {
    if (error instanceof AuditDamage) return error;
    throw error;
  }
  return undefined;
}

/** What the files hold is what the seal says they hold. */
async function checkContent(directory: string, seal: AuditSeal): Promise<void> {
  const walk = walkOf(seal);
  const damage = await walkTo(directory, seal.record.segments.length - 1, walk);
  const contradiction = (message: string, place: DamagePlace = { file: 'seal.json' }): AuditDamage =>
    new AuditDamage('contradiction', place, message);
  if (damage) throw contradiction(`what was sealed is no record: ${damage.message}`, damage.place);
  const found: Pick<AuditSummary, 'head' | 'counts' | 'firstMs' | 'lastMs'> = {
    head: walk.head.toString('hex'),
    counts: walk.parser.counts,
    firstMs: walk.firstMs,
    lastMs: walk.lastMs,
  };
  for (const field of ['head', 'counts', 'firstMs', 'lastMs'] as const) {
    if (JSON.stringify(found[field]) !== JSON.stringify(seal.record[field])) {
      throw contradiction(`its ${field} is not that of the files`);
    }
  }
}

function walkOf({ run, record }: AuditSeal): RecordWalk {
  return new RecordWalk(run, record.counts.cpus.length);
}

async function verifyUnsealed(
  directory: string,
  run: string,
  segments: readonly number[],
): Promise<AuditVerdict> {
  const walk = new RecordWalk(run, MAX_CPUS);
  let end = '';
  for (const [index, number] of segments.entries()) {
    if (number !== index) {
      throw new AuditDamage('segment-missing', { file: segmentName(index) }, 'the file is missing');
    }
    const reader = await SegmentReader.open(directory, number);
    if (!reader)
      throw new AuditDamage('segment-missing', { file: segmentName(index) }, 'the file is missing');
    await using _closed = reader;
    const walked = await walk.segment(reader, number);
    if (walked.isEnded) continue;
    if (index < segments.length - 1) {
      const place = { file: reader.name, from: walked.end, to: await reader.size() };
      throw new AuditDamage('truncated', place, 'the segment has no end, and is not the last one');
    }
    end = `, up to ${reader.name}, byte ${walked.end}`;
  }
  const { frames } = walk.parser.counts;
  return {
    status: 'incomplete',
    reason: 'seal-missing',
    message: `the record has no seal, so nothing vouches for it; the chain holds for its ${frames} frames${end}`,
    frames,
  };
}
