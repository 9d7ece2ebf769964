/**
 * Reads a stored record, event by event and one block at a time. It skips blocks of which index or header say that nothing
 * in them is asked for. It checks what it needs to read on, not that nothing was changed: that is what verify.ts is for.
 */
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { CtError } from '../core/errors.ts';
import { AUDIT_FRAME_BYTES, AUDIT_MAGIC, AuditFrame, ProcessRecord } from '../protocol/audit.ts';
import { sealingDirectory } from './places.ts';
import { type AuditEvent, decodeProcesses, decodeSyscalls } from './records.ts';
import { COMPAT_CODE, type IndexEntry, IndexFlag, SEGMENT_HEADER_BYTES } from './segment-format.ts';
import { SegmentReader, type StoredBlock, segmentsOf } from './segment-reader.ts';

/** How often a follower looks whether there is more. */
const FOLLOW_MS = 100;
/** Moving the segments and signing take milliseconds; what a daemon left that was killed meanwhile stays until the next one. */
const SEALING_TIMEOUT_MS = 2000;
const SEALING_POLL_MS = 10;
/** Blocks whose arrival tells how far apart the clocks of guest and host are. */
const CLOCK_BLOCKS = 16;
/** clone, fork, vfork and clone3 of x86-64, and of i386: calls that return the number of something new. */
const CLONE_CODES: readonly number[] = [
  56,
  57,
  58,
  435,
  ...[120, 2, 190, 435].map((code) => code + COMPAT_CODE),
];

export type AuditKind = AuditEvent['kind'];

/** What is asked for; everything that is given has to fit. */
export interface AuditFilter {
  readonly kinds?: ReadonlySet<AuditKind>;
  /** System calls by {@link syscallCode}; leaves all other kinds of events out. */
  readonly syscalls?: ReadonlySet<number>;
  /** Number of a process: what it and its threads did. Numbers come again in long runs. */
  readonly process?: number;
  /** Times of the guest's clock in nanoseconds, both included. */
  readonly sinceNs?: bigint;
  readonly untilNs?: bigint;
}

/** One number for a system call of either table. */
export function syscallCode(number: number, isCompat: boolean): number {
  return isCompat ? number + COMPAT_CODE : number;
}

/**
 * The events of a record, in the order in which they came to the host: that of each CPU's system calls and that of the
 * process records, but not of one among the other. At the end `ended` is asked whether more can come: while it says no,
 * this waits for more. A record whose writer was killed ends where that left it. Throws AUDIT_NOT_FOUND, AUDIT_TAMPERED
 * where it cannot be read on, and GUEST_PROTOCOL where what was stored is no record.
 */
export async function* readAudit(
  directory: string,
  filter: AuditFilter = {},
  ended: () => boolean | Promise<boolean> = () => true,
): AsyncGenerator<AuditEvent> {
  const wanted = await selection(directory, filter);
  for await (const frames of readBlocks(directory, wanted, ended)) {
    for (const event of eventsOf(frames, wanted)) {
      if (fits(event, wanted)) yield event;
    }
  }
}

/**
 * Nanoseconds since 1970 when the guest's clock was 0, by when its first records came to the host: a fraction of a second
 * too much at most. Undefined while there are none. Throws as {@link readAudit}.
 */
export async function guestClockOffsetNs(directory: string): Promise<bigint | undefined> {
  let least: bigint | undefined;
  let looked = 0;
  for (const number of await settledSegments(directory)) {
    const reader = await SegmentReader.open(directory, number);
    if (!reader) break;
    await using _closed = reader;
    for (let at = SEGMENT_HEADER_BYTES; looked < CLOCK_BLOCKS; looked += 1) {
      const block = await reader.block(at);
      if (block === undefined || block === 'index') break;
      at = block.end;
      const { lastMs, lastNs } = block.header;
      if (lastNs === 0) continue;
      const offset = BigInt(lastMs) * 1_000_000n - BigInt(lastNs);
      if (least === undefined || offset < least) least = offset;
    }
    if (looked >= CLOCK_BLOCKS) break;
  }
  return least;
}

/** A filter as it is applied. */
interface Selection extends AuditFilter {
  readonly wantsSyscalls: boolean;
  readonly wantsProcesses: boolean;
  /** Of the process that is asked for. */
  readonly threads?: ReadonlySet<number>;
}

async function selection(directory: string, filter: AuditFilter): Promise<Selection> {
  const { kinds, syscalls, process } = filter;
  const wantsSyscalls = kinds === undefined || kinds.has('syscall');
  const wantsProcesses =
    syscalls === undefined && (kinds === undefined || [...kinds].some((kind) => kind !== 'syscall'));
  const wanted = { ...filter, wantsSyscalls, wantsProcesses };
  if (process === undefined || !wantsSyscalls) return wanted;
  return { ...wanted, threads: await threadsOf(directory, process) };
}

/** Threads of a process: those that process records name, and what it cloned and was not forked as a process. */
async function threadsOf(directory: string, process: number): Promise<ReadonlySet<number>> {
  const threads = new Set([process]);
  const processes = new Set<number>();
  const wanted: Selection = { wantsSyscalls: true, wantsProcesses: true, syscalls: new Set(CLONE_CODES) };
  for await (const frames of readBlocks(directory, { ...wanted, wantsSyscalls: false }, () => true, true)) {
    for (const event of eventsOf(frames, wanted)) {
      if (event.kind === 'syscall') {
        if (event.result > 0n && threads.has(event.thread) && fits(event, wanted))
          threads.add(Number(event.result));
      } else {
        if (event.process.pid === process) threads.add(event.thread);
        if (event.kind === 'fork') processes.add(event.child.pid);
      }
    }
  }
  for (const thread of threads) if (thread !== process && processes.has(thread)) threads.delete(thread);
  return threads;
}

function fits(event: AuditEvent, wanted: Selection): boolean {
  const { kinds, syscalls, process, threads, sinceNs, untilNs } = wanted;
  if (kinds !== undefined && !kinds.has(event.kind)) return false;
  if (event.kind === 'syscall') {
    if (syscalls !== undefined && !syscalls.has(syscallCode(event.number, event.isCompat))) return false;
    if (threads !== undefined && !threads.has(event.thread)) return false;
  } else if (process !== undefined && event.process.pid !== process) {
    return false;
  }
  return (
    (sinceNs === undefined || event.timeNs >= sinceNs) && (untilNs === undefined || event.timeNs <= untilNs)
  );
}

function* eventsOf(frames: Buffer, wanted: Selection): Generator<AuditEvent> {
  for (let at = 0; at < frames.length; ) {
    if (frames.length - at < AUDIT_FRAME_BYTES || frames.readUInt32LE(at) !== AUDIT_MAGIC) throw notAFrame();
    const end = at + AUDIT_FRAME_BYTES + frames.readUInt32LE(at + 20);
    if (end > frames.length) throw notAFrame();
    const type = frames.readUInt8(at + 4);
    const cpu = frames.readUInt16LE(at + 6);
    const origin = {
      cpu,
      first: Number(frames.readBigUInt64LE(at + 8)),
      records: frames.readUInt32LE(at + 16),
    };
    const payload = frames.subarray(at + AUDIT_FRAME_BYTES, end);
    if (type === AuditFrame.syscalls && wanted.wantsSyscalls) yield* decodeSyscalls(payload, origin);
    if (type === AuditFrame.processes && wanted.wantsProcesses) yield* decodeProcesses(payload, origin);
    at = end;
  }
}

function notAFrame(): CtError {
  return new CtError('GUEST_PROTOCOL', 'audit: what is stored are no frames');
}

/** The frames of every block that may hold something that is asked for. */
async function* readBlocks(
  directory: string,
  wanted: Selection,
  ended: () => boolean | Promise<boolean>,
  withClones = false,
): AsyncGenerator<Buffer> {
  if ((await settledSegments(directory)).length === 0 && (await ended())) {
    throw new CtError('AUDIT_NOT_FOUND', 'there is no audit record: its directory is empty');
  }
  for (let number = 0, isLast = false, isSettled = false; ; ) {
    const reader = await SegmentReader.open(directory, number);
    if (reader) {
      await using _closed = reader;
      const isEnded = yield* readSegment(reader, wanted, withClones, async () => {
        if (isLast) return true;
        isLast = await ended();
        if (!isLast) await sleep(FOLLOW_MS);
        return false;
      });
      if (!isEnded) return;
      number += 1;
      continue;
    }
    if (isLast && isSettled) return;
    if (isLast) {
      isSettled = true;
      await settled(directory);
      continue;
    }
    isLast = await ended();
    if (!isLast) await sleep(FOLLOW_MS);
  }
}

/** Waits while the segments of a record are elsewhere, because it is being sealed (places.ts). */
async function settled(directory: string): Promise<void> {
  const deadline = performance.now() + SEALING_TIMEOUT_MS;
  while (existsSync(sealingDirectory(directory)) && performance.now() < deadline)
    await sleep(SEALING_POLL_MS);
}

/** As {@link segmentsOf}; of a record that is being sealed, once that is over. */
async function settledSegments(directory: string): Promise<number[]> {
  const numbers = await segmentsOf(directory).catch(() => []);
  if (numbers[0] === 0) return numbers;
  await settled(directory);
  return segmentsOf(directory);
}

/** Returns false if `complete` said that nothing more will come, and the segment has no end. */
async function* readSegment(
  reader: SegmentReader,
  wanted: Selection,
  withClones: boolean,
  complete: () => Promise<boolean>,
): AsyncGenerator<Buffer, boolean> {
  await reader.header();
  const trailer = await reader.trailer();
  if (trailer) {
    for (const entry of await reader.index(trailer)) {
      if (!mayHave(entry, wanted, withClones)) continue;
      const block = await reader.block(entry.offset);
      if (block === undefined || block === 'index')
        throw reader.damage(entry.offset, 'the index names no block here');
      yield await reader.frames(block);
    }
    return true;
  }
  for (let at = SEGMENT_HEADER_BYTES; ; ) {
    const block = await reader.block(at);
    if (block === 'index') return true;
    if (block === undefined) {
      if (await complete()) return false;
      continue;
    }
    if (headerMayHave(block, wanted, withClones)) yield await reader.frames(block);
    at = block.end;
  }
}

function mayHave(entry: IndexEntry, wanted: Selection, withClones: boolean): boolean {
  const { kinds, syscalls, flags, threads } = entry;
  if (!isInTime(entry, wanted)) return false;
  const hasManySyscalls = (flags & IndexFlag.manySyscalls) !== 0;
  if (withClones && (hasManySyscalls || syscalls.some((code) => CLONE_CODES.includes(code)))) return true;
  if (wanted.process !== undefined && (flags & IndexFlag.manyThreads) === 0) {
    const ofProcess = wanted.threads ?? new Set([wanted.process]);
    if (!threads.some((thread) => thread === wanted.process || ofProcess.has(thread))) return false;
  }
  if (wanted.wantsProcesses && hasKind(kinds, wanted)) return true;
  if (!wanted.wantsSyscalls || (syscalls.length === 0 && !hasManySyscalls)) return false;
  return (
    wanted.syscalls === undefined || hasManySyscalls || syscalls.some((code) => wanted.syscalls?.has(code))
  );
}

function hasKind(bits: number, { kinds }: Selection): boolean {
  if (kinds === undefined) return bits !== 0;
  return [...kinds].some(
    (kind) =>
      kind in ProcessRecord && (bits & (1 << ProcessRecord[kind as keyof typeof ProcessRecord])) !== 0,
  );
}

function headerMayHave({ header }: StoredBlock, wanted: Selection, withClones: boolean): boolean {
  if (!isInTime(header, wanted)) return false;
  return (
    (wanted.wantsProcesses && header.processRecords > 0) ||
    ((wanted.wantsSyscalls || withClones) && header.syscalls > 0)
  );
}

function isInTime(
  { firstNs, lastNs }: { readonly firstNs: number; readonly lastNs: number },
  { sinceNs, untilNs }: AuditFilter,
): boolean {
  return (sinceNs === undefined || lastNs >= sinceNs) && (untilNs === undefined || firstNs <= untilNs);
}
