/**
 * The one place that starts VMM processes: through the launcher, in a jail, with a literal environment and counted
 * descriptors. What the jail is: launcher/ct-launcher.c, `--jail`.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import type { Socket } from 'node:net';
import { dirname } from 'node:path';
import type { Readable } from 'node:stream';
import { BoundedTail } from '../core/bounded-tail.ts';
import { CONSOLE_TAIL_BYTES } from '../protocol/limits.ts';
import type { Cgroup } from './cgroup.ts';
import type { VmExit } from './driver.ts';

export interface VmmProcessOptions {
  readonly launcherPath: string;
  readonly program: string;
  readonly args: readonly string[];
  /** Descriptors 3, 4, …: `pipe` makes a socket pair whose other end is `sockets.get(n)`; `closed` leaves a gap. */
  readonly fds: readonly ('pipe' | 'closed' | number)[];
  /** Device nodes it may open, beside /dev/null and /dev/urandom. */
  readonly devices?: readonly string[];
  /** Gives the VMM a new memfd: its descriptor and size. */
  readonly memfd?: { readonly fd: number; readonly bytes: number };
  /** Taken over: removed when the process is gone. */
  readonly cgroup?: Cgroup | undefined;
}

/** User ids for VMMs and link processes: far from those of people, services and containers. */
const FIRST_UID = 1_700_000_000;
const UIDS_PER_DAEMON = 1024;
let started = 0;

/** A user and group that no other running VMM or link process of this machine has (pid_max is at most 2^22, but 2^16 suffices to differ). */
export function ownUser(): string {
  const id = FIRST_UID + (process.pid % 65_536) * UIDS_PER_DAEMON + (started++ % UIDS_PER_DAEMON);
  return `${id}:${id}`;
}

/** SIGKILL reaches a VMM that hangs in anything but an uninterruptible system call. */
export class VmmProcess {
  readonly pid: number;
  readonly exited: Promise<VmExit>;
  readonly sockets = new Map<number, Socket>();
  /** Of its cgroup, which goes with it. */
  readonly cgroupDirectories: readonly string[];
  readonly #child: ChildProcess;
  readonly #gone: Promise<void>;
  readonly #console = new BoundedTail(CONSOLE_TAIL_BYTES);
  readonly #stderr = new BoundedTail(CONSOLE_TAIL_BYTES);

  /**
   * Starts the VMM. The caller owns every descriptor in `fds` and may close them when this returns. If the process
   * cannot be started, `exited` settles with code 71 and `diagnostics` says why.
   */
  constructor(options: VmmProcessOptions) {
    const lastFd = 2 + options.fds.length;
    this.cgroupDirectories = options.cgroup?.directories ?? [];
    this.#child = spawn(
      options.launcherPath,
      [
        'exec',
        '--die-with-parent',
        '--harden',
        ...cgroupOptions(options.cgroup),
        '--jail',
        ...(process.getuid?.() === 0 ? ['--user', ownUser()] : []),
        ...(options.devices ?? []).flatMap((device) => ['--device', device]),
        ...(options.program.startsWith('/usr/') ? [] : ['--see', dirname(options.program)]),
        ...['--keep', String(Math.max(lastFd, options.memfd?.fd ?? 0))],
        ...(options.memfd ? ['--memfd', `${options.memfd.fd}:${options.memfd.bytes}`] : []),
        '--',
        options.program,
        ...options.args,
      ],
      {
        stdio: ['ignore', 'pipe', 'pipe', ...options.fds.map((fd) => (fd === 'closed' ? 'ignore' : fd))],
        env: { PATH: '/usr/bin:/bin', LC_ALL: 'C' },
        // A group of its own: Ctrl-C in the terminal that started the daemon must not reach the VMs.
        detached: true,
      },
    );
    this.pid = this.#child.pid ?? -1;
    // Not the child's `close` event: it waits for the control channel, which is somebody else's by now.
    const exited = new Promise<VmExit>((resolve) => {
      this.#child.once('error', (error) => {
        this.#stderr.push(Buffer.from(`${error.message}\n`));
        resolve({ code: 71, signal: null });
      });
      this.#child.once('exit', (code, signal) => resolve({ code, signal }));
    });
    const outputs = [this.#child.stdout, this.#child.stderr].map((output) =>
      closed(output as Readable | null),
    );
    const { cgroup } = options;
    this.exited = Promise.all([exited, ...outputs]).then(([exit]) =>
      cgroup?.hitMemoryLimit()
        ? { ...exit, reason: `the host's kernel killed it: it reached the ${cgroup.memoryMib} MiB of its VM` }
        : exit,
    );
    this.#gone = this.exited.then(() => cgroup?.remove());
    this.#gone.catch(() => {}); // `kill` reports it
    for (const [index, fd] of options.fds.entries()) {
      const stream = this.#child.stdio[index + 3] as Socket | undefined;
      if (fd === 'pipe' && stream) this.sockets.set(index + 3, stream);
    }
    (this.#child.stdout as Readable | null)?.on('data', (chunk: Buffer) => this.#console.push(chunk));
    (this.#child.stderr as Readable | null)?.on('data', (chunk: Buffer) => this.#stderr.push(chunk));
  }

  /** The ends of the console and of stderr, without control characters. */
  diagnostics(): string {
    const parts = [this.#stderr.text().trim(), this.#console.text().trim()];
    return parts.filter((part) => part !== '').join('\n');
  }

  /** Ends a process that cannot do its work; `diagnostics` gives the reason. */
  fail(reason: string): void {
    this.#stderr.push(Buffer.from(`${reason}\n`));
    this.#child.kill('SIGKILL');
  }

  /** Kills the process and waits until it and its cgroup are gone. Idempotent. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    for (const socket of this.sockets.values()) socket.destroy();
    await this.#gone;
  }
}

/** First in the launcher's line: the memory it takes for the VMM counts, too. */
export function cgroupOptions(cgroup: Cgroup | undefined): string[] {
  return cgroup?.procs.flatMap((file) => ['--cgroup', file]) ?? [];
}

function closed(stream: Readable | null): Promise<void> {
  return new Promise((resolve) => {
    if (stream === null || stream.closed) resolve();
    else stream.once('close', () => resolve());
  });
}
