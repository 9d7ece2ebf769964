/**
 * Signatures of commits by an identity (gitsign): a detached CMS message (RFC 5652) with the certificate of a keyless signer, and
 * among its unsigned attributes the entry of the transparency log, if the signer put it there (`gitsign.rekorMode=offline`). What
 * is signed are the signed attributes, which have the digest of the commit. It is turned into a Sigstore bundle about these, so
 * that it is verified as every other signature.
 */
import { createHash } from 'node:crypto';
import { ASN1Obj } from '@sigstore/core';
import { CtError, messageOf } from '../core/errors.ts';

const BEGIN = '-----BEGIN SIGNED MESSAGE-----';
const END = '-----END SIGNED MESSAGE-----';
/** Certificate, signature and log entry have some KiB. */
const MAX_ARMOR_LENGTH = 256 * 1024;
const MAX_PROOF_HASHES = 64;

const OID = {
  data: '1.2.840.113549.1.7.1',
  signedData: '1.2.840.113549.1.7.2',
  contentType: '1.2.840.113549.1.9.3',
  messageDigest: '1.2.840.113549.1.9.4',
  logEntry: '1.3.6.1.4.1.57264.3.1',
} as const;
/** First bytes of elements. */
const TAG = { octets: 0x04, oid: 0x06, sequence: 0x30, set: 0x31, first: 0xa0, second: 0xa1 } as const;
/** Parts that gitsign writes in one way. */
const VERSION = '020101';
const SHA256 = '300b0609608648016503040201';
const ECDSA_WITH_SHA256 = '300a06082a8648ce3d040302';
const DATA = '300b06092a864886f70d010701';

export interface GitsignMessage {
  /** A Sigstore bundle in JSON, not verified. */
  readonly bundle: Buffer;
  /** What it signs. */
  readonly artifact: Buffer;
}

export function isGitsignSignature(armor: string): boolean {
  return armor.startsWith(BEGIN);
}

/** Throws VERIFY_COMMIT_INVALID if it is none, or one of other bytes than `message`. */
export function readGitsign(armor: string, message: Buffer): GitsignMessage {
  try {
    return read(armor, message);
  } catch (error) {
    throw new CtError(
      'VERIFY_COMMIT_INVALID',
      `its signature is not one of this commit: ${messageOf(error)}`,
      {
        cause: error,
      },
    );
  }
}

function read(armor: string, message: Buffer): GitsignMessage {
  const text = armor.trim();
  if (text.length > MAX_ARMOR_LENGTH || !text.endsWith(END)) throw new Error('it is too long, or has no end');
  const encoded = text.slice(BEGIN.length, -END.length).replaceAll(/\s/g, '');
  const der = Buffer.from(encoded, 'base64');
  if (der.toString('base64') !== encoded) throw new Error('it is not in base64');
  const root = ASN1Obj.parseBuffer(der);
  // What is compared is what the library encodes again: other spellings of it must not pass for it.
  if (!root.toDER().equals(der)) throw new Error('its encoding is not canonical');
  const [type, wrapped] = childrenOf(root, TAG.sequence, 2);
  if (oidOf(type) !== OID.signedData) throw new Error('it is no signed data');
  const [content] = childrenOf(wrapped, TAG.first, 1);
  const [version, digests, about, certificates, infos] = childrenOf(content, TAG.sequence, 5);
  requireSame(version, VERSION);
  requireSame(childrenOf(digests, TAG.set, 1)[0], SHA256);
  requireSame(about, DATA);
  const signer = signerOf(childrenOf(infos, TAG.set, 1)[0]);
  if (oidOf(attribute(signer.signed, OID.contentType)) !== OID.data) throw new Error('it is about no data');
  const digest = createHash('sha256').update(message).digest();
  if (!octetsOf(attribute(signer.signed, OID.messageDigest)).equals(digest)) {
    throw new Error('it is about something else');
  }
  const artifact = signer.signed.toDER();
  artifact[0] = TAG.set; // [0] IMPLICIT stands for the SET that is signed
  if (firstByteOf(certificates) !== TAG.first) throw new Error('it has no certificates');
  const certificate = certificates?.subs.find((candidate) => isOf(candidate, signer.id))?.toDER();
  if (certificate === undefined) throw new Error('it lacks the certificate of its signer');
  const entry = signer.unsigned && optionalAttribute(signer.unsigned, OID.logEntry);
  const logEntry =
    entry && readLogEntry(octetsOf(entry), recordBody(artifact, signer.signature, certificate));
  return { artifact, bundle: bundleOf(certificate, signer.signature, artifact, logEntry) };
}

interface SignerInfo {
  readonly id: ASN1Obj;
  readonly signed: ASN1Obj;
  readonly signature: Buffer;
  readonly unsigned: ASN1Obj | undefined;
}

function signerOf(info: ASN1Obj | undefined): SignerInfo {
  const count = info?.subs.length === 7 ? 7 : 6;
  const [version, id, digestAlgorithm, signed, algorithm, signature, unsigned] = childrenOf(
    info,
    TAG.sequence,
    count,
  );
  requireSame(version, VERSION);
  requireSame(digestAlgorithm, SHA256);
  requireSame(algorithm, ECDSA_WITH_SHA256);
  if (!id || !signed || firstByteOf(signed) !== TAG.first) throw new Error('its signer has another form');
  if (unsigned && firstByteOf(unsigned) !== TAG.second) throw new Error('its signer has another form');
  return { id, signed, signature: octetsOf(signature), unsigned };
}

function firstByteOf(element: ASN1Obj | undefined): number | undefined {
  return element?.toDER()[0];
}

function childrenOf(element: ASN1Obj | undefined, tag: number, count: number): readonly ASN1Obj[] {
  if (element === undefined || firstByteOf(element) !== tag || element.subs.length !== count) {
    throw new Error('it has another form');
  }
  return element.subs;
}

function oidOf(element: ASN1Obj | undefined): string {
  if (element === undefined || firstByteOf(element) !== TAG.oid) throw new Error('it has another form');
  return element.toOID();
}

function octetsOf(element: ASN1Obj | undefined): Buffer {
  if (element === undefined || firstByteOf(element) !== TAG.octets) throw new Error('it has another form');
  return element.value;
}

function requireSame(element: ASN1Obj | undefined, hex: string): void {
  if (element?.toDER().toString('hex') !== hex)
    throw new Error('it has a version or an algorithm that is not read');
}

/** Issuer and serial number. */
function isOf(certificate: ASN1Obj, id: ASN1Obj): boolean {
  const [, serial, , issuer] = certificate.subs[0]?.subs ?? [];
  const [idIssuer, idSerial] = childrenOf(id, TAG.sequence, 2);
  if (!serial || !issuer || !idIssuer || !idSerial) return false;
  return issuer.toDER().equals(idIssuer.toDER()) && serial.toDER().equals(idSerial.toDER());
}

function attribute(attributes: ASN1Obj, oid: string): ASN1Obj {
  const found = optionalAttribute(attributes, oid);
  if (found === undefined) throw new Error('a signed attribute is missing');
  return found;
}

/** Its only value. */
function optionalAttribute(attributes: ASN1Obj, oid: string): ASN1Obj | undefined {
  const found = attributes.subs
    .map((element) => childrenOf(element, TAG.sequence, 2))
    .filter(([type]) => oidOf(type) === oid);
  if (found.length === 0) return undefined;
  if (found.length > 1) throw new Error('an attribute is there twice');
  return childrenOf(found[0]?.[1], TAG.set, 1)[0];
}

/** The body of the entry in the log, which signers leave out because it follows from the rest (Rekor, hashedrekord 0.0.1). */
function recordBody(artifact: Buffer, signature: Buffer, certificate: Buffer): Buffer {
  const lines = certificate.toString('base64').match(/.{1,64}/g) ?? [];
  const pem = `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`;
  const value = createHash('sha256').update(artifact).digest('hex');
  return Buffer.from(
    JSON.stringify({
      apiVersion: '0.0.1',
      kind: 'hashedrekord',
      spec: {
        data: { hash: { algorithm: 'sha256', value } },
        signature: {
          content: signature.toString('base64'),
          publicKey: { content: Buffer.from(pem).toString('base64') },
        },
      },
    }),
  );
}

function bundleOf(
  certificate: Buffer,
  signature: Buffer,
  artifact: Buffer,
  logEntry: LogEntry | undefined,
): Buffer {
  const raw = { rawBytes: certificate.toString('base64') };
  // Without a proof only the first version of the format takes an entry.
  const isFirst = logEntry !== undefined && logEntry.inclusionProof === undefined;
  return Buffer.from(
    JSON.stringify({
      mediaType: isFirst
        ? 'application/vnd.dev.sigstore.bundle+json;version=0.1'
        : 'application/vnd.dev.sigstore.bundle.v0.3+json',
      verificationMaterial: {
        ...(isFirst ? { x509CertificateChain: { certificates: [raw] } } : { certificate: raw }),
        tlogEntries: logEntry === undefined ? [] : [logEntry],
      },
      messageSignature: {
        messageDigest: {
          algorithm: 'SHA2_256',
          digest: createHash('sha256').update(artifact).digest('base64'),
        },
        signature: signature.toString('base64'),
      },
    }),
  );
}

// ---------------------------------------------------------------- protobuf: TransparencyLogEntry (sigstore_rekor.proto)

interface LogEntry {
  readonly inclusionProof: object | undefined;
  readonly [field: string]: unknown;
}

type Fields = ReadonlyMap<number, readonly (bigint | Buffer)[]>;

function readLogEntry(bytes: Buffer, body: Buffer): LogEntry {
  const entry = readMessage(bytes);
  const kind = subMessage(entry, 3);
  const promise = optional(entry, 5);
  const proof = optional(entry, 6);
  return {
    logIndex: counter(entry, 1),
    logId: { keyId: base64(subMessage(entry, 2), 1) },
    kindVersion: { kind: string(kind, 1), version: string(kind, 2) },
    integratedTime: counter(entry, 4),
    ...(promise && { inclusionPromise: { signedEntryTimestamp: base64(promise, 1) } }),
    inclusionProof: proof && {
      logIndex: counter(proof, 1),
      rootHash: base64(proof, 2),
      treeSize: counter(proof, 3),
      hashes: bytesOf(proof, 4)
        .slice(0, MAX_PROOF_HASHES + 1)
        .map((hash) => hash.toString('base64')),
      checkpoint: { envelope: string(subMessage(proof, 5), 1) },
    },
    canonicalizedBody: body.toString('base64'),
  };
}

/** Varints and length-delimited fields; there are no others in it. */
function readMessage(bytes: Buffer): Fields {
  const fields = new Map<number, (bigint | Buffer)[]>();
  let at_ = 0;
  const varint = (): bigint => {
    let value = 0n;
    for (let shift = 0n; shift < 64n; shift += 7n) {
      const byte = bytes[at_++];
      if (byte === undefined) break;
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    throw new Error('its log entry is cut short');
  };
  while (at_ < bytes.length) {
    const tag = Number(varint());
    const number = Math.floor(tag / 8);
    let value: bigint | Buffer;
    if (tag % 8 === 0) value = varint();
    else if (tag % 8 === 2) {
      const length = Number(varint());
      if (at_ + length > bytes.length) throw new Error('its log entry is cut short');
      value = bytes.subarray(at_, at_ + length);
      at_ += length;
    } else throw new Error('its log entry has a field of a kind that it does not have');
    fields.set(number, [...(fields.get(number) ?? []), value]);
    if ((fields.get(number)?.length ?? 0) > MAX_PROOF_HASHES + 1)
      throw new Error('its log entry has too many fields');
  }
  return fields;
}

/** Of several, a reader of protobuf takes the last; here there is one at most. */
function single(fields: Fields, number: number): bigint | Buffer | undefined {
  const values = fields.get(number) ?? [];
  if (values.length > 1) throw new Error('its log entry has a field twice');
  return values[0];
}

function optional(fields: Fields, number: number): Fields | undefined {
  const value = single(fields, number);
  return Buffer.isBuffer(value) ? readMessage(value) : undefined;
}

function subMessage(fields: Fields, number: number): Fields {
  return optional(fields, number) ?? new Map();
}

function counter(fields: Fields, number: number): string {
  const value = single(fields, number) ?? 0n;
  if (typeof value !== 'bigint') throw new Error('its log entry has a number that is none');
  return String(value);
}

function bytesOf(fields: Fields, number: number): Buffer[] {
  return (fields.get(number) ?? []).filter((value) => Buffer.isBuffer(value));
}

function base64(fields: Fields, number: number): string {
  const value = single(fields, number);
  return Buffer.isBuffer(value) ? value.toString('base64') : '';
}

function string(fields: Fields, number: number): string {
  const value = single(fields, number);
  return Buffer.isBuffer(value) ? value.toString('utf8') : '';
}
