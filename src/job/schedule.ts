/** Runs a plan: independent jobs side by side within the host's cpus and memory. */
import { CtError } from '../core/errors.ts';
import type { JobResult } from '../protocol/run.ts';
import type { HostCapacity, Plan, PlannedJob } from './plan.ts';

export type JobEnd =
  | { readonly state: 'ran'; readonly result: JobResult }
  /** A job it needs did not succeed; `because` is the name of the one that failed first. */
  | { readonly state: 'skipped'; readonly because: string }
  /** Never started because the run was cancelled. */
  | { readonly state: 'cancelled' };

export interface ScheduleOptions {
  readonly capacity: HostCapacity;
  /** Rejections become a result with the outcome of their error's kind. */
  readonly runOne: (job: PlannedJob, signal: AbortSignal) => Promise<JobResult>;
  readonly signal: AbortSignal;
  /** Called when a job is known not to run, and after each that ran. */
  readonly onEnd?: (job: PlannedJob, end: JobEnd) => void;
}

/** Resolves when every job has ended, one way or another; the keys are job names in plan order. */
export function runPlan(plan: Plan, options: ScheduleOptions): Promise<ReadonlyMap<string, JobEnd>> {
  throw new CtError('INTERNAL', `not written yet: ${plan.jobs.length} ${options.capacity.cpus}`);
}
