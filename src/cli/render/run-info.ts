/** Runs as `ct ps` and `ct inspect` show them. Pure. */
import type { ErrorCode } from '../../core/errors.ts';
import type { RunAuditInfo, RunDetail, RunInfo } from '../../host/client.ts';
import { formatElapsed, formatError, oneLine, type Style } from './format.ts';
import { formatTable } from './table.ts';

/** Keys of a run in JSON, as docs/runs.md lists them; null is what is not known, or not yet. */
export interface RunJson {
  readonly run: string;
  readonly job: string;
  readonly state: RunInfo['state'];
  readonly outcome: RunInfo['outcome'] | null;
  readonly exit: number | null;
  readonly error: ErrorCode | null;
  readonly image: string;
  /** ISO 8601, UTC. */
  readonly started: string;
  readonly ended: string | null;
  /** In seconds; of a run that is under way, until now. */
  readonly duration: number | null;
}

export function runJson(run: RunInfo, nowMs: number): RunJson {
  const hasEnded = run.state === 'ended';
  const durationMs = hasEnded ? run.durationMs : nowMs - run.createdAtMs;
  return {
    run: run.run,
    job: run.job,
    state: run.state,
    outcome: run.outcome ?? null,
    exit: run.exitCode ?? null,
    error: run.error?.code ?? null,
    image: run.image.name ?? run.image.digest,
    started: new Date(run.createdAtMs).toISOString(),
    // Nobody saw when a run ended whose duration is not known.
    ended: hasEnded && run.durationMs !== undefined ? new Date(run.stateSinceMs).toISOString() : null,
    duration: durationMs === undefined ? null : durationMs / 1000,
  };
}

export function runTable(runs: readonly RunInfo[], nowMs: number): string {
  return formatTable([
    ['RUN', 'JOB', 'STATE', 'EXIT', 'STARTED', 'DURATION', 'IMAGE'],
    ...runs.map((run) => {
      const { duration } = runJson(run, nowMs);
      return [
        run.run,
        run.job,
        run.outcome ?? run.state,
        run.exitCode === undefined ? '' : String(run.exitCode),
        localTime(run.createdAtMs),
        duration === null ? '' : formatElapsed(duration * 1000),
        run.image.name ?? run.image.digest.slice(0, 19),
      ];
    }),
  ]);
}

/** The document of `ct inspect --json`. */
export function inspectJson(detail: RunDetail, nowMs: number): Record<string, unknown> {
  const { image, shape, error, vm, steps, shells = [], statesMs, audit, destruction, logDirectory } = detail;
  return {
    version: 1,
    ...runJson(detail, nowMs),
    image,
    imageStanding: detail.imageStanding ?? null,
    shape,
    error: error ?? null,
    vm: vm ?? null,
    steps,
    shells: shells.map(({ openedAtMs, uid }) => ({ opened: new Date(openedAtMs).toISOString(), uid })),
    statesMs,
    audit: audit ?? null,
    destruction: destruction ?? null,
    log: logDirectory,
  };
}

/** The page of `ct inspect`. */
export function inspectPage(detail: RunDetail, style: Style, nowMs: number): string {
  const { duration } = runJson(detail, nowMs);
  const { shape, vm, destruction } = detail;
  const rows: [string, string][] = [
    ['run', detail.run],
    ['job', detail.job],
    ['state', detail.outcome === undefined ? detail.state : `${detail.state}, ${detail.outcome}`],
    ['exit code', detail.exitCode === undefined ? '' : String(detail.exitCode)],
    ['started', localTime(detail.createdAtMs)],
    ['duration', duration === null ? '' : formatElapsed(duration * 1000)],
    ['image', [detail.image.name, detail.image.digest].filter((part) => part !== undefined).join(' ')],
    ['  policy', detail.imageStanding ? standingText(detail.imageStanding) : ''],
    ['shape', `${shape.cpus} cpu, ${shape.memoryMib} MiB memory, ${shape.diskMib} MiB disk`],
    [
      'vm',
      vm
        ? `${vm.vmm} (process ${vm.pid}), ${vm.accelerator}, ${vm.source} in ${formatElapsed(vm.claimMs)}`
        : '',
    ],
    ...Object.entries(detail.statesMs).map(([state, ms]): [string, string] => [
      `  ${state}`,
      formatElapsed(ms),
    ]),
    ...detail.steps.map((step, index): [string, string] => {
      const exit = step.exitCode === undefined ? '' : `, exit code ${step.exitCode}`;
      const took = step.durationMs === undefined ? '' : `, ${formatElapsed(step.durationMs)}`;
      return [`step ${index + 1}`, `${step.name}: ${step.state}${exit}${took}`];
    }),
    ...(detail.shells ?? []).map(({ openedAtMs, uid }): [string, string] => [
      'shell',
      `opened ${localTime(openedAtMs)} by user ${uid}`,
    ]),
    ['record', detail.audit ? auditText(detail.audit) : ''],
    ['destroyed', destruction ? `in ${formatElapsed(destruction.durationMs)}` : ''],
    ...(destruction?.removed ?? []).map(({ what, proof }): [string, string] => [`  ${what}`, proof]),
    ['log', detail.logDirectory],
  ];
  const shown = rows.filter(([, value]) => value !== '');
  const width = Math.max(...shown.map(([name]) => name.length));
  const lines = shown.map(([name, value]) => `${name.padEnd(width)}  ${oneLine(value)}\n`).join('');
  return detail.error === undefined ? lines : `${lines}${formatError(detail.error, style)}`;
}

function standingText({ made, signers, policy, allowed }: NonNullable<RunDetail['imageStanding']>): string {
  const where = made === 'elsewhere' ? 'from elsewhere' : `${made} on this machine`;
  const who = signers.length === 0 ? 'no accepted signature' : `signed by ${signers.join(', ')}`;
  return `${allowed ? 'let in' : 'refused'} by ${policy.slice(0, 12)}: ${where}, ${who}`;
}

function auditText({ mode, state, records, bytes, head, message }: RunAuditInfo): string {
  if (state === 'off') return 'none, as policy wants';
  const size = bytes === undefined ? '' : `, ${records} records in ${Math.ceil(bytes / 1024)} KiB`;
  const sealed = head === undefined ? '' : `, head ${head}`;
  return `${state} (audit: ${mode})${size}${sealed}${message === undefined ? '' : `: ${message}`}`;
}

/** `2026-01-31 09:05:07`, in the time zone of the user. */
export function localTime(ms: number): string {
  const date = new Date(ms);
  const pad = (value: number): string => String(value).padStart(2, '0');
  const day = [date.getFullYear(), pad(date.getMonth() + 1), pad(date.getDate())].join('-');
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(pad).join(':')}`;
}
