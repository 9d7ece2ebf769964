/** Signs commits as gitsign does (`gitsign.rekorMode=offline`): CMS around what a Sigstore of the test's own gives. */
import { createHash } from 'node:crypto';
import type { SigningServices } from '../../src/signing/services.ts';
import { keylessSigner } from '../../src/signing/signer.ts';

type Parts = readonly (Buffer | readonly Buffer[])[];

function der(tag: number, ...parts: Parts): Buffer {
  const content = Buffer.concat(parts.flat() as Buffer[]);
  const { length } = content;
  const size =
    length < 0x80
      ? Buffer.of(length)
      : length < 0x100
        ? Buffer.of(0x81, length)
        : Buffer.of(0x82, length >> 8, length & 0xff);
  return Buffer.concat([Buffer.of(tag), size, content]);
}
const sequence = (...parts: Parts): Buffer => der(0x30, ...parts);
/** DER sorts the elements of sets. */
const set = (...parts: Buffer[]): Buffer => der(0x31, parts.toSorted(Buffer.compare));
const octets = (bytes: Buffer): Buffer => der(0x04, bytes);
const integer = (value: number): Buffer => der(0x02, Buffer.of(value));

function oid(text: string): Buffer {
  const [first = 0, second = 0, ...rest] = text.split('.').map(Number);
  const bytes = [40 * first + second];
  for (const part of rest) {
    const digits = [part & 0x7f];
    for (let left = part >>> 7; left > 0; left >>>= 7) digits.unshift((left & 0x7f) | 0x80);
    bytes.push(...digits);
  }
  return der(0x06, Buffer.from(bytes));
}

/** Content of the element that begins at `at`, and where it ends. */
function element(bytes: Buffer, at: number): { readonly begin: number; readonly end: number } {
  const first = bytes[at + 1] ?? 0;
  if (first < 0x80) return { begin: at + 2, end: at + 2 + first };
  const count = first & 0x7f;
  const length = bytes.readUIntBE(at + 2, count);
  return { begin: at + 2 + count, end: at + 2 + count + length };
}

/** Issuer and serial number of a certificate, each as it is encoded there. */
function issuerAndSerial(certificate: Buffer): Buffer {
  const tbs = element(certificate, element(certificate, 0).begin);
  const serialAt = element(certificate, tbs.begin).end; // behind the version
  const serialEnd = element(certificate, serialAt).end;
  const issuerAt = element(certificate, serialEnd).end; // behind the algorithm
  const issuerEnd = element(certificate, issuerAt).end;
  return sequence(certificate.subarray(issuerAt, issuerEnd), certificate.subarray(serialAt, serialEnd));
}

const varint = (value: bigint): Buffer => {
  const bytes: number[] = [];
  let left = value;
  do {
    bytes.push(Number(left & 0x7fn) | (left > 0x7fn ? 0x80 : 0));
    left >>= 7n;
  } while (left > 0n);
  return Buffer.from(bytes);
};
const number = (field: number, value: string): Buffer =>
  Buffer.concat([varint(BigInt(field * 8)), varint(BigInt(value))]);
const bytesField = (field: number, ...parts: Parts): Buffer => {
  const content = Buffer.concat(parts.flat() as Buffer[]);
  return Buffer.concat([varint(BigInt(field * 8 + 2)), varint(BigInt(content.length)), content]);
};
const fromBase64 = (text: string): Buffer => Buffer.from(text, 'base64');

// biome-ignore lint/suspicious/noExplicitAny: JSON of a bundle
function logEntryBytes(entry: any): Buffer {
  const { inclusionPromise: promise, inclusionProof: proof } = entry;
  return Buffer.concat([
    number(1, entry.logIndex ?? '0'),
    bytesField(2, bytesField(1, fromBase64(entry.logId.keyId))),
    bytesField(
      3,
      bytesField(1, Buffer.from(entry.kindVersion.kind)),
      bytesField(2, Buffer.from(entry.kindVersion.version)),
    ),
    number(4, entry.integratedTime ?? '0'),
    ...(promise ? [bytesField(5, bytesField(1, fromBase64(promise.signedEntryTimestamp)))] : []),
    ...(proof
      ? [
          bytesField(
            6,
            number(1, proof.logIndex ?? '0'),
            bytesField(2, fromBase64(proof.rootHash)),
            number(3, proof.treeSize),
            (proof.hashes ?? []).map((hash: string) => bytesField(4, fromBase64(hash))),
            bytesField(5, bytesField(1, Buffer.from(proof.checkpoint.envelope))),
          ),
        ]
      : []),
  ]);
}

export interface GitsignOptions {
  readonly token: string;
  readonly services: SigningServices;
  /** False: as gitsign signs without `offline`: the entry is only in the log. */
  readonly logEntry?: boolean;
}

/** The armored signature of the bytes of a commit. */
export async function gitsign(
  commit: Buffer,
  { token, services, logEntry = true }: GitsignOptions,
): Promise<string> {
  const attributes = [
    sequence(oid('1.2.840.113549.1.9.3'), set(oid('1.2.840.113549.1.7.1'))),
    sequence(oid('1.2.840.113549.1.9.4'), set(octets(createHash('sha256').update(commit).digest()))),
  ];
  const signed = set(...attributes);
  const signer = keylessSigner(async () => token, { ...services, timestampAuthorities: [] });
  const bundle = JSON.parse((await signer.signMessage(signed)).toString());
  const { certificate, tlogEntries } = bundle.verificationMaterial;
  const raw = fromBase64(certificate.rawBytes);
  const sha256 = sequence(oid('2.16.840.1.101.3.4.2.1'));
  const entry = sequence(oid('1.3.6.1.4.1.57264.3.1'), set(octets(logEntryBytes(tlogEntries[0]))));
  const info = sequence(
    integer(1),
    issuerAndSerial(raw),
    sha256,
    Buffer.concat([Buffer.of(0xa0), signed.subarray(1)]),
    sequence(oid('1.2.840.10045.4.3.2')),
    octets(fromBase64(bundle.messageSignature.signature)),
    ...(logEntry ? [der(0xa1, entry)] : []),
  );
  const data = sequence(
    integer(1),
    set(sha256),
    sequence(oid('1.2.840.113549.1.7.1')),
    der(0xa0, raw),
    set(info),
  );
  const message = sequence(oid('1.2.840.113549.1.7.2'), der(0xa0, data));
  const lines = message.toString('base64').match(/.{1,64}/g) ?? [];
  return `-----BEGIN SIGNED MESSAGE-----\n${lines.join('\n')}\n-----END SIGNED MESSAGE-----\n`;
}
