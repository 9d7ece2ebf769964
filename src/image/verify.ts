/** Whether a stored image is what its digest says, and who stands for it. */

import { CtError } from '../core/errors.ts';
import type { Trust } from '../verification/trust.ts';
import {
  type SignerPolicy,
  type VerifiedSigner,
  verifyAnyBundle,
  verifyBundle,
} from '../verification/verify.ts';
import { attestationsOf, type ProvedAttestation } from './attestations.ts';
import { blobsOf, type ImageManifest } from './manifest.ts';
import { IMAGE_PREDICATE_TYPE, ImageSignatures } from './signatures.ts';
import { ImageStore } from './store.ts';

export interface AcceptedSigners {
  readonly trust: Trust;
  readonly policy: SignerPolicy;
}

export interface VerifyImageOptions {
  readonly ctHome: string;
  /** Of the manifest. */
  readonly digest: string;
  /** Whose signature is demanded; without it only digests are compared. */
  readonly signers?: AcceptedSigners | undefined;
  /** Reads every part again, instead of those that changed since they were compared. */
  readonly full?: boolean;
  readonly now: Date;
}

export interface VerifiedImage {
  readonly manifest: ImageManifest;
  /** Absent if no signature was demanded. */
  readonly signer?: VerifiedSigner;
  /** What accepted signers have signed beside it. */
  readonly attestations: readonly ProvedAttestation[];
  /** Signatures that are stored, accepted or not. */
  readonly signatures: number;
}

/**
 * Verifies signature, manifest and every part, in this order. Throws SIGNATURE_*, TRUST_INVALID, IMAGE_NOT_FOUND,
 * IMAGE_CORRUPT.
 */
export async function verifyImage(options: VerifyImageOptions): Promise<VerifiedImage> {
  const store = new ImageStore(options.ctHome);
  const bundles = await new ImageSignatures(options.ctHome).list(options.digest);
  const signer =
    options.signers === undefined
      ? undefined
      : verifyImageSignature(options.digest, bundles, options.signers, options.now);
  const manifest = await store.manifest(options.digest);
  if (options.full === true) await store.verifyImage(manifest);
  else for (const ref of blobsOf(manifest)) await store.checkedBlobPath(ref);
  const attestations =
    options.signers === undefined
      ? []
      : await verifyAttestations(options.digest, manifest, store, bundles, options.signers, options.now);
  return { manifest, attestations, signatures: bundles.length, ...(signer === undefined ? {} : { signer }) };
}

/** What accepted signers say about an image beside that it is theirs; the rest is left out. Throws TRUST_INVALID. */
export function verifyAttestations(
  digest: string,
  manifest: ImageManifest,
  store: ImageStore,
  bundles: readonly Uint8Array[],
  { trust, policy }: AcceptedSigners,
  now: Date,
): Promise<readonly ProvedAttestation[]> {
  return attestationsOf(manifest, store, (predicateType) =>
    bundles.flatMap((bundle) => {
      try {
        const expected = { kind: 'statement', digest, predicateType } as const;
        return [verifyBundle({ bundle, expected, trust, policy, now })];
      } catch (error) {
        if (error instanceof CtError && error.kind === 'policy') return [];
        throw error;
      }
    }),
  );
}

/** Returns what was proved by the first signature that is accepted. Throws SIGNATURE_*, TRUST_INVALID. */
export function verifyImageSignature(
  digest: string,
  bundles: readonly Uint8Array[],
  { trust, policy }: AcceptedSigners,
  now: Date,
): VerifiedSigner {
  const expected = { kind: 'statement', digest, predicateType: IMAGE_PREDICATE_TYPE } as const;
  return verifyAnyBundle(bundles, { expected, trust, policy, now });
}
