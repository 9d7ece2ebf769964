/** From job files and a target to a graph of jobs that can be sent to a host. */
import { CtError } from '../core/errors.ts';
import type { SourceSpan } from '../core/yaml-source.ts';
import type { JobRequest, StepRequest } from '../protocol/run.ts';
import type { LoadedJobs } from './load.ts';

/** What the command line says over the job file. */
export interface PlanOptions {
  /** Job ids, or the name of one combination such as `test (node=20)`. Empty: every job. */
  readonly targets: readonly string[];
  /** `-e`: wins over every other variable. Names are checked (USAGE). */
  readonly env?: Readonly<Record<string, string>>;
  readonly image?: string;
  readonly cpus?: number;
  readonly memoryMib?: number;
  readonly diskMib?: number;
}

/** One job of a plan: one VM. */
export interface PlannedJob {
  /** Unique in the plan: `build`, `test (node=20, os=debian)`. */
  readonly name: string;
  /** Key in the job file; undefined for a command given on the command line. */
  readonly id?: string;
  /** Names of planned jobs that must succeed first. */
  readonly needs: readonly string[];
  /** Image name, still to be resolved to a digest. */
  readonly image: string;
  readonly cpus: number;
  readonly memoryMib: number;
  readonly diskMib: number;
  readonly env: Readonly<Record<string, string>>;
  readonly steps: readonly StepRequest[];
  readonly timeoutMs: number;
  readonly artifacts: readonly string[];
  readonly artifactsExpireMs?: number;
  /** One path component, unique in the plan: artifacts land in `.ct/out/<directory>`. */
  readonly directory: string;
  /** Where things stand in the job file, for messages; absent for a command line. */
  readonly spans?: {
    readonly job: SourceSpan;
    readonly image?: SourceSpan;
    readonly cpu?: SourceSpan;
    readonly memory?: SourceSpan;
    readonly disk?: SourceSpan;
  };
}

export interface Plan {
  /** Each after everything it needs; otherwise in file order. */
  readonly jobs: readonly PlannedJob[];
}

export interface CommandOptions extends Omit<PlanOptions, 'targets'> {
  readonly argv: readonly string[];
  readonly stdin?: boolean;
  readonly timeoutMs?: number;
  readonly artifacts?: readonly string[];
}

/**
 * Throws JOB_NOT_FOUND, JOB_NEEDS_CYCLE, NOT_SUPPORTED_YET, JOB_EXPRESSION_INVALID, JOB_FILE_INVALID, USAGE.
 */
export function planJobs(loaded: LoadedJobs, options: PlanOptions): Plan {
  throw new CtError('INTERNAL', `not written yet: ${loaded.root} ${options.targets}`);
}

/** The plan of `ct run -- COMMAND`: one job with one step. Throws USAGE. */
export function planCommand(options: CommandOptions): Plan {
  throw new CtError('INTERNAL', `not written yet: ${options.argv}`);
}

/** What is sent to the host daemon, once the image's digest is known. */
export function toJobRequest(
  job: PlannedJob,
  resolved: { readonly image: string; readonly sendsTree: boolean },
): JobRequest {
  const { name, cpus, memoryMib, diskMib, env, steps, timeoutMs, artifacts } = job;
  return { name, cpus, memoryMib, diskMib, env, steps, timeoutMs, artifacts, ...resolved };
}

export interface HostCapacity {
  readonly cpus: number;
  readonly memoryMib: number;
}

/** Throws RESOURCES_EXCEED_HOST, naming the line and what the host has, if a job can never run on it. */
export function checkCapacity(plan: Plan, host: HostCapacity): void {
  throw new CtError('INTERNAL', `not written yet: ${plan.jobs.length} ${host.cpus}`);
}
