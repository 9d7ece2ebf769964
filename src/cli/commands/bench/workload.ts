/** `ct bench workload`. */
import { CtError } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { didYouMean } from '../../../core/suggest.ts';
import type { Workload } from '../../../host/bench-workload.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { readCount, readPlotTarget, statusLine } from './shared.ts';
import { renderWorkloads, workloadPlot } from './workload-figures.ts';

const DEFAULT_RUNS = 5;
const MAX_RUNS = 1000;
const DEFAULT_IMAGES: Readonly<Record<Workload, string>> = {
  compile: 'debian-12',
  clone: 'debian-12',
  disk: 'debian-12',
  npm: 'node',
};
/** One cpu: on two, what one of them waits for would be hidden by the other. */
const SHAPE = { cpus: 1, memoryMib: 1024, diskMib: 10_240 };

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const runs = readCount(parsed, 'runs', DEFAULT_RUNS, MAX_RUNS);
  const plot = readPlotTarget(parsed);
  using cancellation = cancelOnSignals(output);
  const { signal } = cancellation;
  const ctHome = ctHomePath();
  const say = statusLine(output);
  const [{ ensureImage }, { benchWorkload, WORKLOADS }] = await Promise.all([
    import('../../images.ts'),
    import('../../../host/bench-workload.ts'),
  ]);
  const workloads = readWorkloads(parsed.positionals, WORKLOADS);
  const images: Partial<Record<Workload, string>> = {};
  for (const workload of workloads) {
    images[workload] = await ensureImage(parsed.value('image') ?? DEFAULT_IMAGES[workload], {
      ctHome,
      directory: process.cwd(),
      signal,
      onProgress: say,
    });
  }
  const figures = await benchWorkload({
    ctHome,
    images,
    ...SHAPE,
    workloads,
    runs,
    versus: parsed.value('vs') === 'runc' ? 'runc' : undefined,
    signal,
    onProgress: (done, total, what) => say(`${done} of ${total}: ${what}`),
  });
  say('');
  plot?.write(workloadPlot(figures));
  output.write('stdout', parsed.has('json') ? `${JSON.stringify(figures)}\n` : renderWorkloads(figures));
  return 0;
}

/** Those that are named, each once, in the order they have everywhere; all if none is named. Throws USAGE. */
function readWorkloads(names: readonly string[], all: readonly Workload[]): readonly Workload[] {
  const unknown = names.find((name) => !all.some((workload) => workload === name));
  if (unknown !== undefined) {
    throw new CtError('USAGE', `there is no workload \`${unknown}\``, {
      hint: didYouMean(unknown, all) ?? `it is one of: ${all.join(', ')}`,
    });
  }
  return names.length === 0 ? all : all.filter((workload) => names.includes(workload));
}
