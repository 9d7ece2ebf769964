/**
 * Detections: what `ct.detect` finds in the events of a run becomes alerts. Pure: candidates, answers and the time are arguments.
 *
 * The process that reads the guest adds every event to {@link Candidates}, takes what there is to judge every tenth of a second
 * and sends it in batches (detection/batches.ts). The daemon, which asks policy, makes a question of each and gives the answer
 * to {@link Detections.alerts}.
 */
import { createHash } from 'node:crypto';
import type { DetectEvent, DetectInput, Finding } from '../policy/detection.ts';
import type { RunFacts } from '../policy/input.ts';
import { type Alert, alertRun } from './alert.ts';
import type { Candidate, Candidates } from './detection/candidates.ts';
import { RunClock } from './timeline/clock.ts';

/** Of a command line, in an alert. */
const MAX_COMMAND_CHARACTERS = 1000;

export interface DetectionOptions {
  readonly run: RunFacts & { readonly id: string };
  /** `host:port` that earlier runs of the job connected to; null: there were none to learn from. */
  readonly baseline: readonly string[] | null;
  /** Which code may run; absent: nothing is judged. */
  readonly code?: DetectInput['code'];
  /** Nanoseconds since 1970 when the guest's clock was 0. */
  readonly clockOffsetNs: bigint;
  /** Where the run's record lies. */
  readonly evidence: string;
}

export interface Detected {
  readonly alert: Alert;
  /** The run has to be ended. */
  readonly isTerminating: boolean;
}

export class Detections {
  readonly #options: DetectionOptions;
  readonly #clock: RunClock;
  #missed = 0;
  #hasFailed = false;

  constructor(options: DetectionOptions) {
    this.#options = options;
    this.#clock = new RunClock(options.clockOffsetNs);
  }

  /** What to ask about a batch. */
  question(batch: readonly Candidate[]): DetectInput {
    const { run, baseline, code } = this.#options;
    return {
      version: 1,
      run,
      baseline: baseline && { destinations: baseline },
      ...(code && { code }),
      events: batch.map(({ event }) => event),
    };
  }

  /**
   * What the answer to a question means: an alert for each finding that asks for one. No answer is an alert, too, once in a run: somebody has to
   * know that nothing is being looked for.
   */
  alerts(batch: readonly Candidate[], findings: readonly Finding[] | undefined, now: Date): Detected[] {
    if (findings) return findings.flatMap((finding) => this.#alert(finding, batch) ?? []);
    if (this.#hasFailed) return [];
    this.#hasFailed = true;
    return [this.#own('ct.detect.error', 'policy gave no answer about the events of the run', now)];
  }

  /** An alert if more events had to be passed over than at the last call. `missed`: {@link Candidates.missed}. */
  overflow(missed: number, now: Date): Detected | undefined {
    const more = missed - this.#missed;
    if (more <= 0) return undefined;
    this.#missed = missed;
    return this.#own(
      'ct.detect.overflow',
      `${more} events came faster than they could be judged; they are on record`,
      now,
    );
  }

  #alert(finding: Finding, batch: readonly Candidate[]): Detected | undefined {
    const candidate = batch[finding.event];
    if (!candidate || finding.action === 'record') return undefined;
    const { event, process, timeNs } = candidate;
    const text = argumentsOf(event).join(' ').slice(0, MAX_COMMAND_CHARACTERS);
    const file = fileOf(event);
    return this.#detected(finding, {
      time: this.#clock.text(timeNs),
      // What the host itself has found is of no process.
      ...(process.pid === 0
        ? {}
        : {
            process: {
              pid: process.pid,
              binary: event.process.binary,
              ...(text === '' ? {} : { arguments: text }),
            },
          }),
      ...(file && { file }),
      ...(event.kind === 'connect'
        ? { destination: { host: event.connect.host, port: event.connect.port } }
        : {}),
      key: `${process.pid}:${process.startedNs}:${timeNs}`,
      isRefused: event.kind === 'denied' && event.denied.refused,
    });
  }

  #own(rule: string, message: string, now: Date): Detected {
    const time = now.toISOString();
    return this.#detected({ rule, severity: 'high', message, action: 'alert' }, { time, key: time });
  }

  #detected(
    { rule, severity, message, action }: Omit<Finding, 'event'>,
    {
      key,
      isRefused = false,
      ...what
    }: Pick<Alert, 'time' | 'process' | 'file' | 'destination'> & {
      readonly key: string;
      readonly isRefused?: boolean;
    },
  ): Detected {
    const { run, evidence } = this.#options;
    const isTerminating = action === 'terminate';
    return {
      isTerminating,
      alert: {
        version: 1,
        id: idOf(`${run.id} ${rule} ${key}`),
        severity,
        title: message,
        rule,
        action: isTerminating ? 'terminated' : isRefused ? 'denied' : 'recorded',
        run: alertRun(run),
        ...what,
        evidence: { file: evidence, id: key },
        count: 1,
      },
    };
  }
}

/** The command line that belongs to it. */
function argumentsOf(event: DetectEvent): readonly string[] {
  if (event.kind === 'exec') return event.exec.args;
  return event.kind === 'denied' ? event.denied.args : [];
}

/** The file that was to be run, or that is not as it should be. */
function fileOf(event: DetectEvent): Alert['file'] {
  if (event.kind === 'packages') return { path: event.packages.path };
  if (event.kind !== 'denied' || event.denied.path === '') return undefined;
  const { path, digest } = event.denied;
  return { path, ...(digest === undefined ? {} : { digest: `sha256:${digest}` }) };
}

/** In the form of a UUID (RFC 9562, version 8): the same finding has the same id, so that receivers drop it the second time. */
function idOf(text: string): string {
  const hex = createHash('sha256').update(text).digest('hex');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
}
