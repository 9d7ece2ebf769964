/** `ct bench start`. */
import { ctHomePath } from '../../../core/paths.ts';
import type { Distribution, StartFigures } from '../../../host/bench-start.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { formatTable } from '../../render/table.ts';
import { readCount, statusLine } from './shared.ts';

const DEFAULT_RUNS = 20;
const MAX_RUNS = 1000;
const DEFAULT_IMAGE = 'debian-12';
/** As small as jobs come: what is measured is the machinery, not the guest's memory. */
const SHAPE = { cpus: 1, memoryMib: 512, volumeMib: 10_240 };

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const runs = readCount(parsed, 'runs', DEFAULT_RUNS, MAX_RUNS);
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
  output.write('stdout', parsed.has('json') ? `${JSON.stringify(figures)}\n` : render(figures));
  return 0;
}

function render(figures: StartFigures): string {
  const rows: (readonly [what: string, unit: string, figure: Distribution])[] = [
    ['warm claim → first instruction', 'ms', figures.warmClaimMs],
    ...(figures.runcMs ? [['runc run → first instruction', 'ms', figures.runcMs] as const] : []),
    ['`ct run -- true`', 'ms', figures.cliMs],
    ['pool ready again', 'ms', figures.refillMs],
    ['cold boot', 'ms', figures.coldBootMs],
    ['restore → first instruction', 'ms', figures.restoreMs],
    ['… until it has its identity', 'ms', figures.claimMs],
    ['second process', 'ms', figures.secondExecMs],
    ['destroy', 'ms', figures.destroyMs],
    ['private memory of the VMM', 'MiB', figures.privateMib],
    ['private memory of the link', 'MiB', figures.linkPrivateMib],
  ];
  const accelerator = figures.accelerator === 'tcg' ? 'software emulation (TCG)' : 'KVM';
  const { cpus, memoryMib } = figures.shape;
  return [
    `${figures.vmm}, ${accelerator}, ${cpus} cpu, ${memoryMib} MiB, ${figures.runs} runs`,
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
