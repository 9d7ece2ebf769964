/** Where state lives: images and other lasting things in CT_HOME, sockets in a short private directory beside it. */
import { lstatSync, mkdirSync, realpathSync, type Stats } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { CtError, messageOf } from './errors.ts';

const GROUP_OR_OTHERS = 0o077;
const WRITABLE_BY_GROUP_OR_OTHERS = 0o022;
/** sockaddr_un.sun_path is 108 bytes with its NUL (unix(7)); Node truncates silently beyond. */
const MAX_SOCKET_PATH_BYTES = 107;
/** Names of sockets in the socket directory are at most this long. */
const MAX_SOCKET_NAME_BYTES = 20;

/** `$CT_HOME`, else `$XDG_CACHE_HOME/ct`, else `~/.cache/ct`; absolute. Touches nothing. */
export function ctHomePath(env: Readonly<NodeJS.ProcessEnv> = process.env): string {
  const own = env['CT_HOME'];
  if (own) return resolve(own);
  const cache = env['XDG_CACHE_HOME'];
  return cache?.startsWith('/') ? join(cache, 'ct') : join(homedir(), '.cache/ct');
}

/**
 * Creates CT_HOME if it is absent and returns its real path. Throws STATE_DIRECTORY_UNSAFE if it belongs to another
 * user or others may write to it: what lies there is booted.
 */
export function openCtHome(ctHome: string): string {
  try {
    mkdirSync(ctHome, { recursive: true, mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOSPC') throw error;
    throw new CtError('STATE_DIRECTORY_UNSAFE', `${ctHome} cannot be used: ${messageOf(error)}`, {
      hint: 'point CT_HOME at a directory of your own',
      cause: error,
    });
  }
  const real = realpathSync(ctHome);
  requireOwn(real, lstatSync(real), WRITABLE_BY_GROUP_OR_OTHERS);
  return real;
}

/**
 * The private directory (0700) for the sockets of `ctHome`; created if absent, as is `ctHome`. The same for every
 * process of one user: the first of `$XDG_RUNTIME_DIR`, `/run/user/<uid>` and `/tmp` that holds one already, else the
 * first that is usable. Throws STATE_DIRECTORY_UNSAFE, or SOCKET_PATH_TOO_LONG.
 */
export async function socketDirectory(ctHome: string): Promise<string> {
  const uid = ownUid();
  const name = `ct-${uid}-${homeId(ctHome)}`;
  const runtime = [process.env['XDG_RUNTIME_DIR'], `/run/user/${uid}`].filter(
    (path): path is string => path?.startsWith('/') === true && isPrivateDirectory(path, uid),
  );
  const candidates = [...runtime, '/tmp'].map((base) => join(base, name));
  const directory =
    candidates.find((path) => stat(path) !== undefined) ?? candidates[0] ?? join('/tmp', name);
  requireSocketRoom(directory);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  requireOwn(directory, lstatSync(directory), GROUP_OR_OTHERS);
  return directory;
}

/** Names what belongs to `ctHome` outside of it: sockets, cgroups. Creates it if it is absent. */
export function homeId(ctHome: string): string {
  return fnv1a(openCtHome(ctHome));
}

/** FNV-1a, 64 bits: tells a user's own directories apart; node:crypto would cost every command 4 ms. */
function fnv1a(text: string): string {
  let hash = 0xcbf29ce484222325n;
  for (const byte of Buffer.from(text)) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
  return hash.toString(16).padStart(16, '0');
}

function requireSocketRoom(directory: string): void {
  const bytes = Buffer.byteLength(directory) + 1 + MAX_SOCKET_NAME_BYTES;
  if (bytes <= MAX_SOCKET_PATH_BYTES) return;
  throw new CtError(
    'SOCKET_PATH_TOO_LONG',
    `sockets in ${directory} would have names of up to ${bytes} bytes; ${MAX_SOCKET_PATH_BYTES} is the limit`,
    { hint: 'set XDG_RUNTIME_DIR to a shorter path' },
  );
}

function requireOwn(path: string, stats: Stats, forbiddenMode: number): void {
  const uid = ownUid();
  if (!stats.isDirectory()) {
    throw new CtError('STATE_DIRECTORY_UNSAFE', `${path} is not a directory`, {
      hint: 'remove it, or point CT_HOME elsewhere',
    });
  }
  if (stats.uid !== uid) {
    throw new CtError('STATE_DIRECTORY_UNSAFE', `${path} belongs to user ${stats.uid}, not to you (${uid})`, {
      hint: 'remove it, or point CT_HOME elsewhere',
    });
  }
  if ((stats.mode & forbiddenMode) !== 0) {
    const mode = (stats.mode & 0o777).toString(8);
    throw new CtError('STATE_DIRECTORY_UNSAFE', `${path} is open to other users (mode ${mode})`, {
      hint: `run: chmod go-rwx ${path}`,
    });
  }
}

function isPrivateDirectory(path: string, uid: number): boolean {
  const stats = stat(path);
  return stats?.isDirectory() === true && stats.uid === uid && (stats.mode & GROUP_OR_OTHERS) === 0;
}

function stat(path: string): Stats | undefined {
  return lstatSync(path, { throwIfNoEntry: false });
}

function ownUid(): number {
  const uid = process.getuid?.();
  if (uid === undefined) throw new CtError('PLATFORM_UNSUPPORTED', 'ct needs a system with user ids');
  return uid;
}

/**
 * Throws CONFIG_INVALID if `path`, of which `stats` speak, belongs to somebody else than this user or root, or if others may
 * write to it: what it says is obeyed. The hints say what to do.
 */
export function requireUnchangeable(
  path: string,
  stats: Pick<Stats, 'uid' | 'mode'>,
  hints: { readonly foreign?: string; readonly writable?: string } = {},
): void {
  const uid = process.getuid?.();
  if (stats.uid !== uid && stats.uid !== 0) {
    throw new CtError('CONFIG_INVALID', `${path} belongs to user ${stats.uid}, not to you (${uid})`, {
      hint: hints.foreign ?? 'make it your own file',
    });
  }
  if ((stats.mode & WRITABLE_BY_GROUP_OR_OTHERS) !== 0) {
    throw new CtError('CONFIG_INVALID', `${path} can be written by other users`, {
      hint: hints.writable ?? `run: chmod go-w ${path}`,
    });
  }
}
