/** The link process of a job that is measured, from outside. */
import { readdirSync, readFileSync } from 'node:fs';
import { CtError } from '../core/errors.ts';
import { privateKib } from './bench-machine.ts';

/** The link process at work: of the daemon's, the one with the most memory; the others wait for a VM or a job. */
export function linkPid(daemonPid: number): number {
  const children = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => isLinkOf(pid, daemonPid));
  const [largest] = children.sort((a, b) => privateKib(b) - privateKib(a));
  if (largest === undefined) throw new CtError('INTERNAL', 'there is no link process');
  return largest;
}

function isLinkOf(pid: number, daemonPid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
    return parent === daemonPid && readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes('link-process');
  } catch {
    return false; // it ended
  }
}
