/** What the benchmarks' commands have in common. */
import { accessSync, constants, statSync, writeFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { CtError, messageOf } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import type { JobsFigures } from '../../../host/bench-jobs.ts';
import type { Accelerator } from '../../../protocol/run.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { type BarPlot, renderBarPlot } from '../../render/bar-plot.ts';
import { formatTable } from '../../render/table.ts';

const DEFAULT_IMAGE = 'debian-12';
const MAX_JOBS = 100_000;
const MAX_PARALLEL = 256;

/** A whole number from 1 to `max`. Throws USAGE. */
export function readCount(parsed: ParsedOptions, option: string, fallback: number, max: number): number {
  const text = parsed.value(option);
  if (text === undefined) return fallback;
  const count = Number(text);
  if (Number.isInteger(count) && count >= 1 && count <= max) return count;
  throw new CtError('USAGE', `--${option} cannot be \`${text}\``, {
    hint: `a whole number from 1 to ${max}`,
  });
}

/** Replaces one line on a terminal; says nothing elsewhere. */
export function statusLine(output: Output): (text: string) => void {
  return (text) => {
    if (output.isTty.stderr) output.write('stderr', `\r\u001b[K${text}`);
  };
}

const MAX_FIGURE_RUNS = 100;

interface FiguresOptions {
  readonly ctHome: string;
  /** Manifest digest. */
  readonly image: string;
  readonly runs: number;
  readonly signal: AbortSignal;
  readonly onProgress: (what: string) => void;
}

/** The commands that measure jobs in one image and print what they found. */
export async function runFigures<F>(
  parsed: ParsedOptions,
  output: Output,
  options: {
    readonly defaultRuns: number;
    readonly load: () => Promise<(options: FiguresOptions) => Promise<F>>;
    readonly render: (figures: F) => string;
  },
): Promise<number> {
  const runs = readCount(parsed, 'runs', options.defaultRuns, MAX_FIGURE_RUNS);
  using cancellation = cancelOnSignals(output);
  const { signal } = cancellation;
  const ctHome = ctHomePath();
  const onProgress = statusLine(output);
  const [{ ensureImage }, bench] = await Promise.all([import('../../images.ts'), options.load()]);
  const name = parsed.value('image') ?? DEFAULT_IMAGE;
  const image = await ensureImage(name, { ctHome, directory: process.cwd(), signal, onProgress });
  const figures = await bench({ ctHome, image, runs, signal, onProgress });
  onProgress('');
  output.write('stdout', parsed.has('json') ? `${JSON.stringify(figures)}\n` : options.render(figures));
  return 0;
}

export interface PlotTarget {
  write(plot: BarPlot): void;
}

/** Where --plot goes; undefined without it. Throws USAGE before anything is measured, not after. */
export function readPlotTarget(parsed: ParsedOptions): PlotTarget | undefined {
  const file = parsed.value('plot');
  if (file === undefined) return undefined;
  const refuse = (why: string, hint: string, cause?: unknown): never => {
    throw new CtError('USAGE', `--plot cannot be \`${file}\`: ${why}`, { hint, cause });
  };
  if (!file.endsWith('.svg')) refuse('plots are SVG files', 'a name that ends with .svg');
  const path = resolve(file);
  const directory = dirname(path);
  try {
    accessSync(directory, constants.W_OK | constants.X_OK);
  } catch (error) {
    refuse(
      `${directory} cannot be written`,
      'a file in a directory that exists and that you may write to',
      error,
    );
  }
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory())
    refuse('it is a directory', 'the name of a file');
  return {
    write: (plot) => {
      try {
        writeFileSync(path, renderBarPlot(plot));
      } catch (error) {
        refuse(messageOf(error), 'a file that you may write to', error);
      }
    },
  };
}

/** What the bars and lines of these plots are. */
export const P50_AND_P95 = 'bar and number: p50, line and small number: p95';

export function acceleratorName(accelerator: Accelerator): string {
  return accelerator === 'tcg' ? 'software emulation (TCG)' : 'KVM';
}

export function countRuns(runs: number): string {
  return runs === 1 ? '1 run' : `${runs} runs`;
}

/** Load above which figures are doubtful, per cpu. */
const BUSY_LOAD = 0.5;

/** A line, or nothing if the machine was quiet. */
export function busyNote({
  loadAtStart,
  cpus,
}: {
  readonly loadAtStart: number;
  readonly cpus: number;
}): string {
  if (loadAtStart <= BUSY_LOAD * cpus) return '';
  return `This machine was busy before the first run (load ${loadAtStart}): repeat it on a quiet one.\n`;
}

/** The lines below a plot's title: whose figures these are. */
export function plotFacts(of: {
  readonly vmm: string;
  readonly accelerator: Accelerator;
  readonly date: string;
  readonly hostCpu: string;
}): string[] {
  return [
    `${of.vmm}, ${acceleratorName(of.accelerator)}, ${of.hostCpu}, ${of.date}`,
    ...(of.accelerator === 'tcg' ? ['Emulated: neither times nor ratios say anything about KVM'] : []),
  ];
}

/** `ct bench jobs` and, with `killEveryMs`, `ct bench chaos`. */
export async function runJobsBench(
  parsed: ParsedOptions,
  output: Output,
  killEveryMs: number | undefined,
): Promise<number> {
  const jobs = readCount(parsed, 'jobs', 100, MAX_JOBS);
  const parallel = readCount(parsed, 'parallel', 4, MAX_PARALLEL);
  using cancellation = cancelOnSignals(output);
  const { signal } = cancellation;
  const ctHome = ctHomePath();
  const say = statusLine(output);
  const [{ ensureImage }, { benchJobs }] = await Promise.all([
    import('../../images.ts'),
    import('../../../host/bench-jobs.ts'),
  ]);
  const image = parsed.value('image') ?? DEFAULT_IMAGE;
  await ensureImage(image, { ctHome, directory: process.cwd(), signal, onProgress: say });
  const figures = await benchJobs({
    ctHome,
    image,
    jobs,
    parallel,
    signal,
    ...(killEveryMs === undefined ? {} : { killEveryMs }),
    onProgress: (done, total, what) => say(`${done} of ${total}: ${what}`),
  });
  say('');
  output.write('stdout', parsed.has('json') ? `${JSON.stringify(figures)}\n` : render(figures));
  const left = Object.values(figures.leftovers).reduce((sum, count) => sum + count, 0);
  return left === 0 && figures.untruthful.length === 0 ? 0 : 1;
}

function render(figures: JobsFigures): string {
  const pairs = (counts: Readonly<Record<string, number>>): string =>
    Object.entries(counts)
      .map(([name, count]) => `${name} ${count}`)
      .join(', ');
  const { commandMs, daemonRssMib } = figures;
  return [
    formatTable([
      ['jobs', `${figures.jobs}, ${figures.parallel} at a time`],
      ['jobs per second', String(figures.jobsPerSecond)],
      ['a command, ms', `p50 ${commandMs.p50}, p95 ${commandMs.p95}, max ${commandMs.max}`],
      ['outcomes', pairs(figures.outcomes)],
      ['killed', pairs(figures.kills)],
      ['left', pairs({ ...figures.leftovers })],
      ['untrue', String(figures.untruthful.length)],
      ['memory of the daemon, MiB', `${daemonRssMib.early} early, ${daemonRssMib.end} in the end`],
    ]),
    ...figures.untruthful.map((line) => `  ${line}\n`),
  ].join('');
}
