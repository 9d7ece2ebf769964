/**
 * The one error type of the product and the closed list of its codes.
 *
 * `docs/errors.md` is generated from this list (`setup/generate-docs.ts`) and tested equal to it.
 */

/** Who has to act: the user, the operator or maintainers, or nobody because foreign bytes were refused. */
export type ErrorKind = 'user' | 'system' | 'untrusted-input' | 'policy' | 'timeout' | 'cancelled' | 'job';

/** Process exit status of `ct` per kind; docs/errors.md lists them for users. */
export const EXIT_STATUS: Readonly<Record<ErrorKind, number>> = {
  job: 1,
  user: 2,
  policy: 122,
  timeout: 124,
  system: 125,
  'untrusted-input': 125,
  cancelled: 130,
};

interface CodeInfo {
  readonly kind: ErrorKind;
  readonly http: number;
  /** One sentence: when it is raised. */
  readonly when: string;
}

export const ERROR_CODES = {
  USAGE: { kind: 'user', http: 400, when: 'a command or option is unknown, missing or malformed' },
  PLATFORM_UNSUPPORTED: { kind: 'user', http: 400, when: 'the operating system or CPU cannot run microVMs' },
  JOB_FILE_NOT_FOUND: {
    kind: 'user',
    http: 404,
    when: 'no ct.yml or .ct/*.yml exists where it was looked for',
  },
  JOB_FILE_INVALID: {
    kind: 'user',
    http: 400,
    when: 'the job file does not parse or does not match its schema',
  },
  JOB_NOT_FOUND: { kind: 'user', http: 404, when: 'the job file defines no job of that name' },
  JOB_NEEDS_CYCLE: { kind: 'user', http: 400, when: '`needs` of some jobs form a cycle' },
  JOB_EXPRESSION_INVALID: {
    kind: 'user',
    http: 400,
    when: 'an expression is malformed or names an unknown value',
  },
  NOT_SUPPORTED_YET: {
    kind: 'user',
    http: 400,
    when: 'the job file asks for something this version does not do yet',
  },
  CONFIG_INVALID: {
    kind: 'user',
    http: 400,
    when: 'the configuration of the user does not match its schema, or others may write to it',
  },
  SECRET_MISSING: { kind: 'user', http: 400, when: 'a job names a secret that this run does not supply' },
  SECRET_SOURCE_FAILED: {
    kind: 'user',
    http: 400,
    when: 'a file or command that is to supply a secret cannot be read or fails',
  },
  SECRET_UNUSABLE: {
    kind: 'user',
    http: 400,
    when: 'the value of a secret is too short, too long or has a NUL byte',
  },
  RESOURCES_EXCEED_HOST: {
    kind: 'user',
    http: 400,
    when: 'a job asks for more cpu, memory or disk than this host has',
  },
  WORKSPACE_UNREADABLE: { kind: 'user', http: 400, when: 'the working tree cannot be read' },
  WORKSPACE_STAGE_FAILED: {
    kind: 'system',
    http: 500,
    when: 'the working tree could not be written into the VM',
  },
  ARTIFACT_REFUSED: {
    kind: 'untrusted-input',
    http: 502,
    when: 'an artifact entry is malformed or would leave its directory',
  },
  ARTIFACT_WRITE_FAILED: {
    kind: 'system',
    http: 500,
    when: 'artifacts could not be written on this machine',
  },
  IMAGE_NOT_FOUND: { kind: 'user', http: 404, when: 'no image of that name is defined or built' },
  IMAGE_DEFINITION_INVALID: {
    kind: 'user',
    http: 400,
    when: 'an image definition does not match its schema',
  },
  IMAGE_SOURCES_MISSING: {
    kind: 'user',
    http: 400,
    when: 'this machine has no apt source that can supply the image',
  },
  IMAGE_LOCK_INVALID: { kind: 'user', http: 400, when: 'a lock file of an image is not one' },
  IMAGE_LOCK_STALE: {
    kind: 'user',
    http: 409,
    when: 'an image was to be built from its lock, and there is none, or it cannot be met any more',
  },
  IMAGE_UNACCOUNTED: {
    kind: 'user',
    http: 400,
    when: 'an image would hold something that its definition does not account for',
  },
  IMAGE_BUILD_FAILED: { kind: 'system', http: 500, when: 'a step of the image build failed' },
  IMAGE_CORRUPT: {
    kind: 'system',
    http: 500,
    when: 'a stored image part does not have the digest its manifest names',
  },
  STORE_FULL: { kind: 'system', http: 507, when: 'the file system of CT_HOME has no space left' },
  REQUIREMENT_MISSING: {
    kind: 'user',
    http: 500,
    when: 'a program or package this command needs is not installed',
  },
  HOST_UNREACHABLE: { kind: 'system', http: 503, when: 'the host daemon could not be started or reached' },
  HOST_PROTOCOL: {
    kind: 'system',
    http: 500,
    when: 'the host daemon and the client do not understand each other',
  },
  HOST_DIED: {
    kind: 'system',
    http: 500,
    when: 'the host daemon was killed while the run had not ended; its VM ended with it',
  },
  RUN_NOT_FOUND: { kind: 'user', http: 404, when: 'no run of that id or job name is kept' },
  RUN_AMBIGUOUS: { kind: 'user', http: 409, when: 'several runs have an id that begins or ends like that' },
  RUN_NOT_ENDED: { kind: 'user', http: 409, when: 'a run that has not ended cannot be removed' },
  SHELL_UNAVAILABLE: {
    kind: 'user',
    http: 409,
    when: 'a run has no VM in which a shell could be opened, too many are open there, or it cannot be recorded',
  },
  SHELL_ENDED: {
    kind: 'system',
    http: 410,
    when: 'the run ended while a shell was open in its VM, and the shell with it',
  },
  RUN_LOG_UNREADABLE: { kind: 'system', http: 500, when: 'the log of a run is missing or damaged' },
  RUN_QUEUED_OVERDUE: { kind: 'system', http: 504, when: 'a run waited for capacity longer than it may' },
  RUN_CLAIMING_OVERDUE: { kind: 'system', http: 504, when: 'no VM could be handed over in time' },
  RUN_STAGING_OVERDUE: { kind: 'system', http: 504, when: 'the working tree was not in the VM in time' },
  RUN_RUNNING_OVERDUE: {
    kind: 'system',
    http: 504,
    when: 'the steps of a run had not ended when the timeout of the job was long over',
  },
  RUN_COLLECTING_OVERDUE: { kind: 'system', http: 504, when: 'artifacts were not collected in time' },
  RUN_DESTROYING_OVERDUE: { kind: 'system', http: 504, when: 'the VM of a run was not gone in time' },
  PEER_REFUSED: {
    kind: 'user',
    http: 403,
    when: 'another user connects to the host daemon',
  },
  VMM_START_FAILED: { kind: 'system', http: 500, when: 'the VMM process could not be started' },
  VMM_EXITED_EARLY: { kind: 'system', http: 500, when: 'the VMM exited before the guest was ready' },
  VMM_DIED: { kind: 'system', http: 500, when: 'the VMM exited while a job was running' },
  VMM_COMMAND_FAILED: { kind: 'system', http: 500, when: 'the VMM refused a control command' },
  VMM_RESTORE_FAILED: { kind: 'system', http: 500, when: 'a template could not be restored' },
  GUEST_BOOT_TIMEOUT: { kind: 'system', http: 504, when: 'the guest agent did not report ready in time' },
  GUEST_UNRESPONSIVE: { kind: 'system', http: 504, when: 'the guest agent stopped answering' },
  GUEST_PROTOCOL: {
    kind: 'untrusted-input',
    http: 502,
    when: 'the guest sent bytes that violate the guest link protocol',
  },
  GUEST_REFUSED: { kind: 'system', http: 500, when: 'the guest agent answered a request with an error' },
  LINK_DIED: {
    kind: 'system',
    http: 500,
    when: 'the link process of the VM exited while the job was running',
  },
  LINK_STUCK: {
    kind: 'system',
    http: 504,
    when: 'the link process of the VM did not answer, or did not end in the time it was given',
  },
  POLICY_DENIED: { kind: 'policy', http: 403, when: 'policy does not allow this job' },
  POLICY_VIOLATION: {
    kind: 'policy',
    http: 403,
    when: 'a job did what policy forbids and was ended',
  },
  POLICY_INVALID: {
    kind: 'user',
    http: 400,
    when: 'policy data or Rego does not parse, validate or compile',
  },
  POLICY_UNAVAILABLE: { kind: 'system', http: 500, when: 'the policy engine could not be loaded' },
  PRESET_UNCONFIGURED: {
    kind: 'user',
    http: 400,
    when: 'a network preset has no client configuration on this host to follow',
  },
  STEP_TIMEOUT: { kind: 'timeout', http: 504, when: 'a step ran longer than its timeout' },
  JOB_TIMEOUT: { kind: 'timeout', http: 504, when: 'a job ran longer than its timeout' },
  JOB_FAILED: { kind: 'job', http: 200, when: 'a step of the job failed' },
  PACKAGES_UNVERIFIED: {
    kind: 'job',
    http: 422,
    when: 'the packages that a step has fetched are not those of the lock file, or there is none',
  },
  CANCELLED: { kind: 'cancelled', http: 499, when: 'the run was cancelled' },
  SOCKET_PATH_TOO_LONG: { kind: 'user', http: 500, when: 'a unix socket path would exceed 107 bytes' },
  STATE_DIRECTORY_UNSAFE: {
    kind: 'user',
    http: 500,
    when: 'a state directory belongs to another user or is accessible to others',
  },
  SIGNATURE_MISSING: { kind: 'policy', http: 403, when: 'policy demands a signature and there is none' },
  SIGNATURE_MALFORMED: {
    kind: 'policy',
    http: 403,
    when: 'a signature is too large, is no Sigstore bundle, or signs no in-toto statement where one is expected',
  },
  SIGNATURE_INVALID: {
    kind: 'policy',
    http: 403,
    when: 'a signature, or the log entry or timestamp that belongs to it, does not verify',
  },
  SIGNATURE_UNTRUSTED: {
    kind: 'policy',
    http: 403,
    when: 'the identity, issuer, key or certificate authority of a signer is not accepted',
  },
  SIGNATURE_SUBJECT_MISMATCH: {
    kind: 'policy',
    http: 403,
    when: 'a signature is about another artifact than the one at hand',
  },
  SIGNATURE_PREDICATE_MISMATCH: {
    kind: 'policy',
    http: 403,
    when: 'a signed statement says something of another type than the one that was asked for',
  },
  SIGNATURE_EXPIRED: {
    kind: 'policy',
    http: 403,
    when: 'the certificate or key of a signer was not valid when it signed, or that time lies in the future',
  },
  SIGNATURE_LOG_MISSING: {
    kind: 'policy',
    http: 403,
    when: 'policy demands an entry of a transparency log that a signature does not have',
  },
  SIGNATURE_TIMESTAMP_MISSING: {
    kind: 'policy',
    http: 403,
    when: 'policy demands a trusted timestamp that a signature does not have',
  },
  VERIFY_DENIED: {
    kind: 'policy',
    http: 403,
    when: 'a rule of `ct.verify` refuses what is proved of a job, and names no other code',
  },
  VERIFY_EVIDENCE_MISSING: {
    kind: 'policy',
    http: 403,
    when: 'a job or policy demands something signed, and the evidence for it is not there',
  },
  VERIFY_FILE_CHANGED: {
    kind: 'policy',
    http: 403,
    when: 'a file of a signed manifest is not as it was signed',
  },
  VERIFY_FILE_MISSING: {
    kind: 'policy',
    http: 403,
    when: 'a file of a signed manifest is not in the working tree',
  },
  VERIFY_FILE_UNLISTED: {
    kind: 'policy',
    http: 403,
    when: 'a directory that a signed manifest covers has a file or link that is not in it',
  },
  VERIFY_COMMIT_UNSIGNED: {
    kind: 'policy',
    http: 403,
    when: 'a signed commit is demanded, and the commit has no signature',
  },
  VERIFY_COMMIT_UNTRUSTED: {
    kind: 'policy',
    http: 403,
    when: 'the commit is signed with a key or as an identity that is not accepted, or not any more',
  },
  VERIFY_COMMIT_INVALID: {
    kind: 'policy',
    http: 403,
    when: 'the signature of the commit does not verify, or is that of another commit',
  },
  VERIFY_TREE_DIRTY: {
    kind: 'policy',
    http: 403,
    when: 'the working tree is not that of the signed commit',
  },
  VERIFY_DEPENDENCY_INTEGRITY: {
    kind: 'policy',
    http: 403,
    when: 'a dependency has no digest in its lock file, or comes from elsewhere than the registry',
  },
  VERIFY_DEPENDENCY_UNSIGNED: {
    kind: 'policy',
    http: 403,
    when: 'there is no signature of the registry for a dependency',
  },
  VERIFY_DEPENDENCY_UNPROVEN: {
    kind: 'policy',
    http: 403,
    when: 'there is no accepted provenance for a dependency',
  },
  VERIFY_DEPENDENCY_INVALID: {
    kind: 'policy',
    http: 403,
    when: 'evidence for a dependency does not verify, or is about another one',
  },
  TRUST_INVALID: {
    kind: 'user',
    http: 400,
    when: 'a trusted root, a trusted key or the rule for accepted signers does not parse or accepts nobody',
  },
  SIGNING_KEY_INVALID: {
    kind: 'user',
    http: 400,
    when: 'a private key cannot be read, its passphrase is wrong, or it cannot make the signature asked for',
  },
  SIGNING_CONFIG_INVALID: {
    kind: 'user',
    http: 400,
    when: 'the description of signing services does not parse, or names none that can be used',
  },
  SIGNING_FAILED: {
    kind: 'system',
    http: 502,
    when: 'a signing service or command failed, did not answer in time, or gave no usable answer',
  },
  AUDIT_NOT_FOUND: { kind: 'user', http: 404, when: 'no audit record of that run is kept' },
  AUDIT_INCOMPLETE: {
    kind: 'policy',
    http: 422,
    when: 'the audit record of a run has a gap or no end, could not be kept, or has no seal',
  },
  AUDIT_LOST: {
    kind: 'policy',
    http: 403,
    when: 'policy requires an audit record, and that of the run broke off, so the run was ended',
  },
  AUDIT_UNAVAILABLE: {
    kind: 'system',
    http: 500,
    when: 'policy requires an audit record, and the VM or this host cannot keep one, so there is no run',
  },
  AUDIT_TAMPERED: {
    kind: 'policy',
    http: 422,
    when: 'an audit record is not as it was when it was written and sealed',
  },
  VULN_DB_MISSING: {
    kind: 'user',
    http: 404,
    when: 'there is no vulnerability database here, or none for what an image holds',
  },
  VULN_DB_STALE: {
    kind: 'policy',
    http: 403,
    when: 'the vulnerability database is older than policy allows, so nothing can be called clean by it',
  },
  VULN_DB_INVALID: {
    kind: 'untrusted-input',
    http: 422,
    when: 'a feed of vulnerabilities cannot be had, or is malformed, too large or empty; the database is as it was',
  },
  IMAGE_VULNERABLE: {
    kind: 'policy',
    http: 403,
    when: 'an image has known vulnerabilities of the severity that was asked about, or a higher one',
  },
  IMAGE_REVOKED: { kind: 'policy', http: 403, when: 'policy has revoked the image' },
  IMAGE_OUTDATED: {
    kind: 'policy',
    http: 403,
    when: 'an image was signed longer ago than policy allows, or nothing says when',
  },
  IMAGE_REPLAYED: {
    kind: 'policy',
    http: 403,
    when: 'an image was signed before the oldest one of its name that policy still lets run',
  },
  IMAGE_BASE_DENIED: { kind: 'policy', http: 403, when: 'an image extends none that policy names' },
  IMAGE_ATTESTATION_MISSING: {
    kind: 'policy',
    http: 403,
    when: 'policy demands provenance or an SBOM of an image, signed by an accepted signer, and there is none',
  },
  IMAGE_SCAN_MISSING: {
    kind: 'policy',
    http: 403,
    when: 'policy demands that an image was scanned for vulnerabilities, and it was not',
  },
  IMAGE_IMPORT_REFUSED: {
    kind: 'untrusted-input',
    http: 422,
    when: 'what is to become an image is malformed, damaged, or holds what no image may hold',
  },
  REGISTRY_FAILED: {
    kind: 'system',
    http: 502,
    when: 'a registry cannot be reached, is too slow, or fails',
  },
  REGISTRY_DENIED: {
    kind: 'user',
    http: 403,
    when: 'a registry wants other credentials, or does not have what was asked for',
  },
  REGISTRY_REFUSED: {
    kind: 'untrusted-input',
    http: 502,
    when: 'a registry answers with other bytes than were asked for, with too many, or leads where it may not',
  },
  INTERNAL: { kind: 'system', http: 500, when: 'something happened that should not; please report it' },
} as const satisfies Record<string, CodeInfo>;

export type ErrorCode = keyof typeof ERROR_CODES;

export interface CtErrorOptions {
  /** What the user can do next, one or two sentences. */
  readonly hint?: string | undefined;
  readonly cause?: unknown;
}

/** An error with a code from {@link ERROR_CODES}; `message` says what happened, `hint` what to do next. */
export class CtError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, options: CtErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'CtError';
    this.code = code;
    this.hint = options.hint;
  }

  get kind(): ErrorKind {
    return ERROR_CODES[this.code].kind;
  }

  get exitStatus(): number {
    return EXIT_STATUS[this.kind];
  }
}

export const STORE_FULL_HINT = 'free some space, or point CT_HOME at a larger file system';

/** Returns `error` if it is a {@link CtError}, else an `INTERNAL` one that carries it as cause. */
export function toCtError(error: unknown): CtError {
  if (error instanceof CtError) return error;
  const code = (error as { code?: unknown } | null)?.code;
  if (code === 'ENOSPC') {
    return new CtError('STORE_FULL', messageOf(error), {
      cause: error,
      hint: STORE_FULL_HINT,
    });
  }
  return new CtError('INTERNAL', messageOf(error), { cause: error });
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The plain form of an error for a wire or a JSON report; causes stay behind. */
export interface ErrorReport {
  readonly code: ErrorCode;
  readonly message: string;
  readonly hint?: string;
}

export function errorReport(error: unknown): ErrorReport {
  const { code, message, hint } = toCtError(error);
  return hint === undefined ? { code, message } : { code, message, hint };
}
