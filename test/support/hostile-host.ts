/** A host daemon with hostile guests (test/fixtures/hostile/daemon.ts), and what it costs to have it attacked. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { installRoot } from '../../src/core/install.ts';
import { socketDirectory } from '../../src/core/paths.ts';
import { findHost, type HostClient, type JobIo } from '../../src/host/client.ts';
import type { JobRequest, JobResult } from '../../src/protocol/run.ts';
import { descendantsOf } from './processes.ts';
import { scratchDirectory } from './scratch.ts';

const SAMPLE_INTERVAL_MS = 50;
/** A client that does not read hears nothing. */
const CLIENT_PATIENCE_MS = 2000;

export interface Attack {
  /** What the daemon made of it. */
  readonly result: JobResult;
  /** What the client heard: a result, or the code of an error. */
  readonly client: JobResult | { readonly error: string };
  /** From the request to a VM that has ended. */
  readonly vmGoneMs: number;
  readonly linkPeakMib: number;
  readonly output: string;
}

export interface HostileHost extends AsyncDisposable {
  readonly client: HostClient;
  readonly pid: number;
  /** Largest resident set of the daemon so far. */
  daemonMib(): number;
  /** Slowest answer to GET /v1/info so far. */
  slowestInfoMs(): number;
  attack(scenario: string, options?: AttackOptions): Promise<Attack>;
}

export interface AttackOptions {
  readonly timeoutMs?: number;
  readonly artifacts?: readonly string[];
  readonly io?: Partial<JobIo>;
  /** When the step has begun. */
  readonly onStep?: (linkPid: number) => void;
}

interface Said {
  readonly event: 'listening' | 'claimed' | 'ended';
  readonly scenario: string;
  readonly linkPid: number;
  readonly vmPid: number;
  readonly result?: JobResult;
  readonly refused?: string;
}

/** A digest that is the name of a scenario. */
export function imageOf(scenario: string): string {
  return `sha256:${Buffer.from(scenario.padEnd(32, '\0')).toString('hex')}`;
}

export async function hostileHost(): Promise<HostileHost> {
  const cleanup = new AsyncDisposableStack();
  const scratch = cleanup.use(scratchDirectory());
  const sockets = await socketDirectory(scratch.path);
  cleanup.defer(() => rmSync(sockets, { recursive: true, force: true }));
  const daemon = spawn(
    process.execPath,
    [
      '--disable-warning=ExperimentalWarning',
      join(installRoot, 'test/fixtures/hostile/daemon.ts'),
      scratch.path,
    ],
    { stdio: ['pipe', 'pipe', 'inherit'], env: { PATH: process.env['PATH'] } },
  );
  let hasEnded = false;
  const ended = once(daemon, 'exit').then(() => {
    hasEnded = true;
  });
  cleanup.defer(async () => {
    daemon.kill('SIGKILL');
    await ended;
  });
  const said: Said[] = [];
  let wake = Promise.withResolvers<void>();
  createInterface({ input: daemon.stdout }).on('line', (line) => {
    said.push(JSON.parse(line) as Said);
    wake.resolve();
    wake = Promise.withResolvers();
  });
  const hear = async (event: Said['event'], scenario?: string): Promise<Said> => {
    for (;;) {
      const found = said.find((one) => one.event === event && (!scenario || one.scenario === scenario));
      if (found) return found;
      if (hasEnded) throw new Error('the daemon has ended');
      await Promise.race([wake.promise, ended]);
    }
  };
  await hear('listening');
  const client = await findHost(scratch.path);
  if (!client) throw new Error('the daemon cannot be reached');

  let slowestInfoMs = 0;
  let stopped = false;
  cleanup.defer(() => {
    stopped = true;
  });
  const watching = (async () => {
    while (!stopped) {
      const startedAt = performance.now();
      await client.info();
      slowestInfoMs = Math.max(slowestInfoMs, performance.now() - startedAt);
      await sleep(SAMPLE_INTERVAL_MS);
    }
  })();
  watching.catch(() => {
    slowestInfoMs = Number.POSITIVE_INFINITY;
  });

  return {
    client,
    pid: daemon.pid ?? -1,
    daemonMib: () => peakMib(daemon.pid ?? -1),
    slowestInfoMs: () => slowestInfoMs,
    attack: async (scenario, options = {}) => {
      const startedAt = performance.now();
      let output = '';
      let linkPeakMib = 0;
      let vmGoneMs: number | undefined;
      const running = client.runJob(requestOf(scenario, options), {
        onEvent: (event) => {
          if (event.type === 'step-start')
            void hear('claimed', scenario).then((one) => options.onStep?.(one.linkPid));
        },
        onOutput: (_, __, bytes) => {
          if (output.length < 10_000) output += bytes.toString('latin1');
        },
        signal: new AbortController().signal,
        ...options.io,
      });
      const answered: Promise<Attack['client']> = running.catch((error) => ({ error: error.code }));
      const { linkPid, vmPid } = await hear('claimed', scenario);
      const sampler = setInterval(() => {
        linkPeakMib = Math.max(linkPeakMib, peakMib(linkPid));
        if (peakMib(vmPid) === 0) vmGoneMs ??= performance.now() - startedAt;
      }, SAMPLE_INTERVAL_MS);
      try {
        const { result, refused } = await hear('ended', scenario);
        vmGoneMs ??= performance.now() - startedAt;
        const left = [linkPid, vmPid].filter((pid) => descendantsOf(pid).length > 0);
        if (left.length > 0) throw new Error(`left over: ${left.join()}`);
        const heard = await Promise.race([
          answered,
          sleep(CLIENT_PATIENCE_MS, { error: 'NOTHING' }, { ref: false }),
        ]);
        const decided = result ?? ('outcome' in heard ? heard : undefined);
        if (!decided) throw new Error(`refused with ${refused}, and nobody said so`);
        return { result: decided, client: heard, vmGoneMs, linkPeakMib, output };
      } finally {
        clearInterval(sampler);
      }
    },
    [Symbol.asyncDispose]: () => cleanup.disposeAsync(),
  };
}

/** VmHWM of proc(5); 0 for a process that has ended. */
export function peakMib(pid: number): number {
  try {
    return Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024;
  } catch {
    return 0;
  }
}

function requestOf(scenario: string, { timeoutMs = 20_000, artifacts = [] }: AttackOptions): JobRequest {
  return {
    name: scenario,
    image: imageOf(scenario),
    cpus: 1,
    memoryMib: 256,
    diskMib: 64,
    env: {},
    steps: [{ name: 'step', argv: ['true'], env: {}, workingDirectory: '.', condition: 'success' }],
    timeoutMs,
    artifacts,
    sendsTree: false,
  };
}
