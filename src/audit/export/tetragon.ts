/**
 * Events as Tetragon writes them: `GetEventsResponse` of its API (github.com/cilium/tetragon, api/v1/tetragon), as JSON with the
 * names of the fields in the schema, 64-bit integers as strings, and without fields that are not known. docs/audit-export.md
 * says what becomes what.
 */
import { constants } from 'node:os';
import {
  type AuditEvent,
  type ConnectEvent,
  type DeniedEvent,
  type DeniedName,
  type ExecEvent,
  type ExitEvent,
  exitCode,
  exitSignal,
  FAMILY_IPV4,
  FAMILY_IPV6,
  type FileEvent,
  type FileName,
  type SyscallEvent,
} from '../records.ts';
import { RunClock } from '../timeline/clock.ts';
import { type ParentLink, type Process, ProcessTable } from '../timeline/process-table.ts';
import { syscallNumber } from './syscalls.ts';

export interface ExportOptions {
  /** Names the VM: `node_name`, and part of every `exec_id`. */
  readonly nodeName: string;
  /** Nanoseconds since 1970 when the guest's monotonic clock was 0. */
  readonly clockOffsetNs: bigint;
  /** A line for every system call, too. */
  readonly syscalls: boolean;
}

/** The hook that Tetragon would have at that place. */
const LSM_HOOKS: Readonly<Record<DeniedName, string>> = {
  exec: 'bprm_check_security',
  script: 'bprm_check_security',
  library: 'mmap_file',
  mprotect: 'file_mprotect',
  socket: 'socket_create',
  ptrace: 'ptrace_access_check',
  bpf: 'bpf',
  sysctl: 'file_permission',
  ioUring: 'inode_init_security_anon',
  inline: 'bprm_committed_creds',
};

const MAY_WRITE = 2;
const MAY_READ = 4;
const FILE_HOOKS: Readonly<Record<FileName, string>> = {
  read: 'security_file_permission',
  write: 'security_file_permission',
  unlink: 'security_path_unlink',
  rename: 'security_path_rename',
  setuid: 'security_path_chmod',
};

const IPPROTO_TCP = 6;
const PROTOCOLS: Readonly<Record<number, string>> = { 6: 'IPPROTO_TCP', 17: 'IPPROTO_UDP' };
const FAMILIES: Readonly<Record<number, string>> = {
  1: 'AF_UNIX',
  [FAMILY_IPV4]: 'AF_INET',
  [FAMILY_IPV6]: 'AF_INET6',
};

const SIGNALS = new Map(Object.entries(constants.signals).map(([name, number]) => [number, name]));

/** Calls whose result is a new thread or process. */
const CLONES = new Set(['clone', 'clone3'].map((name) => syscallNumber(name)));
const COMPAT_CLONES = new Set(['clone', 'clone3'].map((name) => syscallNumber(name, true)));

interface ProcessText {
  readonly version: number;
  readonly execId: string;
  /** Fields but `tid`, without the braces. */
  readonly fields: string;
}

/** Renders the events of one run, in their order; remembers processes ({@link ProcessTable}) and nothing else. */
export class TetragonLines {
  readonly #table = new ProcessTable();
  readonly #clock: RunClock;
  readonly #node: string;
  readonly #nodeJson: string;
  readonly #hasSyscalls: boolean;
  readonly #texts = new WeakMap<Process, ProcessText>();

  constructor({ nodeName, clockOffsetNs, syscalls }: ExportOptions) {
    this.#clock = new RunClock(clockOffsetNs);
    this.#node = nodeName;
    this.#nodeJson = JSON.stringify(nodeName);
    this.#hasSyscalls = syscalls;
  }

  /** Takes an event in that is not to be rendered: later ones may be of its process. */
  note(event: AuditEvent): void {
    if (event.kind === 'syscall') this.#noteClone(event);
    else this.#table.apply(event);
  }

  /** The lines of one event, each with its line end; empty if it has none. Never throws. */
  render(event: AuditEvent): string {
    if (event.kind === 'syscall') return this.#syscall(event);
    const process = this.#table.apply(event);
    switch (event.kind) {
      case 'fork':
        return '';
      case 'exec':
        return this.#exec(event, process);
      case 'exit':
        return this.#exit(event, process);
      case 'connect':
        return this.#kprobe(event, process, connectFields(event));
      case 'file':
        return this.#kprobe(event, process, fileFields(event));
      case 'denied':
        return this.#denied(event, process);
    }
  }

  #exec(event: ExecEvent, process: Process): string {
    const line = this.#line('process_exec', event.timeNs, this.#subjects(process, event.thread));
    if (event.digest === undefined) return line;
    const hook = lsmFields('bprm_check_security', {
      args: [{ linux_binprm_arg: { path: event.binary } }],
      action: 'KPROBE_ACTION_POST',
      ima_hash: `sha256:${event.digest}`,
    });
    return `${line}${this.#line('process_lsm', event.timeNs, this.#subjects(process, event.thread), hook)}`;
  }

  #exit(event: ExitEvent, process: Process): string {
    const signal = exitSignal(event.status);
    const how =
      signal === undefined
        ? `"status":${exitCode(event.status) ?? 0}`
        : `"signal":${JSON.stringify(SIGNALS.get(signal) ?? String(signal))}`;
    const fields = `${how},"time":"${this.#clock.text(event.timeNs)}"`;
    return this.#line('process_exit', event.timeNs, this.#subjects(process, event.thread), fields);
  }

  #kprobe({ timeNs, thread }: ConnectEvent | FileEvent, process: Process, fields: object): string {
    const text = JSON.stringify(fields).slice(1, -1);
    return this.#line('process_kprobe', timeNs, this.#subjects(process, thread), text);
  }

  #denied(event: DeniedEvent, process: Process): string {
    const fields = lsmFields(LSM_HOOKS[event.what], {
      message: event.blocked ? `${event.what} denied` : `${event.what} recorded`,
      ...(event.path === '' ? {} : { args: [{ file_arg: { path: event.path } }] }),
      action: event.blocked ? 'KPROBE_ACTION_OVERRIDE' : 'KPROBE_ACTION_POST',
      ...(event.digest === undefined ? {} : { ima_hash: `sha256:${event.digest}` }),
    });
    return this.#line('process_lsm', event.timeNs, this.#subjects(process, event.thread), fields);
  }

  #syscall(event: SyscallEvent): string {
    this.#noteClone(event);
    if (!this.#hasSyscalls) return '';
    const { thread, number, isCompat, timeNs, isAtEntry } = event;
    const process = this.#table.ofThread(thread);
    const subject = process
      ? `{"tid":${thread},${this.#text(process).fields}}`
      : `{"exec_id":"${this.#execId({ pid: thread, sinceNs: 0n })}","pid":${thread},"tid":${thread},"flags":"miss"}`;
    let args = `{"syscall_id":{"id":${number},"abi":"${isCompat ? 'i386' : 'x64'}"}}`;
    if (!isAtEntry) args += `,{"long_arg":"${event.result}","label":"ret"}`;
    for (const value of event.args) args += `,{"size_arg":"${value}"}`;
    const name = isAtEntry ? 'sys_enter' : 'sys_exit';
    return `{"process_tracepoint":{"process":${subject},"subsys":"raw_syscalls","event":"${name}","args":[${args}],"policy_name":"ct.audit","action":"KPROBE_ACTION_POST"},"node_name":${this.#nodeJson},"time":"${this.#clock.text(timeNs)}"}\n`;
  }

  #noteClone(event: SyscallEvent): void {
    if (!(event.isCompat ? COMPAT_CLONES : CLONES).has(event.number)) return;
    const { thread, result } = event;
    if (result > 0n) this.#table.cloned(thread, Number(result));
  }

  #line(kind: string, timeNs: bigint, subjects: string, fields = ''): string {
    const more = fields === '' ? '' : `,${fields}`;
    return `{"${kind}":{${subjects}${more}},"node_name":${this.#nodeJson},"time":"${this.#clock.text(timeNs)}"}\n`;
  }

  /** The process, and its parent if that is known. */
  #subjects(process: Process, thread: number): string {
    const own = `"process":{"tid":${thread},${this.#text(process).fields}}`;
    const { parent: link } = process;
    if (!link) return own;
    const parent = this.#table.parentOf(process);
    // It may run something else by now; `parent_exec_id` is what it was.
    const fields =
      parent?.sinceNs === link.sinceNs
        ? this.#text(parent).fields
        : `"exec_id":"${this.#execId(link)}","pid":${link.pid}`;
    return `${own},"parent":{${fields}}`;
  }

  #text(process: Process): ProcessText {
    const kept = this.#texts.get(process);
    if (kept?.version === process.version) return kept;
    const execId = this.#execId(process);
    const [, ...args] = process.args;
    const fields = {
      exec_id: execId,
      pid: process.pid,
      uid: process.uid,
      ...(process.cwd === '' ? {} : { cwd: process.cwd }),
      ...(process.binary === '' ? {} : { binary: process.binary }),
      ...(args.length === 0 ? {} : { arguments: args.map(quoted).join(' ') }),
      flags: flagsOf(process),
      start_time: this.#clock.text(process.sinceNs),
      ...(process.parent ? { parent_exec_id: this.#execId(process.parent) } : {}),
      process_credentials: { uid: process.uid, gid: process.gid },
    };
    const text = { version: process.version, execId, fields: JSON.stringify(fields).slice(1, -1) };
    this.#texts.set(process, text);
    return text;
  }

  #execId({ pid, sinceNs }: Pick<ParentLink, 'pid' | 'sinceNs'>): string {
    return Buffer.from(`${this.#node}:${sinceNs}:${pid}`).toString('base64');
  }
}

function flagsOf({ origin, isCut }: Process): string {
  const flags = { exec: 'execve', fork: 'clone', unknown: 'miss' }[origin];
  return isCut ? `${flags} truncArgs` : flags;
}

/** Tetragon joins arguments by spaces; those that hold some it puts into quotation marks. */
function quoted(argument: string): string {
  return argument === '' || /[\s"]/.test(argument) ? `"${argument.replaceAll('"', '\\"')}"` : argument;
}

function lsmFields(hook: string, rest: object): string {
  return JSON.stringify({ function_name: hook, policy_name: 'ct.exec', ...rest }).slice(1, -1);
}

function connectFields({ family, address, port, protocol, result }: ConnectEvent): object {
  const name = FAMILIES[family] ?? `AF_${family}`;
  const isTcp = protocol === IPPROTO_TCP && address !== '';
  const target = isTcp
    ? {
        sock_arg: { family: name, type: 'SOCK_STREAM', protocol: 'IPPROTO_TCP', daddr: address, dport: port },
      }
    : { sockaddr_arg: { family: name, ...(address === '' ? {} : { addr: address, port }) } };
  return {
    function_name: isTcp ? 'tcp_connect' : 'security_socket_connect',
    args: [target],
    return: { int_arg: result },
    action: 'KPROBE_ACTION_POST',
    policy_name: 'ct.audit',
    ...(isTcp || PROTOCOLS[protocol] === undefined ? {} : { message: PROTOCOLS[protocol] }),
  };
}

function fileFields({ what, path, flags }: FileEvent): object {
  const access = { read: MAY_READ, write: MAY_WRITE, unlink: undefined, rename: undefined, setuid: flags }[
    what
  ];
  return {
    function_name: FILE_HOOKS[what],
    args: [
      what === 'read' || what === 'write' ? { file_arg: { path } } : { path_arg: { path } },
      ...(access === undefined ? [] : what === 'setuid' ? [{ uint_arg: access }] : [{ int_arg: access }]),
    ],
    action: 'KPROBE_ACTION_POST',
    policy_name: 'ct.audit',
  };
}
