/** The daemon's API on its unix socket, as both ends know it. */
import type { ErrorReport } from '../core/errors.ts';
import type { AdmissionDecision } from '../policy/decision.ts';
import type { VerifyDecision } from '../policy/verify.ts';
import type { AuditMode } from '../protocol/audit.ts';
import type { NetworkMode } from '../protocol/network.ts';
import type {
  Accelerator,
  ImageStanding,
  JobOutcome,
  ResolvedPreset,
  StepOutcome,
  VmSource,
} from '../protocol/run.ts';
import type { ControllerStatus } from '../vmm/cgroup.ts';
import type { AuditLossReason } from './audit-messages.ts';
import type { LinkIdentity } from './link-jail.ts';
import type { RunState } from './run-state.ts';

export const API_INFO = '/v1/info';
export const API_JOBS = '/v1/jobs';
export const API_SHUTDOWN = '/v1/shutdown';
/**
 * `GET` lists ({@link RunInfo}, newest first; `?all=1`: those that ended, too). Below it lies every run by any of its
 * names: `GET /v1/runs/REF` ({@link RunDetail}), `DELETE` (its record and log), `POST /v1/runs/REF/cancel`, and
 * `POST /v1/runs/REF/shell` with `Upgrade: ct-shell/1` (src/protocol/shell.ts). `GET /v1/runs/REF/decisions` gives what
 * policy decided about it: a list, the lines of its decision log (decision-log.ts).
 * Failures are `{"error": ErrorReport}`.
 */
export const API_RUNS = '/v1/runs';
/** `POST ?keep=N&maxAgeDays=N`: {@link RetentionResult}. */
export const API_GC = '/v1/gc';
/** `GET`: {@link PolicyInfo}. */
export const API_POLICY = '/v1/policy';
/**
 * `POST` with a JobRequest as JSON, whose image may be a name, too: {@link PolicyCheck}. Nothing is run, and nothing put on
 * record.
 */
export const API_POLICY_CHECK = '/v1/policy/check';
export const JOB_PROTOCOL = 'ct-job/1';
export const SHELL_PROTOCOL = 'ct-shell/1';

export interface HostInfo {
  readonly pid: number;
  /** Which build serves; a client of another build replaces an idle daemon. */
  readonly build: string;
  readonly ctHome: string;
  /** Undefined until a VM was started. */
  readonly accelerator?: { readonly accelerator: 'kvm' | 'tcg'; readonly reason: string };
  readonly cpus: number;
  readonly memoryMib: number;
  readonly runningJobs: number;
  readonly waitingJobs: number;
  readonly templates: number;
  /** VMs that wait for a job. */
  readonly warm: number;
  /** Some are being made, or soon will be. */
  readonly warming: boolean;
  readonly cgroups: readonly ControllerStatus[];
  /** What link processes run as. */
  readonly link: LinkIdentity;
}

/** One run, as a list shows it. Times are milliseconds since 1970. */
export interface RunInfo {
  readonly run: string;
  readonly job: string;
  readonly state: RunState;
  /** The name is known once a VM was claimed. */
  readonly image: { readonly digest: string; readonly name?: string };
  readonly shape: { readonly cpus: number; readonly memoryMib: number; readonly diskMib: number };
  readonly createdAtMs: number;
  /** When it entered `state`; for a run that ended, when that was. */
  readonly stateSinceMs: number;
  /** Absent until it ended, and where nobody was there to see the end: the daemon was killed. */
  readonly durationMs?: number;
  readonly outcome?: JobOutcome;
  readonly exitCode?: number;
  readonly error?: ErrorReport;
}

export interface RunStep {
  readonly name: string;
  /** `interrupted`: its run ended, and nobody reported how the step did. */
  readonly state: 'waiting' | 'running' | 'interrupted' | StepOutcome;
  readonly exitCode?: number;
  readonly durationMs?: number;
}

/** A shell that was opened in the VM of a run. */
export interface RunShell {
  readonly openedAtMs: number;
  /** Who opened it: only this user and root can reach the daemon. */
  readonly uid: number;
}

/** The audit record of a run (docs/audit.md). */
export interface RunAuditInfo {
  readonly mode: AuditMode;
  /**
   * `complete` and `incomplete` are sealed; `unsealed`: nothing vouches for what is there; `absent`: the VM made none; `off`:
   * policy wants none.
   */
  readonly state: 'off' | 'recording' | 'complete' | 'incomplete' | 'unsealed' | 'absent';
  /** Revision of the policy that let the run in; for its seal. */
  readonly policy: string;
  /** Of the chain, in hex. */
  readonly head?: string;
  /** System calls and what processes did. */
  readonly records?: number;
  /** On disk. */
  readonly bytes?: number;
  /** Why it is not whole. */
  readonly reason?: AuditLossReason;
  readonly message?: string;
}

/** Something of a VM that was there and is gone. */
export interface Removed {
  readonly what: 'vmm' | 'volume' | 'cgroup' | 'link';
  /** How it is known to be gone. */
  readonly proof: string;
}

export interface Destruction {
  /** From the decision until all of `removed` was gone. */
  readonly durationMs: number;
  readonly removed: readonly Removed[];
}

export interface RunDetail extends RunInfo {
  readonly vm?: {
    readonly source: VmSource;
    readonly accelerator: Accelerator;
    readonly vmm: string;
    /** Of the VMM, on this host; that of no process of ours once the run has ended. */
    readonly pid: number;
    readonly claimMs: number;
  };
  readonly steps: readonly RunStep[];
  /** In the order in which they were opened; absent if there were none. */
  readonly shells?: readonly RunShell[];
  /** What policy went by when it decided whether the image may boot; absent before that. */
  readonly imageStanding?: ImageStanding;
  /** Absent until there was a VM. */
  readonly audit?: RunAuditInfo;
  /** How long it was in each state that it has left. */
  readonly statesMs: Readonly<Partial<Record<RunState, number>>>;
  /** Absent if it never had a VM, and if the daemon was killed: then the VM died with it, unobserved. */
  readonly destruction?: Destruction;
  /** Where the log lies (src/job/run-log.ts); its bytes are the guest's, so the daemon does not read them. */
  readonly logDirectory: string;
}

/** The policy that the daemon goes by. */
export interface PolicyInfo {
  /** Digest of policy and data. */
  readonly revision: string;
  /** The operator's, with `data.yml` and rules of their own; absent: what ct ships. */
  readonly directory?: string;
  /** Decisions are asked of this OPA server. */
  readonly opaUrl?: string;
  /** The least strict mode that a job can have, where its repository has none of its own. */
  readonly mode: NetworkMode;
}

/** What a job would get. */
export interface PolicyCheck {
  readonly revision: string;
  readonly decision: AdmissionDecision;
  /** What the presets that it names stand for on this host. */
  readonly presets: readonly ResolvedPreset[];
  /** What has to be signed, by the job's own word or policy's; absent: nothing. */
  readonly verify?: VerifyDecision['demands'];
}

export interface RetentionResult {
  readonly removed: readonly string[];
  readonly freedBytes: number;
}
