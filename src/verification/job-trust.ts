/** Whose signatures of jobs are verified, and by what names policy knows them. */
import { CtError } from '../core/errors.ts';
import type { SignerFact } from '../policy/verify.ts';
import type { JobTrustData } from '../policy/verify-rules.ts';
import { type AllowedSigner, parseAllowedSigners } from './allowed-signers.ts';
import { parseRegistryKeys, type RegistryKey } from './dependencies/registry-keys.ts';
import { type AcceptedIdentity, isAccepted } from './identity.ts';
import { signerPolicy } from './signer-policy.ts';
import { loadTrust, type Trust } from './trust.ts';
import type { SignerPolicy, VerifiedSigner } from './verify.ts';

export interface JobTrust {
  /** Absent: no signer has a key or an identity. */
  readonly bundles: { readonly trust: Trust; readonly policy: SignerPolicy } | undefined;
  readonly identities: readonly (AcceptedIdentity & { readonly name: string })[];
  readonly ssh: readonly {
    readonly name: string;
    readonly allowed: ReadonlyMap<string, readonly AllowedSigner[]>;
  }[];
  /** By id. */
  readonly registryKeys: ReadonlyMap<string, RegistryKey>;
  /** What it was made of, for whoever has to make it again in another thread. */
  readonly source: { readonly data: JobTrustData; readonly files: ReadonlyMap<string, Buffer> };
}

/** Throws TRUST_INVALID. `read` gives the content of a file of the policy directory. */
export function loadJobTrust(data: JobTrustData, readFile: (name: string) => Buffer): JobTrust {
  const { signers, trustedRoot, npmKeys } = data;
  const files = new Map<string, Buffer>();
  const read = (name: string): Buffer => {
    const bytes = files.get(name) ?? readFile(name);
    files.set(name, bytes);
    return bytes;
  };
  const keys = signers.flatMap((signer) => (signer.kind === 'key' ? [signer] : []));
  const identities = signers.flatMap((signer) => (signer.kind === 'identity' ? [signer] : []));
  const ssh = signers.flatMap((signer) =>
    signer.kind === 'ssh'
      ? [{ name: signer.name, allowed: parseAllowedSigners(read(signer.file).toString('utf8'), signer.file) }]
      : [],
  );
  const root = trustedRoot === undefined ? undefined : read(trustedRoot);
  const some = keys.length + identities.length > 0;
  const trust = some ? loadTrust({ ...(root === undefined ? {} : { trustedRoot: root }), keys }) : undefined;
  const names = keys.map(({ name }) => name);
  return {
    bundles: trust && { trust, policy: signerPolicy(trust, names, identities) },
    identities,
    ssh,
    registryKeys: npmKeys === undefined ? new Map() : parseRegistryKeys(read(npmKeys), npmKeys),
    source: { data, files },
  };
}

/** Throws SIGNATURE_UNTRUSTED if policy names nobody. */
export function bundleTrust({ bundles }: JobTrust): NonNullable<JobTrust['bundles']> {
  if (bundles) return bundles;
  throw new CtError('SIGNATURE_UNTRUSTED', 'policy names no signer with a key or an identity');
}

/** The names that policy has for a signer. */
export function signerFacts({ signer }: VerifiedSigner, { identities }: JobTrust): SignerFact[] {
  if (signer.kind === 'key') return [{ signer: signer.name, who: `key ${signer.name}` }];
  return identities
    .filter((identity) => isAccepted(signer, [identity]))
    .map(({ name }) => ({ signer: name, who: signer.subject }));
}
