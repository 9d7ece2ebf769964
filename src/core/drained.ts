import type { Writable } from 'node:stream';

/** Settles when `stream` takes more, or never will; never rejects. Call it when `write` has returned false. */
export function drained(stream: Writable): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const done = (): void => {
    stream.off('drain', done).off('close', done);
    resolve();
  };
  stream.once('drain', done).once('close', done);
  return promise;
}
