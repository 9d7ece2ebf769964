/** What occurs in one block, for the index: which threads, system calls and kinds of process records, and when. */
import { AUDIT_FRAME_BYTES, AuditFrame, SYSCALL_RECORD_BYTES, SyscallFlag } from '../protocol/audit.ts';
import type { ParsedFrame } from './frame-parser.ts';
import { COMPAT_CODE, type IndexEntry, IndexFlag, MAX_INDEXED } from './segment-format.ts';

/** Made once and used for block after block: it has a table of every system call there could be. */
export class BlockPresence {
  readonly #threads = new Set<number>();
  readonly #isSeen = new Uint8Array(0x1_0000);
  #codes: number[] = [];
  #lastThread = -1;
  #flags = 0;
  #kinds = 0;
  #firstNs = 0;
  #lastNs = 0;
  #frames = 0;
  #syscalls = 0;
  #processRecords = 0;
  #hasRecords = false;

  get frames(): number {
    return this.#frames;
  }

  get syscalls(): number {
    return this.#syscalls;
  }

  get processRecords(): number {
    return this.#processRecords;
  }

  /** Whether there is more than heartbeats. */
  get hasRecords(): boolean {
    return this.#hasRecords;
  }

  /** The frame was checked. */
  add(frame: ParsedFrame): void {
    this.#frames += 1;
    if (frame.records === 0) return;
    if (!this.#hasRecords || frame.firstNs < this.#firstNs) this.#firstNs = frame.firstNs;
    if (frame.lastNs > this.#lastNs) this.#lastNs = frame.lastNs;
    this.#hasRecords = true;
    if (frame.type === AuditFrame.syscalls) {
      this.#syscalls += frame.records;
      this.#addSyscalls(frame.bytes);
    } else {
      this.#processRecords += frame.records;
      this.#addProcesses(frame.bytes, frame.records);
    }
  }

  /** What was added since the last time, for a block that lies at `offset`; then it is empty again. */
  take(offset: number): IndexEntry {
    const entry = {
      offset,
      firstNs: this.#firstNs,
      lastNs: this.#lastNs,
      flags: this.#flags,
      kinds: this.#kinds,
      threads: [...this.#threads].sort((a, b) => a - b),
      syscalls: this.#codes.sort((a, b) => a - b),
    };
    for (const code of this.#codes) this.#isSeen[code] = 0;
    this.#threads.clear();
    this.#codes = [];
    this.#lastThread = -1;
    this.#flags = 0;
    this.#kinds = 0;
    this.#firstNs = 0;
    this.#lastNs = 0;
    this.#frames = 0;
    this.#syscalls = 0;
    this.#processRecords = 0;
    this.#hasRecords = false;
    return entry;
  }

  #addSyscalls(bytes: Buffer): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const end = bytes.length;
    for (let at = AUDIT_FRAME_BYTES; at < end; at += SYSCALL_RECORD_BYTES) {
      const thread = view.getUint32(at + 8, true);
      if (thread !== this.#lastThread) this.#addThread(thread);
      const flags = view.getUint16(at + 14, true);
      if ((flags & SyscallFlag.sixth) !== 0) continue;
      const code = view.getUint16(at + 12, true) + ((flags & SyscallFlag.compat) === 0 ? 0 : COMPAT_CODE);
      // A number so large is no system call, but what a job asked for, and would be mistaken for another.
      if (view.getUint16(at + 12, true) >= COMPAT_CODE) this.#flags |= IndexFlag.manySyscalls;
      else if (this.#isSeen[code] === 0) this.#addCode(code);
    }
  }

  #addProcesses(bytes: Buffer, records: number): void {
    let at = AUDIT_FRAME_BYTES;
    for (let index = 0; index < records; index += 1) {
      this.#kinds |= 1 << (bytes[at + 2] as number);
      this.#addThread(bytes.readUInt32LE(at + 4));
      this.#addThread(bytes.readUInt32LE(at + 8));
      at += bytes.readUInt16LE(at);
    }
  }

  #addThread(thread: number): void {
    this.#lastThread = thread;
    if (this.#threads.size < MAX_INDEXED || this.#threads.has(thread)) this.#threads.add(thread);
    else this.#flags |= IndexFlag.manyThreads;
  }

  #addCode(code: number): void {
    if (this.#codes.length === MAX_INDEXED) {
      this.#flags |= IndexFlag.manySyscalls;
      return;
    }
    this.#isSeen[code] = 1;
    this.#codes.push(code);
  }
}
