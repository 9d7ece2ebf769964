/**
 * `ct bench start`: how long a VM takes to appear and to vanish, and what it costs. Runs machines of its own, beside the
 * daemon's, so that nothing else is in the figures.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { ImageStore } from '../image/store.ts';
import type { Accelerator } from '../protocol/run.ts';
import type { MachineShape } from '../vmm/driver.ts';
import { Machines } from './machines.ts';

export interface Distribution {
  readonly p50: number;
  readonly p95: number;
  readonly min: number;
  readonly max: number;
}

export interface StartFigures {
  readonly runs: number;
  readonly accelerator: Accelerator;
  readonly vmm: string;
  readonly shape: { readonly cpus: number; readonly memoryMib: number };
  /** Start of the VMM → guest agent has a session and its identity. */
  readonly coldBootMs: Distribution;
  /** Claim without a pool → first byte of a tiny static program has arrived on the host. */
  readonly restoreMs: Distribution;
  /** The part of it until the clone has its identity and its volume. */
  readonly claimMs: Distribution;
  /** The same program again in the same clone. */
  readonly secondExecMs: Distribution;
  /** Kill → VMM and link process are gone. */
  readonly destroyMs: Distribution;
  /** Memory of the idle VMM process that it shares with nobody. */
  readonly privateMib: Distribution;
  /** The same of its link process. */
  readonly linkPrivateMib: Distribution;
}

export interface BenchStartOptions {
  readonly ctHome: string;
  readonly shape: MachineShape;
  readonly runs: number;
  readonly onProgress: (done: number, total: number, what: string) => void;
  readonly signal: AbortSignal;
}

/** Throws what claiming a VM throws; nothing is left behind. */
export async function benchStart(options: BenchStartOptions): Promise<StartFigures> {
  await using cleanup = new AsyncDisposableStack();
  const { ctHome } = options;
  const scratchDirectory = mkdtempSync(join(ctHome, 'bench-'));
  cleanup.defer(() => rmSync(scratchDirectory, { recursive: true, force: true }));
  const machines = new Machines({ ctHome, images: new ImageStore(ctHome), scratchDirectory });
  cleanup.defer(() => machines.close());
  return await measure(machines, options);
}

async function measure(machines: Machines, options: BenchStartOptions): Promise<StartFigures> {
  const { shape, runs, onProgress, signal } = options;
  const total = 2 * runs;
  const samples = {
    coldBootMs: [] as number[],
    restoreMs: [] as number[],
    claimMs: [] as number[],
    secondExecMs: [] as number[],
    destroyMs: [] as number[],
    privateMib: [] as number[],
    linkPrivateMib: [] as number[],
  };
  onProgress(0, total, 'making the template');
  const first = await machines.claim(shape, () => {});
  await first.machine.destroy();
  const { driver } = first;

  for (let run = 0; run < runs; run++) {
    signal.throwIfAborted();
    onProgress(run, total, 'restoring clones');
    const startedAt = performance.now();
    const { machine, claimMs } = await machines.claim(shape, () => {});
    try {
      await machine.probe();
      samples.restoreMs.push(performance.now() - startedAt);
      samples.claimMs.push(claimMs);
      const secondAt = performance.now();
      await machine.probe();
      samples.secondExecMs.push(performance.now() - secondAt);
      samples.privateMib.push(privateMib(machine.vmPid));
      samples.linkPrivateMib.push(privateMib(machine.linkPid));
    } finally {
      samples.destroyMs.push(await timed(() => machine.destroy()));
    }
  }
  for (let run = 0; run < runs; run++) {
    signal.throwIfAborted();
    onProgress(runs + run, total, 'booting cold');
    const { machine, claimMs } = await machines.coldBoot(shape);
    samples.coldBootMs.push(claimMs);
    await machine.destroy();
  }
  onProgress(total, total, 'done');
  return {
    runs,
    accelerator: driver.accelerator,
    vmm: `${driver.name} ${driver.version}`,
    shape: { cpus: shape.cpus, memoryMib: shape.memoryMib },
    coldBootMs: distribution(samples.coldBootMs),
    restoreMs: distribution(samples.restoreMs),
    claimMs: distribution(samples.claimMs),
    secondExecMs: distribution(samples.secondExecMs),
    destroyMs: distribution(samples.destroyMs),
    privateMib: distribution(samples.privateMib),
    linkPrivateMib: distribution(samples.linkPrivateMib),
  };
}

async function timed(action: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await action();
  return performance.now() - startedAt;
}

/**
 * Private dirty pages (proc(5), smaps_rollup). Clean ones come from the template or from a file, which hold them anyway,
 * and count as private only while one clone runs.
 */
function privateMib(pid: number): number {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  let kib = 0;
  for (const match of text.matchAll(/^Private_Dirty:\s+(\d+) kB$/gm)) kib += Number(match[1]);
  return kib / 1024;
}

/** Nearest-rank percentiles, rounded to a tenth. */
export function distribution(samples: readonly number[]): Distribution {
  const sorted = samples.toSorted((a, b) => a - b);
  const at = (percent: number): number => {
    const value = sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)] ?? Number.NaN;
    return Math.round(value * 10) / 10;
  };
  return { p50: at(50), p95: at(95), min: at(0), max: at(100) };
}
