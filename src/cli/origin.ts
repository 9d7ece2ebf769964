/**
 * Where a job of this machine comes from, as far as git can tell: what policy is told of it. All of it is a claim of whoever
 * runs `ct`, which is why its trust is `local`.
 */
import { execFile } from 'node:child_process';
import { userInfo } from 'node:os';
import type { JobOrigin } from '../protocol/network.ts';

/** git only reads a few small files for this. */
const GIT_TIMEOUT_MS = 5000;
/** A remote's URL, a ref, a commit: user-controlled, and a line. */
const MAX_ANSWER_BYTES = 8192;

/** Never rejects: without git, or outside of a work tree, there is only the user. */
export async function findOrigin(
  directory: string,
  env: Readonly<Record<string, string | undefined>> = process.env,
): Promise<JobOrigin> {
  const ask = (...args: string[]): Promise<string | undefined> => git(directory, args, env);
  const [remote, ref, commit] = await Promise.all([
    ask('remote', 'get-url', 'origin'),
    ask('symbolic-ref', '--quiet', 'HEAD'),
    ask('rev-parse', '--verify', '--quiet', 'HEAD'),
  ]);
  const repository = remote === undefined ? undefined : repositoryOf(remote);
  const actor = userName(env);
  return {
    trust: 'local',
    ...(repository === undefined ? {} : { repository }),
    ...(ref === undefined ? {} : { ref }),
    ...(commit !== undefined && /^[0-9a-f]{40,64}$/.test(commit) ? { commit } : {}),
    ...(actor === undefined ? {} : { actor }),
  };
}

/**
 * `owner/name` of a remote's URL: its last two components (more for groups within groups), lower case, without `.git`, user
 * and password. Undefined for a directory of this machine.
 */
export function repositoryOf(remote: string): string | undefined {
  const url = /^[a-z][a-z0-9+.-]*:\/\/[^/]*\/(.*)$/i.exec(remote);
  const short = /^(?:[^@/:]+@)?[^/:]+:(?!\/\/)(.*)$/.exec(remote); // git@host:owner/name
  const path = remote.startsWith('file:') ? undefined : (url ?? short)?.[1];
  if (path === undefined) return undefined;
  const parts = path
    .replace(/[?#].*$/s, '')
    .replace(/\/+$/, '')
    .replace(/\.git$/i, '')
    .split('/')
    .filter((part) => part !== '');
  const name = parts.join('/').toLowerCase();
  return parts.length >= 2 && name.length <= 300 && /^[a-z0-9._~/-]+$/.test(name) ? name : undefined;
}

/** The first line that git prints, or undefined if it fails. */
function git(
  directory: string,
  args: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): Promise<string | undefined> {
  const { promise, resolve } = Promise.withResolvers<string | undefined>();
  execFile(
    'git',
    ['--no-optional-locks', '-C', directory, ...args],
    {
      timeout: GIT_TIMEOUT_MS,
      killSignal: 'SIGKILL',
      maxBuffer: MAX_ANSWER_BYTES,
      env: {
        PATH: env['PATH'] ?? '/usr/bin:/bin',
        HOME: env['HOME'] ?? '/',
        LC_ALL: 'C',
        GIT_TERMINAL_PROMPT: '0',
      },
    },
    (error, stdout) => {
      const line = error ? '' : (stdout.split('\n', 1)[0] ?? '').trim();
      resolve(line === '' ? undefined : line);
    },
  );
  return promise;
}

/** Of the account, not of a variable: `USER` is for everybody to set. */
function userName(env: Readonly<Record<string, string | undefined>>): string | undefined {
  try {
    return userInfo().username;
  } catch {
    return env['USER']; // an account without an entry in passwd(5)
  }
}
