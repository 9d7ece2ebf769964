/** What this host can run at once, and the queue of jobs that wait for it: first come, first served. */
import { readFileSync } from 'node:fs';
import { availableParallelism, totalmem } from 'node:os';
import { CtError } from '../core/errors.ts';

const MIB = 1024 * 1024;
/** Left to the system, the daemon and the clients. */
const RESERVED_MIB = 768;
/** VMM and link process of one VM, beside the guest's memory: about 60 MiB each (`ct bench start`). */
export const VM_OVERHEAD_MIB = 128;

export interface Amount {
  readonly cpus: number;
  readonly memoryMib: number;
}

/**
 * CPUs and memory of this host that VMs may use together, cgroup limits counted (v1 and v2): those of a container, and
 * those of the cgroup this process was started in. Call it before the process moves to another one.
 */
export function hostCapacity(): Amount {
  const limits = ['/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'].map(readLimit);
  const own = process.constrainedMemory();
  const memoryBytes = Math.min(totalmem(), ...limits, own > 0 ? own : Number.POSITIVE_INFINITY);
  return {
    cpus: availableParallelism(),
    memoryMib: Math.max(0, Math.floor(memoryBytes / MIB) - RESERVED_MIB),
  };
}

function readLimit(path: string): number {
  try {
    const value = Number(readFileSync(path, 'utf8'));
    return Number.isFinite(value) && value > 0 ? value : Number.POSITIVE_INFINITY;
  } catch {
    return Number.POSITIVE_INFINITY; // no such controller here
  }
}

interface Waiter {
  readonly amount: Amount;
  readonly start: () => void;
}

export class Capacity {
  readonly total: Amount;
  #freeCpus: number;
  #freeMemoryMib: number;
  readonly #queue: Waiter[] = [];

  constructor(total: Amount) {
    this.total = total;
    this.#freeCpus = total.cpus;
    this.#freeMemoryMib = total.memoryMib;
  }

  get waiting(): number {
    return this.#queue.length;
  }

  /**
   * Waits until `amount` is free and takes it; dispose the result to give it back. `onQueued` is called if it has to
   * wait. Throws RESOURCES_EXCEED_HOST if it can never be free, or the signal's reason.
   */
  async take(amount: Amount, signal: AbortSignal, onQueued: () => void): Promise<Disposable> {
    const { cpus, memoryMib } = this.total;
    if (amount.cpus > cpus || amount.memoryMib > memoryMib) {
      throw new CtError(
        'RESOURCES_EXCEED_HOST',
        `the job needs ${amount.cpus} cpu and ${amount.memoryMib} MiB; VMs on this host have ${cpus} cpu and ${memoryMib} MiB together`,
        { hint: `${VM_OVERHEAD_MIB} MiB of the memory are for the VM itself; ask for less in \`resources\`` },
      );
    }
    signal.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const waiter: Waiter = { amount, start: resolve };
    this.#queue.push(waiter);
    const onAbort = (): void => {
      const at = this.#queue.indexOf(waiter);
      if (at < 0) return;
      this.#queue.splice(at, 1);
      reject(signal.reason);
      this.#startNext();
    };
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      this.#startNext();
      if (this.#queue.includes(waiter)) onQueued();
      await promise;
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
    let given = true;
    return {
      [Symbol.dispose]: () => {
        if (!given) return;
        given = false;
        this.#freeCpus += amount.cpus;
        this.#freeMemoryMib += amount.memoryMib;
        this.#startNext();
      },
    };
  }

  #startNext(): void {
    for (let next = this.#queue[0]; next; next = this.#queue[0]) {
      if (next.amount.cpus > this.#freeCpus || next.amount.memoryMib > this.#freeMemoryMib) return;
      this.#freeCpus -= next.amount.cpus;
      this.#freeMemoryMib -= next.amount.memoryMib;
      this.#queue.shift();
      next.start();
    }
  }
}
