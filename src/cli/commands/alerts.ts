/** `ct alerts`: what was filed, from the file that the host daemon writes; it need not run. */
import type { Alert } from '../../audit/alert.ts';
import { alertDirectory, readAlerts } from '../../audit/alert-file.ts';
import { CtError } from '../../core/errors.ts';
import { ctHomePath } from '../../core/paths.ts';
import { parseDurationMs } from '../../job/quantity.ts';
import type { ParsedOptions } from '../command.ts';
import type { Output } from '../output.ts';
import { oneLine, type Style, styleFor } from '../render/format.ts';
import { localTime } from '../render/run-info.ts';
import { formatTable } from '../render/table.ts';

/** Of a table; the file has the rest. */
const MAX_LISTED = 10_000;

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const last = readLast(parsed);
  const isWanted = selection(parsed, Date.now(), await runOf(parsed.positionals[0]));
  const follow = parsed.has('follow') ? new AbortController() : undefined;
  if (follow) output.onBroken = () => follow.abort();
  const style = styleFor(output.isTty.stdout);
  const table: Alert[] = [];
  for await (const alert of readAlerts(alertDirectory(ctHomePath()), follow?.signal)) {
    if (!isWanted(alert)) continue;
    if (parsed.has('json') && last === undefined) await output.write('stdout', `${JSON.stringify(alert)}\n`);
    else if (follow) await output.write('stdout', alertLine(alert, style));
    else if (table.push(alert) > (last ?? MAX_LISTED)) table.shift();
    if (output.isBroken) return 0;
  }
  if (parsed.has('json')) {
    for (const alert of table) await output.write('stdout', `${JSON.stringify(alert)}\n`);
    return 0;
  }
  if (table.length > 0) output.write('stdout', alertTable(table));
  else if (!follow)
    output.write(
      'stderr',
      `no alert was filed${parsed.positionals[0] === undefined ? '' : ' for that run or job'}\n`,
    );
  return 0;
}

/** Throws USAGE. */
function readLast(parsed: ParsedOptions): number | undefined {
  const text = parsed.value('last');
  if (text === undefined) return undefined;
  const last = Number(text);
  if (!Number.isInteger(last) || last < 1 || last > MAX_LISTED) {
    throw new CtError('USAGE', `--last cannot be \`${text}\``, {
      hint: `a whole number from 1 to ${MAX_LISTED}`,
    });
  }
  if (parsed.has('follow')) throw new CtError('USAGE', '--last and --follow exclude each other');
  return last;
}

/** `latest` is the newest run, with or without alerts, as it is for every other command. */
async function runOf(reference: string | undefined): Promise<string | undefined> {
  if (reference !== 'latest') return reference;
  const { anyHost } = await import('../host.ts');
  return (await (await anyHost()).run('latest')).run;
}

/** Throws USAGE. */
function selection(
  parsed: ParsedOptions,
  nowMs: number,
  reference: string | undefined,
): (alert: Alert) => boolean {
  const since = parsed.value('since');
  const sinceMs = since === undefined ? undefined : startOf(since, nowMs);
  return ({ time, run: { id, job } }) => {
    if (sinceMs !== undefined && !(Date.parse(time) >= sinceMs)) return false;
    if (reference === undefined) return true;
    return job === reference || id.startsWith(reference) || id.endsWith(reference);
  };
}

function startOf(since: string, nowMs: number): number {
  const ago = parseDurationMs(since);
  const startMs = ago === undefined ? Date.parse(since) : nowMs - ago;
  if (!Number.isNaN(startMs)) return startMs;
  throw new CtError('USAGE', `--since cannot be \`${since}\``, {
    hint: 'write how long ago, such as 30m or 2d, or a time, such as 2026-01-31T09:00:00Z',
  });
}

function alertTable(alerts: readonly Alert[]): string {
  return formatTable([
    ['TIME', 'SEVERITY', 'ACTION', 'RUN', 'JOB', 'COUNT', 'RULE', 'WHAT'],
    ...alerts.map(({ time, severity, action, run, count, rule, title }) => [
      localTime(Date.parse(time)),
      severity,
      action,
      run.id,
      run.job,
      String(count),
      rule,
      title,
    ]),
  ]);
}

function alertLine({ time, severity, action, run, rule, title }: Alert, style: Style): string {
  const loud = severity === 'high' || severity === 'critical' ? style.red : style.yellow;
  const where = oneLine(`${run.job} (${run.id})`);
  return `${localTime(Date.parse(time))} ${loud(severity)} ${action} ${where}: ${oneLine(title)} (rule ${oneLine(rule)})\n`;
}
