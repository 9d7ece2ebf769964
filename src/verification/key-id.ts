import { createHash, type KeyObject } from 'node:crypto';

/**
 * The id of a public key, as cosign writes it into bundles: the SHA-256 of its SubjectPublicKeyInfo (DER), in base64.
 * It only says which key to try; the signature decides.
 */
export function keyId(publicKey: KeyObject): string {
  return createHash('sha256')
    .update(publicKey.export({ type: 'spki', format: 'der' }))
    .digest('base64');
}

/** Kinds of keys that sign and are trusted: ECDSA on P-256 with SHA-256, and Ed25519. */
export type KeyKind = 'ecdsa-p256' | 'ed25519';

/** Undefined for keys of any other kind. Works for private keys too. */
export function keyKind(key: KeyObject): KeyKind | undefined {
  if (key.asymmetricKeyType === 'ed25519') return 'ed25519';
  return key.asymmetricKeyType === 'ec' && key.asymmetricKeyDetails?.namedCurve === 'prime256v1'
    ? 'ecdsa-p256'
    : undefined;
}
