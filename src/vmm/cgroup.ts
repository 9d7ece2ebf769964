/**
 * One cgroup per process of ours that is steered from outside: VMMs and link processes get what was asked for and no
 * more. They lie in a directory of our own below the cgroup of the daemon:
 *
 *   v2   <own>/daemon/        the daemon itself: a cgroup with controllers for children holds no processes
 *        <own>/ct-<id>/vmm-1  a VMM
 *        <own>/ct-<id>/link-2 a link process
 *   v1   <own>/ct-<id>/…      the same below each controller's own tree; the daemon stays where it is
 *
 * Each controller is taken from the hierarchy that has it: hosts with v1, v2 and both exist. Where neither may be
 * written, there are no limits, and {@link ControllerStatus.reason} says why. Followed: cgroup-v2.rst (delegation, no
 * internal processes), cgroup-v1/memory.rst, cgroups(7). Calls are synchronous: a cgroup with its limits costs 0.3 ms,
 * and a VM must not be claimed around an `await` (see {@link Vm.control}).
 */
import { mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { CtError, messageOf } from '../core/errors.ts';

const MIB = 1024 * 1024;
/** Of cpu time: a VM that used up its share waits for the rest of it. The kernel's own default. */
const PERIOD_US = 100_000;
/** A killed process leaves its cgroup when its memory is freed: milliseconds, seconds for very large ones. */
const REMOVE_TIMEOUT_MS = 5000;
const REMOVE_RETRY_MS = 5;
/** Below what the rest of the system has (100): a VM that does nothing but write must not hold up everybody's disk. */
const IO_WEIGHT = 50;

export type Controller = 'cpu' | 'memory' | 'pids' | 'io';
export const CONTROLLERS: readonly Controller[] = ['cpu', 'memory', 'pids', 'io'];
/** What v1 calls them. */
const V1_NAMES: Readonly<Record<Controller, string>> = {
  cpu: 'cpu',
  memory: 'memory',
  pids: 'pids',
  io: 'blkio',
};

export interface ControllerStatus {
  readonly controller: Controller;
  /** The hierarchy it is used from; undefined if it limits nothing here. */
  readonly version?: 1 | 2;
  /** Why it is not used. */
  readonly reason?: string;
  /** Our directory in that hierarchy. */
  readonly directory?: string;
}

export interface CgroupLimits {
  readonly cpus?: number;
  readonly memoryMib: number;
  readonly pids: number;
}

/** Where the kernel shows its state; tests show another. */
export interface CgroupHost {
  /** /proc of the process that owns the tree. */
  readonly procSelf: string;
}

const REAL_HOST: CgroupHost = { procSelf: '/proc/self' };

/** A place in one hierarchy. */
interface Hierarchy {
  readonly version: 1 | 2;
  readonly controllers: readonly Controller[];
  /** The cgroup the daemon was started in. */
  readonly own: string;
}

interface Plan {
  readonly hierarchies: readonly Hierarchy[];
  readonly statuses: readonly ControllerStatus[];
}

/** What {@link CgroupTree.open} would use; changes nothing. */
export function inspectCgroups(id: string, host: CgroupHost = REAL_HOST): readonly ControllerStatus[] {
  return plan(id, host).statuses;
}

export class CgroupTree {
  readonly controllers: readonly ControllerStatus[];
  readonly #hierarchies: readonly Hierarchy[];
  readonly #name: string;
  readonly #record: string;
  readonly #undo: (() => void)[];
  #made = 0;

  private constructor(options: {
    readonly controllers: readonly ControllerStatus[];
    readonly hierarchies: readonly Hierarchy[];
    readonly name: string;
    readonly record: string;
    readonly undo: (() => void)[];
  }) {
    this.controllers = options.controllers;
    this.#hierarchies = options.hierarchies;
    this.#name = options.name;
    this.#record = options.record;
    this.#undo = options.undo;
  }

  /**
   * Makes the directories. `id` names them: one owner per id at a time (the daemon holds the lock of its CT_HOME).
   * First it ends and removes what an owner that was killed left there, also where that one ran in another cgroup:
   * `recordPath` remembers it. A hierarchy that the kernel refuses is not used; `controllers` says why. Throws INTERNAL
   * if what was left cannot be removed.
   */
  static async open(options: {
    readonly id: string;
    readonly recordPath: string;
    readonly host?: CgroupHost;
  }): Promise<CgroupTree> {
    const { id, recordPath, host = REAL_HOST } = options;
    const name = treeName(id);
    const { hierarchies, statuses } = plan(id, host);
    const directories = hierarchies.map(({ own }) => join(own, name));
    for (const directory of new Set([...recorded(recordPath, name, host), ...directories])) {
      await removeTree(directory);
    }
    // Before there is anything to forget.
    if (directories.length > 0)
      writeFileSync(recordPath, `${JSON.stringify(directories)}\n`, { mode: 0o600 });
    const used: Hierarchy[] = [];
    const undo: (() => void)[] = [];
    const refused = new Map<Controller, string>();
    for (const hierarchy of hierarchies) {
      const steps: (() => void)[] = [];
      try {
        occupy(hierarchy, name, steps);
        used.push(hierarchy);
        undo.push(...steps);
      } catch (error) {
        // Permissions looked right and the kernel thinks otherwise: as if it could not be written, and said so.
        takeBack(steps);
        for (const controller of hierarchy.controllers)
          refused.set(controller, `${hierarchy.own} cannot be used: ${messageOf(error)}`);
      }
    }
    if (used.length === 0) rmSync(recordPath, { force: true });
    const controllers = statuses.map((status) => {
      const reason = refused.get(status.controller);
      return reason === undefined ? status : { controller: status.controller, reason };
    });
    return new CgroupTree({ controllers, hierarchies: used, name, record: recordPath, undo });
  }

  /** A cgroup for one process; undefined where there are none. Throws VMM_START_FAILED. */
  create(kind: 'vmm' | 'link', limits: CgroupLimits): Cgroup | undefined {
    if (this.#hierarchies.length === 0) return undefined;
    const name = `${kind}-${++this.#made}`;
    const parts = this.#hierarchies.map(({ version, controllers, own }) => ({
      version,
      controllers,
      directory: join(own, this.#name, name),
    }));
    const cgroup = new Cgroup(parts, limits.memoryMib);
    try {
      for (const { version, controllers, directory } of parts) {
        mkdirSync(directory);
        for (const controller of controllers) limit(version, controller, directory, limits);
      }
      return cgroup;
    } catch (error) {
      for (const { directory } of parts) remove(directory);
      throw new CtError('VMM_START_FAILED', `no cgroup could be made for a VM: ${messageOf(error)}`, {
        hint: 'if somebody removed the cgroups of the host daemon, restart it; `ct doctor` shows where they are',
        cause: error,
      });
    }
  }

  /** Ends what still runs in our directories, removes them and goes back to where we came from. Idempotent. */
  async close(): Promise<void> {
    for (const { own } of this.#hierarchies) await removeTree(join(own, this.#name));
    takeBack(this.#undo.splice(0));
    rmSync(this.#record, { force: true });
  }
}

/** The cgroup of one process. The launcher joins it before the program is executed. */
export class Cgroup {
  /** Files to write a process id to: one per hierarchy. */
  readonly procs: readonly string[];
  readonly memoryMib: number;
  readonly #parts: readonly {
    readonly version: 1 | 2;
    readonly controllers: readonly Controller[];
    readonly directory: string;
  }[];

  constructor(
    parts: readonly {
      readonly version: 1 | 2;
      readonly controllers: readonly Controller[];
      readonly directory: string;
    }[],
    memoryMib: number,
  ) {
    this.#parts = parts;
    this.memoryMib = memoryMib;
    this.procs = parts.map(({ directory }) => join(directory, 'cgroup.procs'));
  }

  /** One per hierarchy. */
  get directories(): readonly string[] {
    return this.#parts.map(({ directory }) => directory);
  }

  /** Where a controller's files are; undefined if it is not used. */
  directoryOf(controller: Controller): string | undefined {
    return this.#parts.find(({ controllers }) => controllers.includes(controller))?.directory;
  }

  /** Whether the kernel killed a process here because the memory limit was reached (memory.events, memory.oom_control). */
  hitMemoryLimit(): boolean {
    const part = this.#parts.find(({ controllers }) => controllers.includes('memory'));
    if (!part) return false;
    const file = part.version === 2 ? 'memory.events' : 'memory.oom_control';
    const kills = /^oom_kill (\d+)$/m.exec(readOr(join(part.directory, file), ''))?.[1];
    return Number(kills ?? 0) > 0;
  }

  /**
   * Removes it, together with what is still in it: call it when the process is gone. Idempotent. Throws INTERNAL if the
   * kernel keeps it.
   */
  async remove(): Promise<void> {
    for (const { directory } of this.#parts) await removeTree(directory);
  }
}

function treeName(id: string): string {
  return `ct-${id}`;
}

/** Writes the limits of one controller. */
function limit(version: 1 | 2, controller: Controller, directory: string, limits: CgroupLimits): void {
  const write = (file: string, value: number | string): void =>
    writeFileSync(join(directory, file), `${value}`, { flag: 'r+' });
  const has = (file: string): boolean => exists(join(directory, file));
  const bytes = limits.memoryMib * MIB;
  switch (controller) {
    case 'cpu': {
      if (limits.cpus === undefined) return;
      const quota = Math.round(limits.cpus * PERIOD_US);
      if (version === 2) {
        write('cpu.max', `${quota} ${PERIOD_US}`);
      } else {
        write('cpu.cfs_period_us', PERIOD_US);
        write('cpu.cfs_quota_us', quota);
      }
      return;
    }
    case 'memory':
      if (version === 2) {
        write('memory.max', bytes);
        if (has('memory.swap.max')) write('memory.swap.max', 0);
        write('memory.oom.group', 1);
      } else {
        write('memory.limit_in_bytes', bytes);
        // Memory and swap together no more than memory: no swap. A kernel without swap accounting has no such file.
        if (has('memory.memsw.limit_in_bytes')) write('memory.memsw.limit_in_bytes', bytes);
        else if (has('memory.swappiness')) write('memory.swappiness', 0);
      }
      return;
    case 'pids':
      write('pids.max', limits.pids);
      return;
    case 'io':
      // Weights exist with some I/O schedulers only.
      if (version === 2 && has('io.weight')) write('io.weight', `default ${IO_WEIGHT}`);
      else if (version === 2 && has('io.bfq.weight')) write('io.bfq.weight', IO_WEIGHT);
      else if (version === 1 && has('blkio.bfq.weight')) write('blkio.bfq.weight', IO_WEIGHT);
      else if (version === 1 && has('blkio.weight')) write('blkio.weight', IO_WEIGHT * 5); // of 500
      return;
  }
}

/** Finds a hierarchy for each controller. */
function plan(id: string, host: CgroupHost): Plan {
  const memberships = ownCgroups(host);
  const mounts = cgroupMounts(host);
  const unified = locate(mounts, memberships, '');
  const v2Controllers =
    typeof unified === 'string' ? words(readOr(join(unified, 'cgroup.controllers'), '')) : [];
  const v2Obstacle =
    typeof unified === 'string' ? delegationObstacle(unified, host) : `no cgroup v2: ${unified.obstacle}`;
  const hierarchies = new Map<string, { version: 1 | 2; controllers: Controller[]; own: string }>();
  const statuses = CONTROLLERS.map((controller): ControllerStatus => {
    const use = (version: 1 | 2, own: string): ControllerStatus => {
      const known = hierarchies.get(own) ?? { version, controllers: [], own };
      known.controllers.push(controller);
      hierarchies.set(own, known);
      return { controller, version, directory: join(own, treeName(id)) };
    };
    if (typeof unified === 'string' && v2Controllers.includes(controller)) {
      return v2Obstacle === undefined ? use(2, unified) : { controller, reason: v2Obstacle };
    }
    const own = locate(mounts, memberships, V1_NAMES[controller]);
    if (typeof own !== 'string') {
      const reason =
        typeof unified === 'string'
          ? `the cgroup ${unified} has no ${controller} controller, and ${own.obstacle}`
          : `${v2Obstacle}, and ${own.obstacle}`;
      return { controller, reason };
    }
    const obstacle = writableObstacle(own);
    return obstacle === undefined ? use(1, own) : { controller, reason: obstacle };
  });
  return { hierarchies: [...hierarchies.values()], statuses };
}

/** `controller -> path` of /proc/self/cgroup (cgroups(7)); v2 is the empty name. */
function ownCgroups({ procSelf }: CgroupHost): Map<string, string> {
  const found = new Map<string, string>();
  for (const line of readOr(join(procSelf, 'cgroup'), '').split('\n')) {
    const [, names, path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (names === undefined || path === undefined) continue;
    for (const name of names.split(',')) found.set(name, path);
  }
  return found;
}

interface CgroupMount {
  /** The cgroup that is seen at `mountPoint`: not the uppermost in a container. */
  readonly root: string;
  readonly mountPoint: string;
  /** v2: the empty name. */
  readonly controllers: readonly string[];
}

/** Mounts of cgroup file systems in mountinfo (proc_pid_mountinfo(5)). */
function cgroupMounts({ procSelf }: CgroupHost): CgroupMount[] {
  return readOr(join(procSelf, 'mountinfo'), '')
    .split('\n')
    .flatMap((line) => {
      const [before, after] = line.split(' - ');
      const [, , , root, mountPoint] = before?.split(' ') ?? [];
      const [type, , options] = after?.split(' ') ?? [];
      if (root === undefined || mountPoint === undefined) return [];
      if (type === 'cgroup2') return [{ root, mountPoint, controllers: [''] }];
      return type === 'cgroup' ? [{ root, mountPoint, controllers: options?.split(',') ?? [] }] : [];
    });
}

/** The directory of our own cgroup in the hierarchy of a controller. */
function locate(
  mounts: readonly CgroupMount[],
  memberships: ReadonlyMap<string, string>,
  controller: string,
): string | { readonly obstacle: string } {
  const what = controller === '' ? 'cgroup v2' : `the v1 controller ${controller}`;
  const mount = mounts.find(({ controllers }) => controllers.includes(controller));
  if (!mount) return { obstacle: `${what} is not mounted` };
  const path = memberships.get(controller);
  if (path === undefined) return { obstacle: `this process has no cgroup of ${what}` };
  const below = relative(mount.root, path);
  if (below === '..' || below.startsWith('../')) {
    return { obstacle: `${what} is mounted from ${mount.root}, which does not hold our cgroup ${path}` };
  }
  const directory = join(mount.mountPoint, below);
  return exists(directory) ? directory : { obstacle: `${directory} does not exist` };
}

function writableObstacle(directory: string): string | undefined {
  // access(2) does not tell: a read-only mount, a user namespace and permissions all show only on the attempt.
  const attempt = join(directory, `ct-probe-${process.pid}`);
  try {
    mkdirSync(attempt);
    rmdirSync(attempt);
    return undefined;
  } catch (error) {
    return `${directory} cannot be written: ${messageOf(error).split(',')[0]}`;
  }
}

/** Why controllers cannot be given to children of a v2 cgroup; undefined if they can. */
function delegationObstacle(own: string, { procSelf }: CgroupHost): string | undefined {
  const obstacle = writableObstacle(own);
  if (obstacle !== undefined) return obstacle;
  if (isRootCgroup(own)) return undefined; // the only one that may have both processes and controllers for children
  const self = Number(/^Pid:\s*(\d+)$/m.exec(readOr(join(procSelf, 'status'), ''))?.[1]);
  const others = processesIn(own).filter((pid) => pid !== self);
  if (others.length === 0) return undefined;
  return `${own} holds other processes (${others.length}), and a cgroup that holds processes cannot limit its children`;
}

/** Only the uppermost cgroup has no type (cgroup-v2.rst). */
function isRootCgroup(directory: string): boolean {
  return !exists(join(directory, 'cgroup.type'));
}

/** Makes our directory; `undo` gets what takes that back. */
function occupy(hierarchy: Hierarchy, name: string, undo: (() => void)[]): void {
  if (hierarchy.version === 2) delegate(hierarchy, undo);
  const directory = join(hierarchy.own, name);
  mkdirSync(directory);
  undo.push(() => void remove(directory));
  if (hierarchy.version === 2) enable(directory, hierarchy.controllers);
}

function takeBack(undo: readonly (() => void)[]): void {
  for (const step of undo.toReversed()) {
    try {
      step();
    } catch {
      // The cgroup was taken away or given to others meanwhile; nothing of ours is in it.
    }
  }
}

/** Moves the daemon into a leaf and gives its cgroup's controllers to children. */
function delegate({ own, controllers }: Hierarchy, undo: (() => void)[]): void {
  if (!isRootCgroup(own)) {
    const leaf = join(own, 'daemon');
    mkdirSync(leaf, { recursive: true });
    undo.push(() => rmdirSync(leaf));
    writeFileSync(join(leaf, 'cgroup.procs'), '0', { flag: 'r+' });
    undo.push(() => writeFileSync(join(own, 'cgroup.procs'), '0', { flag: 'r+' }));
  }
  const added = enable(own, controllers);
  if (added.length === 0) return;
  undo.push(() => {
    const change = added.map((controller) => `-${controller}`).join(' ');
    writeFileSync(join(own, 'cgroup.subtree_control'), change, { flag: 'r+' });
  });
}

/** Returns those that were not enabled before. */
function enable(directory: string, controllers: readonly Controller[]): Controller[] {
  const file = join(directory, 'cgroup.subtree_control');
  const enabled = words(readFileSync(file, 'utf8'));
  const missing = controllers.filter((controller) => !enabled.includes(controller));
  if (missing.length > 0) {
    writeFileSync(file, missing.map((controller) => `+${controller}`).join(' '), { flag: 'r+' });
  }
  return missing;
}

/** Our directories of an earlier start, as far as they can be ours: the file is only a hint. */
function recorded(recordPath: string, name: string, host: CgroupHost): string[] {
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(recordPath, 'utf8'));
  } catch {
    return []; // absent, or cut short when the disk was full: then our present cgroup is all we know
  }
  if (!Array.isArray(value)) return [];
  const roots = cgroupMounts(host).map(({ mountPoint }) => mountPoint);
  return value.filter(
    (path): path is string =>
      typeof path === 'string' &&
      basename(path) === name &&
      roots.some((root) => !relative(root, dirname(path)).startsWith('..')),
  );
}

/** Ends every process in a cgroup and those below it, and removes them. Throws INTERNAL if the kernel keeps it. */
async function removeTree(directory: string): Promise<void> {
  // The usual case: one process, which is gone.
  if (remove(directory)) return;
  const deadline = performance.now() + REMOVE_TIMEOUT_MS;
  for (;;) {
    if (removeNow(directory)) return;
    if (performance.now() > deadline) {
      throw new CtError('INTERNAL', `the cgroup ${directory} cannot be removed: it is still in use`, {
        hint: `processes in it: ${processesIn(directory).join(' ') || 'none'}`,
      });
    }
    await sleep(REMOVE_RETRY_MS);
  }
}

/** One attempt, from the leaves up. */
function removeNow(directory: string): boolean {
  // v2 kills all below at once, so that nothing can fork away from it.
  if (!killAtOnce(directory)) for (const pid of processesIn(directory)) kill(pid);
  for (const child of childrenOf(directory)) removeNow(child);
  return remove(directory);
}

function killAtOnce(directory: string): boolean {
  const file = join(directory, 'cgroup.kill');
  if (!exists(file)) return false;
  try {
    writeFileSync(file, '1', { flag: 'r+' });
    return true;
  } catch {
    return false; // it went away
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It went away.
  }
}

/** False if it is there and cannot be removed yet. */
function remove(directory: string): boolean {
  try {
    rmdirSync(directory);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT';
  }
}

function childrenOf(directory: string): string[] {
  try {
    return readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => join(directory, entry.name));
  } catch {
    return []; // it went away
  }
}

function processesIn(directory: string): number[] {
  return words(readOr(join(directory, 'cgroup.procs'), ''))
    .map(Number)
    .filter((pid) => pid > 0);
}

function words(text: string): string[] {
  return text.split(/\s+/).filter((word) => word !== '');
}

function exists(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false }) !== undefined;
}

function readOr(path: string, fallback: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return fallback;
  }
}
