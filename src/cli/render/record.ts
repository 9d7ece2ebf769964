/** What is known of a run, gathered from its events; every rendering and the final report are made from it. */
import { ERROR_CODES, type ErrorReport, EXIT_STATUS } from '../../core/errors.ts';
import type { PlannedJob } from '../../job/plan.ts';
import type { JobEnd } from '../../job/schedule.ts';
import type { NetworkMode } from '../../protocol/network.ts';
import type {
  Accelerator,
  JobOutcome,
  ResolvedPreset,
  RunEvent,
  StepOutcome,
  VmSource,
} from '../../protocol/run.ts';
import type { CodeNotice, NetworkNotice } from './network.ts';

/** The daemon sends fewer; it may be of another version. */
const MAX_NOTICES = 1000;

export interface StepRecord {
  readonly name: string;
  state: 'waiting' | 'running' | StepOutcome;
  startedAt: number;
  exitCode?: number;
  signal?: number;
  durationMs?: number;
  hint?: string;
}

export interface ArtifactsRecord {
  readonly directory: string;
  readonly files: number;
  readonly bytes: number;
}

export class JobRecord {
  readonly name: string;
  readonly image: string;
  readonly steps: readonly StepRecord[];
  startedAt: number;
  /** What it is doing, for a status line. */
  phase = 'waiting for the host';
  run?: string;
  accelerator?: Accelerator;
  vmm?: string;
  source?: VmSource;
  claimMs?: number;
  destroyMs?: number;
  artifacts?: ArtifactsRecord;
  policy?: {
    readonly digest: string;
    readonly mode: NetworkMode;
    readonly presets: readonly ResolvedPreset[];
  };
  readonly network: NetworkNotice[] = [];
  readonly code: CodeNotice[] = [];
  end?: JobEnd;
  durationMs?: number;

  constructor(
    job: Pick<PlannedJob, 'name' | 'image'> & { readonly steps: readonly { readonly name: string }[] },
    now: number,
  ) {
    this.name = job.name;
    this.image = job.image;
    this.steps = job.steps.map(({ name }) => ({ name, state: 'waiting', startedAt: 0 }));
    this.startedAt = now;
  }

  get current(): StepRecord | undefined {
    return this.steps.find(({ state }) => state === 'running');
  }

  /** As far as events have said so. */
  get isEndedByPolicy(): boolean {
    return [...this.network, ...this.code].some(({ action }) => action === 'terminated');
  }

  get outcome(): JobOutcome | 'skipped' | 'running' {
    if (!this.end) return 'running';
    return this.end.state === 'ran' ? this.end.result.outcome : this.end.state;
  }

  take(event: RunEvent, now: number): void {
    switch (event.type) {
      case 'queued':
        this.run = event.run;
        this.phase = event.reason ?? 'waiting for room on this host';
        return;
      case 'admitted':
        this.policy = { digest: event.policy, mode: event.mode, presets: event.presets };
        return;
      case 'network':
        if (this.network.length < MAX_NOTICES) this.network.push(event);
        return;
      case 'code':
        if (this.code.length < MAX_NOTICES) this.code.push(event);
        return;
      case 'evidence':
        this.phase = 'verifying what is signed';
        return;
      case 'preparing':
        this.phase = `preparing: ${event.what}`;
        return;
      case 'claimed':
        this.source = event.source;
        this.accelerator = event.accelerator;
        this.vmm = event.vmm;
        this.claimMs = event.claimMs;
        this.phase = 'sending the working tree';
        return;
      case 'staged':
        this.phase = 'starting';
        return;
      case 'step-start': {
        const step = this.steps[event.step];
        if (step) Object.assign(step, { state: 'running', startedAt: now });
        return;
      }
      case 'step-end': {
        const step = this.steps[event.step];
        if (!step) return;
        step.state = event.outcome;
        step.durationMs = event.durationMs;
        if (event.exitCode !== undefined) step.exitCode = event.exitCode;
        if (event.signal !== undefined) step.signal = event.signal;
        if (event.hint !== undefined) step.hint = event.hint;
        this.phase = 'collecting artifacts';
        return;
      }
      case 'collected':
        this.phase = 'destroying the VM';
        return;
      case 'destroyed':
        this.destroyMs = event.durationMs;
        return;
      case 'verified':
      case 'secrets-wanted':
      case 'notice':
      case 'shell':
      case 'shell-offer':
      case 'done':
        return;
    }
  }

  finish(end: JobEnd, now: number): void {
    this.end = end;
    this.durationMs = now - this.startedAt;
    if (end.state !== 'ran') return;
    // A VM that went away does not end its steps one by one.
    for (const step of this.steps) {
      if (step.state === 'running') step.state = end.result.outcome === 'timeout' ? 'timeout' : 'cancelled';
      else if (step.state === 'waiting') step.state = 'skipped';
    }
  }
}

export interface RunRecord {
  readonly jobs: readonly JobRecord[];
  readonly durationMs: number;
  readonly exitStatus: number;
}

/** The worst first: what a run of several jobs is said to have ended with. */
const SEVERITY: readonly JobOutcome[] = [
  'cancelled',
  'violation',
  'infrastructure',
  'timeout',
  'failure',
  'success',
];

/**
 * Exit status of `ct run`. `command`: the `--` form, whose status is that of the command itself once it ran.
 */
export function exitStatusOf(ends: readonly JobEnd[], form: 'jobs' | 'command'): number {
  let worst: { outcome: JobOutcome; status: number } = { outcome: 'success', status: 0 };
  for (const end of ends) {
    if (end.state === 'skipped') continue; // the job it needed failed, and says how
    const outcome = end.state === 'cancelled' ? 'cancelled' : end.result.outcome;
    const status = end.state === 'cancelled' ? EXIT_STATUS.cancelled : statusOf(end.result, form);
    if (SEVERITY.indexOf(outcome) < SEVERITY.indexOf(worst.outcome)) worst = { outcome, status };
  }
  return worst.status;
}

function statusOf(
  result: { readonly outcome: JobOutcome; readonly exitCode: number; readonly error?: ErrorReport },
  form: 'jobs' | 'command',
): number {
  switch (result.outcome) {
    case 'success':
      return 0;
    case 'failure':
      return form === 'command' ? result.exitCode : EXIT_STATUS.job;
    case 'timeout':
      return EXIT_STATUS.timeout;
    case 'cancelled':
      return EXIT_STATUS.cancelled;
    case 'violation':
      return EXIT_STATUS.policy;
    case 'infrastructure':
      // Where the request itself was at fault (more memory than the host has), the status says so.
      return result.error?.code === undefined
        ? EXIT_STATUS.system
        : EXIT_STATUS[ERROR_CODES[result.error.code].kind];
  }
}

/** The document that `ct run --json` prints. Durations in milliseconds. */
export function reportOf(run: RunRecord): unknown {
  return {
    version: 1,
    exitStatus: run.exitStatus,
    durationMs: Math.round(run.durationMs),
    jobs: run.jobs.map((job) => ({
      name: job.name,
      run: job.run,
      image: job.image,
      outcome: job.outcome,
      exitCode: job.end?.state === 'ran' ? job.end.result.exitCode : undefined,
      because: job.end?.state === 'skipped' ? job.end.because : undefined,
      error: job.end?.state === 'ran' ? job.end.result.error : undefined,
      durationMs: job.durationMs === undefined ? undefined : Math.round(job.durationMs),
      vm: job.accelerator && {
        accelerator: job.accelerator,
        securityBoundary: job.accelerator === 'kvm',
        vmm: job.vmm,
        source: job.source,
        claimMs: job.claimMs,
        destroyMs: job.destroyMs,
      },
      steps: job.steps.map(({ name, state, exitCode, signal, durationMs, hint }) => ({
        name,
        outcome: state,
        exitCode,
        signal,
        durationMs,
        hint,
      })),
      artifacts: job.artifacts,
      policy: job.policy,
      network: job.network.length === 0 ? undefined : job.network.map(({ type: _, ...notice }) => notice),
      code: job.code.length === 0 ? undefined : job.code.map(({ type: _, ...notice }) => notice),
    })),
  };
}
