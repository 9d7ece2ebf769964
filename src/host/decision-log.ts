/**
 * The decisions that policy made about a run: `CT_HOME/decisions/RUN.jsonl`, the daemon's own (0600), one entry a line as
 * OPA logs decisions (docs/policy.md). The last line of a run that has ended says how often decisions were given again.
 */
import { closeSync, mkdirSync, openSync, writeSync } from 'node:fs';
import { readdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { CtError } from '../core/errors.ts';

/** Distinct decisions of one run; a job decides how many names it asks for. */
export const MAX_ENTRIES = 10_000;
export const MAX_LOG_BYTES = 8 * 1024 * 1024;
/** Kept free of entries, for the line that says how often they were given again. */
const MAX_REPEATS_BYTES = MAX_ENTRIES * 48;

/** The last line. */
export interface DecisionCounts {
  readonly type: 'counts';
  /** How often decisions were given, by id; those that are missing, once. */
  readonly counts: Readonly<Record<string, number>>;
  /** The log was full: every new question was denied from then on. */
  readonly full: boolean;
}

export class DecisionLogs {
  readonly #directory: string;
  readonly #live = new Map<string, DecisionLog>();

  constructor(ctHome: string) {
    this.#directory = join(ctHome, 'decisions');
    mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
  }

  /** The log of a run that begins. Throws if it cannot be made. */
  begin(run: string): DecisionLog {
    const log = new DecisionLog(this.path(run), () => this.#live.delete(run));
    this.#live.set(run, log);
    return log;
  }

  path(run: string): string {
    return join(this.#directory, `${run}.jsonl`);
  }

  /** All lines so far as a JSON array, not parsed: it may be megabytes. Empty if nothing was decided. */
  async json(run: string): Promise<string> {
    const text = await readFile(this.path(run), 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return '';
      throw error;
    });
    const lines = text.split('\n').filter((line) => line !== '');
    const live = this.#live.get(run);
    if (live) lines.push(JSON.stringify(live.counts));
    return `[${lines.join(',')}]`;
  }

  /** Returns the bytes it took. */
  async remove(run: string): Promise<number> {
    const path = this.path(run);
    const bytes = await stat(path).then(
      ({ size }) => size,
      () => 0,
    );
    await rm(path, { force: true });
    return bytes;
  }

  /** Runs that have a log. */
  async runs(): Promise<string[]> {
    return (await readdir(this.#directory)).map((name) => name.replace(/\.jsonl$/, ''));
  }
}

export class DecisionLog {
  readonly path: string;
  readonly #onClose: () => void;
  readonly #counts = new Map<string, number>();
  #fd: number | undefined;
  #entries = 0;
  #bytes = 0;
  #isFull = false;

  constructor(path: string, onClose: () => void) {
    this.path = path;
    this.#fd = openSync(path, 'wx', 0o600);
    this.#onClose = onClose;
  }

  get counts(): DecisionCounts {
    return { type: 'counts', counts: Object.fromEntries(this.#counts), full: this.#isFull };
  }

  /**
   * Written before it returns. Throws what the file system says, or POLICY_UNAVAILABLE once the log is full: what is not on
   * record is not to be.
   */
  add(entry: object): void {
    const line = Buffer.from(`${JSON.stringify(entry)}\n`);
    if (this.#fd === undefined) throw new CtError('POLICY_UNAVAILABLE', 'the run has ended');
    this.#isFull ||= this.#entries >= MAX_ENTRIES || this.#bytes + line.length > MAX_LOG_BYTES;
    if (this.#isFull) {
      throw new CtError('POLICY_UNAVAILABLE', `the run has used up its ${MAX_ENTRIES} decisions`);
    }
    const written = writeSync(this.#fd, line);
    this.#bytes += written;
    this.#entries += 1;
    if (written < line.length)
      throw new CtError('STORE_FULL', 'the file system of CT_HOME has no space left');
  }

  /** The decision of that id was given once more. */
  repeat(id: string): void {
    this.#counts.set(id, (this.#counts.get(id) ?? 1) + 1);
  }

  /** Idempotent. A disk that is full keeps the counts out, and nothing else. */
  close(): void {
    if (this.#fd === undefined) return;
    const fd = this.#fd;
    this.#fd = undefined;
    try {
      if (this.#counts.size > 0 || this.#isFull) {
        const line = Buffer.from(`${JSON.stringify(this.counts)}\n`);
        if (line.length <= MAX_REPEATS_BYTES) writeSync(fd, line);
      }
    } catch {
      // as said above
    } finally {
      closeSync(fd);
      this.#onClose();
    }
  }
}
