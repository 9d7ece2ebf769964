/** What benchmarks say of the machine that they run on, and of processes on it. */
import { readFileSync } from 'node:fs';
import { cpus, loadavg } from 'node:os';
import { CtError } from '../core/errors.ts';

export interface BenchedMachine {
  /** ISO 8601, UTC. */
  readonly startedAt: string;
  readonly host: {
    readonly cpu: string;
    readonly cpus: number;
    /** Load average of the last minute before the first run. */
    readonly loadAtStart: number;
  };
}

/** To be asked before anything is measured: the load is that of the others. */
export function benchedMachine(): BenchedMachine {
  const [load = 0] = loadavg();
  return {
    startedAt: new Date().toISOString(),
    host: {
      cpu: cpus()[0]?.model.trim() ?? 'unknown',
      cpus: cpus().length,
      loadAtStart: Math.round(load * 100) / 100,
    },
  };
}

/**
 * KiB of memory that a process shares with nobody: anonymous pages (proc(5), smaps_rollup), which are what was written here and
 * what was copied to be written, and end with the process. Pages of the template that a clone only reads lie in the template's
 * memfd, which holds them anyway; the kernel calls them `Private_Dirty` while one clone alone has them mapped, and
 * `Shared_Dirty` as soon as there are two.
 */
export function privateKib(pid: number): number {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  const kib = Number(/^Anonymous:\s+(\d+) kB$/m.exec(text)?.[1]);
  if (Number.isNaN(kib)) throw new CtError('INTERNAL', `no memory of process ${pid} is on record`);
  return kib;
}
