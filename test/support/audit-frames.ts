/** Frames as a guest would send them on `ct.audit`, made up from a seed: the same in every run. */
import {
  AUDIT_FRAME_BYTES,
  AUDIT_MAGIC,
  AUDIT_VERSION,
  AuditFrame,
  NO_CPU,
  ProcessRecord,
  SYSCALL_RECORD_BYTES,
  SyscallFlag,
} from '../../src/protocol/audit.ts';
import { encodeProcess, execBody, fileBody, forkBody } from './audit-run.ts';
import { SeededRandom } from './egress-random.ts';

export interface FrameFields {
  readonly type: number;
  readonly cpu?: number;
  readonly first?: number;
  readonly records?: number;
  readonly lost?: number;
  readonly payload?: Buffer;
}

export function encodeFrame({
  type,
  cpu = NO_CPU,
  first = 0,
  records = 0,
  lost = 0,
  payload = Buffer.alloc(0),
}: FrameFields): Buffer {
  const frame = Buffer.alloc(AUDIT_FRAME_BYTES + payload.length);
  frame.writeUInt32LE(AUDIT_MAGIC, 0);
  frame.writeUInt8(type, 4);
  frame.writeUInt8(AUDIT_VERSION, 5);
  frame.writeUInt16LE(cpu, 6);
  frame.writeBigUInt64LE(BigInt(first), 8);
  frame.writeUInt32LE(records, 16);
  frame.writeUInt32LE(payload.length, 20);
  frame.writeBigUInt64LE(BigInt(lost), 24);
  payload.copy(frame, AUDIT_FRAME_BYTES);
  return frame;
}

export const heartbeatFrame = (): Buffer => encodeFrame({ type: AuditFrame.heartbeat });

/**
 * What system calls of a build look like: number, weight, and how its result and arguments are made. Pointers are of a few
 * stacks and heaps, descriptors small, sizes mostly round.
 */
const CALLS: readonly {
  readonly number: number;
  readonly weight: number;
  readonly kind: 'fd' | 'path' | 'map';
}[] = [
  { number: 0, weight: 22, kind: 'fd' },
  { number: 1, weight: 12, kind: 'fd' },
  { number: 3, weight: 14, kind: 'fd' },
  { number: 5, weight: 6, kind: 'fd' },
  { number: 8, weight: 4, kind: 'fd' },
  { number: 257, weight: 16, kind: 'path' },
  { number: 262, weight: 12, kind: 'path' },
  { number: 9, weight: 6, kind: 'map' },
  { number: 10, weight: 3, kind: 'map' },
  { number: 12, weight: 2, kind: 'map' },
  { number: 13, weight: 2, kind: 'fd' },
  { number: 14, weight: 1, kind: 'fd' },
];
const LOTTERY = CALLS.flatMap((call) => Array<(typeof CALLS)[number]>(call.weight).fill(call));

/** A build on some processors: each runs a few threads in turn. Frames of each continue one another. */
export class SyntheticGuest {
  readonly random: SeededRandom;
  readonly #cpus: { next: number; timeNs: number; thread: number }[];
  #processes = 0;
  #nextPid = 200;

  constructor(seed: number, cpus = 2) {
    this.random = new SeededRandom(seed);
    this.#cpus = Array.from({ length: cpus }, (_, cpu) => ({
      next: 0,
      timeNs: 5e9 + cpu,
      thread: 100 + cpu,
    }));
  }

  /** `records` system calls of one processor; some take two records. */
  syscalls(cpu: number, records: number): Buffer {
    const state = this.#cpus[cpu];
    if (!state) throw new Error(`no processor ${cpu}`);
    const frame = encodeFrame({
      type: AuditFrame.syscalls,
      cpu,
      first: state.next,
      records,
      payload: Buffer.alloc(records * SYSCALL_RECORD_BYTES),
    });
    const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
    const { random } = this;
    for (let index = 0; index < records; index += 1) {
      const at = AUDIT_FRAME_BYTES + index * SYSCALL_RECORD_BYTES;
      if (random.below(300) === 0) state.thread = 100 + random.below(12);
      const call = LOTTERY[random.below(LOTTERY.length)] as (typeof CALLS)[number];
      state.timeNs += 700 + random.below(2500);
      this.#call(view, at, state, call);
      const isMap = call.number === 9 && index + 1 < records && random.below(2) === 0;
      if (!isMap) continue;
      index += 1;
      const next = at + SYSCALL_RECORD_BYTES;
      view.setBigUint64(next, BigInt(state.timeNs), true);
      view.setUint32(next + 8, state.thread, true);
      view.setUint16(next + 12, call.number, true);
      view.setUint16(next + 14, SyscallFlag.sixth, true);
      view.setUint32(next + 24, 4096 * (1 + random.below(64)), true);
    }
    state.next += records;
    return frame;
  }

  #call(
    view: DataView,
    at: number,
    state: { timeNs: number; thread: number },
    { number, kind }: (typeof CALLS)[number],
  ): void {
    const { random } = this;
    view.setBigUint64(at, BigInt(state.timeNs), true);
    view.setUint32(at + 8, state.thread, true);
    view.setUint16(at + 12, number, true);
    const stack = 0x7ffc_0000 + (state.thread % 16) * 0x1000 + random.below(16) * 16;
    const heap = 0x5580_0000 + (state.thread % 16) * 0x10_0000 + random.below(64) * 64;
    const setPointer = (offset: number, low: number, high: number): void => {
      view.setUint32(at + offset, low, true);
      view.setUint32(at + offset + 4, high, true);
    };
    if (kind === 'fd') {
      const size = number <= 1 ? ([4096, 832, 65_536, 1, 512][random.below(5)] as number) : 0;
      view.setUint32(at + 16, number <= 1 ? (random.below(3) === 0 ? random.below(4096) : size) : 0, true);
      view.setUint32(at + 24, 3 + random.below(6), true);
      if (number <= 1) setPointer(32, heap, 0x5580);
      else if (number === 5) setPointer(32, stack, 0x7ffc);
      view.setUint32(at + 40, size, true);
    } else if (kind === 'path') {
      const isMissing = random.below(3) === 0;
      view.setBigInt64(at + 16, isMissing ? -2n : number === 257 ? BigInt(3 + random.below(4)) : 0n, true);
      view.setUint32(at + 24, 0xffff_ff9c, true);
      setPointer(32, heap, 0x5580);
      if (number === 257) view.setUint32(at + 40, 0x80000, true);
      else setPointer(40, stack, 0x7ffc);
    } else {
      const page = 0x7f3a_0000 + random.below(4096);
      setPointer(16, page * 4096, 0x7f3a);
      view.setUint32(at + 32, 4096 * (1 + random.below(512)), true);
      view.setUint32(at + 40, 1 + random.below(3), true);
      view.setUint32(at + 48, 0x802, true);
      view.setUint32(at + 56, 3 + random.below(3), true);
    }
  }

  /** A process that is forked, runs a program and writes a file, then ends: four records. */
  processes(): Buffer {
    const pid = this.#nextPid;
    this.#nextPid += 1;
    const timeNs = Math.max(...this.#cpus.map((cpu) => cpu.timeNs));
    const at = (step: number): bigint => BigInt(timeNs + step);
    const parent = { pid: 100, startedNs: 1n };
    const child = { pid, startedNs: at(0) };
    const of = (kind: number, step: number) => ({ kind, process: child, parentPid: 100, timeNs: at(step) });
    const status = Buffer.alloc(4);
    const records = [
      encodeProcess(
        { kind: ProcessRecord.fork, process: parent, parentPid: 1, timeNs: at(0) },
        forkBody(child),
      ),
      encodeProcess(of(ProcessRecord.exec, 10), execBody('/usr/bin/cc', ['cc', '-c', `unit-${pid}.c`])),
      encodeProcess(of(ProcessRecord.file, 20), fileBody('write', `/workspace/unit-${pid}.o`, 0o1101)),
      encodeProcess(of(ProcessRecord.exit, 30), status),
    ];
    const first = this.#processes;
    this.#processes += records.length;
    return encodeFrame({
      type: AuditFrame.processes,
      first,
      records: records.length,
      payload: Buffer.concat(records),
    });
  }

  /** Frames of all kinds, `count` of them, with up to `maxRecords` system calls each. */
  frames(count: number, maxRecords = 200): Buffer[] {
    return Array.from({ length: count }, () => {
      const kind = this.random.below(10);
      if (kind === 0) return heartbeatFrame();
      if (kind === 1) return this.processes();
      return this.syscalls(this.random.below(this.#cpus.length), 1 + this.random.below(maxRecords));
    });
  }
}
