/**
 * Which process of the job asked for a connection or a name: the audit record has every connect(2) with who called it, and the
 * question about the network has the same address and port. The record comes over a channel of its own, mostly a moment
 * before the question. A guest that was taken over can lie here as in its record.
 */
import type { ProcessEvent, ProcessKey } from '../audit/records.ts';
import { keyText, ProcessTable } from '../audit/timeline/process-table.ts';
import type { ProcessOrigin } from './egress-messages.ts';
import { MAX_ORIGIN_ARGUMENTS, MAX_ORIGIN_BINARY } from './egress-messages.ts';

/** What was connected longer ago has been asked for; the record may be late by as much. */
const WINDOW_MS = 1000;
/** Places and questions that are remembered; the oldest go first. */
const MAX_PLACES = 1000;
/** Questions about one place. */
const MAX_MISSED = 16;
/** Its own, so that nothing waits for the order that detections need. */
const TABLE_LIMITS = { processes: 8192, bytes: 8 * 1024 * 1024, threads: 4096 };

interface Place {
  readonly origin: ProcessOrigin;
  readonly process: ProcessKey;
  readonly atMs: number;
  /** Another process connected there at the same time: it may be either. */
  readonly isAmbiguous: boolean;
}

interface Missed {
  readonly atMs: number;
  readonly onFound: (origin: ProcessOrigin) => void;
}

export class ConnectOrigins {
  readonly #table = new ProcessTable(TABLE_LIMITS);
  readonly #places = new Map<string, Place>();
  readonly #missed = new Map<string, readonly Missed[]>();

  /** One record, in the order in which they come. */
  add(event: ProcessEvent): void {
    const process = this.#table.apply(event);
    if (event.kind !== 'connect' || event.address === '') return;
    const key = placeOf(event.address, event.port);
    const now = performance.now();
    const before = this.#places.get(key);
    const isSame = before !== undefined && keyText(before.process) === keyText(process);
    const isRecent = before !== undefined && now - before.atMs < WINDOW_MS;
    const origin: ProcessOrigin = {
      pid: process.pid,
      binary: process.binary.slice(0, MAX_ORIGIN_BINARY),
      ...(process.args.length === 0
        ? {}
        : { arguments: process.args.join(' ').slice(0, MAX_ORIGIN_ARGUMENTS) }),
    };
    const { pid, startedNs } = process;
    remember(this.#places, key, {
      origin,
      process: { pid, startedNs },
      atMs: now,
      isAmbiguous: isRecent && (!isSame || before.isAmbiguous),
    });
    const missed = this.#missed.get(key) ?? [];
    this.#missed.delete(key);
    for (const { atMs, onFound } of missed) if (now - atMs < WINDOW_MS) onFound(origin);
  }

  /** Who connected there just now, if it was one. */
  of(address: string, port: number): ProcessOrigin | undefined {
    const place = this.#places.get(placeOf(address, port));
    if (!place || place.isAmbiguous || performance.now() - place.atMs >= WINDOW_MS) return undefined;
    return place.origin;
  }

  /** Calls `onFound` if the record of it comes soon. */
  expect(address: string, port: number, onFound: (origin: ProcessOrigin) => void): void {
    const key = placeOf(address, port);
    const missed = [...(this.#missed.get(key) ?? []), { atMs: performance.now(), onFound }];
    remember(this.#missed, key, missed.slice(-MAX_MISSED));
  }
}

function placeOf(address: string, port: number): string {
  return `${address} ${port}`;
}

function remember<T>(map: Map<string, T>, key: string, value: T): void {
  map.delete(key);
  map.set(key, value);
  const [oldest] = map.keys();
  if (map.size > MAX_PLACES && oldest !== undefined) map.delete(oldest);
}
