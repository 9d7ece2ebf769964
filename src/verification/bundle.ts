import { type Bundle, bundleFromJSON } from '@sigstore/bundle';
import { CtError, messageOf } from '../core/errors.ts';
import { type Shape, shapeProblem } from './shape.ts';

/** An SBOM of thousands of packages is some megabytes; it lies in the bundle as base64. */
export const MAX_BUNDLE_BYTES = 16 * 1024 * 1024;

const MAX_PAYLOAD_BYTES = MAX_BUNDLE_BYTES; // the size of the document is the tighter limit
const MAX_SIGNATURE_BYTES = 1024; // RSA of 8192 bits; ours have 64 to 72 bytes
const MAX_CERTIFICATE_BYTES = 16 * 1024; // those of Fulcio have less than 2 KiB
const MAX_TIMESTAMP_BYTES = 32 * 1024; // a token with its certificate chain
const MAX_LOG_BODY_BYTES = 1024 * 1024; // entries of kind intoto repeat a small part of the envelope
const MAX_ITEMS = 8; // certificates, log entries, timestamps: one to three are usual
const MAX_PROOF_HASHES = 64; // height of a tree with 2^64 entries
const MAX_TEXT = 1024;
const MAX_CHECKPOINT = 16 * 1024;

/** Formats that are read; written is the third ([specification](https://docs.sigstore.dev/about/bundle/)). */
const MEDIA_TYPES = [
  'application/vnd.dev.sigstore.bundle+json;version=0.1',
  'application/vnd.dev.sigstore.bundle+json;version=0.2',
  'application/vnd.dev.sigstore.bundle.v0.3+json',
  'application/vnd.dev.sigstore.bundle+json;version=0.3',
] as const;

const text: Shape = { is: 'text', maxLength: MAX_TEXT };
const bytes = (maxBytes: number): Shape => ({ is: 'base64', maxBytes });
const list = (of: Shape, maxItems: number): Shape => ({ is: 'list', of, maxItems });
const object = (required: Record<string, Shape>, optional: Record<string, Shape> = {}): Shape => ({
  is: 'object',
  required,
  optional,
});

const certificate = object({ rawBytes: bytes(MAX_CERTIFICATE_BYTES) });

const logEntry = object(
  {
    logId: object({ keyId: bytes(64) }),
    kindVersion: object({ kind: text, version: text }),
    canonicalizedBody: bytes(MAX_LOG_BODY_BYTES),
  },
  {
    // Writers of protobuf's JSON leave out what is zero.
    logIndex: { is: 'counter' },
    integratedTime: { is: 'counter' },
    inclusionPromise: object({ signedEntryTimestamp: bytes(MAX_SIGNATURE_BYTES) }),
    inclusionProof: object(
      {
        rootHash: bytes(64),
        treeSize: { is: 'counter' },
        checkpoint: object({ envelope: { is: 'text', maxLength: MAX_CHECKPOINT } }),
      },
      { logIndex: { is: 'counter' }, hashes: list(bytes(64), MAX_PROOF_HASHES) },
    ),
  },
);

const BUNDLE = object(
  {
    mediaType: { is: 'word', words: MEDIA_TYPES },
    verificationMaterial: object(
      {},
      {
        certificate,
        x509CertificateChain: object({ certificates: list(certificate, MAX_ITEMS) }),
        publicKey: object({}, { hint: text }),
        tlogEntries: list(logEntry, MAX_ITEMS),
        timestampVerificationData: object(
          {},
          {
            rfc3161Timestamps: list(object({ signedTimestamp: bytes(MAX_TIMESTAMP_BYTES) }), MAX_ITEMS),
          },
        ),
      },
    ),
  },
  {
    dsseEnvelope: object({
      payload: bytes(MAX_PAYLOAD_BYTES),
      payloadType: text,
      signatures: list(object({ sig: bytes(MAX_SIGNATURE_BYTES) }, { keyid: text }), 1),
    }),
    messageSignature: object({
      messageDigest: object({ algorithm: { is: 'word', words: ['SHA2_256'] }, digest: bytes(32) }),
      signature: bytes(MAX_SIGNATURE_BYTES),
    }),
  },
);

/**
 * Reads a Sigstore bundle (JSON; versions 0.1 to 0.3) that anybody may have made. Nothing in the result is verified.
 * Throws `SIGNATURE_MALFORMED` if it is larger than {@link MAX_BUNDLE_BYTES}, has fields that the format does not
 * describe, or more or longer ones than a signature needs.
 */
export function parseBundle(document: Uint8Array): Bundle {
  if (document.byteLength > MAX_BUNDLE_BYTES) {
    throw malformed(`it has ${document.byteLength} bytes, more than the ${MAX_BUNDLE_BYTES} allowed`);
  }
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(document));
  } catch (error) {
    throw malformed('it is no JSON', error);
  }
  const problem = shapeProblem(json, BUNDLE) ?? choiceProblem(json as Record<string, unknown>);
  if (problem !== undefined) throw malformed(problem);
  try {
    return bundleFromJSON(json);
  } catch (error) {
    throw malformed(messageOf(error), error);
  }
}

/** Of alternatives a protobuf reader takes the last; here there must be exactly one. */
function choiceProblem(bundle: Record<string, unknown>): string | undefined {
  const material = bundle['verificationMaterial'] as Record<string, unknown>;
  const count = (from: Record<string, unknown>, names: readonly string[]): number =>
    names.filter((name) => (from[name] ?? undefined) !== undefined).length;
  if (count(bundle, ['dsseEnvelope', 'messageSignature']) !== 1)
    return 'it has not exactly one signed content';
  if (count(material, ['certificate', 'x509CertificateChain', 'publicKey']) !== 1) {
    return 'it has not exactly one of certificate, certificate chain and public key';
  }
  return undefined;
}

function malformed(reason: string, cause?: unknown): CtError {
  return new CtError('SIGNATURE_MALFORMED', `this is no Sigstore bundle that can be used: ${reason}`, {
    cause,
  });
}
