/** What policies answer, version 1. Anything else is a denial that says so (`failedAdmission`, `failedEgress`). */
import { hasKeys } from '../core/json.ts';
import { AUDIT_MODES, type AuditMode } from '../protocol/audit.ts';
import { NETWORK_MODES, type NetworkMode } from '../protocol/network.ts';
import { DESTINATION_PROTOCOLS, type Destination } from './destination.ts';

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
  /** Present exactly if allowed. */
  readonly audit?: AuditMode;
}

export interface EgressDecision {
  /** `terminate`: deny, and end the run now. */
  readonly action: 'allow' | 'deny' | 'terminate';
  /** What allowed it (as written), e.g. `npm`; absent if nothing did, also where mode `audit` lets it pass. */
  readonly allowed_by?: string;
  /** Present unless a rule allowed it: with action `allow`, this is what mode `audit` only records. */
  readonly denial?: Denial;
}

export interface ImageDecision {
  readonly allow: boolean;
  /** Empty exactly if allowed. */
  readonly denials: readonly Denial[];
  /** What whoever started the job should know. */
  readonly notices: readonly string[];
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

/** Decisions as long as their input may be; longer is no answer of ours. */
const MAX_TEXT = 4096;
const MAX_DENIALS = 10_000;
const MAX_DESTINATIONS = 100_000;
const MAX_NOTICES = 100;

/** The denial where policy gave no usable answer: `problem` completes "policy could not be asked: …". */
export function failedAdmission(problem: string): AdmissionDecision {
  return {
    allow: false,
    denials: [failure('ct.admission.error', problem)],
    network: { mode: 'enforce', allow: [] },
  };
}

/** The same of an event of the network; it denies in every mode, also in `audit`. */
export function failedEgress(problem: string): EgressDecision {
  return { action: 'deny', denial: failure('ct.egress.error', problem) };
}

/** The same of an image. */
export function failedImage(problem: string): ImageDecision {
  return { allow: false, denials: [failure('ct.image.error', problem)], notices: [] };
}

function failure(rule: string, problem: string): Denial {
  return {
    rule,
    message: `policy could not be asked: ${problem}`,
    hint: 'this is a fault of the policy of this host, not of the job: ask those who run it',
  };
}

/** The decision, or undefined if `value` is anything but one: an unknown key, or a denial without a reason. */
export function parseAdmissionDecision(value: unknown): AdmissionDecision | undefined {
  if (!hasKeys(value, ['allow', 'denials', 'network'], ['audit'])) return undefined;
  const { allow, denials, network, audit } = value;
  if (typeof allow !== 'boolean' || !isListOf(denials, MAX_DENIALS, isDenial)) return undefined;
  if (allow !== (denials.length === 0) || allow !== AUDIT_MODES.includes(audit as never)) return undefined;
  if (!hasKeys(network, ['mode', 'allow']) || !isMode(network['mode'])) return undefined;
  const granted = network['allow'];
  if (!isListOf(granted, MAX_DESTINATIONS, isDestination)) return undefined;
  const given = { mode: network['mode'], allow: granted };
  return { allow, denials, network: given, ...(allow ? { audit: audit as AuditMode } : {}) };
}

/** As {@link parseAdmissionDecision}. */
export function parseEgressDecision(value: unknown): EgressDecision | undefined {
  if (!hasKeys(value, ['action'], ['allowed_by', 'denial'])) return undefined;
  const { action, allowed_by, denial } = value;
  if (action !== 'allow' && action !== 'deny' && action !== 'terminate') return undefined;
  if (allowed_by !== undefined) {
    return action === 'allow' && denial === undefined && isText(allowed_by)
      ? { action, allowed_by }
      : undefined;
  }
  return isDenial(denial) ? { action, denial } : undefined;
}

/** As {@link parseAdmissionDecision}. */
export function parseImageDecision(value: unknown): ImageDecision | undefined {
  if (!hasKeys(value, ['allow', 'denials', 'notices'])) return undefined;
  const { allow, denials, notices } = value;
  if (typeof allow !== 'boolean' || !isListOf(denials, MAX_DENIALS, isDenial)) return undefined;
  if (allow !== (denials.length === 0) || !isListOf(notices, MAX_NOTICES, isText)) return undefined;
  return { allow, denials, notices };
}

function isDenial(value: unknown): value is Denial {
  return (
    hasKeys(value, ['rule', 'message'], ['hint']) &&
    isText(value['rule']) &&
    isText(value['message']) &&
    (value['hint'] === undefined || isText(value['hint']))
  );
}

function isDestination(value: unknown): value is Destination {
  if (!hasKeys(value, ['rule', 'host', 'port', 'protocol', 'addresses'])) return false;
  const { rule, host, port, protocol, addresses } = value;
  return (
    isText(rule) &&
    isText(host) &&
    Number.isInteger(port) &&
    (port as number) >= (host === '*' ? 0 : 1) &&
    (port as number) <= 65_535 &&
    DESTINATION_PROTOCOLS.includes(protocol as never) &&
    (addresses === 'public' || addresses === 'any')
  );
}

function isMode(value: unknown): value is NetworkMode {
  return NETWORK_MODES.includes(value as never);
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value.length > 0 && value.length <= MAX_TEXT;
}

function isListOf<T>(value: unknown, max: number, is: (item: unknown) => item is T): value is readonly T[] {
  return Array.isArray(value) && value.length <= max && value.every(is);
}
