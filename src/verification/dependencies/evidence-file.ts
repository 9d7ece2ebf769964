/**
 * Evidence about the packages of a lock file, as `ct evidence fetch` collects it: `<lock file>.evidence.json`,
 *
 *     {"version": 1, "packages": {"name@version": {"signatures": [{keyid, sig}], "attestations": [<Sigstore bundle>]}}}
 *
 * Anybody may have written it; what counts in it is signed.
 */
import { hasKeys, isObject } from '../../core/json.ts';
import { parseBoundedJson } from './bounded-json.ts';
import type { RegistrySignature } from './registry-keys.ts';

const MAX_PACKAGES = 20_000;
/** Of one package: an archive for each platform of a Python package has its own. */
const MAX_ATTESTATIONS = 200;
const MAX_SIGNATURES = 16;

export interface PackageEvidence {
  readonly signatures: readonly RegistrySignature[];
  /** Documents in JSON, not parsed any further. */
  readonly attestations: readonly unknown[];
}

export function evidencePath(lock: string): string {
  return `${lock}.evidence.json`;
}

/** Throws an Error saying what is wrong with it. */
export function parseEvidenceFile(bytes: Buffer): ReadonlyMap<string, PackageEvidence> {
  const document = parseBoundedJson(bytes);
  if (!hasKeys(document, ['version', 'packages']) || document['version'] !== 1)
    throw new Error('it is of no known version');
  const { packages } = document;
  if (!isObject(packages)) throw new Error('it has no packages');
  const entries = Object.entries(packages);
  if (entries.length > MAX_PACKAGES) throw new Error('it has too many packages');
  return new Map(entries.map(([name, entry]) => [name, packageEvidence(name, entry)]));
}

function packageEvidence(name: string, entry: unknown): PackageEvidence {
  if (!hasKeys(entry, [], ['signatures', 'attestations'])) throw new Error(`${name} has another form`);
  const { signatures = [], attestations = [] } = entry;
  if (!Array.isArray(signatures) || signatures.length > MAX_SIGNATURES)
    throw new Error(`${name} has no signatures`);
  if (!Array.isArray(attestations) || attestations.length > MAX_ATTESTATIONS) {
    throw new Error(`${name} has no attestations`);
  }
  for (const signature of signatures as unknown[]) {
    if (!hasKeys(signature, ['keyid', 'sig'])) throw new Error(`a signature of ${name} has another form`);
    if (typeof signature['keyid'] !== 'string' || typeof signature['sig'] !== 'string') {
      throw new Error(`a signature of ${name} is none`);
    }
  }
  return { signatures: signatures as RegistrySignature[], attestations };
}
