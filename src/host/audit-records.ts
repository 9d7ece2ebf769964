/**
 * Audit records on disk: `<CT_HOME>/audit/<run>` (src/audit/places.ts). A link process writes into that directory while its run
 * goes on. When it has said how the record ended, the files are moved out of its reach into a directory of the daemon's own,
 * which is sealed and takes the place of the other. Nothing here reads what is in the files.
 */
import { mkdirSync, renameSync } from 'node:fs';
import { link as hardLink, lchown, lstat, mkdir, opendir, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { hostSigner } from '../audit/host-key.ts';
import { auditDirectory, keysDirectory, SEALING_PREFIX } from '../audit/places.ts';
import { type SealFacts, sealAudit } from '../audit/seal.ts';
import { isRunId, MAX_SEGMENTS, segmentNumber } from '../audit/segment-format.ts';
import type { AuditSummary } from '../audit/summary.ts';
import { CtError } from '../core/errors.ts';
import type { Signer } from '../signing/signer.ts';
import type { AuditReport } from './audit-messages.ts';
import { Link } from './link.ts';
import type { AuditPlace } from './link-jail.ts';

/** Before the name of a run: what its link process still sees. */
const OLD = '.old-';

export interface AuditRecordsOptions {
  readonly ctHome: string;
  /** Reads what a link process left that was killed. */
  readonly newLink?: (() => Link) | undefined;
}

export class AuditRecords {
  readonly #ctHome: string;
  readonly #directory: string;
  readonly #newLink: () => Link;
  #signer: Promise<Signer> | undefined;

  constructor({ ctHome, newLink }: AuditRecordsOptions) {
    this.#ctHome = ctHome;
    this.#directory = join(ctHome, 'audit');
    this.#newLink =
      newLink ??
      (() => {
        const scratchDirectory = join(ctHome, 'links');
        mkdirSync(scratchDirectory, { recursive: true, mode: 0o700 });
        return new Link({ scratchDirectory });
      });
  }

  directory(run: string): string {
    return auditDirectory(this.#ctHome, run);
  }

  /** Makes the directory of a run's record, empty. Throws what keeps it from being made. */
  async begin(run: string): Promise<string> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const directory = this.directory(run);
    await mkdir(directory, { mode: 0o700 });
    return directory;
  }

  /**
   * Seals what the link process has said about the record of `facts.run`. It may still run: from now on it can change the
   * content of files that it has open, which verification finds, and nothing else. Throws what keeps it from being sealed.
   */
  async seal(facts: SealFacts, summary: AuditSummary): Promise<void> {
    const { run } = facts;
    const directory = this.directory(run);
    const sealing = this.#path(SEALING_PREFIX, run);
    await rm(sealing, { recursive: true, force: true });
    await mkdir(sealing, { mode: 0o700 });
    await moveSegments(directory, { path: sealing, owner: ownUser() });
    this.#signer ??= hostSigner(keysDirectory(this.#ctHome));
    this.#signer.catch(() => {
      this.#signer = undefined;
    });
    await sealAudit(sealing, facts, summary, await this.#signer);
    // In one turn: who follows the record finds one of both.
    renameSync(directory, this.#path(OLD, run));
    renameSync(sealing, directory);
  }

  /** Removes what the link process still saw. Legal when it is gone. */
  async released(run: string): Promise<void> {
    await rm(this.#path(OLD, run), { recursive: true, force: true });
  }

  /**
   * What is there of a record whose link process was killed, made whole as far as it goes by another one: the daemon does not
   * read what a guest sent. Then it can be sealed.
   */
  async recover(run: string, cpus: number): Promise<AuditReport> {
    const directory = this.directory(run);
    const sealing = this.#path(SEALING_PREFIX, run);
    await mkdir(directory, { recursive: true, mode: 0o700 });
    // A daemon that was killed while it sealed.
    for (const path of [sealing, this.#path(OLD, run)]) {
      await moveSegments(path, { path: directory });
      await rm(path, { recursive: true, force: true });
    }
    const link = this.#newLink();
    try {
      const place = link.auditPlace;
      for (const name of await segmentNames(directory)) {
        const copy = join(place.path, name);
        await hardLink(join(directory, name), copy);
        if (place.owner) await lchown(copy, place.owner.uid, place.owner.gid);
      }
      const reply = await link.call({ type: 'recover-audit', run, directory: place.inside, cpus });
      if (reply.type !== 'audit-recovered')
        throw new CtError('LINK_DIED', 'the link process gave the wrong answer');
      if (reply.report.kind === 'recorded') {
        await rm(directory, { recursive: true });
        await mkdir(directory, { mode: 0o700 });
        link.giveAudit(directory);
      }
      return reply.report;
    } finally {
      await link.kill();
    }
  }

  /** Returns the bytes it took. */
  async remove(run: string): Promise<number> {
    let bytes = 0;
    for (const path of [this.directory(run), this.#path(SEALING_PREFIX, run), this.#path(OLD, run)]) {
      try {
        for await (const { name } of await opendir(path)) bytes += (await lstat(join(path, name))).size;
      } catch {
        // It is no directory, or gone: there is nothing to count.
      }
      await rm(path, { recursive: true, force: true });
    }
    return bytes;
  }

  /** Runs of which something is kept. */
  async runs(): Promise<string[]> {
    let names: string[];
    try {
      names = await readdir(this.#directory);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
      throw error;
    }
    return names
      .map((name) => [SEALING_PREFIX, OLD].reduce((rest, prefix) => rest.replace(prefix, ''), name))
      .filter(isRunId);
  }

  #path(prefix: string, run: string): string {
    return join(this.#directory, `${prefix}${run}`);
  }
}

/** Moves all segments, and gives them the owner. What is no file is put back. */
async function moveSegments(
  from: string,
  { path, owner }: { readonly path: string; readonly owner?: AuditPlace['owner'] },
): Promise<void> {
  for (const name of await segmentNames(from)) {
    const [source, target] = [join(from, name), join(path, name)];
    await rename(source, target);
    // Only now is it out of reach: what it is does not change any more.
    if (!(await lstat(target)).isFile()) await rename(target, source);
    else if (owner) await lchown(target, owner.uid, owner.gid);
  }
}

/** At most as many as a record has; a process that was taken over may have made any number of files. */
async function segmentNames(directory: string): Promise<string[]> {
  const names: string[] = [];
  try {
    for await (const { name } of await opendir(directory)) {
      if (segmentNumber(name) !== undefined && names.length < MAX_SEGMENTS) names.push(name);
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
  return names;
}

/** Files of link processes belong to their users; only root can, and has to, take them. */
function ownUser(): AuditPlace['owner'] {
  const uid = process.getuid?.();
  return uid === 0 ? { uid, gid: process.getgid?.() ?? 0 } : undefined;
}
