/** What policies answer, version 1. Anything else is a denial that says so (`failedAdmission`, `failedEgress`). */
import { hasKeys } from '../core/json.ts';
import { AUDIT_MODES, type AuditMode } from '../protocol/audit.ts';
import {
  CODE_ORIGINS,
  CODE_POLICY_MODES,
  type CodeOrigin,
  type CodePolicyMode,
  type CodeSettings,
} from '../protocol/code.ts';
import {
  MAX_INTERPRETER_BYTES,
  MAX_INTERPRETER_NAME_BYTES,
  MAX_INTERPRETER_NAMES,
  MAX_INTERPRETERS,
} from '../protocol/limits.ts';
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
  /** Present exactly if allowed. */
  readonly code?: CodeDecision;
}

/** Which code may run. */
export type CodeDecision =
  | { readonly mode: 'off' }
  | {
      readonly mode: Exclude<CodePolicyMode, 'off'>;
      readonly trust: readonly CodeOrigin[];
      readonly interpreters: readonly {
        readonly path: string;
        readonly endings: readonly string[];
        readonly options: readonly string[];
        readonly arguments: 'every' | 'first';
        readonly inline: 'allowed' | 'forbidden';
      }[];
    };

/** What a run is set up with, without the digests of what is signed; undefined: nothing is judged. */
export function codeSettings(decision: CodeDecision): Omit<CodeSettings, 'digests'> | undefined {
  if (decision.mode === 'off') return undefined;
  const { mode, trust, interpreters } = decision;
  return {
    mode,
    trust: { source: trust.includes('source'), built: trust.includes('built') },
    interpreters: interpreters.map(({ path, endings, options, arguments: named, inline }) => ({
      path,
      endings,
      options,
      inlineForbidden: inline === 'forbidden',
      everyArgument: named === 'every',
    })),
  };
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
export const MAX_DENIALS = 10_000;
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

export function failure(rule: string, problem: string): Denial {
  return {
    rule,
    message: `policy could not be asked: ${problem}`,
    hint: 'this is a fault of the policy of this host, not of the job: ask those who run it',
  };
}

/** The decision, or undefined if `value` is anything but one: an unknown key, or a denial without a reason. */
export function parseAdmissionDecision(value: unknown): AdmissionDecision | undefined {
  if (!hasKeys(value, ['allow', 'denials', 'network'], ['audit', 'code'])) return undefined;
  const { allow, denials, network, audit, code } = value;
  if (typeof allow !== 'boolean' || !isListOf(denials, MAX_DENIALS, isDenial)) return undefined;
  if (allow !== (denials.length === 0) || allow !== AUDIT_MODES.includes(audit as never)) return undefined;
  if (allow !== isCodeDecision(code)) return undefined;
  if (!hasKeys(network, ['mode', 'allow']) || !isMode(network['mode'])) return undefined;
  const granted = network['allow'];
  if (!isListOf(granted, MAX_DESTINATIONS, isDestination)) return undefined;
  const given = { mode: network['mode'], allow: granted };
  return {
    allow,
    denials,
    network: given,
    ...(allow ? { audit: audit as AuditMode, code: code as CodeDecision } : {}),
  };
}

function isCodeDecision(value: unknown): value is CodeDecision {
  if (hasKeys(value, ['mode'])) return value['mode'] === 'off';
  if (!hasKeys(value, ['mode', 'trust', 'interpreters'])) return false;
  const { mode, trust, interpreters } = value;
  return (
    mode !== 'off' &&
    CODE_POLICY_MODES.includes(mode as never) &&
    isListOf(trust, CODE_ORIGINS.length, (origin): origin is CodeOrigin =>
      CODE_ORIGINS.includes(origin as never),
    ) &&
    isListOf(interpreters, MAX_INTERPRETERS, isInterpreter)
  );
}

function isInterpreter(value: unknown): value is object {
  if (!hasKeys(value, ['path', 'endings', 'options', 'arguments', 'inline'])) return false;
  const { path, endings, options, arguments: named, inline } = value;
  if (!isWord(path) || !path.startsWith('/')) return false;
  if (!isListOf(endings, MAX_INTERPRETER_NAMES, isName) || !isListOf(options, MAX_INTERPRETER_NAMES, isName))
    return false;
  // One byte of flags, then the words with an end each (src/protocol/guest-link.ts).
  const bytes = [path, ...endings, ...options].reduce((sum, word) => sum + Buffer.byteLength(word) + 1, 1);
  return (
    bytes <= MAX_INTERPRETER_BYTES &&
    options.every((option) => option.startsWith('-')) &&
    endings.every((ending) => !ending.includes('/') && !ending.startsWith('-')) &&
    (named === 'every' || named === 'first') &&
    (inline === 'allowed' || inline === 'forbidden')
  );
}

function isName(value: unknown): value is string {
  return isWord(value) && Buffer.byteLength(value) <= MAX_INTERPRETER_NAME_BYTES;
}

function isWord(value: unknown): value is string {
  return isText(value) && !value.includes('\0');
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

export function isText(value: unknown): value is string {
  return typeof value === 'string' && value.length > 0 && value.length <= MAX_TEXT;
}

export function isListOf<T>(
  value: unknown,
  max: number,
  is: (item: unknown) => item is T,
): value is readonly T[] {
  return Array.isArray(value) && value.length <= max && value.every(is);
}
