/**
 * Where link processes run: in the jail of VMMs (launcher/ct-launcher.c, `--jail`), which shows them nothing but the
 * code they run, one directory for the log of their run and one for its audit record. Sockets and commands come over the IPC channel, so they
 * need no network.
 *
 * A daemon that is root gives each a user id of its own, which has to be able to read the code. An installation that
 * only root may read is no reason to run no jobs, nor to keep root's powers: the process then stays root to the files
 * it is shown, in a user namespace that has no power outside of it. {@link linkIdentity} says which of both holds.
 */
import { chownSync, mkdirSync, renameSync, rmSync, statSync } from 'node:fs';
import { lstat, opendir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { MAX_SEGMENTS } from '../audit/segment-format.ts';
import { DEFAULT_AUDIT_LIMITS } from '../audit/segment-writer.ts';
import { CtError } from '../core/errors.ts';
import { entryPoint, installRoot } from '../core/install.ts';
import { MAX_LATER_SEGMENTS, SEGMENT_BYTES } from '../job/run-log.ts';
import type { Cgroup, CgroupTree } from '../vmm/cgroup.ts';
import { cgroupOptions, ownUser } from '../vmm/process.ts';

/** What {@link file://link.ts} gives its heap, Node itself, and buffers of streams that are under way. */
const LINK_MEMORY_MIB = 256;
/** Node's threads are about a dozen. */
const LINK_PIDS = 64;
/** It computes in one thread; a guest that keeps it busy must not get a second processor by that. */
const LINK_CPUS = 1;
/** Where the launcher shows what follows the first and the second `--write`. */
const LOGS_INSIDE = '/out';
const AUDIT_INSIDE = '/out2';

export interface LinkJailOptions {
  /** For what they write until they get their run; absent: the system's, for tests. */
  readonly scratchDirectory?: string | undefined;
  readonly cgroups?: CgroupTree | undefined;
}

export interface LinkIdentity {
  /** `own-user`: nobody else has its user id; `user-namespace`: that of the daemon, without its powers. */
  readonly kind: 'own-user' | 'user-namespace';
  /** What others may not read, if that is why. */
  readonly unreadable?: string;
}

export function linkIdentity(program: string = entryPoint('host/link-process')): LinkIdentity {
  if (process.getuid?.() !== 0) return { kind: 'user-namespace' };
  const unreadable = [...codeOf(program), program, process.execPath].find((path) => !othersMayRead(path));
  return unreadable === undefined ? { kind: 'own-user' } : { kind: 'user-namespace', unreadable };
}

let made = 0;

/** `owner`: of what the process may read there; absent: the user of this one. `inside`: what the process calls it. */
export interface AuditPlace {
  readonly path: string;
  readonly inside: string;
  readonly owner: { readonly uid: number; readonly gid: number } | undefined;
}

/** What a log takes at most (src/job/run-log.ts), and the segment that is begun before the oldest goes. */
const MAX_LOG_FILES = MAX_LATER_SEGMENTS + 2;
const MAX_LOG_BYTES = MAX_LOG_FILES * SEGMENT_BYTES;
/** With a seal, or a segment that is written again. */
const MAX_AUDIT_FILES = MAX_SEGMENTS + 1;
/** A record ends when it has reached its limit; what is on its way by then, and indexes, take less than the rest. */
const MAX_AUDIT_BYTES = DEFAULT_AUDIT_LIMITS.runBytes + 64 * 1024 * 1024;

/** The jail of one link process; `remove` when that is gone. */
export class LinkJail {
  /** Options for the launcher. */
  readonly options: readonly string[];
  readonly cgroup: Cgroup | undefined;
  readonly #logs: Place;
  readonly #audit: Place;
  readonly #owner: AuditPlace['owner'];

  constructor(program: string, { scratchDirectory, cgroups }: LinkJailOptions) {
    const { kind } = linkIdentity(program);
    const path = join(scratchDirectory ?? tmpdir(), `link-${process.pid}-${made++}`);
    const user = kind === 'own-user' ? ownUser() : undefined;
    const [uid = 0, gid = 0] = (user ?? '').split(':').map(Number);
    this.#owner = user === undefined ? undefined : { uid, gid };
    this.#logs = new Place(path, LOGS_INSIDE, { files: MAX_LOG_FILES, bytes: MAX_LOG_BYTES });
    this.#audit = new Place(`${path}-audit`, AUDIT_INSIDE, {
      files: MAX_AUDIT_FILES,
      bytes: MAX_AUDIT_BYTES,
    });
    try {
      for (const place of [this.#logs, this.#audit]) place.make(this.#owner);
      this.cgroup = cgroups?.create('link', {
        cpus: LINK_CPUS,
        memoryMib: LINK_MEMORY_MIB,
        pids: LINK_PIDS,
      });
      this.options = [
        ...cgroupOptions(this.cgroup),
        '--jail',
        ...(user === undefined ? ['--user-namespace'] : ['--user', user]),
        ...codeOf(program).flatMap((seen) => ['--see', seen]),
        ...['--write', this.#logs.path, '--write', this.#audit.path],
      ];
    } catch (error) {
      for (const place of [this.#logs, this.#audit]) rmSync(place.path, { recursive: true, force: true });
      throw error;
    }
  }

  /**
   * Makes `directory`, which is empty, the place where the process writes its log, and returns what that is called
   * inside. Legal once, and when the process has answered a command: until then its jail is being made. It is the directory
   * that the process sees that is moved: which run it serves is not known when its jail is made.
   */
  giveLogs(directory: string): string {
    return this.#logs.give(directory);
  }

  /** The same for its audit record. */
  giveAudit(directory: string): string {
    return this.#audit.give(directory);
  }

  /** Where the process will find what lies there before it is given its run. */
  get auditPlace(): AuditPlace {
    return { path: this.#audit.path, inside: AUDIT_INSIDE, owner: this.#owner };
  }

  /**
   * Whether there is more than a log or a record where the process may write: it bounds both itself, and one that its guest
   * has taken over would rather fill the disk. Looks at a few entries, however many there are.
   */
  async isOverfull(): Promise<boolean> {
    return (await this.#logs.isOverfull()) || (await this.#audit.isOverfull());
  }

  /** Legal when the process is gone. What it wrote stays if it was given a run, unless that is too much. */
  async remove(): Promise<void> {
    await this.cgroup?.remove();
    for (const place of [this.#logs, this.#audit]) await place.remove();
  }
}

/** A directory where the process may write; another one once it was given a run. */
class Place {
  path: string;
  readonly #inside: string;
  readonly #most: { readonly files: number; readonly bytes: number };
  #isGiven = false;

  constructor(path: string, inside: string, most: { readonly files: number; readonly bytes: number }) {
    this.path = path;
    this.#inside = inside;
    this.#most = most;
  }

  make(owner: AuditPlace['owner']): void {
    mkdirSync(this.path, { mode: 0o700 });
    if (owner) chownSync(this.path, owner.uid, owner.gid);
  }

  give(directory: string): string {
    if (this.#isGiven) throw new CtError('INTERNAL', 'a link process got two runs');
    renameSync(this.path, directory);
    this.path = directory;
    this.#isGiven = true;
    return this.#inside;
  }

  async isOverfull(): Promise<boolean> {
    let [files, bytes] = [0, 0];
    try {
      for await (const { name } of await opendir(this.path)) {
        const stats = await lstat(join(this.path, name), { bigint: true });
        files += 1;
        bytes += Number(stats.size);
        if (!stats.isFile() || files > this.#most.files || bytes > this.#most.bytes) return true;
      }
    } catch {
      // A file or the directory went or moved while we looked; we look again.
    }
    return false;
  }

  async remove(): Promise<void> {
    if (this.#isGiven && !(await this.isOverfull())) return;
    await rm(this.path, { recursive: true, force: true });
  }
}

/** What a link process has to see, beside /usr. */
function codeOf(program: string): string[] {
  const paths = [
    dirname(dirname(entryPoint('host/link-process'))),
    join(installRoot, 'package.json'),
    dirname(process.execPath),
    dirname(program),
  ].filter((path) => !path.startsWith('/usr/'));
  return paths.filter((path) => !paths.some((other) => path !== other && path.startsWith(`${other}/`)));
}

function othersMayRead(path: string): boolean {
  const stats = statSync(path, { throwIfNoEntry: false });
  // What is missing is reported by who needs it.
  if (!stats) return true;
  const wanted = stats.isDirectory() || path === process.execPath ? 0o005 : 0o004;
  return (stats.mode & wanted) === wanted;
}
