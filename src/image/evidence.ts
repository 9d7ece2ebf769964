/**
 * What is proved of a stored image, for policy to decide by: every part is what the manifest names, who signed the manifest,
 * what else they signed, where it was made, and what the last scan found. Decides nothing.
 *
 * What costs (signatures, results of scans) is kept until something changes that it followed from: the signers of policy, or
 * a file, by inode, size and times.
 */
import { CtError } from '../core/errors.ts';
import type { ImageInput, ImageSignature } from '../policy/input.ts';
import type { NamedSigner } from '../policy/signers.ts';
import { isAccepted } from '../verification/identity.ts';
import { signerPolicy } from '../verification/signer-policy.ts';
import type { Trust } from '../verification/trust.ts';
import type { VerifiedSigner } from '../verification/verify.ts';
import { attestationsOf } from './attestations.ts';
import { blobsOf, type ImageManifest } from './manifest.ts';
import { latestResult, resultsState, scanFacts } from './scan/result.ts';
import { IMAGE_PREDICATE_TYPE, ImageSignatures, statedTime } from './signatures.ts';
import type { ImageStore } from './store.ts';

/** Whose signatures are verified. */
export interface ImageSigners {
  /** Changes with any of them. */
  readonly revision: string;
  readonly signers: readonly NamedSigner[];
  /** For identities. */
  readonly trustedRoot: Uint8Array | undefined;
}

type ImageFacts = Omit<ImageInput, 'version' | 'now' | 'run'>;

/** Signatures that are refused are tried again after this long: a clock may have been wrong. */
const REFUSAL_KEPT_MS = 60_000;
/** Images that this host ran lately. */
const MAX_KEPT = 64;

type SignatureFacts = Pick<ImageFacts, 'signatures' | 'attestations' | 'refusal'>;

interface Kept<T> {
  readonly state: string;
  readonly untilMs: number;
  readonly facts: T;
}

export class ImageEvidence {
  readonly #ctHome: string;
  readonly #store: ImageStore;
  readonly #signatures: ImageSignatures;
  readonly #proved = new Map<string, Kept<SignatureFacts>>();
  readonly #scans = new Map<string, Kept<Awaited<ReturnType<typeof latestResult>>>>();
  #trust: { readonly revision: string; readonly trust: Trust } | undefined;

  constructor(ctHome: string, store: ImageStore) {
    this.#ctHome = ctHome;
    this.#store = store;
    this.#signatures = new ImageSignatures(ctHome);
  }

  /**
   * Compares every part that has changed since it was compared, and verifies signatures that were not verified before. Throws
   * IMAGE_NOT_FOUND, IMAGE_CORRUPT, or TRUST_INVALID if the signers of policy cannot be used. A signature that does not count is a fact.
   */
  async facts(digest: string, signers: ImageSigners, now: Date): Promise<ImageFacts> {
    const manifest = await this.#store.manifest(digest);
    const [made, signatures, scan] = await Promise.all([
      this.#store.madeHere(digest),
      this.#signatureFacts(digest, manifest, signers, now),
      this.#scanFacts(digest, now),
      ...blobsOf(manifest).map((ref) => this.#store.checkedBlobPath(ref)),
    ]);
    return {
      image: {
        name: manifest.name,
        digest,
        made: made === undefined ? null : { how: made.how, at: seconds(made.at) },
        base: manifest.base === undefined ? [] : [manifest.name, ...manifest.base],
        lock: manifest.lock ?? null,
        unlocked: manifest.local === true,
      },
      ...signatures,
      scan,
    };
  }

  async #signatureFacts(
    digest: string,
    manifest: ImageManifest,
    signers: ImageSigners,
    now: Date,
  ): Promise<SignatureFacts> {
    const state = `${signers.revision}\n${await this.#signatures.state(digest)}`;
    const kept = this.#proved.get(digest);
    if (kept?.state === state && now.getTime() < kept.untilMs) return kept.facts;
    const facts = await this.#verify(digest, manifest, signers, now);
    const untilMs = facts.refusal === null ? Number.POSITIVE_INFINITY : now.getTime() + REFUSAL_KEPT_MS;
    keep(this.#proved, digest, { state, untilMs, facts });
    return facts;
  }

  async #verify(
    digest: string,
    manifest: ImageManifest,
    signers: ImageSigners,
    now: Date,
  ): Promise<SignatureFacts> {
    let bundles: readonly Buffer[];
    try {
      bundles = await this.#signatures.list(digest);
    } catch (error) {
      if (error instanceof CtError && error.kind === 'policy') return unsigned(error.code, error.message);
      throw error;
    }
    if (bundles.length === 0) return unsigned('SIGNATURE_MISSING', 'there is no signature');
    if (signers.signers.length === 0) {
      return unsigned('SIGNATURE_UNTRUSTED', 'policy names nobody who may sign images');
    }
    const trust = await this.#loadTrust(signers);
    const { verifyAnyBundle, verifyBundle } = await import('../verification/verify.ts');
    const keyNames = signers.signers.flatMap((signer) => (signer.kind === 'key' ? [signer.name] : []));
    const identities = signers.signers.flatMap((signer) => (signer.kind === 'identity' ? [signer] : []));
    const policy = signerPolicy(trust, keyNames, identities);
    const proved = (predicateType: string): VerifiedSigner[] =>
      bundles.flatMap((bundle) => {
        const expected = { kind: 'statement', digest, predicateType } as const;
        try {
          return [verifyBundle({ bundle, expected, trust, policy, now })];
        } catch (error) {
          if (error instanceof CtError && error.kind === 'policy') return [];
          throw error;
        }
      });
    const signatures = proved(IMAGE_PREDICATE_TYPE).flatMap((verified) => signatureFacts(verified, signers));
    let refusal: SignatureFacts['refusal'] = null;
    if (signatures.length === 0) {
      try {
        const expected = { kind: 'statement', digest, predicateType: IMAGE_PREDICATE_TYPE } as const;
        verifyAnyBundle(bundles, { expected, trust, policy, now });
        refusal = { code: 'SIGNATURE_UNTRUSTED', message: 'policy does not know its signer' };
      } catch (error) {
        if (!(error instanceof CtError) || error.kind !== 'policy') throw error;
        refusal = { code: error.code, message: error.message };
      }
    }
    const attestations = await attestationsOf(manifest, this.#store, proved);
    return {
      signatures,
      attestations: attestations.flatMap(({ kind, verified, builder }) =>
        namesOf(verified, signers).map((signer) => ({ kind, signer, builder: builder ?? null })),
      ),
      refusal,
    };
  }

  async #loadTrust({ revision, signers, trustedRoot }: ImageSigners): Promise<Trust> {
    if (this.#trust?.revision === revision) return this.#trust.trust;
    const { loadTrust } = await import('../verification/trust.ts');
    const keys = signers.flatMap((signer) =>
      signer.kind === 'key' ? [{ name: signer.name, pem: signer.pem }] : [],
    );
    const trust = loadTrust({ keys, ...(trustedRoot === undefined ? {} : { trustedRoot }) });
    this.#trust = { revision, trust };
    return trust;
  }

  async #scanFacts(digest: string, now: Date): Promise<ImageFacts['scan']> {
    const state = await resultsState(this.#ctHome, digest);
    if (state === '') return null;
    let kept = this.#scans.get(digest);
    if (kept?.state !== state) {
      kept = { state, untilMs: 0, facts: await latestResult(this.#ctHome, digest) };
      keep(this.#scans, digest, kept);
    }
    if (kept.facts === undefined || kept.facts.image.digest !== digest) return null;
    const facts = scanFacts(kept.facts, now);
    return { ...facts, scanned_at: seconds(facts.scanned_at), as_of: seconds(facts.as_of) };
  }
}

function unsigned(code: string, message: string): SignatureFacts {
  return { signatures: [], attestations: [], refusal: { code, message } };
}

/** A signature may be one of several signers of policy: patterns of identities overlap. */
function signatureFacts(verified: VerifiedSigner, signers: ImageSigners): ImageSignature[] {
  const { signer, signedAt, content } = verified;
  const at = signedAt ?? (content.kind === 'statement' ? statedTime(content.statement) : undefined);
  return namesOf(verified, signers).map((name) => ({
    signer: name,
    kind: signer.kind === 'key' ? 'key' : 'identity',
    subject: signer.kind === 'key' ? null : signer.subject,
    issuer: signer.kind === 'key' ? null : signer.issuer,
    at: at === undefined ? null : Math.floor(at.getTime() / 1000),
    witnessed: signedAt !== undefined,
  }));
}

/** What policy calls whoever signed. */
function namesOf({ signer }: VerifiedSigner, { signers }: ImageSigners): string[] {
  if (signer.kind === 'key') return [signer.name];
  return signers.flatMap((candidate) =>
    candidate.kind === 'identity' && isAccepted(signer, [candidate]) ? [candidate.name] : [],
  );
}

function keep<T>(kept: Map<string, T>, key: string, value: T): void {
  kept.delete(key);
  const [oldest] = kept.keys();
  if (kept.size >= MAX_KEPT && oldest !== undefined) kept.delete(oldest);
  kept.set(key, value);
}

/** Seconds since 1970; a time that does not parse is older than all. */
function seconds(time: string): number {
  const ms = Date.parse(time);
  return Number.isNaN(ms) ? 0 : Math.floor(ms / 1000);
}
