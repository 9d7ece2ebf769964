/**
 * Who published an archive, by the attestations that a registry keeps: Sigstore bundles for npm, and the attestations of PEP 740
 * for Python, which hold the same parts under other names.
 */
import { CtError } from '../../core/errors.ts';
import { isObject } from '../../core/json.ts';
import { bundleTrust, type JobTrust, signerFacts } from '../job-trust.ts';
import { PROVENANCE_TYPE } from '../provenance.ts';
import { verifyBundle } from '../verify.ts';

/** https://docs.pypi.org/attestations/publish/v1 */
export const PYPI_PUBLISH_TYPE = 'https://docs.pypi.org/attestations/publish/v1';
const BUNDLE_TYPE = 'application/vnd.dev.sigstore.bundle.v0.3+json';
const IN_TOTO = 'application/vnd.in-toto+json';

export interface Archive {
  /** `sha512:<hex>` or `sha256:<hex>`. */
  readonly digest: string;
  /** What the subject has to be called; undefined: the digest is enough. */
  readonly subject?: string;
  readonly predicateTypes: readonly string[];
}

/** Which package of npm an archive is, as its provenance names it. */
export function npmSubject(name: string, version: string): string {
  return `pkg:npm/${name.startsWith('@') ? `%40${name.slice(1)}` : name}@${version}`;
}

/**
 * Names of signers of the policy who attest the archive: empty if nobody does, `invalid` if an attestation of one of them is
 * about something else, or does not verify. What others attest is not looked at.
 */
export function publishersOf(
  archive: Archive,
  attestations: readonly unknown[],
  trust: JobTrust,
  now: Date,
): ReadonlySet<string> | 'invalid' {
  const found = new Set<string>();
  let invalid = false;
  for (const attestation of attestations) {
    try {
      const signer = verifiedPublisher(archive, attestation, trust, now);
      for (const { signer: name } of signer) found.add(name);
    } catch (error) {
      if (!(error instanceof CtError)) throw error;
      // Of somebody whom policy does not know, or of another type: beside the one that counts, registries keep their own.
      const passedOver = ['SIGNATURE_UNTRUSTED', 'SIGNATURE_PREDICATE_MISMATCH'].includes(error.code);
      invalid ||= !passedOver;
    }
  }
  return invalid ? 'invalid' : found;
}

function verifiedPublisher(archive: Archive, attestation: unknown, trust: JobTrust, now: Date) {
  const bundle = Buffer.from(JSON.stringify(asBundle(attestation)));
  const { policy, trust: material } = bundleTrust(trust);
  let mismatch: unknown;
  for (const predicateType of archive.predicateTypes) {
    try {
      const verified = verifyBundle({
        bundle,
        expected: { kind: 'statement', digest: archive.digest, predicateType },
        trust: material,
        policy,
        now,
      });
      const { content } = verified;
      const named =
        archive.subject === undefined ||
        (content.kind === 'statement' &&
          content.statement.subject.some(({ name }) => name === archive.subject));
      if (!named) throw new CtError('SIGNATURE_SUBJECT_MISMATCH', `it is not about ${archive.subject}`);
      return signerFacts(verified, trust);
    } catch (error) {
      if (!(error instanceof CtError) || error.code !== 'SIGNATURE_PREDICATE_MISMATCH') throw error;
      mismatch = error;
    }
  }
  throw mismatch;
}

/** PEP 740: verification_material {certificate, transparency_entries}, envelope {statement, signature}. */
function asBundle(attestation: unknown): unknown {
  if (!isObject(attestation) || !('verification_material' in attestation)) return attestation;
  const { verification_material: material, envelope, version } = attestation;
  if (version !== 1 || !isObject(material) || !isObject(envelope)) return attestation;
  return {
    mediaType: BUNDLE_TYPE,
    verificationMaterial: {
      certificate: { rawBytes: material['certificate'] },
      tlogEntries: material['transparency_entries'],
    },
    dsseEnvelope: {
      payload: envelope['statement'],
      payloadType: IN_TOTO,
      signatures: [{ sig: envelope['signature'] }],
    },
  };
}

export const NPM_PREDICATES: readonly string[] = [PROVENANCE_TYPE];
export const PYPI_PREDICATES: readonly string[] = [PYPI_PUBLISH_TYPE, PROVENANCE_TYPE];
