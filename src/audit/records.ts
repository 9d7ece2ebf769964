/**
 * Records of the guest as events: the pure decoder of one frame's payload. src/protocol/audit.ts has the layout.
 *
 * The bytes are the guest's. Sizes are checked before anything is read; whatever does not fit the layout exactly throws
 * GUEST_PROTOCOL. Strings are UTF-8 with U+FFFD for what is none, and hold whatever the guest wrote: they are made printable
 * where they are shown.
 */
import { CtError } from '../core/errors.ts';
import { canonicalAddress } from '../policy/address.ts';
import {
  DeniedWhat,
  FileWhat,
  MAX_PROCESS_RECORD_BYTES,
  PROCESS_RECORD_BYTES,
  ProcessRecord,
  SYSCALL_RECORD_BYTES,
  SyscallFlag,
} from '../protocol/audit.ts';

/** Families of addresses as Linux numbers them. */
export const FAMILY_IPV4 = 2;
export const FAMILY_IPV6 = 10;

/** A process: its number and when it was started (nanoseconds of the guest's monotonic clock). Numbers alone come again. */
export interface ProcessKey {
  readonly pid: number;
  readonly startedNs: bigint;
}

/** A system call that ended or, with `isAtEntry`, one that begins and may not return. */
export interface SyscallEvent {
  readonly kind: 'syscall';
  readonly cpu: number;
  /** Of the CPU, from 0, without gaps. */
  readonly sequence: number;
  readonly timeNs: bigint;
  readonly thread: number;
  readonly number: number;
  /** By the table of i386, not of x86-64. */
  readonly isCompat: boolean;
  readonly isAtEntry: boolean;
  /** What it returned, negative for errors; 0 at entry. */
  readonly result: bigint;
  /** Five; six where the sixth is not 0. */
  readonly args: readonly bigint[];
}

interface ByProcess {
  /** Of the processes' records, from 0, without gaps. */
  readonly sequence: number;
  readonly timeNs: bigint;
  readonly process: ProcessKey;
  readonly thread: number;
  readonly parentPid: number;
  readonly uid: number;
  readonly gid: number;
  /** A string was longer than fits a record. */
  readonly isCut: boolean;
}

export interface ForkEvent extends ByProcess {
  readonly kind: 'fork';
  readonly child: ProcessKey;
}

export interface ExecEvent extends ByProcess {
  readonly kind: 'exec';
  readonly binary: string;
  /** With the name it was called by as the first. */
  readonly args: readonly string[];
  readonly cwd: string;
  readonly device: number;
  readonly inode: bigint;
  /** SHA-256 in hex; absent: not computed. */
  readonly digest?: string;
}

export interface ExitEvent extends ByProcess {
  readonly kind: 'exit';
  /** As of wait(2): {@link exitCode} and {@link exitSignal} read it. */
  readonly status: number;
}

export interface ConnectEvent extends ByProcess {
  readonly kind: 'connect';
  /** AF_…: {@link FAMILY_IPV4}, {@link FAMILY_IPV6} or another. */
  readonly family: number;
  /** As the job gave it, in canonical form; may be a synthetic one. Empty with other families. */
  readonly address: string;
  readonly port: number;
  /** IPPROTO_…: 6 is TCP, 17 UDP. */
  readonly protocol: number;
  /** 0 or a negative errno. */
  readonly result: number;
}

export type DeniedName = keyof typeof DeniedWhat;
export type FileName = keyof typeof FileWhat;

/** Something that our rules do not allow: the guest's kernel refused it, or let it be and told. */
export interface DeniedEvent extends ByProcess {
  readonly kind: 'denied';
  readonly what: DeniedName;
  /** It was stopped; else it was only said. */
  readonly blocked: boolean;
  readonly path: string;
  readonly device: number;
  readonly digest?: string;
}

export interface FileEvent extends ByProcess {
  readonly kind: 'file';
  readonly what: FileName;
  readonly path: string;
  /** Flags of open(2) with `read` and `write`, the mode with `setuid`. */
  readonly flags: number;
}

export type ProcessEvent = ForkEvent | ExecEvent | ExitEvent | ConnectEvent | DeniedEvent | FileEvent;
export type AuditEvent = SyscallEvent | ProcessEvent;

/** Status of exit(2); undefined if a signal ended it. */
export function exitCode(status: number): number | undefined {
  return (status & 0x7f) === 0 ? (status >> 8) & 0xff : undefined;
}

/** The signal that ended it, if one did. */
export function exitSignal(status: number): number | undefined {
  return (status & 0x7f) === 0 ? undefined : status & 0x7f;
}

/** What the header of the frame says. */
export interface FrameOrigin {
  readonly cpu: number;
  /** Number of the first record. */
  readonly first: number;
  readonly records: number;
}

/** The system calls of one frame. Their values are read when asked for: each holds on to `payload`. */
export function decodeSyscalls(payload: Buffer, { cpu, first, records }: FrameOrigin): SyscallEvent[] {
  if (payload.length !== records * SYSCALL_RECORD_BYTES) {
    throw violation(`${records} system calls do not take ${payload.length} bytes`);
  }
  const events: SyscallEvent[] = [];
  for (let index = 0; index < records; index += 1) {
    const at = index * SYSCALL_RECORD_BYTES;
    const next = at + SYSCALL_RECORD_BYTES;
    if (isSixth(payload, at)) throw violation('a sixth argument follows no call');
    const hasSixth = index + 1 < records && isSixth(payload, next);
    events.push(new SyscallRecord(payload, at, cpu, first + index, hasSixth));
    if (hasSixth) index += 1;
  }
  return events;
}

/** Whether the record is the sixth argument of the one before it. */
function isSixth(payload: Buffer, at: number): boolean {
  return (payload.readUInt16LE(at + 14) & SyscallFlag.sixth) !== 0;
}

/** A million a second are passed on without a look at most of their values; so those are read when asked for. */
class SyscallRecord implements SyscallEvent {
  readonly kind = 'syscall';
  readonly cpu: number;
  readonly sequence: number;
  readonly #payload: Buffer;
  readonly #at: number;
  readonly #hasSixth: boolean;

  constructor(payload: Buffer, at: number, cpu: number, sequence: number, hasSixth: boolean) {
    this.#payload = payload;
    this.#at = at;
    this.cpu = cpu;
    this.sequence = sequence;
    this.#hasSixth = hasSixth;
  }

  get timeNs(): bigint {
    return this.#payload.readBigUInt64LE(this.#at);
  }

  get thread(): number {
    return this.#payload.readUInt32LE(this.#at + 8);
  }

  get number(): number {
    return this.#payload.readUInt16LE(this.#at + 12);
  }

  get isCompat(): boolean {
    return (this.#payload.readUInt16LE(this.#at + 14) & SyscallFlag.compat) !== 0;
  }

  get isAtEntry(): boolean {
    return (this.#payload.readUInt16LE(this.#at + 14) & SyscallFlag.atEntry) !== 0;
  }

  get result(): bigint {
    return this.#payload.readBigInt64LE(this.#at + 16);
  }

  get args(): readonly bigint[] {
    const offsets = this.#hasSixth ? [24, 32, 40, 48, 56, SYSCALL_RECORD_BYTES + 24] : [24, 32, 40, 48, 56];
    return offsets.map((offset) => this.#payload.readBigUInt64LE(this.#at + offset));
  }
}

/** The process records of one frame. */
export function decodeProcesses(
  payload: Buffer,
  { first, records }: Omit<FrameOrigin, 'cpu'>,
): ProcessEvent[] {
  const events: ProcessEvent[] = [];
  let at = 0;
  for (let index = 0; index < records; index += 1) {
    const bytes = at + PROCESS_RECORD_BYTES <= payload.length ? payload.readUInt16LE(at) : 0;
    if (bytes < PROCESS_RECORD_BYTES || bytes > MAX_PROCESS_RECORD_BYTES || at + bytes > payload.length) {
      throw violation(`record ${index} of ${records} does not fit its frame`);
    }
    events.push(decodeProcess(payload.subarray(at, at + bytes), first + index));
    at += bytes;
  }
  if (at !== payload.length) throw violation(`${payload.length - at} bytes follow the last record`);
  return events;
}

function decodeProcess(record: Buffer, sequence: number): ProcessEvent {
  const by: ByProcess = {
    sequence,
    timeNs: record.readBigUInt64LE(16),
    process: { pid: record.readUInt32LE(4), startedNs: record.readBigUInt64LE(24) },
    thread: record.readUInt32LE(8),
    parentPid: record.readUInt32LE(12),
    uid: record.readUInt32LE(32),
    gid: record.readUInt32LE(36),
    isCut: (record.readUInt8(3) & 1) !== 0,
  };
  const kind = record.readUInt8(2);
  const body = record.subarray(PROCESS_RECORD_BYTES);
  switch (kind) {
    case ProcessRecord.fork:
      requireBytes(body, 16);
      return {
        kind: 'fork',
        ...by,
        child: { pid: body.readUInt32LE(0), startedNs: body.readBigUInt64LE(8) },
      };
    case ProcessRecord.exec:
      return { kind: 'exec', ...by, ...decodeExec(body) };
    case ProcessRecord.exit:
      requireBytes(body, 4);
      return { kind: 'exit', ...by, status: body.readUInt32LE(0) };
    case ProcessRecord.connect:
      return { kind: 'connect', ...by, ...decodeConnect(body) };
    case ProcessRecord.denied: {
      requireAtLeast(body, 40);
      const path = body.subarray(40);
      requireBytes(path, body.readUInt16LE(2));
      return {
        kind: 'denied',
        ...by,
        what: nameOf(DENIED_NAMES, body.readUInt8(0)),
        blocked: (record.readUInt8(3) & 2) === 0,
        path: path.toString(),
        device: body.readUInt32LE(4),
        ...digestOf(body.subarray(8, 40)),
      };
    }
    case ProcessRecord.file: {
      requireAtLeast(body, 8);
      const path = body.subarray(8);
      requireBytes(path, body.readUInt16LE(2));
      const what = nameOf(FILE_NAMES, body.readUInt8(0));
      return { kind: 'file', ...by, what, path: path.toString(), flags: body.readUInt32LE(4) };
    }
    default:
      throw violation(`there are no process records of kind ${kind}`);
  }
}

/** Before the strings. */
const EXEC_BYTES = 56;

function decodeExec(
  body: Buffer,
): Pick<ExecEvent, 'binary' | 'args' | 'cwd' | 'device' | 'inode' | 'digest'> {
  requireAtLeast(body, EXEC_BYTES);
  const binaryEnd = EXEC_BYTES + body.readUInt16LE(0);
  const argsEnd = binaryEnd + body.readUInt16LE(2);
  requireBytes(body, argsEnd + body.readUInt16LE(4));
  const args = body.toString('utf8', binaryEnd, argsEnd);
  return {
    binary: body.toString('utf8', EXEC_BYTES, binaryEnd),
    args: args === '' ? [] : args.split('\0'),
    cwd: body.toString('utf8', argsEnd),
    device: body.readUInt32LE(8),
    inode: body.readBigUInt64LE(16),
    ...digestOf(body.subarray(24, EXEC_BYTES)),
  };
}

function decodeConnect(
  body: Buffer,
): Pick<ConnectEvent, 'family' | 'address' | 'port' | 'protocol' | 'result'> {
  requireBytes(body, 28);
  const family = body.readUInt16LE(0);
  return {
    family,
    address: addressOf(family, body.subarray(8, 24)),
    port: body.readUInt16LE(2),
    protocol: body.readUInt8(4),
    result: body.readInt32LE(24),
  };
}

function addressOf(family: number, bytes: Buffer): string {
  if (family === FAMILY_IPV4) return bytes.subarray(0, 4).join('.');
  if (family !== FAMILY_IPV6) return '';
  return canonicalAddress(bytes.toString('hex').replace(/....(?!$)/g, '$&:')) ?? '';
}

const DENIED_NAMES = new Map(Object.entries(DeniedWhat).map(([name, code]) => [code, name as DeniedName]));
const FILE_NAMES = new Map(Object.entries(FileWhat).map(([name, code]) => [code, name as FileName]));

function nameOf<N>(names: ReadonlyMap<number, N>, code: number): N {
  const name = names.get(code);
  if (name === undefined) throw violation(`a record says what happened by the unknown number ${code}`);
  return name;
}

function digestOf(bytes: Buffer): { readonly digest?: string } {
  return bytes.every((byte) => byte === 0) ? {} : { digest: bytes.toString('hex') };
}

function requireBytes(bytes: Buffer, wanted: number): void {
  if (bytes.length !== wanted) throw violation(`a record has ${bytes.length} bytes where ${wanted} are due`);
}

function requireAtLeast(bytes: Buffer, wanted: number): void {
  if (bytes.length < wanted) throw violation(`a record has ${bytes.length} bytes, less than ${wanted}`);
}

function violation(message: string): CtError {
  return new CtError('GUEST_PROTOCOL', `audit: ${message}`);
}
