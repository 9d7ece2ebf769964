/**
 * The alert file: every alert of a CT_HOME as a line of JSON.
 *
 *     alerts/alerts.jsonl             the newest
 *     alerts/alerts-000001.jsonl …    earlier ones, full; the oldest goes when there would be more than MAX_EARLIER_FILES
 *
 * One process writes, the host daemon. A line is written by one call and is on the disk soon after; one that a dying
 * writer cut short is removed by the next. Readers may come and go.
 */
import {
  closeSync,
  constants,
  fstatSync,
  fsync,
  ftruncateSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { type FileHandle, open, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { CtError, messageOf } from '../core/errors.ts';
import type { Alert } from './alert.ts';
import { MAX_ALERT_BYTES, parseAlert, safeAlert } from './alert-text.ts';

/** Alerts take at most 64 MiB: this, and seven earlier files. */
export const ALERT_FILE_BYTES = 8 * 1024 * 1024;
export const MAX_EARLIER_FILES = 7;
const GROUP_OR_OTHERS = 0o077;
const NEWLINE = 0x0a;
const READ_BYTES = 64 * 1024;
/** How often a follower looks whether there is more. */
const FOLLOW_MS = 100;
const CURRENT = 'alerts.jsonl';
const EARLIER = /^alerts-([0-9]{6,15})\.jsonl$/;

export interface AlertFileLimits {
  readonly fileBytes: number;
  readonly maxEarlierFiles: number;
}

export function alertDirectory(ctHome: string): string {
  return join(ctHome, 'alerts');
}

/** Appends alerts. Opening makes what is missing and throws STATE_DIRECTORY_UNSAFE if others have a hand in it. */
export class AlertFile {
  readonly #directory: string;
  readonly #limits: AlertFileLimits;
  #descriptor: number;
  #bytes: number;
  #syncing: Promise<void> | undefined;
  /** Something was written since the last sync began. */
  #dirty = false;
  /** The file before this one is on the disk. */
  #earlierSynced: Promise<void> | undefined;
  #syncFailure: string | undefined;

  constructor(
    directory: string,
    limits: AlertFileLimits = { fileBytes: ALERT_FILE_BYTES, maxEarlierFiles: MAX_EARLIER_FILES },
  ) {
    this.#directory = directory;
    this.#limits = limits;
    requirePrivateDirectory(directory);
    this.#descriptor = openCurrent(directory);
    this.#bytes = removeCutLine(this.#descriptor);
  }

  get path(): string {
    return join(this.#directory, CURRENT);
  }

  /**
   * Adds a line. Once it returns, the line outlives this process; once {@link settled} resolves, a loss of power, too.
   * Throws what the system says, e.g. ENOSPC; then the file is as before.
   */
  append(alert: Alert): void {
    const line = Buffer.from(`${JSON.stringify(safeAlert(alert))}\n`);
    if (this.#bytes > 0 && this.#bytes + line.length > this.#limits.fileBytes) this.#rotate();
    try {
      const written = writeSync(this.#descriptor, line);
      if (written !== line.length) throw new Error(`only ${written} of ${line.length} bytes were written`);
      this.#bytes += line.length;
    } catch (error) {
      ftruncateSync(this.#descriptor, this.#bytes);
      throw error;
    }
    this.#dirty = true;
    this.#syncing ??= this.#sync(this.#descriptor);
  }

  /** Why something that was appended has not reached the disk, if that is so. */
  get failure(): string | undefined {
    return this.#syncFailure;
  }

  /** Resolves when the disk has what was appended, or has failed. */
  async settled(): Promise<void> {
    while (this.#syncing) await this.#syncing;
    await this.#earlierSynced;
  }

  async close(): Promise<void> {
    await this.settled();
    closeSync(this.#descriptor);
  }

  /** One at a time, off the event loop: a disk may take a second for it. */
  async #sync(descriptor: number): Promise<void> {
    this.#dirty = false;
    try {
      await promisify(fsync)(descriptor);
    } catch (error) {
      this.#syncFailure = messageOf(error);
    }
    this.#syncing = undefined;
    if (this.#dirty) this.#syncing = this.#sync(this.#descriptor);
  }

  #rotate(): void {
    const earlier = earlierFiles(readdirSync(this.#directory));
    const number = (earlier.at(-1)?.number ?? 0) + 1;
    renameSync(this.path, join(this.#directory, `alerts-${String(number).padStart(6, '0')}.jsonl`));
    const full = this.#descriptor;
    this.#descriptor = openCurrent(this.#directory);
    this.#bytes = 0;
    // Not before what may still be under way has reached the disk.
    const before = this.#syncing ?? Promise.resolve();
    this.#earlierSynced = before
      .then(() => promisify(fsync)(full))
      .catch((error: unknown) => {
        this.#syncFailure = messageOf(error);
      })
      .finally(() => closeSync(full));
    for (const { name } of earlier.slice(0, Math.max(0, earlier.length + 1 - this.#limits.maxEarlierFiles))) {
      rmSync(join(this.#directory, name), { force: true });
    }
  }
}

/**
 * Alerts as they were filed, oldest first; lines that are none are passed over. Ends with the last one, or, with
 * `follow`, when that is aborted. A directory that is not there (yet) holds none.
 */
export async function* readAlerts(directory: string, follow?: AbortSignal): AsyncGenerator<Alert> {
  let last: { readonly inode: bigint; readonly number: number } | undefined;
  for (;;) {
    const opened = await openNext(directory, last);
    if (!opened) {
      if (!follow || !(await waited(follow))) return;
      continue;
    }
    await using handle = opened.handle;
    last = { inode: opened.inode, number: opened.number };
    const lines = new Lines();
    for (;;) {
      // Whether it is full is looked up first: what was written until then is read below.
      const isFull = !follow || (await isEarlier(directory, opened.inode));
      for await (const chunk of chunksOf(handle)) {
        for (const line of lines.push(chunk)) {
          const alert = parseAlert(line);
          if (alert) yield alert;
        }
      }
      if (isFull) break;
      if (!(await waited(follow))) return;
    }
  }
}

/** False once it is aborted. */
async function waited(signal: AbortSignal): Promise<boolean> {
  return await sleep(FOLLOW_MS, true, { signal }).catch(() => false);
}

/** Whole lines out of chunks. The file is ours, but a line that never ends must not take our memory. */
class Lines {
  #rest = '';
  #isTooLong = false;
  readonly #decoder = new TextDecoder();

  push(chunk: Buffer): string[] {
    const pieces = (this.#rest + this.#decoder.decode(chunk, { stream: true })).split('\n');
    this.#rest = pieces.pop() ?? '';
    if (this.#isTooLong && pieces.length > 0) {
      pieces.shift();
      this.#isTooLong = false;
    }
    if (this.#rest.length > MAX_ALERT_BYTES) {
      this.#rest = '';
      this.#isTooLong = true;
    }
    return pieces;
  }
}

async function* chunksOf(handle: FileHandle): AsyncGenerator<Buffer> {
  for (;;) {
    const { bytesRead, buffer } = await handle.read(Buffer.allocUnsafe(READ_BYTES), 0, READ_BYTES, null);
    if (bytesRead === 0) return;
    yield buffer.subarray(0, bytesRead);
  }
}

/** The file after `last`, which may have been renamed or removed since. */
async function openNext(
  directory: string,
  last: { readonly inode: bigint; readonly number: number } | undefined,
): Promise<{ readonly handle: FileHandle; readonly inode: bigint; readonly number: number } | undefined> {
  const names = await readdir(directory).catch(() => []);
  const earlier = earlierFiles(names);
  let after = last?.number ?? 0;
  for (const { name, number } of earlier) {
    const stats = await stat(join(directory, name), { bigint: true }).catch(() => undefined);
    if (stats !== undefined && stats.ino === last?.inode) after = Math.max(after, number);
  }
  const candidates = [
    ...earlier.filter(({ number }) => number > after),
    { name: CURRENT, number: Number.NaN },
  ];
  for (const { name, number } of candidates) {
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
    const handle = await open(join(directory, name), flags).catch(() => undefined);
    if (!handle) continue;
    const stats = await handle.stat({ bigint: true });
    if (stats.isFile() && stats.ino !== last?.inode) {
      return { handle, inode: stats.ino, number: Number.isNaN(number) ? after : number };
    }
    await handle.close();
  }
  return undefined;
}

async function isEarlier(directory: string, inode: bigint): Promise<boolean> {
  const current = await stat(join(directory, CURRENT), { bigint: true }).catch(() => undefined);
  return current !== undefined && current.ino !== inode;
}

function earlierFiles(names: readonly string[]): { readonly name: string; readonly number: number }[] {
  return names
    .map((name) => ({ name, number: Number(EARLIER.exec(name)?.[1] ?? 0) }))
    .filter(({ number }) => number > 0)
    .sort((a, b) => a.number - b.number);
}

/** Makes `path` (0700) or checks that it is ours alone. Throws STATE_DIRECTORY_UNSAFE. */
export function requirePrivateDirectory(path: string): void {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  const stats = lstatSync(path);
  if (stats.isDirectory() && stats.uid === process.getuid?.() && (stats.mode & GROUP_OR_OTHERS) === 0) return;
  throw new CtError('STATE_DIRECTORY_UNSAFE', `${path} is not a directory of yours alone`, {
    hint: `alerts tell what was tried where; run: chmod 700 ${path}`,
  });
}

function openCurrent(directory: string): number {
  const path = join(directory, CURRENT);
  const flags = constants.O_RDWR | constants.O_APPEND | constants.O_CREAT | constants.O_NOFOLLOW;
  const descriptor = openSync(path, flags | constants.O_NONBLOCK, 0o600);
  const stats = fstatSync(descriptor);
  if (stats.isFile() && stats.uid === process.getuid?.() && (stats.mode & GROUP_OR_OTHERS) === 0) {
    return descriptor;
  }
  closeSync(descriptor);
  throw new CtError('STATE_DIRECTORY_UNSAFE', `${path} is not a file of yours alone`, {
    hint: `run: chmod 600 ${path}`,
  });
}

/** Cuts off what follows the last line end: the line was not written whole. Returns the size. */
function removeCutLine(descriptor: number): number {
  const { size } = fstatSync(descriptor);
  const buffer = Buffer.alloc(READ_BYTES);
  for (let end = size; end > 0; ) {
    const start = Math.max(0, end - READ_BYTES);
    const read = readSync(descriptor, buffer, 0, end - start, start);
    const at = buffer.subarray(0, read).lastIndexOf(NEWLINE);
    if (at >= 0) {
      const whole = start + at + 1;
      if (whole !== size) ftruncateSync(descriptor, whole);
      return whole;
    }
    end = start;
  }
  if (size > 0) ftruncateSync(descriptor, 0);
  return 0;
}
