/** The audit record of a run in its link process: the hello, the recorder, and what the daemon is told of it. */
import type { Socket } from 'node:net';
import { AuditRecorder } from '../audit/recorder.ts';
import type { ProcessEvent } from '../audit/records.ts';
import { recoverRecord } from '../audit/recover.ts';
import { MAX_MESSAGE_LENGTH } from '../audit/summary.ts';
import type { NameOf } from '../audit/timeline/destinations.ts';
import { AuditViolation } from '../audit/violation.ts';
import { printable } from '../core/bounded-tail.ts';
import { CtError, messageOf, toCtError } from '../core/errors.ts';
import { startSession } from '../guest/handshake.ts';
import type { GuestSession } from '../guest/session.ts';
import type { Problem } from '../job/packages.ts';
import type { AuditLoss, AuditReport } from './audit-messages.ts';
import { type DetectMessage, LinkDetections } from './link-detections.ts';

/** For the guest's answer to the first bytes, and then for its first frame; one that is emulated on a busy host takes seconds. */
const HELLO_TIMEOUT_MS = 30_000;
const FIRST_FRAME_TIMEOUT_MS = 10_000;
/** For the numbers that the guest has come to, which is asked when its job has ended. */
const POSITION_TIMEOUT_MS = 5000;
/** For the judgement of what happened last. */
const DETECTION_PATIENCE_MS = 2000;
/** Of a guest that does not say its numbers. */
const HEARTBEATS_UNTIL_SENT = 2;

export interface LinkAuditOptions {
  readonly run: string;
  /** The only place, beside the log's, where the process may create files. */
  readonly directory: string;
  /** Of the VM. */
  readonly cpus: number;
  /** Policy ends a run whose record is lost. */
  readonly required: boolean;
  /** Names of synthetic addresses, for the detections. */
  readonly nameOf: NameOf;
  /** Told of every record but those of system calls, as soon as it comes. */
  readonly onProcess: (event: ProcessEvent) => void;
}

export class LinkAudit {
  readonly #tell: (loss: AuditLoss) => void;
  readonly #detect: (message: DetectMessage) => void;
  #detections: LinkDetections | undefined;
  #channel: Socket | undefined;
  #beginning: Promise<AuditRecorder> | undefined;
  #recorder: AuditRecorder | undefined;
  #isEnding = false;
  /** What more the guest could say changes nothing. */
  #isLost = false;

  /** `detect` sends events to be judged. `tell` is called once, as soon as the record cannot be whole any more, unless that shows only when it is ended. */
  constructor(tell: (loss: AuditLoss) => void, detect: (message: DetectMessage) => void) {
    this.#tell = tell;
    this.#detect = detect;
  }

  /** With the audit channel of the VM. Nothing is said on it, and nothing read, until {@link begin}. */
  give(channel: Socket): void {
    this.#channel = channel.on('error', () => {});
  }

  /** Begins the record and returns at once: the guest keeps what happens until it is heard. Legal once. */
  begin(options: LinkAuditOptions): void {
    const channel = this.#channel;
    if (!channel) throw new CtError('INTERNAL', 'a record was to begin without its channel');
    this.#beginning = this.#begin(channel, options);
    this.#beginning.catch((error: unknown) => this.#lose(absence(error)));
  }

  /** For a run that is not to be on record: a guest that nobody reads would stop its job when its memory for records is full. */
  discard(): void {
    const channel = this.#channel;
    if (!channel) return;
    void startSession(channel, HELLO_TIMEOUT_MS).then(
      () => channel.resume(),
      () => {}, // it records nothing
    );
  }

  /** Resolves when the guest is known to record. Throws AUDIT_UNAVAILABLE if it does not. */
  async working(): Promise<void> {
    const unavailable = (why: string): CtError =>
      new CtError(
        'AUDIT_UNAVAILABLE',
        `policy requires an audit record, and the VM makes none: ${why}; nothing of the job was run`,
        { hint: 'an image that was built by an earlier version of ct has no tracer: build it again' },
      );
    let timer: NodeJS.Timeout | undefined;
    try {
      const recorder = await (this.#beginning as Promise<AuditRecorder>);
      const lost = recorder.lost.then((error) => Promise.reject(error));
      const late = new Promise<never>((_, reject) => {
        const late = new CtError('GUEST_UNRESPONSIVE', `no record came within ${FIRST_FRAME_TIMEOUT_MS} ms`);
        timer = setTimeout(() => reject(late), FIRST_FRAME_TIMEOUT_MS);
      });
      await Promise.race([recorder.started, lost, late]);
    } catch (error) {
      throw unavailable(messageOf(error));
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * Ends the record when its job has ended: waits at most `patienceMs` for what the guest has recorded and not sent, and then
   * calls `onGuestDone`. Undefined if there was none to be kept. Legal once.
   */
  async end(
    session: GuestSession,
    patienceMs: number,
    onGuestDone: () => void,
  ): Promise<AuditReport | undefined> {
    const beginning = this.#beginning;
    if (!beginning) return undefined;
    this.#isEnding = true;
    const position = this.#isLost
      ? undefined
      : await session.auditPosition(Math.min(POSITION_TIMEOUT_MS, patienceMs));
    // A guest that says where it is answers the hello, too; the rest need not be waited for.
    if (!this.#recorder && !this.#isLost && !position) {
      return lostReport(absence(new CtError('GUEST_UNRESPONSIVE', 'it does not answer')));
    }
    try {
      const recorder = await beginning;
      const isWhole =
        !this.#isLost &&
        (position
          ? await recorder.reaches(position, patienceMs)
          : await recorder.heartbeats(HEARTBEATS_UNTIL_SENT, patienceMs));
      recorder.stop();
      onGuestDone();
      await this.#detections?.end(DETECTION_PATIENCE_MS);
      const summary = await recorder.finish();
      if (isWhole || summary.violation) return { kind: 'recorded', summary };
      const message = `the guest did not send what it had recorded within ${patienceMs / 1000} s`;
      return { kind: 'recorded', summary: { ...summary, violation: { reason: 'unsent', message } } };
    } catch (error) {
      return lostReport(this.#recorder ? lossOf(toCtError(error)) : absence(error));
    }
  }

  #lose(loss: AuditLoss): void {
    this.#isLost = true;
    if (!this.#isEnding) this.#tell(loss);
  }

  /** Packages of the run are not what their lock file says; without a record nobody judges it. */
  notePackages(manager: string, { problem, path }: Problem): void {
    this.#detections?.note({ manager, problem, path });
  }

  /** The daemon has judged what it was sent. */
  judged(): void {
    this.#detections?.answered();
  }

  async #begin(channel: Socket, options: LinkAuditOptions): Promise<AuditRecorder> {
    await startSession(channel, HELLO_TIMEOUT_MS);
    const { run, directory, cpus, required, nameOf, onProcess } = options;
    const detections = new LinkDetections(this.#detect, nameOf, onProcess);
    this.#detections = detections;
    const recorder = new AuditRecorder({
      channel,
      run,
      directory,
      cpus,
      readsOn: !required,
      onFrame: (frame) => detections.frame(frame),
    });
    this.#recorder = recorder;
    void recorder.lost.then((error) => this.#lose(lossOf(error)));
    return recorder;
  }
}

/** Makes a record of what a process that was killed has left, and says what it is. */
export async function recoverAudit(directory: string, run: string, cpus: number): Promise<AuditReport> {
  try {
    return { kind: 'recorded', summary: await recoverRecord(directory, run, cpus) };
  } catch (error) {
    return lostReport(lossOf(toCtError(error)));
  }
}

function lossOf(error: CtError): AuditLoss {
  return { reason: error instanceof AuditViolation ? error.reason : 'store', message: short(error.message) };
}

function absence(error: unknown): AuditLoss {
  return { reason: 'absent', message: short(`the VM makes no audit record: ${messageOf(error)}`) };
}

function lostReport(loss: AuditLoss): AuditReport {
  return { kind: 'lost', loss };
}

function short(message: string): string {
  return printable(message).slice(0, MAX_MESSAGE_LENGTH);
}
