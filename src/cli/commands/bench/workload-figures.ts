/** What `ct bench workload` shows: as a table and as a plot. Pure. */
import type { SideFigures, Workload, WorkloadFigures, WorkloadResult } from '../../../host/bench-workload.ts';
import type { Bar, BarPlot } from '../../render/bar-plot.ts';
import { formatTable } from '../../render/table.ts';
import { acceleratorName, busyNote, countRuns, P50_AND_P95, plotFacts } from './shared.ts';

const NAMES: Readonly<Record<Workload, string>> = {
  compile: 'compile a C project',
  clone: 'git clone',
  disk: 'write, sync, read back',
  npm: 'npm ci && npm test',
};

const EMULATION_NOTE =
  'Under software emulation every instruction of the guest is translated: these ratios say nothing about KVM.\n';

/** Names of the images, each once. */
function images(figures: WorkloadFigures): string {
  return [...new Set(entries(figures).map(([, { image }]) => image))].join(' and ');
}

function entries(figures: WorkloadFigures): [Workload, WorkloadResult][] {
  return Object.entries(figures.workloads) as [Workload, WorkloadResult][];
}

export function renderWorkloads(figures: WorkloadFigures): string {
  const { shape, container, host } = figures;
  const accelerator = acceleratorName(figures.accelerator);
  const row = (name: string, what: string, { insideMs, wholeMs }: SideFigures): string[] => [
    name,
    what,
    ...[insideMs.p50, insideMs.p95, wholeMs.p50, wholeMs.p95].map(String),
  ];
  const rows = entries(figures).flatMap(([workload, result]) => [
    row(NAMES[workload], 'microVM', result.vm),
    ...(result.runc
      ? [
          row('', 'container', result.runc),
          ['', 'ratio of p50', String(result.insideRatio), '', String(result.wholeRatio), ''],
        ]
      : []),
  ]);
  return [
    `${figures.vmm}, ${accelerator}, ${images(figures)}, ${shape.cpus} cpu, ${shape.memoryMib} MiB, ${countRuns(figures.runs)}\n`,
    ...(container ? [`${describeContainer(figures)}\n`] : []),
    '\n',
    formatTable([['', '', 'inside p50', 'p95', 'whole p50', 'p95'], ...rows]),
    '\nMilliseconds. Inside: the workload alone. Whole: from a directory here to everything gone again.\n',
    ...(container ? [`Ratios: microVM by container, under ${accelerator}.\n`] : []),
    ...(figures.accelerator === 'tcg' ? [EMULATION_NOTE] : []),
    busyNote(host),
  ].join('');
}

function describeContainer({ container }: WorkloadFigures): string {
  if (!container) return '';
  const { runc, rootfs, uid, limited } = container;
  const same =
    rootfs === 'mounted'
      ? 'the same image, mounted'
      : 'the same image, extracted to a directory of this host';
  const limits = limited ? 'the same cpu and memory' : 'no limits of cpu and memory, which only root can set';
  return `${runc}: ${same}, user ${uid}, ${limits}`;
}

/** A panel per clock and workload: their times differ too much for one axis. */
export function workloadPlot(figures: WorkloadFigures): BarPlot {
  const { container, shape } = figures;
  const series = container ? ['microVM', 'container'] : ['microVM'];
  const bars = (result: WorkloadResult): Bar[] => {
    const sides = [result.vm, ...(result.runc ? [result.runc] : [])];
    return (['insideMs', 'wholeMs'] as const).flatMap((clock) =>
      sides.map((side, index) => ({
        label: `${clock === 'insideMs' ? 'inside' : 'whole'}, ${series[index]}`,
        value: side[clock].p50,
        high: side[clock].p95,
        series: index,
      })),
    );
  };
  return {
    title: container ? 'Workloads in a microVM and in a container' : 'Workloads in a microVM',
    facts: [
      ...plotFacts({ ...figures, hostCpu: figures.host.cpu, date: figures.startedAt.slice(0, 10) }),
      `${images(figures)}, ${shape.cpus} cpu, ${shape.memoryMib} MiB, ${countRuns(figures.runs)}${container ? `, ${container.runc}` : ''}`,
    ],
    series,
    key: P50_AND_P95,
    panels: entries(figures).map(([workload, result]) => ({
      title: NAMES[workload],
      unit: 'ms',
      ...ratioNote(result),
      bars: bars(result),
    })),
  };
}

function ratioNote({ insideRatio, wholeRatio }: WorkloadResult): { readonly note?: string } {
  if (insideRatio === undefined) return {};
  return { note: `microVM by container: ${insideRatio} inside, ${wholeRatio} whole` };
}
