/** Runs the long programs of a build so that nothing of them outlives us or a cancellation. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { BoundedTail } from '../core/bounded-tail.ts';
import { CtError } from '../core/errors.ts';
import { installRoot } from '../core/install.ts';

export const HOOKS_DIRECTORY: string = join(installRoot, 'src/image/hooks');

/** Tools of file systems are not in every user's PATH. */
export const PROGRAM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** Of a program's output, for the report of its failure. */
const OUTPUT_TAIL_BYTES = 65_536;
/** apt prints lines of several kilobytes; a longer line is only cut. */
const MAX_LINE_CHARACTERS = 16_384;

export interface SupervisedOptions {
  readonly argv: readonly string[];
  /** The whole environment. */
  readonly env: Readonly<Record<string, string>>;
  /** Removed when the program has ended, also if we are killed. */
  readonly scratchDirectory?: string;
  readonly cwd?: string;
  /** Becomes descriptor 3. */
  readonly extraFd?: number;
  readonly onLine: (line: string) => void;
  readonly signal: AbortSignal | undefined;
}

export interface SupervisedResult {
  readonly exitCode: number;
  /** The end of what it printed. */
  readonly tail: string;
}

/**
 * Runs a program under `hooks/supervise.sh`: its process group is killed, and its scratch directory removed, when
 * `signal` aborts or this process dies. Resolves when nothing of it is left; throws CANCELLED after an abort.
 */
export async function runSupervised(options: SupervisedOptions): Promise<SupervisedResult> {
  const { argv, env, signal, onLine } = options;
  if (signal?.aborted) throw new CtError('CANCELLED', 'the image build was cancelled');
  const child = spawn(
    '/bin/sh',
    [join(HOOKS_DIRECTORY, 'supervise.sh'), options.scratchDirectory ?? '', ...argv],
    {
      // A group of its own: an interrupt from the terminal is ours to handle.
      detached: true,
      stdio: ['pipe', 'pipe', 'pipe', ...(options.extraFd === undefined ? [] : [options.extraFd])],
      env,
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    },
  );
  const tail = new BoundedTail(OUTPUT_TAIL_BYTES);
  for (const stream of [child.stdout, child.stderr]) {
    if (stream === null) continue;
    stream.on('data', (chunk: Buffer) => tail.push(chunk));
    createInterface({ input: stream }).on('line', (line) => onLine(line.slice(0, MAX_LINE_CHARACTERS)));
  }
  // Its closing is the signal to stop; the pipe breaks when the supervisor ends first.
  child.stdin?.on('error', () => {});
  const stop = (): void => void child.stdin?.end();
  signal?.addEventListener('abort', stop);
  try {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    child.once('error', reject);
    child.once('close', (code) => resolve(code ?? 137));
    const exitCode = await promise;
    if (signal?.aborted) throw new CtError('CANCELLED', 'the image build was cancelled');
    return { exitCode, tail: tail.text() };
  } finally {
    signal?.removeEventListener('abort', stop);
  }
}
