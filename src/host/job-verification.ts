/**
 * Whether what a job consists of is vouched for: asks policy what is demanded, the client for the evidence, verifies that, and
 * asks policy again. Before anything is claimed for the job; the tree itself is compared later, on its way into the VM.
 */
import { createHash } from 'node:crypto';
import { setImmediate as turn } from 'node:timers/promises';
import { type Alert, alertRun, newAlert } from '../audit/alert.ts';
import { CtError, errorReport } from '../core/errors.ts';
import { printable } from '../core/source-text.ts';
import type { PresetResolver } from '../egress/presets/index.ts';
import type { Decided } from '../policy/decision.ts';
import type { RunFacts } from '../policy/input.ts';
import type { EvidenceFacts, VerifyDecision, VerifyInput } from '../policy/verify.ts';
import type { Evidence, EvidenceKind } from '../protocol/evidence.ts';
import { MAX_SIGNED_DIGESTS } from '../protocol/limits.ts';
import type { JobRequest, JobResult } from '../protocol/run.ts';
import { type EvidenceDemands, type TreeExpectation, USUAL_LOCKS } from '../protocol/verify.ts';
import type { VerifiedCommit } from '../verification/commit-signature.ts';
import { evidencePath } from '../verification/dependencies/evidence-file.ts';
import type { Manifest } from '../verification/manifest.ts';
import { judgeLocks } from './evidence-threads.ts';
import type { CurrentPolicy } from './policy.ts';

/** Some thousand paths in base64. Parsed in the daemon. */
const MAX_MANIFEST_BYTES = 2 * 1024 * 1024;

export interface VerificationOptions {
  readonly request: JobRequest;
  readonly run: RunFacts & { readonly id: string };
  readonly policy: CurrentPolicy;
  readonly presets: Pick<PresetResolver, 'resolve'>;
  readonly askClient: (demands: EvidenceDemands) => Promise<Evidence>;
  /** Keeps the decision; what it throws ends the job. */
  readonly record: (input: VerifyInput, decided: Decided<VerifyDecision>) => void;
}

/** What was proved of a job. */
export interface VerifiedJob {
  /** What the tree has to be. */
  readonly expected: TreeExpectation;
  /** SHA-256 in hex of files that an accepted signer signed. */
  readonly digests: readonly string[];
  /** In words. */
  readonly facts: readonly string[];
}

/**
 * Undefined if nothing is demanded. Throws the code of the first denial (VERIFY_*, SIGNATURE_*), and what `askClient` throws.
 */
export async function verifyJob(options: VerificationOptions): Promise<VerifiedJob | undefined> {
  const { request, run, policy } = options;
  const input = firstQuestion(request, run);
  const asked = await policy.engine.decideVerify(input);
  if (!asked.decision.allow) {
    options.record(input, asked);
    throw refusal(asked.decision);
  }
  const { demands } = asked.decision;
  if (isNothing(demands)) return undefined;
  const locks = await lockFiles(options);
  const evidence = await options.askClient({ ...demands, locks: [...locks.usual, ...locks.named] });
  const gathered = await gather(evidence, { ...options, demands, locks, now: new Date() });
  const answered = { ...input, evidence: gathered.facts };
  const decided = await policy.engine.decideVerify(answered);
  options.record(answered, decided);
  if (!decided.decision.allow) throw refusal(decided.decision);
  return {
    expected: gathered.expected(),
    digests: gathered.digests(),
    facts: inWords(gathered.facts, demands),
  };
}

/** What would be demanded of a job; undefined: nothing, or policy does not say. */
export async function demandsOf(
  request: JobRequest,
  run: RunFacts,
  { engine }: CurrentPolicy,
): Promise<VerifyDecision['demands'] | undefined> {
  const { demands } = (await engine.decideVerify(firstQuestion(request, run))).decision;
  return isNothing(demands) ? undefined : demands;
}

function firstQuestion({ verify }: JobRequest, run: RunFacts): VerifyInput {
  const { commit = false, scripts = [], dependencies } = verify ?? {};
  const ask = { commit, scripts, dependencies: dependencies?.level ?? 'none' };
  return { version: 1, run, ask, evidence: null };
}

/** Which lock files are verified. */
interface LockFiles {
  /** If they are there; if they are not sent, they may not be. */
  readonly usual: readonly string[];
  /** They have to be there. */
  readonly named: readonly string[];
}

/** Those that the job names take the place of the usual ones only in what the job alone demands. */
async function lockFiles({ request, run, policy }: VerificationOptions): Promise<LockFiles> {
  const named = request.verify?.dependencies?.locks;
  if (named === undefined) return { usual: USUAL_LOCKS, named: [] };
  const { decision } = await policy.engine.decideVerify(firstQuestion({ ...request, verify: {} }, run));
  const isOwn = decision.allow && decision.demands.dependencies === 'none';
  return {
    usual: isOwn ? [] : USUAL_LOCKS.filter((path) => !named.includes(path)),
    named: [...new Set(named)],
  };
}

function isNothing({ commit, scripts, dependencies }: VerifyDecision['demands']): boolean {
  return !commit && scripts.length === 0 && dependencies === 'none';
}

function refusal({ denials }: VerifyDecision): CtError {
  const [first, ...others] = denials;
  if (first === undefined) return new CtError('VERIFY_DENIED', 'policy refuses the job, without saying why');
  const messages = [first, ...others].map(({ message, rule }) => `${message} (rule ${rule})`);
  return new CtError(first.code, messages.join('; '), { hint: first.hint });
}

interface Gathered {
  readonly facts: EvidenceFacts;
  expected(): TreeExpectation;
  digests(): readonly string[];
}

async function gather(
  evidence: Evidence,
  options: VerificationOptions & {
    readonly demands: VerifyDecision['demands'];
    readonly locks: LockFiles;
    readonly now: Date;
  },
): Promise<Gathered> {
  const { demands, policy, run, now } = options;
  const trust = policy.jobTrust;
  const partsOf = (kind: EvidenceKind) => evidence.parts.filter((part) => part.kind === kind);
  let commit: VerifiedCommit | undefined;
  const [object] = partsOf('commit');
  if (demands.commit && object !== undefined) {
    const { verifyCommit } = await import('../verification/commit-signature.ts');
    commit = verifyCommit(
      { object: object.bytes, claimed: run.commit, dirty: evidence.dirty.map(printable) },
      trust,
      now,
    );
  }
  const manifests: Manifest[] = [];
  const scripts: EvidenceFacts['scripts'][number][] = [];
  for (const { path, bytes } of partsOf('manifest').filter((part) => demands.scripts.includes(part.path))) {
    const { facts, manifest } = await manifestFacts(path, bytes, policy, now);
    scripts.push(facts);
    if (manifest) manifests.push(manifest);
    await turn();
  }
  const files = new Map<string, string>();
  const absent: string[] = [];
  const dependencies: EvidenceFacts['dependencies'][number][] = [];
  if (demands.dependencies !== 'none') {
    const sent = partsOf('lock');
    const { locks } = options;
    const isSent = (path: string): boolean => sent.some((part) => part.path === path);
    absent.push(...locks.usual.filter((path) => !isSent(path)));
    dependencies.push(...locks.named.filter((path) => !isSent(path)).map(missingLock));
    if (sent.length > 0) {
      const proofs = new Map(partsOf('evidence').map(({ path, bytes }) => [path, bytes]));
      const judged = await judgeLocks({
        locks: sent.map(({ path, bytes }) => ({ path, bytes, evidence: proofs.get(evidencePath(path)) })),
        level: demands.dependencies,
        configured: await configuredOrigins(options.presets),
        trust: trust.source,
        now,
      });
      dependencies.push(...judged);
    }
    // The file that was judged is the one that the job gets.
    for (const { path, bytes } of sent) files.set(path, createHash('sha256').update(bytes).digest('hex'));
  }
  return {
    facts: { commit: commit?.facts ?? null, scripts, dependencies },
    expected: () => ({ ...expectationOf(files, manifests, commit?.tree), absent }),
    digests: () => digestsOf(manifests),
  };
}

function missingLock(lock: string): EvidenceFacts['dependencies'][number] {
  const nothing = { packages: 0, unhashed: [], origins: [], configured: [], unsigned: [], publishers: [] };
  const problem = { code: 'VERIFY_EVIDENCE_MISSING', message: 'it is not there' } as const;
  return { lock, kind: 'npm', ...nothing, problem, unproven: [], invalid: [] };
}

async function manifestFacts(
  path: string,
  bytes: Buffer,
  { jobTrust }: CurrentPolicy,
  now: Date,
): Promise<{ readonly facts: EvidenceFacts['scripts'][number]; readonly manifest?: Manifest }> {
  const nothing = { manifest: path, signers: [], problem: null, files: {}, directories: [] };
  try {
    if (bytes.length > MAX_MANIFEST_BYTES) {
      throw new CtError('SIGNATURE_MALFORMED', `it has more than ${MAX_MANIFEST_BYTES} bytes`);
    }
    const [{ bundleTrust, signerFacts }, { verifyManifest }] = await Promise.all([
      import('../verification/job-trust.ts'),
      import('../verification/manifest-bundle.ts'),
    ]);
    const { trust, policy } = bundleTrust(jobTrust);
    const { signer, manifest } = verifyManifest(bytes, trust, policy, now);
    const files: Record<string, true> = Object.create(null);
    for (const name of manifest.files.keys()) files[name] = true;
    return {
      facts: { ...nothing, signers: signerFacts(signer, jobTrust), files, directories: manifest.directories },
      manifest,
    };
  } catch (error) {
    const { code, message } = errorReport(error);
    return { facts: { ...nothing, problem: { code, message } } };
  }
}

/** Throws VERIFY_FILE_CHANGED if two of them say different things of one file. */
function expectationOf(
  files: Map<string, string>,
  manifests: readonly Manifest[],
  gitTree: string | undefined,
): TreeExpectation {
  const links = new Map<string, string>();
  const merge = (into: Map<string, string>, from: ReadonlyMap<string, string>): void => {
    for (const [path, value] of from) {
      if (into.get(path) !== undefined && into.get(path) !== value) {
        throw new CtError('VERIFY_FILE_CHANGED', `${printable(path)} is signed with different contents`, {
          hint: 'sign what has changed again, in every manifest that has it: ct sign',
        });
      }
      into.set(path, value);
    }
  };
  for (const manifest of manifests) {
    merge(files, manifest.files);
    merge(links, manifest.links);
  }
  return {
    files: Object.fromEntries(files),
    links: Object.fromEntries(links),
    directories: manifests.flatMap(({ directories }) => directories),
    ...(gitTree === undefined ? {} : { gitTree }),
  };
}

function digestsOf(manifests: readonly Manifest[]): readonly string[] {
  const digests = [...new Set(manifests.flatMap(({ files }) => [...files.values()]))];
  if (digests.length <= MAX_SIGNED_DIGESTS) return digests;
  throw new CtError('VERIFY_DENIED', `the manifests have more than ${MAX_SIGNED_DIGESTS} files together`);
}

/** What clients of this machine are configured for; nothing for those that are not. */
async function configuredOrigins(
  presets: Pick<PresetResolver, 'resolve'>,
): Promise<Readonly<Record<'npm' | 'pypi', readonly string[]>>> {
  const originsOf = async (name: 'npm' | 'pypi'): Promise<readonly string[]> => {
    try {
      const resolved = await presets.resolve([name]);
      return resolved.flatMap(({ destinations }) =>
        destinations.map(({ host, port }) => `https://${host}${port === 443 ? '' : `:${port}`}`),
      );
    } catch {
      return [];
    }
  };
  return { npm: await originsOf('npm'), pypi: await originsOf('pypi') };
}

function inWords(facts: EvidenceFacts, demands: VerifyDecision['demands']): string[] {
  const who = (signers: readonly { readonly who: string }[]): string =>
    signers.map((signer) => signer.who).join(', ');
  const { commit, scripts, dependencies } = facts;
  return [
    ...(commit ? [`commit ${commit.id.slice(0, 12)} is signed by ${who(commit.signers)}`] : []),
    ...scripts.map(({ manifest, signers, files }) => {
      const count = Object.keys(files).length;
      return `${manifest} (${count} file${count === 1 ? '' : 's'}) is signed by ${who(signers)}`;
    }),
    ...dependencies.map(
      ({ lock, packages }) =>
        `${lock}: ${packages} package${packages === 1 ? '' : 's'}, verified by ${demands.dependencies}`,
    ),
  ];
}

const REFUSALS = /^(VERIFY|SIGNATURE)_/;

/** Undefined unless the run ended because something was not vouched for. `evidence`: the decision log of the run. */
export function verificationAlert(
  error: JobResult['error'],
  run: RunFacts & { readonly id: string },
  evidence: string,
  now: Date,
): Alert | undefined {
  if (error === undefined || !REFUSALS.test(error.code)) return undefined;
  return newAlert(now, {
    severity: 'high',
    title: error.message,
    rule: `ct.verify.${error.code.toLowerCase().replace(/^verify_/, '')}`,
    action: 'terminated',
    run: alertRun(run),
    evidence: { file: evidence, id: run.id },
  });
}
