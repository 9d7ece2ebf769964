/**
 * Runs on disk: `<CT_HOME>/host.db`, SQLite in WAL mode. Only the host daemon opens it, under the lock of its CT_HOME.
 *
 * Commits are not synced one by one (`synchronous = NORMAL`): the record survives a kill -9 of the daemon, and a power
 * cut may lose its last moments. History is never a reason not to run jobs: a file that cannot be used is set aside.
 */
import { closeSync, openSync, renameSync, rmSync } from 'node:fs';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { messageOf } from '../core/errors.ts';
import type { ImageStanding, JobResult } from '../protocol/run.ts';
import type { Destruction, RunAuditInfo, RunDetail, RunInfo, RunShell, RunStep } from './api.ts';
import type { RunState } from './run-state.ts';

/** One entry per version; `user_version` counts those that were applied. Never edit an entry, add one. */
const MIGRATIONS: readonly string[] = [
  `CREATE TABLE runs (
     id TEXT PRIMARY KEY,
     job TEXT NOT NULL,
     image_digest TEXT NOT NULL,
     image_name TEXT,
     cpus INTEGER NOT NULL,
     memory_mib INTEGER NOT NULL,
     disk_mib INTEGER NOT NULL,
     state TEXT NOT NULL,
     created_at_ms INTEGER NOT NULL,
     state_since_ms INTEGER NOT NULL,
     duration_ms INTEGER,
     outcome TEXT,
     exit_code INTEGER,
     error TEXT,
     vm TEXT,
     states_ms TEXT NOT NULL DEFAULT '{}',
     destruction TEXT
   ) STRICT;
   CREATE INDEX runs_by_time ON runs (created_at_ms);
   CREATE INDEX runs_by_job ON runs (job);
   CREATE TABLE steps (
     run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
     position INTEGER NOT NULL,
     name TEXT NOT NULL,
     state TEXT NOT NULL DEFAULT 'waiting',
     exit_code INTEGER,
     duration_ms REAL,
     PRIMARY KEY (run, position)
   ) STRICT, WITHOUT ROWID;`,
  `CREATE TABLE shells (
     run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
     opened_at_ms INTEGER NOT NULL,
     uid INTEGER NOT NULL
   ) STRICT;
   CREATE INDEX shells_by_run ON shells (run);`,
  'ALTER TABLE runs ADD COLUMN audit TEXT;',
  'ALTER TABLE runs ADD COLUMN destinations TEXT;',
  'ALTER TABLE runs ADD COLUMN image_standing TEXT;',
];

type Row = Record<string, unknown>;

const BY_TIME = 'ORDER BY created_at_ms DESC, rowid DESC';
const SQL = {
  insert: `INSERT INTO runs (id, job, image_digest, cpus, memory_mib, disk_mib, state, created_at_ms, state_since_ms)
           VALUES (?, ?, ?, ?, ?, ?, 'queued', ?, ?)`,
  insertStep: 'INSERT INTO steps (run, position, name) VALUES (?, ?, ?)',
  state: 'UPDATE runs SET state = ?, state_since_ms = ?, states_ms = ? WHERE id = ?',
  vm: 'UPDATE runs SET vm = ?, image_name = ? WHERE id = ?',
  imageStanding: 'UPDATE runs SET image_standing = ?, image_name = ? WHERE id = ?',
  audit: 'UPDATE runs SET audit = ? WHERE id = ?',
  recording: "SELECT id FROM runs WHERE json_extract(audit, '$.state') = 'recording'",
  destinations: 'UPDATE runs SET destinations = ? WHERE id = ?',
  destinationsOfJob: `SELECT destinations FROM runs WHERE job = ? AND destinations IS NOT NULL ${BY_TIME} LIMIT ?`,
  step: 'UPDATE steps SET state = ?, exit_code = ?, duration_ms = ? WHERE run = ? AND position = ?',
  end: `UPDATE runs SET state = 'ended', state_since_ms = ?, states_ms = ?, duration_ms = ?, outcome = ?, exit_code = ?,
          error = ?, destruction = ? WHERE id = ?`,
  insertShell: 'INSERT INTO shells (run, opened_at_ms, uid) VALUES (?, ?, ?)',
  shells: 'SELECT opened_at_ms, uid FROM shells WHERE run = ? ORDER BY rowid',
  destruction: 'UPDATE runs SET destruction = ? WHERE id = ?',
  // How a step would have ended whose end nobody reported is not known.
  endSteps: `UPDATE steps SET state = CASE state WHEN 'running' THEN 'interrupted' ELSE 'skipped' END
             WHERE run = ? AND state IN ('waiting', 'running')`,
  all: `SELECT * FROM runs ${BY_TIME}`,
  unended: `SELECT * FROM runs WHERE state <> 'ended' ${BY_TIME}`,
  get: 'SELECT * FROM runs WHERE id = ?',
  latest: `SELECT id FROM runs ${BY_TIME} LIMIT 1`,
  latestOfJob: `SELECT id FROM runs WHERE job = ? ${BY_TIME} LIMIT 1`,
  // Bound parameters and substr: no character of a reference means anything to LIKE.
  byPart: `SELECT id FROM runs WHERE substr(id, 1, length(?1)) = ?1 OR substr(id, -length(?1)) = ?1 ${BY_TIME} LIMIT 5`,
  steps: 'SELECT * FROM steps WHERE run = ? ORDER BY position',
  remove: "DELETE FROM runs WHERE id = ? AND state = 'ended'",
  beyond: `SELECT id FROM runs WHERE state = 'ended' ${BY_TIME} LIMIT -1 OFFSET ?`,
  olderThan: "SELECT id FROM runs WHERE state = 'ended' AND created_at_ms < ?",
} as const;

export interface NewRun {
  readonly run: string;
  readonly job: string;
  readonly imageDigest: string;
  readonly shape: RunInfo['shape'];
  readonly steps: readonly string[];
  readonly createdAtMs: number;
}

export class RunStore {
  readonly #database: DatabaseSync;
  readonly #statements = new Map<keyof typeof SQL, StatementSync>();

  private constructor(database: DatabaseSync) {
    this.#database = database;
  }

  /**
   * Opens or creates the file and brings it up to date. A file that is damaged or of a later version goes to
   * `<path>.unusable`, which `onSetAside` is told; nothing of it is shown any more.
   */
  static open(path: string, onSetAside: (why: string) => void = () => {}): RunStore {
    try {
      return new RunStore(openDatabase(path));
    } catch (error) {
      onSetAside(messageOf(error));
      renameSync(path, `${path}.unusable`);
      for (const suffix of ['-wal', '-shm']) rmSync(`${path}${suffix}`, { force: true });
      return new RunStore(openDatabase(path));
    }
  }

  close(): void {
    this.#database.close();
  }

  // -------------------------------------------------------------------------------------------------- writing

  /** Throws if the id is taken. */
  create(run: NewRun): void {
    this.#database.exec('BEGIN');
    try {
      const { cpus, memoryMib, diskMib } = run.shape;
      this.#run(
        'insert',
        run.run,
        run.job,
        run.imageDigest,
        cpus,
        memoryMib,
        diskMib,
        run.createdAtMs,
        run.createdAtMs,
      );
      for (const [position, name] of run.steps.entries()) this.#run('insertStep', run.run, position, name);
      this.#database.exec('COMMIT');
    } catch (error) {
      this.#database.exec('ROLLBACK');
      throw error;
    }
  }

  setState(run: string, state: RunState, nowMs: number): void {
    this.#run('state', state, nowMs, this.#statesUntil(run, nowMs), run);
  }

  setVm(run: string, vm: NonNullable<RunDetail['vm']>, imageName: string): void {
    this.#run('vm', JSON.stringify(vm), imageName, run);
  }

  setImage(run: string, standing: ImageStanding): void {
    this.#run('imageStanding', JSON.stringify(standing), standing.name, run);
  }

  setAudit(run: string, audit: RunAuditInfo): void {
    this.#run('audit', JSON.stringify(audit), run);
  }

  /** `host:port` that it connected to. */
  setDestinations(run: string, destinations: readonly string[]): void {
    this.#run('destinations', JSON.stringify(destinations), run);
  }

  setStep(run: string, position: number, step: Omit<RunStep, 'name'>): void {
    this.#run('step', step.state, step.exitCode ?? null, step.durationMs ?? null, run, position);
  }

  addShell(run: string, { openedAtMs, uid }: RunShell): void {
    this.#run('insertShell', run, openedAtMs, uid);
  }

  /** `durationMs` is left out where nobody saw the end. */
  end(
    run: string,
    end: {
      readonly nowMs: number;
      readonly durationMs?: number;
      readonly destruction?: Destruction;
    } & JobResult,
  ): void {
    this.#run(
      'end',
      end.nowMs,
      this.#statesUntil(run, end.durationMs === undefined ? undefined : end.nowMs),
      end.durationMs === undefined ? null : Math.round(end.durationMs),
      end.outcome,
      end.exitCode,
      end.error === undefined ? null : JSON.stringify(end.error),
      end.destruction === undefined ? null : JSON.stringify(end.destruction),
      run,
    );
    this.#run('endSteps', run);
  }

  setDestruction(run: string, destruction: Destruction): void {
    this.#run('destruction', JSON.stringify(destruction), run);
  }

  /** False if there is no such run or it has not ended. */
  remove(run: string): boolean {
    return this.#run('remove', run) > 0;
  }

  // -------------------------------------------------------------------------------------------------- reading

  /** Newest first. */
  list(which: 'all' | 'unended'): RunInfo[] {
    return this.#all(which).map(toInfo);
  }

  info(run: string): RunInfo | undefined {
    const row = this.#statement('get').get(run) as Row | undefined;
    return row && toInfo(row);
  }

  detail(run: string): Omit<RunDetail, 'logDirectory'> | undefined {
    const row = this.#statement('get').get(run) as Row | undefined;
    if (!row) return undefined;
    const shells = this.#all('shells', run).map((shell) => ({
      openedAtMs: Number(shell['opened_at_ms']),
      uid: Number(shell['uid']),
    }));
    return {
      ...toInfo(row),
      ...optional('vm', parsed<RunDetail['vm']>(row['vm'])),
      steps: this.#all('steps', run).map(toStep),
      ...(shells.length > 0 ? { shells } : {}),
      ...optional('imageStanding', parsed<ImageStanding>(row['image_standing'])),
      ...optional('audit', parsed<RunAuditInfo>(row['audit'])),
      statesMs: JSON.parse(String(row['states_ms'])) as RunDetail['statesMs'],
      ...optional('destruction', parsed<Destruction>(row['destruction'])),
    };
  }

  /** Those of the newest `count` runs of a job of which they are known; undefined if there are none. */
  destinationsOf(job: string, count: number): string[] | undefined {
    const rows = this.#all('destinationsOfJob', job, count);
    if (rows.length === 0) return undefined;
    return [...new Set(rows.flatMap(({ destinations }) => JSON.parse(String(destinations)) as string[]))];
  }

  /** Runs whose record nobody has ended. */
  recording(): string[] {
    return this.#all('recording').map(({ id }) => String(id));
  }

  latest(job?: string): string | undefined {
    const row = job === undefined ? this.#statement('latest').get() : this.#statement('latestOfJob').get(job);
    return row === undefined ? undefined : String(row['id']);
  }

  /** Ids that begin or end with `part`; at most five. */
  matching(part: string): string[] {
    return this.#all('byPart', part).map(({ id }) => String(id));
  }

  /** Ended runs beyond the newest `keep` ended ones, and those that began before `beforeMs`. */
  expired(keep: number, beforeMs: number): string[] {
    const rows = [...this.#all('beyond', keep), ...this.#all('olderThan', beforeMs)];
    return [...new Set(rows.map(({ id }) => String(id)))];
  }

  #statesUntil(run: string, nowMs: number | undefined): string {
    const row = this.#statement('get').get(run);
    if (row === undefined) return '{}';
    const states = JSON.parse(String(row['states_ms'])) as Record<string, number>;
    if (nowMs !== undefined)
      states[String(row['state'])] = Math.max(0, nowMs - Number(row['state_since_ms']));
    return JSON.stringify(states);
  }

  #run(name: keyof typeof SQL, ...parameters: (string | number | null)[]): number {
    return Number(this.#statement(name).run(...parameters).changes);
  }

  #all(name: keyof typeof SQL | 'all' | 'unended', ...parameters: (string | number)[]): Row[] {
    return this.#statement(name).all(...parameters) as Row[];
  }

  #statement(name: keyof typeof SQL): StatementSync {
    let statement = this.#statements.get(name);
    if (!statement) {
      statement = this.#database.prepare(SQL[name]);
      this.#statements.set(name, statement);
    }
    return statement;
  }
}

function openDatabase(path: string): DatabaseSync {
  // SQLite gives its other files the mode of this one; CT_HOME itself may be open to readers.
  closeSync(openSync(path, 'a', 0o600));
  const database = new DatabaseSync(path);
  try {
    database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;');
    const version = Number(database.prepare('PRAGMA user_version').get()?.['user_version']);
    if (version > MIGRATIONS.length) {
      throw new Error(`it is of version ${version}, and this build knows ${MIGRATIONS.length}`);
    }
    for (const [index, migration] of MIGRATIONS.entries()) {
      if (index < version) continue;
      database.exec(`BEGIN; ${migration} PRAGMA user_version = ${index + 1}; COMMIT;`);
    }
    return database;
  } catch (error) {
    database.close();
    throw error;
  }
}

function toInfo(row: Row): RunInfo {
  return {
    run: String(row['id']),
    job: String(row['job']),
    state: row['state'] as RunState,
    image: { digest: String(row['image_digest']), ...optional('name', text(row['image_name'])) },
    shape: {
      cpus: Number(row['cpus']),
      memoryMib: Number(row['memory_mib']),
      diskMib: Number(row['disk_mib']),
    },
    createdAtMs: Number(row['created_at_ms']),
    stateSinceMs: Number(row['state_since_ms']),
    ...optional('durationMs', number(row['duration_ms'])),
    ...optional('outcome', text(row['outcome']) as RunInfo['outcome']),
    ...optional('exitCode', number(row['exit_code'])),
    ...optional('error', parsed<RunInfo['error']>(row['error'])),
  };
}

function toStep(row: Row): RunStep {
  return {
    name: String(row['name']),
    state: row['state'] as RunStep['state'],
    ...optional('exitCode', number(row['exit_code'])),
    ...optional('durationMs', number(row['duration_ms'])),
  };
}

function optional<K extends string, V>(key: K, value: V | undefined): { [P in K]?: V } {
  return (value === undefined ? {} : { [key]: value }) as { [P in K]?: V };
}

const text = (value: unknown): string | undefined => (value === null ? undefined : String(value));
const number = (value: unknown): number | undefined => (value === null ? undefined : Number(value));
const parsed = <T>(value: unknown): T | undefined =>
  value === null ? undefined : (JSON.parse(String(value)) as T);
