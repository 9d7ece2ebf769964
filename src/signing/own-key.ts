import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { CtError } from '../core/errors.ts';
import { type KeyKind, keyId, keyKind } from '../verification/key-id.ts';
import type { KeySource } from './source.ts';

const MAX_KEY_BYTES = 16 * 1024; // a P-256 key has 240 bytes
const ENCRYPTED_HEADER = '-----BEGIN ENCRYPTED PRIVATE KEY-----';

export interface KeyPair {
  /** PKCS#8; encrypted (PBES2, AES-256-CBC) if there is a passphrase. The caller keeps it in a file of mode 0600. */
  readonly privateKeyPem: string;
  /** SubjectPublicKeyInfo, for the list of trusted keys. */
  readonly publicKeyPem: string;
  readonly keyId: string;
}

/** Makes a signing key. cosign signs and verifies with either kind; only ECDSA keys can sign bare messages. */
export function generateKeyPair(kind: KeyKind = 'ecdsa-p256', passphrase?: string): KeyPair {
  if (passphrase === '') throw new CtError('SIGNING_KEY_INVALID', 'the passphrase is empty');
  const { privateKey, publicKey } =
    kind === 'ed25519' ? generateKeyPairSync('ed25519') : generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return {
    privateKeyPem: privateKey.export({
      type: 'pkcs8',
      format: 'pem',
      ...(passphrase === undefined ? {} : { cipher: 'aes-256-cbc', passphrase }),
    }) as string,
    publicKeyPem: publicKey.export({ type: 'spki', format: 'pem' }) as string,
    keyId: keyId(publicKey),
  };
}

/**
 * Signs with a private key (PKCS#8 in PEM; ECDSA P-256 or Ed25519). `passphrase` is asked only if the key is encrypted.
 * Throws `SIGNING_KEY_INVALID`, which never quotes the key.
 */
export async function ownKey(privateKeyPem: string, passphrase?: () => Promise<string>): Promise<KeySource> {
  if (privateKeyPem.length > MAX_KEY_BYTES) throw invalid('it is too large for a key');
  const encrypted = privateKeyPem.includes(ENCRYPTED_HEADER);
  if (!encrypted && !privateKeyPem.includes('-----BEGIN PRIVATE KEY-----')) {
    throw invalid('it is no PKCS#8 key in PEM');
  }
  if (encrypted && passphrase === undefined) throw invalid('it is encrypted, and there is no passphrase');
  let privateKey: KeyObject;
  const secret = encrypted ? await passphrase?.() : undefined;
  try {
    privateKey = createPrivateKey({
      key: privateKeyPem,
      format: 'pem',
      ...(secret === undefined ? {} : { passphrase: secret }),
    });
  } catch {
    throw invalid(encrypted ? 'it does not parse, or the passphrase is wrong' : 'it does not parse');
  }
  const kind = keyKind(privateKey);
  if (kind === undefined) throw invalid('it is neither ECDSA P-256 nor Ed25519');
  const publicKey = createPublicKey(privateKey);
  return {
    kind: 'key',
    keyKind: kind,
    publicKey,
    sign: async (data) => ({
      signature: sign(kind === 'ed25519' ? null : 'sha256', data, privateKey),
      key: {
        $case: 'publicKey',
        publicKey: publicKey.export({ type: 'spki', format: 'pem' }) as string,
        hint: keyId(publicKey),
      },
    }),
  };
}

function invalid(reason: string): CtError {
  return new CtError('SIGNING_KEY_INVALID', `the private key cannot be used: ${reason}`);
}
