/**
 * `ct bench workload`: what a job takes in a VM, and the same in a container. VM and container take turns, so that whatever
 * else this machine does is in both figures.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BoundedTail } from '../core/bounded-tail.ts';
import { CtError } from '../core/errors.ts';
import type { ImageManifest } from '../image/manifest.ts';
import { ImageStore } from '../image/store.ts';
import { packTree } from '../job/tree-pack.ts';
import type { Accelerator, JobRequest, VmSource } from '../protocol/run.ts';
import { BenchContainers, type ContainerFacts, removeContainer, runcRoot } from './bench-container.ts';
import { openBenchHome } from './bench-home.ts';
import { type BenchedMachine, benchedMachine } from './bench-machine.ts';
import { startRegistry } from './bench-registry.ts';
import { connectHost, type HostClient } from './client.ts';
import { type Distribution, distribution, ratio } from './distribution.ts';
import {
  NETWORK_WORKLOAD,
  NPM_PROJECT,
  parseWorkloadMs,
  WORKLOAD_SCRIPT,
  type Workload,
  writeWorkload,
} from './workloads.ts';

export type { ContainerFacts } from './bench-container.ts';
export type { Distribution } from './distribution.ts';
export { WORKLOADS, type Workload } from './workloads.ts';

export interface SideFigures {
  /** The workload alone, by the clock inside. */
  readonly insideMs: Distribution;
  /** From a directory on this machine to everything gone again, by the clock outside. */
  readonly wholeMs: Distribution;
}

export interface VmFigures extends SideFigures {
  /** Jobs that found a warm VM. */
  readonly warm: number;
}

export interface WorkloadResult {
  /** Name of the image, of both sides. */
  readonly image: string;
  readonly vm: VmFigures;
  /** Only with `--vs runc`. */
  readonly runc?: SideFigures;
  /** p50 of the VM by p50 of the container. */
  readonly insideRatio?: number;
  readonly wholeRatio?: number;
}

export interface WorkloadFigures extends BenchedMachine {
  /** Counted runs of each workload on each side; one more of each came before and is not counted. */
  readonly runs: number;
  /** Ratios hold for this accelerator alone: those of `tcg` say nothing about `kvm`. */
  readonly accelerator: Accelerator;
  readonly vmm: string;
  readonly shape: { readonly cpus: number; readonly memoryMib: number };
  readonly container?: ContainerFacts;
  readonly workloads: Readonly<Partial<Record<Workload, WorkloadResult>>>;
}

export interface BenchWorkloadOptions {
  readonly ctHome: string;
  /** Digests of the images' manifests. */
  readonly images: Readonly<Partial<Record<Workload, string>>>;
  readonly cpus: number;
  readonly memoryMib: number;
  readonly diskMib: number;
  readonly workloads: readonly Workload[];
  readonly runs: number;
  readonly versus: 'runc' | undefined;
  readonly onProgress: (done: number, total: number, what: string) => void;
  readonly signal: AbortSignal;
}

/** Workloads take seconds; a slow machine under emulation some minutes. */
const JOB_TIMEOUT_MS = 20 * 60_000;
const OUTPUT_TAIL_BYTES = 16_384;
const POLL_MS = 20;
const REGISTRY_NAME = 'registry.bench.example';
/** The pool refills in the time of a restore. Where it does not, because memory is short, VMs are not warm. */
const QUIET_TIMEOUT_MS = 20_000;

/** Throws JOB_FAILED if a workload fails, REQUIREMENT_MISSING without runc; nothing is left behind. */
export async function benchWorkload(options: BenchWorkloadOptions): Promise<WorkloadFigures> {
  const { ctHome, signal, workloads, runs } = options;
  await using cleanup = new AsyncDisposableStack();
  await sweepWorkloads(ctHome);
  const directory = makeWorkloadDirectory(ctHome);
  cleanup.defer(() => rmSync(directory, { recursive: true, force: true }));
  const machine = benchedMachine();

  const images = new ImageStore(ctHome);
  const total = workloads.length * (runs + 1);
  let done = 0;
  const lanes = new Map<string, Lane>();
  const samples = new Map<Workload, { readonly lane: Lane; readonly taken: Samples }>();
  for (const workload of workloads) {
    const image = options.images[workload];
    if (image === undefined) throw new CtError('INTERNAL', `there is no image for ${workload}`);
    const network = workload === NETWORK_WORKLOAD;
    const key = `${image} ${network}`;
    const place = join(directory, String(lanes.size));
    let lane = lanes.get(key);
    if (!lane) {
      mkdirSync(place, { mode: 0o700 });
      const manifest = await images.manifest(image);
      const way = network ? await openNetwork(options, place, cleanup) : undefined;
      const vms = new Vms(way?.host ?? (await connectHost({ ctHome, signal })), options, image, way?.network);
      const containers =
        options.versus === 'runc' ? await openContainers(options, place, images, manifest, way) : undefined;
      if (containers) cleanup.use(containers);
      lane = { image: manifest.name, vms, containers };
      lanes.set(key, lane);
    }
    const tree = join(directory, workload);
    mkdirSync(tree, { mode: 0o755 });
    await writeWorkload(workload, tree, signal);
    await lane.containers?.adopt(tree);
    samples.set(workload, { lane, taken: new Samples() });
  }
  // Round by round: a disturbance of some seconds does not hit all runs of one workload.
  for (let round = 0; round <= runs; round++) {
    for (const [workload, { lane, taken }] of samples) {
      const { vms, containers } = lane;
      options.onProgress(done++, total, containers ? `${workload}, in a VM and in a container` : workload);
      const tree = join(directory, workload);
      const sides = [() => vms.sample(workload, tree), () => containers?.sample(tree)] as const;
      const measure = async (side: 0 | 1): Promise<void> => {
        await vms.quiet();
        const sample = await sides[side]();
        if (sample) taken.add(side === 0 ? 'vm' : 'runc', sample, round > 0);
      };
      // Whoever comes second finds caches as the first left them: each is second every other time.
      const first = round % 2 === 0 ? 0 : 1;
      await measure(first);
      await measure(first === 0 ? 1 : 0);
    }
  }

  const [lane] = lanes.values();
  if (!lane) throw new CtError('INTERNAL', 'there is no workload');
  const { accelerator, vmm } = lane.vms.facts;
  return {
    runs,
    accelerator,
    vmm,
    shape: { cpus: options.cpus, memoryMib: options.memoryMib },
    ...machine,
    ...(lane.containers ? { container: lane.containers.facts } : {}),
    workloads: Object.fromEntries(
      [...samples].map(([workload, { lane: of, taken }]) => [
        workload,
        { image: of.image, ...taken.result() },
      ]),
    ),
  };
}

/** Where workloads of one image run. */
interface Lane {
  readonly image: string;
  readonly vms: Vms;
  readonly containers: BenchContainers | undefined;
}

/** A way to a registry on loopback that both sides have under the same name. */
interface Way {
  readonly host: HostClient;
  readonly network: Network;
  readonly hostsFile: string;
}

interface Network {
  readonly allow: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

/** The daemon of the user has a policy of the user's: this one's lets jobs reach the registry, and is asked like any other. */
async function openNetwork(
  { ctHome, signal }: BenchWorkloadOptions,
  directory: string,
  cleanup: AsyncDisposableStack,
): Promise<Way> {
  const registry = cleanup.use(
    await startRegistry({
      lockFile: join(NPM_PROJECT, 'package-lock.json'),
      cacheDirectory: join(ctHome, 'cache/npm'),
      workDirectory: directory,
      signal,
    }),
  );
  const home = join(directory, 'home');
  mkdirSync(home, { mode: 0o700 });
  const name = REGISTRY_NAME;
  const { host } = cleanup.use(await openBenchHome({ directory: home, imagesOf: ctHome, name, signal }));
  const hostsFile = join(directory, 'hosts');
  writeFileSync(hostsFile, `127.0.0.1 localhost ${name}\n`, { mode: 0o644 });
  const url = `http://${name}:${registry.port}`;
  return { host, network: { allow: [url], env: { REGISTRY: url } }, hostsFile };
}

async function openContainers(
  options: BenchWorkloadOptions,
  directory: string,
  images: ImageStore,
  image: ImageManifest,
  way: Way | undefined,
): Promise<BenchContainers> {
  const { ctHome, cpus, memoryMib, signal } = options;
  return await BenchContainers.open({
    ...{ ctHome, directory, image, cpus, memoryMib, signal },
    ...(way ? { network: { hostsFile: way.hostsFile }, env: way.network.env } : {}),
    rootfsPath: await images.checkedBlobPath(image.rootfs),
    onProgress: (what) => options.onProgress(0, options.workloads.length * (options.runs + 1), what),
  });
}

interface Sample {
  readonly wholeMs: number;
  readonly stdout: string;
  readonly source?: VmSource;
}

class Samples {
  readonly #inside = { vm: [] as number[], runc: [] as number[] };
  readonly #whole = { vm: [] as number[], runc: [] as number[] };
  #warm = 0;

  /** Throws JOB_FAILED if the workload has not printed its time. */
  add(side: 'vm' | 'runc', { wholeMs, stdout, source }: Sample, counts: boolean): void {
    const insideMs = parseWorkloadMs(stdout);
    if (insideMs === undefined) {
      throw new CtError('JOB_FAILED', 'the workload did not print the time it took', {
        hint: 'its script needs bash 5 in the image',
      });
    }
    if (!counts) return;
    this.#inside[side].push(insideMs);
    this.#whole[side].push(wholeMs);
    if (source === 'warm-clone') this.#warm++;
  }

  result(): Omit<WorkloadResult, 'image'> {
    const side = (name: 'vm' | 'runc'): SideFigures => ({
      insideMs: distribution(this.#inside[name]),
      wholeMs: distribution(this.#whole[name]),
    });
    const vm = { ...side('vm'), warm: this.#warm };
    if (this.#inside.runc.length === 0) return { vm };
    const runc = side('runc');
    return {
      vm,
      runc,
      insideRatio: ratio(vm.insideMs, runc.insideMs),
      wholeRatio: ratio(vm.wholeMs, runc.wholeMs),
    };
  }
}

/** Jobs as any client of the host daemon runs them. */
class Vms {
  readonly #host: HostClient;
  readonly #options: BenchWorkloadOptions;
  readonly #image: string;
  readonly #network: Network | undefined;
  #facts: { readonly accelerator: Accelerator; readonly vmm: string } | undefined;

  constructor(host: HostClient, options: BenchWorkloadOptions, image: string, network: Network | undefined) {
    this.#host = host;
    this.#options = options;
    this.#image = image;
    this.#network = network;
  }

  /** Known after the first sample. */
  get facts(): { readonly accelerator: Accelerator; readonly vmm: string } {
    if (!this.#facts) throw new CtError('INTERNAL', 'no VM has run');
    return this.#facts;
  }

  /** Waits until the pool has replaced the last VM, which would take cpu time from whatever is measured. */
  async quiet(): Promise<void> {
    if (!this.#facts) return;
    const deadline = performance.now() + QUIET_TIMEOUT_MS;
    while ((await this.#host.info()).warm === 0 && performance.now() < deadline) {
      this.#options.signal.throwIfAborted();
      await sleep(POLL_MS);
    }
  }

  /** From `tree` to the VM gone. Throws JOB_FAILED with the end of its output, or what the host reports. */
  async sample(workload: Workload, tree: string): Promise<Sample> {
    const { cpus, memoryMib, diskMib, signal } = this.#options;
    const image = this.#image;
    signal.throwIfAborted();
    const request: JobRequest = {
      name: `bench-${workload}`,
      ...{ image, cpus, memoryMib, diskMib },
      env: this.#network?.env ?? {},
      ...(this.#network ? { network: { allow: this.#network.allow } } : {}),
      steps: [
        {
          name: workload,
          argv: ['bash', WORKLOAD_SCRIPT],
          env: {},
          workingDirectory: '.',
          condition: 'success',
        },
      ],
      timeoutMs: JOB_TIMEOUT_MS,
      artifacts: [],
      sendsTree: true,
    };
    const tails = { stdout: new BoundedTail(OUTPUT_TAIL_BYTES), stderr: new BoundedTail(OUTPUT_TAIL_BYTES) };
    let source: VmSource | undefined;
    const startedAt = performance.now();
    const result = await this.#host.runJob(request, {
      tree: packTree({ root: tree, respectIgnore: false, signal }),
      onEvent: (event) => {
        if (event.type !== 'claimed') return;
        source = event.source;
        this.#facts ??= { accelerator: event.accelerator, vmm: event.vmm };
      },
      onOutput: (stream, _, bytes) => tails[stream].push(bytes),
      signal,
    });
    const wholeMs = performance.now() - startedAt;
    signal.throwIfAborted();
    if (result.error) {
      const { code, message, hint } = result.error;
      throw new CtError(code, message, { hint });
    }
    if (result.outcome !== 'success') {
      const said = tails.stderr.text().trim();
      throw new CtError('JOB_FAILED', `the workload ${workload} failed in the VM: ${said}`, {
        hint: 'the image needs bash, and gcc and make, git, or node and npm',
      });
    }
    return { wholeMs, stdout: tails.stdout.text(), ...(source === undefined ? {} : { source }) };
  }
}

/** A directory for the containers of this process, which its name tells from those of killed ones. */
export function makeWorkloadDirectory(ctHome: string): string {
  const directory = join(ctHome, `bench-workload-${process.pid}-${startTimeOf(process.pid)}`);
  mkdirSync(directory, { mode: 0o700 });
  return directory;
}

/** Ends and removes what a benchmark that was killed has left: a container, which is what holds its mounts, and files. */
export async function sweepWorkloads(ctHome: string): Promise<void> {
  for (const name of readdirSync(ctHome)) {
    const [, pid, startTime] = /^bench-workload-(\d+)-(\d+)$/.exec(name) ?? [];
    if (pid === undefined || startTimeOf(Number(pid)) === startTime) continue;
    const directory = join(ctHome, name);
    for (const place of [directory, ...readdirSync(directory).map((place) => join(directory, place))]) {
      const root = runcRoot(place);
      for (const id of existsSync(root) ? readdirSync(root) : []) await removeContainer(root, id);
    }
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Field 22 of proc_pid_stat(5), which tells a process from a later one of the same id; undefined if there is none. */
function startTimeOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}
