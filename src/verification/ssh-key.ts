/** Public keys and signatures of SSH in the encodings of RFC 4253 (section 6.6), RFC 5656, RFC 8332 and RFC 8709. */
import { createHash, createPublicKey, type KeyObject, verify } from 'node:crypto';

/** Peer-controlled; a key of RSA with 16384 bits has 2 KiB. */
export const MAX_SSH_KEY_BYTES = 8192;
/** A shorter key of RSA counts as none. */
const MIN_RSA_BITS = 2048;
const CURVES: Readonly<
  Record<string, { readonly name: string; readonly bytes: number; readonly hash: string }>
> = {
  nistp256: { name: 'P-256', bytes: 32, hash: 'sha256' },
  nistp384: { name: 'P-384', bytes: 48, hash: 'sha384' },
  nistp521: { name: 'P-521', bytes: 66, hash: 'sha512' },
};
/** The user touched the security key: without that, whoever runs on the machine of the signer can sign. */
const FLAG_USER_PRESENT = 1;

/** Reads length-prefixed fields (RFC 4251, section 5). Throws an Error for bytes that do not suffice. */
export class SshReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  uint32(): number {
    const value = this.#bytes.readUInt32BE(this.#at);
    this.#at += 4;
    return value;
  }

  byte(): number {
    return this.#bytes.readUInt8(this.#at++);
  }

  string(): Buffer {
    const length = this.uint32();
    if (this.#at + length > this.#bytes.length) throw new Error('a field is cut short');
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  raw(length: number): Buffer {
    if (this.#at + length > this.#bytes.length) throw new Error('a field is cut short');
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  end(): void {
    if (this.#at !== this.#bytes.length) throw new Error('there are bytes behind it');
  }
}

export function sshString(bytes: Buffer | string): Buffer {
  const content = Buffer.from(bytes);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(content.length);
  return Buffer.concat([length, content]);
}

/** As `ssh-keygen -l` prints it. */
export function sshFingerprint(blob: Buffer): string {
  return `SHA256:${createHash('sha256').update(blob).digest('base64').replace(/=+$/, '')}`;
}

export interface SshKey {
  readonly type: string;
  readonly blob: Buffer;
  /** Whether `signature` (with its algorithm) is one of this key over `message`. Throws an Error if it is malformed. */
  readonly verifies: (message: Buffer, signature: Buffer) => boolean;
}

/** Throws an Error saying why it is no key whose signatures can be verified. */
export function parseSshKey(blob: Buffer): SshKey {
  if (blob.length > MAX_SSH_KEY_BYTES) throw new Error('the key is too large');
  const reader = new SshReader(blob);
  const type = reader.string().toString('latin1');
  if (type === 'ssh-ed25519' || type === 'sk-ssh-ed25519@openssh.com') {
    const key = ed25519(reader.string());
    const application = type === 'ssh-ed25519' ? undefined : reader.string();
    reader.end();
    return {
      type,
      blob,
      verifies: (message, signature) => {
        const fields = signatureFields(signature, type);
        const value = fields.string();
        const signed = application === undefined ? message : securityKeyMessage(application, fields, message);
        fields.end();
        return signed !== undefined && verify(null, signed, key, value);
      },
    };
  }
  if (type === 'ssh-rsa') {
    const exponent = reader.string();
    const modulus = reader.string();
    reader.end();
    const key = createPublicKey({
      key: {
        kty: 'RSA',
        n: unsigned(modulus).toString('base64url'),
        e: unsigned(exponent).toString('base64url'),
      },
      format: 'jwk',
    });
    if ((key.asymmetricKeyDetails?.modulusLength ?? 0) < MIN_RSA_BITS) {
      throw new Error(`a key of RSA needs ${MIN_RSA_BITS} bits`);
    }
    return {
      type,
      blob,
      verifies: (message, signature) => {
        const fields = new SshReader(signature);
        const algorithm = fields.string().toString('latin1');
        // Not `ssh-rsa`, which is SHA-1.
        const hash = { 'rsa-sha2-256': 'sha256', 'rsa-sha2-512': 'sha512' }[algorithm];
        if (hash === undefined) throw new Error(`${algorithm.slice(0, 40)} does not count`);
        const value = fields.string();
        fields.end();
        return verify(hash, message, key, value);
      },
    };
  }
  const curveName = /^(?:sk-)?ecdsa-sha2-(nistp\d+)(?:@openssh\.com)?$/.exec(type)?.[1] ?? '';
  const curve = CURVES[curveName];
  const isSecurityKey = type.startsWith('sk-');
  if (
    curve === undefined ||
    type !== (isSecurityKey ? `sk-ecdsa-sha2-nistp256@openssh.com` : `ecdsa-sha2-${curveName}`)
  ) {
    throw new Error(`keys of type ${type.slice(0, 40)} are not verified`);
  }
  if (reader.string().toString('latin1') !== curveName) throw new Error('the key names two curves');
  const point = reader.string();
  const application = isSecurityKey ? reader.string() : undefined;
  reader.end();
  if (point.length !== 1 + 2 * curve.bytes || point[0] !== 4)
    throw new Error('the key is no point of its curve');
  const key = createPublicKey({
    key: {
      kty: 'EC',
      crv: curve.name,
      x: point.subarray(1, 1 + curve.bytes).toString('base64url'),
      y: point.subarray(1 + curve.bytes).toString('base64url'),
    },
    format: 'jwk',
  });
  return {
    type,
    blob,
    verifies: (message, signature) => {
      const fields = signatureFields(signature, type);
      const numbers = new SshReader(fields.string());
      const [r, s] = [numbers.string(), numbers.string()].map((number) => padded(number, curve.bytes)) as [
        Buffer,
        Buffer,
      ];
      numbers.end();
      const signed = application === undefined ? message : securityKeyMessage(application, fields, message);
      fields.end();
      const value = Buffer.concat([r, s]);
      return signed !== undefined && verify(curve.hash, signed, { key, dsaEncoding: 'ieee-p1363' }, value);
    },
  };
}

function signatureFields(signature: Buffer, type: string): SshReader {
  const fields = new SshReader(signature);
  if (fields.string().toString('latin1') !== type)
    throw new Error('the signature is of another kind than the key');
  return fields;
}

/** What a security key signs (OpenSSH, PROTOCOL.u2f); undefined if nobody touched it. */
function securityKeyMessage(application: Buffer, fields: SshReader, message: Buffer): Buffer | undefined {
  const flags = fields.byte();
  const counter = fields.raw(4);
  if ((flags & FLAG_USER_PRESENT) === 0) return undefined;
  const sha256 = (bytes: Buffer): Buffer => createHash('sha256').update(bytes).digest();
  return Buffer.concat([sha256(application), Buffer.of(flags), counter, sha256(message)]);
}

function ed25519(bytes: Buffer): KeyObject {
  if (bytes.length !== 32) throw new Error('a key of Ed25519 has 32 bytes');
  return createPublicKey({
    key: { kty: 'OKP', crv: 'Ed25519', x: bytes.toString('base64url') },
    format: 'jwk',
  });
}

function unsigned(number: Buffer): Buffer {
  return number[0] === 0 ? number.subarray(1) : number;
}

function padded(number: Buffer, length: number): Buffer {
  const digits = unsigned(number);
  if (digits.length > length) throw new Error('a number is too large');
  return Buffer.concat([Buffer.alloc(length - digits.length), digits]);
}
