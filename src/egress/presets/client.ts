/**
 * Asks a client (npm, git, …) of this machine for its configuration.
 *
 * Only what the operator and the user configured may count, never the project that a job comes from: clients run in `/`,
 * and neither with programs nor with settings that a project has put into the environment of this process.
 */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, isAbsolute, join } from 'node:path';
import type { Environment } from './preset.ts';

/** A client that only prints its configuration; npm takes half a second, more on a busy machine. */
const CLIENT_TIMEOUT_MS = 20_000;
/** Operator-controlled; a configuration is a few kilobytes. */
const MAX_OUTPUT_BYTES = 1024 * 1024;
/** Where every program of the machine has a place. */
const CLIENT_DIRECTORY = '/';
const DEFAULT_PATH = '/usr/local/bin:/usr/bin:/bin';

/** Its stdout, or why there is none: completes "npm …". What it wrote to stderr may hold credentials and is dropped. */
export type Answer =
  | { readonly output: string; readonly problem?: undefined }
  | { readonly output?: undefined; readonly problem: string };

export interface Question {
  readonly file: string;
  readonly args: readonly string[];
  /** Documented variables of the client, of this process's environment or fixed. */
  readonly env: Readonly<Record<string, string>>;
}

/** Never rejects. The client and what it started are gone afterwards. */
export function ask(
  question: Question,
  around: Environment,
  timeoutMs: number = CLIENT_TIMEOUT_MS,
): Promise<Answer> {
  const { promise, resolve } = Promise.withResolvers<Answer>();
  const child = spawn(question.file, question.args, {
    cwd: CLIENT_DIRECTORY,
    stdio: ['ignore', 'pipe', 'ignore'],
    // A group of its own: wrappers of clients start the client proper.
    detached: true,
    env: { PATH: clientPath(around), HOME: homeOf(around), LC_ALL: 'C', ...question.env },
  });
  let problem: string | undefined;
  const kill = (why: string): void => {
    problem ??= why;
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    } catch {
      // it has ended
    }
  };
  const timer = setTimeout(() => kill(`did not answer in ${timeoutMs / 1000} s`), timeoutMs);
  const chunks: Buffer[] = [];
  let bytes = 0;
  child.stdout.on('data', (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes > MAX_OUTPUT_BYTES) kill('printed too much');
    else chunks.push(chunk);
  });
  child.once('error', (error: NodeJS.ErrnoException) => {
    clearTimeout(timer);
    resolve({ problem: error.code === 'ENOENT' ? 'is not installed' : 'could not be started' });
  });
  child.once('close', (code) => {
    clearTimeout(timer);
    if (code !== 0) problem ??= 'does not say how it is configured';
    resolve(problem === undefined ? { output: Buffer.concat(chunks).toString('utf8') } : { problem });
  });
  return promise;
}

export function homeOf(around: Environment): string {
  const home = around['HOME'];
  return home !== undefined && isAbsolute(home) ? home : homedir();
}

/** Those of `names` that are set, as they are. */
export function variables(around: Environment, names: readonly string[]): Record<string, string> {
  const found: Record<string, string> = {};
  for (const name of names) {
    const value = around[name];
    if (value !== undefined && value !== '') found[name] = value;
  }
  return found;
}

/**
 * The search path without directories that projects put there: relative ones, those of npm packages (`npm run` adds
 * node_modules/.bin) and of Python's virtual environments, each of which may hold another `npm` or `pip`.
 */
export function clientPath(around: Environment): string {
  const directories = (around['PATH'] ?? DEFAULT_PATH)
    .split(':')
    .filter(
      (directory) =>
        isAbsolute(directory) &&
        !directory.split('/').includes('node_modules') &&
        !existsSync(join(dirname(directory), 'pyvenv.cfg')),
    );
  return directories.length === 0 ? DEFAULT_PATH : directories.join(':');
}
