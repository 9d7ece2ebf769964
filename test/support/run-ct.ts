/** Runs the real `./ct` and keeps what it said. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { installRoot } from '../../src/core/install.ts';

export interface CtOutcome {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export const ctPath: string = join(installRoot, 'ct');

export async function runCt(
  args: readonly string[],
  options: {
    readonly cwd?: string;
    readonly env?: Readonly<Record<string, string>>;
    readonly input?: string | Uint8Array;
    /** A program and its arguments that start another program: `nsenter …`. */
    readonly through?: readonly string[];
  } = {},
): Promise<CtOutcome> {
  const [file = ctPath, ...rest] = [...(options.through ?? []), ctPath, ...args];
  const child = spawn(file, rest, {
    cwd: options.cwd,
    env: { PATH: process.env['PATH'], HOME: process.env['HOME'], CI: 'true', ...options.env },
    stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
  });
  child.stdin?.on('error', () => {}); // a command may end without reading it
  child.stdin?.end(options.input);
  const chunks: Record<'stdout' | 'stderr', Buffer[]> = { stdout: [], stderr: [] };
  child.stdout?.on('data', (chunk: Buffer) => chunks.stdout.push(chunk));
  child.stderr?.on('data', (chunk: Buffer) => chunks.stderr.push(chunk));
  const { promise, resolve, reject } = Promise.withResolvers<[number | null, NodeJS.Signals | null]>();
  child.once('error', reject);
  child.once('close', (status, signal) => resolve([status, signal]));
  const [status, signal] = await promise;
  return {
    status,
    signal,
    stdout: Buffer.concat(chunks.stdout).toString('utf8'),
    stderr: Buffer.concat(chunks.stderr).toString('utf8'),
  };
}
