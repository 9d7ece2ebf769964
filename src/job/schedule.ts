/** Runs a plan: independent jobs side by side within the host's cpus and memory. */
import { errorReport, toCtError } from '../core/errors.ts';
import type { JobOutcome, JobResult } from '../protocol/run.ts';
import type { HostCapacity, Plan, PlannedJob } from './plan.ts';

export type JobEnd =
  | { readonly state: 'ran'; readonly result: JobResult }
  /** A job it needs did not succeed; `because` is the name of the one that failed first. */
  | { readonly state: 'skipped'; readonly because: string }
  /** Never started because the run was cancelled. */
  | { readonly state: 'cancelled' };

export interface ScheduleOptions {
  readonly capacity: HostCapacity;
  /** Runs one job to its end; a rejection becomes a result with the outcome of the error's kind. */
  readonly runOne: (job: PlannedJob, signal: AbortSignal) => Promise<JobResult>;
  /** Aborting starts no further job; those that run see the same signal and are waited for. */
  readonly signal: AbortSignal;
  /** Called once per job when its end is known. */
  readonly onEnd?: (job: PlannedJob, end: JobEnd) => void;
}

/**
 * Resolves when every job has ended, one way or another; never rejects. The keys are job names in plan order.
 *
 * A job starts when all it needs have succeeded and its cpus and memory are free; of several, the first in the
 * plan starts first, and a small one may pass a large one that does not fit yet. A job larger than the capacity
 * runs alone (checkCapacity refuses it earlier).
 */
export async function runPlan(plan: Plan, options: ScheduleOptions): Promise<ReadonlyMap<string, JobEnd>> {
  const { signal, capacity, onEnd } = options;
  const ends = new Map<string, JobEnd>();
  const running = new Map<PlannedJob, Promise<void>>();
  let waiting = [...plan.jobs];

  const end = (job: PlannedJob, how: JobEnd): void => {
    ends.set(job.name, how);
    onEnd?.(job, how);
  };
  const fits = (job: PlannedJob): boolean => {
    if (running.size === 0) return true;
    let { cpus, memoryMib } = capacity;
    for (const other of running.keys()) {
      cpus -= other.cpus;
      memoryMib -= other.memoryMib;
    }
    return job.cpus <= cpus && job.memoryMib <= memoryMib;
  };

  for (;;) {
    // In plan order everything a job needs stands before it, so one pass settles chains of skipped jobs.
    waiting = waiting.filter((job) => {
      const blocked = signal.aborted ? ({ state: 'cancelled' } as const) : blockedBy(job, ends);
      if (blocked !== undefined) {
        end(job, blocked);
        return false;
      }
      if (!job.needs.every((need) => ends.has(need)) || !fits(job)) return true;
      const run = runToEnd(job, options).then((result) => {
        running.delete(job);
        end(job, { state: 'ran', result });
      });
      running.set(job, run);
      return false;
    });
    if (running.size === 0) break;
    await Promise.race(running.values());
  }
  return new Map(
    plan.jobs.flatMap((job) => {
      const how = ends.get(job.name);
      return how === undefined ? [] : [[job.name, how] as const];
    }),
  );
}

/** Why `job` can no longer start, if so. */
function blockedBy(job: PlannedJob, ends: ReadonlyMap<string, JobEnd>): JobEnd | undefined {
  for (const need of job.needs) {
    const how = ends.get(need);
    if (how === undefined || (how.state === 'ran' && how.result.outcome === 'success')) continue;
    if (how.state === 'cancelled') return how;
    return { state: 'skipped', because: how.state === 'skipped' ? how.because : need };
  }
  return undefined;
}

async function runToEnd(job: PlannedJob, options: ScheduleOptions): Promise<JobResult> {
  try {
    return await options.runOne(job, options.signal);
  } catch (error) {
    const failure = toCtError(error);
    return {
      outcome: OUTCOMES[failure.kind] ?? 'infrastructure',
      exitCode: failure.exitStatus,
      error: errorReport(failure),
    };
  }
}

const OUTCOMES: Readonly<Partial<Record<string, JobOutcome>>> = {
  job: 'failure',
  timeout: 'timeout',
  cancelled: 'cancelled',
  policy: 'violation',
};
