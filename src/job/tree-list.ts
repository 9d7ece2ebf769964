/** Which paths of a working tree go into a job. Names are bytes: Linux file names need not be UTF-8. */
import { spawn } from 'node:child_process';
import { lstatSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import ignore, { type Ignore } from 'ignore';
import { CtError, messageOf } from '../core/errors.ts';

/** Names kept of what ignore rules left out; the rest is counted. */
const MAX_IGNORED_NAMES = 50;

/** A .gitignore larger than this is taken for something else; user-controlled, parsed whole. */
const MAX_IGNORE_FILE_BYTES = 1024 * 1024;

const OUT_DIRECTORY = '.ct/out';

/** What ignore rules left out: shortest paths, with a slash after a directory. */
export class IgnoredPaths {
  readonly names: string[] = [];
  count = 0;

  add(name: string): void {
    if (name === `${OUT_DIRECTORY}/` || name === '.ct/' || name.startsWith(`${OUT_DIRECTORY}/`)) return;
    this.count++;
    if (this.names.length < MAX_IGNORED_NAMES) this.names.push(name);
  }
}

export interface ListOptions {
  readonly root: string;
  readonly respectIgnore: boolean;
  /** List what is in `.git` directories below the root, if the tree is walked. */
  readonly includeGit: boolean;
  readonly ignored: IgnoredPaths;
  readonly signal: AbortSignal | undefined;
}

/** How the paths of a directory are found. */
export interface Lister {
  /** Relative names in batches. A directory may be listed for itself, before what is in it. */
  readonly names: AsyncIterable<readonly Buffer[]>;
  /**
   * True if a listed directory stands for a repository of its own (a submodule, or a clone inside the tree),
   * which has to be listed by itself.
   */
  readonly directoriesAreRepositories: boolean;
}

/**
 * Lists a directory: as git does if it is in a work tree and git is there, else by walking it and applying
 * .gitignore files. `.git` of the root itself and `.ct/out` are not listed.
 */
export async function listTree(options: ListOptions): Promise<Lister> {
  const { root, respectIgnore, includeGit, ignored } = options;
  if (respectIgnore && (await isGitWorkTree(options))) {
    return { names: gitNames(options), directoriesAreRepositories: true };
  }
  const rules = respectIgnore ? new IgnoreRules(root) : undefined;
  const skip = (name: string): boolean =>
    name === '.git' || name === OUT_DIRECTORY || (!includeGit && name.endsWith('/.git'));
  return { names: walk(Buffer.from(root), rules, ignored, skip), directoriesAreRepositories: false };
}

/** Every path below `directory`, directories before their content. */
export function walkAll(
  directory: Buffer,
  skip: (name: string) => boolean,
): AsyncIterable<readonly Buffer[]> {
  return walk(directory, undefined, new IgnoredPaths(), skip);
}

// -------------------------------------------------------------------------------------------------- git

/**
 * The environment is a literal: GIT_DIR or GIT_INDEX_FILE, as set in a git hook, would list another tree. The
 * user's own configuration counts, because core.excludesFile does.
 */
function gitEnvironment(): NodeJS.ProcessEnv {
  const { PATH, HOME, XDG_CONFIG_HOME } = process.env;
  return {
    PATH,
    HOME,
    ...(XDG_CONFIG_HOME === undefined ? {} : { XDG_CONFIG_HOME }),
    LC_ALL: 'C',
    GIT_OPTIONAL_LOCKS: '0',
    GIT_TERMINAL_PROMPT: '0',
  };
}

/** The repository may be somebody's pull request: its configuration must not name a program for us to run. */
const GIT_ARGUMENTS = ['-c', 'core.fsmonitor=false'];

/** Runs git and yields what stands between the NULs of its output. Throws GitFailed, or what spawn says. */
async function* git(options: ListOptions, args: readonly string[]): AsyncGenerator<Buffer[]> {
  const child = spawn('git', [...GIT_ARGUMENTS, ...args], {
    cwd: options.root,
    env: gitEnvironment(),
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  const closed = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve(code));
  });
  // Awaited below; until then a failure to start must not be an unhandled rejection.
  closed.catch(() => {});
  let complaint = '';
  child.stderr.on('data', (chunk: Buffer) => {
    if (complaint.length < 2000) complaint += chunk.toString('utf8');
  });
  try {
    let carry: Buffer = Buffer.alloc(0);
    for await (const chunk of child.stdout as AsyncIterable<Buffer>) {
      const data = carry.length === 0 ? chunk : Buffer.concat([carry, chunk]);
      const names: Buffer[] = [];
      let from = 0;
      for (let at = data.indexOf(0); at !== -1; at = data.indexOf(0, from)) {
        names.push(data.subarray(from, at));
        from = at + 1;
      }
      carry = data.subarray(from);
      if (names.length > 0) yield names;
    }
    const code = await closed;
    if (code !== 0) throw new GitFailed(code, complaint);
  } finally {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
  }
}

class GitFailed extends Error {
  readonly exitCode: number | null;

  constructor(exitCode: number | null, complaint: string) {
    super(complaint.trim() === '' ? `git ended with ${exitCode}` : complaint.trim());
    this.exitCode = exitCode;
  }
}

/** False without git, outside of a work tree, and in a directory that the work tree around it ignores. */
async function isGitWorkTree(options: ListOptions): Promise<boolean> {
  try {
    for await (const _ of git(options, ['check-ignore', '-q', '--', '.']));
    return false;
  } catch (error) {
    options.signal?.throwIfAborted();
    // 1: a work tree that does not ignore this directory; 128: no repository, or one of another user.
    return error instanceof GitFailed && error.exitCode === 1;
  }
}

async function* gitNames(options: ListOptions): AsyncGenerator<readonly Buffer[]> {
  const collected = collectIgnored(options);
  try {
    let previous: Buffer | undefined;
    for await (const names of git(options, [
      'ls-files',
      '--cached',
      '--others',
      '--exclude-standard',
      '-z',
    ])) {
      const wanted: Buffer[] = [];
      for (const listed of names) {
        const name = listed.at(-1) === SLASH ? listed.subarray(0, -1) : listed;
        // A path in conflict is listed once per side of the merge.
        if (previous?.equals(name) || isInOut(name)) continue;
        previous = name;
        wanted.push(name);
      }
      yield wanted;
    }
  } catch (error) {
    options.signal?.throwIfAborted();
    throw new CtError('WORKSPACE_UNREADABLE', `git cannot list ${options.root}: ${messageOf(error)}`, {
      hint: '--no-ignore sends everything without asking git',
      cause: error,
    });
  } finally {
    await collected;
  }
}

const SLASH = 0x2f;

function isInOut(name: Buffer): boolean {
  const text = name.toString('latin1');
  return text === OUT_DIRECTORY || text.startsWith(`${OUT_DIRECTORY}/`);
}

/** Only for the summary, so a failure is no reason to fail. */
async function collectIgnored(options: ListOptions): Promise<void> {
  const args = ['ls-files', '--others', '--ignored', '--exclude-standard', '--directory', '-z'];
  try {
    for await (const names of git(options, args)) {
      for (const name of names) options.ignored.add(name.toString('utf8'));
    }
  } catch {
    // The names stay incomplete.
  }
}

// ------------------------------------------------------------------------------------------------- walk

/** Directories to read ahead of what has been yielded; entries of one directory are held at a time per level. */
async function* walk(
  root: Buffer,
  rules: IgnoreRules | undefined,
  ignored: IgnoredPaths,
  skip: (name: string) => boolean,
): AsyncGenerator<readonly Buffer[]> {
  const pending: Buffer[] = [Buffer.alloc(0)];
  for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
    rules?.enter(directory.toString('utf8'));
    const names: Buffer[] = [];
    const below: Buffer[] = [];
    for (const entry of readDirectory(root, directory)) {
      const name = directory.length === 0 ? entry.name : Buffer.concat([directory, SLASH_BYTES, entry.name]);
      const text = name.toString('utf8');
      if (skip(text)) continue;
      const isDirectory = entry.isDirectory();
      // What is in a .git directory is git's business, not that of ignore rules.
      const isGit = text.endsWith('/.git') || text.includes('/.git/');
      if (!isGit && rules?.ignores(text, isDirectory)) {
        ignored.add(isDirectory ? `${text}/` : text);
        continue;
      }
      names.push(name);
      if (isDirectory) below.push(name);
    }
    yield names;
    // Last in, first out: keeps the directories in order and one branch at a time in memory.
    pending.push(...below.reverse());
  }
}

const SLASH_BYTES = Buffer.from('/');

function readDirectory(root: Buffer, directory: Buffer): { name: Buffer; isDirectory(): boolean }[] {
  const path = directory.length === 0 ? root : Buffer.concat([root, SLASH_BYTES, directory]);
  try {
    const entries = readdirSync(path, { withFileTypes: true, encoding: 'buffer' });
    return entries.sort((a, b) => Buffer.compare(a.name, b.name));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // Gone, or replaced by something else, since it was listed.
    if (directory.length > 0 && (code === 'ENOENT' || code === 'ENOTDIR')) return [];
    throw new CtError(
      'WORKSPACE_UNREADABLE',
      `cannot read the directory ${path.toString()}: ${messageOf(error)}`,
      {
        hint: 'make it readable, or ignore it in .gitignore',
        cause: error,
      },
    );
  }
}

/**
 * .gitignore files at every level, for directories that git does not look after (gitignore(5)): the deepest file
 * that says something about a path decides.
 */
class IgnoreRules {
  readonly #root: string;
  /** By directory; only directories that have rules. */
  readonly #rules = new Map<string, Ignore>();

  constructor(root: string) {
    this.#root = root;
  }

  /** Reads the rules of a directory, before anything in it is judged. */
  enter(directory: string): void {
    const files = directory === '' ? ['.git/info/exclude', '.gitignore'] : ['.gitignore'];
    const texts = files.map((file) => readIgnoreFile(join(this.#root, directory, file)));
    if (texts.every((text) => text === '')) return;
    const rules = ignore({ ignorecase: false, allowRelativePaths: true });
    for (const text of texts) rules.add(text);
    this.#rules.set(directory, rules);
  }

  ignores(name: string, isDirectory: boolean): boolean {
    const path = isDirectory ? `${name}/` : name;
    for (let directory = parentOf(name); ; directory = parentOf(directory)) {
      const relative = directory === '' ? path : path.slice(directory.length + 1);
      const verdict = this.#rules.get(directory)?.test(relative);
      if (verdict?.ignored) return true;
      if (verdict?.unignored) return false;
      if (directory === '') return false;
    }
  }
}

function parentOf(name: string): string {
  return name.slice(0, Math.max(0, name.lastIndexOf('/')));
}

function readIgnoreFile(path: string): string {
  try {
    const stat = lstatSync(path);
    // Like git, which does not follow a link here.
    return stat.isFile() && stat.size <= MAX_IGNORE_FILE_BYTES ? readFileSync(path, 'utf8') : '';
  } catch {
    return '';
  }
}
