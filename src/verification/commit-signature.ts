/** Who signed a commit, as far as policy knows them. */
import { CtError, type ErrorCode, errorReport } from '../core/errors.ts';
import type { EvidenceFacts, Problem, SignerFact } from '../policy/verify.ts';
import { countsNow } from './allowed-signers.ts';
import { type Commit, parseCommit } from './commit.ts';
import { isGitsignSignature, readGitsign } from './gitsign.ts';
import { bundleTrust, type JobTrust, signerFacts } from './job-trust.ts';
import { sshFingerprint } from './ssh-key.ts';
import { isSshSignature, verifySshSignature } from './ssh-signature.ts';
import { verifyBundle } from './verify.ts';

export interface VerifiedCommit {
  readonly facts: NonNullable<EvidenceFacts['commit']>;
  /** Id of its tree; undefined if the bytes are no commit. */
  readonly tree: string | undefined;
}

export interface CommitEvidence {
  /** The commit as git stores it. */
  readonly object: Buffer;
  /** Which commit the run says to be of. */
  readonly claimed: string | undefined;
  readonly dirty: readonly string[];
}

export function verifyCommit(
  { object, claimed, dirty }: CommitEvidence,
  trust: JobTrust,
  now: Date,
): VerifiedCommit {
  const commit = parseCommit(object);
  if (commit === undefined) {
    const problem: Problem = { code: 'VERIFY_COMMIT_INVALID', message: 'it is no commit' };
    return { facts: { id: '', is_claimed: false, signers: [], problem, dirty }, tree: undefined };
  }
  const common = { id: commit.id, is_claimed: claimed === undefined || claimed === commit.id, dirty };
  try {
    return { facts: { ...common, signers: signersOf(commit, trust, now), problem: null }, tree: commit.tree };
  } catch (error) {
    const { code, message } = errorReport(error);
    return { facts: { ...common, signers: [], problem: { code, message } }, tree: commit.tree };
  }
}

function signersOf({ signature, signed }: Commit, trust: JobTrust, now: Date): readonly SignerFact[] {
  if (signature === undefined) throw new CtError('VERIFY_COMMIT_UNSIGNED', 'it has no signature');
  if (isGitsignSignature(signature)) return identitiesOf(signature, signed, trust, now);
  if (!isSshSignature(signature)) {
    throw new CtError('VERIFY_COMMIT_UNTRUSTED', 'its signature is neither of SSH nor of gitsign');
  }
  const verified = verifySshSignature(signature, signed, 'git');
  if ('wrong' in verified) {
    throw new CtError('VERIFY_COMMIT_INVALID', `its signature is not one of this commit: ${verified.wrong}`);
  }
  const fingerprint = sshFingerprint(verified.key.blob);
  const signers: SignerFact[] = [];
  let expired = false;
  for (const { name, allowed } of trust.ssh) {
    for (const signer of allowed.get(fingerprint) ?? []) {
      const counts = countsNow(signer, 'git', now);
      if (counts === 'yes') signers.push({ signer: name, who: signer.principals.join(', ') });
      expired ||= counts === 'expired';
    }
  }
  if (signers.length > 0) return signers;
  throw new CtError(
    'VERIFY_COMMIT_UNTRUSTED',
    `it is signed with the key ${fingerprint}, ${expired ? 'which is not valid now' : 'which is nobody’s who may sign commits'}`,
  );
}

/** Who is wrong about what: of the codes of signatures, those that a commit has of its own. */
const COMMIT_CODES: Partial<Record<ErrorCode, ErrorCode>> = {
  SIGNATURE_UNTRUSTED: 'VERIFY_COMMIT_UNTRUSTED',
  SIGNATURE_INVALID: 'VERIFY_COMMIT_INVALID',
  SIGNATURE_MALFORMED: 'VERIFY_COMMIT_INVALID',
  SIGNATURE_SUBJECT_MISMATCH: 'VERIFY_COMMIT_INVALID',
};

function identitiesOf(signature: string, signed: Buffer, trust: JobTrust, now: Date): readonly SignerFact[] {
  const { bundle, artifact } = readGitsign(signature, signed);
  try {
    const { trust: material, policy } = bundleTrust(trust);
    const expected = { kind: 'message', artifact } as const;
    return signerFacts(verifyBundle({ bundle, expected, trust: material, policy, now }), trust);
  } catch (error) {
    if (!(error instanceof CtError)) throw error;
    throw new CtError(COMMIT_CODES[error.code] ?? error.code, error.message, { cause: error });
  }
}
