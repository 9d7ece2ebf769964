import type { KeyObject } from 'node:crypto';
import type { Signature } from '@sigstore/sign';
import type { KeyKind } from '../verification/key-id.ts';

/** Where signatures come from: a key that stays the same. `sign` gets the bytes themselves, not their digest. */
export interface KeySource {
  readonly kind: 'key';
  readonly keyKind: KeyKind;
  readonly publicKey: KeyObject;
  sign(data: Buffer): Promise<Signature>;
}

/** Where signatures come from: a fresh key each time, with a certificate for an identity. */
export interface KeylessSource {
  readonly kind: 'keyless';
  sign(data: Buffer): Promise<Signature>;
}

export type SignatureSource = KeySource | KeylessSource;
