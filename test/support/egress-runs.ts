/** Jobs that try to reach the network, on a real host daemon whose network is the outside (outside.ts). */
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Alert } from '../../src/audit/alert.ts';
import { findHost, type HostClient } from '../../src/host/client.ts';
import type { EgressDecision } from '../../src/policy/decision.ts';
import type { EgressInput, EgressRequest } from '../../src/policy/input.ts';
import type { NetworkMode } from '../../src/protocol/network.ts';
import { borrowImages } from './borrowed-home.ts';
import { stopHost } from './host.ts';
import { type Arrival, Outside } from './outside.ts';
import type { CtOutcome } from './run-ct.ts';
import { scratchDirectory } from './scratch.ts';

const ATTEMPTS = join(import.meta.dirname, '../fixtures/egress/attempts.py');

/** One entry of attempts.py: `how` is the name of a function there, the rest are its arguments. */
export interface Attempt {
  readonly name: string;
  readonly how: string;
  readonly [argument: string]: unknown;
}

export interface EgressStep {
  readonly attempts: readonly Attempt[];
  /** Put before `python3`. */
  readonly as?: string;
  readonly network?: 'none';
}

export interface EgressJob {
  readonly allow: readonly string[];
  readonly mode: NetworkMode;
  readonly steps: readonly EgressStep[];
  readonly memory?: string;
}

/** A line of the decision log (docs/policy.md). */
export interface LoggedDecision {
  readonly input: EgressInput;
  readonly result: EgressDecision;
  /** RFC 3339. */
  readonly timestamp: string;
}

export interface EgressRun {
  readonly outcome: CtOutcome;
  /** The document of `ct run --json`. */
  // biome-ignore lint/suspicious/noExplicitAny: tests look at some of its fields
  readonly report: any;
  /** Per step, by name of the attempt. */
  readonly results: readonly Readonly<Record<string, readonly string[]>>[];
  readonly decisions: readonly LoggedDecision[];
  /** What the run brought outside. */
  readonly arrivals: readonly Arrival[];
  readonly questions: readonly string[];
  readonly packets: number;
}

export class EgressHost implements AsyncDisposable {
  readonly home: string;
  readonly outside: Outside;
  readonly #directory: string;
  readonly #cleanup: AsyncDisposableStack;
  #jobs = 0;

  private constructor(directory: string, home: string, outside: Outside, cleanup: AsyncDisposableStack) {
    this.#directory = directory;
    this.home = home;
    this.outside = outside;
    this.#cleanup = cleanup;
  }

  /** `egress`: that key of the policy data, as YAML indented by two. */
  static async open(names: Readonly<Record<string, readonly string[]>>, egress: string): Promise<EgressHost> {
    await using cleanup = new AsyncDisposableStack();
    const { path } = cleanup.use(scratchDirectory('ct-egress-'));
    const place = join(path, 'outside');
    const home = join(path, 'home');
    for (const directory of [place, home, join(home, 'policy')]) mkdirSync(directory, { mode: 0o700 });
    writeFileSync(join(home, 'policy/data.yml'), policyData(egress), { mode: 0o600 });
    await borrowImages(home);
    const outside = cleanup.use(await Outside.open({ directory: place, names }));
    cleanup.defer(() => stopHost(home));
    return new EgressHost(path, home, outside, cleanup.move());
  }

  /** Runs the job in a VM of its own; returns when it is over. */
  async run(job: EgressJob): Promise<EgressRun> {
    const root = join(this.#directory, `job-${this.#jobs++}`);
    mkdirSync(root);
    copyFileSync(ATTEMPTS, join(root, 'attempts.py'));
    writeFileSync(join(root, 'authority.pem'), this.outside.authorityPem);
    for (const [index, { attempts }] of job.steps.entries()) {
      writeFileSync(join(root, `attempts-${index}.json`), JSON.stringify(attempts));
    }
    writeFileSync(join(root, 'ct.yml'), jobFile(job));
    const before = await this.outside.log();
    const outcome = await this.outside.ct(['run', 'job', '--json'], {
      cwd: root,
      env: { CT_HOME: this.home, XDG_CONFIG_HOME: '/nonexistent' },
    });
    const after = await this.outside.log();
    const report = JSON.parse(outcome.stdout || '{}');
    return {
      outcome,
      report,
      results: job.steps.map((_, index) => readResults(join(root, `.ct/out/job/results-${index}.json`))),
      decisions: this.#decisions(report.jobs?.[0]?.run),
      arrivals: after.arrivals.slice(before.arrivals.length),
      questions: after.questions.slice(before.questions.length),
      packets: after.packets - before.packets,
    };
  }

  /** Milliseconds since 1970 at which the VMM of the next run was gone. Call it before the run. */
  async nextVmGone(): Promise<number> {
    const known = new Set((await this.#host().then((host) => host?.runs('all')))?.map(({ run }) => run));
    for (;;) {
      const host = await this.#host();
      const [next] = (await host?.runs('unended'))?.filter(({ run }) => !known.has(run)) ?? [];
      const pid = next && (await host?.run(next.run))?.vm?.pid;
      if (pid !== undefined) {
        while (existsSync(`/proc/${pid}`)) await sleep(1);
        return Date.now();
      }
      await sleep(20);
    }
  }

  #host(): Promise<HostClient | undefined> {
    return findHost(this.home);
  }

  /** Those about the network; detections have others to tell of the same runs. */
  alerts(): readonly Alert[] {
    const directory = join(this.home, 'alerts');
    if (!existsSync(directory)) return []; // no daemon yet
    return readdirSync(directory)
      .filter((name) => name.endsWith('.jsonl'))
      .flatMap((name) => readLines(join(directory, name)) as readonly Alert[])
      .filter(({ rule }) => rule.startsWith('ct.egress.'));
  }

  #decisions(run: string | undefined): readonly LoggedDecision[] {
    if (run === undefined) return [];
    const lines = readLines(
      join(this.home, 'decisions', `${run}.jsonl`),
    ) as readonly Partial<LoggedDecision>[];
    return lines.filter((line): line is LoggedDecision => line.input?.request !== undefined);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#cleanup.disposeAsync();
  }
}

/** The decision about what matches every given field of a request. */
export function decisionAbout(
  decisions: readonly LoggedDecision[],
  about: Partial<Record<string, unknown>>,
  rule?: string,
): LoggedDecision | undefined {
  return decisions.find(
    ({ input, result }) =>
      Object.entries(about).every(([key, value]) => input.request[key as keyof EgressRequest] === value) &&
      (rule === undefined || result.denial?.rule === rule),
  );
}

function policyData(egress: string): string {
  return `version: 1
egress:
${egress}
admission:
  trust: [local]
  repositories: ['*']
  refs: ['*']
  actors: ['*']
  images: ['*']
limits: {cpus: 64, memory: 256G, disk: 1T, timeout: 1d}
`;
}

function jobFile({ allow, mode, steps, memory = '512M' }: EgressJob): string {
  const lines = steps.map(({ as = '', network }, index) =>
    JSON.stringify({
      name: `step ${index}`,
      run: `${as} python3 attempts.py attempts-${index}.json results-${index}.json`,
      ...(network ? { network } : {}),
    }),
  );
  return `version: 1
jobs:
  job:
    resources: {memory: ${memory}}
    network: ${JSON.stringify({ allow, mode })}
    steps:
${lines.map((line) => `      - ${line}\n`).join('')}    artifacts: {paths: ['results-*.json']}
`;
}

function readResults(path: string): Readonly<Record<string, readonly string[]>> {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch {
    return {}; // the VM was ended before
  }
}

function readLines(path: string): readonly unknown[] {
  return readFileSync(path, 'utf8')
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line));
}
