/**
 * `ct bench jobs` and `ct bench chaos`: many jobs through the daemon, undisturbed or while processes are killed at random,
 * and then a search for anything that is left.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { CtError } from '../core/errors.ts';
import { installRoot } from '../core/install.ts';
import { socketDirectory } from '../core/paths.ts';
import type { JobOutcome } from '../protocol/run.ts';
import { connectHost, findHost, type HostClient } from './client.ts';
import { type Distribution, distribution } from './distribution.ts';

const SAMPLE_MS = 200;
/** A fresh daemon replaces a killed one within seconds; an emulated template takes some more. */
const SETTLE_TIMEOUT_MS = 60_000;

export interface BenchJobsOptions {
  readonly ctHome: string;
  readonly image: string;
  readonly jobs: number;
  /** Jobs at a time. */
  readonly parallel: number;
  /** Kills something at random this often; never if absent. */
  readonly killEveryMs?: number;
  readonly onProgress: (done: number, total: number, what: string) => void;
  readonly signal: AbortSignal;
}

export type Victim = 'client' | 'vmm' | 'link' | 'daemon';

export interface Leftovers {
  /** Processes that belonged to a daemon of this CT_HOME and still run. */
  readonly processes: number;
  readonly scratchFiles: number;
  readonly sockets: number;
  readonly cgroups: number;
}

export interface JobsFigures {
  readonly jobs: number;
  readonly parallel: number;
  readonly jobsPerSecond: number;
  /** Start of `ct run` → its end, of jobs that succeeded. */
  readonly commandMs: Distribution;
  readonly kills: Readonly<Record<Victim, number>>;
  /** As the daemon has recorded them. */
  readonly outcomes: Readonly<Partial<Record<JobOutcome, number>>>;
  /** Runs whose record and whose client disagree, or that have no end. */
  readonly untruthful: readonly string[];
  readonly leftovers: Leftovers;
  /** Memory of the daemon process after a tenth of the jobs, and at the end; of the last daemon if any was killed. */
  readonly daemonRssMib: { readonly early: number; readonly end: number };
}

interface ClientRun {
  readonly run: string | undefined;
  readonly status: number | null;
  /** It was killed, or lost its connection: then it knows nothing that the record could contradict. */
  readonly heardNothing: boolean;
}

/** Throws what starting the daemon throws; jobs that fail are figures. */
export async function benchJobs(options: BenchJobsOptions): Promise<JobsFigures> {
  await using cleanup = new AsyncDisposableStack();
  const directory = mkdtempSync(join(options.ctHome, 'bench-'));
  cleanup.defer(() => rmSync(directory, { recursive: true, force: true }));
  const tree = join(directory, 'tree');
  mkdirSync(tree);
  const bench = new JobsBench(options, tree);
  cleanup.defer(() => bench.stop());
  return await bench.run();
}

class JobsBench {
  readonly #options: BenchJobsOptions;
  readonly #tree: string;
  readonly #clients = new Map<ChildProcess, { wasKilled: boolean }>();
  readonly #finished: ClientRun[] = [];
  readonly #commandMs: number[] = [];
  readonly #kills: Record<Victim, number> = { client: 0, vmm: 0, link: 0, daemon: 0 };
  /** Every process seen below a daemon: pid → start time. */
  readonly #seen = new Map<string, string>();
  readonly #timers: NodeJS.Timeout[] = [];
  #started = 0;

  constructor(options: BenchJobsOptions, tree: string) {
    this.#options = options;
    this.#tree = tree;
  }

  async run(): Promise<JobsFigures> {
    const { jobs, parallel, killEveryMs, onProgress, signal } = this.#options;
    await this.#host();
    await this.#job(); // makes the template
    this.#finished.length = 0;
    this.#commandMs.length = 0;
    this.#timers.push(setInterval(() => void this.#look(), SAMPLE_MS));
    if (killEveryMs !== undefined) this.#timers.push(setInterval(() => void this.#kill(), killEveryMs));

    const startedAt = performance.now();
    let earlyRss = Number.NaN;
    const worker = async (): Promise<void> => {
      while (this.#started < jobs) {
        signal.throwIfAborted();
        onProgress(this.#started++, jobs, killEveryMs === undefined ? 'jobs' : 'jobs under attack');
        await this.#job();
        if (Number.isNaN(earlyRss) && this.#finished.length >= jobs / 10)
          earlyRss = await this.#daemonRssMib();
      }
    };
    await Promise.all(Array.from({ length: parallel }, worker));
    const seconds = (performance.now() - startedAt) / 1000;
    this.stop();

    const host = await this.#idleHost();
    const endRss = await this.#daemonRssMib();
    const { outcomes, untruthful } = await this.#compare(host);
    return {
      jobs,
      parallel,
      jobsPerSecond: Math.round((jobs / seconds) * 100) / 100,
      commandMs: distribution(this.#commandMs),
      kills: this.#kills,
      outcomes,
      untruthful,
      leftovers: await this.#leftovers(host),
      daemonRssMib: { early: earlyRss, end: endRss },
    };
  }

  stop(): void {
    for (const timer of this.#timers.splice(0)) clearInterval(timer);
    for (const client of this.#clients.keys()) client.kill('SIGKILL');
  }

  async #job(): Promise<void> {
    const startedAt = performance.now();
    const args = [
      'run',
      '--progress=rawjson',
      '--image',
      this.#options.image,
      '--memory',
      '256M',
      '--',
      'echo',
      'done',
    ];
    const child = spawn(join(installRoot, 'ct'), args, {
      cwd: this.#tree,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        PATH: process.env['PATH'] ?? '',
        HOME: process.env['HOME'] ?? '',
        CT_HOME: this.#options.ctHome,
      },
    });
    const state = { wasKilled: false };
    this.#clients.set(child, state);
    let stdout = '';
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    let stderr = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    const [status] = (await once(child, 'close')) as [number | null];
    this.#clients.delete(child);
    if (status === 0) this.#commandMs.push(performance.now() - startedAt);
    const run = /"run":"([0-9a-z]+)"/.exec(stdout)?.[1];
    const heardNothing = state.wasKilled || /LINK_DIED|HOST_UNREACHABLE/.test(stdout + stderr);
    this.#finished.push({ run, status, heardNothing });
  }

  async #kill(): Promise<void> {
    const victims: Victim[] = ['client', 'vmm', 'link', 'daemon'];
    const victim = victims[Math.floor(Math.random() * victims.length)] ?? 'vmm';
    if (victim === 'client') {
      const clients = [...this.#clients];
      const chosen = clients[Math.floor(Math.random() * clients.length)];
      if (!chosen) return;
      chosen[1].wasKilled = true;
      chosen[0].kill('SIGKILL');
    } else {
      const daemon = await this.#daemonPid();
      if (daemon === undefined) return;
      const below = processes().filter(({ parent }) => parent === daemon);
      const pool =
        victim === 'daemon' ? [] : below.filter(({ name }) => name.startsWith('qemu') === (victim === 'vmm'));
      const pid = victim === 'daemon' ? daemon : pool[Math.floor(Math.random() * pool.length)]?.pid;
      if (pid === undefined) return;
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        return; // it has just ended
      }
    }
    this.#kills[victim]++;
  }

  /** Notes what runs below the daemon, so that it can be looked for in the end. */
  async #look(): Promise<void> {
    const daemon = await this.#daemonPid();
    if (daemon === undefined) return;
    for (const { pid, parent, startTime } of processes()) {
      if (pid === daemon || parent === daemon) this.#seen.set(`${pid}`, startTime);
    }
  }

  async #daemonPid(): Promise<number | undefined> {
    const host = await findHost(this.#options.ctHome).catch(() => undefined);
    return (await host?.info().catch(() => undefined))?.pid;
  }

  async #daemonRssMib(): Promise<number> {
    const pid = await this.#daemonPid();
    if (pid === undefined) return Number.NaN;
    const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
    return Math.round(Number(kib) / 102.4) / 10;
  }

  async #host(): Promise<HostClient> {
    return connectHost({ ctHome: this.#options.ctHome, signal: this.#options.signal });
  }

  /** The daemon (a new one if the last was killed), when it has nothing to do. */
  async #idleHost(): Promise<HostClient> {
    const deadline = performance.now() + SETTLE_TIMEOUT_MS;
    for (;;) {
      const host = await this.#host();
      const { runningJobs, waitingJobs } = await host.info();
      if (runningJobs + waitingJobs === 0) return host;
      if (performance.now() > deadline) throw new CtError('INTERNAL', `${runningJobs} jobs do not end`);
      await sleep(SAMPLE_MS);
    }
  }

  async #compare(host: HostClient): Promise<Pick<JobsFigures, 'outcomes' | 'untruthful'>> {
    const records = new Map((await host.runs('all')).map((record) => [record.run, record]));
    const outcomes: Partial<Record<JobOutcome, number>> = {};
    const untruthful: string[] = [];
    for (const { run, status, heardNothing } of this.#finished) {
      if (run === undefined) continue; // killed, or the daemon was, before the job had a name
      const record = records.get(run);
      if (record?.outcome === undefined || record.state !== 'ended') {
        untruthful.push(`${run}: has no end`);
        continue;
      }
      outcomes[record.outcome] = (outcomes[record.outcome] ?? 0) + 1;
      if (!heardNothing && (status === 0) !== (record.outcome === 'success')) {
        untruthful.push(`${run}: the client ended with ${status}, the record says ${record.outcome}`);
      }
    }
    return { outcomes, untruthful };
  }

  /** Ends the daemon and looks for what it and its predecessors have left. */
  async #leftovers(host: HostClient): Promise<Leftovers> {
    const { ctHome } = this.#options;
    await this.#look();
    const cgroupDirectories = (await host.info()).cgroups.flatMap(({ directory }) => directory ?? []);
    if (!(await host.shutdown())) throw new CtError('INTERNAL', 'the daemon does not end');
    const deadline = performance.now() + SETTLE_TIMEOUT_MS;
    let left = this.#stillRunning();
    while (left > 0 && performance.now() < deadline) {
      await sleep(SAMPLE_MS);
      left = this.#stillRunning();
    }
    return {
      processes: left,
      scratchFiles: readdirSync(join(ctHome, 'scratch')).length,
      sockets: readdirSync(await socketDirectory(ctHome)).length,
      cgroups: cgroupDirectories.filter((directory) => existsSync(directory)).length,
    };
  }

  #stillRunning(): number {
    return processes().filter(({ pid, startTime }) => this.#seen.get(`${pid}`) === startTime).length;
  }
}

interface ProcessInfo {
  readonly pid: number;
  readonly parent: number;
  readonly name: string;
  readonly startTime: string;
}

/** proc_pid_stat(5), without zombies. */
function processes(): ProcessInfo[] {
  return readdirSync('/proc').flatMap((entry) => {
    if (!/^\d+$/.test(entry)) return [];
    try {
      const stat = readFileSync(`/proc/${entry}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      const name = stat.slice(stat.indexOf('(') + 1, stat.lastIndexOf(')'));
      if (fields[0] === 'Z') return [];
      return [{ pid: Number(entry), parent: Number(fields[1]), name, startTime: fields[19] ?? '' }];
    } catch {
      return []; // it ended while we looked
    }
  });
}
