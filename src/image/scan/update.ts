/** `ct vuln db update`: a new database from feeds, in place of the one before; on any failure that stays. */
import { mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { CtError } from '../../core/errors.ts';
import { openCtHome } from '../../core/paths.ts';
import { takeLock } from '../lock.ts';
import {
  type DatabaseStatus,
  DatabaseWriter,
  databasePath,
  type Feed,
  VulnDatabase,
  vulnDirectory,
} from './database.ts';
import { type FeedLimits, readFeed } from './feed.ts';

/** Each is read from its beginning to its end. */
const MAX_FEEDS = 20;

export interface UpdateOptions {
  readonly ctHome: string;
  /** Paths and URLs; what they hold together is the database. */
  readonly feeds: readonly string[];
  readonly now: Date;
  readonly signal: AbortSignal;
  readonly onProgress?: (what: string) => void;
  readonly limits?: FeedLimits;
}

/** Throws USAGE without feeds, VULN_DB_INVALID, CANCELLED, STORE_FULL. */
export async function updateDatabase(options: UpdateOptions): Promise<DatabaseStatus> {
  const { feeds, now, signal } = options;
  if (feeds.length === 0 || feeds.length > MAX_FEEDS) {
    throw new CtError(
      'USAGE',
      feeds.length === 0 ? 'no feed is named' : `more than ${MAX_FEEDS} feeds are named`,
      {
        hint: 'name one with --from, or in `feeds` of vulnerabilities.yml in the policy directory; see docs/scanning.md',
      },
    );
  }
  const ctHome = openCtHome(options.ctHome);
  const directory = vulnDirectory(ctHome);
  const temporary = join(directory, 'tmp');
  mkdirSync(temporary, { recursive: true, mode: 0o700 });
  using _lock = await takeLock(join(directory, 'update.lock'), {
    signal,
    onWait: () => options.onProgress?.('waiting for another update'),
  });
  // What an update that was killed has left.
  for (const name of readdirSync(temporary)) rmSync(join(temporary, name), { recursive: true, force: true });
  const path = join(temporary, 'db.sqlite');
  try {
    using writer = new DatabaseWriter(path);
    const read: Feed[] = [];
    for (const location of feeds) {
      options.onProgress?.(`reading ${location}`);
      const onProgress = (records: number): void => options.onProgress?.(`reading ${location} (${records})`);
      const limits = options.limits === undefined ? {} : { limits: options.limits };
      read.push(await readFeed(location, { into: writer, temporary, now, signal, onProgress, ...limits }));
    }
    options.onProgress?.('writing the database');
    writer.finish(read, now);
    renameSync(path, databasePath(ctHome));
    await syncDirectory(directory);
  } finally {
    for (const name of readdirSync(temporary))
      rmSync(join(temporary, name), { recursive: true, force: true });
  }
  using database = new VulnDatabase(ctHome);
  return database.status;
}

async function syncDirectory(path: string): Promise<void> {
  await using directory = await open(path, 'r');
  await directory.sync();
}
