import { CtError } from '../core/errors.ts';
import { isObject } from '../core/json.ts';

/** Payload type of a DSSE envelope that holds an in-toto statement. */
export const STATEMENT_PAYLOAD_TYPE = 'application/vnd.in-toto+json';

export const STATEMENT_TYPE = 'https://in-toto.io/Statement/v1';
/** Same fields; older signers still write it. Read, never written. */
const OLDER_STATEMENT_TYPE = 'https://in-toto.io/Statement/v0.1';

const MAX_SUBJECTS = 10_000; // a manifest of signed scripts has one for each file
const MAX_DIGESTS = 16; // algorithms per subject
const MAX_NAME_LENGTH = 4096; // names may be paths

export interface Subject {
  readonly name?: string;
  /** Lower-case hex per algorithm (`sha256`, `sha512`, …). */
  readonly digest: Readonly<Record<string, string>>;
}

/** An in-toto statement ([v1](https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md)): a predicate about subjects. */
export interface Statement {
  readonly _type: string;
  readonly subject: readonly Subject[];
  readonly predicateType: string;
  readonly predicate: unknown;
}

/** A digest as `<algorithm>:<lower-case hex>`. */
export type DigestString = string;

const DIGEST_HEX_LENGTHS: Readonly<Record<string, number>> = { sha256: 64, sha384: 96, sha512: 128 };

export interface Digest {
  readonly algorithm: string;
  readonly hex: string;
}

/** Takes apart `sha256:<hex>`, `sha384:` or `sha512:`. Throws `INTERNAL` for anything else: digests come from our code. */
export function parseDigest(digest: DigestString): Digest {
  const [algorithm = '', hex = '', ...rest] = digest.split(':');
  if (rest.length > 0 || !/^[0-9a-f]+$/.test(hex) || DIGEST_HEX_LENGTHS[algorithm] !== hex.length) {
    throw new CtError('INTERNAL', `${JSON.stringify(digest)} is no digest`);
  }
  return { algorithm, hex };
}

export interface StatementParts {
  /** At least one. */
  readonly subjects: readonly { readonly name: string; readonly digest: DigestString }[];
  readonly predicateType: string;
  /** Becomes JSON. */
  readonly predicate: unknown;
}

export function buildStatement({ subjects, predicateType, predicate }: StatementParts): Statement {
  if (subjects.length === 0) throw new CtError('INTERNAL', 'a statement needs a subject');
  return {
    _type: STATEMENT_TYPE,
    subject: subjects.map(({ name, digest }) => {
      const { algorithm, hex } = parseDigest(digest);
      return { name, digest: { [algorithm]: hex } };
    }),
    predicateType,
    predicate,
  };
}

/** The bytes that are signed: the JSON of the statement. */
export function encodeStatement(statement: Statement): Buffer {
  return Buffer.from(JSON.stringify(statement));
}

/**
 * Reads the payload of a DSSE envelope as a statement. The predicate stays as it is: who knows its type parses it.
 * Unknown fields beside those of the specification are ignored, as it asks. Throws `SIGNATURE_MALFORMED`.
 */
export function parseStatement(payload: Uint8Array): Statement {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(payload));
  } catch (error) {
    throw malformed('it is no JSON', error);
  }
  if (!isObject(json)) throw malformed('it is no object');
  const type = json['_type'];
  if (type !== STATEMENT_TYPE && type !== OLDER_STATEMENT_TYPE)
    throw malformed('its _type is not that of a statement');
  const predicateType = json['predicateType'];
  if (typeof predicateType !== 'string' || predicateType === '' || predicateType.length > MAX_NAME_LENGTH) {
    throw malformed('it has no predicateType');
  }
  const subjects = json['subject'];
  if (!Array.isArray(subjects) || subjects.length === 0) throw malformed('it has no subject');
  if (subjects.length > MAX_SUBJECTS) throw malformed(`it has more than ${MAX_SUBJECTS} subjects`);
  return { _type: type, subject: subjects.map(parseSubject), predicateType, predicate: json['predicate'] };
}

function parseSubject(value: unknown, index: number): Subject {
  if (!isObject(value)) throw malformed(`subject ${index} is no object`);
  const { name, digest } = value as { name?: unknown; digest?: unknown };
  if (name !== undefined && (typeof name !== 'string' || name.length > MAX_NAME_LENGTH)) {
    throw malformed(`the name of subject ${index} is no short string`);
  }
  if (!isObject(digest)) throw malformed(`subject ${index} has no digest`);
  const digests = Object.entries(digest);
  if (digests.length === 0 || digests.length > MAX_DIGESTS) {
    throw malformed(`subject ${index} has ${digests.length} digests`);
  }
  for (const [algorithm, hex] of digests) {
    const length = DIGEST_HEX_LENGTHS[algorithm];
    if (typeof hex !== 'string' || !/^[0-9a-f]{1,256}$/.test(hex) || (length ?? hex.length) !== hex.length) {
      throw malformed(`the ${algorithm.slice(0, 20)} of subject ${index} is no digest`);
    }
  }
  const parsed = Object.fromEntries(digests) as Record<string, string>;
  return name === undefined ? { digest: parsed } : { name, digest: parsed };
}

/** Whether the statement is about exactly this artifact: one of its subjects has the digest. */
export function isAbout(statement: Statement, { algorithm, hex }: Digest): boolean {
  return statement.subject.some(
    ({ digest }) => Object.hasOwn(digest, algorithm) && digest[algorithm] === hex,
  );
}

function malformed(reason: string, cause?: unknown): CtError {
  return new CtError('SIGNATURE_MALFORMED', `what is signed is no in-toto statement: ${reason}`, { cause });
}
