/** Signers of images and jobs, as operators write them into the data of a policy, and names as Rego looks them up. */
import { messageOf } from '../core/errors.ts';
import { record } from '../job/schema/collections.ts';
import { type Field, optional } from '../job/schema/objects.ts';
import { text } from '../job/schema/scalars.ts';
import type { Schema } from '../job/schema/schema.ts';
import { compileIdentity } from '../verification/identity.ts';

/** As many as trust takes (src/verification/trust.ts). */
const MAX_SIGNERS = 1000;
/** PEM of a P-256 key has 180 characters. */
const MAX_PEM_LENGTH = 2000;

/** Names: all of them, single ones, or those with a beginning. */
export interface NamePatterns {
  readonly any: boolean;
  readonly exact: Readonly<Record<string, true>>;
  readonly prefixes: readonly string[];
}

export type PatternReader = (entries: readonly string[]) => NamePatterns;

export const ANY_NAME: NamePatterns = { any: true, exact: {}, prefixes: [] };

/** By its key, or by an identity and who vouches for that. */
export type NamedSigner =
  | { readonly name: string; readonly kind: 'key'; readonly pem: string }
  | {
      readonly name: string;
      readonly kind: 'identity';
      readonly issuer: string;
      readonly subject: string | { readonly pattern: string };
    };

/** Reports what is wrong with the value of a key. */
export type WrongReporter = (container: object, key: string, message: string, hint?: string) => void;

export const word = text({ expected: 'a word', pattern: '^[\\x21-\\x7e]+$', maxLength: 2048 });
export const policyFile = text({
  expected: 'the name of a file in the policy directory',
  pattern: '^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$',
});

/** What every signer can be. */
export const signerFields = {
  key: optional(
    text({
      expected: 'a public key in PEM',
      pattern: '^-----BEGIN PUBLIC KEY-----\\n[\\s\\S]+\\n-----END PUBLIC KEY-----\\n?$',
      maxLength: MAX_PEM_LENGTH,
    }),
    'Public key, ECDSA P-256 or Ed25519.',
  ),
  issuer: optional(word, 'Who vouches for the identity; exact.'),
  subject: optional(word, 'The identity; exact, or with `*` for one name.'),
};

export function signersField<T>(signer: Schema<T>, doc: string): Field<Readonly<Record<string, T>>, false> {
  return optional(
    record(
      { name: '<name>', expected: 'the name of a signer', pattern: '^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$' },
      signer,
      { max: MAX_SIGNERS, expected: 'a mapping of names to signers' },
    ),
    doc,
  );
}

export const trustedRootField: Field<string, false> = optional(
  policyFile,
  'The `trusted_root.json` that identities are verified with.',
);

interface SignerData {
  readonly key?: string | undefined;
  readonly issuer?: string | undefined;
  readonly subject?: string | undefined;
}

/** Undefined unless it is either a key or an identity. Throws TRUST_INVALID for an identity that is not safe. */
export function lowerSigner(name: string, { key, issuer, subject }: SignerData): NamedSigner | undefined {
  if (key !== undefined)
    return issuer === undefined && subject === undefined ? { name, kind: 'key', pem: key } : undefined;
  if (issuer === undefined || subject === undefined) return undefined;
  const identity = { issuer, subject: subject.includes('*') ? { pattern: subject } : subject };
  compileIdentity(identity);
  return { name, kind: 'identity', ...identity };
}

/** Those of `data`, which needs a trusted root if one of them is an identity. `forms` completes "a signer has either …". */
export function lowerSigners<T, S extends { readonly kind: string }>(
  data: {
    readonly signers?: Readonly<Record<string, T>> | undefined;
    readonly trustedRoot?: string | undefined;
  },
  forms: string,
  lower: (name: string, signer: T) => S | undefined,
  wrong: WrongReporter,
): S[] {
  const { signers = {}, trustedRoot } = data;
  const lowered: S[] = [];
  for (const [name, signer] of Object.entries(signers)) {
    try {
      const one = lower(name, signer);
      if (one) lowered.push(one);
      else wrong(signers, name, `a signer has either ${forms}`);
    } catch (error) {
      wrong(signers, name, messageOf(error));
    }
  }
  if (trustedRoot === undefined && lowered.some(({ kind }) => kind === 'identity')) {
    wrong(
      data,
      'signers',
      'identities are accepted, but there is no `trusted-root` to verify them with',
      'put the trusted_root.json of the Sigstore into the policy directory, and name it',
    );
  }
  return lowered;
}
