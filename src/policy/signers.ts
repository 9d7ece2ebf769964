/** What the data of a policy says of names and signers, lowered for Rego. */

/** Names: all of them, single ones, or those with a beginning. */
export interface NamePatterns {
  readonly any: boolean;
  readonly exact: Readonly<Record<string, true>>;
  readonly prefixes: readonly string[];
}

/** By its key, or by an identity and who vouches for that. */
export type NamedSigner =
  | { readonly name: string; readonly kind: 'key'; readonly pem: string }
  | {
      readonly name: string;
      readonly kind: 'identity';
      readonly issuer: string;
      readonly subject: string | { readonly pattern: string };
    };
