/**
 * Feeds of vulnerabilities: what they are is seen from their contents.
 *
 *     OSV              a ZIP archive or a directory of records in JSON; one JSON text of records, one after another
 *                      (JSON lines) or as an array
 *     Debian tracker   one JSON object: package → vulnerability → releases
 *
 * JSON texts may be packed with gzip. Feeds come from outside, and are read within limits.
 */
import { createHash } from 'node:crypto';
import { createReadStream, readdirSync, readFileSync, type Stats, statSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { createGunzip } from 'node:zlib';
import { CtError, messageOf } from '../../core/errors.ts';
import { debianEcosystem, MAX_RECORD_BYTES } from './advisory.ts';
import type { DatabaseWriter, Feed } from './database.ts';
import { parseTrackerPackage, releasesOf } from './debian-tracker.ts';
import { download, isUrl } from './download.ts';
import { jsonPieces } from './json-stream.ts';
import { parseOsv } from './osv.ts';
import { type ZipLimits, zipFiles } from './zip.ts';

export interface FeedLimits extends ZipLimits {
  /** Of a file as it lies there. */
  readonly maxFeedBytes: number;
  /** Of one source package in the tracker's JSON: that of the kernel has some 15 MiB. */
  readonly maxPackageBytes: number;
}

/** All of OSV has two million records, of Debian and npm 300,000; the tracker's JSON has 80 MB. */
export const FEED_LIMITS: FeedLimits = {
  maxFeedBytes: 4 * 1024 ** 3,
  maxEntries: 5_000_000,
  maxFileBytes: MAX_RECORD_BYTES,
  maxTotalBytes: 32 * 1024 ** 3,
  maxPackageBytes: 128 * 1024 * 1024,
};

/** A feed of this many records changes every day: if its newest is old, then so is the feed, whatever its file says. */
const BUSY_RECORDS = 1000;
/** Records between two looks at whether to go on. */
const TURN_RECORDS = 500;
/** What tells the formats apart stands at the beginning. */
const HEAD_BYTES = 1024;
const TRACKER = /^\s*\{\s*"[^"\\]{1,128}"\s*:\s*\{\s*"(?:CVE|TEMP)-/;

export interface ReadFeedOptions {
  readonly into: DatabaseWriter;
  /** For what is fetched; must exist. */
  readonly temporary: string;
  readonly now: Date;
  readonly signal: AbortSignal;
  readonly limits?: FeedLimits;
  readonly onProgress?: (records: number) => void;
}

/** Puts a feed into a database. Throws VULN_DB_INVALID, or CANCELLED after an abort. */
export async function readFeed(location: string, options: ReadFeedOptions): Promise<Feed> {
  const { maxFeedBytes } = options.limits ?? FEED_LIMITS;
  if (!isUrl(location)) return new FeedReader(location, location, options).read(undefined);
  const path = join(options.temporary, `feed-${process.pid}-${performance.now()}`);
  const { modified } = await download(location, path, { maxBytes: maxFeedBytes, signal: options.signal });
  return new FeedReader(location, path, options).read(modified ?? options.now);
}

class FeedReader {
  readonly #location: string;
  readonly #path: string;
  readonly #options: ReadFeedOptions;
  readonly #limits: FeedLimits;
  #records = 0;
  #withdrawn = 0;
  #skipped = 0;
  #seen = 0;
  /** Of the records, as text; times of one zone sort as such. */
  #newest = '';

  constructor(location: string, path: string, options: ReadFeedOptions) {
    this.#location = location;
    this.#path = path;
    this.#options = options;
    this.#limits = options.limits ?? FEED_LIMITS;
  }

  /** `dated`: what a server says; else the time of the file counts. */
  async read(dated: Date | undefined): Promise<Feed> {
    const before = this.#stat();
    const { kind, digest, modifiedMs } = before.isDirectory()
      ? { kind: 'osv' as const, ...(await this.#readDirectory()) }
      : { ...(await this.#readFile(before)), modifiedMs: before.mtimeMs };
    if (this.#records === 0) throw this.#wrong('holds no vulnerability of Debian or npm packages');
    const { now } = this.#options;
    return {
      location: this.#location,
      kind,
      digest,
      asOf: this.#asOf(Math.min(dated?.getTime() ?? modifiedMs, now.getTime())).toISOString(),
      readAt: now.toISOString(),
      records: this.#records,
      withdrawn: this.#withdrawn,
      skipped: this.#skipped,
    };
  }

  #asOf(fileMs: number): Date {
    const newestMs = this.#records >= BUSY_RECORDS ? Date.parse(this.#newest) : Number.NaN;
    return new Date(Number.isNaN(newestMs) ? fileMs : Math.min(fileMs, newestMs));
  }

  #stat(): Stats {
    const stats = statSync(this.#path, { throwIfNoEntry: false });
    if (!stats) throw this.#wrong('does not exist');
    if (!stats.isFile() && !stats.isDirectory()) throw this.#wrong('is neither a file nor a directory');
    if (stats.isFile() && stats.size > this.#limits.maxFeedBytes) {
      throw this.#wrong(`has more than ${this.#limits.maxFeedBytes} bytes`);
    }
    return stats;
  }

  async #readFile(before: Stats): Promise<{ readonly kind: Feed['kind']; readonly digest: string }> {
    const { digest, head } = await this.#digest();
    const kind = head.readUInt32LE(0) === 0x04034b50 ? await this.#readZip() : await this.#readJson(head);
    const after = this.#stat();
    if (after.ino !== before.ino || after.size !== before.size || after.mtimeMs !== before.mtimeMs) {
      throw this.#wrong('was changed while it was read');
    }
    return { kind, digest };
  }

  async #digest(): Promise<{ readonly digest: string; readonly head: Buffer }> {
    const hash = createHash('sha256');
    let head: Buffer = Buffer.alloc(4);
    let bytes = 0;
    try {
      for await (const chunk of createReadStream(this.#path, {
        highWaterMark: 1024 * 1024,
        signal: this.#options.signal,
      }) as AsyncIterable<Buffer>) {
        if (bytes === 0 && chunk.length >= 4) head = chunk.subarray(0, 4);
        bytes += chunk.length;
        hash.update(chunk);
      }
    } catch (error) {
      throw this.#options.signal.aborted ? this.#options.signal.reason : this.#unreadable(error);
    }
    return { digest: `sha256:${hash.digest('hex')}`, head };
  }

  async #readZip(): Promise<'osv'> {
    for (const { name, bytes } of zipFiles(this.#path, this.#limits)) {
      if (name.endsWith('.json')) await this.#add(this.#json(name, bytes));
    }
    return 'osv';
  }

  async #readDirectory(): Promise<{ readonly digest: string; readonly modifiedMs: number }> {
    const hash = createHash('sha256');
    let [modifiedMs, total] = [0, 0];
    const names = readdirSync(this.#path).filter((name) => name.endsWith('.json'));
    if (names.length > this.#limits.maxEntries)
      throw this.#wrong(`holds more than ${this.#limits.maxEntries} files`);
    for (const name of names.sort()) {
      const path = join(this.#path, name);
      const stats = statSync(path, { throwIfNoEntry: false });
      if (!stats?.isFile()) throw this.#wrong(`holds what is no file: ${name}`);
      total += stats.size;
      if (stats.size > this.#limits.maxFileBytes || total > this.#limits.maxTotalBytes) {
        throw this.#wrong(`holds too much: ${name}`);
      }
      const bytes = readFileSync(path);
      modifiedMs = Math.max(modifiedMs, stats.mtimeMs);
      hash.update(`${name}\0${bytes.length}\0`).update(bytes);
      await this.#add(this.#json(name, bytes));
    }
    return { digest: `sha256:${hash.digest('hex')}`, modifiedMs };
  }

  async #readJson(magic: Buffer): Promise<Feed['kind']> {
    const chunks = this.#text(magic.readUInt16BE(0) === 0x1f8b);
    const head: Buffer[] = [];
    for (let bytes = 0; bytes < HEAD_BYTES; ) {
      const { value, done } = await chunks.next();
      if (done) break;
      head.push(value);
      bytes += value.length;
    }
    const beginning = Buffer.concat(head);
    const whole = (async function* () {
      yield beginning;
      yield* chunks;
    })();
    const isTracker = TRACKER.test(beginning.toString('utf8', 0, HEAD_BYTES));
    const shape = isTracker ? ('members' as const) : ('objects' as const);
    const maxValueBytes = isTracker ? this.#limits.maxPackageBytes : this.#limits.maxFileBytes;
    for await (const piece of jsonPieces(whole, { shape, maxValueBytes, name: this.#location })) {
      if (isTracker) await this.#addPackage(piece.key, piece.value);
      else await this.#add(piece.value);
    }
    return isTracker ? 'debian-tracker' : 'osv';
  }

  async *#text(isPacked: boolean): AsyncGenerator<Buffer, undefined> {
    const { signal } = this.#options;
    const file = createReadStream(this.#path, { highWaterMark: 256 * 1024, signal });
    const stream = isPacked ? file.pipe(createGunzip({ chunkSize: 256 * 1024 })) : file;
    file.on('error', (error) => stream.destroy(error));
    let total = 0;
    try {
      for await (const chunk of stream as AsyncIterable<Buffer>) {
        total += chunk.length;
        if (total > this.#limits.maxTotalBytes) {
          throw this.#wrong(`unpacks to more than ${this.#limits.maxTotalBytes} bytes`);
        }
        yield chunk;
      }
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      throw error instanceof CtError ? error : this.#unreadable(error);
    } finally {
      file.destroy();
    }
    return undefined;
  }

  async #add(value: unknown): Promise<void> {
    await this.#count();
    const advisory = parseOsv(value);
    if (advisory === 'withdrawn') this.#withdrawn += 1;
    else if (advisory === 'other') this.#skipped += 1;
    else {
      this.#options.into.add(advisory);
      this.#records += 1;
      const { modified = '' } = advisory;
      if (modified > this.#newest && Date.parse(modified) <= this.#options.now.getTime())
        this.#newest = modified;
    }
  }

  async #addPackage(name: string, value: unknown): Promise<void> {
    const advisories = parseTrackerPackage(name, value);
    for (const advisory of advisories) {
      await this.#count();
      this.#options.into.add(advisory);
    }
    this.#records += advisories.length;
    for (const release of new Set(releasesOf(value))) {
      const ecosystem = debianEcosystem(release);
      if (ecosystem !== undefined) this.#options.into.cover(ecosystem, 0);
    }
  }

  async #count(): Promise<void> {
    this.#seen += 1;
    if (this.#seen > this.#limits.maxEntries)
      throw this.#wrong(`holds more than ${this.#limits.maxEntries} records`);
    if (this.#seen % TURN_RECORDS !== 0) return;
    this.#options.onProgress?.(this.#seen);
    await turn();
    if (this.#options.signal.aborted) throw this.#options.signal.reason;
  }

  #json(name: string, bytes: Buffer): unknown {
    try {
      return JSON.parse(bytes.toString('utf8'));
    } catch {
      throw this.#wrong(`holds a file that is not valid JSON: ${name}`);
    }
  }

  #unreadable(error: unknown): CtError {
    return new CtError('VULN_DB_INVALID', `${this.#location} cannot be read: ${messageOf(error)}`, {
      hint: 'the database is as it was',
      cause: error,
    });
  }

  #wrong(what: string): CtError {
    return new CtError('VULN_DB_INVALID', `${this.#location} ${what}`, { hint: 'the database is as it was' });
  }
}
