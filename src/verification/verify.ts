/**
 * Verifies Sigstore bundles: who signed what, as proved against pinned trust, without network, file system or clock.
 * The cryptography, certificate chains, log proofs and timestamps are checked by `@sigstore/verify`; who is accepted,
 * what must be there and what the signature is about are checked here (docs/adr/0013-signatures.md).
 */
import { createHash } from 'node:crypto';
import type { Bundle, TransparencyLogEntry } from '@sigstore/bundle';
import { RFC3161Timestamp } from '@sigstore/core';
import { toSignedEntity, VerificationError, Verifier } from '@sigstore/verify';
import { CtError, type ErrorCode } from '../core/errors.ts';
import { parseBundle } from './bundle.ts';
import { readSignerCertificate, type SignerCertificate } from './certificate.ts';
import { type AcceptedIdentity, isAccepted } from './identity.ts';
import { logEntryProblem } from './log-entry.ts';
import {
  type DigestString,
  isAbout,
  parseDigest,
  parseStatement,
  STATEMENT_PAYLOAD_TYPE,
  type Statement,
} from './statement.ts';
import { isValidAt, type LoadedKey, type Trust } from './trust.ts';

/** Clocks of signing services may be this far ahead of ours. */
const MAX_CLOCK_SKEW_MS = 5 * 60_000;
/** Signatures that one artifact may have; more are not looked at but refused. */
const MAX_SIGNATURES = 64;

/** How much must vouch for a signature. Evidence beyond it must verify as well: none is ignored. */
export interface RequiredEvidence {
  /** Transparency logs, each with an entry for the signature. */
  readonly logs: number;
  /** Timestamp authorities (RFC 3161), each with a timestamp of the signature. */
  readonly timestampAuthorities: number;
}

/** Who may sign, and with what evidence. A kind of signer that is absent is not accepted. */
export interface SignerPolicy {
  readonly keyless?: RequiredEvidence & {
    readonly identities: readonly AcceptedIdentity[];
    /** Certificate logs that must have promised to include the certificate; at least 1 where the root names such logs. */
    readonly certificateLogs: number;
  };
  readonly keys?: RequiredEvidence & {
    /** Names of trusted keys. */
    readonly names: readonly string[];
  };
}

/** What the signature has to be about. */
export type Expected =
  | {
      readonly kind: 'statement';
      /** One subject of the statement must have it; undefined: the caller compares all of them. */
      readonly digest: DigestString | undefined;
      /** Exact. */
      readonly predicateType: string;
    }
  | { readonly kind: 'message'; readonly artifact: Uint8Array };

export interface VerifyOptions {
  /** The bundle's JSON; undefined if there is none. */
  readonly bundle: Uint8Array | undefined;
  readonly expected: Expected;
  readonly trust: Trust;
  readonly policy: SignerPolicy;
  readonly now: Date;
}

export interface LogEvidence {
  /** URL of the log as the trusted root has it. */
  readonly log: string;
  readonly index: string;
  /** Absent where the log signs no times (Rekor 2). */
  readonly integratedAt?: Date;
}

export interface TimestampEvidence {
  /** URI of the authority as the trusted root has it. */
  readonly authority: string;
  readonly at: Date;
}

/** What was proved. Everything in it was signed or comes from trust; nothing else of a bundle is worth reading. */
export interface VerifiedSigner {
  readonly signer:
    | { readonly kind: 'keyless'; readonly subject: string; readonly issuer: string }
    | { readonly kind: 'key'; readonly name: string; readonly keyId: string };
  /** The earliest time at which somebody trusted saw the signature; absent if policy demands no such evidence. */
  readonly signedAt?: Date;
  readonly logs: readonly LogEvidence[];
  readonly timestamps: readonly TimestampEvidence[];
  readonly content:
    | { readonly kind: 'statement'; readonly predicateType: string; readonly statement: Statement }
    | { readonly kind: 'message'; readonly digest: DigestString };
}

/**
 * Verifies one signature and returns what it proves. Throws `SIGNATURE_*`, one code for each way to fail
 * (docs/signing.md lists them), and `TRUST_INVALID` if `policy` accepts nobody or asks for what cannot be checked.
 */
export function verifyBundle({ bundle, expected, trust, policy, now }: VerifyOptions): VerifiedSigner {
  checkPolicy(policy, trust);
  if (bundle === undefined) throw new CtError('SIGNATURE_MISSING', 'there is no signature');
  const parsed = parseBundle(bundle);
  const signer = acceptedSigner(parsed, trust, policy);
  const timestamps = timestampsOf(parsed, trust);
  requireEvidence(parsed, timestamps, signer, trust);
  checkMessageDigest(parsed, expected);
  checkSignatures(parsed, expected, trust, signer);
  const logs = logEntriesOf(parsed).map((entry) => logEvidence(entry, signer.der, trust));
  const signedAt = checkTimes(logs, timestamps, signer, now);
  const content = signedContent(parsed, expected);
  return {
    signer:
      signer.kind === 'keyless'
        ? { kind: 'keyless', ...signer.certificate.identity }
        : { kind: 'key', name: signer.key.name, keyId: signer.key.id },
    ...(signedAt === undefined ? {} : { signedAt }),
    logs,
    timestamps,
    content,
  };
}

/**
 * Verifies the signatures of an artifact until one is accepted, and returns that one. Throws `SIGNATURE_MISSING` if there
 * are none, else the error of the one that came furthest.
 */
export function verifyAnyBundle(
  bundles: readonly Uint8Array[],
  options: Omit<VerifyOptions, 'bundle'>,
): VerifiedSigner {
  if (bundles.length > MAX_SIGNATURES) {
    throw new CtError('SIGNATURE_MALFORMED', `there are more than ${MAX_SIGNATURES} signatures`);
  }
  let furthest: CtError | undefined;
  for (const bundle of bundles.length === 0 ? [undefined] : bundles) {
    try {
      return verifyBundle({ ...options, bundle });
    } catch (error) {
      if (!(error instanceof CtError) || !(error.code in STAGES)) throw error;
      if (furthest === undefined || stageOf(error) > stageOf(furthest)) furthest = error;
    }
  }
  throw furthest ?? new CtError('SIGNATURE_MISSING', 'there is no signature');
}

/** How far a signature came that was refused with a code. */
const STAGES: Partial<Record<ErrorCode, number>> = {
  SIGNATURE_MISSING: 0,
  SIGNATURE_MALFORMED: 1,
  SIGNATURE_UNTRUSTED: 2,
  SIGNATURE_LOG_MISSING: 3,
  SIGNATURE_TIMESTAMP_MISSING: 3,
  SIGNATURE_INVALID: 4,
  SIGNATURE_EXPIRED: 5,
  SIGNATURE_SUBJECT_MISMATCH: 6,
  SIGNATURE_PREDICATE_MISMATCH: 7,
};
const stageOf = (error: CtError): number => STAGES[error.code] ?? 0;

type AcceptedSigner =
  | {
      readonly kind: 'keyless';
      readonly der: Buffer;
      readonly required: RequiredEvidence & { readonly certificateLogs: number };
      readonly certificate: SignerCertificate;
    }
  | {
      readonly kind: 'key';
      readonly der: Buffer;
      readonly required: RequiredEvidence;
      readonly key: LoadedKey;
    };

function checkPolicy({ keyless, keys }: SignerPolicy, { root }: Trust): void {
  if (!keyless?.identities.length && !keys?.names.length) {
    throw new CtError('TRUST_INVALID', 'the rule for accepted signers accepts nobody');
  }
  const counts = [keyless?.logs, keyless?.timestampAuthorities, keyless?.certificateLogs];
  counts.push(keys?.logs, keys?.timestampAuthorities);
  if (counts.some((count) => count !== undefined && !(Number.isSafeInteger(count) && count >= 0))) {
    throw new CtError('TRUST_INVALID', 'the rule for accepted signers demands evidence in no whole number');
  }
  if (keyless === undefined) return;
  if (root === undefined) {
    throw new CtError('TRUST_INVALID', 'identities are accepted, but there is no trusted root to check them');
  }
  if (keyless.logs + keyless.timestampAuthorities === 0) {
    throw new CtError('TRUST_INVALID', 'identities are accepted without any evidence of the time', {
      hint: 'certificates of keyless signers last minutes: demand a log entry or a timestamp',
    });
  }
}

/** Who the bundle says signed it, if policy accepts them. Not yet verified. */
function acceptedSigner(bundle: Bundle, trust: Trust, { keyless, keys }: SignerPolicy): AcceptedSigner {
  const material = bundle.verificationMaterial.content;
  if (material.$case === 'publicKey') {
    const key = trust.keys.get(material.publicKey.hint);
    if (key === undefined || !keys?.names.includes(key.name)) {
      throw new CtError('SIGNATURE_UNTRUSTED', 'it is signed with a key that is not accepted');
    }
    checkKeyid(bundle, material.publicKey.hint);
    const der = key.publicKey.export({ type: 'spki', format: 'der' });
    return { kind: 'key', der, key, required: keys };
  }
  const raw =
    material.$case === 'certificate'
      ? material.certificate.rawBytes
      : material.x509CertificateChain.certificates[0]?.rawBytes;
  const certificate = readSignerCertificate(raw ?? Buffer.alloc(0));
  const { issuer, subject } = certificate.identity;
  if (keyless === undefined || !isAccepted(certificate.identity, keyless.identities)) {
    throw new CtError(
      'SIGNATURE_UNTRUSTED',
      `it is signed by ${subject}, as ${issuer} says, which is not accepted`,
    );
  }
  checkKeyid(bundle, '');
  const certificateLogs = Math.max(keyless.certificateLogs, trust.material.ctlogs.length > 0 ? 1 : 0);
  return { kind: 'keyless', der: certificate.der, certificate, required: { ...keyless, certificateLogs } };
}

/** The envelope names a key of its own, which nobody signed: it may be empty or agree with the rest. */
function checkKeyid({ content }: Bundle, hint: string): void {
  if (content.$case !== 'dsseEnvelope') return;
  const keyid = content.dsseEnvelope.signatures[0]?.keyid ?? '';
  if (keyid !== '' && keyid !== hint) {
    throw new CtError('SIGNATURE_MALFORMED', 'the envelope names another key than the bundle');
  }
}

function requireEvidence(
  bundle: Bundle,
  timestamps: readonly TimestampEvidence[],
  signer: AcceptedSigner,
  { material }: Trust,
): void {
  const { required } = signer;
  const entries = logEntriesOf(bundle);
  if (entries.some(({ logId }) => !material.tlogs.some(({ logID }) => logID.equals(logId.keyId)))) {
    throw new CtError('SIGNATURE_UNTRUSTED', 'it is in a transparency log that is not trusted');
  }
  const logs = new Set(entries.map(({ logId }) => logId.keyId.toString('hex'))).size;
  const authorities = new Set(timestamps.map(({ authority }) => authority)).size;
  if (logs < required.logs) {
    throw new CtError('SIGNATURE_LOG_MISSING', `it is in ${logs} of ${required.logs} transparency logs`);
  }
  if (authorities < required.timestampAuthorities) {
    throw new CtError(
      'SIGNATURE_TIMESTAMP_MISSING',
      `it has timestamps of ${authorities} of ${required.timestampAuthorities} authorities`,
    );
  }
  if (signer.kind === 'key') return;
  const { certificateTimestamps } = signer.certificate;
  if (certificateTimestamps < signer.required.certificateLogs) {
    throw new CtError(
      'SIGNATURE_LOG_MISSING',
      `its certificate is in ${certificateTimestamps} of ${signer.required.certificateLogs} certificate logs`,
    );
  }
  // Rekor 2 signs no times: there, only an authority can say when the short-lived certificate was used.
  if (timestamps.length === 0 && !entries.some(hasSignedTime)) {
    throw new CtError('SIGNATURE_TIMESTAMP_MISSING', 'nothing trusted says when it was made', {
      hint: 'the log signs no times, so a timestamp authority is needed',
    });
  }
}

/** The shape of bundles requires the fields that protobuf's types leave open. */
const logEntriesOf = ({ verificationMaterial }: Bundle): readonly TransparencyLogEntry[] =>
  verificationMaterial.tlogEntries as TransparencyLogEntry[];

const hasSignedTime = ({ inclusionPromise, integratedTime }: TransparencyLogEntry): boolean =>
  inclusionPromise !== undefined && integratedTime !== '0';

/** Which authorities the timestamps name, and their times; the library verifies them. */
function timestampsOf({ verificationMaterial }: Bundle, { material, root }: Trust): TimestampEvidence[] {
  const tokens = verificationMaterial.timestampVerificationData?.rfc3161Timestamps ?? [];
  return tokens.map(({ signedTimestamp }) => {
    let token: RFC3161Timestamp;
    let at: Date;
    let usual: boolean;
    let authority: number;
    try {
      token = RFC3161Timestamp.parse(Buffer.from(signedTimestamp));
      at = token.signingTime;
      authority = material.timestampAuthorities.findIndex(
        ({ certChain: [leaf] }) =>
          leaf?.serialNumber.equals(token.signerSerialNumber) && leaf.issuer.equals(token.signerIssuer),
      );
      // The library falls back to defaults for algorithms that it does not know, and does not look at the status.
      const granted = token.status === 0n || token.status === 1n;
      const known = token.signatureAlgorithm !== undefined && token.signerDigestAlgorithm !== undefined;
      usual = granted && known && token.root.toDER().equals(signedTimestamp);
    } catch (error) {
      throw new CtError('SIGNATURE_MALFORMED', 'its timestamp is none of RFC 3161', { cause: error });
    }
    if (authority < 0) {
      throw new CtError('SIGNATURE_UNTRUSTED', 'its timestamp is of an authority that is not trusted');
    }
    if (!usual) {
      throw new CtError(
        'SIGNATURE_MALFORMED',
        'its timestamp was not granted, or is not ECDSA in canonical DER',
      );
    }
    return { authority: root?.timestampAuthorities[authority]?.uri ?? '', at };
  });
}

/** The digest that a bundle names beside a message signature is not signed: it has to be that of the artifact. */
function checkMessageDigest({ content }: Bundle, expected: Expected): void {
  if (content.$case !== 'messageSignature') return;
  if (expected.kind !== 'message') {
    throw new CtError(
      'SIGNATURE_PREDICATE_MISMATCH',
      'it is about bytes, where a statement about an artifact was expected',
    );
  }
  if (!content.messageSignature.messageDigest.digest.equals(sha256(expected.artifact))) {
    throw new CtError('SIGNATURE_SUBJECT_MISMATCH', 'it is about another artifact');
  }
}

function checkSignatures(bundle: Bundle, expected: Expected, trust: Trust, signer: AcceptedSigner): void {
  const { required } = signer;
  const verifier = new Verifier(trust.material, {
    tlogThreshold: required.logs,
    ctlogThreshold: signer.kind === 'keyless' ? signer.required.certificateLogs : 0,
    timestampThreshold: signer.kind === 'keyless' ? 1 : 0,
  });
  const artifact = expected.kind === 'message' ? Buffer.from(expected.artifact) : undefined;
  try {
    verifier.verify(toSignedEntity(bundle, artifact));
  } catch (error) {
    if (error instanceof CtError) throw error;
    if (!(error instanceof VerificationError)) {
      throw new CtError('SIGNATURE_MALFORMED', 'a part of the signature does not parse', { cause: error });
    }
    throw refusal(error, bundle, signer);
  }
}

function refusal(error: VerificationError, bundle: Bundle, signer: AcceptedSigner): CtError {
  const options = { cause: error };
  switch (error.code) {
    case 'CERTIFICATE_ERROR': {
      const times = toSignedEntity(bundle).timestamps.map((time) =>
        time.$case === 'transparency-log'
          ? new Date(Number(time.tlogEntry.integratedTime) * 1000)
          : time.timestamp.signingTime,
      );
      if (signer.kind === 'keyless' && times.some((time) => !isWithin(signer.certificate, time))) {
        return new CtError(
          'SIGNATURE_EXPIRED',
          'the certificate of the signer was not valid when it signed',
          options,
        );
      }
      return new CtError(
        'SIGNATURE_UNTRUSTED',
        'the certificate of the signer is of no trusted authority',
        options,
      );
    }
    case 'PUBLIC_KEY_ERROR':
      return new CtError('SIGNATURE_EXPIRED', 'the key was not valid when it signed', options);
    case 'SIGNATURE_ERROR':
      return new CtError('SIGNATURE_INVALID', 'the signature does not verify', options);
    case 'TIMESTAMP_ERROR':
      return new CtError('SIGNATURE_INVALID', 'its timestamp does not verify', options);
    default:
      return new CtError('SIGNATURE_INVALID', 'its entry in the transparency log does not verify', options);
  }
}

const isWithin = ({ notBefore, notAfter }: SignerCertificate, time: Date): boolean =>
  notBefore <= time && time <= notAfter;

function logEvidence(entry: TransparencyLogEntry, signerDer: Buffer, { root }: Trust): LogEvidence {
  const problem = logEntryProblem(entry, signerDer);
  if (problem !== undefined) {
    throw new CtError('SIGNATURE_INVALID', `its entry in the transparency log does not count: ${problem}`);
  }
  const log = root?.tlogs.find(({ logId, checkpointKeyId }) =>
    (checkpointKeyId ?? logId)?.keyId.equals(entry.logId.keyId),
  );
  return {
    log: log?.baseUrl ?? '',
    index: entry.logIndex,
    ...(hasSignedTime(entry) ? { integratedAt: new Date(Number(entry.integratedTime) * 1000) } : {}),
  };
}

/** The earliest proved time. Without one, a key that has a term must be within it now. */
function checkTimes(
  logs: readonly LogEvidence[],
  timestamps: readonly TimestampEvidence[],
  signer: AcceptedSigner,
  now: Date,
): Date | undefined {
  const times = [
    ...logs.flatMap(({ integratedAt }) => integratedAt ?? []),
    ...timestamps.map(({ at }) => at),
  ];
  if (times.some((time) => !(time.getTime() <= now.getTime() + MAX_CLOCK_SKEW_MS))) {
    throw new CtError('SIGNATURE_EXPIRED', 'it was made in the future', {
      hint: 'compare the clock of this machine',
    });
  }
  if (times.length === 0 && signer.kind === 'key' && !isValidAt(signer.key, now)) {
    throw new CtError(
      'SIGNATURE_EXPIRED',
      `the key ${signer.key.name} is not valid now, and nothing says when it signed`,
    );
  }
  return times.length === 0 ? undefined : new Date(Math.min(...times.map((time) => time.getTime())));
}

function signedContent({ content }: Bundle, expected: Expected): VerifiedSigner['content'] {
  if (expected.kind === 'message') {
    if (content.$case !== 'messageSignature') {
      throw new CtError(
        'SIGNATURE_PREDICATE_MISMATCH',
        'it is a statement, where a signature of bytes was expected',
      );
    }
    return { kind: 'message', digest: `sha256:${sha256(expected.artifact).toString('hex')}` };
  }
  if (content.$case !== 'dsseEnvelope' || content.dsseEnvelope.payloadType !== STATEMENT_PAYLOAD_TYPE) {
    throw new CtError('SIGNATURE_PREDICATE_MISMATCH', 'it is no in-toto statement');
  }
  const statement = parseStatement(content.dsseEnvelope.payload);
  if (expected.digest !== undefined && !isAbout(statement, parseDigest(expected.digest))) {
    throw new CtError('SIGNATURE_SUBJECT_MISMATCH', `it is not about ${expected.digest}`);
  }
  if (statement.predicateType !== expected.predicateType) {
    throw new CtError(
      'SIGNATURE_PREDICATE_MISMATCH',
      `it says something else than ${expected.predicateType}`,
    );
  }
  return { kind: 'statement', predicateType: statement.predicateType, statement };
}

function sha256(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest();
}
