/** From the error that ended a job to the result of the job. */
import { type CtError, errorReport } from '../core/errors.ts';
import type { ExecResult } from '../guest/session.ts';
import type { JobOutcome, JobResult } from '../protocol/run.ts';

export function outcomeOf(error: CtError): JobOutcome {
  if (error.kind === 'timeout' || error.kind === 'cancelled') return error.kind;
  return error.kind === 'policy' ? 'violation' : 'infrastructure';
}

/** The result of a job that did not end by itself. */
export function resultOf(error: CtError): JobResult {
  return { outcome: outcomeOf(error), exitCode: error.exitStatus, error: errorReport(error) };
}

/** Exit codes as a shell reports them: 128 + signal, 126 not executable, 127 not found. */
export function exitCodeOf(result: ExecResult): number {
  if (result.kind === 'exited') return result.code;
  if (result.kind === 'signalled') return 128 + result.signal;
  return result.errno === 2 ? 127 : 126;
}
