/** Events of a run by process, system call, path, destination and time. */
import { posix } from 'node:path';
import picomatch from 'picomatch';
import { CtError } from '../../core/errors.ts';
import { didYouMean } from '../../core/suggest.ts';
import { syscallNumber } from '../export/syscalls.ts';
import type { AuditEvent, ProcessEvent, SyscallEvent } from '../records.ts';
import type { NameOf } from './destinations.ts';
import { absolutePath, isWithin } from './paths.ts';
import { type Process, ProcessTable } from './process-table.ts';

/** All that is given has to fit. */
export interface QueryTerms {
  /** A pid, the name of a program, or its path, which may be a pattern. */
  readonly process?: string;
  /** Name or number. Without it, system calls are left out. */
  readonly syscall?: string;
  /** A file, a directory with all below it, or a pattern. */
  readonly path?: string;
  /** Host or address, with `*.` for all below a name; `:port` may follow. */
  readonly destination?: string;
  /** Times of the guest, both included. */
  readonly sinceNs?: bigint;
  readonly untilNs?: bigint;
}

export interface Match {
  readonly event: ProcessEvent | SyscallEvent;
  /** Undefined with a system call of a thread that nobody saw before. */
  readonly process: Process | undefined;
}

type Test<T> = (subject: T) => boolean;

/** Finds events in one run, given in order. The constructor throws USAGE. */
export class Query {
  readonly #table = new ProcessTable();
  readonly #terms: QueryTerms;
  readonly #process: ((process: Process) => boolean) | undefined;
  readonly #syscalls: { readonly x64: number | undefined; readonly i386: number | undefined } | undefined;
  readonly #path: Test<string> | undefined;
  readonly #destination: ((host: string, port: number) => boolean) | undefined;
  readonly #nameOf: NameOf;

  constructor(terms: QueryTerms, nameOf: NameOf) {
    this.#terms = terms;
    this.#nameOf = nameOf;
    this.#process = terms.process === undefined ? undefined : processTest(terms.process);
    this.#syscalls = terms.syscall === undefined ? undefined : syscallNumbers(terms.syscall);
    this.#path = terms.path === undefined ? undefined : pathTest(terms.path);
    this.#destination = terms.destination === undefined ? undefined : destinationTest(terms.destination);
  }

  /** Takes in the next event; what it is if it fits, else undefined. */
  match(event: AuditEvent): Match | undefined {
    if (event.kind === 'syscall') return this.#matchSyscall(event);
    const process = this.#table.apply(event);
    if (this.#syscalls || !this.#isInTime(event.timeNs)) return undefined;
    if (this.#process && !this.#process(process)) return undefined;
    if (this.#path && !this.#hasPath(event, process, this.#path)) return undefined;
    if (this.#destination) {
      if (event.kind !== 'connect') return undefined;
      const { address, port } = event;
      const hosts = [address, this.#nameOf(address) ?? address];
      if (!hosts.some((host) => this.#destination?.(host, port))) return undefined;
    }
    return { event, process };
  }

  #matchSyscall(event: SyscallEvent): Match | undefined {
    if (!this.#syscalls || this.#path || this.#destination) return undefined;
    const { number, isCompat, timeNs, thread } = event;
    if (number !== (isCompat ? this.#syscalls.i386 : this.#syscalls.x64)) return undefined;
    if (!this.#isInTime(timeNs)) return undefined;
    const process = this.#table.ofThread(thread);
    if (this.#process && !(process && this.#process(process))) return undefined;
    return { event, process };
  }

  #isInTime(timeNs: bigint): boolean {
    const { sinceNs, untilNs } = this.#terms;
    return (sinceNs === undefined || timeNs >= sinceNs) && (untilNs === undefined || timeNs <= untilNs);
  }

  #hasPath(event: ProcessEvent, { cwd }: Process, test: Test<string>): boolean {
    if (event.kind === 'exec') return test(event.binary);
    return (event.kind === 'file' || event.kind === 'denied') && test(absolutePath(event.path, cwd));
  }
}

function processTest(term: string): Test<Process> {
  if (/^[0-9]+$/.test(term)) return ({ pid }) => pid === Number(term);
  // By either name: `gcc` is a link to `x86_64-linux-gnu-gcc-12`.
  if (!term.includes('/'))
    return ({ binary, args: [called = ''] }) =>
      posix.basename(binary) === term || (called !== '' && posix.basename(called) === term);
  const test = pathTest(term);
  return ({ binary }) => test(binary);
}

function syscallNumbers(term: string): {
  readonly x64: number | undefined;
  readonly i386: number | undefined;
} {
  if (/^[0-9]+$/.test(term)) return { x64: Number(term), i386: Number(term) };
  const found = { x64: syscallNumber(term), i386: syscallNumber(term, true) };
  if (found.x64 !== undefined || found.i386 !== undefined) return found;
  throw new CtError('USAGE', `there is no system call \`${term}\``, {
    hint: didYouMean(term, COMMON_CALLS) ?? 'give its name, such as openat, or its number',
  });
}

const COMMON_CALLS =
  'open openat read write close connect bind listen accept execve execveat clone clone3 fork mmap mprotect ptrace unlink unlinkat rename socket sendto kill memfd_create'.split(
    ' ',
  );

function pathTest(term: string): Test<string> {
  if (!/[*?[{]/.test(term)) {
    const directory = term.length > 1 && term.endsWith('/') ? term.slice(0, -1) : term;
    return (path) => directory === '/' || isWithin(path, directory);
  }
  return picomatch(term, { dot: true });
}

function destinationTest(term: string): (host: string, port: number) => boolean {
  const bracketed = /^\[(.+)\](?::([0-9]+))?$/.exec(term);
  const plain = /^([^:]+)(?::([0-9]+))?$/.exec(term);
  const [, host = term, wantedPort] = bracketed ?? plain ?? [];
  const name = host.toLowerCase();
  const isBelow = name.startsWith('*.');
  return (found, port) =>
    (wantedPort === undefined || Number(wantedPort) === port) &&
    (host === '*' || (isBelow ? found.endsWith(name.slice(1)) : found === name));
}
