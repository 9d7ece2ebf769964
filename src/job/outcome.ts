/** From the error that ended a job to the result of the job. */
import { type CtError, errorReport } from '../core/errors.ts';
import type { JobOutcome, JobResult } from '../protocol/run.ts';

export function outcomeOf(error: CtError): JobOutcome {
  if (error.kind === 'timeout' || error.kind === 'cancelled') return error.kind;
  return error.kind === 'policy' ? 'violation' : 'infrastructure';
}

/** The result of a job that did not end by itself. */
export function resultOf(error: CtError): JobResult {
  return { outcome: outcomeOf(error), exitCode: error.exitStatus, error: errorReport(error) };
}
