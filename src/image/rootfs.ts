/**
 * The root file system: mmdebstrap installs the resolved packages into a tree, hooks clean it and write it as EROFS.
 *
 * mmdebstrap runs in mode `unshare` for root too, where it means its own mount and PID namespaces without a user
 * namespace: whatever a maintainer script mounts or starts ends with the build. It has no use for a network, because
 * package lists and packages are handed to it, and it gets the versions that were resolved, not a choice.
 */
import {
  chmodSync,
  closeSync,
  copyFileSync,
  mkdirSync,
  openSync,
  readdirSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { CtError } from '../core/errors.ts';
import { outOfSpace } from './apt.ts';
import type { ImageDefinition } from './definition.ts';
import { copyFiles } from './extra-files.ts';
import { repositorySource, writeRepositoryLists } from './local-repository.ts';
import { type NpmArchive, npmPlan } from './npm.ts';
import type { PackageCache } from './package-cache.ts';
import { type LockedPackage, pin } from './packages.ts';
import { BuildOutput, type BuildProgress } from './progress.ts';
import { IMAGE_EPOCH } from './recipe.ts';
import { makeScratch } from './scratch.ts';
import { HOOKS_DIRECTORY, PROGRAM_PATH, runSupervised } from './supervised.ts';
import { readTree, TREE_FILES, type Tree } from './tree.ts';

/** Lines of a failed build that its message repeats; the log has more. */
const SHOWN_LINES = 15;

export interface RootfsOptions {
  readonly definition: ImageDefinition;
  /** All of them, with what they depend on; their files are in the cache. */
  readonly packages: readonly LockedPackage[];
  readonly cache: PackageCache;
  readonly npm: readonly NpmArchive[];
  /** For this build alone, on the file system of CT_HOME. */
  readonly workDirectory: string;
  /** Gets the end of the output if the build fails. */
  readonly logPath: string;
  readonly tmpDir: string | undefined;
  readonly owner: string;
  readonly progress: (event: BuildProgress) => void;
  readonly signal: AbortSignal | undefined;
  /** More variables for the build: to prove that they change nothing. */
  readonly surroundings?: Readonly<Record<string, string>>;
}

export interface Rootfs {
  /** The EROFS image, in `workDirectory`. */
  readonly path: string;
  readonly tree: Tree;
}

/**
 * Builds it. The same packages always give the same bytes.
 * Throws IMAGE_BUILD_FAILED, STORE_FULL, REQUIREMENT_MISSING, CANCELLED; the tree is gone in any case.
 */
export async function buildRootfs(options: RootfsOptions): Promise<Rootfs> {
  const { definition, packages, cache, progress, signal } = options;
  const exchange = join(options.workDirectory, 'exchange');
  for (const name of ['', 'debs', 'lists', 'hooks', 'npm', 'files']) makeDirectory(join(exchange, name));
  cache.link(packages, join(exchange, 'debs'));
  const { suite, distroless } = definition;
  await writeRepositoryLists(join(exchange, 'lists'), suite, packages, { cache, alone: distroless, signal });
  const sourcesPath = join(options.workDirectory, 'packages.list');
  writeFileSync(sourcesPath, repositorySource(suite));
  for (const name of readdirSync(HOOKS_DIRECTORY))
    publish(join(HOOKS_DIRECTORY, name), join(exchange, 'hooks', name));
  for (const archive of options.npm) publish(archive.path, join(exchange, 'npm', basename(archive.path)));
  writeFileSync(
    join(exchange, 'npm/plan'),
    npmPlan(options.npm, ({ path }) => basename(path)),
    { mode: 0o644 },
  );
  writeFileSync(join(exchange, 'files/plan'), copyFiles(definition.files, join(exchange, 'files')), {
    mode: 0o644,
  });
  writeFileSync(join(exchange, 'setuid'), definition.holds.setuid.map((path) => `${path}\n`).join(''), {
    mode: 0o644,
  });
  const rootfs = join(exchange, 'rootfs');
  // The root of a user namespace writes them through the descriptor; the directory above is closed to all others.
  for (const name of ['rootfs', ...TREE_FILES]) {
    writeFileSync(join(exchange, name), '');
    chmodSync(join(exchange, name), 0o666);
  }

  const output = new BuildOutput(packages.length);
  const scratchDirectory = makeScratch(options);
  // Unprivileged, the tree's owners must pass; as root nobody else may, since the tree has set-uid programs.
  chmodSync(scratchDirectory, process.getuid?.() === 0 ? 0o700 : 0o711);
  const exchangeFd = openSync(exchange, 'r');
  let result: Awaited<ReturnType<typeof runSupervised>>;
  try {
    result = await runSupervised({
      argv: mmdebstrapArguments(definition, packages, sourcesPath),
      env: { ...options.surroundings, ...environment(definition, scratchDirectory) },
      scratchDirectory,
      extraFd: exchangeFd,
      signal: options.signal,
      onLine: (line) => {
        const event = output.line(line);
        if (event !== undefined) progress(event);
      },
    });
  } finally {
    closeSync(exchangeFd);
  }
  if (result.exitCode !== 0) throw failure(result, output.last, options);
  chmodSync(rootfs, 0o600);
  if (statSync(rootfs).size === 0) throw failure(result, output.last, options);
  const metadataDirectory = join(options.workDirectory, 'metadata');
  return { path: rootfs, tree: await readTree(exchange, metadataDirectory, signal) };
}

function mmdebstrapArguments(
  { suite, distroless }: ImageDefinition,
  packages: readonly LockedPackage[],
  sourcesPath: string,
): readonly string[] {
  return [
    'mmdebstrap',
    '--mode=unshare',
    `--variant=${distroless ? 'extract' : 'essential'}`,
    '--architectures=amd64',
    '--format=null',
    '--verbose',
    // The lists are there, and need no signature (local-repository.ts); the hook cleans more than mmdebstrap would.
    '--skip=update,check/signed-by,cleanup',
    ...packages.map((entry) => `--include=${pin(entry)}`),
    // Constant: scripts are reached through the descriptor, see hooks/setup.sh.
    '--setup-hook=sh /proc/self/fd/3/hooks/setup.sh "$1"',
    ...(distroless
      ? [
          '--extract-hook=sh /proc/self/fd/3/hooks/distroless.sh "$1"',
          '--extract-hook=sh /proc/self/fd/3/hooks/customize.sh "$1"',
        ]
      : ['--customize-hook=sh /proc/self/fd/3/hooks/customize.sh "$1"']),
    suite,
    '/dev/null',
    sourcesPath,
  ];
}

function environment(definition: ImageDefinition, scratchDirectory: string): Record<string, string> {
  const { user } = definition;
  return {
    PATH: PROGRAM_PATH,
    LC_ALL: 'C.UTF-8',
    TMPDIR: scratchDirectory,
    DEBIAN_FRONTEND: 'noninteractive',
    DEBCONF_NONINTERACTIVE_SEEN: 'true',
    // Makes Python's byte code depend on the source's contents instead of its time (PEP 552), and much else agree.
    SOURCE_DATE_EPOCH: String(IMAGE_EPOCH),
    PYTHONHASHSEED: '0',
    CT_USER_NAME: user.name,
    CT_USER_UID: String(user.uid),
    CT_USER_GID: String(user.gid),
    CT_USER_HOME: user.home,
    ...(definition.distroless ? { CT_DISTROLESS: '1' } : {}),
  };
}

function failure(
  result: { readonly exitCode: number; readonly tail: string },
  last: BuildProgress,
  options: RootfsOptions,
): CtError {
  const { tail, exitCode } = result;
  writeFileSync(options.logPath, tail, { mode: 0o600 });
  const full = outOfSpace(tail);
  if (full !== undefined) return full;
  const lines = tail.trim().split('\n');
  const shown = lines.slice(-SHOWN_LINES).map((line) => `  ${line.slice(0, 200)}`);
  if (/newuidmap|newgidmap|subuid|subgid|unshare\(\)|clone\(\)/.test(lines.slice(0, 10).join('\n'))) {
    return new CtError(
      'REQUIREMENT_MISSING',
      `images cannot be built without root here:\n${shown.join('\n')}`,
      {
        hint: 'this needs user namespaces, the package uidmap, and ranges for you in /etc/subuid and /etc/subgid; `ct doctor` checks them',
      },
    );
  }
  const message = `the build of ${options.definition.name} failed while ${last.message} (mmdebstrap exited with ${exitCode}):`;
  return new CtError('IMAGE_BUILD_FAILED', `${message}\n${shown.join('\n')}`, {
    hint: `the end of its output is in ${options.logPath}; try again with \`ct image build --force\` if it was the network`,
  });
}

function makeDirectory(path: string): void {
  mkdirSync(path, { recursive: true });
  chmodSync(path, 0o755);
}

function publish(from: string, to: string): void {
  copyFileSync(from, to);
  chmodSync(to, 0o644);
}
