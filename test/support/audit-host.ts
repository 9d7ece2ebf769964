/** A host that reads what a real guest records, by the product's own parser and decoder. */
import { setTimeout as sleep } from 'node:timers/promises';
import { type AuditCounts, FrameParser, type ParsedFrame } from '../../src/audit/frame-parser.ts';
import {
  decodeProcesses,
  decodeSyscalls,
  type ProcessEvent,
  type SyscallEvent,
} from '../../src/audit/records.ts';
import { startSession } from '../../src/guest/handshake.ts';
import { AUDIT_FRAME_BYTES, AuditFrame } from '../../src/protocol/audit.ts';
import type { TestGuest } from './machines.ts';

export interface AuditHostOptions {
  readonly cpus?: number;
  /** Bytes a second that it reads at most. */
  readonly rate?: number;
  /** Events are only counted, by number: there are too many to keep. */
  readonly isBulk?: boolean;
}

export class AuditHost {
  readonly processes: ProcessEvent[] = [];
  readonly calls: SyscallEvent[] = [];
  /** Calls at their exit, of the 64-bit ABI. */
  readonly callsByNumber = new Map<number, number>();
  /** When frames came, milliseconds of `performance.now`. */
  readonly arrivals: {
    readonly type: number;
    readonly atMs: number;
    /** Of its first and last record, by the guest's clock. */
    readonly firstNs: number;
    readonly lastNs: number;
  }[] = [];
  failure: unknown;
  readonly #parser: FrameParser;
  readonly #guest: TestGuest;
  readonly #isBulk: boolean;

  private constructor(guest: TestGuest, { cpus = 1, rate, isBulk = false }: AuditHostOptions) {
    this.#guest = guest;
    this.#isBulk = isBulk;
    this.#parser = new FrameParser(cpus, (frame) => this.#take(frame));
    guest.audit.on('data', (chunk: Buffer) => {
      try {
        if (this.failure === undefined) this.#parser.push(chunk);
      } catch (error) {
        this.failure = error;
      }
      if (rate === undefined) return;
      guest.audit.pause();
      setTimeout(() => guest.audit.resume(), (chunk.length / rate) * 1000);
    });
  }

  /** The guest is one that was cloned with `audit: 'unread'`. */
  static async open(guest: TestGuest, options: AuditHostOptions = {}): Promise<AuditHost> {
    await startSession(guest.audit, 20_000);
    return new AuditHost(guest, options);
  }

  get counts(): AuditCounts {
    return this.#parser.counts;
  }

  /** Everything that the guest has recorded until now has come. Throws what the parser finds wrong. */
  async caughtUp(timeoutMs = 20_000): Promise<void> {
    const position = await this.#guest.session.auditPosition(timeoutMs);
    if (!position) throw new Error('the guest does not say what it has recorded');
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      if (this.failure !== undefined) throw this.failure;
      const { cpus, processRecords } = this.counts;
      const isThere = position.cpus.every((records, cpu) => (cpus[cpu]?.records ?? 0) >= records);
      if (isThere && processRecords >= position.processes) return;
      if (performance.now() > deadline) throw new Error(`the record stops at ${JSON.stringify(this.counts)}`);
      await sleep(5);
    }
  }

  of<Kind extends ProcessEvent['kind']>(kind: Kind): Extract<ProcessEvent, { kind: Kind }>[] {
    return this.processes.filter((event) => event.kind === kind) as Extract<ProcessEvent, { kind: Kind }>[];
  }

  #take({ bytes, type, cpu, first, records, firstNs, lastNs }: ParsedFrame): void {
    this.arrivals.push({ type, atMs: performance.now(), firstNs, lastNs });
    const payload = bytes.subarray(AUDIT_FRAME_BYTES);
    if (type === AuditFrame.processes) {
      this.processes.push(...decodeProcesses(Buffer.from(payload), { first, records }));
    } else if (type === AuditFrame.syscalls && this.#isBulk) {
      for (let at = 12; at < payload.length; at += 64) {
        if (payload.readUInt16LE(at + 2) !== 0) continue;
        const number = payload.readUInt16LE(at);
        this.callsByNumber.set(number, (this.callsByNumber.get(number) ?? 0) + 1);
      }
    } else if (type === AuditFrame.syscalls) {
      for (const event of decodeSyscalls(Buffer.from(payload), { cpu, first, records })) {
        if (event.kind !== 'syscall') continue;
        this.calls.push(event);
        if (event.isAtEntry || event.isCompat) continue;
        this.callsByNumber.set(event.number, (this.callsByNumber.get(event.number) ?? 0) + 1);
      }
    }
  }
}

/** Compiles C in the guest's working directory. */
export async function compile(guest: TestGuest, name: string, source: string): Promise<void> {
  const { err, result } = await guest.sh(`gcc -O1 -o ${name} -x c - -lpthread`, {
    stdin: (async function* () {
      yield Buffer.from(source);
    })(),
  });
  if (result.kind !== 'exited' || result.code !== 0) throw new Error(err);
}
