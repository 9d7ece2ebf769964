/** What is signed about an image beside the image itself: how it was made, and what is in it. */
import { isDeepStrictEqual } from 'node:util';
import { PROVENANCE_TYPE } from '../verification/provenance.ts';
import { buildStatement, type Statement } from '../verification/statement.ts';
import type { VerifiedSigner } from '../verification/verify.ts';
import type { ImageManifest } from './manifest.ts';
import type { ImageStore } from './store.ts';

/** As other tools have it for CycloneDX ([in-toto](https://github.com/in-toto/attestation/blob/main/spec/predicates/cyclonedx.md)). */
const SBOM_PREDICATE_TYPE = 'https://cyclonedx.org/bom';

const ATTESTATION_TYPES = { provenance: PROVENANCE_TYPE, sbom: SBOM_PREDICATE_TYPE } as const;

/** `predicate`: the document, parsed. */
export function attestationStatement(
  kind: keyof typeof ATTESTATION_TYPES,
  name: string,
  digest: string,
  predicate: unknown,
): Statement {
  return buildStatement({
    subjects: [{ name, digest }],
    predicateType: ATTESTATION_TYPES[kind],
    predicate,
  });
}

export interface ProvedAttestation {
  readonly kind: keyof typeof ATTESTATION_TYPES;
  readonly verified: VerifiedSigner;
  /** Of provenance, where it says so. */
  readonly builder?: string;
}

/**
 * What `proved` has of each type. An SBOM counts if it is that of the image, which scans go by, and no other. Throws
 * IMAGE_CORRUPT.
 */
export async function attestationsOf(
  { sbom }: ImageManifest,
  store: ImageStore,
  proved: (predicateType: string) => readonly VerifiedSigner[],
): Promise<readonly ProvedAttestation[]> {
  const provenance = proved(ATTESTATION_TYPES.provenance).map((verified): ProvedAttestation => {
    const builder = verified.content.kind === 'statement' ? builderOf(verified.content.statement) : undefined;
    return { kind: 'provenance', verified, ...(builder === undefined ? {} : { builder }) };
  });
  const described = proved(ATTESTATION_TYPES.sbom);
  if (sbom === undefined || described.length === 0) return provenance;
  const document: unknown = JSON.parse((await store.readBlob(sbom.cyclonedx)).toString('utf8'));
  const same = described.filter(
    ({ content }) => content.kind === 'statement' && isDeepStrictEqual(content.statement.predicate, document),
  );
  return [...provenance, ...same.map((verified): ProvedAttestation => ({ kind: 'sbom', verified }))];
}

/** Who built it, as provenance says; undefined if it does not say. */
function builderOf({ predicate }: Statement): string | undefined {
  const { runDetails } = (predicate ?? {}) as { runDetails?: { builder?: { id?: unknown } } };
  const id = runDetails?.builder?.id;
  return typeof id === 'string' && id.length > 0 && id.length <= MAX_BUILDER_LENGTH ? id : undefined;
}

const MAX_BUILDER_LENGTH = 2048; // a URI of a workflow has about 150
