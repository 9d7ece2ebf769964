/** Processes as /proc shows them (proc(5)). */
import { readdirSync, readFileSync } from 'node:fs';

export interface ProcessInfo {
  readonly pid: number;
  readonly parent: number;
  readonly name: string;
  /** In clock ticks since boot: with the pid it identifies a process. */
  readonly startTime: string;
  readonly rssKib: number;
}

export function allProcesses(): ProcessInfo[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        const stat = readFileSync(`/proc/${name}/stat`, 'utf8');
        const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
        if (fields[0] === 'Z') return []; // ended; only its parent has not looked yet
        return {
          pid: Number(name),
          parent: Number(fields[1]),
          name: stat.slice(stat.indexOf('(') + 1, stat.lastIndexOf(')')),
          startTime: fields[19] ?? '',
          rssKib: Number(fields[21]) * 4,
        };
      } catch {
        return []; // it ended while we looked
      }
    });
}

export function childProcesses(pid: number): ProcessInfo[] {
  return allProcesses().filter(({ parent }) => parent === pid);
}

/** The process itself (if it lives) and everything below it. */
export function descendantsOf(pid: number): ProcessInfo[] {
  const all = allProcesses();
  const found = new Set([pid]);
  for (let size = 0; size !== found.size; ) {
    size = found.size;
    for (const { pid: child, parent } of all) if (found.has(parent)) found.add(child);
  }
  return all.filter((process) => found.has(process.pid));
}

export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
