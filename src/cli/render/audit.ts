/** Audit records as `ct audit show`, `query` and `diff` print them. Pure; strings in them are the guest's. */

import { syscallName } from '../../audit/export/syscalls.ts';
import { type AuditEvent, exitCode, exitSignal } from '../../audit/records.ts';
import type { RunClock } from '../../audit/timeline/clock.ts';
import type { NameOf } from '../../audit/timeline/destinations.ts';
import { type Difference, isEmptyDiff, type ReportDiff } from '../../audit/timeline/diff.ts';
import type { Match } from '../../audit/timeline/query.ts';
import { childrenOf, nameOfNode, type ProcessNode, type Report } from '../../audit/timeline/report.ts';
import type { AuditRun } from '../audit-run.ts';
import { formatElapsed, oneLine, type Style } from './format.ts';

/** What is shown of a run besides its report. */
export type ShownRun = Pick<AuditRun, 'run' | 'job' | 'clockOffsetNs' | 'steps' | 'refusals'>;

/** Lines of the tree on a terminal; `--json` and `--html` have all. */
const MAX_TREE_LINES = 400;
const MAX_TREE_DEPTH = 40;
/** A compiler runs a thousand times: of children alike, so many are shown. */
const MAX_ALIKE = 4;
const MAX_LIST_LINES = 100;
const MAX_COMMAND_COLUMNS = 100;

export function elapsedMs(node: ProcessNode): number | undefined {
  return node.endNs === undefined ? undefined : Number(node.endNs - node.startNs) / 1e6;
}

/** `exit 1`, `signal 9`, or nothing where it went well. */
export function endText({ status }: ProcessNode): string {
  if (status === undefined) return 'did not end';
  const signal = exitSignal(status);
  if (signal !== undefined) return `signal ${signal}`;
  const code = exitCode(status);
  return code === 0 ? '' : `exit ${code}`;
}

/** A subshell or the like, of which there is nothing to say. */
export function isDull(node: ProcessNode, children: ReadonlyMap<number | undefined, unknown[]>): boolean {
  return node.origin === 'fork' && !children.has(node.id) && endText(node) === '';
}

// ------------------------------------------------------------------------------------------------------ show

export function reportText(run: ShownRun, report: Report, style: Style): string {
  const { processes, written, destinations, refused, omitted } = report;
  const job = run.job === undefined ? '' : `, job ${oneLine(run.job)}`;
  const elapsed = formatElapsed(Number(report.endNs - report.startNs) / 1e6);
  const by = (id: number | undefined): string => {
    const node = id === undefined ? undefined : processes[id];
    return node ? `  ${style.dim(`by ${oneLine(nameOfNode(node))} (${node.pid})`)}` : '';
  };
  const times = (count: number): string => (count > 1 ? `  ×${count}` : '');
  return [
    `run ${oneLine(run.run)}${job}: ${processes.length} processes in ${elapsed}\n`,
    section('steps', stepLines(run), style),
    section('processes', treeLines(run, processes, style), style),
    section(
      'files written outside of the workspace',
      written.map(
        ({ what, path, count, process }) =>
          `${what === 'write' ? '' : `${what} `}${oneLine(path)}${times(count)}${by(process)}`,
      ),
      style,
    ),
    section(
      'destinations',
      destinations.map(
        ({ host, port, count, refused, process }) =>
          `${oneLine(host)}:${port}${times(count)}${refused > 0 ? `  ${refused} failed` : ''}${by(process)}`,
      ),
      style,
    ),
    section(
      'refused in the VM',
      refused.map(
        ({ what, path, recordedOnly, digest, count, process }) =>
          `${recordedOnly ? `${style.yellow(what)} (only recorded)` : style.red(what)} ${oneLine(path)}${times(count)}${by(process)}${digest === undefined ? '' : `  ${style.dim(`sha256:${digest}`)}`}`,
      ),
      style,
    ),
    section('refused by policy', refusalLines(run, style), style),
    omitted.processes + omitted.entries > 0
      ? `\nnot shown, as there were too many: ${omitted.processes} processes, ${omitted.entries} other entries; \`ct audit export\` has them\n`
      : '',
  ].join('');
}

/** A name is asked for by its IPv4 and its IPv6 address: what reads the same is one line. */
function refusalLines({ refusals }: ShownRun, style: Style): string[] {
  const counts = new Map<string, { count: number; readonly rule: string }>();
  for (const { action, count, denial } of refusals) {
    const text = `${style.red(action)} ${oneLine(denial.message)}`;
    const known = counts.get(text);
    if (known) known.count += count;
    else counts.set(text, { count, rule: oneLine(denial.rule) });
  }
  return [...counts].map(
    ([text, { count, rule }]) => `${text}${count > 1 ? `  ×${count}` : ''}  ${style.dim(rule)}`,
  );
}

function section(title: string, lines: readonly string[], style: Style): string {
  if (lines.length === 0) return '';
  const more = lines.length - MAX_LIST_LINES;
  const shown = title === 'processes' || more <= 0 ? lines : lines.slice(0, MAX_LIST_LINES);
  const rest = shown.length < lines.length ? `  … and ${more} more; see --json\n` : '';
  return `\n${style.bold(title)}\n${shown.map((line) => `  ${line}\n`).join('')}${rest}`;
}

function stepLines({ steps }: ShownRun): string[] {
  return steps.map(({ name, startNs, endNs, outcome }, index) => {
    const elapsed = endNs === undefined ? '' : `  ${formatElapsed(Number(endNs - startNs) / 1e6)}`;
    return `${index + 1} ${oneLine(name)}${elapsed}${outcome === undefined ? '' : `  ${oneLine(outcome)}`}`;
  });
}

function treeLines({ steps }: ShownRun, nodes: readonly ProcessNode[], style: Style): string[] {
  const children = childrenOf(nodes);
  const lines: string[] = [];
  let left = nodes.length;
  const draw = (siblings: readonly ProcessNode[], indent: string, depth: number): void => {
    const shown = siblings.filter((node) => !isDull(node, children));
    const alike = new Map<string, number>();
    for (const [index, node] of shown.entries()) {
      if (lines.length >= MAX_TREE_LINES) return;
      const isLast = index === shown.length - 1;
      const name = nameOfNode(node);
      const seen = (alike.get(name) ?? 0) + 1;
      alike.set(name, seen);
      // One that failed, or did something else besides, is worth its line.
      if (seen > MAX_ALIKE && endText(node) === '') continue;
      const branch = depth === 0 ? '' : isLast ? '└─ ' : '├─ ';
      lines.push(`${indent}${branch}${nodeText(node, style)}`);
      left -= 1;
      const below = children.get(node.id) ?? [];
      if (depth < MAX_TREE_DEPTH)
        draw(below, depth === 0 ? '' : `${indent}${isLast ? '   ' : '│  '}`, depth + 1);
    }
    for (const [name, count] of alike) {
      if (count > MAX_ALIKE) lines.push(`${indent}   ${style.dim(`… ${count} × ${oneLine(name)} in all`)}`);
    }
  };
  let step: number | undefined;
  for (const root of children.get(undefined) ?? []) {
    if (root.step !== undefined && root.step !== step) {
      step = root.step;
      lines.push(style.dim(`step ${step + 1}: ${oneLine(steps[step]?.name ?? '')}`));
    }
    draw([root], '', 0);
  }
  if (lines.length >= MAX_TREE_LINES) lines.push(`… and some ${left} more; --html and --json have all`);
  return lines;
}

function nodeText(node: ProcessNode, style: Style): string {
  const command = oneLine(node.command === '' ? nameOfNode(node) : node.command);
  const cut = command.length > MAX_COMMAND_COLUMNS ? `${command.slice(0, MAX_COMMAND_COLUMNS)}…` : command;
  const ms = elapsedMs(node);
  const end = endText(node);
  const earlier = node.earlier.length > 0 ? ` (was ${node.earlier.map(oneLine).join(', ')})` : '';
  return [
    node.origin === 'unknown' ? style.yellow(`${cut} (its beginning is not known)`) : cut,
    style.dim(`${earlier}${ms === undefined ? '' : `  ${formatElapsed(ms)}`}`),
    end === '' ? '' : `  ${style.red(end)}`,
  ].join('');
}

/** The document of `ct audit show --json`, version 1. Times are seconds after `started`. */
export function reportJson(run: ShownRun, report: Report): object {
  const { startNs } = report;
  const seconds = (ns: bigint): number => Number(ns - startNs) / 1e9;
  const first = <E extends { readonly firstNs: bigint }>({ firstNs, ...entry }: E): object => ({
    ...entry,
    first: seconds(firstNs),
  });
  return {
    version: 1,
    run: run.run,
    job: run.job ?? null,
    started: new Date(Number((startNs + run.clockOffsetNs) / 1_000_000n)).toISOString(),
    duration: seconds(report.endNs),
    steps: run.steps.map(({ name, startNs: from, endNs, outcome }) => ({
      name,
      start: seconds(from),
      end: endNs === undefined ? null : seconds(endNs),
      outcome: outcome ?? null,
    })),
    processes: report.processes.map(({ startNs: from, endNs, status, ...node }) => ({
      ...node,
      start: seconds(from),
      end: endNs === undefined ? null : seconds(endNs),
      exit: status === undefined ? null : (exitCode(status) ?? null),
      signal: status === undefined ? null : (exitSignal(status) ?? null),
    })),
    programs: report.programs.map(first),
    written: report.written.map(first),
    destinations: report.destinations.map(first),
    refused: report.refused.map(first),
    policy: run.refusals,
    omitted: report.omitted,
  };
}

// ------------------------------------------------------------------------------------------------------ query

export function matchLine({ event, process }: Match, clock: RunClock, nameOf: NameOf, style: Style): string {
  const who = process && process.binary !== '' ? oneLine(process.binary) : 'unknown';
  const pid = process?.pid ?? (event.kind === 'syscall' ? event.thread : event.process.pid);
  const what = oneLine(eventText(event, nameOf));
  return `${style.dim(clock.text(event.timeNs))} ${style.bold(who)} (${pid}) ${what}\n`;
}

function eventText(event: AuditEvent, nameOf: NameOf): string {
  switch (event.kind) {
    case 'fork':
      return `forked ${event.child.pid}`;
    case 'exec':
      return `runs ${event.args.join(' ')}`;
    case 'exit':
      return `ended: ${exitText(event.status)}`;
    case 'connect':
      return `connects to ${nameOf(event.address) ?? event.address}:${event.port}${resultText(event.result)}`;
    case 'denied':
      return `${event.blocked ? 'was refused' : 'was recorded, and not refused'}: ${event.what} ${event.path}`;
    case 'file':
      return `${event.what} ${event.path}`;
    case 'syscall': {
      const name = syscallName(event.number, event.isCompat) ?? `call ${event.number}`;
      const args = event.args.map((value) => `0x${value.toString(16)}`).join(', ');
      return `${name}(${args})${event.isAtEntry ? '' : ` = ${event.result}`}`;
    }
  }
}

function exitText(status: number): string {
  const signal = exitSignal(status);
  return signal === undefined ? `exit ${exitCode(status) ?? 0}` : `signal ${signal}`;
}

function resultText(result: number): string {
  return result === 0 ? '' : ` = ${result}`;
}

// ------------------------------------------------------------------------------------------------------- diff

export function diffText(
  [earlier, later]: readonly [string, string],
  diff: ReportDiff,
  style: Style,
): string {
  const { programs, destinations, written, refused } = diff;
  const head = `run ${oneLine(later)} against run ${oneLine(earlier)}\n`;
  if (isEmptyDiff(diff)) return `${head}they ran, reached and wrote the same\n${incomplete(diff)}`;
  return [
    head,
    diffSection('programs', programs, style, ({ path, digest, was }) => {
      const known = digest === undefined ? '' : `  ${style.dim(`sha256:${digest.slice(0, 16)}`)}`;
      return `${oneLine(path)}${known}${was.length > 0 ? '  (another one at the same place)' : ''}`;
    }),
    diffSection('destinations', destinations, style, ({ host, port }) => `${oneLine(host)}:${port}`),
    diffSection(
      'files written outside of the workspace',
      written,
      style,
      ({ what, path }) => `${what === 'write' ? '' : `${what} `}${oneLine(path)}`,
    ),
    diffSection('refused in the VM', refused, style, ({ what, path }) => `${what} ${oneLine(path)}`),
    incomplete(diff),
  ].join('');
}

function diffSection<E>(
  title: string,
  { added, removed }: Difference<E>,
  style: Style,
  text: (entry: E) => string,
): string {
  if (added.length + removed.length === 0) return '';
  const lines = [
    ...added.map((entry) => `  ${style.red('+')} ${text(entry)}\n`),
    ...removed.map((entry) => `  ${style.dim('-')} ${text(entry)}\n`),
  ];
  return `\n${style.bold(title)}\n${lines.join('')}`;
}

function incomplete({ isIncomplete }: ReportDiff): string {
  return isIncomplete ? '\na run did more than can be compared: some of this may be in both\n' : '';
}

/** The document of `ct audit diff --json`, version 1. */
export function diffJson([earlier, later]: readonly [string, string], diff: ReportDiff): object {
  const { isIncomplete, ...differences } = diff;
  return { version: 1, earlier, later, ...differences, incomplete: isIncomplete };
}
