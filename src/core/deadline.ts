import type { CtError } from './errors.ts';

/**
 * Settles as `promise` does, or rejects with `onTimeout()` after `timeoutMs`. The timer never outlives the promise.
 * The promise itself is not cancelled: the caller ends what it waits for.
 */
export async function withDeadline<T>(
  promise: Promise<T>,
  timeoutMs: number,
  onTimeout: () => CtError,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const expired = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(onTimeout()), timeoutMs);
  });
  try {
    return await Promise.race([promise, expired]);
  } finally {
    clearTimeout(timer);
  }
}
