/**
 * npm packages of an image: for programs that Debian has not, or has too old. They are fetched by the npm of this machine,
 * with the configuration of this machine and user, and count only if they have the digest that the definition pins. No
 * script of a package ever runs; what a package needs, it has to bring along.
 */
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync } from 'node:fs';
import { join, posix } from 'node:path';
import { CtError } from '../core/errors.ts';
import { runProgram } from '../core/run-program.ts';
import type { NpmPackage } from './definition.ts';
import type { BuildProgress } from './progress.ts';
import { runSupervised } from './supervised.ts';

/** A package that is here and is what the definition says. */
export interface NpmArchive extends NpmPackage {
  readonly path: string;
  /** What it puts into /usr/local/bin: name → path below the package. */
  readonly programs: ReadonlyMap<string, string>;
}

export interface NpmFetchOptions {
  /** Kept between builds: archives by digest. */
  readonly cacheDirectory: string;
  /** For this build alone. */
  readonly workDirectory: string;
  readonly signal: AbortSignal | undefined;
  readonly progress: (event: BuildProgress) => void;
}

/** Of package.json; those of large packages have some ten kilobytes. */
const MAX_PACKAGE_JSON_BYTES = 1024 * 1024;
const PROGRAM = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const PROGRAM_PATH = /^[A-Za-z0-9_][A-Za-z0-9._/-]{0,255}$/;
/** Of npm's output in a message. */
const SHOWN_LINES = 6;

/**
 * The archives of `packages`, from the cache or fetched. Throws IMAGE_BUILD_FAILED if one cannot be had or is another than
 * the definition pins, IMAGE_DEFINITION_INVALID if two bring the same program, REQUIREMENT_MISSING without npm, CANCELLED.
 */
export async function fetchNpmPackages(
  packages: readonly NpmPackage[],
  options: NpmFetchOptions,
): Promise<readonly NpmArchive[]> {
  const archives: NpmArchive[] = [];
  const owners = new Map<string, string>();
  for (const entry of packages) {
    const path = await archiveOf(entry, options);
    const programs = parsePrograms(await packageJson(path, options.signal), entry.name);
    for (const program of programs.keys()) {
      const other = owners.get(program);
      if (other !== undefined) {
        throw new CtError(
          'IMAGE_DEFINITION_INVALID',
          `the npm packages ${other} and ${entry.name} both bring the program ${program}`,
        );
      }
      owners.set(program, entry.name);
    }
    archives.push({ ...entry, path, programs });
  }
  return archives;
}

async function archiveOf(entry: NpmPackage, options: NpmFetchOptions): Promise<string> {
  const { cacheDirectory, progress } = options;
  mkdirSync(cacheDirectory, { recursive: true });
  const cached = join(
    cacheDirectory,
    `${Buffer.from(entry.integrity.slice(7), 'base64').toString('hex')}.tgz`,
  );
  if (existsSync(cached) && (await integrityOf(cached)) === entry.integrity) return cached;
  const spec = `${entry.name}@${entry.version}`;
  progress({ phase: 'downloading', message: `downloading npm package ${spec}` });
  const fetched = await pack(spec, options);
  const integrity = await integrityOf(fetched);
  if (integrity !== entry.integrity) {
    throw new CtError(
      'IMAGE_BUILD_FAILED',
      `the npm package ${spec} has not the digest that the definition pins`,
      {
        hint: `it is ${entry.integrity} there, and the registry of this machine gave ${integrity}: find out which is right before you change anything`,
      },
    );
  }
  renameSync(fetched, cached);
  return cached;
}

/** In a directory outside every project, so that only the configuration of machine and user counts. */
async function pack(spec: string, { workDirectory, signal }: NpmFetchOptions): Promise<string> {
  const directory = mkdtempSync(join(workDirectory, 'npm-'));
  const { exitCode, tail } = await runSupervised({
    argv: ['npm', 'pack', '--ignore-scripts', '--loglevel=error', '--workspaces=false', spec],
    cwd: directory,
    env: npmEnvironment(process.env),
    signal,
    onLine: () => {},
  });
  const [archive] = readdirSync(directory).filter((name) => name.endsWith('.tgz'));
  if (exitCode === 0 && archive !== undefined) return join(directory, archive);
  if (exitCode === 127) {
    throw new CtError('REQUIREMENT_MISSING', 'the program npm is not installed, which fetches npm packages', {
      hint: '`ct doctor` lists what is missing and how to get it',
    });
  }
  const said = tail.trim().split('\n').slice(-SHOWN_LINES).join('\n');
  throw new CtError('IMAGE_BUILD_FAILED', `npm could not fetch ${spec}:\n${said}`, {
    hint: `try \`npm view ${spec}\` outside of any project: ct uses npm as it is configured for you`,
  });
}

/** What npm is configured with besides its files, and what it needs to find those. */
export function npmEnvironment(env: Readonly<NodeJS.ProcessEnv>): Record<string, string> {
  const known =
    /^(?:PATH|HOME|XDG_CONFIG_HOME|NODE_EXTRA_CA_CERTS|SSL_CERT_FILE|SSL_CERT_DIR|npm_config_.*)$/i;
  const proxies = /^(?:https?_proxy|no_proxy|all_proxy)$/i;
  return Object.fromEntries(
    Object.entries(env).flatMap(([name, value]) =>
      value !== undefined && (known.test(name) || proxies.test(name)) ? [[name, value]] : [],
    ),
  );
}

/** `sha512-<base64>` (Subresource Integrity), as npm writes it. */
async function integrityOf(path: string): Promise<string> {
  const hash = createHash('sha512');
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return `sha512-${hash.digest('base64')}`;
}

async function packageJson(path: string, signal: AbortSignal | undefined): Promise<string> {
  const output = await runProgram({
    file: 'tar',
    args: [
      ...[
        '--extract',
        '--gzip',
        '--to-stdout',
        '--occurrence=1',
        '--wildcards',
        '--no-wildcards-match-slash',
      ],
      ...[`--file=${path}`, '*/package.json'],
    ],
    maxOutputBytes: MAX_PACKAGE_JSON_BYTES,
    failureCode: 'IMAGE_BUILD_FAILED',
    ...(signal ? { signal } : {}),
  });
  return output.toString('utf8');
}

/**
 * `bin` of a package.json: one path, which is a program with the name of the package, or names with paths. Throws
 * IMAGE_BUILD_FAILED if it is anything else, or leaves the package.
 */
export function parsePrograms(text: string, packageName: string): ReadonlyMap<string, string> {
  const invalid = (): CtError =>
    new CtError(
      'IMAGE_BUILD_FAILED',
      `the npm package ${packageName} has a package.json that ct cannot read`,
    );
  let bin: unknown;
  try {
    bin = (JSON.parse(text) as { bin?: unknown } | null)?.bin;
  } catch {
    throw invalid();
  }
  if (bin === undefined) return new Map();
  const entries: readonly (readonly [string, unknown])[] =
    typeof bin === 'string'
      ? [[posix.basename(packageName), bin]]
      : typeof bin === 'object' && bin !== null && !Array.isArray(bin)
        ? Object.entries(bin)
        : [['', undefined]];
  return new Map(
    entries.map(([name, path]) => {
      const inside = typeof path === 'string' ? posix.normalize(path) : '';
      if (!PROGRAM.test(name) || !PROGRAM_PATH.test(inside)) throw invalid();
      return [name, inside];
    }),
  );
}

/** What hooks/customize.sh reads: `archive <file> <name>` and `program <name> <package> <path>`, in this order. */
export function npmPlan(archives: readonly NpmArchive[], fileOf: (archive: NpmArchive) => string): string {
  return archives
    .flatMap((archive) => [
      `archive ${fileOf(archive)} ${archive.name}\n`,
      ...[...archive.programs].map(([program, path]) => `program ${program} ${archive.name} ${path}\n`),
    ])
    .join('');
}
