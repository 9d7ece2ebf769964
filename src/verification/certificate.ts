/**
 * What the certificate of a keyless signer says (RFC 5280, with the extensions that
 * https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md lists). Whether a trusted authority issued it is checked
 * elsewhere; here is what that check leaves open.
 */
import { type ASN1Obj, X509Certificate } from '@sigstore/core';
import { CtError } from '../core/errors.ts';
import { type Identity, isPrintable } from './identity.ts';

const SUBJECT_ALTERNATIVE_NAME = '2.5.29.17';
const EXTENDED_KEY_USAGE = '2.5.29.37';
const CODE_SIGNING = '1.3.6.1.5.5.7.3.3';
/** The issuer as a DER string, and as bare bytes in certificates of before 2023. */
const FULCIO_ISSUER = '1.3.6.1.4.1.57264.1.8';
const FULCIO_ISSUER_BARE = '1.3.6.1.4.1.57264.1.1';

const GENERAL_NAME_EMAIL = 1;
const GENERAL_NAME_URI = 6;

export interface SignerCertificate {
  readonly der: Buffer;
  readonly identity: Identity;
  readonly notBefore: Date;
  readonly notAfter: Date;
  /** How many certificate logs promised to include it; not verified here. */
  readonly certificateTimestamps: number;
}

/** Throws `SIGNATURE_MALFORMED` if it is no certificate, or one that Fulcio would not issue to a signer. */
export function readSignerCertificate(der: Buffer): SignerCertificate {
  try {
    const certificate = X509Certificate.parse(Buffer.from(der));
    const problem = certificateProblem(certificate, der);
    if (problem !== undefined) throw malformed(problem);
    return {
      der,
      identity: { issuer: issuerOf(certificate), subject: subjectOf(certificate) },
      notBefore: certificate.notBefore,
      notAfter: certificate.notAfter,
      certificateTimestamps: certificate.extSCT?.signedCertificateTimestamps.length ?? 0,
    };
  } catch (error) {
    throw error instanceof CtError ? error : malformed('it does not parse', error);
  }
}

function certificateProblem(certificate: X509Certificate, der: Buffer): string | undefined {
  // What is signed is what the library encodes again: other spellings of it must not pass for it.
  if (!certificate.root.toDER().equals(der)) return 'its encoding is not canonical';
  const [, algorithm] = certificate.root.subs;
  const signedAlgorithm = certificate.tbsCertificate.subs[2];
  if (algorithm === undefined || !signedAlgorithm?.toDER().equals(algorithm.toDER())) {
    return 'it names two signature algorithms';
  }
  const oids = certificate.extensions.map((extension) => extension.subs[0]?.toOID());
  if (new Set(oids).size !== oids.length) return 'it has an extension twice';
  if (certificate.extBasicConstraints?.isCA === true) return 'it is that of an authority, not of a signer';
  const usages = certificate.extension(EXTENDED_KEY_USAGE)?.valueObj.subs[0]?.subs ?? [];
  if (!usages.some((usage) => usage.toOID() === CODE_SIGNING)) return 'it is not for code signing';
  return undefined;
}

function subjectOf(certificate: X509Certificate): string {
  const names = certificate.extension(SUBJECT_ALTERNATIVE_NAME)?.valueObj.subs[0]?.subs ?? [];
  const [name, ...others] = names;
  if (name === undefined || others.length > 0) throw malformed('it has not exactly one subject name');
  if (!name.tag.isContextSpecific(GENERAL_NAME_URI) && !name.tag.isContextSpecific(GENERAL_NAME_EMAIL)) {
    throw malformed('its subject is neither a URI nor an email address');
  }
  return printable(name.value);
}

function issuerOf(certificate: X509Certificate): string {
  const wrapped = certificate.extension(FULCIO_ISSUER);
  if (wrapped === undefined) {
    const bare = certificate.extension(FULCIO_ISSUER_BARE);
    if (bare === undefined) throw malformed('it does not name the issuer of the identity');
    return printable(bare.value);
  }
  const strings: readonly ASN1Obj[] = wrapped.valueObj.subs;
  if (strings.length !== 1 || strings[0] === undefined) throw malformed('its issuer is no string');
  return printable(strings[0].value);
}

/** Bytes beyond ASCII are refused: decoders differ in what they make of them. */
function printable(bytes: Buffer): string {
  const value = bytes.toString('latin1');
  if (!isPrintable(value)) throw malformed('a name in it is empty, very long or not printable ASCII');
  return value;
}

function malformed(reason: string, cause?: unknown): CtError {
  return new CtError('SIGNATURE_MALFORMED', `the certificate of the signer cannot be used: ${reason}`, {
    cause,
  });
}
