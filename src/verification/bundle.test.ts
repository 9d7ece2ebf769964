import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MAX_BUNDLE_BYTES, parseBundle } from './bundle.ts';

const base64 = (length: number): string => Buffer.alloc(length, 7).toString('base64');
const bundle = () => ({
  mediaType: 'application/vnd.dev.sigstore.bundle.v0.3+json',
  verificationMaterial: {
    publicKey: { hint: 'release' } as object,
    tlogEntries: [] as object[],
    timestampVerificationData: { rfc3161Timestamps: [] as object[] },
  },
  dsseEnvelope: {
    payload: base64(100),
    payloadType: 'application/vnd.in-toto+json',
    signatures: [{ sig: base64(70), keyid: '' }] as object[],
  } as object,
});
type Document = ReturnType<typeof bundle> & Record<string, unknown>;
const encoded = (change: (document: Document) => void): Buffer => {
  const document = bundle() as Document;
  change(document);
  return Buffer.from(JSON.stringify(document));
};
const refuses = (document: Uint8Array, message: RegExp): void =>
  assert.throws(() => parseBundle(document), { code: 'SIGNATURE_MALFORMED', message });

test('a bundle is read', () => {
  const parsed = parseBundle(encoded(() => {}));
  assert.equal(parsed.content.$case, 'dsseEnvelope');
  assert.equal(parsed.verificationMaterial.content.$case, 'publicKey');
});

test('what writers of protobuf leave out or write as null counts as absent', () => {
  parseBundle(
    encoded((document) => {
      document.verificationMaterial = { publicKey: { hint: 'release' } } as never;
      document['messageSignature'] = null;
    }),
  );
});

test('SIGNATURE_MALFORMED for more than a bundle has', () => {
  refuses(new Uint8Array(MAX_BUNDLE_BYTES + 1), /bytes/);
  refuses(Buffer.from('{'), /no JSON/);
  refuses(Buffer.from('[]'), /no object/);
  refuses(Buffer.from('\xff', 'latin1'), /no JSON/);
  refuses(Buffer.from('['.repeat(1_000_000)), /no JSON/);
  refuses(Buffer.from(`{"a":${'['.repeat(100_000)}${']'.repeat(100_000)}}`), /missing/);
  const entry = {
    logId: { keyId: base64(32) },
    kindVersion: { kind: 'dsse', version: '0.0.1' },
    canonicalizedBody: base64(9),
  };
  const cases: [RegExp, (document: Document) => void][] = [
    [/unknown field "extra"/, (document) => Object.assign(document, { extra: 1 })],
    [/unknown field/, (document) => Object.assign(document.verificationMaterial, { extra: {} })],
    [/is none of/, (document) => Object.assign(document, { mediaType: `${document.mediaType} ` })],
    [/one signed content/, (document) => Object.assign(document, { dsseEnvelope: undefined })],
    [
      /one signed content/,
      (document) =>
        Object.assign(document, {
          messageSignature: {
            messageDigest: { algorithm: 'SHA2_256', digest: base64(32) },
            signature: base64(70),
          },
        }),
    ],
    [
      /exactly one of certificate/,
      (document) => Object.assign(document.verificationMaterial, { certificate: { rawBytes: base64(9) } }),
    ],
    [
      /more than 1 items/,
      (document) =>
        Object.assign(document.dsseEnvelope, { signatures: [{ sig: base64(70) }, { sig: base64(70) }] }),
    ],
    [/invalid bundle/, (document) => Object.assign(document.dsseEnvelope, { signatures: [] })],
    [
      /more than 8 items/,
      (document) => Object.assign(document.verificationMaterial, { tlogEntries: new Array(9).fill(entry) }),
    ],
    [
      /more than 64 items/,
      (document) => {
        const proof = {
          rootHash: base64(32),
          treeSize: '1',
          checkpoint: { envelope: '' },
          hashes: new Array(65).fill(base64(32)),
        };
        document.verificationMaterial.tlogEntries = [{ ...entry, inclusionProof: proof }];
      },
    ],
    [
      /no decimal counter/,
      (document) => {
        document.verificationMaterial.tlogEntries = [{ ...entry, logIndex: '007' }];
      },
    ],
    [
      /no decimal counter/,
      (document) => {
        document.verificationMaterial.tlogEntries = [{ ...entry, logIndex: '9223372036854775808' }];
      },
    ],
    [
      /not canonical base64/,
      (document) => Object.assign(document.dsseEnvelope, { payload: `${base64(99)}\n` }),
    ],
    [/not canonical base64/, (document) => Object.assign(document.dsseEnvelope, { payload: 'QR==' })],
    [/no string/, (document) => Object.assign(document.dsseEnvelope, { payload: [1, 2] })],
    [
      /more than 1024 bytes/,
      (document) => Object.assign(document.dsseEnvelope, { signatures: [{ sig: base64(2000) }] }),
    ],
    [
      /longer than 1024/,
      (document) => Object.assign(document.verificationMaterial, { publicKey: { hint: 'x'.repeat(1025) } }),
    ],
  ];
  for (const [message, change] of cases) refuses(encoded(change), message);
});
