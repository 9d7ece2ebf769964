/** What a plan consists of. */
import type { SourceSpan } from '../core/source-text.ts';
import type { NetworkRequest } from '../protocol/network.ts';
import type { JobRequest, StepRequest } from '../protocol/run.ts';
import type { VerifyRequest } from '../protocol/verify.ts';

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
  /** `--network`: replaces what jobs may connect to, not their mode. */
  readonly network?: 'none' | readonly string[];
  /** `--exec`: in place of what jobs ask for. */
  readonly exec?: PlannedJob['exec'];
}

/** Names of the secrets that a job's steps are given, each once. */
export function secretNames(job: { readonly steps: readonly StepRequest[] }): string[] {
  return [...new Set(job.steps.flatMap(({ secrets = [] }) => secrets.map(({ name }) => name)))];
}

/** One job of a plan: one VM. */
export interface PlannedJob {
  /** Unique in the plan: `build`, `test (node=20, os=debian)`. */
  readonly name: string;
  /** Key in the job file; absent for a command given on the command line. */
  readonly id?: string;
  /** Names of planned jobs that must succeed first. */
  readonly needs: readonly string[];
  /** Image name, still to be resolved to a digest. */
  readonly image: string;
  readonly cpus: number;
  readonly memoryMib: number;
  readonly diskMib: number;
  /** Over the variables of the image and those the host sets. */
  readonly env: Readonly<Record<string, string>>;
  readonly steps: readonly StepRequest[];
  readonly timeoutMs: number;
  /** Absent: none. */
  readonly network?: NetworkRequest;
  /** Absent: as policy says. */
  readonly exec?: NonNullable<JobRequest['exec']>;
  /** Absent: no more than what policy demands. */
  readonly verify?: VerifyRequest;
  readonly artifacts: readonly string[];
  readonly artifactsExpireMs?: number;
  /** One path component, unique in the plan: artifacts land in `.ct/out/<directory>`. */
  readonly directory: string;
  /** Where things stand in the job file, for messages; absent for a command line. */
  readonly spans?: PlannedSpans;
}

export interface PlannedSpans {
  readonly job: SourceSpan;
  readonly image?: SourceSpan;
  readonly cpu?: SourceSpan;
  readonly memory?: SourceSpan;
  readonly disk?: SourceSpan;
  /** The job's own, or that of the file. */
  readonly network?: SourceSpan;
  /** Where a secret is named first. */
  readonly secrets?: ReadonlyMap<string, SourceSpan>;
}

export interface Plan {
  /** Each after everything it needs; otherwise in file order. */
  readonly jobs: readonly PlannedJob[];
}
