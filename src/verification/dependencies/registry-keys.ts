/**
 * Keys that a registry of npm packages signs with, as it publishes them, and its signatures: ECDSA on P-256 with SHA-256 over
 * `name@version:integrity`. Operators pin the keys.
 */
import { createPublicKey, type KeyObject, verify } from 'node:crypto';
import { CtError, messageOf } from '../../core/errors.ts';
import { isObject } from '../../core/json.ts';
import { keyKind } from '../key-id.ts';

const MAX_KEYS = 100;
/** A signature has 72 bytes. */
const MAX_SIGNATURE_LENGTH = 200;

export interface RegistryKey {
  readonly publicKey: KeyObject;
  readonly expires: Date | undefined;
}

/** By id. Throws TRUST_INVALID. */
export function parseRegistryKeys(bytes: Buffer, file: string): ReadonlyMap<string, RegistryKey> {
  try {
    const document: unknown = JSON.parse(bytes.toString('utf8'));
    const list = isObject(document) ? document['keys'] : undefined;
    if (!Array.isArray(list) || list.length === 0 || list.length > MAX_KEYS)
      throw new Error('it has no list `keys`');
    const keys = new Map<string, RegistryKey>();
    for (const entry of list as unknown[]) {
      if (!isObject(entry)) throw new Error('a key is no object');
      const { keyid, key, expires } = entry as Record<'keyid' | 'key' | 'expires', unknown>;
      if (typeof keyid !== 'string' || typeof key !== 'string')
        throw new Error('a key has no `keyid` or `key`');
      const publicKey = createPublicKey({ key: Buffer.from(key, 'base64'), format: 'der', type: 'spki' });
      if (keyKind(publicKey) !== 'ecdsa-p256') throw new Error(`the key ${keyid} is not ECDSA P-256`);
      if (keys.has(keyid)) throw new Error(`two keys are called ${keyid}`);
      const end = expires === null || expires === undefined ? undefined : new Date(String(expires));
      if (end && Number.isNaN(end.getTime())) throw new Error(`the key ${keyid} has no time in \`expires\``);
      keys.set(keyid, { publicKey, expires: end });
    }
    return keys;
  } catch (error) {
    throw new CtError('TRUST_INVALID', `${file} holds no keys of a registry: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

export interface RegistrySignature {
  readonly keyid: string;
  readonly sig: string;
}

/** `absent`: of none of the keys that count now. One that is wrong is not made up for by another. */
export function registrySignature(
  subject: { readonly name: string; readonly version: string; readonly integrity: string },
  signatures: readonly RegistrySignature[],
  keys: ReadonlyMap<string, RegistryKey>,
  now: Date,
): 'valid' | 'absent' | 'invalid' {
  const message = Buffer.from(`${subject.name}@${subject.version}:${subject.integrity}`);
  let found: 'valid' | 'absent' = 'absent';
  for (const { keyid, sig } of signatures) {
    const key = keys.get(keyid);
    // Nothing vouches for when it was made, so a key that has expired says nothing any more.
    if (key === undefined || (key.expires && key.expires <= now)) continue;
    if (sig.length > MAX_SIGNATURE_LENGTH) return 'invalid';
    if (!verify('sha256', message, key.publicKey, Buffer.from(sig, 'base64'))) return 'invalid';
    found = 'valid';
  }
  return found;
}
