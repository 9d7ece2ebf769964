/** Cgroups of tests, and a look at those of a process from outside. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CgroupTree, type Controller } from '../../src/vmm/cgroup.ts';
import type { Scratch } from './scratch.ts';

let trees = 0;

/** A tree that no daemon uses. */
export async function testCgroups(scratch: Scratch): Promise<CgroupTree & AsyncDisposable> {
  const tree = await CgroupTree.open({
    id: `test-${process.pid}-${trees++}`,
    recordPath: join(scratch.path, 'cgroups.json'),
  });
  return Object.assign(tree, { [Symbol.asyncDispose]: () => tree.close() });
}

/** Why a test that needs these controllers cannot run here; false if it can. */
export async function lacking(scratch: Scratch, ...controllers: Controller[]): Promise<string | false> {
  await using tree = await testCgroups(scratch);
  const missing = tree.controllers.filter(
    ({ controller, reason }) => controllers.includes(controller) && reason !== undefined,
  );
  return missing.length > 0 && missing.map(({ controller, reason }) => `${controller}: ${reason}`).join('; ');
}

/** Where a process is according to the kernel: below `directory`, the tree's place in the controller's hierarchy. */
export function cgroupOf(pid: number, tree: CgroupTree, controller: Controller): string {
  const status = tree.controllers.find((one) => one.controller === controller);
  if (status?.directory === undefined) throw new Error(`no ${controller} controller`);
  const name = status.directory.slice(status.directory.lastIndexOf('/'));
  for (const line of readFileSync(`/proc/${pid}/cgroup`, 'utf8').split('\n')) {
    const at = line.indexOf(`${name}/`);
    const controllers = line.split(':')[1];
    const v1Name = controller === 'io' ? 'blkio' : controller;
    if (at >= 0 && (controllers === '' || controllers?.split(',').includes(v1Name)))
      return join(status.directory, line.slice(at + name.length));
  }
  throw new Error(`process ${pid} is in no ${controller} cgroup of ours`);
}

export function setCpuLimit(directory: string, version: 1 | 2, cpus: number): void {
  if (version === 2) writeFileSync(join(directory, 'cpu.max'), `${Math.round(cpus * 100_000)} 100000`);
  else writeFileSync(join(directory, 'cpu.cfs_quota_us'), String(Math.round(cpus * 100_000)));
}

/** Leaves a cgroup as much memory as it uses and `spareMib` more. */
export function setMemoryLimitAbovePresentUse(directory: string, version: 1 | 2, spareMib: number): void {
  const [usage, limits] =
    version === 2
      ? ['memory.current', ['memory.max']]
      : ['memory.usage_in_bytes', ['memory.limit_in_bytes', 'memory.memsw.limit_in_bytes']];
  const bytes = Number(readFileSync(join(directory, usage), 'utf8')) + spareMib * 1024 * 1024;
  for (const limit of limits) writeFileSync(join(directory, limit), String(bytes));
}

/** Seconds of processor time a process has used, all threads (proc_pid_stat(5)). */
export function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}
