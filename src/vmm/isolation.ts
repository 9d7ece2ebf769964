/**
 * What isolates a VMM on this host, read from a VMM that really runs in its jail (proc(5)): an idle QEMU without a
 * guest, started by {@link VmmProcess} as any other. Nothing here is assumed because a flag was passed.
 */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { CtError } from '../core/errors.ts';
import { VmmProcess } from './process.ts';
import { SANDBOX_ARGUMENTS } from './qemu/arguments.ts';

const START_TIMEOUT_MS = 10_000;
const POLL_MS = 10;

export interface IsolationMeasure {
  readonly name: 'user' | 'namespaces' | 'files' | 'privileges' | 'system calls' | 'core dumps';
  readonly holds: boolean;
  /** What was seen. */
  readonly message: string;
}

/** Starts a VMM, looks, ends it. Throws VMM_START_FAILED if the jail cannot be made here. */
export async function inspectIsolation(options: {
  readonly launcherPath: string;
  readonly qemuPath: string;
}): Promise<IsolationMeasure[]> {
  const vmm = new VmmProcess({
    launcherPath: options.launcherPath,
    program: options.qemuPath,
    args: ['-nodefaults', '-no-user-config', '-display', 'none', '-M', 'none', '-S', ...SANDBOX_ARGUMENTS],
    fds: [],
  });
  try {
    await sandboxed(vmm, options.qemuPath);
    return measure(vmm.pid);
  } finally {
    await vmm.kill();
  }
}

/** Its seccomp filter is the last thing that QEMU sets up before its main loop. */
async function sandboxed(vmm: VmmProcess, qemuPath: string): Promise<void> {
  let hasEnded = false;
  void vmm.exited.then(() => {
    hasEnded = true;
  });
  const deadline = performance.now() + START_TIMEOUT_MS;
  for (;;) {
    if (hasEnded) {
      throw new CtError('VMM_START_FAILED', `no VMM can be started in its jail: ${vmm.diagnostics()}`, {
        hint: 'it needs root, or user namespaces for ordinary users (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)',
      });
    }
    const isQemu = linkOr(`/proc/${vmm.pid}/exe`).endsWith(qemuPath.slice(qemuPath.lastIndexOf('/')));
    const isLate = performance.now() > deadline;
    const isFiltered = /^Seccomp:\s*2$/m.test(readOr(`/proc/${vmm.pid}/status`));
    if (isQemu && (isLate || isFiltered)) return;
    if (isLate) throw new CtError('VMM_START_FAILED', 'the VMM did not start in time');
    await sleep(POLL_MS);
  }
}

function measure(pid: number): IsolationMeasure[] {
  const status = statusOf(pid);
  const others = ['user', 'mnt', 'net', 'ipc', 'uts'].filter(
    (name) => linkOr(`/proc/${pid}/ns/${name}`) !== linkOr(`/proc/self/ns/${name}`),
  );
  const uids = new Set(status.get('Uid')?.split(/\s+/));
  const hasOwnUser = !uids.has(String(process.getuid?.())) && !uids.has('0') && uids.size === 1;
  const uid = [...uids].join(', ');
  const wanted = ['mnt', 'net', 'ipc', 'uts'];
  const shared = wanted.filter((name) => !others.includes(name));
  const mounts = readFileSync(`/proc/${pid}/mountinfo`, 'utf8')
    .split('\n')
    .flatMap((line) => line.split(' ')[4] ?? []);
  const foreign = mounts.filter((path) => !/^\/$|^\/(usr|dev|self|lib\w*|bin|sbin)(\/|$)/.test(path));
  const capabilities = ['CapEff', 'CapPrm', 'CapAmb', 'CapInh'].filter(
    (set) => !/^0+$/.test(status.get(set) ?? ''),
  );
  const noNewPrivileges = status.get('NoNewPrivs') === '1';
  const filtered = status.get('Seccomp') === '2';
  const coreLimit = /^Max core file size\s+(\S+)/m.exec(readFileSync(`/proc/${pid}/limits`, 'utf8'))?.[1];
  const groups = status.get('Groups') ?? '';
  return [
    {
      name: 'user',
      holds: hasOwnUser || others.includes('user'),
      message: hasOwnUser
        ? `user id ${uid}, of this VMM alone`
        : others.includes('user')
          ? `user id ${uid} in a user namespace, where it is nobody`
          : `user id ${uid}, as the daemon`,
    },
    {
      name: 'namespaces',
      holds: shared.length === 0,
      message:
        shared.length === 0
          ? 'mounts, network (none), IPC and host name of its own'
          : `shared with the host: ${shared.join(', ')}`,
    },
    {
      name: 'files',
      holds: foreign.length === 0,
      message:
        foreign.length === 0
          ? `sees ${readdirOr(`/proc/${pid}/root`) ?? 'system libraries and its devices'}`
          : `sees ${foreign.join(', ')}`,
    },
    {
      name: 'privileges',
      holds: noNewPrivileges && capabilities.length === 0,
      message:
        noNewPrivileges && capabilities.length === 0
          ? `no capabilities, no way to new ones${groups === '' ? ', no groups' : ''}`
          : [noNewPrivileges ? '' : 'new privileges are possible', ...capabilities]
              .filter(Boolean)
              .join(', '),
    },
    {
      name: 'system calls',
      holds: filtered,
      message: filtered
        ? "filtered (QEMU's seccomp sandbox: no new processes, no privileges)"
        : 'not filtered: this QEMU was built without seccomp',
    },
    {
      name: 'core dumps',
      // 1, and not 0: a limit of 0 does not hold back a dump to a program (core(5), do_coredump() in the kernel).
      holds: coreLimit === '1',
      message: coreLimit === '1' ? 'off' : `of ${coreLimit} bytes are possible, with memory of the VM`,
    },
  ];
}

function statusOf(pid: number): Map<string, string> {
  const lines = readFileSync(`/proc/${pid}/status`, 'utf8').split('\n');
  return new Map(
    lines.map((line) => {
      const at = line.indexOf(':');
      return [line.slice(0, at), line.slice(at + 1).trim()];
    }),
  );
}

function readOr(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return ''; // it has ended
  }
}

function linkOr(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return ''; // it is ending, or was not executed yet
  }
}

/** Only root may look into another user's root directory. */
function readdirOr(path: string): string | undefined {
  try {
    return readdirSync(path)
      .sort()
      .map((name) => `/${name}`)
      .join(' ');
  } catch {
    return undefined;
  }
}
