/** The daemon's API on its unix socket, as both ends know it. */
import type { ControllerStatus } from '../vmm/cgroup.ts';

export const API_INFO = '/v1/info';
export const API_JOBS = '/v1/jobs';
export const API_SHUTDOWN = '/v1/shutdown';
export const JOB_PROTOCOL = 'ct-job/1';

export interface HostInfo {
  readonly pid: number;
  /** Which build serves; a client of another build replaces an idle daemon. */
  readonly build: string;
  readonly ctHome: string;
  /** Undefined until a VM was started. */
  readonly accelerator?: { readonly accelerator: 'kvm' | 'tcg'; readonly reason: string };
  readonly cpus: number;
  readonly memoryMib: number;
  readonly runningJobs: number;
  readonly waitingJobs: number;
  readonly templates: number;
  readonly cgroups: readonly ControllerStatus[];
}
