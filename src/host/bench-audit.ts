/**
 * `ct bench audit`: what it costs that every system call of a job is on record. Two jobs of a daemon of its own take turns, second by
 * second. Their guests differ in one thing: the guest agent of one loads no tracer (bench/audit/untraced.c). All else is the same for
 * both, the policy that wants a record included.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { auditDirectory } from '../audit/places.ts';
import { readAudit } from '../audit/reader.ts';
import { BoundedTail } from '../core/bounded-tail.ts';
import { CtError } from '../core/errors.ts';
import { installRoot } from '../core/install.ts';
import { runProgram } from '../core/run-program.ts';
import { encodeCpio } from '../image/cpio.ts';
import { blobsOf } from '../image/manifest.ts';
import { ImageStore } from '../image/store.ts';
import { packTree } from '../job/tree-pack.ts';
import type { Accelerator, JobRequest, JobResult } from '../protocol/run.ts';
import type { RunAuditInfo } from './api.ts';
import { type AgeFigures, measureAge } from './bench-audit-age.ts';
import { openBenchHome } from './bench-home.ts';
import { linkPid } from './bench-link.ts';
import { type BenchedMachine, benchedMachine, privateKib } from './bench-machine.ts';
import type { HostClient } from './client.ts';
import { type Distribution, distribution } from './distribution.ts';
import { C_FILES as COMPILE_FILES, writeWorkload } from './workloads.ts';

export const AUDIT_WORKLOADS = ['compile', 'status', 'find'] as const;
export type AuditWorkload = (typeof AUDIT_WORKLOADS)[number];

/** The program of each: its calls, and those of what it starts, are counted from its exec to its exit. */
const PROGRAMS: Readonly<Record<AuditWorkload, string>> = { compile: 'make', status: 'git', find: 'find' };
const FILES = 20_000;
const DIRECTORIES = 100;
/** Files of the project that a sample of `compile` makes. */
const UNITS = 4;
const SHAPE = { cpus: 1, memoryMib: 1024, diskMib: 2048 };
const JOB_TIMEOUT_MS = 30 * 60_000;
const OUTPUT_TAIL_BYTES = 16_384;
/** Jobs reach nothing; a name is what the home wants. */
const NAME = 'audit-bench.example';

export interface AuditWorkloadFigures {
  readonly withoutMs: Distribution;
  readonly withMs: Distribution;
  /** Of each sample with a record by the one without, just before or after it. */
  readonly slowdown: Distribution;
  /** While it ran, on record. */
  readonly callsPerSecond: number;
}

export interface AuditFigures extends BenchedMachine {
  /** Counted samples of each workload in each guest; one more of each came before. */
  readonly runs: number;
  readonly accelerator: Accelerator;
  readonly vmm: string;
  readonly shape: { readonly cpus: number; readonly memoryMib: number };
  readonly files: number;
  readonly workloads: Readonly<Record<AuditWorkload, AuditWorkloadFigures>>;
  /** Of the whole job, its 20,000 files included. */
  readonly records: number;
  readonly bytesPerRecord: number;
  /** `complete`: nothing is missing. */
  readonly state: RunAuditInfo['state'];
  readonly age: AgeFigures;
  /** Most private memory that the link process had which read and wrote the record. */
  readonly linkMib: number;
}

export interface BenchAuditOptions {
  readonly ctHome: string;
  /** Digest of the image's manifest. */
  readonly image: string;
  readonly runs: number;
  readonly onProgress: (what: string) => void;
  readonly signal: AbortSignal;
}

/** Throws REQUIREMENT_MISSING without a C compiler, JOB_FAILED if a measurement fails; nothing is left behind. */
export async function benchAudit(options: BenchAuditOptions): Promise<AuditFigures> {
  const { ctHome, image, runs, signal, onProgress } = options;
  await using cleanup = new AsyncDisposableStack();
  const directory = mkdtempSync(join(ctHome, 'bench-'));
  cleanup.defer(() => rmSync(directory, { recursive: true, force: true }));
  const machine = benchedMachine();
  onProgress('a guest agent without a tracer');
  const home = join(directory, 'home');
  mkdirSync(home, { mode: 0o700 });
  const untraced = await storeUntraced(options, directory, home);
  const tree = join(directory, 'tree');
  mkdirSync(tree);
  await writeWorkload('compile', tree, signal);
  for (const [name, text] of Object.entries(SCRIPTS)) writeFileSync(join(tree, name), text);
  const { host } = cleanup.use(
    await openBenchHome({ directory: home, imagesOf: ctHome, name: NAME, signal }),
  );
  const daemonPid = (await host.info()).pid;
  onProgress(`${FILES} files, without a record`);
  const plain = cleanup.use(await Guest.open(host, untraced, tree, signal));
  onProgress(`${FILES} files, with a record`);
  const recorded = cleanup.use(await Guest.open(host, image, tree, signal));
  let linkKib = 0;
  for (let round = 0; round <= runs; round += 1) {
    onProgress(round === 0 ? 'once before it counts' : `round ${round} of ${runs}`);
    // Each is second every other time.
    const order = round % 2 === 0 ? [plain, recorded] : [recorded, plain];
    for (const name of AUDIT_WORKLOADS) {
      for (const guest of order) {
        signal.throwIfAborted();
        await guest.measure(name, round, round > 0);
      }
    }
    // The one that has a record to write is the larger of the two.
    linkKib = Math.max(linkKib, privateKib(linkPid(daemonPid)));
  }
  await plain.end();
  const { run, audit } = await recorded.end();
  onProgress('the record');
  const rates = await callsPerSecond(auditDirectory(home, run));
  onProgress('the age of events');
  const { accelerator, vmm } = recorded.facts;
  const age = await measureAge({
    ...{ ctHome, directory, accelerator, signal },
    shape: { image, cpus: SHAPE.cpus, memoryMib: SHAPE.memoryMib, volumeMib: SHAPE.diskMib },
  });
  const workloads = Object.fromEntries(
    AUDIT_WORKLOADS.map((name) => [
      name,
      { ...compare(recorded.times[name], plain.times[name]), callsPerSecond: rates.get(name) ?? 0 },
    ]),
  ) as Record<AuditWorkload, AuditWorkloadFigures>;
  return {
    runs,
    accelerator,
    vmm,
    shape: { cpus: SHAPE.cpus, memoryMib: SHAPE.memoryMib },
    ...machine,
    files: FILES,
    workloads,
    records: audit?.records ?? 0,
    bytesPerRecord: Math.round(((audit?.bytes ?? Number.NaN) / (audit?.records ?? Number.NaN)) * 10) / 10,
    state: audit?.state ?? 'absent',
    age,
    linkMib: Math.round(linkKib / 1024),
  };
}

/** Neighbours in time are compared, so that what else the machine does is in both. */
export function compare(
  withMs: readonly number[],
  withoutMs: readonly number[],
): Omit<AuditWorkloadFigures, 'callsPerSecond'> {
  const ratios = withMs.map((ms, index) => ms / (withoutMs[index] ?? Number.NaN));
  return {
    withMs: distribution(withMs),
    withoutMs: distribution(withoutMs),
    slowdown: distribution(ratios, 2),
  };
}

/** A job in one of the two guests: it makes its files, and then does what it is told, one thing at a time. */
class Guest implements AsyncDisposable {
  readonly times: Readonly<Record<AuditWorkload, number[]>> = { compile: [], status: [], find: [] };
  readonly facts: { readonly accelerator: Accelerator; readonly vmm: string };
  readonly #host: HostClient;
  readonly #run: string;
  readonly #result: Promise<JobResult>;
  readonly #stop: AbortController;

  private constructor(
    host: HostClient,
    run: string,
    result: Promise<JobResult>,
    facts: Guest['facts'],
    stop: AbortController,
  ) {
    this.#host = host;
    this.#run = run;
    this.#result = result;
    this.facts = facts;
    this.#stop = stop;
  }

  /** Resolves when the job has its files. Throws JOB_FAILED, or what running a job throws. */
  static async open(host: HostClient, image: string, tree: string, signal: AbortSignal): Promise<Guest> {
    const { cpus, memoryMib, diskMib } = SHAPE;
    const request: JobRequest = {
      name: 'bench-audit',
      ...{ image, cpus, memoryMib, diskMib },
      env: {},
      steps: [
        { name: 'audit', argv: ['bash', 'prepare.sh'], env: {}, workingDirectory: '.', condition: 'success' },
      ],
      timeoutMs: JOB_TIMEOUT_MS,
      artifacts: [],
      sendsTree: true,
    };
    const stop = new AbortController();
    const output = new BoundedTail(OUTPUT_TAIL_BYTES);
    const ready = Promise.withResolvers<void>();
    let facts: Guest['facts'] | undefined;
    const running = host.runJob(request, {
      tree: packTree({ root: tree, respectIgnore: false, signal }),
      onEvent: (event) => {
        if (event.type === 'claimed') facts = { accelerator: event.accelerator, vmm: event.vmm };
      },
      onOutput: (_, __, bytes) => {
        output.push(bytes);
        if (/^ready$/m.test(output.text())) ready.resolve();
      },
      signal: AbortSignal.any([signal, stop.signal]),
    });
    const ended = running.then((result) => {
      signal.throwIfAborted();
      throw failed(result.error?.message ?? output.text().trim());
    });
    await Promise.race([ready.promise, ended]);
    ended.catch(() => {}); // it ends as it is told to
    const { run } = await host.run('latest');
    return new Guest(host, run, running, facts ?? { accelerator: 'tcg', vmm: '' }, stop);
  }

  /** Does one thing. Throws JOB_FAILED. */
  async measure(name: AuditWorkload, round: number, counts: boolean): Promise<void> {
    const output = await this.#command(`measure.sh ${name} ${round}`);
    const us = parseTime(output);
    if (us === undefined) throw failed(`${name} did not print the time it took: ${output}`);
    if (counts) this.times[name].push(us / 1000);
  }

  /** Lets the job end; what is known of its record then. */
  async end(): Promise<{ readonly run: string; readonly audit: RunAuditInfo | undefined }> {
    await this.#command('end.sh');
    const result = await this.#result;
    if (result.outcome !== 'success') throw failed(result.error?.message ?? result.outcome);
    return { run: this.#run, audit: (await this.#host.run(this.#run)).audit };
  }

  async #command(command: string): Promise<string> {
    const output = new BoundedTail(OUTPUT_TAIL_BYTES);
    const code = await this.#host.shell(this.#run, {
      request: { argv: ['bash', '-c', `cd /workspace && bash ${command}`] },
      onOutput: (_, bytes) => output.push(bytes),
      onOpen: (input) => input.end(),
    });
    if (code !== 0) throw failed(output.text().trim());
    return output.text();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#result.catch(() => {});
  }
}

function failed(why: string): CtError {
  return new CtError('JOB_FAILED', `the measurement failed in the VM: ${why}`, {
    hint: 'the image needs bash, gcc, make, git, find, seq and split',
  });
}

/** Of the line `us NUMBER`. The text is the guest's. */
export function parseTime(text: string): number | undefined {
  const us = /^us (\d{1,12})$/m.exec(text)?.[1];
  return us === undefined ? undefined : Number(us);
}

/** By workload: system calls per second between exec and exit of its last program. */
async function callsPerSecond(directory: string): Promise<Map<AuditWorkload, number>> {
  const spans = new Map<AuditWorkload, { pid: number; fromNs: bigint; toNs: bigint }>();
  for await (const event of readAudit(directory, { kinds: new Set(['exec', 'exit'] as const) })) {
    if (event.kind === 'exec') {
      const name = AUDIT_WORKLOADS.find((workload) => PROGRAMS[workload] === event.args[0]);
      if (name) spans.set(name, { pid: event.process.pid, fromNs: event.timeNs, toNs: 0n });
    } else if (event.kind === 'exit') {
      for (const span of spans.values())
        if (span.toNs === 0n && event.process.pid === span.pid) span.toNs = event.timeNs;
    }
  }
  const rates = new Map<AuditWorkload, number>();
  for (const [name, { fromNs, toNs }] of spans) {
    let calls = 0;
    const filter = { kinds: new Set(['syscall'] as const), sinceNs: fromNs, untilNs: toNs };
    for await (const _ of readAudit(directory, filter)) calls += 1;
    rates.set(name, Math.round(calls / (Number(toNs - fromNs) / 1e9)));
  }
  return rates;
}

/**
 * An image in the store of `home` that is `image` but for the guest agent. Its other blobs are links to the store that it is
 * from. Returns its digest.
 */
async function storeUntraced(
  { ctHome, image, signal }: BenchAuditOptions,
  directory: string,
  home: string,
): Promise<string> {
  const agent = join(directory, 'agent');
  await runProgram({
    file: 'make',
    args: ['-s', '-C', join(installRoot, 'guest-agent'), `OUT=${agent}`, join(agent, 'init-untraced')],
    maxOutputBytes: 65_536,
    failureCode: 'REQUIREMENT_MISSING',
    signal,
  });
  const from = new ImageStore(ctHome);
  const store = new ImageStore(home);
  store.prepare();
  const manifest = await from.manifest(image);
  for (const digest of [image, ...blobsOf(manifest).map((blob) => blob.digest)]) {
    const place = join('blobs/sha256', digest.replace('sha256:', ''));
    symlinkSync(join(ctHome, place), join(home, place));
  }
  // What says that it was made here, and its signatures.
  const proofs = join('images/sha256', image.replace('sha256:', ''));
  mkdirSync(join(home, 'images/sha256'), { mode: 0o700 });
  symlinkSync(join(ctHome, proofs), join(home, proofs));
  const init = encodeCpio([
    { name: 'init', mode: 0o100500, data: readFileSync(join(agent, 'init-untraced')) },
  ]);
  // The kernel unpacks archives one after another: the later /init is the one that runs.
  const initramfs = await store.putBytes(Buffer.concat([await from.readBlob(manifest.initramfs), init]));
  const { digest } = await store.putImage(
    { ...manifest, name: `${manifest.name}-untraced`, initramfs },
    '',
    new Date(),
    'built',
  );
  return digest;
}

const SCRIPTS = {
  'prepare.sh': `set -eu
mkdir files
cd files
git init -q .
for d in {1..${DIRECTORIES}}; do
	mkdir $d
	(cd $d && seq ${FILES / DIRECTORIES} | split -l 1 -a 3)
done
git -c core.bigFileThreshold=1 add .
git -c user.name=bench -c user.email=bench@example.com commit -q -m files
[ "$(find . -name 'x*' -type f | wc -l)" = ${FILES} ]
[ "$(git status --porcelain)" = "" ]
cd ..
make -s
./program > /dev/null
echo ready
until [ -e ended ]; do sleep 1; done
`,
  'measure.sh': `set -eu
now() { now=\${EPOCHREALTIME/[.,]/}; }
case $1 in
compile)
	objects=
	for i in {1..${UNITS}}; do objects="$objects unit$((($2 * ${UNITS} + i) % ${COMPILE_FILES})).o"; done
	rm $objects
	now; began=$now
	make -s -j1 $objects
	;;
status)
	cd files
	now; began=$now
	git status --porcelain > /dev/null
	;;
find)
	now; began=$now
	find files -type f -size +0 > /dev/null
	;;
esac
now; echo "us $((now - began))"
`,
  'end.sh': 'touch ended\n',
};
