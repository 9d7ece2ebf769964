/**
 * Detections: events of a run are put to `ct.detect` in batches, and what it finds becomes alerts. Pure: events, names, answers
 * and the time are arguments. Whoever runs a VM calls {@link Detections.add} for every event and {@link Detections.questions}
 * every tenth of a second, asks the policy, and gives the answers to {@link Detections.alerts}.
 */
import { createHash } from 'node:crypto';
import type { DetectInput, Finding } from '../policy/detection.ts';
import type { RunFacts } from '../policy/input.ts';
import type { Alert } from './alert.ts';
import { type Candidate, Candidates } from './detection/candidates.ts';
import type { AuditEvent } from './records.ts';
import { RunClock } from './timeline/clock.ts';
import type { NameOf } from './timeline/destinations.ts';

/** A batch is evaluated in one go, during which nothing else happens: some milliseconds. */
export const MAX_BATCH_EVENTS = 64;
/** Of all events of a batch; one has 130 KiB at most, as its arguments are cut. */
const MAX_BATCH_CHARACTERS = 200_000;
const MAX_ARGUMENTS_CHARACTERS = 1000;

export interface DetectionOptions {
  readonly run: RunFacts & { readonly id: string };
  /** `host:port` that earlier runs of the job connected to; null: there were none to learn from. */
  readonly baseline: readonly string[] | null;
  readonly nameOf: NameOf;
  /** Nanoseconds since 1970 when the guest's clock was 0. */
  readonly clockOffsetNs: bigint;
  /** Where the run's record lies. */
  readonly evidence: string;
}

export interface Question {
  readonly input: DetectInput;
  readonly candidates: readonly Candidate[];
}

export interface Detected {
  readonly alert: Alert;
  /** The run has to be ended. */
  readonly isTerminating: boolean;
}

export class Detections {
  readonly #options: DetectionOptions;
  readonly #candidates: Candidates;
  readonly #clock: RunClock;
  #missed = 0;
  #hasFailed = false;

  constructor(options: DetectionOptions) {
    this.#options = options;
    this.#candidates = new Candidates(options.nameOf);
    this.#clock = new RunClock(options.clockOffsetNs);
  }

  add(event: AuditEvent): void {
    this.#candidates.add(event);
  }

  /** What has to be asked now. `isLast`: the run has ended. */
  questions(isLast = false): Question[] {
    const questions: Question[] = [];
    let batch: Candidate[] = [];
    let characters = 0;
    const close = (): void => {
      if (batch.length > 0) questions.push({ input: this.#input(batch), candidates: batch });
      batch = [];
      characters = 0;
    };
    for (const candidate of this.#candidates.take(isLast)) {
      const length = JSON.stringify(candidate.event).length;
      if (batch.length >= MAX_BATCH_EVENTS || characters + length > MAX_BATCH_CHARACTERS) close();
      batch.push(candidate);
      characters += length;
    }
    close();
    return questions;
  }

  /**
   * What the answer to a question means: an alert for each finding. No answer is an alert, too, once in a run: somebody has to
   * know that nothing is being looked for.
   */
  alerts({ candidates }: Question, findings: readonly Finding[] | undefined, now: Date): Detected[] {
    if (findings) return findings.flatMap((finding) => this.#alert(finding, candidates) ?? []);
    if (this.#hasFailed) return [];
    this.#hasFailed = true;
    return [this.#own('ct.detect.error', 'policy gave no answer about the events of the run', now)];
  }

  /** An alert if events had to be passed over since the last call, which happens when more come than can be judged. */
  overflow(now: Date): Detected | undefined {
    const { missed } = this.#candidates;
    if (missed === this.#missed) return undefined;
    const more = missed - this.#missed;
    this.#missed = missed;
    return this.#own(
      'ct.detect.overflow',
      `${more} events came faster than they could be judged; they are on record`,
      now,
    );
  }

  #input(batch: readonly Candidate[]): DetectInput {
    const { run, baseline } = this.#options;
    return {
      version: 1,
      run,
      baseline: baseline && { destinations: baseline },
      events: batch.map(({ event }) => event),
    };
  }

  #alert(finding: Finding, candidates: readonly Candidate[]): Detected | undefined {
    const candidate = candidates[finding.event];
    if (!candidate) return undefined;
    const { event, process, timeNs } = candidate;
    const text = event.kind === 'exec' ? event.exec.args.join(' ').slice(0, MAX_ARGUMENTS_CHARACTERS) : '';
    return this.#detected(finding, {
      time: this.#clock.text(timeNs),
      process: {
        pid: process.pid,
        binary: event.process.binary,
        ...(text === '' ? {} : { arguments: text }),
      },
      ...(event.kind === 'connect'
        ? { destination: { host: event.connect.host, port: event.connect.port } }
        : {}),
      key: `${process.pid}:${process.startedNs}:${timeNs}`,
    });
  }

  #own(rule: string, message: string, now: Date): Detected {
    const time = now.toISOString();
    return this.#detected({ rule, severity: 'high', message, action: 'alert' }, { time, key: time });
  }

  #detected(
    { rule, severity, message, action }: Omit<Finding, 'event'>,
    { key, ...what }: Pick<Alert, 'time' | 'process' | 'destination'> & { readonly key: string },
  ): Detected {
    const { run, evidence } = this.#options;
    const { id, job, repository, ref, actor } = run;
    const isTerminating = action === 'terminate';
    return {
      isTerminating,
      alert: {
        version: 1,
        id: idOf(`${id} ${rule} ${key}`),
        severity,
        title: message,
        rule,
        action: isTerminating ? 'terminated' : 'recorded',
        run: {
          id,
          job,
          ...(repository === undefined ? {} : { repository }),
          ...(ref === undefined ? {} : { ref }),
          ...(actor === undefined ? {} : { actor }),
        },
        ...what,
        evidence: { file: evidence, id: key },
        count: 1,
      },
    };
  }
}

/** In the form of a UUID (RFC 9562, version 8): the same finding has the same id, so that receivers drop it the second time. */
function idOf(text: string): string {
  const hex = createHash('sha256').update(text).digest('hex');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
}
