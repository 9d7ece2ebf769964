/** Options that say whose signatures of images are accepted, for the commands that verify. */
import { readFileSync } from 'node:fs';
import { CtError, messageOf } from '../core/errors.ts';
import type { AcceptedSigners } from '../image/verify.ts';
import { signerPolicy } from '../verification/signer-policy.ts';
import { loadTrust } from '../verification/trust.ts';
import type { VerifiedSigner } from '../verification/verify.ts';
import type { ParsedOptions } from './command.ts';

/** Undefined if nothing is said about signers. Throws USAGE, TRUST_INVALID. */
export function acceptedSigners(parsed: ParsedOptions): AcceptedSigners | undefined {
  const keys = parsed.values('key').map((path) => ({ name: path, pem: readInput(path).toString('utf8') }));
  const identities = parsed.values('identity');
  const issuer = parsed.value('issuer');
  const rootPath = parsed.value('trusted-root');
  if (keys.length === 0 && identities.length === 0) {
    if (issuer === undefined && rootPath === undefined) return undefined;
    throw new CtError('USAGE', '--issuer and --trusted-root belong to an --identity');
  }
  if (identities.length > 0 && (issuer === undefined || rootPath === undefined)) {
    throw new CtError('USAGE', '--identity needs --issuer and --trusted-root', {
      hint: 'an identity means something only together with who vouched for it',
    });
  }
  const trust = loadTrust({
    ...(rootPath === undefined ? {} : { trustedRoot: readInput(rootPath) }),
    keys,
  });
  const policy = signerPolicy(
    trust,
    keys.map(({ name }) => name),
    identities.map((subject) => ({
      issuer: issuer ?? '',
      subject: subject.includes('*') ? { pattern: subject } : subject,
    })),
  );
  return { trust, policy };
}

export function describeSigner({ signer, signedAt }: VerifiedSigner): string {
  const who = signer.kind === 'key' ? `key ${signer.name}` : `${signer.subject} (${signer.issuer})`;
  return signedAt === undefined ? who : `${who}, ${signedAt.toISOString()}`;
}

/** A file that the user names; small ones only. */
export function readInput(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    const isMissing = (error as NodeJS.ErrnoException).code === 'ENOENT';
    const problem = isMissing ? 'does not exist' : `cannot be read: ${messageOf(error)}`;
    throw new CtError('USAGE', `${path} ${problem}`, { cause: error });
  }
}
