/** The daemon's half of the detections: asks policy about what a link process has chosen of the events of a run. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { AlertSink } from '../audit/alert.ts';
import { type DetectionOptions, Detections } from '../audit/detect.ts';
import type { Candidate } from '../audit/detection/candidates.ts';
import { CtError } from '../core/errors.ts';
import type { PolicyEngine } from '../policy/engine.ts';
import { CODE_PACKAGE, type CodeVerdicts, type JudgedRun } from './code-verdicts.ts';

/** Between two batches of one run. */
const LEAST_PAUSE_MS = 20;
/** A pause is so many times as long as the evaluation before it: no run takes more than a tenth of the daemon's time. */
const PAUSE_FACTOR = 9;
const NS_PER_MS = 1_000_000n;
/** Of one run; one that has more does not say what its job does. */
const MAX_DESTINATIONS = 1000;

export interface DetectReport {
  readonly batch: readonly Candidate[];
  readonly missed: number;
  readonly clockOffsetMs: number;
}

export interface RunDetectionsOptions extends Omit<DetectionOptions, 'clockOffsetNs'> {
  readonly engine: Pick<PolicyEngine, 'detect'>;
  readonly alerts: AlertSink;
  /** What follows from what is said of code. */
  readonly verdicts?: CodeVerdicts | undefined;
}

export class RunDetections {
  readonly #options: RunDetectionsOptions;
  #detections: Detections | undefined;
  readonly #destinations = new Set<string>();
  #hasMissed = false;
  /** No other run waits for this one's before then. */
  #restsUntil = 0;

  constructor(options: RunDetectionsOptions) {
    this.#options = options;
  }

  /**
   * `host:port` that the run connected to; undefined if that is no measure for later runs: not all of it is known, or anybody
   * could have made the job do it.
   */
  get destinations(): readonly string[] | undefined {
    const isMeasure = !this.#hasMissed && this.#options.run.trust !== 'untrusted';
    return isMeasure ? [...this.#destinations] : undefined;
  }

  /**
   * Files an alert for everything that policy finds. Resolves when that is done: then the next batch may come, which waits here
   * until it is its turn. A rule may end the run, at once.
   */
  async judge({ batch, missed, clockOffsetMs }: DetectReport, run: JudgedRun): Promise<void> {
    const { engine, alerts, verdicts } = this.#options;
    // The guest's clock does not jump; what is said later changes nothing.
    const clockOffsetNs = BigInt(clockOffsetMs) * NS_PER_MS;
    this.#detections ??= new Detections({ ...this.#options, clockOffsetNs });
    const detections = this.#detections;
    if (missed > 0) this.#hasMissed = true;
    for (const { event } of batch) {
      if (event.kind === 'connect') this.#connected(`${event.connect.host}:${event.connect.port}`);
    }
    const restMs = this.#restsUntil - performance.now();
    if (restMs > 0) await sleep(restMs, undefined, { ref: false });
    const startedAt = performance.now();
    const question = detections.question(batch);
    const detected = await engine.detect(question);
    const endedAt = performance.now();
    this.#restsUntil = endedAt + Math.max(LEAST_PAUSE_MS, PAUSE_FACTOR * (endedAt - startedAt));
    const now = new Date();
    const overflow = detections.overflow(missed, now);
    for (const { alert, isTerminating } of [
      ...detections.alerts(batch, detected.findings, now),
      ...(overflow ? [overflow] : []),
    ]) {
      alerts.file(alert);
      // What is said of code ends the run below, in words of its own.
      if (!isTerminating || (verdicts && alert.rule.startsWith(CODE_PACKAGE))) continue;
      run.terminate(
        new CtError('POLICY_VIOLATION', `${alert.title} (rule ${alert.rule})`, {
          hint: `what it did: ct audit show ${alert.run.id}; \`detect\` of the policy says what follows from a rule`,
        }),
      );
    }
    verdicts?.take(question, batch, detected, run);
  }

  #connected(place: string): void {
    if (this.#destinations.size < MAX_DESTINATIONS) this.#destinations.add(place);
    else if (!this.#destinations.has(place)) this.#hasMissed = true;
  }
}
