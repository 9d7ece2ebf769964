/**
 * Entries of the decision log, in the shape of OPA's own (openpolicyagent.org: "Decision Logs"), so that what reads those reads
 * these. Nothing has to be masked: inputs hold names, never values of secrets.
 */
import type { AdmissionDecision, DecisionMeta, EgressDecision, ImageDecision } from './decision.ts';
import type { DetectInput, Finding } from './detection.ts';
import type { AdmissionInput, EgressInput, ImageInput } from './input.ts';
import type { VerifyDecision, VerifyInput } from './verify.ts';

/** What was found in one event, and is one decision. */
export interface FindingDecision {
  readonly findings: readonly [Finding];
}

export interface DecisionLogEntry {
  /** What decided, and for whom. */
  readonly labels: Readonly<Record<string, string>>;
  readonly decision_id: string;
  /** Digest of policy and data. */
  readonly revision: string;
  /** Of the rule that decided, without `data/`. */
  readonly path: string;
  /** What was asked; the rules of the run as far as they can be about it. */
  readonly input: AdmissionInput | EgressInput | ImageInput | VerifyInput | DetectInput;
  readonly result: AdmissionDecision | EgressDecision | ImageDecision | VerifyDecision | FindingDecision;
  /** Who asked: `run/<id>`; absent if policy was asked before there was a run. */
  readonly requested_by?: string;
  /** RFC 3339, UTC. */
  readonly timestamp: string;
  readonly metrics: { readonly timer_rego_query_eval_ns: number };
  /** Why there was no answer; `result` is then the denial that was made of it. */
  readonly error?: { readonly code: string; readonly message: string };
}

export interface LogContext {
  /** Unique; alerts and `ct policy explain` refer to it. */
  readonly decisionId: string;
  readonly time: Date;
  /** Of this host: its id, the version of ct. */
  readonly labels: Readonly<Record<string, string>>;
}

/** One entry. `input` is what was asked, with the id of its run. */
export function decisionLogEntry(
  context: LogContext,
  input: AdmissionInput | EgressInput | ImageInput | VerifyInput | DetectInput,
  decided: {
    readonly decision: AdmissionDecision | EgressDecision | ImageDecision | VerifyDecision | FindingDecision;
    readonly meta: DecisionMeta;
  },
): DecisionLogEntry {
  const { decision, meta } = decided;
  return {
    labels: context.labels,
    decision_id: context.decisionId,
    revision: meta.revision,
    path: meta.path,
    input,
    result: decision,
    ...(input.run.id === undefined ? {} : { requested_by: `run/${input.run.id}` }),
    timestamp: context.time.toISOString(),
    metrics: { timer_rego_query_eval_ns: meta.evaluation_ns },
    ...(meta.error === undefined ? {} : { error: { code: 'eval_error', message: meta.error } }),
  };
}
