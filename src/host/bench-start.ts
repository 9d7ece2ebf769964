/**
 * `ct bench start`: how long a VM takes to appear and to vanish, and what it costs. Runs machines of its own, beside the
 * daemon's, so that nothing else is in the figures.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { CtError } from '../core/errors.ts';
import { installRoot } from '../core/install.ts';
import { PresetResolver } from '../egress/presets/index.ts';
import { ImageStore } from '../image/store.ts';
import type { Accelerator } from '../protocol/run.ts';
import type { MachineShape } from '../vmm/driver.ts';
import { privateKib } from './bench-machine.ts';
import { type RuncBench, runcBench } from './bench-runc.ts';
import { connectHost } from './client.ts';
import { type Distribution, distribution, ratio } from './distribution.ts';
import { ImageGate } from './image-gate.ts';
import { Machines } from './machines.ts';
import { PolicyKeeper } from './policy.ts';

export type { Distribution } from './distribution.ts';

export interface StartFigures {
  readonly runs: number;
  readonly accelerator: Accelerator;
  readonly vmm: string;
  readonly shape: { readonly cpus: number; readonly memoryMib: number };
  /** Start of the VMM → guest agent has a session and its identity. */
  readonly coldBootMs: Distribution;
  /** Claim of a warm VM → first byte of a tiny static program has arrived on the host. Each a VM of its own. */
  readonly warmClaimMs: Distribution;
  /** What policy is told of the image and says to it, for one run: parts, signatures and scan are as they were. */
  readonly imageMs: Distribution;
  /** Claim → the pool has the next one ready, its pause included. */
  readonly refillMs: Distribution;
  readonly poolSize: number;
  /** `ct run -- true`, the whole command, by a daemon that is up and has a warm VM. */
  readonly cliMs: Distribution;
  /** `runc run` → first byte of the same program, measured in turn with the warm claims; only with `--vs runc`. */
  readonly runcMs?: Distribution;
  /** p50 of warmClaimMs by p50 of runcMs. */
  readonly warmVsRunc?: number;
  readonly runc?: string;
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
  /** Measures containers, too. */
  readonly versus: 'runc' | undefined;
  readonly onProgress: (done: number, total: number, what: string) => void;
  readonly signal: AbortSignal;
}

/** Throws what claiming a VM throws; nothing is left behind. */
export async function benchStart(options: BenchStartOptions): Promise<StartFigures> {
  await using cleanup = new AsyncDisposableStack();
  const { ctHome } = options;
  const scratchDirectory = mkdtempSync(join(ctHome, 'bench-'));
  cleanup.defer(() => rmSync(scratchDirectory, { recursive: true, force: true }));
  const images = new ImageStore(ctHome);
  const make = (maxWarm: number): Machines => {
    const machines = new Machines({ ctHome, images, scratchDirectory, maxWarm });
    cleanup.defer(() => machines.close());
    return machines;
  };
  const runc = options.versus === 'runc' ? cleanup.use(await runcBench(scratchDirectory)) : undefined;
  const progress = new Progress(options, 4 * options.runs);
  const restored = await measureRestore(make(0), options, progress);
  const imageMs = await measureImage(images, options);
  const warm = await measureWarm(make(POOL_SIZE), runc, options, progress);
  const cliMs = await measureCli(scratchDirectory, options, progress);
  const { shape, runs } = options;
  return {
    runs,
    ...restored,
    imageMs,
    shape: { cpus: shape.cpus, memoryMib: shape.memoryMib },
    ...warm,
    cliMs,
    ...(runc ? { runc: runc.version } : {}),
  };
}

/** One is enough to measure: the next sample waits until it is there. */
const POOL_SIZE = 1;
const POLL_MS = 5;
/** More than Node needs to start. */
const LINK_START_MS = 250;

class Progress {
  readonly #options: BenchStartOptions;
  readonly #total: number;
  #done = 0;

  constructor(options: BenchStartOptions, total: number) {
    this.#options = options;
    this.#total = total;
  }

  /** Before each sample. Throws the signal's reason. */
  next(what: string): void {
    this.#options.signal.throwIfAborted();
    this.#options.onProgress(this.#done++, this.#total, what);
  }
}

async function measureRestore(
  machines: Machines,
  { shape, runs }: BenchStartOptions,
  progress: Progress,
): Promise<Omit<StartFigures, 'runs' | 'shape' | keyof WarmFigures | 'cliMs' | 'runc' | 'imageMs'>> {
  const samples = new Samples();
  const first = await machines.claim(shape, () => {});
  await first.machine.destroy();
  const { driver } = first;
  for (let run = 0; run < runs; run++) {
    progress.next('restoring clones');
    // As a daemon is found that has no warm VM: it has put by a link process, after the claim before.
    while (!machines.hasSpareLink) await sleep(POLL_MS);
    await sleep(LINK_START_MS);
    const startedAt = performance.now();
    const { machine, claimMs } = await machines.claim(shape, () => {});
    try {
      await machine.probe();
      samples.add('restore', performance.now() - startedAt);
      samples.add('claim', claimMs);
      samples.add('second', await timed(() => machine.probe()));
      samples.add('private', privateKib(machine.vmPid) / 1024);
      samples.add('link', privateKib(machine.linkPid) / 1024);
    } finally {
      samples.add('destroy', await timed(() => machine.destroy()));
    }
  }
  for (let run = 0; run < runs; run++) {
    progress.next('booting cold');
    const { machine, claimMs } = await machines.coldBoot(shape);
    samples.add('cold', claimMs);
    await machine.destroy();
  }
  return {
    accelerator: driver.accelerator,
    vmm: `${driver.name} ${driver.version}`,
    coldBootMs: samples.distribution('cold'),
    restoreMs: samples.distribution('restore'),
    claimMs: samples.distribution('claim'),
    secondExecMs: samples.distribution('second'),
    destroyMs: samples.distribution('destroy'),
    privateMib: samples.distribution('private'),
    linkPrivateMib: samples.distribution('link'),
  };
}

/** As the daemon asks before each claim. Whether the image is let in does not matter here. */
async function measureImage(
  images: ImageStore,
  { ctHome, shape, runs }: BenchStartOptions,
): Promise<Distribution> {
  const samples = new Samples();
  const gate = new ImageGate({ ctHome, images });
  const policy = await new PolicyKeeper({
    ctHome,
    env: process.env,
    presets: new PresetResolver(),
  }).current();
  const judge = () => gate.judge(shape.image, { job: 'bench', trust: 'local' }, policy);
  await judge();
  for (let run = 0; run < runs; run++) samples.add('image', await timed(judge));
  return samples.distribution('image');
}

type WarmFigures = Pick<StartFigures, 'warmClaimMs' | 'refillMs' | 'poolSize' | 'runcMs' | 'warmVsRunc'>;

async function measureWarm(
  machines: Machines,
  runc: RuncBench | undefined,
  { shape, runs }: BenchStartOptions,
  progress: Progress,
): Promise<WarmFigures> {
  const samples = new Samples();
  const first = await machines.claim(shape, () => {});
  await first.machine.destroy();
  const used = new Set<number>();
  for (let run = 0; run < runs; run++) {
    progress.next(runc ? 'warm claims and containers, in turn' : 'warm claims');
    const refillStartedAt = performance.now();
    while (machines.warmCount === 0) await sleep(POLL_MS);
    samples.add('refill', performance.now() - refillStartedAt);
    const startedAt = performance.now();
    const { machine, source } = await machines.claim(shape, () => {});
    try {
      await machine.probe();
      samples.add('warm', performance.now() - startedAt);
      if (source !== 'warm-clone' || used.has(machine.vmPid)) {
        throw new CtError('INTERNAL', `a sample was no warm VM of its own but a ${source}`);
      }
      used.add(machine.vmPid);
    } finally {
      await machine.destroy();
    }
    if (runc) samples.add('runc', await runc.sample());
  }
  const warmClaimMs = samples.distribution('warm');
  const figures = { warmClaimMs, refillMs: samples.distribution('refill'), poolSize: POOL_SIZE };
  if (!runc) return figures;
  const runcMs = samples.distribution('runc');
  return { ...figures, runcMs, warmVsRunc: ratio(warmClaimMs, runcMs) };
}

async function measureCli(
  directory: string,
  { ctHome, shape, runs, signal }: BenchStartOptions,
  progress: Progress,
): Promise<Distribution> {
  const samples = new Samples();
  const host = await connectHost({ ctHome, signal });
  const tree = join(directory, 'tree');
  mkdirSync(tree);
  const command = async (): Promise<void> => {
    const args = ['run', '--memory', `${shape.memoryMib}M`, '--', 'true'];
    const env = { PATH: process.env['PATH'] ?? '', HOME: process.env['HOME'] ?? '', CT_HOME: ctHome };
    const child = spawn(join(installRoot, 'ct'), args, {
      cwd: tree,
      stdio: ['ignore', 'ignore', 'inherit'],
      env,
    });
    const [code] = await once(child, 'close');
    if (code !== 0) throw new CtError('INTERNAL', `\`ct run -- true\` ended with ${code}`);
  };
  await command(); // makes the template, and the demand
  for (let run = 0; run < runs; run++) {
    progress.next('the whole command');
    // A daemon with nothing else to do: one that still fills its pool takes half of a small machine.
    for (;;) {
      const { warm, warming } = await host.info();
      if (warm > 0 && !warming) break;
      await sleep(POLL_MS);
    }
    samples.add('cli', await timed(command));
  }
  return samples.distribution('cli');
}

class Samples {
  readonly #values = new Map<string, number[]>();

  add(name: string, value: number): void {
    const values = this.#values.get(name) ?? [];
    values.push(value);
    this.#values.set(name, values);
  }

  distribution(name: string): Distribution {
    return distribution(this.#values.get(name) ?? []);
  }
}

async function timed(action: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now();
  await action();
  return performance.now() - startedAt;
}
