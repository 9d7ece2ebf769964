import { createPublicKey, type KeyObject } from 'node:crypto';
import { TrustedRoot } from '@sigstore/protobuf-specs';
import { type TrustMaterial, toTrustMaterial } from '@sigstore/verify';
import { CtError, messageOf } from '../core/errors.ts';
import { keyId, keyKind } from './key-id.ts';

const MAX_TRUSTED_ROOT_BYTES = 4 * 1024 * 1024; // the public-good root has 7 KiB
const MAX_KEYS = 1000; // a list that somebody maintains by hand

const TRUSTED_ROOT_MEDIA_TYPES = [
  'application/vnd.dev.sigstore.trustedroot+json;version=0.1',
  'application/vnd.dev.sigstore.trustedroot.v0.1+json',
  'application/vnd.dev.sigstore.trustedroot.v0.2+json',
];

/** A public key whose signatures are accepted. */
export interface TrustedKey {
  /** What policy and reports call it; unique. */
  readonly name: string;
  /** SubjectPublicKeyInfo in PEM; ECDSA P-256 or Ed25519. */
  readonly pem: string;
  /** The hint that bundles carry, if a signer does not use the {@link keyId} of the key. */
  readonly hint?: string;
  /** The key counts for signatures made between these times only. */
  readonly validFrom?: Date;
  readonly validUntil?: Date;
}

export interface TrustSource {
  /** A Sigstore `trusted_root.json`: certificate authorities, logs and timestamp authorities. Pinned, never fetched. */
  readonly trustedRoot?: Uint8Array;
  readonly keys?: readonly TrustedKey[];
}

export interface LoadedKey extends TrustedKey {
  readonly id: string;
  readonly publicKey: KeyObject;
}

/** What signatures are verified against; made once by {@link loadTrust}, used for many. */
export interface Trust {
  readonly root: TrustedRoot | undefined;
  readonly material: TrustMaterial;
  /** By hint. */
  readonly keys: ReadonlyMap<string, LoadedKey>;
}

const EMPTY_ROOT: TrustedRoot = {
  mediaType: '',
  certificateAuthorities: [],
  timestampAuthorities: [],
  tlogs: [],
  ctlogs: [],
};

/**
 * Reads trusted roots and keys. Throws `TRUST_INVALID` if one does not parse, is of a kind that is not supported, if two
 * keys share a name or hint, or if there is neither root nor key.
 */
export function loadTrust({ trustedRoot, keys = [] }: TrustSource): Trust {
  if (trustedRoot === undefined && keys.length === 0) {
    throw invalid('there is neither a trusted root nor a trusted key');
  }
  if (keys.length > MAX_KEYS) throw invalid(`there are more than ${MAX_KEYS} trusted keys`);
  const byHint = new Map<string, LoadedKey>();
  const names = new Set<string>();
  for (const key of keys) {
    const loaded = loadKey(key);
    const hint = key.hint ?? loaded.id;
    if (byHint.has(hint)) throw invalid(`two trusted keys have the hint ${hint}`);
    if (names.has(key.name)) throw invalid(`two trusted keys have the name ${key.name}`);
    byHint.set(hint, loaded);
    names.add(key.name);
  }
  const root = trustedRoot === undefined ? undefined : parseTrustedRoot(trustedRoot);
  try {
    const material = toTrustMaterial(root ?? EMPTY_ROOT, (hint) => {
      const key = byHint.get(hint);
      if (key === undefined) throw new CtError('SIGNATURE_UNTRUSTED', 'the key of the signer is unknown');
      return { publicKey: key.publicKey, validFor: (date) => isValidAt(key, date) };
    });
    return { root, material, keys: byHint };
  } catch (error) {
    throw invalid(`the trusted root cannot be used: ${messageOf(error)}`, error);
  }
}

export function isValidAt({ validFrom, validUntil }: TrustedKey, date: Date): boolean {
  return (validFrom === undefined || validFrom <= date) && (validUntil === undefined || date <= validUntil);
}

function loadKey(key: TrustedKey): LoadedKey {
  if (key.name === '' || key.hint === '') throw invalid('a trusted key has an empty name or hint');
  if (key.pem.includes('PRIVATE KEY')) throw invalid(`the trusted key ${key.name} is a private key`);
  // Node would take the key out of a certificate and forget its term.
  if (!key.pem.includes('-----BEGIN PUBLIC KEY-----')) {
    throw invalid(`the trusted key ${key.name} is no public key in PEM`);
  }
  let publicKey: KeyObject;
  try {
    publicKey = createPublicKey({ key: key.pem, format: 'pem' });
  } catch (error) {
    throw invalid(`the trusted key ${key.name} does not parse`, error);
  }
  if (keyKind(publicKey) === undefined) {
    throw invalid(`the trusted key ${key.name} is neither ECDSA P-256 nor Ed25519`);
  }
  return { ...key, id: keyId(publicKey), publicKey };
}

function parseTrustedRoot(document: Uint8Array): TrustedRoot {
  if (document.byteLength > MAX_TRUSTED_ROOT_BYTES) {
    throw invalid(`the trusted root has more than ${MAX_TRUSTED_ROOT_BYTES} bytes`);
  }
  let root: TrustedRoot;
  try {
    root = TrustedRoot.fromJSON(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(document)));
  } catch (error) {
    throw invalid('the trusted root does not parse', error);
  }
  if (!TRUSTED_ROOT_MEDIA_TYPES.includes(root.mediaType)) {
    throw invalid('the trusted root has not the media type of one');
  }
  if (root.tlogs.length + root.certificateAuthorities.length + root.timestampAuthorities.length === 0) {
    throw invalid('the trusted root trusts nobody');
  }
  // Without a start the library would trust from the beginning of time.
  const terms = [
    ...[...root.tlogs, ...root.ctlogs].map(({ publicKey }) => publicKey?.validFor),
    ...[...root.certificateAuthorities, ...root.timestampAuthorities].map(({ validFor }) => validFor),
  ];
  if (terms.some((term) => term?.start === undefined)) {
    throw invalid('the trusted root does not say since when each authority and log is trusted');
  }
  return root;
}

function invalid(reason: string, cause?: unknown): CtError {
  return new CtError('TRUST_INVALID', reason, { cause });
}
