/**
 * Containers that are as much like a job's VM as runc can make them: the root file system of the same image, the same
 * user, cpu and memory, no network, and a writable workspace on the file system of CT_HOME.
 *
 * As root, the image is mounted as it is, in a mount namespace that a process of ours holds: the mount and its loop device
 * go with that process, and that one goes with this one, however it ends. Without root, or where the kernel cannot mount
 * the image, its files are extracted once, into CT_HOME/bench-rootfs/, where they stay.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BoundedTail } from '../core/bounded-tail.ts';
import { CtError } from '../core/errors.ts';
import { runProgram } from '../core/run-program.ts';
import type { ImageManifest } from '../image/manifest.ts';
import { isRoot, type RuncConfig, runcSpec, runcVersion, runRunc } from './bench-runc.ts';

const MIB = 1024 * 1024;
/** Of cpu time; the kernel's own default. */
const PERIOD_US = 100_000;
/** More than any workload starts; a VM has no such limit inside. */
const MAX_PIDS = 1024;
/** A container appears within some 50 ms of `runc run`; then runc ends by itself. */
const KILL_TIMEOUT_MS = 5000;
const KILL_RETRY_MS = 10;
const OUTPUT_TAIL_BYTES = 16_384;
/** A step starts in it (docs/guest-link.md). */
const WORKSPACE = '/workspace';
/** What a job's VM has on its volume, and who may write there: `owner` is the user of the image. */
const PLACES = [
  { name: 'workspace', target: WORKSPACE, mode: 0o755, owner: true },
  { name: 'home', target: '/home', mode: 0o755, owner: true },
  { name: 'tmp', target: '/tmp', mode: 0o1777, owner: false },
  { name: 'var-tmp', target: '/var/tmp', mode: 0o1777, owner: false },
] as const;

export interface ContainerOptions {
  readonly ctHome: string;
  /** Private and empty; containers live below it. The caller removes it, after disposal. */
  readonly directory: string;
  readonly image: ImageManifest;
  readonly rootfsPath: string;
  readonly cpus: number;
  readonly memoryMib: number;
  /** The network of this machine, with this file as /etc/hosts; absent: none. */
  readonly network?: { readonly hostsFile: string };
  /** Beside those of the image. */
  readonly env?: Readonly<Record<string, string>>;
  readonly onProgress: (what: string) => void;
  readonly signal: AbortSignal;
}

export interface ContainerFacts {
  readonly runc: string;
  /** How the container sees the image. */
  readonly rootfs: 'mounted' | 'extracted';
  /** User id in the container; without root only 0, which is the caller outside. */
  readonly uid: number;
  /** Whether cpu and memory are limited as those of the VM: only root can. */
  readonly limited: boolean;
}

export interface ContainerSample {
  /** From an empty workspace with the tree copied in, to workspace and container gone. */
  readonly wholeMs: number;
  readonly stdout: string;
}

/** Containers for one shape; their mounts go with `[Symbol.asyncDispose]`. */
export class BenchContainers implements AsyncDisposable {
  readonly facts: ContainerFacts;
  readonly #options: ContainerOptions;
  readonly #config: RuncConfig;
  readonly #namespace: MountNamespace | undefined;
  #count = 0;

  private constructor(
    options: ContainerOptions,
    facts: ContainerFacts,
    config: RuncConfig,
    namespace: MountNamespace | undefined,
  ) {
    this.#options = options;
    this.facts = facts;
    this.#config = config;
    this.#namespace = namespace;
  }

  /** Throws REQUIREMENT_MISSING without runc, or what extracting throws. */
  static async open(options: ContainerOptions): Promise<BenchContainers> {
    await using cleanup = new AsyncDisposableStack();
    const runc = await runcVersion();
    const { directory, image, cpus, memoryMib } = options;
    const namespace = isRoot() ? await mountImage(options) : undefined;
    if (namespace) cleanup.use(namespace);
    const rootfsPath = namespace ? mountPointOf(directory) : await extractImage(options);
    const config = await runcSpec(directory);
    const { uid, gid } = isRoot() ? image.user : { uid: 0, gid: 0 };
    Object.assign(config.process, {
      terminal: false,
      user: { uid, gid },
      args: ['bash', 'workload.sh'],
      cwd: WORKSPACE,
      env: Object.entries({ ...image.env, HOME: image.user.home, CI: 'true', ...options.env }).map((pair) =>
        pair.join('='),
      ),
      capabilities: { bounding: [], effective: [], permitted: [], ambient: [] },
    });
    Object.assign(config.root, { path: rootfsPath, readonly: true });
    if (options.network) {
      const namespaces = config.linux['namespaces'] as readonly { readonly type: string }[];
      config.linux['namespaces'] = namespaces.filter(({ type }) => type !== 'network');
      config.mounts.push({
        destination: '/etc/hosts',
        type: 'bind',
        source: options.network.hostsFile,
        options: ['bind', 'ro', 'nosuid', 'nodev'],
      });
    }
    if (isRoot()) {
      config.linux['resources'] = {
        ...(config.linux['resources'] as object),
        cpu: { quota: cpus * PERIOD_US, period: PERIOD_US, cpus: someCpus(cpus) },
        memory: { limit: memoryMib * MIB },
        pids: { limit: MAX_PIDS },
      };
    }
    cleanup.move();
    const rootfs = namespace ? 'mounted' : 'extracted';
    return new BenchContainers(options, { runc, rootfs, uid, limited: isRoot() }, config, namespace);
  }

  /**
   * Makes `tree` the property of the containers' user, once before its samples. `tree` is a directory, which the samples
   * copy.
   */
  async adopt(tree: string): Promise<void> {
    if (!isRoot()) return;
    const { uid, gid } = this.#options.image.user;
    await this.#tool('chown', ['-R', '--no-dereference', `${uid}:${gid}`, tree]);
  }

  /**
   * Runs the script of `tree` in a new container. When this returns or throws, the container, its cgroup and its files are
   * gone. Throws JOB_FAILED with the end of its output if it fails, or the signal's reason.
   */
  async sample(tree: string): Promise<ContainerSample> {
    const { signal } = this.#options;
    signal.throwIfAborted();
    await using cleanup = new AsyncDisposableStack();
    const id = `ct-bench-${process.pid}-${this.#count++}`;
    const bundle = join(this.#options.directory, id);
    const startedAt = performance.now();
    mkdirSync(bundle, { mode: 0o700 });
    cleanup.defer(() => rmSync(bundle, { recursive: true, force: true }));
    const mounts = this.#makePlaces(bundle);
    await this.#tool('cp', ['-a', `${tree}/.`, join(bundle, 'workspace')]);
    const config = { ...this.#config, mounts: [...this.#config.mounts, ...mounts] };
    writeFileSync(join(bundle, 'config.json'), JSON.stringify(config));
    const stdout = await this.#run(id, bundle);
    await cleanup.disposeAsync();
    return { wholeMs: performance.now() - startedAt, stdout };
  }

  /** Directories of one container, and how it mounts them. */
  #makePlaces(bundle: string): Record<string, unknown>[] {
    const { user } = this.#options.image;
    const own = (path: string): void => {
      if (isRoot()) chownSync(path, user.uid, user.gid);
    };
    for (const { name, mode, owner } of PLACES) {
      const path = join(bundle, name);
      mkdirSync(path);
      chmodSync(path, mode); // past our umask
      if (owner) own(path);
    }
    if (dirname(user.home) === '/home') {
      const home = join(bundle, 'home', basename(user.home));
      mkdirSync(home, { mode: 0o700 });
      own(home);
    }
    return PLACES.map(({ name, target }) => ({
      destination: target,
      type: 'bind',
      source: join(bundle, name),
      options: ['bind', 'rw', 'nosuid', 'nodev'],
    }));
  }

  async #run(id: string, bundle: string): Promise<string> {
    const { signal } = this.#options;
    const root = runcRoot(this.#options.directory);
    const program = ['runc', '--root', root, 'run', '--bundle', bundle, id];
    const [file = '', ...args] = this.#namespace ? this.#namespace.enter(program) : program;
    // In a process group of its own: a Ctrl-C is ours to answer, or runc would be gone before its container.
    const child = spawn(file, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
      env: { PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin' },
    });
    await using cleanup = new AsyncDisposableStack();
    cleanup.defer(() => removeContainer(root, id));
    const stdout = new BoundedTail(OUTPUT_TAIL_BYTES);
    const stderr = new BoundedTail(OUTPUT_TAIL_BYTES);
    child.stdout?.on('data', (chunk: Buffer) => stdout.push(chunk));
    child.stderr?.on('data', (chunk: Buffer) => stderr.push(chunk));
    const closed = once(child, 'close') as Promise<[number | null]>;
    let isClosed = false;
    // Until it has the container's id, runc has nothing that it could kill, but may already have made a cgroup.
    const end = async (): Promise<void> => {
      const deadline = performance.now() + KILL_TIMEOUT_MS;
      while (!isClosed && performance.now() < deadline) {
        await runRunc(['--root', root, 'kill', id, 'KILL']).catch(() => {});
        await sleep(KILL_RETRY_MS);
      }
      if (!isClosed) child.kill('SIGKILL');
    };
    const onAbort = (): void => void end();
    if (signal.aborted) onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    cleanup.defer(() => signal.removeEventListener('abort', onAbort));
    const [code] = await closed;
    isClosed = true;
    signal.throwIfAborted();
    if (code === 0) return stdout.text();
    throw new CtError(
      'JOB_FAILED',
      `the workload failed in the container (${code}): ${stderr.text().trim()}`,
      {
        hint: 'the image needs bash, and gcc and make, git, or node and npm, and a container must be able to start here: try `runc run` by hand, as the same user',
      },
    );
  }

  async #tool(file: string, args: readonly string[]): Promise<void> {
    const { signal } = this.#options;
    await runProgram({ file, args, maxOutputBytes: 4096, signal, failureCode: 'INTERNAL' });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#namespace?.[Symbol.asyncDispose]();
  }
}

/**
 * As many cpus of this host as the VM has, as a list for cpuset(7). A quota alone would show the container all cpus of the
 * host: it would start threads for them, and then wait for its share of time.
 */
function someCpus(count: number): string {
  const status = readFileSync('/proc/self/status', 'utf8');
  return parseCpuList(/^Cpus_allowed_list:\s*(\S+)$/m.exec(status)?.[1] ?? '0')
    .slice(-count) // the first ones serve interrupts
    .join(',');
}

/** `0-2,5` → 0, 1, 2, 5 (cpuset(7), list format). */
export function parseCpuList(list: string): number[] {
  return list.split(',').flatMap((range) => {
    const [first = 0, last = first] = range.split('-').map(Number);
    return Array.from({ length: last - first + 1 }, (_, index) => first + index);
  });
}

function mountPointOf(directory: string): string {
  return join(directory, 'rootfs');
}

/** Where runc keeps its containers: apart from everybody else's. */
export function runcRoot(directory: string): string {
  return join(directory, 'runc');
}

/** Ends a container and removes it; idempotent. */
export async function removeContainer(root: string, id: string): Promise<void> {
  if (existsSync(join(root, id))) await runRunc(['--root', root, 'delete', '--force', id]);
}

/**
 * A mount namespace, held by a `cat` that waits for input from us. It ends with its input: when this process closes it, and
 * also when this process is killed.
 */
class MountNamespace implements AsyncDisposable {
  readonly #holder: ChildProcess;
  readonly #closed: Promise<unknown>;

  private constructor(holder: ChildProcess) {
    this.#holder = holder;
    this.#closed = once(holder, 'close').catch(() => {});
  }

  /** Undefined where there can be none. */
  static async open(): Promise<MountNamespace | undefined> {
    const holder = spawn('unshare', ['--mount', '--propagation', 'private', 'cat'], {
      stdio: ['pipe', 'pipe', 'ignore'],
      detached: true, // a Ctrl-C is ours to answer
      env: { PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin' },
    });
    const namespace = new MountNamespace(holder);
    const { stdin, stdout } = holder;
    if (!stdin || !stdout) return undefined;
    stdin.on('error', () => {}); // it ended; so says stdout
    // What comes back has passed the namespace's making.
    const ready = once(stdout, 'data').then(() => true);
    stdin.write('ready\n');
    const isReady = await Promise.race([ready, namespace.#closed.then(() => false)]).catch(() => false);
    if (isReady) return namespace;
    await namespace[Symbol.asyncDispose]();
    return undefined;
  }

  /** The same command, in the namespace. */
  enter(command: readonly string[]): string[] {
    return ['nsenter', `--mount=/proc/${this.#holder.pid}/ns/mnt`, '--', ...command];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#holder.stdin?.end();
    await this.#closed;
  }
}

/** Mounts the image at `directory`/rootfs, for those in the namespace; undefined where the kernel cannot. */
async function mountImage(options: ContainerOptions): Promise<MountNamespace | undefined> {
  const { directory, rootfsPath, signal } = options;
  const namespace = await MountNamespace.open();
  if (!namespace) return undefined;
  try {
    mkdirSync(mountPointOf(directory));
    const [file = '', ...args] = namespace.enter([
      ...['mount', '-t', 'erofs', '-o', 'loop,ro,nosuid,nodev'],
      ...[rootfsPath, mountPointOf(directory)],
    ]);
    await runProgram({ file, args, maxOutputBytes: 4096, signal, failureCode: 'REQUIREMENT_MISSING' });
    return namespace;
  } catch (error) {
    await namespace[Symbol.asyncDispose]();
    signal.throwIfAborted();
    if (error instanceof CtError && error.code === 'REQUIREMENT_MISSING') return undefined;
    throw error;
  }
}

/** Path of the extracted image; extracts it if that has not been done. Throws STORE_FULL or REQUIREMENT_MISSING. */
async function extractImage(options: ContainerOptions): Promise<string> {
  const { ctHome, directory, image, rootfsPath, signal, onProgress } = options;
  const cache = join(ctHome, 'bench-rootfs');
  const path = join(cache, image.rootfs.digest.replace('sha256:', ''));
  if (existsSync(path)) return path;
  onProgress('extracting the image, once');
  mkdirSync(cache, { recursive: true, mode: 0o700 });
  const unfinished = join(directory, 'extracted');
  await runProgram({
    file: 'fsck.erofs',
    args: [`--extract=${unfinished}`, ...(isRoot() ? [] : ['--no-preserve-owner']), rootfsPath],
    maxOutputBytes: 1024 * 1024,
    signal,
    failureCode: 'REQUIREMENT_MISSING',
  });
  // One is kept: the image was built anew, or the next benchmark is of another one.
  for (const name of readdirSync(cache)) rmSync(join(cache, name), { recursive: true, force: true });
  renameSync(unfinished, path);
  return path;
}
