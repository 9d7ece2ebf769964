/** Locks between processes that cannot go stale: the kernel releases them when their holder ends. */
import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { CtError } from '../core/errors.ts';

/**
 * Takes the exclusive flock(2) of `path`, creating the file; calls `onWait` if another process holds it, and waits.
 * The lock lasts until the result is disposed or this process ends. Throws CANCELLED after an abort.
 *
 * Node cannot call flock(2), but the lock belongs to the open file, not to the process: flock(1) locks the descriptor
 * that it inherits from us, and its exit leaves ours locked. Node opens files close-on-exec, so no other child keeps it.
 */
export async function takeLock(
  path: string,
  options: { readonly signal?: AbortSignal | undefined; readonly onWait: () => void },
): Promise<Disposable> {
  const fd = openSync(path, 'a', 0o600);
  try {
    if (!(await flock(fd, ['--nonblock'], undefined))) {
      options.onWait();
      if (!(await flock(fd, [], options.signal))) throw new CtError('INTERNAL', `flock of ${path} failed`);
    }
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  return { [Symbol.dispose]: () => closeSync(fd) };
}

/** Whether the lock was got; 1 is flock's answer when it was not. */
async function flock(
  fd: number,
  flags: readonly string[],
  signal: AbortSignal | undefined,
): Promise<boolean> {
  if (signal?.aborted) throw new CtError('CANCELLED', 'the image build was cancelled');
  const child = spawn('flock', ['--exclusive', ...flags, '3'], {
    stdio: ['ignore', 'ignore', 'ignore', fd],
    env: { PATH: '/usr/bin:/bin' },
  });
  const stop = (): void => void child.kill('SIGKILL');
  signal?.addEventListener('abort', stop);
  try {
    const { promise, resolve, reject } = Promise.withResolvers<number | null>();
    child.once('error', (cause) =>
      reject(
        new CtError('REQUIREMENT_MISSING', 'the program flock (util-linux) is not installed', { cause }),
      ),
    );
    child.once('exit', resolve);
    const code = await promise;
    if (signal?.aborted) throw new CtError('CANCELLED', 'cancelled while waiting for another image build');
    return code === 0;
  } finally {
    signal?.removeEventListener('abort', stop);
  }
}
