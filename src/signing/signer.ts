/**
 * Makes Sigstore bundles (JSON, v0.3): signs with one of the sources (own key, command, keyless) and collects what logs
 * and timestamp authorities say about the signature. All network traffic of signatures starts here.
 */

import { createHash } from 'node:crypto';
import { type Bundle, bundleToJSON, toDSSEBundle, toMessageSignatureBundle } from '@sigstore/bundle';
import { dsse, pem } from '@sigstore/core';
import { RekorWitness, type Signature, TSAWitness, type Witness } from '@sigstore/sign';
import { withDeadline } from '../core/deadline.ts';
import { CtError, messageOf } from '../core/errors.ts';
import { parseBundle } from '../verification/bundle.ts';
import { encodeStatement, STATEMENT_PAYLOAD_TYPE, type Statement } from '../verification/statement.ts';
import { keyless } from './keyless.ts';
import { checkServices, type SigningServices } from './services.ts';
import type { KeySource, SignatureSource } from './source.ts';

const REQUEST_RETRIES = 2;

export interface SigningTimeouts {
  /** Of one request; it is made three times at most. */
  readonly requestMs: number;
  /** Of one signature, everything together. */
  readonly signatureMs: number;
}

/** Rekor 2 answers when the entry is in the tree, which takes some seconds. */
const DEFAULT_TIMEOUTS: SigningTimeouts = { requestMs: 20_000, signatureMs: 120_000 };

export interface DssePayload {
  readonly type: string;
  readonly bytes: Uint8Array;
}

/** Results are the bytes of a bundle's JSON, as it is stored and sent. All methods throw `SIGNING_*`. */
export interface Signer {
  /** Signs an in-toto statement; the way to sign everything of ours. */
  signStatement(statement: Statement): Promise<Buffer>;
  /** Signs any payload in a DSSE envelope. */
  sign(payload: DssePayload): Promise<Buffer>;
  /** Signs bare bytes, as `cosign sign-blob` does. Not with Ed25519 keys. */
  signMessage(message: Uint8Array): Promise<Buffer>;
}

/** Signs with a key that stays the same. `services` may name logs and timestamp authorities; neither is needed. */
export function keySigner(source: KeySource, services: SigningServices, timeouts = DEFAULT_TIMEOUTS): Signer {
  if (services.logs.some(({ apiVersion }) => apiVersion === 2)) {
    throw new CtError('SIGNING_CONFIG_INVALID', 'signatures of own keys cannot be logged in Rekor 2', {
      hint: 'use a Rekor of version 1, or a timestamp authority alone',
    });
  }
  return signerOf(source, services, timeouts);
}

/**
 * Signs as the OIDC identity of the tokens that `identityToken` supplies, which is called once for each signature.
 * Throws `SIGNING_CONFIG_INVALID` if no certificate authority is named, or nothing that vouches for the time.
 */
export function keylessSigner(
  identityToken: () => Promise<string>,
  services: SigningServices,
  timeouts = DEFAULT_TIMEOUTS,
): Signer {
  const { certificateAuthority, logs, timestampAuthorities } = services;
  if (certificateAuthority === undefined) {
    throw new CtError('SIGNING_CONFIG_INVALID', 'keyless signing needs the URL of a certificate authority');
  }
  if (timestampAuthorities.length === 0 && !logs.some(({ apiVersion }) => apiVersion === 1)) {
    throw new CtError('SIGNING_CONFIG_INVALID', 'keyless signing needs something that vouches for the time', {
      hint: 'name a timestamp authority; logs of Rekor 2 sign no times',
    });
  }
  return signerOf(keyless(certificateAuthority, identityToken, timeouts.requestMs), services, timeouts);
}

function signerOf(
  source: SignatureSource,
  services: SigningServices,
  { requestMs, signatureMs }: SigningTimeouts,
): Signer {
  checkServices(services);
  const witnesses = witnessesOf(services, requestMs);
  const finish = (work: Promise<Buffer>): Promise<Buffer> =>
    withDeadline(
      work,
      signatureMs,
      () => new CtError('SIGNING_FAILED', `signing took more than ${signatureMs / 1000} s`),
    );
  const sign = async ({ type, bytes }: DssePayload): Promise<Buffer> => {
    const payload = Buffer.from(bytes);
    const signature = await source.sign(dsse.preAuthEncoding(type, payload));
    const bundle = toDSSEBundle({ artifact: payload, artifactType: type, ...partsOf(signature) });
    // cosign compares a key id in the envelope with one that it computes differently; without one it tries the key.
    for (const each of bundle.content.dsseEnvelope.signatures) each.keyid = '';
    return witnessed(bundle, signature, witnesses);
  };
  const signMessage = async (bytes: Uint8Array): Promise<Buffer> => {
    if (source.kind === 'key' && source.keyKind === 'ed25519') {
      throw new CtError('SIGNING_KEY_INVALID', 'an Ed25519 key signs statements, not bare messages', {
        hint: 'use an ECDSA P-256 key',
      });
    }
    const message = Buffer.from(bytes);
    const signature = await source.sign(message);
    const digest = createHash('sha256').update(message).digest();
    return witnessed(toMessageSignatureBundle({ digest, ...partsOf(signature) }), signature, witnesses);
  };
  return {
    sign: (payload) => finish(sign(payload)),
    signStatement: (statement) =>
      finish(sign({ type: STATEMENT_PAYLOAD_TYPE, bytes: encodeStatement(statement) })),
    signMessage: (message) => finish(signMessage(message)),
  };
}

interface NamedWitness extends Witness {
  readonly url: string;
}

function witnessesOf({ logs, timestampAuthorities }: SigningServices, requestMs: number): NamedWitness[] {
  const options = { timeout: requestMs, retry: REQUEST_RETRIES };
  const named = (url: string, witness: Witness): NamedWitness => ({
    url,
    testify: (content, publicKey) => witness.testify(content, publicKey),
  });
  return [
    ...logs.map(({ url, apiVersion }) =>
      named(
        url,
        new RekorWitness({ rekorBaseURL: withoutSlash(url), majorApiVersion: apiVersion, ...options }),
      ),
    ),
    ...timestampAuthorities.map((url) =>
      named(url, new TSAWitness({ tsaBaseURL: withoutSlash(url), ...options })),
    ),
  ];
}

const withoutSlash = (url: string): string => url.replace(/\/+$/, '');

function partsOf({ signature, key }: Signature): {
  signature: Buffer;
  certificate?: Buffer;
  keyHint?: string;
  certificateChain: false;
} {
  // One certificate and no chain is what version 0.3 of the format asks for.
  return key.$case === 'x509Certificate'
    ? { signature, certificate: pem.toDER(key.certificate), certificateChain: false }
    : { signature, ...(key.hint === undefined ? {} : { keyHint: key.hint }), certificateChain: false };
}

async function witnessed(
  bundle: Bundle,
  { key }: Signature,
  witnesses: readonly NamedWitness[],
): Promise<Buffer> {
  const verifier = key.$case === 'x509Certificate' ? key.certificate : key.publicKey;
  const statements = await Promise.all(
    witnesses.map(async ({ url, testify }) => {
      try {
        return await testify(bundle.content, verifier);
      } catch (error) {
        throw new CtError('SIGNING_FAILED', `${url} did not vouch for the signature: ${messageOf(error)}`, {
          cause: error,
        });
      }
    }),
  );
  const complete = {
    ...bundle,
    verificationMaterial: {
      ...bundle.verificationMaterial,
      tlogEntries: statements.flatMap(({ tlogEntries }) => tlogEntries ?? []),
      timestampVerificationData: {
        rfc3161Timestamps: statements.flatMap(({ rfc3161Timestamps }) => rfc3161Timestamps ?? []),
      },
    },
  } as Bundle;
  const document = Buffer.from(JSON.stringify(bundleToJSON(complete)));
  try {
    parseBundle(document); // a bundle that nobody can read is no result
  } catch (error) {
    throw new CtError('SIGNING_FAILED', `the signing services gave no usable answers: ${messageOf(error)}`, {
      cause: error,
    });
  }
  return document;
}
