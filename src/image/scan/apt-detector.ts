/**
 * Finds missing security updates without a feed: what is installed, against the package index of the suite's security updates
 * as this machine's apt sources have it, signed by Debian. Which vulnerabilities an update fixes is read from the changelog in
 * the updated package.
 *
 * It finds what Debian has fixed, and nothing that is still open. Its own lists and files lie in CT_HOME/vuln/apt.
 */
import { createHash } from 'node:crypto';
import { lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { CtError, messageOf } from '../../core/errors.ts';
import { openCtHome } from '../../core/paths.ts';
import { runProgram } from '../../core/run-program.ts';
import type { Apt } from '../apt.ts';
import { compareDebianVersions } from '../debian-version.ts';
import { takeLock } from '../lock.ts';
import { openApt } from '../open-apt.ts';
import { PackageCache } from '../package-cache.ts';
import { type LockedPackage, sourceOf } from '../packages.ts';
import { parseStanzas } from '../sources.ts';
import { PROGRAM_PATH } from '../supervised.ts';
import { checkAge } from './age.ts';
import { readChangelog } from './changelog.ts';
import { vulnDirectory } from './database.ts';
import { byUrgency, type Finding } from './match.ts';
import type { InstalledPackage } from './packages.ts';
import { judged, type Scan, type ScanOptions } from './scan.ts';
import { advisorySource, type SourcePackage } from './source-package.ts';

/** An index of security updates has 5 MB. */
const MAX_INDEX_BYTES = 256 * 1024 * 1024;
/** For a changelog no more than this is fetched: kernels have 100 MB. */
const MAX_PACKAGE_BYTES = 20 * 1024 * 1024;
const MAX_CHANGELOG_BYTES = 32 * 1024 * 1024;
/** Packages of one source in which its changelog is looked for, the smallest first. */
const CHANGELOG_ROUNDS = 3;
/** Of a changelog, kept. */
const CHANGELOG_KEPT_CHARACTERS = 256 * 1024;

export interface AptScanOptions extends ScanOptions {
  readonly ctHome: string;
  /** Debian's code name. */
  readonly suite: string;
  readonly signal: AbortSignal;
  readonly onProgress: (what: string) => void;
}

interface Candidate extends LockedPackage {
  readonly sizeBytes: number;
}

/** One source package with the update that is missing. */
interface Update {
  readonly installed: readonly InstalledPackage[];
  readonly candidates: readonly Candidate[];
  readonly from: string;
  readonly to: string;
}

/** Throws IMAGE_SOURCES_MISSING, IMAGE_BUILD_FAILED with apt's words, VULN_DB_STALE, CANCELLED. */
export async function scanWithApt(options: AptScanOptions): Promise<Scan> {
  const { suite, signal, onProgress } = options;
  const directory = join(vulnDirectory(openCtHome(options.ctHome)), 'apt');
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  using _lock = await takeLock(join(directory, 'lock'), {
    signal,
    onWait: () => onProgress('waiting for another scan'),
  });
  const workDirectory = mkdtempSync(join(directory, 'work-'));
  try {
    const cache = new PackageCache(join(workDirectory, 'archives'));
    const progress = ({ message }: { readonly message: string }): void => onProgress(message);
    const apt = await openApt({ suite, cache, cacheDirectory: directory, workDirectory, progress, signal });
    const index = readSecurityIndex(join(directory, 'apt/lists'), `${suite}-security`);
    const warning = checkAge(`the index of ${suite}-security`, index.date, options.stale, options.now);
    const { packages, unexamined } = options.sbom;
    const debian = packages.filter(({ ecosystem }) => ecosystem.startsWith('Debian:'));
    const others = packages.filter((entry) => !debian.includes(entry));
    const updates = missingUpdates(debian, index.packages);
    const changelogs = new Changelogs(join(directory, 'changelogs'), { apt, cache, workDirectory, signal });
    const { warnings } = await changelogs.prepare(updates);
    const findings = updates.flatMap((update) => findingsOf(update, suite, changelogs)).sort(byUrgency);
    const sbom = {
      packages: debian,
      unexamined: [...unexamined, ...others.map(({ name, version }) => `${name} ${version}`)].sort(),
    };
    return judged(
      findings,
      { ...options, sbom },
      {
        detector: 'apt',
        source: { revision: index.revision, asOf: index.date.toISOString() },
        warnings: [...(warning === undefined ? [] : [warning]), ...warnings],
      },
    );
  } finally {
    rmSync(workDirectory, { recursive: true, force: true });
  }
}

/** The updates of a suite: the package lists whose Release file has this code name. */
function readSecurityIndex(
  lists: string,
  codename: string,
): { readonly date: Date; readonly revision: string; readonly packages: readonly Candidate[] } {
  const files = readdirSync(lists).sort();
  const hash = createHash('sha256');
  const packages: Candidate[] = [];
  let dateMs = Number.POSITIVE_INFINITY;
  for (const release of files.filter((name) => /_(?:In)?Release$/.test(name))) {
    const head = read(join(lists, release));
    const field = (name: string): string => new RegExp(`^${name}: *(.*)$`, 'm').exec(head)?.[1]?.trim() ?? '';
    if (field('Codename') !== codename) continue;
    // An unreadable date is refused as too old.
    dateMs = Math.min(dateMs, Date.parse(field('Date')));
    const prefix = release.replace(/(?:In)?Release$/, '');
    for (const name of files) {
      if (!name.startsWith(prefix) || !/_binary-(?:amd64|all)_Packages$/.test(name)) continue;
      const text = read(join(lists, name));
      hash.update(text);
      packages.push(...parseIndex(text));
    }
  }
  if (packages.length === 0) {
    throw new CtError('IMAGE_SOURCES_MISSING', `this machine has no apt source of ${codename}`, {
      hint: "add Debian's security updates to its sources, or set CT_APT_SOURCES to a file that names them",
    });
  }
  return { date: new Date(dateMs), revision: `sha256:${hash.digest('hex')}`, packages };
}

function read(path: string): string {
  if (lstatSync(path).size > MAX_INDEX_BYTES) {
    throw new CtError('VULN_DB_INVALID', `${path} has more than ${MAX_INDEX_BYTES} bytes`);
  }
  return readFileSync(path, 'utf8');
}

function parseIndex(text: string): readonly Candidate[] {
  return parseStanzas(text).flatMap((stanza): Candidate[] => {
    const [name, version, architecture, sha256] = ['package', 'version', 'architecture', 'sha256'].map(
      (field) => stanza.get(field),
    );
    if (!name || !version || !architecture || !sha256) return [];
    const sizeBytes = Number(stanza.get('size') ?? Number.POSITIVE_INFINITY);
    return [
      { name, version, architecture, sha256, sizeBytes, ...sourceOf(stanza.get('source'), name, version) },
    ];
  });
}

/**
 * What has a newer version there, by source package and version. A package that is not there by its name, but whose source is,
 * has another name by now, as kernels have with every version of their interface.
 */
function missingUpdates(
  installed: readonly InstalledPackage[],
  candidates: readonly Candidate[],
): readonly Update[] {
  const byName = Map.groupBy(candidates, ({ name }) => name);
  const bySource = Map.groupBy(candidates, (candidate) => sourceOfCandidate(candidate).sourceName);
  const newest = (
    of: readonly Candidate[] | undefined,
    version: (candidate: Candidate) => string,
  ): Candidate | undefined => of?.toSorted((a, b) => compareDebianVersions(version(a), version(b))).at(-1);
  const sourceVersion = (candidate: Candidate): string => sourceOfCandidate(candidate).sourceVersion;
  const behind = installed.flatMap((entry) => {
    const same = newest(byName.get(entry.name), ({ version }) => version);
    if (same)
      return compareDebianVersions(same.version, entry.version) > 0 ? [{ entry, candidate: same }] : [];
    const next = newest(bySource.get(entry.sourceName), sourceVersion);
    if (!next || compareDebianVersions(sourceVersion(next), entry.sourceVersion) <= 0) return [];
    return [{ entry, candidate: next }];
  });
  const groups = Map.groupBy(behind, ({ entry }) => `${entry.sourceName} ${entry.sourceVersion}`);
  return [...groups.values()].map((group): Update => {
    const to =
      group
        .map(({ candidate }) => sourceVersion(candidate))
        .sort(compareDebianVersions)
        .at(-1) ?? '';
    const { sourceName = '', sourceVersion: from = '' } = group[0]?.entry ?? {};
    return {
      installed: group.map(({ entry }) => entry),
      // All of the source have its changelog; the smallest is fetched for it.
      candidates: (bySource.get(sourceName) ?? [])
        .filter((candidate) => sourceVersion(candidate) === to)
        .sort((a, b) => a.sizeBytes - b.sizeBytes),
      from,
      to,
    };
  });
}

function sourceOfCandidate({ source, sourceVersion }: Candidate): SourcePackage {
  return advisorySource({ sourceName: source, sourceVersion });
}

function findingsOf(update: Update, suite: string, changelogs: Changelogs): readonly Finding[] {
  const [first] = update.installed;
  if (!first) return [];
  const { sourceName, sourceVersion, ecosystem } = first;
  const { cves, severity } = readChangelog(changelogs.of(update), update.from, update.to);
  const shared = {
    aliases: [],
    severity,
    summary: `${suite}-security has ${sourceName} ${update.to}`,
    package: {
      ecosystem,
      name: sourceName,
      version: sourceVersion,
      binaries: update.installed.map(({ name }) => name).sort(),
      purls: update.installed.map(({ purl }) => purl).sort(),
    },
    fixedIn: update.to,
  };
  // Without a name of what it fixes, the update itself is what is missing.
  const ids = cves.length > 0 ? cves : [`${suite}-security/${sourceName}/${update.to}`];
  return ids.map((id): Finding => ({ id, ...shared }));
}

interface ChangelogTools {
  readonly apt: Apt;
  readonly cache: PackageCache;
  readonly workDirectory: string;
  readonly signal: AbortSignal;
}

/** Changelogs out of packages, kept as text; the packages are not. */
class Changelogs {
  readonly #directory: string;
  readonly #tools: ChangelogTools;

  constructor(directory: string, tools: ChangelogTools) {
    this.#directory = directory;
    this.#tools = tools;
    mkdirSync(directory, { recursive: true, mode: 0o700 });
  }

  /** Empty if it could not be had. */
  of(update: Update): string {
    try {
      return readFileSync(this.#path(update), 'utf8');
    } catch {
      return '';
    }
  }

  /** Fetches those that are not here yet. */
  async prepare(updates: readonly Update[]): Promise<{ readonly warnings: readonly string[] }> {
    const missing = (): readonly Update[] => updates.filter((update) => this.of(update) === '');
    try {
      // A package may have none of its own: its directory is a link to that of another one.
      for (let round = 0; round < CHANGELOG_ROUNDS; round++) await this.#fetch(missing(), round);
    } catch (error) {
      if (this.#tools.signal.aborted) throw error;
      return { warnings: [`changelogs could not be had: ${messageOf(error)}`] };
    }
    const without = missing().length;
    const some = without === 1 ? 'one update does' : `${without} updates do`;
    return { warnings: without === 0 ? [] : [`${some} not say which vulnerabilities are fixed`] };
  }

  async #fetch(updates: readonly Update[], round: number): Promise<void> {
    const chosen = updates.flatMap((update) => {
      const candidate = update.candidates[round];
      return candidate && candidate.sizeBytes <= MAX_PACKAGE_BYTES ? [{ update, candidate }] : [];
    });
    const packages = [...new Set(chosen.map(({ candidate }) => candidate))];
    if (packages.length > 0) await this.#tools.apt.fetch(packages);
    for (const { update, candidate } of chosen) {
      const text = await this.#changelogOf(candidate);
      if (text !== undefined) writeFileSync(this.#path(update), text, { mode: 0o600 });
    }
  }

  async #changelogOf(candidate: Candidate): Promise<string | undefined> {
    const tree = mkdtempSync(join(this.#tools.workDirectory, 'tree-'));
    await runProgram({
      file: 'dpkg-deb',
      args: ['--extract', this.#tools.cache.path(candidate), tree],
      env: { PATH: PROGRAM_PATH },
      maxOutputBytes: 1024 * 1024,
      failureCode: 'IMAGE_BUILD_FAILED',
      signal: this.#tools.signal,
    });
    const text = changelogIn(join(tree, 'usr/share/doc', candidate.name));
    rmSync(tree, { recursive: true, force: true });
    return text;
  }

  #path({ installed: [first], to }: Update): string {
    return join(this.#directory, `${first?.sourceName ?? ''}_${to.replaceAll(':', '%3a')}`);
  }
}

/** The directory may be a link to that of another package; it is not followed. */
function changelogIn(directory: string): string | undefined {
  if (!lstatSync(directory, { throwIfNoEntry: false })?.isDirectory()) return undefined;
  for (const name of ['changelog.Debian.gz', 'changelog.gz']) {
    const path = join(directory, name);
    if (!lstatSync(path, { throwIfNoEntry: false })?.isFile()) continue;
    try {
      const text = gunzipSync(readFileSync(path), { maxOutputLength: MAX_CHANGELOG_BYTES }).toString('utf8');
      return text.slice(0, CHANGELOG_KEPT_CHARACTERS);
    } catch {
      return undefined;
    }
  }
  return undefined;
}
