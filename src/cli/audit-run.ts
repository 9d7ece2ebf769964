/** The audit record of a run, with what the daemon knows about the run: for `ct audit export`, `show`, `query` and `diff`. */
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { auditDirectory } from '../audit/places.ts';
import { type AuditFilter, type AuditKind, guestClockOffsetNs, readAudit } from '../audit/reader.ts';
import type { AuditEvent } from '../audit/records.ts';
import { isRunId } from '../audit/segment-format.ts';
import { type NameOf, namesInOrder } from '../audit/timeline/destinations.ts';
import type { StepTime } from '../audit/timeline/report.ts';
import { CtError } from '../core/errors.ts';
import { ctHomePath } from '../core/paths.ts';
import type { HostClient, RunDetail } from '../host/client.ts';
import { readRunLog } from '../job/run-log.ts';
import { type EgressEntry, type Refusal, readDecisions, refusalsOf } from './decisions.ts';
import { anyHost } from './host.ts';

/** All but system calls: blocks of those are not even read. */
export const PROCESS_KINDS: ReadonlySet<AuditKind> = new Set([
  'fork',
  'exec',
  'exit',
  'connect',
  'denied',
  'file',
]);

/** A follower looks at the record more often than it asks the daemon whether that can grow. */
const ASK_MS = 500;
const WAIT_MS = 100;

export interface AuditRun {
  readonly run: string;
  /** Absent if the daemon does not know the run any more. */
  readonly job?: string;
  /** Nanoseconds since 1970 when the guest's clock was 0. */
  readonly clockOffsetNs: bigint;
  readonly nameOf: NameOf;
  readonly steps: readonly (StepTime & { readonly outcome?: string })[];
  /** What policy refused, or would have. */
  readonly refusals: readonly Refusal[];
  events(filter?: AuditFilter): AsyncIterable<AuditEvent>;
}

/**
 * Opens the record of a run; with `follow`, its events go on until the run ends. A run that is on disk needs no daemon that
 * knows it: then steps and names are missing. Throws AUDIT_NOT_FOUND and what {@link readAudit} throws.
 */
export async function openAuditRun(
  reference: string,
  { follow = false }: { readonly follow?: boolean } = {},
): Promise<AuditRun> {
  const ctHome = ctHomePath();
  const known = await find(ctHome, reference);
  const run = known?.detail.run ?? reference;
  const directory = auditDirectory(ctHome, run);
  if (!existsSync(directory)) {
    throw new CtError('AUDIT_NOT_FOUND', `there is no audit record of the run ${run}`, {
      hint: 'records are kept as long as their runs; `ct ps -a` lists those',
    });
  }
  const ended = follow && known ? follower(known.host, run) : () => true;
  const clockOffsetNs = await clockOf(directory, ended);
  return {
    run,
    clockOffsetNs,
    ...(known ? await factsOf(known, clockOffsetNs) : { nameOf: () => undefined, steps: [], refusals: [] }),
    events: (filter) => readAudit(directory, filter, ended),
  };
}

interface Known {
  readonly host: HostClient;
  readonly detail: RunDetail;
}

async function find(ctHome: string, reference: string): Promise<Known | undefined> {
  const host = await anyHost();
  try {
    return { host, detail: await host.run(reference) };
  } catch (error) {
    const isOnDisk = isRunId(reference) && existsSync(auditDirectory(ctHome, reference));
    if (isOnDisk && error instanceof CtError && error.code === 'RUN_NOT_FOUND') return undefined;
    throw error;
  }
}

function follower(host: HostClient, run: string): () => Promise<boolean> {
  let askedAt = Number.NEGATIVE_INFINITY;
  return async () => {
    if (performance.now() - askedAt < ASK_MS) return false;
    askedAt = performance.now();
    return (await host.run(run)).state === 'ended';
  };
}

/** A run that has just begun has no record to tell its clock by; one that ended without any needs none. */
async function clockOf(directory: string, ended: () => boolean | Promise<boolean>): Promise<bigint> {
  for (;;) {
    const isLast = await ended();
    const offset = await guestClockOffsetNs(directory);
    if (offset !== undefined) return offset;
    if (isLast) return 0n;
    await sleep(WAIT_MS);
  }
}

async function factsOf(
  { host, detail }: Known,
  clockOffsetNs: bigint,
): Promise<Pick<AuditRun, 'job' | 'nameOf' | 'steps' | 'refusals'>> {
  const log = readDecisions(await host.decisions(detail.run));
  return {
    job: detail.job,
    nameOf: namesInOrder(toldNames(log.egress)),
    steps: await stepTimes(detail, clockOffsetNs),
    refusals: refusalsOf(log),
  };
}

/** Names that the run was told an address of, in order. */
function toldNames(entries: readonly EgressEntry[]): string[] {
  return entries.flatMap(({ input: { request }, decision }) => {
    const isTold = request.kind === 'dns' && (request.type === 'A' || request.type === 'AAAA');
    return isTold && decision.action === 'allow' ? [request.name] : [];
  });
}

async function stepTimes({ logDirectory }: RunDetail, clockOffsetNs: bigint): Promise<AuditRun['steps']> {
  const guestNs = (ms: number): bigint => BigInt(ms) * 1_000_000n - clockOffsetNs;
  const steps = new Map<number, AuditRun['steps'][number]>();
  try {
    for await (const entry of readRunLog(logDirectory)) {
      if (entry.type !== 'event') continue;
      const { event, timeMs } = entry;
      if (event.type === 'step-start') {
        steps.set(event.step, { name: event.name, startNs: guestNs(timeMs) });
      } else if (event.type === 'step-end') {
        const step = steps.get(event.step);
        if (step) steps.set(event.step, { ...step, endNs: guestNs(timeMs), outcome: event.outcome });
      }
    }
  } catch (error) {
    // The log is that of the link process; a damaged one says less, and the record stands without it.
    if (!(error instanceof CtError) || error.code !== 'RUN_LOG_UNREADABLE') throw error;
  }
  return [...steps.values()];
}
