/** What a job demands of itself before it runs, and what the tree that is sent has to be then (docs/verify.md). */

/** In order of strictness. */
export const DEPENDENCY_LEVELS = ['none', 'integrity', 'signature', 'provenance'] as const;
export type DependencyLevel = (typeof DEPENDENCY_LEVELS)[number];

export const MAX_MANIFESTS = 16;
export const MAX_LOCKS = 16;

/** Policy may demand more, never less. */
export interface VerifyRequest {
  /** The tree is that of a signed commit. */
  readonly commit?: boolean;
  /** Paths of signed manifests. */
  readonly scripts?: readonly string[];
  readonly dependencies?: {
    readonly level: DependencyLevel;
    /** Lock files; absent: those in the root of the workspace, which are verified in any case if policy demands it. */
    readonly locks?: readonly string[];
  };
}

/** Lock files that are looked for where none are named. */
export const USUAL_LOCKS: readonly string[] = [
  'package-lock.json',
  'npm-shrinkwrap.json',
  'requirements.txt',
];

/** What the client is asked to send; everything that the job or policy demands. */
export interface EvidenceDemands {
  readonly commit: boolean;
  readonly scripts: readonly string[];
  readonly dependencies: DependencyLevel;
  readonly locks?: readonly string[];
}

/** What the link process compares with the tree while it goes into the VM. */
export interface TreeExpectation {
  /** Hex SHA-256 by path. */
  readonly files: Readonly<Record<string, string>>;
  /** Targets by path. */
  readonly links: Readonly<Record<string, string>>;
  /** In these is nothing but `files`, `links` and directories. */
  readonly directories: readonly string[];
  /** Nobody sent evidence of these, so they may not be there. */
  readonly absent?: readonly string[];
  /** Hex id of the git tree that all of it is, without `.git`. */
  readonly gitTree?: string;
}
