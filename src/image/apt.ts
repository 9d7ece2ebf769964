/**
 * An apt of our own: state, cache and configuration in CT_HOME, nothing of this machine's but its sources, its keys and
 * the way it reaches them. It needs no privilege, and never touches the machine's package lists or dpkg database.
 *
 * It decides which packages an image consists of and fetches them, so that mmdebstrap works without a network.
 */
import { mkdirSync, mkdtempSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import { runProgram } from '../core/run-program.ts';
import type { PackageCache } from './package-cache.ts';
import { byName, fileName, type LockedPackage, type Package, parseRecords, pin } from './packages.ts';
import { type BuildProgress, downloadProgress } from './progress.ts';
import type { AptMachine, AptSources } from './sources.ts';
import { PROGRAM_PATH, runSupervised } from './supervised.ts';

/** `apt-get -s` prints some hundred bytes per package. */
const MAX_OUTPUT_BYTES = 16 * 1024 * 1024;
/** Lines of apt's output that a message repeats. */
const MAX_COMPLAINTS = 6;

export interface AptOptions {
  /** Kept between builds. */
  readonly cache: PackageCache;
  readonly listsDirectory: string;
  /** For this build alone; must be empty. */
  readonly workDirectory: string;
  readonly sources: AptSources;
  readonly machine: AptMachine;
  readonly signal: AbortSignal | undefined;
  readonly progress: (event: BuildProgress) => void;
}

export class Apt {
  readonly #options: AptOptions;
  readonly #configPath: string;
  readonly #lists: string;

  constructor(options: AptOptions) {
    this.#options = options;
    const { workDirectory: work, machine, sources } = options;
    this.#configPath = join(work, 'apt.conf');
    this.#lists = options.listsDirectory;
    const parts = join(work, 'sources.list.d');
    const archives = join(work, 'archives');
    for (const directory of [parts, join(archives, 'partial'), join(this.#lists, 'partial')]) {
      mkdirSync(directory, { recursive: true, mode: 0o755 });
    }
    writeFileSync(join(parts, `ct.${sources.format}`), sources.text, { mode: 0o600 });
    writeFileSync(join(work, 'status'), '');
    const config = aptConfig({ work, parts, lists: this.#lists, archives, machine });
    writeFileSync(this.#configPath, config, { mode: 0o600 });
  }

  /**
   * Fetches the package lists. Without a network, lists of an earlier build will do; throws IMAGE_BUILD_FAILED if there
   * are none.
   */
  async update(): Promise<void> {
    this.#options.progress({ phase: 'resolving', message: 'fetching package lists' });
    const { exitCode, tail } = await this.#supervised(
      ['update', '-q', '--error-on=any'],
      this.#options.workDirectory,
    );
    if (exitCode === 0) return;
    if (readdirSync(this.#lists).some((name) => name.endsWith('_Packages'))) {
      this.#options.progress({
        phase: 'resolving',
        message: 'package lists could not be fetched; using those of last time',
      });
      return;
    }
    throw new CtError('IMAGE_BUILD_FAILED', `package lists could not be fetched:\n${complaints(tail)}`, {
      hint: 'check that `apt-get update` works on this machine; CT_APT_SOURCES names other sources to use',
    });
  }

  /**
   * What `packages` come to: Debian's essential packages, these, and what all of them depend on, sorted by name. Throws
   * IMAGE_DEFINITION_INVALID if a package does not exist, IMAGE_BUILD_FAILED with apt's words if packages do not go
   * together.
   */
  async resolve(suite: string, packages: readonly string[]): Promise<readonly LockedPackage[]> {
    this.#options.progress({ phase: 'resolving', message: `choosing packages from Debian ${suite}` });
    // As mmdebstrap asks for its variant `essential`, so that both find the same.
    const essential = `?narrow(?or(?archive(^${suite}$),?codename(^${suite}$)),?architecture(amd64),?essential)`;
    const base = await this.#simulate([essential]);
    if (base.length === 0) {
      throw new CtError('IMAGE_SOURCES_MISSING', `the apt sources hold no Debian ${suite}`, {
        hint: 'the suite in the image definition and the one in the sources must be the same',
      });
    }
    const all = await this.#simulate([...base.map(pin), ...packages]).catch((error) => {
      throw explainUnknown(messageOf(error), suite) ?? error;
    });
    return this.#records(all);
  }

  /** `packages` alone, as they are now, sorted by name. Throws as {@link resolve} does. */
  async resolveAlone(suite: string, packages: readonly string[]): Promise<readonly LockedPackage[]> {
    this.#options.progress({ phase: 'resolving', message: `choosing packages from Debian ${suite}` });
    const output = await this.#query('apt-cache', ['--no-all-versions', 'show', ...packages]).catch(
      (error) => {
        throw explainUnknown(messageOf(error), suite) ?? error;
      },
    );
    return [...parseRecords(output).values()].sort(byName);
  }

  /** What the signed lists say of these; throws IMAGE_BUILD_FAILED if there is one that they do not have. */
  async #records(packages: readonly Package[]): Promise<readonly LockedPackage[]> {
    const records = parseRecords(await this.#query('apt-cache', ['show', ...packages.map(pin)]));
    return packages.map((entry) => {
      const record = records.get(pin(entry));
      if (record !== undefined) return record;
      throw new CtError('IMAGE_BUILD_FAILED', `the package lists have no digest of ${pin(entry)}`);
    });
  }

  /** Of `packages`, those that the lists of now do not have with this version and digest. */
  async unavailable(packages: readonly LockedPackage[]): Promise<readonly LockedPackage[]> {
    // Names without a version: apt fails for versions that it has not.
    const output = await this.#query('apt-cache', ['show', ...packages.map(({ name }) => name)]).catch(
      (error) => {
        if (/No packages found|Unable to locate package/.test(messageOf(error))) return '';
        throw error;
      },
    );
    const records = parseRecords(output);
    return packages.filter((entry) => records.get(pin(entry))?.sha256 !== entry.sha256);
  }

  /** Fetches what the cache lacks or has damaged. Throws IMAGE_BUILD_FAILED, also if a file has another digest. */
  async fetch(packages: readonly LockedPackage[]): Promise<void> {
    const missing = await this.#options.cache.missing(packages);
    if (missing.length === 0) return;
    const message = `downloading ${missing.length} package${missing.length === 1 ? '' : 's'}`;
    this.#options.progress({ phase: 'downloading', message });
    await this.#download(missing);
  }

  /** The kernel package that Debian's cloud kernel of this moment stands for. */
  async kernel(): Promise<LockedPackage> {
    const [kernel] = await this.#records([await this.#kernelPackage()]);
    return kernel as LockedPackage;
  }

  async #kernelPackage(): Promise<Package> {
    const show = await this.#query('apt-cache', ['--no-all-versions', 'show', KERNEL_METAPACKAGE]);
    const match = /^Depends: (?:.*, )?(linux-image-[a-z0-9.+-]+-cloud-amd64) \(= ([^)]+)\)/m.exec(show);
    if (match === null) {
      throw new CtError('IMAGE_BUILD_FAILED', `${KERNEL_METAPACKAGE} names no kernel`, {
        hint: 'the apt sources must carry the component `main` of Debian',
      });
    }
    return { name: match[1] ?? '', version: match[2] ?? '', architecture: 'amd64' };
  }

  /** `download` writes into the working directory, checks against the signed lists, and leaves a part on failure. */
  async #download(packages: readonly LockedPackage[]): Promise<void> {
    const directory = mkdtempSync(join(this.#options.workDirectory, 'download-'));
    const { exitCode, tail } = await this.#supervised(
      ['download', '-qq', '-o', 'APT::Status-Fd=1', ...packages.map(pin)],
      directory,
    );
    if (exitCode === 0) {
      for (const entry of packages) {
        const wrong = await this.#options.cache.take(join(directory, fileName(entry)), entry);
        if (wrong === undefined) continue;
        throw new CtError(
          'IMAGE_BUILD_FAILED',
          `the file of ${pin(entry)} has the SHA-256 ${wrong.otherSha256} instead of ${entry.sha256}`,
        );
      }
      return;
    }
    throw (
      outOfSpace(tail) ??
      new CtError('IMAGE_BUILD_FAILED', `packages could not be fetched:\n${complaints(tail)}`, {
        hint: 'try again; if a package is gone from the mirror, its package lists are older than its files',
      })
    );
  }

  async #simulate(packages: readonly string[]): Promise<Package[]> {
    const output = await this.#query('apt-get', ['-s', '-qq', 'install', ...packages]);
    return parseSimulation(output);
  }

  async #query(file: string, args: readonly string[]): Promise<string> {
    const output = await runProgram({
      file,
      args,
      env: { PATH: PROGRAM_PATH, APT_CONFIG: this.#configPath },
      maxOutputBytes: MAX_OUTPUT_BYTES,
      failureCode: 'IMAGE_BUILD_FAILED',
      ...(this.#options.signal ? { signal: this.#options.signal } : {}),
    });
    return output.toString('utf8');
  }

  #supervised(args: readonly string[], cwd: string) {
    return runSupervised({
      argv: ['apt-get', ...args],
      cwd,
      env: {
        PATH: PROGRAM_PATH,
        LC_ALL: 'C',
        APT_CONFIG: this.#configPath,
        ...proxies(process.env),
      },
      signal: this.#options.signal,
      onLine: (line) => {
        const event = downloadProgress(line);
        if (event !== undefined) this.#options.progress(event);
      },
    });
  }
}

const KERNEL_METAPACKAGE = 'linux-image-cloud-amd64';

/** apt takes proxies from the environment too (apt-transport-http(1)). */
function proxies(env: Readonly<NodeJS.ProcessEnv>): Record<string, string> {
  const names = ['http_proxy', 'https_proxy', 'ftp_proxy', 'no_proxy', 'all_proxy'];
  return Object.fromEntries(names.flatMap((name) => (env[name] ? [[name, env[name] ?? '']] : [])));
}

/** `Inst name [old] (version Origin:… [arch])` lines of `apt-get -s`, sorted by name. */
export function parseSimulation(output: string): Package[] {
  const lines = output.matchAll(
    /^Inst ([a-z0-9][a-z0-9+.-]*)(?::[a-z0-9]+)? (?:\[[^\]]*\] )?\(([^ ]+) .*\[([a-z0-9]+)\]\)/gm,
  );
  return [...lines]
    .map(([, name = '', version = '', architecture = '']) => ({ name, version, architecture }))
    .sort(byName);
}

/** What apt says of names and versions that its lists do not have. */
export function explainUnknown(message: string, suite: string): CtError | undefined {
  const unknown = /Unable to locate package (\S+)|Package '?(\S+?)'? has no installation candidate/.exec(
    message,
  );
  const version = /Version '(\S+)' for '(\S+)' was not found/.exec(message);
  if (unknown === null && version === null) return undefined;
  const what = version === null ? (unknown?.[1] ?? unknown?.[2]) : `${version[2]}=${version[1]}`;
  return new CtError('IMAGE_DEFINITION_INVALID', `Debian ${suite} has no package \`${what}\``, {
    hint:
      version === null
        ? 'check its name: the apt sources that images are built from carry Debian itself, not other vendors'
        : 'Debian keeps only the newest version; name the package without one',
  });
}

/** The lines that say what is wrong: `E:`, `W:` and `Err:`. */
function complaints(tail: string): string {
  const lines = tail.split('\n').filter((line) => /^(?:E|W|Err):?/.test(line));
  return (lines.length > 0 ? lines : tail.trim().split('\n')).slice(-MAX_COMPLAINTS).join('\n');
}

/** STORE_FULL if the output of a program says that it is the cause. */
export function outOfSpace(tail: string): CtError | undefined {
  if (!/No space left on device|Disk quota exceeded|enough free space/.test(tail)) return undefined;
  return new CtError('STORE_FULL', 'there is no space left for the image build', {
    hint: 'free some space (about 3 GB), point CT_HOME at a larger file system, or CT_TMPDIR for the build itself',
  });
}

interface ConfigPlaces {
  readonly work: string;
  readonly parts: string;
  readonly lists: string;
  readonly archives: string;
  readonly machine: AptMachine;
}

function aptConfig({ work, parts, lists, archives, machine }: ConfigPlaces): string {
  const settings: readonly (readonly [string, string])[] = [
    ['Dir', work],
    ['Dir::Etc::main', '/dev/null'],
    ['Dir::Etc::parts', '/dev/null'],
    ['Dir::Etc::sourcelist', '/dev/null'],
    ['Dir::Etc::sourceparts', parts],
    ['Dir::Etc::preferences', '/dev/null'],
    ['Dir::Etc::preferencesparts', '/dev/null'],
    ['Dir::Etc::trusted', machine.trusted],
    ['Dir::Etc::trustedparts', machine.trustedParts],
    ['Dir::Etc::netrc', machine.netrc],
    ['Dir::Etc::netrcparts', machine.netrcParts],
    ['Dir::State', work],
    ['Dir::State::status', join(work, 'status')],
    ['Dir::State::lists', lists],
    ['Dir::Cache', work],
    ['Dir::Cache::archives', archives],
    ['Dir::Log', work],
    ['APT::Architecture', 'amd64'],
    ['APT::Architectures', 'amd64'],
    ['APT::Install-Recommends', 'false'],
    // Lists of other suites stay for the images that use them.
    ['APT::Get::List-Cleanup', 'false'],
    // The user _apt may not enter CT_HOME. As root, the transports then run as root too.
    ['APT::Sandbox::User', 'root'],
    ['APT::Get::Show-User-Simulation-Note', 'false'],
    ['Acquire::Languages', 'none'],
    ['Acquire::Retries', '2'],
    // As mmdebstrap does: apt counts itself among the essential packages otherwise.
    ['pkgCacheGen::ForceEssential', ','],
  ];
  const lines = settings.map(([key, value]) => `${key} ${quote(value)};\n`);
  return machine.acquire + lines.join('');
}

/** apt.conf(5) strings have no escape for a quote. */
function quote(value: string): string {
  if (/["\n\\]/.test(value)) {
    throw new CtError('IMAGE_BUILD_FAILED', `apt cannot work in a directory with such a name: ${value}`, {
      hint: 'point CT_HOME at a directory without quotes and backslashes in its path',
    });
  }
  return `"${value}"`;
}
