/** Signed manifests as they lie in a project: Sigstore bundles. */
import { CtError } from '../core/errors.ts';
import { parseBundle } from './bundle.ts';
import { MANIFEST_PREDICATE_TYPE, type Manifest, parseManifest } from './manifest.ts';
import { parseStatement, STATEMENT_PAYLOAD_TYPE } from './statement.ts';
import type { Trust } from './trust.ts';
import { type SignerPolicy, type VerifiedSigner, verifyBundle } from './verify.ts';

/** What a manifest says, without any verification. Throws SIGNATURE_MALFORMED, SIGNATURE_PREDICATE_MISMATCH. */
export function readManifest(bundle: Uint8Array): Manifest {
  const { content } = parseBundle(bundle);
  if (content.$case !== 'dsseEnvelope' || content.dsseEnvelope.payloadType !== STATEMENT_PAYLOAD_TYPE) {
    throw new CtError('SIGNATURE_PREDICATE_MISMATCH', 'it is no in-toto statement');
  }
  const statement = parseStatement(content.dsseEnvelope.payload);
  if (statement.predicateType !== MANIFEST_PREDICATE_TYPE) {
    throw new CtError(
      'SIGNATURE_PREDICATE_MISMATCH',
      `it says something else than ${MANIFEST_PREDICATE_TYPE}`,
    );
  }
  return parseManifest(statement);
}

/** Who signed it, and what it says. Throws SIGNATURE_*, TRUST_INVALID. */
export function verifyManifest(
  bundle: Uint8Array | undefined,
  trust: Trust,
  policy: SignerPolicy,
  now: Date,
): { readonly signer: VerifiedSigner; readonly manifest: Manifest } {
  const expected = { kind: 'statement', digest: undefined, predicateType: MANIFEST_PREDICATE_TYPE } as const;
  const signer = verifyBundle({ bundle, expected, trust, policy, now });
  if (signer.content.kind !== 'statement') throw new CtError('INTERNAL', 'a manifest was verified as bytes');
  return { signer, manifest: parseManifest(signer.content.statement) };
}
