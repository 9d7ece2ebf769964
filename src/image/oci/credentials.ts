/**
 * Credentials of registries, from where Docker and podman keep them: `config.json` of Docker, `auth.json` of containers,
 * and the credential helpers that they name. They are read when a registry asks for them, kept in memory, and sent to
 * that registry and the token service that it names. They are in no argument, message or log.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CtError } from '../../core/errors.ts';
import { isObject } from '../../core/json.ts';
import { runProgram } from '../../core/run-program.ts';

const MAX_CONFIG_BYTES = 1024 * 1024;
const MAX_HELPER_BYTES = 64 * 1024;
/** A helper may ask somebody to unlock a key ring. */
const HELPER_TIMEOUT_MS = 60_000;

export type Credentials =
  | { readonly kind: 'basic'; readonly user: string; readonly password: string }
  | { readonly kind: 'identity-token'; readonly token: string };

export interface CredentialEnvironment {
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Undefined if there are none for this host: then the registry is asked without. Throws CONFIG_INVALID. */
export async function findCredentials(
  host: string,
  { env }: CredentialEnvironment,
): Promise<Credentials | undefined> {
  const home = env['HOME'] ?? '';
  const files = [
    join(env['DOCKER_CONFIG'] || join(home, '.docker'), 'config.json'),
    ...(env['REGISTRY_AUTH_FILE'] ? [env['REGISTRY_AUTH_FILE']] : []),
    ...(env['XDG_RUNTIME_DIR'] ? [join(env['XDG_RUNTIME_DIR'], 'containers/auth.json')] : []),
    join(home, '.config/containers/auth.json'),
  ];
  for (const path of files) {
    const config = await readConfig(path);
    if (config === undefined) continue;
    const helper = textIn(config['credHelpers'], host);
    if (helper !== undefined) return askHelper(helper, host, env);
    const entry = entryFor(config['auths'], host);
    const found = entry === undefined ? undefined : fromEntry(entry, path);
    if (found !== undefined) return found;
    const store = config['credsStore'];
    if (typeof store === 'string' && store !== '') {
      const stored = await askHelper(store, host, env);
      if (stored !== undefined) return stored;
    }
  }
  return undefined;
}

async function readConfig(path: string): Promise<Record<string, unknown> | undefined> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch {
    return undefined;
  }
  try {
    if (bytes.length > MAX_CONFIG_BYTES) throw new Error('too large');
    const value: unknown = JSON.parse(bytes.toString('utf8'));
    if (isObject(value)) return value;
  } catch {
    // The parser's words would quote the file.
  }
  throw new CtError('CONFIG_INVALID', `${path}, with credentials of registries, is no JSON object`);
}

function entryFor(auths: unknown, host: string): Record<string, unknown> | undefined {
  if (!isObject(auths)) return undefined;
  for (const key of [
    host,
    `https://${host}`,
    `http://${host}`,
    `https://${host}/v1/`,
    `https://${host}/v2/`,
  ]) {
    const entry = Object.hasOwn(auths, key) ? auths[key] : undefined;
    if (isObject(entry)) return entry;
  }
  return undefined;
}

function fromEntry(entry: Record<string, unknown>, path: string): Credentials | undefined {
  const { identitytoken: token, auth, username, password } = entry;
  if (typeof token === 'string' && token !== '') return { kind: 'identity-token', token };
  if (typeof auth === 'string' && auth !== '') {
    const decoded = Buffer.from(auth, 'base64').toString('utf8');
    const colon = decoded.indexOf(':');
    if (colon < 1) throw new CtError('CONFIG_INVALID', `${path} has an \`auth\` without a user`);
    return { kind: 'basic', user: decoded.slice(0, colon), password: decoded.slice(colon + 1) };
  }
  if (typeof username === 'string' && typeof password === 'string' && username !== '') {
    return { kind: 'basic', user: username, password };
  }
  return undefined;
}

/** The protocol of docker-credential-helpers: `get`, the host on stdin, JSON on stdout. */
async function askHelper(
  name: string,
  host: string,
  env: CredentialEnvironment['env'],
): Promise<Credentials | undefined> {
  if (!/^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/.test(name)) {
    throw new CtError(
      'CONFIG_INVALID',
      `${JSON.stringify(name.slice(0, 80))} is no name of a credential helper`,
    );
  }
  const passed = [
    'HOME',
    'XDG_RUNTIME_DIR',
    'DBUS_SESSION_BUS_ADDRESS',
    'DISPLAY',
    'GNUPGHOME',
    'PASSWORD_STORE_DIR',
  ];
  let answer: unknown;
  try {
    const output = await runProgram({
      file: `docker-credential-${name}`,
      args: ['get'],
      env: Object.fromEntries(passed.flatMap((key) => (env[key] === undefined ? [] : [[key, env[key]]]))),
      input: Buffer.from(host),
      maxOutputBytes: MAX_HELPER_BYTES,
      signal: AbortSignal.timeout(HELPER_TIMEOUT_MS),
      failureCode: 'REGISTRY_DENIED',
    });
    answer = JSON.parse(output.toString('utf8'));
  } catch (error) {
    // Helpers exit with 1 when they have nothing. What they print may hold a secret, so it is not repeated.
    if (error instanceof CtError && error.code === 'REQUIREMENT_MISSING') {
      throw new CtError('CONFIG_INVALID', `the credential helper docker-credential-${name} is not installed`);
    }
    return undefined;
  }
  if (!isObject(answer)) return undefined;
  const { Username: user, Secret: secret } = answer;
  if (typeof user !== 'string' || typeof secret !== 'string') return undefined;
  return user === '<token>'
    ? { kind: 'identity-token', token: secret }
    : { kind: 'basic', user, password: secret };
}

function textIn(value: unknown, key: string): string | undefined {
  const found = isObject(value) && Object.hasOwn(value, key) ? value[key] : undefined;
  return typeof found === 'string' && found !== '' ? found : undefined;
}
