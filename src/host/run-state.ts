/**
 * The states of a run, what may follow each, and how long each may last. Pure.
 *
 *     queued → claiming → staging → running → collecting → destroying → ended
 *
 * States are entered in this order and may be skipped: a run without artifacts does not collect, and any state can be
 * followed by `destroying` (there was a VM) or `ended` (there was none).
 */
import { CtError, type ErrorCode } from '../core/errors.ts';

export const RUN_STATES = [
  'queued',
  'claiming',
  'staging',
  'running',
  'collecting',
  'destroying',
  'ended',
] as const;

export type RunState = (typeof RUN_STATES)[number];
/** States a run can be found in by a daemon that starts: it was killed during them. */
export type UnendedState = Exclude<RunState, 'ended'>;
/** What a link process may report: the states that it alone sees. */
export const LINK_STATES = ['staging', 'running', 'collecting'] as const satisfies readonly RunState[];
export type LinkState = (typeof LINK_STATES)[number];

const MINUTE_MS = 60_000;
/** setTimeout(2) of Node counts in 31 bits; a longer wait would end at once. */
const MAX_TIMER_MS = 2 ** 31 - 1;
/** The link process ends a job at its timeout; the daemon steps in only if that did not happen. */
const RUNNING_GRACE_MS = MINUTE_MS;

/** How long a run may stay in `state` before it is ended as an infrastructure failure. */
export function deadlineMs(state: UnendedState, jobTimeoutMs: number): number {
  switch (state) {
    case 'queued':
      return 12 * 60 * MINUTE_MS; // others may run their jobs to the end first
    case 'claiming':
      return 10 * MINUTE_MS; // two probes, and two boots of a template on a host under load
    case 'staging':
    case 'collecting':
      return 60 * MINUTE_MS; // a tree of many gigabytes through an emulated disk
    case 'running':
      return Math.min(jobTimeoutMs + RUNNING_GRACE_MS, MAX_TIMER_MS);
    case 'destroying':
      return MINUTE_MS; // a SIGKILL, and the farewell to the client
  }
}

const OVERDUE: Readonly<Record<UnendedState, { readonly code: ErrorCode; readonly what: string }>> = {
  queued: { code: 'RUN_QUEUED_OVERDUE', what: 'waited for cpu and memory' },
  claiming: { code: 'RUN_CLAIMING_OVERDUE', what: 'waited for its VM' },
  staging: { code: 'RUN_STAGING_OVERDUE', what: 'was sending the working tree' },
  running: { code: 'RUN_RUNNING_OVERDUE', what: 'was running its steps' },
  collecting: { code: 'RUN_COLLECTING_OVERDUE', what: 'was collecting artifacts' },
  destroying: { code: 'RUN_DESTROYING_OVERDUE', what: 'was destroying its VM' },
};

/** Why a run that overstayed in `state` was ended. */
export function overdueError(state: UnendedState, limitMs: number): CtError {
  const { code, what } = OVERDUE[state];
  return new CtError(code, `the run ${what} for longer than ${Math.round(limitMs / 1000)} s and was ended`, {
    hint: 'the host may be overloaded or its disk stuck; run the job again',
  });
}

/** Whether a run may go from one state to the other: forwards only, and never out of `ended`. */
export function mayFollow(from: RunState, to: RunState): boolean {
  return from !== 'ended' && RUN_STATES.indexOf(to) > RUN_STATES.indexOf(from);
}

const WHILE: Readonly<Record<UnendedState, string>> = {
  queued: 'while the run waited for cpu and memory; it never had a VM',
  claiming: 'while the run waited for its VM; no step had started',
  staging: 'while the working tree was sent; no step had started',
  running: 'while the steps of the run were running',
  collecting: 'while the artifacts of the run were collected; its steps had ended',
  destroying: 'while the VM of the run was destroyed; its result was not recorded',
};

/** What became of a run whose daemon was killed while it was in `state`. */
export function interruptedError(state: UnendedState): CtError {
  return new CtError('HOST_DIED', `the host daemon was killed ${WHILE[state]}`, {
    hint: 'VMs end with their daemon, so nothing of the run is left; run the job again',
  });
}
