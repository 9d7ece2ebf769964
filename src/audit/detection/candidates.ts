/**
 * What of a run's events is put to the rules of `ct.detect`: chosen by kind alone, put in order, with what is known about the
 * process. Whether it means anything is for the rules to say. Bounded and quick: a job makes a million system calls a second.
 */
import { posix } from 'node:path';
import type { DetectEvent, DetectProcess, ProcessRelation } from '../../policy/detection.ts';
import { syscallNumber } from '../export/syscalls.ts';
import {
  type AuditEvent,
  FAMILY_IPV4,
  FAMILY_IPV6,
  type ProcessEvent,
  type ProcessKey,
  type SyscallEvent,
} from '../records.ts';
import { isOfVm, type NameOf } from '../timeline/destinations.ts';
import { absolutePath } from '../timeline/paths.ts';
import { NOTHING_KNOWN, type Process, ProcessTable } from '../timeline/process-table.ts';
import { OpenSockets } from './open-sockets.ts';

/** One event for the rules, and what they need not know to judge it. */
export interface Candidate {
  readonly event: DetectEvent;
  readonly timeNs: bigint;
  readonly process: ProcessKey;
}

/**
 * Events that wait to be put in order: records of one CPU may be behind those of another by as long as the guest agent takes to
 * drain both. So many take 10 MiB; a caller that takes them every tenth of a second has some thousands.
 */
export const MAX_WAITING = 32_768;
/** More of what was refused: however much a job does, that it tried to run what nobody vouches for is not passed over. */
const MAX_WAITING_DENIED = MAX_WAITING + 1024;
/** How far records of different CPUs may be apart. */
const DISORDER_NS = 500_000_000n;
/** The same again is not put to the rules again: their answer would be the same. */
const MAX_SEEN = 4096;
/** Further arguments become one, so that rules look at all of them and few times. */
const MAX_ARGUMENTS = 256;
/** PATH_MAX; what is longer is no path that can be opened. */
export const MAX_PATH_CHARACTERS = 4096;
const MAX_CONNECTIONS = 8;
/** Ancestors that a process is looked for among. */
const MAX_DEPTH = 64;

const TRACING = ['ptrace', 'process_vm_readv', 'process_vm_writev'] as const;
const DESCRIPTORS = ['connect', 'dup', 'dup2', 'dup3', 'fcntl', 'fcntl64', 'close', 'close_range'] as const;
const CLONING = ['clone', 'clone3'] as const;

type CallName = (typeof TRACING)[number] | (typeof DESCRIPTORS)[number] | (typeof CLONING)[number];

/** By number; what is not here is not looked at. */
const CALLS = callTable(false);
const COMPAT_CALLS = callTable(true);

const PTRACE_ATTACH = 16n;
const PTRACE_SEIZE = 0x4206n;
const F_DUPFD = 0n;
const F_DUPFD_CLOEXEC = 1030n;
const EINPROGRESS = -115n;

export class Candidates {
  readonly #table = new ProcessTable();
  readonly #sockets = new OpenSockets();
  /** Where a process, or what it was forked from, connected to. */
  readonly #connections = new Map<number, readonly string[]>();
  readonly #nameOf: NameOf;
  #waiting: (ProcessEvent | SyscallEvent)[] = [];
  /** Descriptors that were sockets once: only these are worth a look when they are closed. */
  readonly #everSockets = new Set<number>();
  readonly #seen = new Set<string>();
  #newestNs = 0n;
  #missed = 0;

  constructor(nameOf: NameOf) {
    this.#nameOf = nameOf;
  }

  /** Events that were passed over because {@link take} was not called for too long. */
  get missed(): number {
    return this.#missed;
  }

  add(event: AuditEvent): void {
    if (event.kind === 'syscall' && !this.#isOfInterest(event)) return;
    if (this.#waiting.length >= (event.kind === 'denied' ? MAX_WAITING_DENIED : MAX_WAITING)) {
      this.#missed += 1;
      return;
    }
    this.#waiting.push(event.kind === 'syscall' ? detached(event) : event);
    const { timeNs } = event;
    if (timeNs > this.#newestNs) this.#newestNs = timeNs;
  }

  /** What there is to judge, in the order in which it happened. `isLast`: nothing comes any more, so nothing is held back. */
  take(isLast = false): Candidate[] {
    const horizon = this.#newestNs - DISORDER_NS;
    const isDue = ({ timeNs }: { timeNs: bigint }): boolean =>
      isLast || timeNs <= horizon || this.#waiting.length >= MAX_WAITING;
    const due = this.#waiting.filter(isDue);
    this.#waiting = due.length === this.#waiting.length ? [] : this.#waiting.filter((event) => !isDue(event));
    due.sort((a, b) => (a.timeNs < b.timeNs ? -1 : a.timeNs > b.timeNs ? 1 : 0));
    return due.flatMap((event) => this.#judge(event) ?? []);
  }

  #isOfInterest(event: SyscallEvent): boolean {
    const name = (event.isCompat ? COMPAT_CALLS : CALLS)[event.number];
    if (name === undefined || event.isAtEntry) return false;
    if (name === 'close' || name.startsWith('dup') || name.startsWith('fcntl')) {
      if (this.#everSockets.size === 0) return false;
      const [first = 0n, second = 0n] = event.args;
      if (this.#everSockets.has(Number(first))) {
        if (name !== 'close') this.#noteSocket(name === 'dup2' || name === 'dup3' ? second : event.result);
        return true;
      }
      return (name === 'dup2' || name === 'dup3') && this.#everSockets.has(Number(second));
    }
    if (name === 'connect') this.#noteSocket(event.args[0] ?? 0n);
    return true;
  }

  #noteSocket(fd: bigint): void {
    if (fd >= 0n && this.#everSockets.size < 65_536) this.#everSockets.add(Number(fd));
  }

  #judge(event: ProcessEvent | SyscallEvent): Candidate | undefined {
    const candidate = event.kind === 'syscall' ? this.#syscall(event) : this.#record(event);
    if (!candidate) return undefined;
    const key = JSON.stringify(candidate.event);
    if (this.#seen.delete(key)) {
      this.#seen.add(key);
      return undefined;
    }
    this.#seen.add(key);
    for (const oldest of this.#seen) {
      if (this.#seen.size <= MAX_SEEN) break;
      this.#seen.delete(oldest);
    }
    return candidate;
  }

  #record(event: ProcessEvent): Candidate | undefined {
    const before = event.kind === 'exec' ? this.#table.get(event.process) : undefined;
    const earlier = before && { uid: before.uid, binary: cut(before.binary) };
    const process = this.#table.apply(event);
    const { pid } = process;
    switch (event.kind) {
      case 'fork': {
        this.#sockets.forked(pid, event.child.pid);
        const connections = this.#connections.get(pid);
        if (connections) this.#noteConnections(event.child.pid, connections);
        return undefined;
      }
      case 'exit':
        this.#sockets.ended(pid);
        this.#connections.delete(pid);
        return undefined;
      case 'exec':
        return this.#candidate(event, process, 'exec', {
          path: cut(event.binary),
          args: joined(process.args),
          ...(event.digest === undefined ? {} : { digest: event.digest }),
          ...(earlier === undefined || earlier.uid === event.uid ? {} : { earlier }),
        });
      case 'connect': {
        const { family, address, port, protocol } = event;
        if ((family !== FAMILY_IPV4 && family !== FAMILY_IPV6) || isOfVm(address)) return undefined;
        const host = this.#nameOf(address) ?? address;
        this.#noteConnections(pid, [`${host}:${port}`]);
        return this.#candidate(event, process, 'connect', { host, address, port, protocol });
      }
      case 'denied':
        return this.#candidate(event, process, 'denied', {
          what: event.what,
          path: cut(event.path),
          refused: event.blocked,
          args: joined(process.args),
          ...(event.digest === undefined ? {} : { digest: event.digest }),
        });
      case 'file': {
        const path = cut(absolutePath(event.path, process.cwd));
        const target = this.#targetOfPath(path, process);
        return this.#candidate(event, process, 'file', {
          what: event.what,
          path,
          flags: event.flags,
          ...(target === undefined ? {} : { target }),
        });
      }
    }
  }

  #syscall(event: SyscallEvent): Candidate | undefined {
    const name = (event.isCompat ? COMPAT_CALLS : CALLS)[event.number];
    const { args, result, thread } = event;
    const [first = 0n, second = 0n] = args;
    if (name === 'clone' || name === 'clone3') {
      if (result > 0n) this.#table.cloned(thread, Number(result));
      return undefined;
    }
    const process = this.#table.ofThread(thread);
    const pid = process?.pid ?? thread;
    switch (name) {
      case 'connect':
        if (result >= 0n || result === EINPROGRESS) this.#sockets.connected(pid, first);
        return undefined;
      case 'dup':
        if (result >= 0n) this.#sockets.duplicated(pid, first, result);
        return undefined;
      case 'dup2':
      case 'dup3':
        if (result >= 0n) this.#sockets.duplicated(pid, first, second);
        return undefined;
      case 'fcntl':
      case 'fcntl64':
        if (result >= 0n && (second === F_DUPFD || second === F_DUPFD_CLOEXEC)) {
          this.#sockets.duplicated(pid, first, result);
        }
        return undefined;
      case 'close':
        this.#sockets.closed(pid, first, first);
        return undefined;
      case 'close_range':
        if (result >= 0n) this.#sockets.closed(pid, first, second);
        return undefined;
      case 'ptrace':
      case 'process_vm_readv':
      case 'process_vm_writev': {
        // Other requests need a process that is traced already.
        if (name === 'ptrace' && first !== PTRACE_ATTACH && first !== PTRACE_SEIZE) return undefined;
        const target = this.#relation(process, Number(name === 'ptrace' ? second : first));
        const by = process ?? { ...NOBODY, pid: thread };
        return this.#candidate(event, by, 'syscall', { name, target });
      }
      default:
        return undefined;
    }
  }

  #candidate<K extends DetectEvent['kind']>(
    { timeNs }: ProcessEvent | SyscallEvent,
    process: Process,
    kind: K,
    what: object,
  ): Candidate {
    const event = { kind, [kind]: what, process: this.#describe(process) } as unknown as DetectEvent;
    return { event, timeNs, process: { pid: process.pid, startedNs: process.startedNs } };
  }

  #describe(process: Process): DetectProcess {
    const parent = this.#table.parentOf(process);
    return {
      binary: cut(process.binary),
      program: programOf(process),
      uid: process.uid,
      ...(parent
        ? { parent: { binary: cut(parent.binary), program: programOf(parent), uid: parent.uid } }
        : {}),
      sockets: this.#sockets.standard(process.pid),
      connections: this.#connections.get(process.pid) ?? [],
    };
  }

  #noteConnections(pid: number, added: readonly string[]): void {
    const known = this.#connections.get(pid) ?? [];
    const all = [...known, ...added.filter((place) => !known.includes(place))].slice(-MAX_CONNECTIONS);
    this.#connections.delete(pid);
    this.#connections.set(pid, all);
    for (const [oldest] of this.#connections) {
      if (this.#connections.size <= MAX_SEEN) return;
      this.#connections.delete(oldest);
    }
  }

  /** Whose files below /proc a path names. */
  #targetOfPath(path: string, process: Process): ProcessRelation | undefined {
    const [, name] = /^\/proc\/([^/]+)\//.exec(path) ?? [];
    if (name === undefined) return undefined;
    if (name === 'self' || name === 'thread-self') return 'self';
    return /^[0-9]{1,10}$/.test(name) ? this.#relation(process, Number(name)) : undefined;
  }

  #relation(process: Process | undefined, targetPid: number): ProcessRelation {
    const target = this.#table.ofThread(targetPid);
    if (!process || !target) return targetPid === process?.pid ? 'self' : 'other';
    if (target === process) return 'self';
    let at: Process | undefined = target;
    for (let depth = 0; at && depth < MAX_DEPTH; depth += 1) {
      at = this.#table.parentOf(at);
      if (at === process) return 'descendant';
    }
    return 'other';
  }
}

/** The payload that a system call is read from is used again. */
function detached(event: SyscallEvent): SyscallEvent {
  const { kind, cpu, sequence, timeNs, thread, number, isCompat, isAtEntry, result, args } = event;
  return { kind, cpu, sequence, timeNs, thread, number, isCompat, isAtEntry, result, args };
}

/** Programs that run another one, which is their first argument without a dash. */
const INTERPRETERS = /^(node|nodejs|python[0-9.]*|perl|ruby|bash|sh|dash)$/;

/** What a person would call it: the name of the program, or of the script that an interpreter runs. */
function programOf({ binary, args }: Process): string {
  const name = posix.basename(binary);
  if (!INTERPRETERS.test(name)) return cut(name);
  const [, first] = args;
  return cut(first === undefined || first.startsWith('-') ? name : posix.basename(first));
}

const NOBODY: Process = {
  ...NOTHING_KNOWN,
  pid: 0,
  startedNs: 0n,
  sinceNs: 0n,
  parent: undefined,
  parentPid: 0,
  uid: 0,
  gid: 0,
};

function joined(args: readonly string[]): readonly string[] {
  if (args.length <= MAX_ARGUMENTS) return args;
  return [...args.slice(0, MAX_ARGUMENTS - 1), args.slice(MAX_ARGUMENTS - 1).join(' ')];
}

function cut(text: string): string {
  return text.length <= MAX_PATH_CHARACTERS ? text : text.slice(0, MAX_PATH_CHARACTERS);
}

function callTable(isCompat: boolean): (CallName | undefined)[] {
  const table: (CallName | undefined)[] = [];
  for (const name of [...TRACING, ...DESCRIPTORS, ...CLONING]) {
    const number = syscallNumber(name, isCompat);
    if (number !== undefined) table[number] = name;
  }
  return table;
}
