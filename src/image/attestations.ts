/** What is signed about an image beside the image itself: how it was made, and what is in it. */
import { PROVENANCE_TYPE } from '../verification/provenance.ts';
import { buildStatement, type Statement } from '../verification/statement.ts';

/** As other tools have it for CycloneDX ([in-toto](https://github.com/in-toto/attestation/blob/main/spec/predicates/cyclonedx.md)). */
export const SBOM_PREDICATE_TYPE = 'https://cyclonedx.org/bom';

export const ATTESTATION_TYPES = { provenance: PROVENANCE_TYPE, sbom: SBOM_PREDICATE_TYPE } as const;

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

/** Who built it, as provenance says; undefined if it does not say. */
export function builderOf({ predicate }: Statement): string | undefined {
  const { runDetails } = (predicate ?? {}) as { runDetails?: { builder?: { id?: unknown } } };
  const id = runDetails?.builder?.id;
  return typeof id === 'string' && id.length > 0 && id.length <= MAX_BUILDER_LENGTH ? id : undefined;
}

const MAX_BUILDER_LENGTH = 2048; // a URI of a workflow has about 150
