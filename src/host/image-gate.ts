/** Whether an image may boot for a run: what is proved of it, and what policy says to that. Asked for every run, before its VM is claimed. */
import { type Alert, alertRun, newAlert } from '../audit/alert.ts';
import { CtError, type ErrorCode } from '../core/errors.ts';
import { ImageEvidence, type ImageSigners } from '../image/evidence.ts';
import type { ImageStore } from '../image/store.ts';
import type { Decided, Denial, ImageDecision } from '../policy/decision.ts';
import type { PolicyEngine } from '../policy/engine.ts';
import { type ImageInput, INPUT_VERSION, type RunFacts } from '../policy/input.ts';
import type { ImageStanding } from '../protocol/run.ts';

/** What of a policy counts here. */
export interface ImagePolicy {
  readonly engine: Pick<PolicyEngine, 'decideImage' | 'revision'>;
  readonly imageSigners: ImageSigners;
}

export interface ImageVerdict {
  readonly input: ImageInput;
  readonly decided: Decided<ImageDecision>;
}

export interface ImageGateOptions {
  readonly ctHome: string;
  readonly images: ImageStore;
  /** Only tests have another clock. */
  readonly now?: () => Date;
}

export class ImageGate {
  readonly #evidence: ImageEvidence;
  readonly #now: () => Date;

  constructor({ ctHome, images, now = () => new Date() }: ImageGateOptions) {
    this.#evidence = new ImageEvidence(ctHome, images);
    this.#now = now;
  }

  /**
   * Proves what can be proved of the image and asks policy. A refusal is an answer ({@link imageRefusal}). Throws IMAGE_NOT_FOUND,
   * IMAGE_CORRUPT, TRUST_INVALID.
   */
  async judge(digest: string, run: RunFacts, policy: ImagePolicy): Promise<ImageVerdict> {
    const now = this.#now();
    const facts = await this.#evidence.facts(digest, policy.imageSigners, now);
    const input: ImageInput = { version: INPUT_VERSION, now: upToMinute(now), run, ...facts };
    return { input, decided: await policy.engine.decideImage(input) };
  }
}

/** Later rather than earlier: nothing is taken to be younger than it is. */
function upToMinute(now: Date): number {
  return Math.ceil(now.getTime() / 60_000) * 60;
}

/** What a run is told of its image, and what stays on record of it. */
export function standingOf({ input, decided }: ImageVerdict): ImageStanding {
  const { image, signatures } = input;
  return {
    name: image.name,
    digest: image.digest,
    made: image.made?.how ?? 'elsewhere',
    signers: [...new Set(signatures.map(({ signer }) => signer))],
    policy: decided.meta.revision,
    allowed: decided.decision.allow,
  };
}

/** The first of these that is among the denials says how the run ends. */
const CODES: readonly (readonly [rule: string, code: ErrorCode])[] = [
  ['ct.image.error', 'POLICY_UNAVAILABLE'],
  ['ct.image.revoked', 'IMAGE_REVOKED'],
  ['ct.image.signature', 'SIGNATURE_UNTRUSTED'],
  ['ct.image.local', 'SIGNATURE_UNTRUSTED'],
  ['ct.image.replayed', 'IMAGE_REPLAYED'],
  ['ct.image.age', 'IMAGE_OUTDATED'],
  ['ct.image.base', 'IMAGE_BASE_DENIED'],
  ['ct.image.attestation', 'IMAGE_ATTESTATION_MISSING'],
  ['ct.image.builder', 'IMAGE_ATTESTATION_MISSING'],
  ['ct.image.scan_missing', 'IMAGE_SCAN_MISSING'],
  ['ct.image.scan_stale', 'VULN_DB_STALE'],
  ['ct.image.vulnerable', 'IMAGE_VULNERABLE'],
];
const ABOUT_SIGNATURES = new Set(['ct.image.signature', 'ct.image.local']);

/** The error that a refused image ends its run with; undefined if it is let in. */
export function imageRefusal({ input, decided }: ImageVerdict): CtError | undefined {
  const { allow, denials } = decided.decision;
  if (allow) return undefined;
  const { denial, code } = foremost(denials, input);
  const others = denials.filter((other) => other !== denial);
  const words = [denial, ...others].map(({ message, rule }) => `${message} (rule ${rule})`);
  return new CtError(code, words.join('; '), { hint: denial.hint });
}

/** Undefined if the image is let in. `evidence`: the decision log of the run, and the entry in it. */
export function imageAlert(
  { input, decided }: ImageVerdict,
  run: RunFacts & { readonly id: string },
  evidence: Alert['evidence'],
  now: Date,
): Alert | undefined {
  const { allow, denials } = decided.decision;
  if (allow) return undefined;
  const { denial } = foremost(denials, input);
  return newAlert(now, {
    // That nobody has looked is no attack; that somebody has signed or put something there may be one.
    severity: SEVERITIES[denial.rule] ?? 'high',
    title: denial.message,
    rule: denial.rule,
    action: 'denied',
    run: alertRun(run),
    evidence,
  });
}

/** A part of an image is not what its manifest names: the disk is failing, or somebody has been there. */
export function corruptAlert(
  error: CtError,
  run: RunFacts & { readonly id: string },
  file: string,
  now: Date,
): Alert {
  return newAlert(now, {
    severity: 'critical',
    title: error.message,
    rule: 'ct.image.corrupt',
    action: 'denied',
    run: alertRun(run),
    evidence: { file, id: run.id },
  });
}

const SEVERITIES: Readonly<Record<string, Alert['severity']>> = {
  'ct.image.revoked': 'critical',
  'ct.image.replayed': 'critical',
  'ct.image.age': 'medium',
  'ct.image.base': 'medium',
  'ct.image.scan_missing': 'medium',
  'ct.image.scan_stale': 'medium',
};

function foremost(
  denials: readonly Denial[],
  { refusal }: ImageInput,
): { readonly denial: Denial; readonly code: ErrorCode } {
  for (const [rule, code] of CODES) {
    const denial = denials.find((candidate) => candidate.rule === rule);
    if (!denial) continue;
    return { denial, code: ABOUT_SIGNATURES.has(rule) && refusal ? (refusal.code as ErrorCode) : code };
  }
  const [denial = { rule: 'ct.image.error', message: 'policy refuses the image without a reason' }] = denials;
  return { denial, code: 'POLICY_DENIED' };
}
