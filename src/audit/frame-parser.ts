/**
 * Reads what a guest sends on `ct.audit` (src/protocol/audit.ts): frames out of chunks of any size, every field checked
 * before anything is kept, at most one frame in memory. It sees a million system calls a second and more, so nothing is
 * made per record.
 */
import {
  AUDIT_FRAME_BYTES,
  AUDIT_MAGIC,
  AUDIT_VERSION,
  AuditFrame,
  MAX_AUDIT_PAYLOAD_BYTES,
  NO_CPU,
  PROCESS_RECORD_BYTES,
  SYSCALL_RECORD_BYTES,
  SyscallFlag,
} from '../protocol/audit.ts';
import { processRecordProblem } from './process-record-check.ts';
import { AuditViolation } from './violation.ts';

export const MAX_FRAME_BYTES = AUDIT_FRAME_BYTES + MAX_AUDIT_PAYLOAD_BYTES;
/** Of VMs; what the layout could name is more than a machine has. */
export const MAX_CPUS = 256;

const TWO_32 = 0x1_0000_0000;
/** Numbers of records and times from here on would not be exact; a guest gets there in years, or by lying. */
const MAX_HIGH = 0x20_0000;
const KNOWN_SYSCALL_FLAGS = 7;

/** A checked frame. The object and its bytes are used again: both hold during the call only. */
export interface ParsedFrame {
  /** Header and payload, as they came. */
  readonly bytes: Buffer;
  readonly type: number;
  readonly cpu: number;
  readonly first: number;
  readonly records: number;
  /** Least and greatest time of its records, nanoseconds of the guest's clock; 0 without records. */
  readonly firstNs: number;
  readonly lastNs: number;
}

export interface CpuCounts {
  readonly frames: number;
  readonly records: number;
  /** Records whose time is before that of the one before them: odd, and no reason to end a run. */
  readonly backwards: number;
}

export interface AuditCounts {
  readonly frames: number;
  readonly bytes: number;
  /** By number of the CPU. */
  readonly cpus: readonly CpuCounts[];
  readonly processFrames: number;
  readonly processRecords: number;
  readonly heartbeats: number;
  /** Nanoseconds of the guest's clock; 0 without records. */
  readonly firstNs: number;
  readonly lastNs: number;
}

interface Cpu {
  frames: number;
  records: number;
  backwards: number;
  lastNs: number;
}

export class FrameParser {
  readonly #onFrame: (frame: ParsedFrame) => void;
  readonly #cpus: readonly Cpu[];
  /** The frame whose end has not come yet. */
  readonly #buffer = Buffer.allocUnsafeSlow(MAX_FRAME_BYTES);
  readonly #bufferView = new DataView(this.#buffer.buffer);
  #held = 0;
  #wanted = AUDIT_FRAME_BYTES;
  #failure: AuditViolation | undefined;
  readonly #frame = {
    bytes: this.#buffer as Buffer,
    type: 0,
    cpu: 0,
    first: 0,
    records: 0,
    firstNs: 0,
    lastNs: 0,
  };
  #frames = 0;
  #bytes = 0;
  #processFrames = 0;
  #processRecords = 0;
  #heartbeats = 0;
  #firstNs = 0;
  #lastNs = 0;

  /** `cpus`: how many the VM has. `onFrame` is called for each frame, in order; what it throws passes through. */
  constructor(cpus: number, onFrame: (frame: ParsedFrame) => void) {
    if (!(cpus >= 1 && cpus <= MAX_CPUS)) throw new RangeError(`${cpus} processors`);
    this.#cpus = Array.from({ length: cpus }, () => ({ frames: 0, records: 0, backwards: 0, lastNs: 0 }));
    this.#onFrame = onFrame;
  }

  get counts(): AuditCounts {
    return {
      frames: this.#frames,
      bytes: this.#bytes,
      cpus: this.#cpus.map(({ frames, records, backwards }) => ({ frames, records, backwards })),
      processFrames: this.#processFrames,
      processRecords: this.#processRecords,
      heartbeats: this.#heartbeats,
      firstNs: this.#firstNs,
      lastNs: this.#lastNs,
    };
  }

  /** Throws {@link AuditViolation}, then and whenever it is called again. */
  push(chunk: Buffer): void {
    if (this.#failure) throw this.#failure;
    let view: DataView | undefined;
    for (let at = 0; at < chunk.length; ) {
      if (this.#held === 0 && chunk.length - at >= AUDIT_FRAME_BYTES) {
        view ??= new DataView(chunk.buffer, chunk.byteOffset, chunk.length);
        const bytes = this.#readHeader(view, at);
        if (chunk.length - at >= bytes) {
          this.#take(chunk, view, at, bytes);
          at += bytes;
          continue;
        }
      }
      const taken = Math.min(this.#wanted - this.#held, chunk.length - at);
      chunk.copy(this.#buffer, this.#held, at, at + taken);
      this.#held += taken;
      at += taken;
      if (this.#held < this.#wanted) return;
      if (this.#held === AUDIT_FRAME_BYTES) this.#wanted = this.#readHeader(this.#bufferView, 0);
      if (this.#held === this.#wanted) {
        this.#take(this.#buffer, this.#bufferView, 0, this.#held);
        this.#held = 0;
        this.#wanted = AUDIT_FRAME_BYTES;
      }
    }
  }

  /** Legal when nothing follows. Throws {@link AuditViolation} `closed` within a frame. */
  end(): void {
    if (this.#failure) throw this.#failure;
    if (this.#held > 0)
      this.#fail('closed', `the channel ended within a frame, after ${this.#held} bytes of it`);
  }

  /** Checks the header at `at` and returns the bytes of its frame. */
  #readHeader(view: DataView, at: number): number {
    if (view.getUint32(at, true) !== AUDIT_MAGIC) this.#fail('malformed', 'a frame does not begin like one');
    const version = view.getUint8(at + 5);
    if (version !== AUDIT_VERSION) this.#fail('malformed', `frames of version ${version} are unknown`);
    const type = view.getUint8(at + 4);
    const cpu = view.getUint16(at + 6, true);
    const [low, high] = [view.getUint32(at + 8, true), view.getUint32(at + 12, true)];
    const records = view.getUint32(at + 16, true);
    const payload = view.getUint32(at + 20, true);
    if (payload > MAX_AUDIT_PAYLOAD_BYTES)
      this.#fail('malformed', `a frame of ${payload} bytes is too large`);
    const lost = view.getUint32(at + 28, true) * TWO_32 + view.getUint32(at + 24, true);
    const isSyscalls = type === AuditFrame.syscalls;
    if (isSyscalls ? cpu >= this.#cpus.length : cpu !== NO_CPU) {
      this.#fail('malformed', `a frame of type ${type} names the processor ${cpu} of ${this.#cpus.length}`);
    }
    let next = 0;
    if (isSyscalls) {
      next = (this.#cpus[cpu] as Cpu).records;
      if (records === 0 || payload !== records * SYSCALL_RECORD_BYTES) {
        this.#fail('malformed', `${records} system calls do not take ${payload} bytes`);
      }
    } else if (type === AuditFrame.processes) {
      next = this.#processRecords;
      if (records === 0 || payload < records * PROCESS_RECORD_BYTES) {
        this.#fail('malformed', `${records} process records do not take ${payload} bytes`);
      }
    } else if (type === AuditFrame.heartbeat) {
      if (records !== 0 || payload !== 0) this.#fail('malformed', 'a heartbeat has records');
    } else {
      this.#fail('malformed', `frames of type ${type} are unknown`);
    }
    const source = isSyscalls ? `processor ${cpu}` : 'processes';
    if (lost !== 0) this.#fail('lost', `the guest lost ${lost} records of ${source}`);
    const first = high * TWO_32 + low;
    if (first !== next || high >= MAX_HIGH) {
      const what = first > next ? `${first - next} are missing` : 'some come twice';
      this.#fail('gap', `records of ${source} go on with number ${first} instead of ${next}: ${what}`);
    }
    const frame = this.#frame;
    frame.type = type;
    frame.cpu = cpu;
    frame.first = first;
    frame.records = records;
    return AUDIT_FRAME_BYTES + payload;
  }

  /** Checks the payload of the frame whose header was read last, passes it on, and counts it if it was taken. */
  #take(source: Buffer, view: DataView, at: number, bytes: number): void {
    const frame = this.#frame;
    frame.firstNs = 0;
    frame.lastNs = 0;
    const backwards =
      frame.type === AuditFrame.syscalls ? this.#checkSyscalls(view, at + AUDIT_FRAME_BYTES, at + bytes) : 0;
    if (frame.type === AuditFrame.processes) {
      this.#checkProcesses(source, view, at + AUDIT_FRAME_BYTES, at + bytes);
    }
    frame.bytes = source.subarray(at, at + bytes);
    this.#onFrame(frame);
    this.#frames += 1;
    this.#bytes += bytes;
    if (frame.type === AuditFrame.syscalls) {
      const cpu = this.#cpus[frame.cpu] as Cpu;
      cpu.frames += 1;
      cpu.records += frame.records;
      cpu.backwards += backwards;
    } else if (frame.type === AuditFrame.processes) {
      this.#processFrames += 1;
      this.#processRecords += frame.records;
    } else {
      this.#heartbeats += 1;
      return;
    }
    const isFirst = this.#frames === this.#heartbeats + 1;
    if (isFirst || frame.firstNs < this.#firstNs) this.#firstNs = frame.firstNs;
    if (frame.lastNs > this.#lastNs) this.#lastNs = frame.lastNs;
  }

  /** Returns how many records are older than the one before them. */
  #checkSyscalls(view: DataView, start: number, end: number): number {
    const frame = this.#frame;
    const cpu = this.#cpus[frame.cpu] as Cpu;
    let [firstNs, lastNs, previousNs, backwards] = [Number.POSITIVE_INFINITY, 0, cpu.lastNs, 0];
    let previousFlags: number = SyscallFlag.sixth;
    for (let at = start; at < end; at += SYSCALL_RECORD_BYTES) {
      const high = view.getUint32(at + 4, true);
      const timeNs = high * TWO_32 + view.getUint32(at, true);
      if (high >= MAX_HIGH) this.#fail('malformed', 'the time of a system call is out of range');
      const flags = view.getUint16(at + 14, true);
      if (flags > KNOWN_SYSCALL_FLAGS) this.#fail('malformed', 'a system call has unknown flags');
      if ((flags & SyscallFlag.sixth) !== 0 && !this.#isSixthOf(view, at, previousFlags)) {
        this.#fail('malformed', 'a sixth argument does not follow its call');
      }
      previousFlags = flags;
      if (timeNs < previousNs) backwards += 1;
      if (timeNs < firstNs) firstNs = timeNs;
      if (timeNs > lastNs) lastNs = timeNs;
      previousNs = timeNs;
    }
    cpu.lastNs = previousNs;
    frame.firstNs = firstNs;
    frame.lastNs = lastNs;
    return backwards;
  }

  /** Whether the record at `at` has thread, number and flags of the one before it, which is no sixth argument itself. */
  #isSixthOf(view: DataView, at: number, previousFlags: number): boolean {
    const before = at - SYSCALL_RECORD_BYTES;
    return (
      view.getUint16(at + 14, true) === (previousFlags | SyscallFlag.sixth) &&
      (previousFlags & SyscallFlag.sixth) === 0 &&
      view.getUint32(at + 8, true) === view.getUint32(before + 8, true) &&
      view.getUint16(at + 12, true) === view.getUint16(before + 12, true)
    );
  }

  #checkProcesses(source: Buffer, view: DataView, start: number, end: number): void {
    const frame = this.#frame;
    let [at, firstNs, lastNs] = [start, Number.POSITIVE_INFINITY, 0];
    for (let index = 0; index < frame.records; index += 1) {
      const problem = processRecordProblem(view, source, at, end);
      if (problem !== undefined) this.#fail('malformed', `process record ${frame.first + index}: ${problem}`);
      const timeNs = view.getUint32(at + 20, true) * TWO_32 + view.getUint32(at + 16, true);
      if (timeNs < firstNs) firstNs = timeNs;
      if (timeNs > lastNs) lastNs = timeNs;
      at += view.getUint16(at, true);
    }
    if (at !== end) this.#fail('malformed', `${end - at} bytes follow the last process record of a frame`);
    frame.firstNs = firstNs;
    frame.lastNs = lastNs;
  }

  #fail(reason: AuditViolation['reason'], message: string): never {
    this.#failure = new AuditViolation(reason, message);
    throw this.#failure;
  }
}
