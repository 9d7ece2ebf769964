/**
 * What a client asks of the host daemon and what it hears back: one job, one VM.
 *
 * The client opens `POST /v1/jobs` with `Upgrade: ct-job/1` on the daemon's unix socket, sends the JobRequest as
 * the first record, and then both sides exchange records until `done`. The daemon hands the connection to the
 * link process of the VM, so that neither trees nor guest output pass through the daemon.
 */
import type { ErrorReport } from '../core/errors.ts';
import type { CodePolicyMode } from './code.ts';
import type { JobOrigin, NetworkMode, NetworkRequest } from './network.ts';
import type { EvidenceDemands, VerifyRequest } from './verify.ts';

/** Records from the client. */
export const ClientRecord = {
  /** JSON JobRequest; may be split over several records, ended by `requestEnd`. */
  request: 0x40,
  requestEnd: 0x41,
  /** Bytes of the workspace's tree stream (docs/guest-link.md); an empty payload ends it. */
  tree: 0x42,
  /** Bytes for the stdin of the `argv` step; an empty payload closes it. */
  stdin: 0x43,
  /** u8 signal number for the running step. */
  signal: 0x44,
  /** Ends the job: the VM is destroyed at once. */
  cancel: 0x45,
  /** One secret (secret-record.ts). Only after `secrets-wanted`: the daemon never sees one, nor a VM before it has the tree. */
  secret: 0x46,
  /** No more secrets; sent if the request names any. */
  secretsEnd: 0x47,
  /** After `shell-offer`: the client needs no shell, or has left it. */
  shellDone: 0x48,
  /** After `evidence`: bytes of what evidence.ts describes; an empty payload ends them. */
  evidence: 0x49,
} as const;

/** Records to the client. */
export const ServerRecord = {
  /** One JSON RunEvent. */
  event: 0x50,
  /** u16 BE step index, then bytes. */
  stdout: 0x51,
  stderr: 0x52,
  /** Bytes of the artifacts' tree stream; an empty payload ends it. */
  artifacts: 0x53,
} as const;

export interface StepRequest {
  readonly name: string;
  /** Argument vector; `{0}` stands for the path of the script in the guest. */
  readonly argv: readonly string[];
  /** Content of the script, if argv has `{0}`. */
  readonly script?: string;
  readonly env: Readonly<Record<string, string>>;
  /** Relative to the workspace. */
  readonly workingDirectory: string;
  readonly condition: 'success' | 'failure' | 'always';
  readonly timeoutMs?: number;
  /** The client will send `stdin` records. */
  readonly stdin?: boolean;
  /** What the step is given; the values come as `secret` records. */
  readonly secrets?: readonly StepSecret[];
  /** Every connection is refused while the step runs. */
  readonly network?: 'none';
  /** It fetches packages, or is what checks and unpacks those of the step before it (src/job/packages.ts). */
  readonly packages?: { readonly manager: PackageManager; readonly role: 'fetch' | 'verify' };
}

export const PACKAGE_MANAGERS = ['npm'] as const;
export type PackageManager = (typeof PACKAGE_MANAGERS)[number];

export interface StepSecret {
  readonly name: string;
  /** The variable that holds the value; without it the value is a file of that name in SECRET_DIRECTORY. */
  readonly env?: string;
}

export interface JobRequest {
  readonly name: string;
  /** Manifest digest, `sha256:…`, of an image in the daemon's store. */
  readonly image: string;
  readonly cpus: number;
  readonly memoryMib: number;
  readonly diskMib: number;
  readonly env: Readonly<Record<string, string>>;
  readonly steps: readonly StepRequest[];
  readonly timeoutMs: number;
  /** Globs below the workspace; collected when all steps have ended, also after a failure. */
  readonly artifacts: readonly string[];
  /** Whether `tree` records follow. */
  readonly sendsTree: boolean;
  /** At the first step that fails: `shell-offer`, and nothing goes on before `shellDone`. */
  readonly shellOnFailure?: boolean;
  /** Absent: no more than what policy gives every job. */
  readonly network?: NetworkRequest;
  /** At least this strict about code; absent: as policy says. */
  readonly exec?: Exclude<CodePolicyMode, 'off'>;
  /** Absent: a person at this machine. */
  readonly origin?: JobOrigin;
  /** Absent: no more than what policy demands. */
  readonly verify?: VerifyRequest;
}

export type Accelerator = 'kvm' | 'tcg';
/** `warm-clone`: it waited for a job, already restored. */
export type VmSource = 'warm-clone' | 'clone' | 'cold-boot';
export type JobOutcome = 'success' | 'failure' | 'timeout' | 'cancelled' | 'infrastructure' | 'violation';
export type StepOutcome = 'success' | 'failure' | 'timeout' | 'cancelled' | 'skipped';

export interface JobResult {
  readonly outcome: JobOutcome;
  /** Exit code of the first step that failed (128 + signal if it was killed), 0 on success. */
  readonly exitCode: number;
  readonly error?: ErrorReport;
}

export interface ResolvedPreset {
  readonly name: string;
  /** `host:port`, sorted. */
  readonly destinations: readonly string[];
  /** Where that was read: a file, or a setting of a client. */
  readonly source: string;
}

/** What is known of the image of a run when policy decides whether it may boot. */
export interface ImageStanding {
  readonly name: string;
  /** Of the manifest, under which every part of it is. */
  readonly digest: string;
  /** On this machine, or not. */
  readonly made: 'built' | 'imported' | 'elsewhere';
  /** Whose signatures verify, as policy calls them. */
  readonly signers: readonly string[];
  /** Digest of the policy that decided. */
  readonly policy: string;
  readonly allowed: boolean;
}

export type RunEvent =
  | { readonly type: 'queued'; readonly run: string; readonly reason?: string }
  /** Policy has let the job in. */
  | {
      readonly type: 'admitted';
      /** Digest of policy and data. */
      readonly policy: string;
      readonly mode: NetworkMode;
      /** What each preset that the job names stands for on this host. */
      readonly presets: readonly ResolvedPreset[];
      readonly image: ImageStanding;
    }
  /** What the client has to send evidence of, before anything is claimed for the job. */
  | { readonly type: 'evidence'; readonly demands: EvidenceDemands }
  /** Who vouches for the job, in words; the tree is still to be compared. */
  | { readonly type: 'verified'; readonly facts: readonly string[] }
  /** The tree is in the VM, and all that was demanded of it holds. */
  | { readonly type: 'secrets-wanted' }
  /** A template for this shape is being made; happens once per image and shape. */
  | { readonly type: 'preparing'; readonly what: string }
  | {
      readonly type: 'claimed';
      readonly source: VmSource;
      readonly accelerator: Accelerator;
      readonly vmm: string;
      /** Claim to session established and identity injected. */
      readonly claimMs: number;
    }
  | { readonly type: 'staged'; readonly durationMs: number; readonly bytes: number }
  | { readonly type: 'step-start'; readonly step: number; readonly name: string }
  | {
      readonly type: 'step-end';
      readonly step: number;
      readonly name: string;
      readonly outcome: StepOutcome;
      /** Absent if the step was skipped. */
      readonly exitCode?: number;
      readonly signal?: number;
      readonly durationMs: number;
      /** Why it probably failed and what to do, e.g. that there is no network. */
      readonly hint?: string;
    }
  /** A step failed and the job waits for the client, which may open a shell in the VM. */
  | { readonly type: 'shell-offer'; readonly step: number; readonly name: string }
  /** Somebody opened a shell in the VM, or it ended. `uid`: on the host; of a user who may use the daemon. */
  | {
      readonly type: 'shell';
      readonly state: 'opened' | 'closed';
      readonly uid: number;
      /** Absent if it was cut off. */
      readonly exitCode?: number;
    }
  /** The network refused something, or lets it pass only because the mode is `audit`; once per rule and destination. */
  | {
      readonly type: 'network';
      readonly action: 'recorded' | 'denied' | 'terminated';
      /** Absent for what is no connection: a raw socket. */
      readonly host?: string;
      readonly port?: number;
      readonly rule: string;
      readonly message: string;
      readonly hint?: string;
    }
  /** Policy allows it, and this machine did not reach it; once per destination. */
  | { readonly type: 'unreached'; readonly host: string; readonly port: number; readonly message: string }
  /** Code that nobody vouches for was to run, or did in mode `audit`; once per rule and file. */
  | {
      readonly type: 'code';
      readonly action: 'recorded' | 'denied' | 'terminated';
      /** In the VM; empty if it has none. */
      readonly path: string;
      readonly rule: string;
      readonly message: string;
      readonly hint?: string;
    }
  | { readonly type: 'notice'; readonly level: 'info' | 'warning'; readonly message: string }
  | { readonly type: 'collected'; readonly durationMs: number; readonly bytes: number }
  | { readonly type: 'destroyed'; readonly durationMs: number }
  | { readonly type: 'done'; readonly result: JobResult };
