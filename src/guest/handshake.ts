/** Before HTTP/2: waiting for the guest agent and starting a session (docs/guest-link.md, "Starting"). */
import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { withDeadline } from '../core/deadline.ts';
import { CtError } from '../core/errors.ts';
import { HELLO_MAGIC, HELLO_NONCE_BYTES, READY_LINE } from '../protocol/guest-link.ts';
import { MAX_PRE_SESSION_BYTES } from '../protocol/limits.ts';

/** Waits for the guest agent's ready line. Throws GUEST_BOOT_TIMEOUT, GUEST_PROTOCOL or, if the VMM ended, VMM_EXITED_EARLY. */
export async function awaitReady(control: Socket, timeoutMs: number): Promise<void> {
  await awaitBytes(control, Buffer.from(READY_LINE), timeoutMs, 'did not report ready');
}

/**
 * Starts a session on a channel whose guest is ready or about to be resumed: afterwards the next byte in either
 * direction belongs to HTTP/2. Same errors as {@link awaitReady}.
 */
export async function startSession(control: Socket, timeoutMs: number): Promise<void> {
  const hello = Buffer.concat([Buffer.from(HELLO_MAGIC), randomBytes(HELLO_NONCE_BYTES)]);
  control.write(hello);
  await awaitBytes(control, hello, timeoutMs, 'did not answer');
}

/** Drops what the guest sends up to and including `expected`; puts back what follows. */
async function awaitBytes(
  control: Socket,
  expected: Buffer,
  timeoutMs: number,
  whatFailed: string,
): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  let seen = Buffer.alloc(0);
  let droppedBytes = 0;
  const onReadable = (): void => {
    for (
      let chunk = control.read() as Buffer | null;
      chunk !== null;
      chunk = control.read() as Buffer | null
    ) {
      seen = Buffer.concat([seen, chunk]);
      const at = seen.indexOf(expected);
      if (at >= 0) {
        control.off('readable', onReadable);
        const rest = seen.subarray(at + expected.length);
        if (rest.length > 0) control.unshift(rest);
        resolve();
        return;
      }
      // Only a possible beginning of `expected` has to be kept.
      const keep = Math.min(seen.length, expected.length - 1);
      droppedBytes += seen.length - keep;
      seen = Buffer.from(seen.subarray(seen.length - keep));
      if (droppedBytes > MAX_PRE_SESSION_BYTES) {
        reject(new CtError('GUEST_PROTOCOL', 'the guest sent too much before its session started'));
        return;
      }
    }
  };
  const onEnd = (): void =>
    reject(new CtError('VMM_EXITED_EARLY', 'the VMM ended before the guest was ready'));
  const onError = (error: Error): void => {
    reject(new CtError('VMM_EXITED_EARLY', 'the guest channel failed', { cause: error }));
  };
  if (control.readableEnded || control.destroyed) onEnd();
  control.on('readable', onReadable);
  control.once('end', onEnd).once('close', onEnd).once('error', onError);
  try {
    await withDeadline(
      promise,
      timeoutMs,
      () => new CtError('GUEST_BOOT_TIMEOUT', `the guest ${whatFailed} within ${timeoutMs} ms`),
    );
  } finally {
    control.off('readable', onReadable).off('end', onEnd).off('close', onEnd).off('error', onError);
  }
}
