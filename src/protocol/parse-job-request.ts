/** Parses a JobRequest once, at the edge of the host daemon. The client is the user's own process, and may be wrong. */
import { CtError } from '../core/errors.ts';
import { CODE_POLICY_MODES } from './code.ts';
import {
  MAX_JOB_SECRETS,
  MAX_PATH_BYTES,
  MAX_SCRIPT_BYTES,
  MAX_SECRET_NAME_BYTES,
  MAX_STEPS,
} from './limits.ts';
import {
  type JobOrigin,
  MAX_NETWORK_ENTRIES,
  MAX_NETWORK_ENTRY_BYTES,
  NETWORK_MODES,
  type NetworkRequest,
} from './network.ts';
import { type JobRequest, PACKAGE_MANAGERS, type StepRequest, type StepSecret } from './run.ts';
import { isSecretName } from './secret-record.ts';
import { DEPENDENCY_LEVELS, MAX_LOCKS, MAX_MANIFESTS, type VerifyRequest } from './verify.ts';

/** execve(2): one argument or `NAME=value` string is at most 128 KiB with its NUL. */
const MAX_ARGUMENT_BYTES = 131_071;
/** What all arguments or variables of a step may take together; the kernel's own limit is a quarter of the stack. */
const MAX_STRINGS = 10_000;
/** Repository, ref and actor: what forges allow, with room to spare. */
const MAX_ORIGIN_BYTES = 1000;
const TRUST = ['local', 'trusted', 'untrusted'] as const;

/** Throws HOST_PROTOCOL naming the field. */
export function parseJobRequest(value: unknown): JobRequest {
  const request = object(value, 'request');
  const steps = list(request['steps'], 'steps', MAX_STEPS).map((step, index) =>
    parseStep(step, `steps[${index}]`),
  );
  return {
    name: text(request['name'], 'name', 300),
    image: digest(request['image'], 'image'),
    cpus: integer(request['cpus'], 'cpus', 1, 1024),
    memoryMib: integer(request['memoryMib'], 'memoryMib', 128, 64 * 1024 * 1024),
    diskMib: integer(request['diskMib'], 'diskMib', 64, 64 * 1024 * 1024),
    env: variables(request['env'], 'env'),
    steps,
    timeoutMs: integer(request['timeoutMs'], 'timeoutMs', 1, 2 ** 31 - 1),
    artifacts: list(request['artifacts'], 'artifacts', 1000).map((glob, i) =>
      text(glob, `artifacts[${i}]`, 4095),
    ),
    sendsTree: boolean(request['sendsTree'], 'sendsTree'),
    ...(request['shellOnFailure'] === undefined
      ? {}
      : { shellOnFailure: boolean(request['shellOnFailure'], 'shellOnFailure') }),
    ...(request['network'] === undefined ? {} : { network: parseNetwork(request['network']) }),
    ...(request['exec'] === undefined
      ? {}
      : {
          exec: oneOf(
            request['exec'],
            'exec',
            CODE_POLICY_MODES.filter((mode) => mode !== 'off'),
          ),
        }),
    ...(request['origin'] === undefined ? {} : { origin: parseOrigin(request['origin']) }),
    ...(request['verify'] === undefined ? {} : { verify: parseVerify(request['verify']) }),
  };
}

function parseVerify(value: unknown): VerifyRequest {
  const { commit, scripts, dependencies } = object(value, 'verify');
  const paths = (given: unknown, at: string, max: number): string[] =>
    list(given, at, max).map((path, i) => text(path, `${at}[${i}]`, MAX_PATH_BYTES));
  const result: { -readonly [K in keyof VerifyRequest]: VerifyRequest[K] } = {};
  if (commit !== undefined) result.commit = boolean(commit, 'verify.commit');
  if (scripts !== undefined) result.scripts = paths(scripts, 'verify.scripts', MAX_MANIFESTS);
  if (dependencies !== undefined) {
    const { level, locks } = object(dependencies, 'verify.dependencies');
    result.dependencies = {
      level: oneOf(level, 'verify.dependencies.level', DEPENDENCY_LEVELS),
      ...(locks === undefined ? {} : { locks: paths(locks, 'verify.dependencies.locks', MAX_LOCKS) }),
    };
  }
  return result;
}

/** Bounds only: whether an entry is a preset or a destination is for whoever lowers it (src/policy/destination.ts). */
function parseNetwork(value: unknown): NetworkRequest {
  const { allow, mode } = object(value, 'network');
  return {
    allow: list(allow, 'network.allow', MAX_NETWORK_ENTRIES).map((entry, i) =>
      text(entry, `network.allow[${i}]`, MAX_NETWORK_ENTRY_BYTES),
    ),
    ...(mode === undefined ? {} : { mode: oneOf(mode, 'network.mode', NETWORK_MODES) }),
  };
}

/** A client can claim anything of itself; what that is worth, policy decides by `trust`. */
function parseOrigin(value: unknown): JobOrigin {
  const origin = object(value, 'origin');
  const { commit, trust } = origin;
  if (commit !== undefined && !/^[0-9a-f]{40,64}$/.test(text(commit, 'origin.commit', 64))) {
    return bad('origin.commit');
  }
  const claims: Partial<Record<'repository' | 'ref' | 'actor' | 'commit', string>> = {};
  for (const key of ['repository', 'ref', 'commit', 'actor'] as const) {
    if (origin[key] !== undefined) claims[key] = text(origin[key], `origin.${key}`, MAX_ORIGIN_BYTES);
  }
  return { trust: oneOf(trust, 'origin.trust', TRUST), ...claims };
}

function parseStep(value: unknown, at: string): StepRequest {
  const step = object(value, at);
  const condition = text(step['condition'], `${at}.condition`, 16);
  if (condition !== 'success' && condition !== 'failure' && condition !== 'always')
    return bad(`${at}.condition`);
  const argv = list(step['argv'], `${at}.argv`, MAX_STRINGS).map((arg, i) =>
    text(arg, `${at}.argv[${i}]`, MAX_ARGUMENT_BYTES),
  );
  if (argv.length === 0) return bad(`${at}.argv`);
  return {
    name: text(step['name'], `${at}.name`, 1000),
    argv,
    env: variables(step['env'], `${at}.env`),
    workingDirectory: text(step['workingDirectory'], `${at}.workingDirectory`, 4095),
    condition,
    ...(step['script'] === undefined
      ? {}
      : { script: text(step['script'], `${at}.script`, MAX_SCRIPT_BYTES) }),
    ...(step['timeoutMs'] === undefined
      ? {}
      : { timeoutMs: integer(step['timeoutMs'], `${at}.timeoutMs`, 1, 2 ** 31 - 1) }),
    ...(step['stdin'] === undefined ? {} : { stdin: boolean(step['stdin'], `${at}.stdin`) }),
    ...(step['network'] === undefined ? {} : { network: oneOf(step['network'], `${at}.network`, ['none']) }),
    ...(step['packages'] === undefined
      ? {}
      : { packages: parsePackages(step['packages'], `${at}.packages`) }),
    ...(step['secrets'] === undefined
      ? {}
      : {
          secrets: list(step['secrets'], `${at}.secrets`, MAX_JOB_SECRETS).map((secret, i) =>
            parseStepSecret(secret, `${at}.secrets[${i}]`),
          ),
        }),
  };
}

function parsePackages(value: unknown, at: string): NonNullable<StepRequest['packages']> {
  const { manager, role } = object(value, at);
  return {
    manager: oneOf(manager, `${at}.manager`, PACKAGE_MANAGERS),
    role: oneOf(role, `${at}.role`, ['fetch', 'verify']),
  };
}

function parseStepSecret(value: unknown, at: string): StepSecret {
  const { name, env } = object(value, at);
  return {
    name: secretName(name, `${at}.name`),
    ...(env === undefined ? {} : { env: secretName(env, `${at}.env`) }),
  };
}

function secretName(value: unknown, at: string): string {
  const name = text(value, at, MAX_SECRET_NAME_BYTES);
  return isSecretName(name) ? name : bad(at);
}

function bad(at: string): never {
  throw new CtError('HOST_PROTOCOL', `the job request has an unusable \`${at}\``);
}

function object(value: unknown, at: string): Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : bad(at);
}

function list(value: unknown, at: string, max: number): unknown[] {
  return Array.isArray(value) && value.length <= max ? value : bad(at);
}

/** No NUL: it would end a string early on its way to execve. */
function text(value: unknown, at: string, maxBytes: number): string {
  return typeof value === 'string' && Buffer.byteLength(value) <= maxBytes && !value.includes('\0')
    ? value
    : bad(at);
}

function integer(value: unknown, at: string, min: number, max: number): number {
  return Number.isInteger(value) && (value as number) >= min && (value as number) <= max
    ? (value as number)
    : bad(at);
}

function oneOf<const T extends string>(value: unknown, at: string, choices: readonly T[]): T {
  return choices.includes(value as T) ? (value as T) : bad(at);
}

function boolean(value: unknown, at: string): boolean {
  return typeof value === 'boolean' ? value : bad(at);
}

function digest(value: unknown, at: string): string {
  return typeof value === 'string' && /^sha256:[0-9a-f]{64}$/.test(value) ? value : bad(at);
}

function variables(value: unknown, at: string): Record<string, string> {
  const entries = Object.entries(object(value, at));
  if (entries.length > MAX_STRINGS) return bad(at);
  const result: Record<string, string> = Object.create(null);
  for (const [name, content] of entries) {
    if (name === '' || name.includes('=') || name.includes('\0')) return bad(`${at}.${name}`);
    result[name] = text(content, `${at}.${name}`, MAX_ARGUMENT_BYTES - Buffer.byteLength(name) - 1);
  }
  return result;
}
