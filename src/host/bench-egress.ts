/**
 * `ct bench egress`: what the way out of a VM costs. One VM that moves plain bytes over a port, as the yardstick; then a job of a
 * daemon of its own that does what clients do, through proxy, policy and dialer, to a server on loopback.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CtError } from '../core/errors.ts';
import { installRoot } from '../core/install.ts';
import { runProgram } from '../core/run-program.ts';
import { packTree } from '../job/tree-pack.ts';
import type { Accelerator, JobRequest } from '../protocol/run.ts';
import { openRawPort, type RawPort } from './bench-egress-raw.ts';
import { startBenchServer } from './bench-egress-server.ts';
import { type BenchHome, openBenchHome } from './bench-home.ts';
import { linkPid } from './bench-link.ts';
import { type BenchedMachine, benchedMachine, privateKib } from './bench-machine.ts';
import { measurePolicy, type PolicyFigures } from './bench-policy.ts';
import { type Distribution, distribution } from './distribution.ts';

const MB = 1_000_000;
const TRANSFER_BYTES = 500 * MB;
const CONNECTIONS = 500;
const LATENCY_SAMPLES = 200;
const RATE_MS = 5000;
const NAME = 'egress-bench.example';
const SOURCES = join(installRoot, 'bench/egress');
const JOB_TIMEOUT_MS = 30 * 60_000;
/** Some kilobytes; what a job prints is the guest's to choose. */
const MAX_OUTPUT_BYTES = 1024 * 1024;

export interface EgressFigures extends BenchedMachine {
  readonly runs: number;
  readonly accelerator: Accelerator;
  readonly vmm: string;
  readonly shape: { readonly cpus: number; readonly memoryMib: number };
  readonly transferBytes: number;
  /** Plain bytes over one port, MB/s. */
  readonly rawMbPerSecond: Directions;
  /** TCP through the proxy, MB/s, by the clock of the guest. */
  readonly mbPerSecond: Directions;
  /** p50 of it by p50 of the raw port. */
  readonly ratio: { readonly download: number; readonly upload: number };
  /** That many connections, all open before the first asks: until the last has its answer. */
  readonly atOnce: { readonly connections: number; readonly ms: Distribution; readonly lost: number };
  /** One after another: connect, ask, first byte, close. */
  readonly connectionsPerSecond: number;
  readonly firstByteMs: Distribution;
  /** Answers of the daemon meanwhile, asked by a process of its own. */
  readonly daemonAnswerMs: Distribution;
  /** The longest of them, without what the scheduler made it wait. */
  readonly daemonBusyMs: number;
  /** KiB that daemon and link process take for an idle connection. */
  readonly idleConnectionKib: { readonly daemon: number; readonly link: number };
  readonly policy: PolicyFigures;
}

export interface Directions {
  readonly download: Distribution;
  readonly upload: Distribution;
}

export interface BenchEgressOptions {
  readonly ctHome: string;
  /** Digest of the image's manifest. */
  readonly image: string;
  readonly runs: number;
  readonly onProgress: (what: string) => void;
  readonly signal: AbortSignal;
}

const SHAPE = { cpus: 1, memoryMib: 512, diskMib: 1024 };

/** Throws REQUIREMENT_MISSING without a C compiler, JOB_FAILED if a measurement fails; nothing is left behind. */
export async function benchEgress(options: BenchEgressOptions): Promise<EgressFigures> {
  const { ctHome, runs, signal, onProgress } = options;
  await using cleanup = new AsyncDisposableStack();
  const directory = mkdtempSync(join(ctHome, 'bench-'));
  cleanup.defer(() => rmSync(directory, { recursive: true, force: true }));
  const machine = benchedMachine();
  onProgress('compiling');
  const tree = join(directory, 'tree');
  mkdirSync(tree);
  await compile('client.c', join(tree, 'client'), signal);
  await compile('raw-port.c', join(directory, 'raw-port'), signal);

  onProgress('policy decisions');
  const policy = await measurePolicy();
  const home = join(directory, 'home');
  mkdirSync(home, { mode: 0o700 });
  const bench = cleanup.use(await openBenchHome({ directory: home, imagesOf: ctHome, name: NAME, signal }));
  await using yardstick = new Yardstick(options, directory);
  const job = await measureJob(bench, { ...options, tree, yardstick });
  const rawMbPerSecond = { download: rates(yardstick.ms.download), upload: rates(yardstick.ms.upload) };
  const { mbPerSecond } = job.figures;
  return {
    runs,
    accelerator: job.accelerator,
    vmm: job.vmm,
    shape: { cpus: SHAPE.cpus, memoryMib: SHAPE.memoryMib },
    ...machine,
    transferBytes: TRANSFER_BYTES,
    rawMbPerSecond,
    ...job.figures,
    ratio: {
      download: rounded(mbPerSecond.download.p50 / rawMbPerSecond.download.p50),
      upload: rounded(mbPerSecond.upload.p50 / rawMbPerSecond.upload.p50),
    },
    policy,
  };
}

async function compile(source: string, target: string, signal: AbortSignal): Promise<void> {
  await runProgram({
    file: 'gcc',
    args: ['-O2', '-static', '-o', target, join(SOURCES, source)],
    maxOutputBytes: 65_536,
    failureCode: 'REQUIREMENT_MISSING',
    signal,
  });
}

/** A VM that moves plain bytes, started when it is first needed. It takes turns with the job, whose VM idles meanwhile. */
class Yardstick implements AsyncDisposable {
  readonly ms = { download: [] as number[], upload: [] as number[] };
  readonly #options: BenchEgressOptions;
  readonly #directory: string;
  #port: RawPort | undefined;

  constructor(options: BenchEgressOptions, directory: string) {
    this.#options = options;
    this.#directory = directory;
  }

  async measure(accelerator: Accelerator): Promise<void> {
    const { ctHome, image } = this.#options;
    const { cpus, memoryMib, diskMib } = SHAPE;
    this.#port ??= await openRawPort({
      ctHome,
      directory: this.#directory,
      shape: { image, cpus, memoryMib, volumeMib: diskMib },
      accelerator,
      program: join(this.#directory, 'raw-port'),
    });
    for (const direction of ['download', 'upload'] as const) {
      this.#options.signal.throwIfAborted();
      this.ms[direction].push(await this.#port.move(direction, TRANSFER_BYTES));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#port?.[Symbol.asyncDispose]();
  }
}

interface JobMeasured {
  readonly accelerator: Accelerator;
  readonly vmm: string;
  readonly figures: Pick<
    EgressFigures,
    | 'mbPerSecond'
    | 'atOnce'
    | 'connectionsPerSecond'
    | 'firstByteMs'
    | 'daemonAnswerMs'
    | 'daemonBusyMs'
    | 'idleConnectionKib'
  >;
}

async function measureJob(
  { host, socketPath }: BenchHome,
  options: BenchEgressOptions & { readonly tree: string; readonly yardstick: Yardstick },
): Promise<JobMeasured> {
  const { runs, image, signal, tree, yardstick, onProgress } = options;
  const idle: { connections: number; daemon: number; link: number }[] = [];
  const daemonPid = (await host.info()).pid;
  let facts: { accelerator: Accelerator; vmm: string } | undefined;
  let stopAsking: (() => Promise<Answers>) | undefined;
  using server = await startBenchServer({
    onSample: async (connections) => {
      // What it takes to make a template and to start a job is no matter of the network.
      stopAsking ??= watchAnswers(socketPath, daemonPid);
      idle.push({
        connections,
        daemon: privateKib(daemonPid),
        link: privateKib(linkPid(daemonPid)),
      });
    },
    onYardstick: async () => {
      if (facts) await yardstick.measure(facts.accelerator);
    },
  });
  writeFileSync(join(tree, 'run.sh'), script(server.port, runs));
  const { cpus, memoryMib, diskMib } = SHAPE;
  const request: JobRequest = {
    name: 'bench-egress',
    ...{ image, cpus, memoryMib, diskMib },
    env: {},
    steps: [
      { name: 'egress', argv: ['bash', 'run.sh'], env: {}, workingDirectory: '.', condition: 'success' },
    ],
    timeoutMs: JOB_TIMEOUT_MS,
    artifacts: [],
    sendsTree: true,
    network: { allow: [`tcp://${NAME}:${server.port}`] },
  };
  const output = { stdout: '', stderr: '' };
  let daemon: Answers = { answers: [], busy: Number.NaN };
  let failure: string | undefined;
  try {
    const result = await host.runJob(request, {
      tree: packTree({ root: tree, respectIgnore: false, signal }),
      onEvent: (event) => {
        if (event.type === 'network') output.stderr += `${event.message}\n`;
        if (event.type === 'claimed') facts = { accelerator: event.accelerator, vmm: event.vmm };
      },
      onOutput: (stream, _, bytes) => {
        output[stream] = (output[stream] + bytes.toString('latin1')).slice(-MAX_OUTPUT_BYTES);
        const phase = /^phase (.*)$/gm;
        for (const [, what] of bytes.toString('latin1').matchAll(phase)) onProgress(what ?? '');
      },
      signal,
    });
    signal.throwIfAborted();
    if (result.outcome !== 'success') failure = result.error?.message ?? output.stderr.trim();
  } finally {
    if (stopAsking) daemon = await stopAsking();
  }
  if (failure !== undefined || !facts) {
    throw new CtError('JOB_FAILED', `the measurement failed in the VM: ${failure}`);
  }
  const values = parseOutput(output.stdout);
  const of = (name: string): readonly number[] => values.get(name) ?? [];
  const [before, after] = idle;
  if (!before || !after) throw new CtError('JOB_FAILED', 'the measurement took no samples of memory');
  const [connections = 0] = of('connections');
  const [connecting = Number.NaN] = of('connecting');
  return {
    ...facts,
    figures: {
      mbPerSecond: {
        download: rates(of('download').map((us) => us / 1000)),
        upload: rates(of('upload').map((us) => us / 1000)),
      },
      atOnce: {
        connections: CONNECTIONS,
        ms: distribution(of('many').map((us) => us / 1000)),
        lost: of('lost').reduce((sum, lost) => sum + lost, 0),
      },
      connectionsPerSecond: Math.round(connections / (connecting / 1e6)),
      firstByteMs: distribution(of('latency').map((us) => us / 1000)),
      daemonAnswerMs: distribution(daemon.answers),
      daemonBusyMs: Math.round(daemon.busy * 10) / 10,
      idleConnectionKib: {
        daemon: Math.round(((after.daemon - before.daemon) / after.connections) * 10) / 10,
        link: Math.round(((after.link - before.link) / after.connections) * 10) / 10,
      },
    },
  };
}

function script(port: number, runs: number): string {
  return `set -eu
set -- $(getent ahostsv4 ${NAME})
client() { ./client "$address" ${port} "$@"; }
address=$1
echo "phase idle connections"
client idle ${CONNECTIONS}
for run in $(seq ${runs}); do
	echo "phase transfers, $run of ${runs}"
	client yardstick 0
	client download ${TRANSFER_BYTES}
	client upload ${TRANSFER_BYTES}
done
for run in $(seq ${runs}); do
	echo "phase ${CONNECTIONS} connections at once, $run of ${runs}"
	client many ${CONNECTIONS}
done
echo "phase one connection after another"
client latency ${LATENCY_SAMPLES}
client rate ${RATE_MS}
`;
}

/** `NAME NUMBER` lines of the client; other lines are none of its. */
export function parseOutput(text: string): ReadonlyMap<string, readonly number[]> {
  const values = new Map<string, number[]>();
  for (const [, name = '', number] of text.matchAll(/^([a-z]{1,20}) (\d{1,15})$/gm)) {
    const known = values.get(name);
    if (known) known.push(Number(number));
    else values.set(name, [Number(number)]);
  }
  return values;
}

interface Answers {
  readonly answers: readonly number[];
  readonly busy: number;
}

/** Starts asking the daemon; the result ends that and says what came of it. */
function watchAnswers(socketPath: string, daemonPid: number): () => Promise<Answers> {
  const child = spawn(
    process.execPath,
    ['--disable-warning=ExperimentalWarning', join(SOURCES, 'answers.ts'), socketPath, `${daemonPid}`],
    { stdio: ['pipe', 'pipe', 'inherit'], env: {} },
  );
  const closed = once(child, 'close');
  let text = '';
  child.stdout.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1');
  });
  child.stdin.on('error', () => {}); // it ended; its output says so
  return async () => {
    child.stdin.end();
    await closed;
    return text === '' ? { answers: [], busy: Number.NaN } : JSON.parse(text);
  };
}

/** MB/s from milliseconds. */
function rates(milliseconds: readonly number[]): Distribution {
  return distribution(milliseconds.map((ms) => TRANSFER_BYTES / MB / (ms / 1000)));
}

function rounded(value: number): number {
  return Math.round(value * 100) / 100;
}
