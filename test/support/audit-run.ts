/**
 * A run as the guest's kernel would record it: a script of what processes do, encoded as frames and decoded again by the product.
 * Times go on by themselves; numbers of processes and threads are given out as Linux does.
 */

import { syscallNumber } from '../../src/audit/export/syscalls.ts';
import {
  type AuditEvent,
  decodeProcesses,
  decodeSyscalls,
  type ProcessKey,
} from '../../src/audit/records.ts';
import {
  AUDIT_FRAME_BYTES,
  AUDIT_MAGIC,
  AUDIT_VERSION,
  AuditFrame,
  DeniedWhat,
  FileWhat,
  NO_CPU,
  PROCESS_RECORD_BYTES,
  ProcessRecord,
  SYSCALL_RECORD_BYTES,
  SyscallFlag,
} from '../../src/protocol/audit.ts';

const FIRST_PID = 100;
const STEP_NS = 1_000_000n;

export interface Encoded {
  readonly type: 'syscall' | 'process';
  readonly bytes: Buffer;
}

export interface ExecOptions {
  readonly cwd?: string;
  /** SHA-256 in hex. */
  readonly digest?: string;
}

export function encodeSyscall(call: {
  readonly timeNs: bigint;
  readonly thread: number;
  readonly number: number;
  readonly flags?: number;
  readonly result?: bigint;
  readonly args?: readonly bigint[];
}): Buffer {
  const record = Buffer.alloc(SYSCALL_RECORD_BYTES);
  record.writeBigUInt64LE(call.timeNs, 0);
  record.writeUInt32LE(call.thread, 8);
  record.writeUInt16LE(call.number, 12);
  record.writeUInt16LE(call.flags ?? 0, 14);
  record.writeBigInt64LE(call.result ?? 0n, 16);
  for (const [index, value] of (call.args ?? []).entries()) record.writeBigUInt64LE(value, 24 + index * 8);
  return record;
}

export interface ProcessHead {
  readonly kind: number;
  readonly flags?: number;
  readonly process: ProcessKey;
  readonly thread?: number;
  readonly parentPid: number;
  readonly timeNs: bigint;
  readonly uid?: number;
}

export function encodeProcess(head: ProcessHead, body: Buffer): Buffer {
  const record = Buffer.alloc(PROCESS_RECORD_BYTES);
  record.writeUInt16LE(PROCESS_RECORD_BYTES + body.length, 0);
  record.writeUInt8(head.kind, 2);
  record.writeUInt8(head.flags ?? 0, 3);
  record.writeUInt32LE(head.process.pid, 4);
  record.writeUInt32LE(head.thread ?? head.process.pid, 8);
  record.writeUInt32LE(head.parentPid, 12);
  record.writeBigUInt64LE(head.timeNs, 16);
  record.writeBigUInt64LE(head.process.startedNs, 24);
  record.writeUInt32LE(head.uid ?? 1000, 32);
  record.writeUInt32LE(head.uid ?? 1000, 36);
  return Buffer.concat([record, body]);
}

export function forkBody(child: ProcessKey): Buffer {
  const body = Buffer.alloc(16);
  body.writeUInt32LE(child.pid, 0);
  body.writeBigUInt64LE(child.startedNs, 8);
  return body;
}

export function execBody(binary: string, args: readonly string[], options: ExecOptions = {}): Buffer {
  const strings = [binary, args.join('\0'), options.cwd ?? '/workspace'].map((text) => Buffer.from(text));
  const body = Buffer.alloc(56);
  for (const [index, bytes] of strings.entries()) body.writeUInt16LE(bytes.length, index * 2);
  body.writeUInt32LE(0x700002, 8);
  body.writeBigUInt64LE(4711n, 16);
  Buffer.from(options.digest ?? '', 'hex').copy(body, 24);
  return Buffer.concat([body, ...strings]);
}

/** `address` in the order of the wire, 4 or 16 bytes. */
export function connectBody(
  family: number,
  address: Uint8Array,
  port: number,
  result = 0,
  protocol = 6,
): Buffer {
  const body = Buffer.alloc(28);
  body.writeUInt16LE(family, 0);
  body.writeUInt16LE(port, 2);
  body.writeUInt8(protocol, 4);
  body.set(address, 8);
  body.writeInt32LE(result, 24);
  return body;
}

export function fileBody(what: keyof typeof FileWhat, path: string, flags = 0): Buffer {
  const body = Buffer.alloc(8);
  body.writeUInt8(FileWhat[what], 0);
  body.writeUInt16LE(Buffer.byteLength(path), 2);
  body.writeUInt32LE(flags, 4);
  return Buffer.concat([body, Buffer.from(path)]);
}

export function deniedBody(what: keyof typeof DeniedWhat, path: string, digest = ''): Buffer {
  const body = Buffer.alloc(40);
  body.writeUInt8(DeniedWhat[what], 0);
  body.writeUInt16LE(Buffer.byteLength(path), 2);
  Buffer.from(digest, 'hex').copy(body, 8);
  return Buffer.concat([body, Buffer.from(path)]);
}

/** One process of a {@link SyntheticRun}. */
export class Actor implements ProcessKey {
  readonly pid: number;
  readonly startedNs: bigint;
  readonly parent: number;
  readonly #run: SyntheticRun;

  constructor(run: SyntheticRun, key: ProcessKey, parent: number) {
    this.#run = run;
    this.pid = key.pid;
    this.startedNs = key.startedNs;
    this.parent = parent;
  }

  #record(kind: number, body: Buffer): void {
    const head = { kind, process: this, parentPid: this.parent, timeNs: this.#run.tick() };
    this.#run.add('process', encodeProcess(head, body));
  }

  fork(): Actor {
    const child = this.#run.actor(this.pid);
    this.#record(ProcessRecord.fork, forkBody(child));
    return child;
  }

  exec(binary: string, args: readonly string[], options?: ExecOptions): this {
    this.#record(ProcessRecord.exec, execBody(binary, args, options));
    return this;
  }

  /** A child that runs `binary`. */
  spawn(binary: string, args: readonly string[], options?: ExecOptions): Actor {
    return this.fork().exec(binary, args, options);
  }

  exit(code = 0): void {
    this.#record(ProcessRecord.exit, status(code << 8));
  }

  killed(signal: number): void {
    this.#record(ProcessRecord.exit, status(signal));
  }

  /** Also the system call, on descriptor `fd`. */
  connect(address: string, port: number, { fd = 3, result = 0, protocol = 6 } = {}): this {
    const isIpv6 = address.includes(':');
    const bytes = isIpv6 ? ipv6Bytes(address) : Uint8Array.from(address.split('.'), Number);
    this.#record(ProcessRecord.connect, connectBody(isIpv6 ? 10 : 2, bytes, port, result, protocol));
    return this.call('connect', [BigInt(fd)], BigInt(result));
  }

  file(what: keyof typeof FileWhat, path: string, flags?: number): this {
    this.#record(ProcessRecord.file, fileBody(what, path, flags));
    return this;
  }

  denied(what: keyof typeof DeniedWhat, path: string, digest?: string): this {
    this.#record(ProcessRecord.denied, deniedBody(what, path, digest));
    return this;
  }

  call(name: string, args: readonly bigint[] = [], result = 0n, thread = this.pid): this {
    const number = syscallNumber(name);
    if (number === undefined) throw new Error(`no system call ${name}`);
    const timeNs = this.#run.tick();
    this.#run.add('syscall', encodeSyscall({ timeNs, thread, number, result, args: args.slice(0, 5) }));
    const sixth = args[5];
    if (sixth !== undefined) {
      const flags = SyscallFlag.sixth;
      this.#run.add('syscall', encodeSyscall({ timeNs, thread, number, flags, args: [sixth] }));
    }
    return this;
  }
}

export class SyntheticRun {
  readonly #records: Encoded[] = [];
  #nowNs: bigint;
  #nextPid = FIRST_PID;

  constructor(startNs = 5_000_000_000n) {
    this.#nowNs = startNs;
  }

  tick(): bigint {
    this.#nowNs += STEP_NS;
    return this.#nowNs;
  }

  actor(parent: number): Actor {
    const pid = this.#nextPid;
    this.#nextPid += 1;
    return new Actor(this, { pid, startedNs: this.tick() }, parent);
  }

  /** A step: a shell that the guest agent starts. */
  step(script: string): Actor {
    const agent = new Actor(this, { pid: 1, startedNs: 0n }, 0);
    return agent.spawn('/bin/sh', ['/bin/sh', '-e', '-c', script]);
  }

  add(type: Encoded['type'], bytes: Buffer): void {
    this.#records.push({ type, bytes });
  }

  /** What a reader of the run's segments yields. */
  events(): AuditEvent[] {
    const numbers = { syscall: 0, process: 0 };
    return this.#frames().flatMap(({ type, records }): AuditEvent[] => {
      const first = numbers[type];
      numbers[type] += records.length;
      const origin = { cpu: 0, first, records: records.length };
      const payload = Buffer.concat(records);
      return type === 'syscall' ? decodeSyscalls(payload, origin) : decodeProcesses(payload, origin);
    });
  }

  /** What the guest sends of it, of processor 0. */
  frames(): Buffer[] {
    const numbers = { syscall: 0, process: 0 };
    return this.#frames().map(({ type, records }) => {
      const payload = Buffer.concat(records);
      const header = Buffer.alloc(AUDIT_FRAME_BYTES);
      header.writeUInt32LE(AUDIT_MAGIC, 0);
      header.writeUInt8(type === 'syscall' ? AuditFrame.syscalls : AuditFrame.processes, 4);
      header.writeUInt8(AUDIT_VERSION, 5);
      header.writeUInt16LE(type === 'syscall' ? 0 : NO_CPU, 6);
      header.writeBigUInt64LE(BigInt(numbers[type]), 8);
      header.writeUInt32LE(records.length, 16);
      header.writeUInt32LE(payload.length, 20);
      numbers[type] += records.length;
      return Buffer.concat([header, payload]);
    });
  }

  async *stream(): AsyncGenerator<AuditEvent> {
    yield* this.events();
  }

  #frames(): { readonly type: Encoded['type']; readonly records: Buffer[] }[] {
    const frames: { type: Encoded['type']; records: Buffer[] }[] = [];
    for (const { type, bytes } of this.#records) {
      const last = frames.at(-1);
      if (last?.type === type) last.records.push(bytes);
      else frames.push({ type, records: [bytes] });
    }
    return frames;
  }
}

function status(value: number): Buffer {
  const body = Buffer.alloc(4);
  body.writeUInt32LE(value);
  return body;
}

function ipv6Bytes(address: string): Uint8Array {
  const [head = '', tail] = address.split('::');
  const groups = (text: string): number[] =>
    text === '' ? [] : text.split(':').map((group) => Number.parseInt(group, 16));
  const [before, after] = [groups(head), groups(tail ?? '')];
  const all = [...before, ...Array<number>(8 - before.length - after.length).fill(0), ...after];
  return Uint8Array.from(all.flatMap((group) => [group >> 8, group & 0xff]));
}

/** A build with make: a compiler for each of `sources`, which writes below the workspace and in /tmp. */
export function makeBuild(run: SyntheticRun, sources: readonly string[] = ['main', 'list', 'table']): void {
  const shell = run.step('make && make install');
  const make = shell.spawn('/usr/bin/make', ['make'], { digest: 'aa'.repeat(32) });
  for (const [index, source] of sources.entries()) {
    const gcc = make.spawn('/usr/bin/x86_64-linux-gnu-gcc-12', ['cc', '-O2', '-c', `${source}.c`]);
    const assembly = `/tmp/cc${'XqZpLk'.slice(index)}${run.tick() % 10n}.s`;
    const cc1 = gcc.spawn('/usr/libexec/gcc/cc1', ['cc1', `${source}.c`, '-o', assembly]);
    cc1.call('openat', [0xffffff9cn, 0n, 0n, 0n], 3n);
    cc1.file('write', assembly, 0o1101).call('write', [3n, 0n, 100n], 100n).exit();
    gcc
      .spawn('/usr/bin/as', ['as', '-o', `${source}.o`, assembly])
      .file('write', `/workspace/${source}.o`)
      .exit();
    gcc.exit();
  }
  make.exit();
  const install = shell.spawn('/usr/bin/install', ['install', 'app', '/usr/local/bin/app']);
  install.file('write', '/usr/local/bin/app', 0o1101).exit();
  shell.exit();
}

/** `npm ci`: a registry that policy gave the address 198.18.1.1, a cache outside of the workspace. */
export function npmCi(run: SyntheticRun): void {
  const shell = run.step('npm ci');
  const npm = shell.spawn('/usr/bin/node', ['node', '/usr/bin/npm', 'ci'], { digest: 'bb'.repeat(32) });
  npm.connect('198.18.1.1', 443, { fd: 21, result: -115 }).connect('fd63:7463::c612:101', 443, { fd: 22 });
  npm
    .file('write', '/home/ct/.npm/_cacache/tmp/4fe1a2b3')
    .file('write', '/workspace/node_modules/a/index.js');
  npm.exit();
  shell.exit();
}

/** Python connects, puts the socket in place of its stdin, stdout and stderr, and becomes a shell. */
export function reverseShell(run: SyntheticRun): void {
  const shell = run.step('python3 setup.py');
  const python = shell.spawn('/usr/bin/python3', ['python3', 'setup.py']);
  python.connect('198.18.1.9', 4444, { fd: 3 });
  for (const fd of [0n, 1n, 2n]) python.call('dup2', [3n, fd], fd);
  python.exec('/bin/sh', ['/bin/sh', '-i']);
}
