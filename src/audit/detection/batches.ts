/**
 * Candidates on their way from the process that reads the guest to the daemon, which asks policy. The sender may have been taken
 * over by its guest: the daemon takes only what {@link parseBatch} accepts.
 */

import { hasKeys } from '../../core/json.ts';
import {
  type DetectEvent,
  type DetectProcess,
  type DetectProgram,
  PACKAGE_PROBLEMS,
} from '../../policy/detection.ts';
import { DeniedWhat, FileWhat, MAX_PROCESS_RECORD_BYTES } from '../../protocol/audit.ts';
import { type Candidate, MAX_PATH_CHARACTERS } from './candidates.ts';

/** A batch is evaluated in one go, during which nothing else happens: some milliseconds. */
export const MAX_BATCH_EVENTS = 64;
/** As JSON; one event has 180 KB at most: strings of a record are bounded, and a control character takes six bytes. */
export const MAX_BATCH_BYTES = 192 * 1024;
const MAX_CONNECTIONS = 8;
/** A name has 253 characters, an address 45, a port 5. */
const MAX_PLACE_CHARACTERS = 300;
const MAX_ARGUMENTS = 256;

/** A candidate in JSON: 64-bit integers are strings. */
export interface SentCandidate {
  readonly event: DetectEvent;
  readonly time_ns: string;
  readonly pid: number;
  readonly started_ns: string;
}

/** In order, each no larger than is taken. */
export function batches(candidates: readonly Candidate[]): SentCandidate[][] {
  const all: SentCandidate[][] = [];
  let bytes = 0;
  for (const { event, timeNs, process } of candidates) {
    const sent: SentCandidate = {
      event,
      time_ns: String(timeNs),
      pid: process.pid,
      started_ns: String(process.startedNs),
    };
    const size = Buffer.byteLength(JSON.stringify(sent)) + 1;
    const last = all.at(-1);
    if (last && last.length < MAX_BATCH_EVENTS && bytes + size <= MAX_BATCH_BYTES) {
      last.push(sent);
      bytes += size;
    } else {
      all.push([sent]);
      bytes = size;
    }
  }
  return all;
}

/** The candidates of a batch, or undefined if it is none: then its sender is not ours any more. */
export function parseBatch(value: unknown): Candidate[] | undefined {
  if (!Array.isArray(value) || value.length === 0 || value.length > MAX_BATCH_EVENTS) return undefined;
  const candidates: Candidate[] = [];
  for (const item of value as readonly unknown[]) {
    if (!hasKeys(item, ['event', 'time_ns', 'pid', 'started_ns'])) return undefined;
    const { event, time_ns: time, pid, started_ns: started } = item;
    if (!isEvent(event) || !isNs(time) || !isUint32(pid) || !isNs(started)) return undefined;
    candidates.push({ event, timeNs: BigInt(time), process: { pid, startedNs: BigInt(started) } });
  }
  return candidates;
}

type Check = (value: unknown) => boolean;

const RELATIONS: Check = oneOf('self', 'descendant', 'other');

/** Of what happened, by kind: fields that are always there, and those that may be. */
const FIELDS: Readonly<
  Record<DetectEvent['kind'], readonly [Readonly<Record<string, Check>>, Readonly<Record<string, Check>>]>
> = {
  exec: [
    { path: isPath, args: isArguments },
    {
      digest: isDigest,
      earlier: (value) => hasFields(value, { uid: isUint32, binary: isPath }, {}),
    },
  ],
  connect: [{ host: isPlace, address: isPlace, port: isPort, protocol: isPort }, {}],
  file: [{ what: oneOf(...Object.keys(FileWhat)), path: isPath, flags: isUint32 }, { target: RELATIONS }],
  denied: [
    {
      what: oneOf(...Object.keys(DeniedWhat)),
      path: isPath,
      refused: oneOf(true, false),
      args: isArguments,
    },
    { digest: isDigest },
  ],
  packages: [{ manager: isPlace, problem: oneOf(...PACKAGE_PROBLEMS), path: isPath }, {}],
  syscall: [{ name: oneOf('ptrace', 'process_vm_readv', 'process_vm_writev'), target: RELATIONS }, {}],
};

function isEvent(value: unknown): value is DetectEvent {
  if (typeof value !== 'object' || value === null) return false;
  const { kind } = value as { readonly kind?: unknown };
  if (typeof kind !== 'string' || !Object.hasOwn(FIELDS, kind)) return false;
  if (!hasKeys(value, ['kind', kind, 'process'])) return false;
  const [needed, possible] = FIELDS[kind as DetectEvent['kind']];
  return hasFields(value[kind], needed, possible) && isProcess(value['process']);
}

const PROGRAM: Readonly<Record<string, Check>> = { binary: isPath, program: isPath, uid: isUint32 };

function isProcess(value: unknown): value is DetectProcess {
  return hasFields(
    value,
    {
      ...PROGRAM,
      sockets: (sockets) => Array.isArray(sockets) && sockets.length <= 3 && sockets.every(oneOf(0, 1, 2)),
      connections: (places) =>
        Array.isArray(places) && places.length <= MAX_CONNECTIONS && places.every(isPlace),
    },
    { parent: (parent): parent is DetectProgram => hasFields(parent, PROGRAM, {}) },
  );
}

function hasFields(
  value: unknown,
  needed: Readonly<Record<string, Check>>,
  possible: Readonly<Record<string, Check>>,
): boolean {
  if (!hasKeys(value, Object.keys(needed), Object.keys(possible))) return false;
  return Object.entries(value).every(([name, item]) => (needed[name] ?? possible[name])?.(item) === true);
}

function oneOf(...words: readonly (string | number | boolean)[]): Check {
  return (value) => words.includes(value as string);
}

function isDigest(value: unknown): boolean {
  return typeof value === 'string' && /^[0-9a-f]{64}$/.test(value);
}

function isPath(value: unknown): boolean {
  return typeof value === 'string' && value.length <= MAX_PATH_CHARACTERS;
}

/** All of them come from one record, which says how long they are together. */
function isArguments(value: unknown): boolean {
  if (!Array.isArray(value) || value.length > MAX_ARGUMENTS) return false;
  let characters = 0;
  for (const argument of value as readonly unknown[]) {
    if (typeof argument !== 'string') return false;
    characters += argument.length;
  }
  return characters <= MAX_PROCESS_RECORD_BYTES;
}

function isPlace(value: unknown): boolean {
  return typeof value === 'string' && value.length <= MAX_PLACE_CHARACTERS;
}

function isUint32(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 32;
}

function isPort(value: unknown): boolean {
  return isUint32(value) && value <= 65_535;
}

function isNs(value: unknown): value is string {
  return typeof value === 'string' && /^(0|[1-9][0-9]{0,19})$/.test(value);
}
