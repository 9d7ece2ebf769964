import type { AcceptedIdentity } from './identity.ts';
import type { Trust } from './trust.ts';
import type { SignerPolicy } from './verify.ts';

/**
 * The rule for those who accept keys and identities and say no more: of an identity, what the instance offers is demanded, which is a
 * log, or a timestamp where it has none, and a certificate log. Of a key nothing.
 */
export function signerPolicy(
  { root }: Pick<Trust, 'root'>,
  keyNames: readonly string[],
  identities: readonly AcceptedIdentity[],
): SignerPolicy {
  const logs = (root?.tlogs.length ?? 0) > 0 ? 1 : 0;
  const certificateLogs = (root?.ctlogs.length ?? 0) > 0 ? 1 : 0;
  return {
    ...(keyNames.length === 0 ? {} : { keys: { names: keyNames, logs: 0, timestampAuthorities: 0 } }),
    ...(identities.length === 0
      ? {}
      : { keyless: { identities, logs, timestampAuthorities: 1 - logs, certificateLogs } }),
  };
}
