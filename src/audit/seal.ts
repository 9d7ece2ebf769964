/**
 * The seal of a record: an in-toto statement about the head of its chain, signed with the key of the host when the run has
 * ended, as `seal.json` beside the segments. The host daemon makes it of what the link process said at the time
 * (docs/adr/0014-audit.md says what that proves): what is changed later does not fit it any more.
 */
import { constants } from 'node:fs';
import { open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import type { Signer } from '../signing/signer.ts';
import { MAX_BUNDLE_BYTES, parseBundle } from '../verification/bundle.ts';
import { buildStatement, parseStatement, type Statement } from '../verification/statement.ts';
import { verifyBundle } from '../verification/verify.ts';
import { AuditDamage } from './damage.ts';
import type { SealTrust } from './host-key.ts';
import { isRunId } from './segment-format.ts';
import { type AuditSummary, parseAuditSummary } from './summary.ts';

export const AUDIT_SEAL_TYPE = 'urn:ct:audit-seal:v1';
export const SEAL_NAME = 'seal.json';
const MAX_TEXT_LENGTH = 500;
/** As many signers as a policy has. */
const MAX_NAMES = 1000;

/** What the host daemon knows about the run by itself. */
export interface SealFacts {
  readonly run: string;
  /** `sha256:…` of the image it ran in. */
  readonly image: string;
  /** Where that was made: `built` or `imported` on the host, or `elsewhere`; absent from seals of earlier versions. */
  readonly imageMade?: string;
  /** Whose signatures of it were verified, as policy calls them. */
  readonly imageSigners?: readonly string[];
  /** Revision of the policy that admitted it. */
  readonly policy: string;
  readonly vmm: string;
  readonly accelerator: string;
  /** How the run ended: `success`, `violation`, … */
  readonly outcome: string;
  /** Code of the error that ended it. */
  readonly error?: string;
  /** ISO 8601, UTC, by the host's clock. */
  readonly sealedAt: string;
}

/** The predicate of the statement. */
export interface AuditSeal extends SealFacts {
  readonly record: AuditSummary;
}

export function sealStatement(facts: SealFacts, record: AuditSummary): Statement {
  if (!isRunId(facts.run)) throw new CtError('INTERNAL', `${JSON.stringify(facts.run)} is no run id`);
  return buildStatement({
    subjects: [{ name: `audit:${facts.run}`, digest: `sha256:${record.head}` }],
    predicateType: AUDIT_SEAL_TYPE,
    predicate: { ...facts, record } satisfies AuditSeal,
  });
}

/**
 * Signs and stores the seal of the record in `directory`. Legal when the process that wrote the record is gone: it could
 * write there, so what has the name of the seal is replaced, not opened. Throws what the signer throws.
 */
export async function sealAudit(
  directory: string,
  facts: SealFacts,
  record: AuditSummary,
  signer: Signer,
): Promise<void> {
  const bundle = await signer.signStatement(sealStatement(facts, record));
  const temporary = join(directory, `.${SEAL_NAME}`);
  await rm(temporary, { recursive: true, force: true });
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
  const file = await open(temporary, flags, 0o600);
  await file
    .writeFile(bundle)
    .then(() => file.sync())
    .finally(() => file.close());
  await rm(join(directory, SEAL_NAME), { recursive: true, force: true });
  await rename(temporary, join(directory, SEAL_NAME));
}

/** Undefined if there is none. Throws {@link AuditDamage} if it is no file of a seal's size. */
export async function readSeal(directory: string): Promise<Buffer | undefined> {
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  let file: Awaited<ReturnType<typeof open>>;
  try {
    file = await open(join(directory, SEAL_NAME), flags);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return undefined;
    if (code === 'ELOOP') throw sealDamage('it is no file', error);
    throw error;
  }
  try {
    const stats = await file.stat();
    if (!stats.isFile() || stats.size > MAX_BUNDLE_BYTES) throw sealDamage('it is no file of a seal');
    return await file.readFile();
  } finally {
    await file.close();
  }
}

/** Verifies a seal and that it is of `run`. Throws {@link AuditDamage}, with the reason as cause. */
export function verifySeal(bundle: Buffer, run: string, { trust, policy }: SealTrust, now: Date): AuditSeal {
  let seal: AuditSeal;
  let statement: Statement;
  try {
    const verified = verifyBundle({
      bundle,
      // A seal says itself what it is about; whether that is what lies here is what it is read for.
      expected: { kind: 'statement', digest: claimedDigest(bundle), predicateType: AUDIT_SEAL_TYPE },
      trust,
      policy,
      now,
    });
    if (verified.content.kind !== 'statement') throw new RangeError('it is no statement');
    statement = verified.content.statement;
    seal = parseSeal(statement.predicate);
  } catch (error) {
    throw sealDamage(`it does not verify: ${messageOf(error)}`, error);
  }
  const [subject] = statement.subject;
  if (statement.subject.length !== 1 || subject?.digest['sha256'] !== seal.record.head) {
    throw sealDamage('it is not about the record that it describes');
  }
  if (seal.run !== run || subject.name !== `audit:${run}`) {
    throw new AuditDamage('seal-foreign', { file: SEAL_NAME }, `it is the seal of the run ${seal.run}`);
  }
  return seal;
}

function claimedDigest(bundle: Buffer): string {
  const { content } = parseBundle(bundle);
  if (content.$case !== 'dsseEnvelope') throw new RangeError('it signs no statement');
  const digest = parseStatement(content.dsseEnvelope.payload).subject[0]?.digest['sha256'];
  if (digest === undefined) throw new RangeError('it is about nothing');
  return `sha256:${digest}`;
}

function parseSeal(predicate: unknown): AuditSeal {
  const seal = (predicate ?? {}) as Record<string, unknown>;
  const text = (name: string): string => {
    const value = seal[name];
    if (typeof value !== 'string' || value.length > MAX_TEXT_LENGTH)
      throw new RangeError(`it has no ${name}`);
    return value;
  };
  const names = (name: string): string[] => {
    const value = seal[name];
    const areNames =
      Array.isArray(value) &&
      value.length <= MAX_NAMES &&
      value.every((item) => typeof item === 'string' && item.length <= MAX_TEXT_LENGTH);
    if (!areNames) throw new RangeError(`${name} are no names`);
    return value as string[];
  };
  return {
    run: text('run'),
    image: text('image'),
    ...(seal['imageMade'] === undefined ? {} : { imageMade: text('imageMade') }),
    ...(seal['imageSigners'] === undefined ? {} : { imageSigners: names('imageSigners') }),
    policy: text('policy'),
    vmm: text('vmm'),
    accelerator: text('accelerator'),
    outcome: text('outcome'),
    ...(seal['error'] === undefined ? {} : { error: text('error') }),
    sealedAt: text('sealedAt'),
    record: parseAuditSummary(seal['record']),
  };
}

function sealDamage(message: string, cause?: unknown): AuditDamage {
  return new AuditDamage('seal-invalid', { file: SEAL_NAME }, message, cause);
}
