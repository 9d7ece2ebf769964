/**
 * Which process is which: built from records as they come, in whatever order, with whatever missing. Its memory is bounded and
 * nothing throws, because a guest that was taken over sends what it likes; what is not known is marked as such.
 */
import type { ExecEvent, ProcessEvent, ProcessKey } from '../records.ts';

export interface ParentLink extends ProcessKey {
  readonly sinceNs: bigint;
}

/** A process as far as it is known. One object per process, changed as records come. */
export interface Process {
  readonly pid: number;
  readonly startedNs: bigint;
  /** Of what it runs now: when it was forked or did its last exec. */
  sinceNs: bigint;
  /** What started it, as it was then; it may have been forgotten by now. */
  parent: ParentLink | undefined;
  /** As records said last; after the parent ended that is another process. */
  parentPid: number;
  uid: number;
  gid: number;
  /** Empty if unknown. */
  binary: string;
  args: readonly string[];
  cwd: string;
  inode: bigint;
  digest: string | undefined;
  /** `exec`: it ran that binary itself; `fork`: it is what its parent was; `unknown`: neither was seen. */
  origin: 'exec' | 'fork' | 'unknown';
  isCut: boolean;
  /** Wait status; undefined while it runs. */
  status: number | undefined;
  /** Goes up with every change of what is above: texts made of it can be kept. */
  version: number;
}

export interface ProcessTableLimits {
  readonly processes: number;
  /** Of an estimate that counts shared strings for each process that has them. */
  readonly bytes: number;
  readonly threads: number;
}

/** pid_max of the guest's kernel is 32,768 by default; a build has some hundreds. */
export const PROCESS_TABLE_LIMITS: ProcessTableLimits = {
  processes: 32_768,
  bytes: 64 * 1024 * 1024,
  threads: 65_536,
};

/** Processes that ended and are kept: children and records of other CPUs may still name them. */
const MAX_ENDED = 4096;
/** Objects, map entries and numbers of one process. */
const PROCESS_BYTES = 600;

interface Entry {
  readonly process: Process;
  bytes: number;
}

export class ProcessTable {
  readonly #limits: ProcessTableLimits;
  /** By {@link keyText}. Those that run, then those that ended; each the oldest first. */
  readonly #running = new Map<string, Entry>();
  readonly #ended = new Map<string, Entry>();
  /** The newest process of each number. */
  readonly #byPid = new Map<number, Process>();
  /** Threads that are not the first of their process. */
  readonly #threads = new Map<number, number>();
  #bytes = 0;
  #forgotten = 0;

  constructor(limits: ProcessTableLimits = PROCESS_TABLE_LIMITS) {
    this.#limits = limits;
  }

  /** How many processes were given up while they ran, for want of room. */
  get forgotten(): number {
    return this.#forgotten;
  }

  get size(): number {
    return this.#running.size + this.#ended.size;
  }

  /** Takes one record in; returns the process that it is of, as it is afterwards. */
  apply(event: ProcessEvent): Process {
    const entry = this.#entryOf(event);
    const { process } = entry;
    process.parentPid = event.parentPid;
    if (process.uid !== event.uid || process.gid !== event.gid) {
      process.uid = event.uid;
      process.gid = event.gid;
      process.version += 1;
    }
    if (event.thread !== event.process.pid) this.#noteThread(event.thread, event.process.pid);
    if (event.kind === 'fork') this.#fork(process, event.child, event.timeNs);
    else if (event.kind === 'exec') this.#exec(entry, event);
    else if (event.kind === 'exit') this.#exit(entry, event.status);
    this.#forgetExcess(entry);
    return process;
  }

  get(key: ProcessKey): Process | undefined {
    const text = keyText(key);
    return (this.#running.get(text) ?? this.#ended.get(text))?.process;
  }

  parentOf({ parent }: Process): Process | undefined {
    return parent && this.get(parent);
  }

  /** The process that a thread belongs to now, if that was ever seen. */
  ofThread(thread: number): Process | undefined {
    const pid = this.#threads.get(thread);
    return this.#byPid.get(thread) ?? (pid === undefined ? undefined : this.#byPid.get(pid));
  }

  /** clone(2) of `thread` returned `created` and no process of that number was forked: then it is a thread. */
  cloned(thread: number, created: number): void {
    const owner = this.ofThread(thread);
    if (owner && owner.pid !== created && !this.#byPid.has(created)) this.#noteThread(created, owner.pid);
  }

  #entryOf({ process: key, parentPid, uid, gid, timeNs }: ProcessEvent): Entry {
    const text = keyText(key);
    const known = this.#running.get(text) ?? this.#ended.get(text);
    if (known) return known;
    const parent = parentPid === key.pid ? undefined : this.#byPid.get(parentPid);
    return this.#insert({
      ...(key.pid === 1 ? GUEST_AGENT : NOTHING_KNOWN),
      pid: key.pid,
      startedNs: key.startedNs,
      sinceNs: key.startedNs <= timeNs ? key.startedNs : timeNs,
      parent: parent && linkTo(parent),
      parentPid,
      uid,
      gid,
    });
  }

  #insert(process: Process): Entry {
    const entry = { process, bytes: 0 };
    this.#running.set(keyText(process), entry);
    const named = this.#byPid.get(process.pid);
    if (!named || named.startedNs <= process.startedNs) this.#byPid.set(process.pid, process);
    this.#weigh(entry);
    return entry;
  }

  #fork(parent: Process, key: ProcessKey, timeNs: bigint): void {
    const link = linkTo(parent);
    const known = this.#running.get(keyText(key)) ?? this.#ended.get(keyText(key));
    if (!known) {
      this.#forgetExcess(
        this.#insert({
          ...parent,
          pid: key.pid,
          startedNs: key.startedNs,
          sinceNs: timeNs,
          parent: link,
          parentPid: parent.pid,
          origin: parent.origin === 'unknown' ? 'unknown' : 'fork',
          status: undefined,
          version: 0,
        }),
      );
      return;
    }
    // Its own records were faster than that of its parent.
    const { process } = known;
    if (process === parent) return;
    process.parent = link;
    process.version += 1;
    if (process.origin !== 'unknown' || parent.origin === 'unknown') return;
    const { binary, args, cwd, inode, digest, isCut } = parent;
    Object.assign(process, { binary, args, cwd, inode, digest, isCut, origin: 'fork' });
    this.#weigh(known);
  }

  #exec(entry: Entry, { binary, args, cwd, inode, digest, isCut, timeNs }: ExecEvent): void {
    const { process } = entry;
    Object.assign(process, { binary, args, cwd, inode, digest, isCut, sinceNs: timeNs, origin: 'exec' });
    process.version += 1;
    this.#weigh(entry);
  }

  #exit(entry: Entry, status: number): void {
    const { process } = entry;
    process.status = status;
    const text = keyText(process);
    if (!this.#running.delete(text)) return;
    this.#ended.set(text, entry);
    for (const [oldest] of this.#ended) {
      if (this.#ended.size <= MAX_ENDED) return;
      this.#forget(this.#ended, oldest);
    }
  }

  #noteThread(thread: number, pid: number): void {
    this.#threads.delete(thread);
    this.#threads.set(thread, pid);
    if (this.#threads.size <= this.#limits.threads) return;
    for (const [oldest] of this.#threads) {
      this.#threads.delete(oldest);
      return;
    }
  }

  #weigh(entry: Entry): void {
    const { binary, args, cwd } = entry.process;
    // Characters may take two bytes; an argument is an object of its own.
    const characters = binary.length + cwd.length + args.reduce((sum, { length }) => sum + length + 16, 0);
    const bytes = PROCESS_BYTES + characters * 2;
    this.#bytes += bytes - entry.bytes;
    entry.bytes = bytes;
  }

  /** Those that ended go first. What a caller holds in its hands stays. */
  #forgetExcess(kept: Entry): void {
    for (const [map, isRunning] of [
      [this.#ended, false],
      [this.#running, true],
    ] as const) {
      for (const [oldest, entry] of map) {
        if (this.size <= this.#limits.processes && this.#bytes <= this.#limits.bytes) return;
        if (entry === kept) continue;
        this.#forget(map, oldest);
        if (isRunning) this.#forgotten += 1;
      }
    }
  }

  #forget(map: Map<string, Entry>, text: string): void {
    const entry = map.get(text);
    if (!entry) return;
    map.delete(text);
    this.#bytes -= entry.bytes;
    if (this.#byPid.get(entry.process.pid) === entry.process) this.#byPid.delete(entry.process.pid);
  }
}

/** Of a process that no record has described. */
export const NOTHING_KNOWN = {
  binary: '',
  args: [],
  cwd: '',
  inode: 0n,
  digest: undefined,
  origin: 'unknown',
  isCut: false,
  status: undefined,
  version: 0,
} as const;

/** It ran before anything was recorded. No job can have its number, which the guest's kernel gives out once. */
const GUEST_AGENT = { ...NOTHING_KNOWN, binary: '/init', args: ['/init'], cwd: '/', origin: 'exec' } as const;

function linkTo({ pid, startedNs, sinceNs }: Process): ParentLink {
  return { pid, startedNs, sinceNs };
}

export function keyText({ pid, startedNs }: ProcessKey): string {
  return `${pid}:${startedNs}`;
}
