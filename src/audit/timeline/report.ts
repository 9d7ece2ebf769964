/**
 * What a run did, gathered from its events: the tree of its processes, what they wrote outside of the workspace, whom they reached,
 * what was refused. Lists are bounded, as the guest can make them as long as it likes; what did not fit is counted.
 */
import { posix } from 'node:path';
import {
  type AuditEvent,
  type ConnectEvent,
  type DeniedEvent,
  type DeniedName,
  FAMILY_IPV4,
  FAMILY_IPV6,
  type FileEvent,
  type FileName,
  type ProcessEvent,
} from '../records.ts';
import { isOfVm, type NameOf, wasRefused } from './destinations.ts';
import { absolutePath, isKept, isWithin } from './paths.ts';
import { type Process, ProcessTable } from './process-table.ts';

/** What a page or a terminal can show; a large build has thousands. Some 1.5 KiB each. */
export const MAX_NODES = 20_000;
/** Of each list; some 500 bytes each. */
export const MAX_ENTRIES = 10_000;
/** A command line is cut to this for people; the export has it whole. */
const MAX_COMMAND_CHARACTERS = 500;
const MAX_PATH_CHARACTERS = 1000;

export interface StepTime {
  readonly name: string;
  /** Times of the guest. */
  readonly startNs: bigint;
  readonly endNs?: bigint;
}

export interface ProcessNode {
  /** Number within the report. */
  readonly id: number;
  readonly pid: number;
  readonly parent?: number;
  /** Index of the step, with processes that the guest agent started. */
  step?: number;
  binary: string;
  command: string;
  /** SHA-256 of the binary in hex, where that was computed. */
  digest?: string;
  origin: Process['origin'];
  readonly startNs: bigint;
  endNs?: bigint;
  /** Wait status. */
  status?: number;
  /** Programs that it ran before, in order. */
  readonly earlier: string[];
}

/** Something that happened, as often as it did; `process` did it first and is a node's id, if that was kept. */
interface Counted {
  count: number;
  readonly firstNs: bigint;
  readonly process?: number;
}

export interface WrittenFile extends Counted {
  readonly what: Exclude<FileName, 'read'>;
  readonly path: string;
}

export interface Destination extends Counted {
  /** The name that the run asked for, else the address. */
  readonly host: string;
  readonly port: number;
  readonly protocol: number;
  /** How many of the attempts failed at once. */
  refused: number;
}

export interface Refused extends Counted {
  readonly what: DeniedName;
  readonly path: string;
  /** It was let through. */
  readonly recordedOnly?: boolean;
  readonly digest?: string;
}

export interface Program extends Counted {
  readonly path: string;
  readonly digest?: string;
}

export interface Report {
  readonly processes: readonly ProcessNode[];
  readonly programs: readonly Program[];
  readonly written: readonly WrittenFile[];
  readonly destinations: readonly Destination[];
  readonly refused: readonly Refused[];
  readonly startNs: bigint;
  readonly endNs: bigint;
  /** What did not fit. */
  readonly omitted: { readonly processes: number; readonly entries: number };
}

export interface ReportOptions {
  /** Writes below it are what jobs are for. */
  readonly workspace: string;
  readonly nameOf: NameOf;
  readonly steps: readonly StepTime[];
}

export async function buildReport(
  events: AsyncIterable<AuditEvent>,
  options: ReportOptions,
): Promise<Report> {
  const builder = new ReportBuilder(options);
  for await (const event of events) builder.add(event);
  return builder.report();
}

/** The guest's clock was set by a message, so it may be behind that of the host by as long as that took. */
const CLOCK_SLACK_NS = 5_000_000n;

class ReportBuilder {
  readonly #options: ReportOptions;
  readonly #table = new ProcessTable();
  readonly #nodes: ProcessNode[] = [];
  readonly #nodeOf = new WeakMap<Process, ProcessNode>();
  /** Processes that there was no room for. */
  readonly #without = new WeakSet<Process>();
  readonly #programs = new Map<string, Program>();
  readonly #written = new Map<string, WrittenFile>();
  readonly #destinations = new Map<string, Destination>();
  readonly #refused = new Map<string, Refused>();
  readonly #omitted = { processes: 0, entries: 0 };
  #startNs: bigint | undefined;
  #endNs = 0n;

  constructor(options: ReportOptions) {
    this.#options = options;
  }

  add(event: AuditEvent): void {
    if (event.kind === 'syscall') return;
    const { timeNs } = event;
    if (this.#startNs === undefined || timeNs < this.#startNs) this.#startNs = timeNs;
    if (timeNs > this.#endNs) this.#endNs = timeNs;
    const process = this.#table.apply(event);
    const node = this.#node(process);
    if (event.kind === 'fork') {
      const child = this.#table.get(event.child);
      if (child) this.#node(child);
    } else if (event.kind === 'exec') this.#exec(event, process, node);
    else if (event.kind === 'exit' && node) {
      node.endNs = timeNs;
      node.status = event.status;
    } else if (event.kind === 'file') this.#file(event, process, node);
    else if (event.kind === 'connect') this.#connect(event, node);
    else if (event.kind === 'denied') this.#deny(event, process, node);
  }

  report(): Report {
    this.#assignSteps();
    return {
      processes: this.#nodes,
      programs: [...this.#programs.values()],
      written: [...this.#written.values()],
      destinations: [...this.#destinations.values()],
      refused: [...this.#refused.values()],
      startNs: this.#startNs ?? 0n,
      endNs: this.#endNs,
      omitted: { ...this.#omitted },
    };
  }

  #node(process: Process): ProcessNode | undefined {
    const known = this.#nodeOf.get(process);
    if (known) return known;
    // The guest agent itself: what it starts are the steps.
    if (process.pid === 1) return undefined;
    if (this.#nodes.length >= MAX_NODES) {
      if (!this.#without.has(process)) this.#omitted.processes += 1;
      this.#without.add(process);
      return undefined;
    }
    const above = this.#table.parentOf(process);
    const parent = above && this.#nodeOf.get(above)?.id;
    const node: ProcessNode = {
      id: this.#nodes.length,
      pid: process.pid,
      ...(parent === undefined ? {} : { parent }),
      binary: cut(process.binary, MAX_PATH_CHARACTERS),
      command: commandOf(process.args),
      origin: process.origin,
      startNs: process.sinceNs,
      earlier: [],
    };
    this.#nodes.push(node);
    this.#nodeOf.set(process, node);
    return node;
  }

  /**
   * Each step is one process that the guest agent starts; what it forks, and what runs no program, moves files in and out. Where there are as many as steps, they are told by their order; else,
   * as with a shell that was opened meanwhile, by when they were started.
   */
  #assignSteps(): void {
    const { steps } = this.#options;
    const roots = this.#nodes
      .filter(({ parent, origin }) => parent === undefined && origin !== 'fork')
      .toSorted((a, b) => (a.startNs < b.startNs ? -1 : a.startNs > b.startNs ? 1 : 0));
    const isByOrder = roots.length === steps.length;
    for (const [order, node] of roots.entries()) {
      const latest = node.startNs + CLOCK_SLACK_NS;
      const index = isByOrder ? order : steps.findLastIndex(({ startNs }) => startNs <= latest);
      if (index !== -1) node.step = index;
    }
  }

  #exec(
    event: Extract<ProcessEvent, { kind: 'exec' }>,
    process: Process,
    node: ProcessNode | undefined,
  ): void {
    const path = cut(event.binary, MAX_PATH_CHARACTERS);
    this.#count(this.#programs, `${event.digest ?? ''} ${path}`, event, node, () => ({
      path,
      ...(event.digest === undefined ? {} : { digest: event.digest }),
    }));
    if (!node) return;
    if (node.origin === 'exec' && node.earlier.length < MAX_EARLIER) node.earlier.push(node.binary);
    node.binary = path;
    node.command = commandOf(process.args);
    node.origin = 'exec';
    if (event.digest === undefined) delete node.digest;
    else node.digest = event.digest;
  }

  #file(event: FileEvent, { cwd }: Process, node: ProcessNode | undefined): void {
    const { what } = event;
    if (what === 'read') return;
    const path = absolutePath(event.path, cwd);
    if (isWithin(path, this.#options.workspace) && what !== 'setuid') return;
    if (!isKept(path)) return;
    this.#count(this.#written, `${what} ${path}`, event, node, () => ({
      what,
      path: cut(path, MAX_PATH_CHARACTERS),
    }));
  }

  #connect(event: ConnectEvent, node: ProcessNode | undefined): void {
    const { family, address, port, protocol } = event;
    if ((family !== FAMILY_IPV4 && family !== FAMILY_IPV6) || isOfVm(address)) return;
    const host = this.#options.nameOf(address) ?? address;
    const key = `${host} ${port} ${protocol}`;
    const entry = this.#count(this.#destinations, key, event, node, () => ({
      host,
      port,
      protocol,
      refused: 0,
    }));
    if (entry && wasRefused(event)) entry.refused += 1;
  }

  #deny(event: DeniedEvent, { cwd }: Process, node: ProcessNode | undefined): void {
    const { what, digest, blocked } = event;
    const path = event.path === '' ? '' : absolutePath(event.path, cwd);
    this.#count(this.#refused, `${blocked} ${what} ${digest ?? ''} ${path}`, event, node, () => ({
      what,
      path: cut(path, MAX_PATH_CHARACTERS),
      ...(blocked ? {} : { recordedOnly: true }),
      ...(digest === undefined ? {} : { digest }),
    }));
  }

  #count<E extends Counted>(
    entries: Map<string, E>,
    key: string,
    { timeNs }: ProcessEvent,
    node: ProcessNode | undefined,
    make: () => Omit<E, keyof Counted>,
  ): E | undefined {
    const known = entries.get(key);
    if (known) {
      known.count += 1;
      return known;
    }
    if (entries.size >= MAX_ENTRIES) {
      this.#omitted.entries += 1;
      return undefined;
    }
    const counted = { count: 1, firstNs: timeNs, ...(node === undefined ? {} : { process: node.id }) };
    const entry = { ...make(), ...counted } as unknown as E;
    entries.set(key, entry);
    return entry;
  }
}

/** A loop of exec(2) is one process. */
const MAX_EARLIER = 20;

/** As a person would type it, cut. Arguments with blanks are put in quotation marks. */
function commandOf(args: readonly string[]): string {
  const words: string[] = [];
  let length = 0;
  for (const arg of args) {
    words.push(/[\s'"]|^$/.test(arg) ? `'${cut(arg, MAX_COMMAND_CHARACTERS)}'` : arg);
    length += arg.length + 1;
    if (length > MAX_COMMAND_CHARACTERS) break;
  }
  return cut(words.join(' '), MAX_COMMAND_CHARACTERS);
}

function cut(text: string, characters: number): string {
  // slice() would keep all of the long text in memory.
  return text.length <= characters ? text : `${Buffer.from(text.slice(0, characters)).toString()}…`;
}

/** Nodes by their parent; under `undefined` those that have none. Each comes after its parent, so there are no circles. */
export function childrenOf(nodes: readonly ProcessNode[]): ReadonlyMap<number | undefined, ProcessNode[]> {
  return Map.groupBy(nodes, ({ parent }) => parent);
}

/** The last part of the binary's path, for a person; what is known otherwise. */
export function nameOfNode({ binary, origin, pid }: ProcessNode): string {
  if (binary !== '') return posix.basename(binary);
  return origin === 'unknown' ? `process ${pid} (unknown)` : `process ${pid}`;
}
