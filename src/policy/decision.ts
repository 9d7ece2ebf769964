/** What policies answer, version 1. Anything else is a denial that says so (`failedDecision`). */
import type { NetworkMode } from '../protocol/network.ts';
import type { Destination } from './destination.ts';

/** One reason, in words for whoever wrote the job. */
export interface Denial {
  /** The rule, as a path into policy: `ct.egress.not_allowed`, `ct.admission.image`. Stable: alerts are told apart by it. */
  readonly rule: string;
  /** A sentence: what was tried, and why that is not allowed. */
  readonly message: string;
  /** The next step: what to write into the job file, or whom to ask. */
  readonly hint?: string;
}

export interface AdmissionDecision {
  readonly allow: boolean;
  /** Empty exactly if allowed. */
  readonly denials: readonly Denial[];
  /** What the run gets; meaningless if denied. */
  readonly network: { readonly mode: NetworkMode; readonly allow: readonly Destination[] };
}

export interface EgressDecision {
  /** `terminate`: deny, and end the run now. */
  readonly action: 'allow' | 'deny' | 'terminate';
  /** What allowed it (as written), e.g. `npm`; absent if nothing did, also where mode `audit` lets it pass. */
  readonly allowed_by?: string;
  /** Present unless a rule allowed it: with action `allow`, this is what mode `audit` only records. */
  readonly denial?: Denial;
}

/** How a decision came to be; goes into the decision log beside it. */
export interface DecisionMeta {
  readonly path: string;
  /** Digest of policy and data. */
  readonly revision: string;
  readonly evaluation_ns: number;
  /** Why there was no answer: undefined, error, time-out, missing data. The decision is then a denial. */
  readonly error?: string;
}

export interface Decided<D> {
  readonly decision: D;
  readonly meta: DecisionMeta;
}
