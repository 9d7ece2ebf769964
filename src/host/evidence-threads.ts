/** Starts the threads that judge evidence about dependencies (evidence-worker.ts), few at a time. */
import { Worker } from 'node:worker_threads';
import { CtError, messageOf } from '../core/errors.ts';
import { entryPoint } from '../core/install.ts';
import type { LockFacts } from '../verification/dependencies/lock-facts.ts';
import type { EvidenceOrder } from './evidence-worker.ts';

/** Each has a heap of its own; more would be memory that jobs are counted on. */
const MAX_THREADS = 2;
/** Evidence of 32 MiB as JSON, and what is made of it. */
const HEAP_MIB = 320;
/** Some thousand attestations, on a busy host. */
const TIMEOUT_MS = 120_000;

let running = 0;
const waiting: (() => void)[] = [];

/**
 * Throws VERIFY_DEPENDENCY_INVALID if the evidence cannot be judged in the time and memory that it may take: whoever wrote it
 * must not be able to choose another end than a refusal.
 */
export async function judgeLocks(order: EvidenceOrder): Promise<readonly LockFacts[]> {
  if (running < MAX_THREADS) running++;
  else await new Promise<void>((resolve) => waiting.push(resolve));
  try {
    return await inThread(order);
  } finally {
    // Whoever waits gets the place itself: nobody who comes in between can take it.
    const next = waiting.shift();
    if (next) next();
    else running--;
  }
}

async function inThread(order: EvidenceOrder): Promise<readonly LockFacts[]> {
  const { promise, resolve, reject } = Promise.withResolvers<readonly LockFacts[]>();
  const worker = new Worker(entryPoint('host/evidence-worker'), {
    workerData: order,
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MIB, maxYoungGenerationSizeMb: 32 },
  });
  const failed = (why: string): void =>
    reject(
      new CtError('VERIFY_DEPENDENCY_INVALID', `the evidence about dependencies cannot be judged: ${why}`),
    );
  const timer = setTimeout(() => failed(`it takes more than ${TIMEOUT_MS / 1000} s`), TIMEOUT_MS);
  worker.once('message', resolve);
  worker.once('error', (error) => failed(messageOf(error)));
  worker.once('exit', () => failed('its thread ended'));
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    await worker.terminate();
  }
}
