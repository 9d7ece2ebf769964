/**
 * Packages that a step has fetched, checked by a step of our own that has no network: it installs once more, from what was
 * fetched, and the package manager refuses each archive that is not the one of the lock file. docs/signed-code.md says why.
 */
import { CtError } from '../core/errors.ts';
import type { PackageProblem } from '../policy/detection.ts';
import type { PackageManager, StepRequest } from '../protocol/run.ts';
import { EntryType, readHeader, TREE_HEADER_BYTES, TREE_MAGIC } from './tree-format.ts';

/** Of the files below, together; guest-controlled. The lock file of a workspace of hundreds of packages has some megabytes. */
export const MAX_INPUT_BYTES = 8 * 1024 * 1024;
const MAX_INPUTS = 1000;

interface Manager {
  /** What decides what is installed: in the step's working directory, and as it was in the working tree. */
  readonly inputs: readonly string[];
  /** The same of members of a workspace, which the lock file names. Throws what JSON.parse does. */
  readonly members: (lock: Buffer) => readonly string[];
  /** The first of them that is there is the lock file. */
  readonly locks: readonly string[];
  /** Variables of the step that fetches: nothing that it unpacks is run there, or read as what is to be run. */
  readonly fetchEnv: Readonly<Record<string, string>>;
  readonly install: readonly string[];
  /** In the output of either step: an archive has another digest. */
  readonly mismatch: RegExp;
  /** The first package for which the lock file has no digest. Throws what JSON.parse does. */
  readonly undigested: (lock: Buffer) => string | undefined;
}

export const MANAGERS: Readonly<Record<PackageManager, Manager>> = {
  npm: {
    inputs: ['package.json', 'package-lock.json', 'npm-shrinkwrap.json', '.npmrc'],
    members: membersOfNpm,
    locks: ['npm-shrinkwrap.json', 'package-lock.json'],
    // To link a program, npm looks into it.
    fetchEnv: { npm_config_ignore_scripts: 'true', npm_config_bin_links: 'false' },
    install: ['npm', 'ci', '--offline', '--no-audit', '--no-fund'],
    mismatch: /\bEINTEGRITY\b|seems to be corrupted/,
    undigested: undigestedOfNpm,
  },
};

export interface Problem {
  readonly problem: PackageProblem;
  /** A file of the workspace, or a package. */
  readonly path: string;
}

const WORDS: Readonly<Record<PackageProblem, string>> = {
  'no-lock': 'is not in the working tree, and packages are to be checked against it',
  changed: 'is not what it was in the working tree',
  'no-digest': 'has no digest in the lock file',
  mismatch: 'a package that was fetched is not the one that it names',
};

/** PACKAGES_UNVERIFIED, in words. */
export function unverified(step: StepRequest, { problem, path }: Problem): CtError {
  return new CtError(
    'PACKAGES_UNVERIFIED',
    `step “${step.name}”: ${path}${problem === 'mismatch' ? ':' : ''} ${WORDS[problem]}`,
    {
      hint:
        problem === 'mismatch'
          ? 'the registry serves something else than what was locked, or what was fetched was changed'
          : 'commit the lock file that belongs to what is to be installed (`npm install --package-lock-only`)',
    },
  );
}

/** A step that fetches packages, and the step of our own that checks them. */
export function withVerification(manager: PackageManager, step: StepRequest): [StepRequest, StepRequest] {
  const { env, workingDirectory, timeoutMs } = step;
  const { fetchEnv, install } = MANAGERS[manager];
  return [
    { ...step, env: { ...fetchEnv, ...env }, packages: { manager, role: 'fetch' } },
    {
      name: `${manager}: packages are those of the lock file`,
      argv: install,
      env,
      workingDirectory,
      condition: 'success',
      ...(timeoutMs === undefined ? {} : { timeoutMs }),
      network: 'none',
      packages: { manager, role: 'verify' },
    },
  ];
}

/** Files by name, without those that are not there. */
export type Inputs = ReadonlyMap<string, Buffer>;

/** The lock file, or the one that should be there. */
export function lockOf(manager: PackageManager, inputs: Inputs): string {
  const { locks } = MANAGERS[manager];
  return locks.find((name) => inputs.has(name)) ?? (locks.at(-1) as string);
}

/** Names of everything that decides, by what is known of it: the lock file may name more. */
export function inputNames(manager: PackageManager, known: Inputs): readonly string[] {
  const { inputs, members } = MANAGERS[manager];
  const lock = known.get(lockOf(manager, known));
  try {
    return lock === undefined ? inputs : [...inputs, ...members(lock)];
  } catch {
    return inputs; // a lock file that cannot be read has no digests, either
  }
}

/** What is wrong before anything is installed; undefined if nothing is. `before`: as they were in the working tree. */
export function problemOf(manager: PackageManager, before: Inputs, now: Inputs): Problem | undefined {
  const { undigested } = MANAGERS[manager];
  const lock = lockOf(manager, before);
  const content = before.get(lock);
  if (content === undefined) return { problem: 'no-lock', path: lock };
  const changed = inputNames(manager, before).find((name) => !isSame(before.get(name), now.get(name)));
  if (changed !== undefined) return { problem: 'changed', path: changed };
  try {
    const missing = undigested(content);
    return missing === undefined ? undefined : { problem: 'no-digest', path: missing };
  } catch {
    return { problem: 'no-digest', path: lock };
  }
}

function isSame(a: Buffer | undefined, b: Buffer | undefined): boolean {
  return a === undefined || b === undefined ? a === b : a.equals(b);
}

/** docs.npmjs.com, "package-lock.json": entries of `packages`, by where they go. Throws what JSON.parse does. */
function packagesOfNpm(lock: Buffer): [place: string, entry: unknown][] | undefined {
  const { packages } = (JSON.parse(lock.toString('utf8')) ?? {}) as { packages?: unknown };
  return typeof packages === 'object' && packages !== null ? Object.entries(packages) : undefined;
}

function isInstalled(place: string): boolean {
  return place.split('/').includes('node_modules');
}

/** Scripts of members run, too. What lies outside is not in the working tree. */
function membersOfNpm(lock: Buffer): string[] {
  const places = (packagesOfNpm(lock) ?? [])
    .map(([place]) => place)
    .filter((place) => !/^(\/|\.\.)/.test(place));
  return places
    .filter((place) => place !== '' && !isInstalled(place))
    .map((place) => `${place}/package.json`);
}

/**
 * Of links, others vouch. Bundled packages come with the archive above them only if they are in it: what is not, npm fetches. Of a
 * package with a lock file of its own, npm installs what that one lists.
 */
function undigestedOfNpm(lock: Buffer): string | undefined {
  const packages = packagesOfNpm(lock);
  if (!packages) return 'all of them (lockfileVersion 1)';
  for (const [place, entry] of packages) {
    if (!isInstalled(place)) continue;
    const { link, hasShrinkwrap, integrity } = (entry ?? {}) as Record<string, unknown>;
    if (link === true) continue;
    if (hasShrinkwrap === true) return place;
    if (typeof integrity !== 'string' || !/^sha(1|256|384|512)-/.test(integrity)) return place;
  }
  return undefined;
}

/** The files of a tree stream that the guest agent has written (tree-format.ts); undefined if it is not whole, or holds too much. */
export function filesOf(stream: Buffer): Inputs | undefined {
  const files = new Map<string, Buffer>();
  if (!stream.subarray(0, TREE_MAGIC.length).equals(TREE_MAGIC)) return undefined;
  let at = TREE_MAGIC.length;
  while (at + TREE_HEADER_BYTES <= stream.length && files.size <= MAX_INPUTS) {
    const { type, nameBytes, size } = readHeader(stream.subarray(at, at + TREE_HEADER_BYTES));
    const nameAt = at + TREE_HEADER_BYTES;
    const contentAt = nameAt + nameBytes;
    if (type === EntryType.end) return contentAt === stream.length ? files : undefined;
    if (size > BigInt(stream.length - contentAt)) return undefined;
    const content = stream.subarray(contentAt, contentAt + Number(size));
    // A link in the place of a file is another thing than the file.
    const kind = type === EntryType.file ? '' : `${type}:`;
    files.set(stream.toString('utf8', nameAt, contentAt), Buffer.concat([Buffer.from(kind), content]));
    at = contentAt + Number(size);
  }
  return undefined;
}
