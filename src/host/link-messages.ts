/**
 * What the host daemon and a link process say to each other over their IPC channel. The link process has read guest
 * bytes and is not trusted: the daemon takes only messages that `parseLinkReply` accepts.
 */
import { parseBatch } from '../audit/detection/batches.ts';
import { CtError, ERROR_CODES, type ErrorCode, type ErrorReport } from '../core/errors.ts';
import type { Identity } from '../guest/session.ts';
import type { ImageManifest } from '../image/manifest.ts';
import type { CodeSettings } from '../protocol/code.ts';
import { MAX_STEPS } from '../protocol/limits.ts';
import type { GuestNetworkSettings } from '../protocol/network.ts';
import type { JobOutcome, JobRequest, JobResult, RunEvent, StepOutcome } from '../protocol/run.ts';
import type { TreeExpectation } from '../protocol/verify.ts';
import { type AuditLoss, type AuditReport, parseAuditLoss, parseAuditReport } from './audit-messages.ts';
import {
  type EgressAnswer,
  type EgressOrigin,
  type EgressQuestion,
  parseEgressOrigin,
  parseEgressQuestion,
} from './egress-messages.ts';
import type { DetectMessage } from './link-detections.ts';
import type { DetectReport } from './run-detections.ts';
import { LINK_STATES, type LinkState } from './run-state.ts';

/** Commands that are answered. */
export type LinkCall =
  /** With the control channel of a booting VM. Answer: `ready`. */
  | { readonly type: 'await-ready'; readonly timeoutMs: number }
  /** With the control channel of a ready or restoring VM. Answer: `opened`. */
  | { readonly type: 'open'; readonly identity: Identity; readonly timeoutMs: number }
  /** Runs the probe program once. Answer: `probed`, when its first byte has arrived. */
  | { readonly type: 'probe'; readonly user: ImageManifest['user'] }
  /** Runs what every job runs, for nothing. Answer: `probed`. */
  | { readonly type: 'warm-up'; readonly user: ImageManifest['user'] }
  /** Makes a record of what an earlier process has left of it in the directory. Answer: `audit-recovered`. */
  | {
      readonly type: 'recover-audit';
      readonly run: string;
      readonly directory: string;
      readonly cpus: number;
    }
  /** With the connection of a client. Answer: `job-done`. */
  | {
      readonly type: 'job';
      readonly run: string;
      readonly request: JobRequest;
      readonly image: Pick<ImageManifest, 'name' | 'user' | 'env'>;
      /** Events that the client has had from the daemon, for the log. */
      readonly told: readonly RunEvent[];
      readonly claimed: RunEvent;
      /** Bytes the daemon read from the client's connection and did not use, base64. */
      readonly pending: string;
      /** Where the process may create files: the log of the run (src/job/run-log.ts). */
      readonly logDirectory: string;
      /** Absent: the run is not on record. `required`: nothing of the job may run before the record works. */
      readonly audit?: { readonly directory: string; readonly cpus: number; readonly required: boolean };
      /** What clients in the guest need to find registries and mirrors; absent if the job has no network. */
      readonly settings?: GuestNetworkSettings;
      /** What the tree has to be; before it is, the client is asked for no secret. Absent: anything. */
      readonly expected?: TreeExpectation;
      /** Absent: all code may run. `hasNetwork`: steps that do not say otherwise have one. */
      readonly code?: { readonly settings: CodeSettings; readonly hasNetwork: boolean };
    };

export type LinkCommand =
  | LinkCall
  /** Answer: `alive`, at once, whatever else is going on. */
  | { readonly type: 'heartbeat' }
  /** With the egress channel of the VM; right behind `open`. */
  | { readonly type: 'egress-channel' }
  /** With the audit channel of the VM; likewise. */
  | { readonly type: 'audit-channel' }
  | { readonly type: 'detect-answer' }
  /** With a socket if it says `connected`. */
  | { readonly type: 'egress-answer'; readonly id: number; readonly answer: EgressAnswer }
  /** For the client and the log of the job that is under way. */
  | { readonly type: 'event'; readonly event: RunEvent }
  /** With the connection of a client that wants a shell; legal while a `job` is under way. `pending` as there. */
  | { readonly type: 'shell'; readonly uid: number; readonly pending: string }
  /** Ends the job that runs; its result carries `error`. */
  | { readonly type: 'cancel'; readonly error: ErrorReport }
  /** The VM is gone: tell the client, close its connection, exit. `result`: where it is another than that of `job-done`. */
  | { readonly type: 'destroyed'; readonly durationMs: number; readonly result?: JobResult };

/** Only while a `job` is under way, and one at a time. Answer: `detect-answer`. */
export type LinkDetect = { readonly type: 'detect' } & DetectReport;

/** What a link process sends: {@link LinkReply} is what the daemon makes of it. */
export type LinkSaid = Exclude<LinkReply, LinkDetect> | DetectMessage;

/** Said unasked while a `job` is under way. */
export type LinkProgress =
  /** The audit record cannot be whole any more; once. */
  | { readonly type: 'audit-lost'; readonly loss: AuditLoss }
  /** Nothing of the guest is needed any more: its VM may end while the record is written. */
  | { readonly type: 'guest-done' }
  | { readonly type: 'state'; readonly state: LinkState }
  | {
      readonly type: 'step';
      readonly step: number;
      readonly state: 'running' | StepOutcome;
      readonly exitCode?: number;
      readonly durationMs?: number;
    };

export type LinkReply =
  | { readonly type: 'ready' }
  | { readonly type: 'opened'; readonly timings: Readonly<Record<string, number>> }
  | { readonly type: 'probed' }
  | { readonly type: 'alive' }
  | LinkProgress
  /** Only while a `job` is under way. Answer: `egress-answer`. */
  | EgressQuestion
  | EgressOrigin
  | LinkDetect
  | { readonly type: 'audit-recovered'; readonly report: AuditReport }
  /** `audit`: absent if the run was not to be on record. */
  | { readonly type: 'job-done'; readonly result: JobResult; readonly audit?: AuditReport }
  | { readonly type: 'failed'; readonly error: ErrorReport };

const MAX_TEXT_CHARACTERS = 32_768;
const OUTCOMES: readonly string[] = [
  'success',
  'failure',
  'timeout',
  'cancelled',
  'infrastructure',
  'violation',
] satisfies JobOutcome[];

const STEP_STATES: readonly unknown[] = [
  'running',
  'success',
  'failure',
  'timeout',
  'cancelled',
  'skipped',
] satisfies ('running' | StepOutcome)[];

/** Throws LINK_DIED, since a link process that says something else is not ours any more. */
export function parseLinkReply(message: unknown): LinkReply {
  if (isObject(message)) {
    const { type } = message;
    if (type === 'ready' || type === 'probed' || type === 'alive' || type === 'guest-done') return { type };
    if (type === 'opened' && isObject(message['timings'])) {
      const timings: Record<string, number> = Object.create(null);
      for (const [key, value] of Object.entries(message['timings']).slice(0, 64)) {
        if (typeof value === 'number') timings[key.slice(0, 40)] = value;
      }
      return { type, timings };
    }
    if (type === 'failed') return { type, error: parseError(message['error']) };
    if (type === 'state' && LINK_STATES.includes(message['state'] as LinkState)) {
      return { type, state: message['state'] as LinkState };
    }
    if (type === 'egress') {
      const question = parseEgressQuestion(message);
      if (question) return question;
    }
    if (type === 'egress-by') {
      const origin = parseEgressOrigin(message);
      if (origin) return origin;
    }
    if (type === 'detect') {
      const detect = parseDetect(message);
      if (detect) return detect;
    }
    if (type === 'audit-lost') {
      const loss = parseAuditLoss(message['loss']);
      if (loss) return { type, loss };
    }
    if (type === 'audit-recovered') {
      const report = parseAuditReport(message['report']);
      if (report) return { type, report };
    }
    if (type === 'step') {
      const progress = parseStepProgress(message);
      if (progress) return progress;
    }
    if (type === 'job-done' && isObject(message['result'])) {
      const { outcome, exitCode, error } = message['result'];
      const { audit } = message;
      const report = audit === undefined ? undefined : parseAuditReport(audit);
      const isAudit = audit === undefined || report !== undefined;
      if (
        isAudit &&
        typeof outcome === 'string' &&
        OUTCOMES.includes(outcome) &&
        Number.isInteger(exitCode)
      ) {
        const result = {
          outcome: outcome as JobOutcome,
          exitCode: exitCode as number,
          ...(error === undefined ? {} : { error: parseError(error) }),
        };
        return { type, result, ...(report ? { audit: report } : {}) };
      }
    }
  }
  throw new CtError('LINK_DIED', 'the link process of the VM sent something malformed');
}

function parseDetect(message: Record<string, unknown>): LinkDetect | undefined {
  const { missed, clockOffsetMs } = message;
  const batch = parseBatch(message['batch']);
  if (!batch || !Number.isSafeInteger(clockOffsetMs)) return undefined;
  if (!Number.isSafeInteger(missed) || (missed as number) < 0) return undefined;
  return { type: 'detect', batch, missed: missed as number, clockOffsetMs: clockOffsetMs as number };
}

function parseStepProgress(message: Record<string, unknown>): LinkProgress | undefined {
  const { step, state, exitCode, durationMs } = message;
  const isStep = Number.isInteger(step) && (step as number) >= 0 && (step as number) < MAX_STEPS;
  if (!isStep || !STEP_STATES.includes(state)) return undefined;
  if (exitCode !== undefined && (!Number.isInteger(exitCode) || Math.abs(exitCode as number) > 0xffff)) {
    return undefined;
  }
  if (durationMs !== undefined && !(Number.isFinite(durationMs) && (durationMs as number) >= 0)) {
    return undefined;
  }
  return {
    type: 'step',
    step: step as number,
    state: state as 'running' | StepOutcome,
    ...(exitCode === undefined ? {} : { exitCode: exitCode as number }),
    ...(durationMs === undefined ? {} : { durationMs: durationMs as number }),
  };
}

function parseError(value: unknown): ErrorReport {
  if (!isObject(value) || typeof value['code'] !== 'string' || !Object.hasOwn(ERROR_CODES, value['code'])) {
    return { code: 'INTERNAL', message: 'the link process reported a malformed error' };
  }
  const text = (name: string): string => String(value[name]).slice(0, MAX_TEXT_CHARACTERS);
  const report = { code: value['code'] as ErrorCode, message: text('message') };
  return value['hint'] === undefined ? report : { ...report, hint: text('hint') };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}
