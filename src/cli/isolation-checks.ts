/** What `ct doctor` says about isolation: each measure, and whether it holds on this host. None of the checks throws. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { toCtError } from '../core/errors.ts';
import { installRoot, launcherPath } from '../core/install.ts';
import { homeId } from '../core/paths.ts';
import type { HostInfo } from '../host/client.ts';
import type { Accelerator } from '../protocol/run.ts';
import type { ControllerStatus } from '../vmm/cgroup.ts';
import type { Check } from './checks.ts';

const FIXES: Readonly<Record<string, string>> = {
  user: 'start the host daemon as root, or as a user for whom user namespaces are allowed',
  namespaces: 'this kernel lacks namespaces that VMs need; use one of a Linux distribution',
  files: 'please report this, with ct doctor --report FILE',
  privileges: 'please report this, with ct doctor --report FILE',
  'system calls': "install Debian's qemu-system-x86, which has seccomp",
  'core dumps': 'please report this, with ct doctor --report FILE',
};

/** Looks at a VMM that is started for it. */
export async function checkVmmIsolation(): Promise<Check[]> {
  try {
    const [{ inspectIsolation }, { QEMU_PATH }] = await Promise.all([
      import('../vmm/isolation.ts'),
      import('../vmm/qemu/version.ts'),
    ]);
    const measures = await inspectIsolation({ launcherPath, qemuPath: QEMU_PATH });
    return measures.map(({ name, holds, message }) => ({
      name: `VMM ${name}`,
      level: holds ? 'ok' : 'warning',
      message,
      ...(holds || FIXES[name] === undefined ? {} : { fix: FIXES[name] }),
    }));
  } catch (error) {
    const { message, hint } = toCtError(error);
    const fix = hint === undefined ? {} : { fix: hint };
    return [{ name: 'VMM isolation', level: 'failed', message: message.split('\n')[0] ?? '', ...fix }];
  }
}

/** What the running daemon uses; without one, what a daemon that is started from here would. */
export interface CgroupUse {
  readonly isInUse: boolean;
  readonly statuses: readonly ControllerStatus[];
}

export async function cgroupUse(ctHome: string, host: HostInfo | undefined): Promise<CgroupUse> {
  if (host) return { isInUse: true, statuses: host.cgroups };
  try {
    const { inspectCgroups } = await import('../vmm/cgroup.ts');
    return { isInUse: false, statuses: inspectCgroups(homeId(ctHome)) };
  } catch {
    return { isInUse: false, statuses: [] }; // CT_HOME cannot be used: other checks say so
  }
}

const CGROUP_LIMITS: Readonly<Record<string, { readonly limit: string; readonly without: string }>> = {
  cpu: {
    limit: 'no VM gets more processor time than its job asked for',
    without: 'the emulator or a VMM that is taken over can use every processor of this host',
  },
  memory: {
    limit: 'no VM gets more memory than its job asked for, and none of it is swapped',
    without: 'a VMM that is taken over can use all memory of this host',
  },
  pids: {
    limit: 'no VMM has more tasks than it needs',
    without: 'a VMM that is taken over can start tasks without end',
  },
};

export function checkCgroups({ isInUse, statuses }: CgroupUse): Check[] {
  return statuses.flatMap(({ controller, version, reason, directory }): Check[] => {
    const texts = CGROUP_LIMITS[controller];
    const name = `${controller} limit`;
    if (!texts) return []; // the weight of I/O is a courtesy, and depends on each disk's scheduler
    if (version === undefined) {
      return [
        {
          name,
          level: 'warning',
          message: `none: ${texts.without}; ${reason}`,
          fix: 'start the host daemon as a service with a cgroup of its own: docs/operations.md, "Cgroups"',
        },
      ];
    }
    const where = isInUse ? `cgroup v${version}` : `cgroup v${version}, once the daemon runs`;
    if (
      controller === 'memory' &&
      isInUse &&
      directory !== undefined &&
      !keepsOutOfSwap(version, directory)
    ) {
      const fix = 'boot with swapaccount=1, or turn swap off';
      const message = `memory only (${where}); this kernel does not account for swap`;
      return [{ name, level: 'warning', message, fix }];
    }
    return [{ name, level: 'ok', message: `${texts.limit} (${where})` }];
  });
}

/** Swap is on: does the memory cgroup keep VMs out of it? */
export function vmsAreKeptOutOfSwap(statuses: readonly ControllerStatus[]): boolean {
  const memory = statuses.find(({ controller }) => controller === 'memory');
  return (
    memory?.version !== undefined &&
    memory.directory !== undefined &&
    keepsOutOfSwap(memory.version, memory.directory)
  );
}

function keepsOutOfSwap(version: 1 | 2, directory: string): boolean {
  return existsSync(join(directory, version === 2 ? 'memory.swap.max' : 'memory.memsw.limit_in_bytes'));
}

/** As the running daemon says. */
export function checkLinkProcess(host: HostInfo | undefined): Check {
  const name = 'link process';
  if (!host) return { name, level: 'ok', message: 'not known: no host daemon runs' };
  const { kind, unreadable } = host.link;
  const rest = 'sees its code and its log, no network, no capabilities';
  if (kind === 'own-user') return { name, level: 'ok', message: `user id of its own; ${rest}` };
  if (unreadable === undefined) return { name, level: 'ok', message: `user namespace; ${rest}` };
  return {
    name,
    level: 'warning',
    message: `root in a user namespace, because others may not read ${unreadable}; ${rest}`,
    fix: `chmod -R go+rX ${installRoot}, if nothing in it is secret; no permission is needed on directories above`,
  };
}

/** Same-page merging and sibling threads let a VM learn about its neighbours. */
export function checkSideChannels(accelerator: Accelerator | undefined): Check[] {
  const ksm = readOr('/sys/kernel/mm/ksm/run') === '1';
  const smt = readOr('/sys/devices/system/cpu/smt/active') === '1';
  const checks: Check[] = [
    {
      name: 'KSM',
      level: 'ok',
      message: ksm ? 'on, but not for VMs: QEMU is told not to offer their memory' : 'off',
    },
  ];
  if (!smt) return [...checks, { name: 'SMT', level: 'ok', message: 'off, or this CPU has none' }];
  if (accelerator !== 'kvm') {
    return [...checks, { name: 'SMT', level: 'ok', message: 'on; it matters once jobs run under KVM' }];
  }
  const message = 'on: two VMs that share a core can learn about each other';
  const fix = 'echo off | sudo tee /sys/devices/system/cpu/smt/control, where jobs do not trust each other';
  return [...checks, { name: 'SMT', level: 'warning', message, fix }];
}

function readOr(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return '';
  }
}
