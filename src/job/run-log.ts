/**
 * The log of a run: what its steps wrote and what happened to it, stored while it streams.
 *
 * The link process writes it, because the host daemon reads no byte of a guest, and the process that does must not be
 * able to make anybody else wait. It cannot be handed an open descriptor (link processes start before it is known
 * which run they serve, and Node passes only sockets between processes), so it creates files in one directory, which
 * the daemon made for this run and which is the only one that its jail lets it write to. The CLI reads the files, and
 * trusts neither their content nor that they are files; nobody reads them in the daemon.
 *
 *     runs/<id>/log-00000     the beginning of the log; never removed
 *     runs/<id>/log-00001 …   what came later; the oldest of these goes when there would be more than MAX_LATER_SEGMENTS
 *
 * A segment is a sequence of records (src/protocol/records.ts: type, length, payload), payloads big endian:
 *
 *     0x60 segment   u64 bytes of output in all segments before this one; first record of every segment
 *     0x61 stdout    u48 time (ms since 1970), u16 step, then bytes
 *     0x62 stderr    likewise
 *     0x63 event     u48 time, then JSON of a RunEvent; may be split, then all parts have the same time
 *
 * The bytes are the guest's and of any content; lengths are bounded by the framing. A record may be cut short at the
 * end of the last segment if its writer was killed.
 */
import { closeSync, constants, openSync, readdirSync, unlinkSync, writeSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { CtError, messageOf } from '../core/errors.ts';
import { MAX_JSON_BYTES, MAX_RECORD_BYTES } from '../protocol/limits.ts';
import { encodeRecord, RecordDecoder } from '../protocol/records.ts';
import type { RunEvent } from '../protocol/run.ts';

/** A log takes at most 64 MiB: eight segments, of which the first is kept, and the newest seven. */
export const SEGMENT_BYTES = 8 * 1024 * 1024;
export const MAX_LATER_SEGMENTS = 7;

const LogRecordType = { segment: 0x60, stdout: 0x61, stderr: 0x62, event: 0x63 } as const;
const TIME_BYTES = 6;
const OUTPUT_HEADER_BYTES = TIME_BYTES + 2;
const READ_BYTES = 256 * 1024;
/** How often a follower looks whether there is more. */
const FOLLOW_MS = 100;

export type LogEntry =
  | {
      readonly type: 'output';
      readonly timeMs: number;
      readonly stream: 'stdout' | 'stderr';
      readonly step: number;
      readonly bytes: Buffer;
    }
  | { readonly type: 'event'; readonly timeMs: number; readonly event: RunEvent }
  /** Output that was here and was dropped, because the log would have become too large. */
  | { readonly type: 'dropped'; readonly bytes: number };

export interface RunLogLimits {
  readonly segmentBytes: number;
  readonly maxLaterSegments: number;
}

/**
 * Writes at once and in order, so that whatever a client was shown is in the log, whoever is killed next. A disk that
 * takes nothing more ends the log, not the job: `failure` says why, and nothing more is written.
 */
export class RunLogWriter implements Disposable {
  readonly #directory: string;
  readonly #limits: RunLogLimits;
  #descriptor: number | undefined;
  #segment = -1;
  #segmentBytes = 0;
  #outputBytes = 0;
  #failure: string | undefined;

  constructor(
    directory: string,
    limits: RunLogLimits = { segmentBytes: SEGMENT_BYTES, maxLaterSegments: MAX_LATER_SEGMENTS },
  ) {
    this.#directory = directory;
    this.#limits = limits;
    this.#guarded(() => this.#rotate());
  }

  get failure(): string | undefined {
    return this.#failure;
  }

  output(stream: 'stdout' | 'stderr', step: number, bytes: Buffer): void {
    for (let at = 0; at < bytes.length; at += MAX_RECORD_BYTES - OUTPUT_HEADER_BYTES) {
      const part = bytes.subarray(at, at + MAX_RECORD_BYTES - OUTPUT_HEADER_BYTES);
      const header = timeHeader(OUTPUT_HEADER_BYTES);
      header.writeUInt16BE(step, TIME_BYTES);
      this.#write(LogRecordType[stream], Buffer.concat([header, part]));
      this.#outputBytes += part.length;
    }
  }

  event(event: RunEvent): void {
    const json = Buffer.from(JSON.stringify(event));
    const header = timeHeader(TIME_BYTES);
    for (let at = 0; at < json.length; at += MAX_RECORD_BYTES - TIME_BYTES) {
      const part = json.subarray(at, at + MAX_RECORD_BYTES - TIME_BYTES);
      this.#write(LogRecordType.event, Buffer.concat([header, part]));
    }
  }

  [Symbol.dispose](): void {
    if (this.#descriptor !== undefined) closeSync(this.#descriptor);
    this.#descriptor = undefined;
  }

  #write(type: number, payload: Buffer): void {
    this.#guarded(() => {
      const record = encodeRecord(type, payload);
      if (this.#segmentBytes + record.length > this.#limits.segmentBytes) this.#rotate();
      this.#append(record);
    });
  }

  #append(record: Buffer): void {
    if (this.#descriptor === undefined) return;
    for (let at = 0; at < record.length; ) at += writeSync(this.#descriptor, record, at);
    this.#segmentBytes += record.length;
  }

  #rotate(): void {
    this[Symbol.dispose]();
    this.#segment += 1;
    const path = join(this.#directory, segmentName(this.#segment));
    // O_EXCL and O_NOFOLLOW: the file is new, and lies where it seems to.
    const flags =
      constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
    this.#descriptor = openSync(path, flags, 0o600);
    this.#segmentBytes = 0;
    const before = Buffer.alloc(8);
    before.writeBigUInt64BE(BigInt(this.#outputBytes));
    this.#append(encodeRecord(LogRecordType.segment, before));
    const oldest = this.#segment - this.#limits.maxLaterSegments;
    if (oldest > 0) unlinkSync(join(this.#directory, segmentName(oldest)));
  }

  #guarded(write: () => void): void {
    if (this.#failure !== undefined) return;
    try {
      write();
    } catch (error) {
      this.#failure = messageOf(error);
      this[Symbol.dispose]();
    }
  }
}

/**
 * The entries of a log, oldest first. At its end `ended` is asked whether more can come: while it says no, this waits
 * for more. Bytes of an entry are valid until the next one is taken. Throws RUN_LOG_UNREADABLE where it is damaged;
 * what precedes the damage has been given.
 */
export async function* readRunLog(
  directory: string,
  ended: () => boolean | Promise<boolean> = () => true,
): AsyncGenerator<LogEntry> {
  const parser = new LogParser();
  let segment = -1;
  let isLast = false;
  for (;;) {
    const next = segmentsOf(directory).find((number) => number > segment);
    if (next !== undefined) {
      const file = await openSegment(directory, next);
      if (!file) continue; // it was dropped while we came
      segment = next;
      parser.startSegment();
      await using _closed = { [Symbol.asyncDispose]: () => file.close() };
      yield* readSegment(file, parser, async () => {
        if (isLast || segmentsOf(directory).some((number) => number > segment)) return true;
        isLast = await ended();
        if (!isLast) await sleep(FOLLOW_MS);
        return false;
      });
      continue;
    }
    if (isLast) return;
    isLast = await ended();
    if (!isLast) await sleep(FOLLOW_MS);
  }
}

/** Ends when `complete` has said that nothing more will be appended, and all that was there before has been read. */
async function* readSegment(
  file: FileHandle,
  parser: LogParser,
  complete: () => Promise<boolean>,
): AsyncGenerator<LogEntry> {
  const buffer = Buffer.allocUnsafe(READ_BYTES);
  for (let isComplete = false; ; ) {
    const { bytesRead } = await file.read(buffer, 0, buffer.length);
    if (bytesRead > 0) yield* parser.push(buffer.subarray(0, bytesRead));
    else if (isComplete) return;
    else isComplete = await complete();
  }
}

/** Records of one segment after the other into entries. */
class LogParser {
  #decoder = new RecordDecoder(() => {});
  #entries: LogEntry[] = [];
  #outputBytes = 0;
  #json: Buffer[] = [];
  #jsonBytes = 0;

  startSegment(): void {
    this.#decoder = new RecordDecoder((type, payload) => this.#record(type, payload));
    this.#json = [];
    this.#jsonBytes = 0;
  }

  *push(chunk: Buffer): Generator<LogEntry> {
    let failure: unknown;
    try {
      this.#decoder.push(chunk);
    } catch (error) {
      failure = error;
    }
    const entries = this.#entries;
    this.#entries = [];
    yield* entries;
    if (failure !== undefined) {
      throw new CtError('RUN_LOG_UNREADABLE', `the log of the run is damaged: ${messageOf(failure)}`, {
        cause: failure,
      });
    }
  }

  #record(type: number, payload: Buffer): void {
    if (type === LogRecordType.segment) {
      const before = Number(payload.readBigUInt64BE(0));
      if (before > this.#outputBytes)
        this.#entries.push({ type: 'dropped', bytes: before - this.#outputBytes });
      this.#outputBytes = before;
    } else if (type === LogRecordType.stdout || type === LogRecordType.stderr) {
      const bytes = Buffer.from(payload.subarray(OUTPUT_HEADER_BYTES));
      this.#outputBytes += bytes.length;
      this.#entries.push({
        type: 'output',
        timeMs: payload.readUIntBE(0, TIME_BYTES),
        stream: type === LogRecordType.stdout ? 'stdout' : 'stderr',
        step: payload.readUInt16BE(TIME_BYTES),
        bytes,
      });
    } else if (type === LogRecordType.event) {
      this.#event(payload.readUIntBE(0, TIME_BYTES), Buffer.from(payload.subarray(TIME_BYTES)));
    } else {
      throw new Error(`record type ${type} is unknown`);
    }
  }

  #event(timeMs: number, part: Buffer): void {
    this.#json.push(part);
    this.#jsonBytes += part.length;
    let event: RunEvent;
    try {
      event = JSON.parse(Buffer.concat(this.#json).toString('utf8')) as RunEvent;
    } catch (error) {
      if (this.#jsonBytes > MAX_JSON_BYTES) throw error;
      return; // its other parts follow
    }
    this.#json = [];
    this.#jsonBytes = 0;
    this.#entries.push({ type: 'event', timeMs, event });
  }
}

function timeHeader(size: number): Buffer {
  const header = Buffer.alloc(size);
  header.writeUIntBE(Date.now(), 0, TIME_BYTES);
  return header;
}

function segmentName(segment: number): string {
  return `log-${String(segment).padStart(5, '0')}`;
}

/** Ascending; empty before the writer has begun, and if the directory is gone. */
function segmentsOf(directory: string): number[] {
  try {
    return readdirSync(directory)
      .map((name) => /^log-(\d{5,})$/.exec(name)?.[1])
      .filter((digits) => digits !== undefined)
      .map(Number)
      .sort((a, b) => a - b);
  } catch {
    return [];
  }
}

/** Its writer has read guest bytes and may have put anything there: a link is not followed, a pipe not waited for. */
async function openSegment(directory: string, segment: number): Promise<FileHandle | undefined> {
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  try {
    const file = await open(join(directory, segmentName(segment)), flags);
    if ((await file.stat()).isFile()) return file;
    await file.close();
    throw new Error(`${segmentName(segment)} is no file`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new CtError('RUN_LOG_UNREADABLE', `the log of the run cannot be read: ${messageOf(error)}`, {
      cause: error,
    });
  }
}
