/**
 * Judges lock files and the evidence beside them, once, in a thread with a heap of its own: they come from whoever wrote the
 * repository, verification takes milliseconds for each package, and JSON grows in memory to many times its size. The daemon
 * answers for running jobs meanwhile, and goes on if this thread does not.
 */
import { parentPort, workerData } from 'node:worker_threads';
import type { JobTrustData } from '../policy/verify-rules.ts';
import type { DependencyLevel } from '../protocol/verify.ts';
import { type LockFacts, lockFacts } from '../verification/dependencies/lock-facts.ts';
import { loadJobTrust } from '../verification/job-trust.ts';

export interface EvidenceOrder {
  readonly locks: readonly {
    readonly path: string;
    readonly bytes: Uint8Array;
    readonly evidence: Uint8Array | undefined;
  }[];
  readonly level: DependencyLevel;
  readonly configured: Readonly<Record<'npm' | 'pypi', readonly string[]>>;
  readonly trust: { readonly data: JobTrustData; readonly files: ReadonlyMap<string, Uint8Array> };
  readonly now: Date;
}

const { locks, level, configured, trust, now } = workerData as EvidenceOrder;
const loaded = loadJobTrust(trust.data, (name) => Buffer.from(trust.files.get(name) ?? ''));
const facts: LockFacts[] = locks.map(({ path, bytes, evidence }) =>
  lockFacts({
    lock: path,
    bytes: Buffer.from(bytes),
    evidence: evidence && Buffer.from(evidence),
    level,
    configured,
    trust: loaded,
    now,
  }),
);
parentPort?.postMessage(facts);
