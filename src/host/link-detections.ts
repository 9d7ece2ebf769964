/**
 * The link process's half of the detections: chooses from what the guest records (src/audit/detection/candidates.ts), and
 * sends it to the daemon, which asks policy, one batch at a time. What comes faster than that is counted, and is on record.
 */
import { batches, type SentCandidate } from '../audit/detection/batches.ts';
import { type Candidate, Candidates } from '../audit/detection/candidates.ts';
import type { ParsedFrame } from '../audit/frame-parser.ts';
import { decodeProcesses, decodeSyscalls, type ProcessEvent } from '../audit/records.ts';
import type { NameOf } from '../audit/timeline/destinations.ts';
import type { DetectEvent } from '../policy/detection.ts';
import { AUDIT_FRAME_BYTES, AuditFrame } from '../protocol/audit.ts';

const TAKE_MS = 100;
/** Records of different CPUs are put in order among each other; what has been quiet for so long has nothing to wait for. */
const QUIET_MS = 600;
const NS_PER_MS = 1e6;
/** The daemon judges a tenth of the time, and others wait, too. */
const URGENT_PATIENCE_MS = 20_000;

export interface DetectMessage {
  readonly type: 'detect';
  readonly batch: readonly SentCandidate[];
  /** Events of the run so far that were not chosen from. */
  readonly missed: number;
  /** Milliseconds since 1970 when the guest's clock was 0. */
  readonly clockOffsetMs: number;
}

export class LinkDetections {
  readonly #send: (message: DetectMessage) => void;
  readonly #onProcess: (event: ProcessEvent) => void;
  readonly #candidates: Candidates;
  #queue: SentCandidate[][] = [];
  #isAsked = false;
  #timer: NodeJS.Timeout | undefined;
  #heardAt = 0;
  #hasEnded = false;
  #clockOffsetMs = Number.POSITIVE_INFINITY;
  #onDrained: (() => void) | undefined;

  /** `send`: to the daemon, which says when it has judged. `onProcess`: told at once of all but system calls. */
  constructor(
    send: (message: DetectMessage) => void,
    nameOf: NameOf,
    onProcess: (event: ProcessEvent) => void = () => {},
  ) {
    this.#send = send;
    this.#onProcess = onProcess;
    this.#candidates = new Candidates(nameOf);
  }

  /** A checked frame, which holds during the call only. */
  frame({ bytes, type, cpu, first, records, lastNs }: ParsedFrame): void {
    if (type === AuditFrame.heartbeat || this.#hasEnded) return;
    const payload = bytes.subarray(AUDIT_FRAME_BYTES);
    const events =
      type === AuditFrame.syscalls
        ? decodeSyscalls(payload, { cpu, first, records })
        : decodeProcesses(payload, { first, records });
    for (const event of events) {
      if (event.kind !== 'syscall') this.#onProcess(event);
      this.#candidates.add(event);
    }
    this.#heardAt = performance.now();
    // Frames are late, never early: the least difference is the nearest.
    this.#clockOffsetMs = Math.min(this.#clockOffsetMs, Date.now() - lastNs / NS_PER_MS);
    this.#timer ??= setTimeout(() => this.#take(), TAKE_MS);
  }

  /** Something that was found here and not in the guest. */
  note(packages: Extract<DetectEvent, { kind: 'packages' }>['packages']): void {
    const event: DetectEvent = { kind: 'packages', packages, process: NO_PROCESS };
    this.#queue.unshift(...batches([{ event, timeNs: 0n, process: { pid: 0, startedNs: 0n } }]));
    this.#ask();
  }

  /** The daemon has judged what it was sent. */
  answered(): void {
    this.#isAsked = false;
    this.#ask();
  }

  /**
   * Nothing comes any more: sends what there is, and waits at most `patienceMs` until it is judged. What was refused is waited for
   * longer: a run is not over while nobody has said whether that ends it.
   */
  async end(patienceMs: number): Promise<void> {
    this.#hasEnded = true;
    clearTimeout(this.#timer);
    const all = [...this.#queue, ...sorted(this.#candidates.take(true)).flat()];
    this.#queue = [];
    await this.#drain(all.filter(isUrgent), URGENT_PATIENCE_MS);
    await this.#drain(
      all.filter((batch) => !isUrgent(batch)),
      patienceMs,
    );
  }

  async #drain(batches: readonly SentCandidate[][], patienceMs: number): Promise<void> {
    this.#queue.push(...batches);
    this.#ask();
    if (!this.#isAsked) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#onDrained = resolve;
    const timer = setTimeout(resolve, patienceMs);
    await promise;
    clearTimeout(timer);
    this.#queue = [];
  }

  #take(): void {
    this.#timer = undefined;
    const isQuiet = performance.now() - this.#heardAt >= QUIET_MS;
    // What waits here is bounded, what was taken is not.
    if (this.#queue.length === 0) this.#queue = sorted(this.#candidates.take(isQuiet)).flat();
    this.#ask();
    if (!isQuiet || this.#queue.length > 0) this.#timer = setTimeout(() => this.#take(), TAKE_MS);
  }

  #ask(): void {
    if (this.#isAsked) return;
    const batch = this.#queue.shift();
    if (!batch) {
      this.#onDrained?.();
      return;
    }
    this.#isAsked = true;
    this.#send({
      type: 'detect',
      batch,
      missed: this.#candidates.missed,
      // Nothing was heard of the guest yet: then what is told is of this moment.
      clockOffsetMs: Math.round(Number.isFinite(this.#clockOffsetMs) ? this.#clockOffsetMs : Date.now()),
    });
  }
}

function isUrgent(batch: readonly SentCandidate[]): boolean {
  return batch.some(({ event: { kind } }) => kind === 'denied' || kind === 'packages');
}

const NO_PROCESS: DetectEvent['process'] = { binary: '', program: '', uid: 0, sockets: [], connections: [] };

/** What was refused comes first: nobody puts it off by doing much else. */
function sorted(candidates: readonly Candidate[]): [denied: SentCandidate[][], others: SentCandidate[][]] {
  const isDenied = ({ event }: Candidate): boolean => event.kind === 'denied';
  return [
    batches(candidates.filter(isDenied)),
    batches(candidates.filter((candidate) => !isDenied(candidate))),
  ];
}
