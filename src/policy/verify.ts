/** What `ct/verify/decision` is asked and what it answers, version 1 (docs/verify.md). Names are those of the JSON documents. */
import { ERROR_CODES, type ErrorCode } from '../core/errors.ts';
import { hasKeys } from '../core/json.ts';
import { DEPENDENCY_LEVELS, type DependencyLevel, MAX_MANIFESTS } from '../protocol/verify.ts';
import { type Denial, failure, isListOf, isText, MAX_DENIALS } from './decision.ts';
import type { RunFacts } from './input.ts';

/** Is what this job consists of vouched for? Asked without evidence first: what is demanded, then with it. */
export interface VerifyInput {
  readonly version: 1;
  readonly run: RunFacts;
  /** What the job demands of itself. */
  readonly ask: {
    readonly commit: boolean;
    readonly scripts: readonly string[];
    readonly dependencies: DependencyLevel;
  };
  /** null: nothing was asked for yet. */
  readonly evidence: EvidenceFacts | null;
}

export interface Problem {
  readonly code: ErrorCode;
  readonly message: string;
}

/** A signer of the policy that verification found, by the name that policy has for it. */
export interface SignerFact {
  readonly signer: string;
  /** The identity, the principals of a key, or the name of the key. */
  readonly who: string;
}

/** Everything here was proved on this host; what is not there is null. */
export interface EvidenceFacts {
  readonly commit: {
    readonly id: string;
    /** Whether the run says to be of another commit. */
    readonly is_claimed: boolean;
    readonly signers: readonly SignerFact[];
    /** Why there is no signer. */
    readonly problem: Problem | null;
    /** Paths in which the client sees a difference; empty is no proof, the tree itself is compared. */
    readonly dirty: readonly string[];
  } | null;
  readonly scripts: readonly {
    readonly manifest: string;
    readonly signers: readonly SignerFact[];
    readonly problem: Problem | null;
    readonly files: Readonly<Record<string, true>>;
    readonly directories: readonly string[];
  }[];
  readonly dependencies: readonly {
    readonly lock: string;
    readonly kind: 'npm' | 'pypi';
    readonly packages: number;
    /** Why the lock file cannot be read. */
    readonly problem: Problem | null;
    /** Some packages without a digest, or with one that is too weak. */
    readonly unhashed: readonly string[];
    /** Origins (`https://host`) that it names. */
    readonly origins: readonly string[];
    /** Origins of the registry that this machine is configured for. */
    readonly configured: readonly string[];
    /** Some packages without a signature of the registry. */
    readonly unsigned: readonly string[];
    /** Each set of signers that is all there is for some package: provenance. */
    readonly publishers: readonly (readonly string[])[];
    readonly unproven: readonly string[];
    /** Some packages with evidence that does not verify. */
    readonly invalid: readonly string[];
  }[];
}

/** A denial with the code of the error that it becomes. */
export interface VerifyDenial extends Denial {
  readonly code: ErrorCode;
}

export interface VerifyDecision {
  /** What evidence is needed of. */
  readonly demands: {
    readonly commit: boolean;
    readonly scripts: readonly string[];
    readonly dependencies: DependencyLevel;
  };
  readonly allow: boolean;
  /** Empty exactly if allowed. */
  readonly denials: readonly VerifyDenial[];
}

/** The denial where policy gave no usable answer. */
export function failedVerify(problem: string): VerifyDecision {
  return {
    demands: { commit: false, scripts: [], dependencies: 'none' },
    allow: false,
    denials: [{ ...failure('ct.verify.error', problem), code: 'POLICY_UNAVAILABLE' }],
  };
}

/** The decision, or undefined if `value` is anything but one. */
export function parseVerifyDecision(value: unknown): VerifyDecision | undefined {
  if (!hasKeys(value, ['demands', 'allow', 'denials'])) return undefined;
  const { demands, allow, denials } = value;
  if (!hasKeys(demands, ['commit', 'scripts', 'dependencies'])) return undefined;
  const { commit, scripts, dependencies } = demands;
  if (typeof commit !== 'boolean' || typeof allow !== 'boolean') return undefined;
  if (!isListOf(scripts, 2 * MAX_MANIFESTS, isText)) return undefined;
  if (!DEPENDENCY_LEVELS.includes(dependencies as DependencyLevel)) return undefined;
  if (!isListOf(denials, MAX_DENIALS, isDenial)) return undefined;
  if (allow !== (denials.length === 0)) return undefined;
  return {
    demands: { commit, scripts, dependencies: dependencies as DependencyLevel },
    allow,
    denials: denials.map(({ code, ...denial }) => ({ ...denial, code: refusalCode(code) })),
  };
}

/** Rules of operators may name any code, or none: what is refused is a refusal, whatever they call it. */
function refusalCode(code: unknown): ErrorCode {
  const known =
    typeof code === 'string' && Object.hasOwn(ERROR_CODES, code) ? (code as ErrorCode) : undefined;
  return known !== undefined && ERROR_CODES[known].kind === 'policy' ? known : 'VERIFY_DENIED';
}

function isDenial(value: unknown): value is Denial & { readonly code?: unknown } {
  return (
    hasKeys(value, ['rule', 'message'], ['hint', 'code']) &&
    isText(value['rule']) &&
    isText(value['message']) &&
    (value['hint'] === undefined || isText(value['hint']))
  );
}
