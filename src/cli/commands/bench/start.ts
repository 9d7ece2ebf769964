/** `ct bench start`. */
import { cpus } from 'node:os';
import { ctHomePath } from '../../../core/paths.ts';
import type { Distribution, StartFigures } from '../../../host/bench-start.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import type { Bar, BarPlot } from '../../render/bar-plot.ts';
import { formatTable } from '../../render/table.ts';
import {
  acceleratorName,
  countRuns,
  P50_AND_P95,
  plotFacts,
  readCount,
  readPlotTarget,
  statusLine,
} from './shared.ts';

const DEFAULT_RUNS = 20;
const MAX_RUNS = 1000;
const DEFAULT_IMAGE = 'debian-12';
/** As small as jobs come: what is measured is the machinery, not the guest's memory. */
const SHAPE = { cpus: 1, memoryMib: 512, volumeMib: 10_240 };

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const runs = readCount(parsed, 'runs', DEFAULT_RUNS, MAX_RUNS);
  const plot = readPlotTarget(parsed);
  using cancellation = cancelOnSignals(output);
  const { signal } = cancellation;
  const ctHome = ctHomePath();
  const say = statusLine(output);
  const [{ ensureImage }, { benchStart }] = await Promise.all([
    import('../../images.ts'),
    import('../../../host/bench-start.ts'),
  ]);
  const image = await ensureImage(parsed.value('image') ?? DEFAULT_IMAGE, {
    ctHome,
    directory: process.cwd(),
    signal,
    onProgress: say,
  });
  const figures = await benchStart({
    ctHome,
    shape: { ...SHAPE, image },
    runs,
    versus: parsed.value('vs') === 'runc' ? 'runc' : undefined,
    signal,
    onProgress: (done, total, what) => say(`${done} of ${total}: ${what}`),
  });
  say('');
  plot?.write(startPlot(figures, { hostCpu: cpus()[0]?.model.trim() ?? 'unknown', date: new Date() }));
  output.write('stdout', parsed.has('json') ? `${JSON.stringify(figures)}\n` : render(figures));
  return 0;
}

function render(figures: StartFigures): string {
  const rows: (readonly [what: string, unit: string, figure: Distribution])[] = [
    ['warm claim → first instruction', 'ms', figures.warmClaimMs],
    ...(figures.runcMs ? [['runc run → first instruction', 'ms', figures.runcMs] as const] : []),
    ['`ct run -- true`', 'ms', figures.cliMs],
    ['image verified, for a run', 'ms', figures.imageMs],
    ['pool ready again', 'ms', figures.refillMs],
    ['cold boot', 'ms', figures.coldBootMs],
    ['restore → first instruction', 'ms', figures.restoreMs],
    ['… until it has its identity', 'ms', figures.claimMs],
    ['second process', 'ms', figures.secondExecMs],
    ['destroy', 'ms', figures.destroyMs],
    ['private memory of the VMM', 'MiB', figures.privateMib],
    ['private memory of the link', 'MiB', figures.linkPrivateMib],
  ];
  const accelerator = acceleratorName(figures.accelerator);
  const { cpus, memoryMib } = figures.shape;
  return [
    `${figures.vmm}, ${accelerator}, ${cpus} cpu, ${memoryMib} MiB, ${countRuns(figures.runs)}`,
    '',
    formatTable([
      ['', 'p50', 'p95', 'min', 'max', ''],
      ...rows.map(([what, unit, { p50, p95, min, max }]) => [
        what,
        ...[p50, p95, min, max].map(String),
        unit,
      ]),
    ]),
    ...(figures.warmVsRunc === undefined
      ? []
      : [`a warm VM takes ${figures.warmVsRunc} of the time of a container (${figures.runc})\n`]),
  ].join('\n');
}

/** Panels by magnitude: what a job waits for when it starts is a hundredth of a cold boot. */
function startPlot(figures: StartFigures, host: { readonly hostCpu: string; readonly date: Date }): BarPlot {
  const { shape, runcMs } = figures;
  const bar = (label: string, figure: Distribution, series = 0): Bar => ({
    label,
    value: figure.p50,
    high: figure.p95,
    series,
  });
  return {
    title: 'From nothing to a VM, and back',
    facts: [
      ...plotFacts({ ...figures, hostCpu: host.hostCpu, date: host.date.toISOString().slice(0, 10) }),
      `${shape.cpus} cpu, ${shape.memoryMib} MiB, ${countRuns(figures.runs)}${figures.runc === undefined ? '' : `, ${figures.runc}`}`,
    ],
    series: runcMs ? ['microVM', 'container'] : ['microVM'],
    key: P50_AND_P95,
    panels: [
      {
        title: 'To the first instruction of a program',
        unit: 'ms',
        bars: [
          bar('claim of a warm VM', figures.warmClaimMs),
          ...(runcMs ? [bar('runc run', runcMs, 1)] : []),
          bar('clone restored from its template', figures.restoreMs),
        ],
      },
      {
        title: 'Around it',
        unit: 'ms',
        bars: [
          bar('second process in the same VM', figures.secondExecMs),
          bar('destroy', figures.destroyMs),
          bar('ct run -- true, the whole command', figures.cliMs),
        ],
      },
      {
        title: 'In the background',
        unit: 'ms',
        bars: [bar('the next warm VM is ready', figures.refillMs), bar('cold boot', figures.coldBootMs)],
      },
      {
        title: 'Private memory of an idle VM',
        unit: 'MiB',
        bars: [bar('VMM', figures.privateMib), bar('link process', figures.linkPrivateMib)],
      },
    ],
  };
}
