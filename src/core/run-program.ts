import { spawn } from 'node:child_process';
import { BoundedTail } from './bounded-tail.ts';
import { CtError, type ErrorCode, STORE_FULL_HINT } from './errors.ts';

export interface RunProgramOptions {
  readonly file: string;
  readonly args: readonly string[];
  /** The child's whole environment; PATH is added from ours. */
  readonly env?: Readonly<Record<string, string>>;
  /** Descriptors of ours that the child gets as 0, 1 (unless captured), 3, 4, …; 0 is /dev/null without it. */
  readonly stdin?: number;
  /** What the program reads from its stdin, instead. */
  readonly input?: Uint8Array;
  readonly extraFds?: readonly number[];
  readonly maxOutputBytes: number;
  readonly signal?: AbortSignal;
  /** Code of the error when the program is missing or fails. */
  readonly failureCode: ErrorCode;
}

/**
 * Runs a short-lived tool of ours to its end and returns its stdout. Throws `failureCode` with the tail of stderr if
 * it fails, is killed, prints more than `maxOutputBytes` or cannot be started; the child is gone in every case.
 */
export async function runProgram(options: RunProgramOptions): Promise<Buffer> {
  const { file, args, maxOutputBytes, failureCode } = options;
  const child = spawn(file, args, {
    stdio: [
      options.input ? 'pipe' : (options.stdin ?? 'ignore'),
      'pipe',
      'pipe',
      ...(options.extraFds ?? []),
    ],
    env: { PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C', ...options.env },
    ...(options.signal ? { signal: options.signal, killSignal: 'SIGKILL' as const } : {}),
  });
  child.stdin?.on('error', () => {}); // one that does not read to the end is judged by its exit status
  child.stdin?.end(options.input);
  const stderr = new BoundedTail(4096);
  const output: Buffer[] = [];
  let outputBytes = 0;
  child.stdout?.on('data', (chunk: Buffer) => {
    outputBytes += chunk.length;
    if (outputBytes > maxOutputBytes) child.kill('SIGKILL');
    else output.push(chunk);
  });
  child.stderr?.on('data', (chunk: Buffer) => stderr.push(chunk));

  const { promise, resolve, reject } = Promise.withResolvers<string | undefined>();
  child.once('error', reject);
  child.once('close', (code, signal) => {
    if (outputBytes > maxOutputBytes) resolve(`it printed more than ${maxOutputBytes} bytes`);
    else if (signal !== null) resolve(`it was killed by ${signal}`);
    else resolve(code === 0 ? undefined : `it exited with ${code}`);
  });
  let failure: string | undefined;
  try {
    failure = await promise;
  } catch (error) {
    if (options.signal?.aborted) throw new CtError('CANCELLED', `${file} was cancelled`, { cause: error });
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
      throw new CtError('REQUIREMENT_MISSING', `the program ${file} is not installed`, {
        cause: error,
        hint: '`ct doctor` lists what is missing and how to get it',
      });
    }
    throw new CtError(failureCode, `${file} could not be started`, { cause: error });
  }
  if (failure !== undefined) {
    const detail = stderr.text().trim();
    if (/no space left on device/i.test(detail)) {
      throw new CtError('STORE_FULL', `${file} failed: ${detail}`, { hint: STORE_FULL_HINT });
    }
    throw new CtError(failureCode, `${file} failed: ${failure}${detail === '' ? '' : `\n${detail}`}`);
  }
  return Buffer.concat(output);
}
