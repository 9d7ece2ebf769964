/**
 * The vulnerability database: CT_HOME/vuln/db.sqlite. It is written once, from all its feeds, under another name, and takes the
 * place of the one before by a rename; nothing changes it afterwards. Whoever has the old one open reads on in that.
 */
import { createHash } from 'node:crypto';
import { closeSync, fsyncSync, openSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { CtError, messageOf } from '../../core/errors.ts';
import type { Advisory, Affected, Ecosystem, Range } from './advisory.ts';

/** Changes with the tables and with what importers make of feeds. */
const SCHEMA_VERSION = 1;
const APPLICATION_ID = 0x63747664; // "ctvd"
const PAGE_BYTES = 4096;
/** 4 GiB; all that OSV knows of Debian and npm takes a fifth. Feeds come from outside. */
const MAX_PAGES = 1024 * 1024;

export interface Feed {
  /** Path or URL. */
  readonly location: string;
  readonly kind: 'osv' | 'debian-tracker';
  /** Of what was read. */
  readonly digest: string;
  /** Of what time its contents are; RFC 3339, as all times here. */
  readonly asOf: string;
  readonly readAt: string;
  readonly records: number;
  readonly withdrawn: number;
  /** About packages that images do not hold. */
  readonly skipped: number;
}

export interface DatabaseStatus {
  /** Names the contents: the same feeds give the same. */
  readonly revision: string;
  readonly builtAt: string;
  readonly feeds: readonly Feed[];
  /** How many entries there are about each ecosystem. */
  readonly ecosystems: Readonly<Partial<Record<Ecosystem, number>>>;
  readonly sizeBytes: number;
}

/** One advisory as far as it is about one package. */
export interface AffectedAdvisory {
  readonly advisory: Omit<Advisory, 'affected'>;
  readonly affected: Affected;
}

export function vulnDirectory(ctHome: string): string {
  return join(ctHome, 'vuln');
}

export function databasePath(ctHome: string): string {
  return join(vulnDirectory(ctHome), 'db.sqlite');
}

const TABLES = `
  CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
  CREATE TABLE advisory (
    id INTEGER PRIMARY KEY, osv_id TEXT NOT NULL, aliases TEXT NOT NULL, upstream TEXT NOT NULL, summary TEXT NOT NULL,
    published TEXT, modified TEXT, vectors TEXT NOT NULL, word TEXT
  ) STRICT;
  CREATE TABLE affected (
    ecosystem TEXT NOT NULL, package TEXT NOT NULL, advisory INTEGER NOT NULL REFERENCES advisory (id),
    ranges TEXT NOT NULL, versions TEXT NOT NULL, vectors TEXT NOT NULL, word TEXT
  ) STRICT;
  CREATE TABLE rating (name TEXT NOT NULL, advisory INTEGER NOT NULL REFERENCES advisory (id)) STRICT;
`;
const INDEXES = `
  CREATE INDEX affected_package ON affected (ecosystem, package);
  CREATE INDEX rating_name ON rating (name);
`;

/** Writes a new database at a path where there is none. Disposing closes it; only what was finished can be opened. */
export class DatabaseWriter implements Disposable {
  readonly #path: string;
  readonly #database: DatabaseSync;
  readonly #advisory: StatementSync;
  readonly #affected: StatementSync;
  readonly #rating: StatementSync;
  readonly #ecosystems = new Map<Ecosystem, number>();

  constructor(path: string) {
    this.#path = path;
    this.#database = new DatabaseSync(path);
    // A crash leaves a file that nobody opens: no journal is needed.
    this.#database.exec(
      `PRAGMA page_size = ${PAGE_BYTES}; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
       PRAGMA max_page_count = ${MAX_PAGES}; PRAGMA temp_store = MEMORY; ${TABLES} BEGIN`,
    );
    this.#advisory = this.#database.prepare('INSERT INTO advisory VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)');
    this.#affected = this.#database.prepare('INSERT INTO affected VALUES (?, ?, ?, ?, ?, ?, ?)');
    this.#rating = this.#database.prepare('INSERT INTO rating VALUES (?, ?)');
  }

  /** Throws VULN_DB_INVALID once there is too much. */
  add(advisory: Advisory): void {
    const { id, aliases, upstream, summary, published, modified, vectors, word } = advisory;
    this.#guard(() => {
      const { lastInsertRowid: row } = this.#advisory.run(
        id,
        JSON.stringify(aliases),
        JSON.stringify(upstream),
        summary,
        published ?? null,
        modified ?? null,
        JSON.stringify(vectors),
        word ?? null,
      );
      for (const { ecosystem, package: name, ranges, versions, ...rating } of advisory.affected) {
        this.#affected.run(
          ecosystem,
          name,
          row,
          JSON.stringify(ranges),
          JSON.stringify(versions),
          JSON.stringify(rating.vectors),
          rating.word ?? null,
        );
        this.cover(ecosystem, 1);
      }
      // What one advisory says of another counts if it is about that alone.
      const names = upstream.length === 1 ? [id, ...aliases, ...upstream] : [id, ...aliases];
      if (vectors.length > 0) for (const name of names) this.#rating.run(name, row);
    });
  }

  /** Notes that the feeds know an ecosystem, with so many more entries. */
  cover(ecosystem: Ecosystem, entries: number): void {
    this.#ecosystems.set(ecosystem, (this.#ecosystems.get(ecosystem) ?? 0) + entries);
  }

  /** Completes the database and puts it on the disk. Returns its revision. */
  finish(feeds: readonly Feed[], builtAt: Date): string {
    const revision = revisionOf(feeds);
    const meta = this.#database.prepare('INSERT INTO meta VALUES (?, ?)');
    this.#guard(() => {
      meta.run('revision', revision);
      meta.run('builtAt', builtAt.toISOString());
      meta.run('feeds', JSON.stringify(feeds));
      meta.run('ecosystems', JSON.stringify(Object.fromEntries([...this.#ecosystems].sort())));
      this.#database.exec(
        `COMMIT; ${INDEXES} ANALYZE; PRAGMA application_id = ${APPLICATION_ID}; PRAGMA user_version = ${SCHEMA_VERSION}`,
      );
    });
    this.#database.close();
    const file = openSync(this.#path, 'r');
    try {
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    return revision;
  }

  [Symbol.dispose](): void {
    if (this.#database.isOpen) this.#database.close();
  }

  #guard(write: () => void): void {
    try {
      write();
    } catch (error) {
      const isFull = /database or disk is full/.test(messageOf(error));
      if (isFull && statSync(this.#path).size >= (MAX_PAGES - 1) * PAGE_BYTES) {
        throw new CtError('VULN_DB_INVALID', 'the feeds have more than fits into 4 GiB', {
          hint: 'the database is as it was',
        });
      }
      if (isFull) throw Object.assign(new Error('no space left for the database'), { code: 'ENOSPC' });
      throw error;
    }
  }
}

function revisionOf(feeds: readonly Feed[]): string {
  const parts = feeds.map(({ kind, digest }) => `${kind} ${digest}`);
  return `sha256:${createHash('sha256')
    .update([SCHEMA_VERSION, ...parts].join('\n'))
    .digest('hex')}`;
}

export class VulnDatabase implements Disposable {
  readonly status: DatabaseStatus;
  readonly #path: string;
  readonly #database: DatabaseSync;
  readonly #affected: StatementSync;
  readonly #rating: StatementSync;

  /** Throws VULN_DB_MISSING if there is none that this version of ct can read. */
  constructor(ctHome: string) {
    this.#path = databasePath(ctHome);
    const stats = statSync(this.#path, { throwIfNoEntry: false });
    if (!stats) throw missing('there is no vulnerability database here yet');
    this.#database = this.#read(() => new DatabaseSync(this.#path, { readOnly: true }));
    try {
      const number = (pragma: string): unknown =>
        Object.values(this.#database.prepare(`PRAGMA ${pragma}`).get() ?? {})[0];
      const isOurs = this.#read(
        () => number('application_id') === APPLICATION_ID && number('user_version') === SCHEMA_VERSION,
      );
      if (!isOurs) throw missing('the vulnerability database is of another version of ct');
      this.status = this.#read(() => readStatus(this.#database, stats.size));
      this.#affected = this.#database.prepare(
        `SELECT a.osv_id, a.aliases, a.upstream, a.summary, a.published, a.modified, a.vectors, a.word,
           f.ranges, f.versions, f.vectors AS own_vectors, f.word AS own_word
         FROM affected f JOIN advisory a ON a.id = f.advisory WHERE f.ecosystem = ? AND f.package = ?`,
      );
      this.#rating = this.#database.prepare(
        'SELECT a.vectors FROM rating r JOIN advisory a ON a.id = r.advisory WHERE r.name = ?',
      );
    } catch (error) {
      this.#database.close();
      throw error;
    }
  }

  /** All that is known of a package, whatever its version. */
  advisoriesOf(ecosystem: Ecosystem, name: string): readonly AffectedAdvisory[] {
    return this.#read(() =>
      this.#affected.all(ecosystem, name).map((row): AffectedAdvisory => {
        const text = (column: string): string => String(row[column]);
        const optional = (column: string): string | undefined =>
          row[column] === null ? undefined : String(row[column]);
        const [published, modified, word, ownWord] = ['published', 'modified', 'word', 'own_word'].map(
          optional,
        );
        return {
          advisory: {
            id: text('osv_id'),
            aliases: JSON.parse(text('aliases')) as string[],
            upstream: JSON.parse(text('upstream')) as string[],
            summary: text('summary'),
            ...(published === undefined ? {} : { published }),
            ...(modified === undefined ? {} : { modified }),
            vectors: JSON.parse(text('vectors')) as string[],
            ...(word === undefined ? {} : { word }),
          },
          affected: {
            ecosystem,
            package: name,
            ranges: JSON.parse(text('ranges')) as Range[],
            versions: JSON.parse(text('versions')) as string[],
            vectors: JSON.parse(text('own_vectors')) as string[],
            ...(ownWord === undefined ? {} : { word: ownWord }),
          },
        };
      }),
    );
  }

  /** CVSS vectors of whatever has this name. */
  ratingsOf(name: string): readonly string[] {
    return this.#read(() =>
      this.#rating.all(name).flatMap((row) => JSON.parse(String(row['vectors'])) as string[]),
    );
  }

  [Symbol.dispose](): void {
    if (this.#database.isOpen) this.#database.close();
  }

  /** A damaged database is none: it must not look like one without findings. */
  #read<T>(read: () => T): T {
    try {
      return read();
    } catch (error) {
      if (error instanceof CtError) throw error;
      throw missing(`the vulnerability database ${this.#path} cannot be read: ${messageOf(error)}`, error);
    }
  }
}

function readStatus(database: DatabaseSync, sizeBytes: number): DatabaseStatus {
  const rows = database.prepare('SELECT key, value FROM meta').all();
  const meta = new Map(rows.map(({ key, value }) => [String(key), String(value)]));
  const value = (key: string): string => {
    const text = meta.get(key);
    if (text === undefined) throw new Error(`it has no \`${key}\``);
    return text;
  };
  return {
    revision: value('revision'),
    builtAt: value('builtAt'),
    feeds: JSON.parse(value('feeds')) as Feed[],
    ecosystems: JSON.parse(value('ecosystems')) as DatabaseStatus['ecosystems'],
    sizeBytes,
  };
}

function missing(message: string, cause?: unknown): CtError {
  return new CtError('VULN_DB_MISSING', message, {
    hint: '`ct vuln db update --from FILE|URL` makes it; docs/scanning.md says from which feeds',
    cause,
  });
}
