/** Where the values of secrets come from: resolved in the CLI, as the user, when the jobs are about to run. */
import { isUtf8 } from 'node:buffer';
import { open } from 'node:fs/promises';
import { CtError, messageOf } from '../core/errors.ts';
import { runProgram } from '../core/run-program.ts';
import { type Problem, problemsError, type SourceSpan } from '../core/source-text.ts';
import { type Plan, type PlannedJob, secretNames } from '../job/plan.ts';
import { SecretValues, withoutFinalNewline } from '../job/secret-values.ts';
import { MAX_SECRET_BYTES } from '../protocol/limits.ts';
import type { SecretOptions } from './run-options.ts';
import { parseSecretsFile } from './secrets-file.ts';
import { readUserConfig, userConfigPath } from './user-config.ts';

/** Somebody may have to type a passphrase or touch a key. */
const COMMAND_TIMEOUT_MS = 60_000;
/** Of a file with several secrets. */
const MAX_FILE_BYTES = 1024 * 1024;

type Environment = Readonly<Record<string, string | undefined>>;

/** A command that ends the life of a value. */
interface Revocation {
  readonly name: string;
  readonly command: readonly string[];
}

/** Every secret once, however many jobs name it; a job is sent only those that it names. */
export class ResolvedSecrets implements Disposable {
  readonly #values: Map<string, Buffer>;
  readonly #env: Environment;
  #revocations: Revocation[] = [];

  constructor(values: Map<string, Buffer>, env: Environment = {}) {
    this.#values = values;
    this.#env = env;
  }

  /** A value that was made for this run: {@link revoke} ends it with `command`. */
  addBrokered(name: string, value: Buffer, command: readonly string[]): void {
    this.#values.set(name, value);
    this.#revocations.push({ name, command });
  }

  /**
   * Ends the life of the values that were made for this run, once. Returns a sentence for each that may live on. Legal before
   * disposal.
   */
  async revoke(): Promise<readonly string[]> {
    const revocations = this.#revocations;
    this.#revocations = [];
    const failures = await Promise.all(
      revocations.map(async ({ name, command }) => {
        try {
          const input = withoutFinalNewline(this.#values.get(name) as Buffer);
          await runCommand(name, command, this.#env, input);
          return undefined;
        } catch (error) {
          return `the secret \`${name}\` was not revoked and may still be valid: ${messageOf(error)}`;
        }
      }),
    );
    return failures.filter((failure) => failure !== undefined);
  }

  /** Copies, which the receiver wipes; undefined if the job names none. Throws SECRET_UNUSABLE. */
  for(job: PlannedJob): SecretValues | undefined {
    const names = secretNames(job);
    if (names.length === 0) return undefined;
    const values = new SecretValues();
    for (const name of names) {
      const value = this.#values.get(name);
      if (value === undefined) throw new CtError('INTERNAL', `the secret \`${name}\` was not resolved`);
      const copy = Buffer.alloc(value.length);
      value.copy(copy);
      values.add(name, copy);
    }
    return values;
  }

  [Symbol.dispose](): void {
    for (const value of this.#values.values()) value.fill(0);
  }
}

/**
 * Finds a value for every secret that the plan names: from the command line first, then from the user's
 * configuration. Throws USAGE, SECRET_MISSING (with the place in the job file and the ways to give one),
 * SECRET_SOURCE_FAILED, SECRET_UNUSABLE or CONFIG_INVALID before any job has started.
 */
export async function resolveSecrets(
  plan: Plan,
  options: SecretOptions,
  env: Environment,
): Promise<ResolvedSecrets> {
  const wanted = new Set(plan.jobs.flatMap((job) => secretNames(job)));
  requireUse(options, wanted);
  const values = new Map<string, Buffer>();
  const resolved = new ResolvedSecrets(values, env);
  if (wanted.size === 0) return resolved;
  try {
    await resolveEach(wanted, plan, options, env, values, resolved);
    return resolved;
  } catch (error) {
    // Nobody will have them.
    await resolved.revoke();
    resolved[Symbol.dispose]();
    throw error;
  }
}

async function resolveEach(
  wanted: ReadonlySet<string>,
  plan: Plan,
  options: SecretOptions,
  env: Environment,
  values: Map<string, Buffer>,
  resolved: ResolvedSecrets,
): Promise<void> {
  const several = await readSeveral(options.from);
  const configPath = userConfigPath(env);
  const commands = readUserConfig(configPath).secrets ?? {};
  const missing = new Set<string>();
  for (const name of wanted) {
    const path = options.files[name];
    const variable = options.names.includes(name) ? env[name] : undefined;
    const source = Object.hasOwn(commands, name) ? commands[name] : undefined;
    if (path !== undefined) values.set(name, await readSecret(name, path));
    else if (several.has(name)) values.set(name, Buffer.from(several.get(name) as string));
    else if (variable !== undefined) values.set(name, Buffer.from(variable));
    else if (source !== undefined) {
      const value = await runCommand(name, source.command, env);
      if (source.revoke === undefined) values.set(name, value);
      else resolved.addBrokered(name, value, source.revoke);
    } else missing.add(name);
  }
  if (missing.size > 0) throw missingError(plan, missing, options, configPath);
  for (const job of plan.jobs) resolved.for(job)?.[Symbol.dispose](); // are they usable?
}

/** What somebody takes the trouble to name on the command line, a job should get. */
function requireUse(options: SecretOptions, wanted: ReadonlySet<string>): void {
  const unused = [...options.names, ...Object.keys(options.files)].find((name) => !wanted.has(name));
  if (unused === undefined) return;
  const names = wanted.size === 0 ? 'they name none' : `they name ${[...wanted].join(', ')}`;
  throw new CtError('USAGE', `no job of this run names the secret \`${unused}\`; ${names}`, {
    hint: `a job gets the secrets of its \`secrets\` list: write \`secrets: [${unused}]\` there`,
  });
}

function missingError(
  plan: Plan,
  missing: ReadonlySet<string>,
  options: SecretOptions,
  configPath: string,
): CtError {
  const problems: Problem[] = [];
  const seen = new Set<SourceSpan>();
  for (const job of plan.jobs) {
    for (const name of secretNames(job).filter((candidate) => missing.has(candidate))) {
      const message = options.names.includes(name)
        ? `-s ${name}: this environment has no variable ${name}`
        : `job \`${job.name}\` names the secret \`${name}\`, and nothing supplies it`;
      const hint = `-s ${name} takes it from that variable of this environment, --secret-file ${name}=PATH from a file, --secrets-from FILE from a file of several; or let a command print it: ${configPath} (docs/secrets.md)`;
      const span = job.spans?.secrets?.get(name);
      if (span === undefined) return new CtError('SECRET_MISSING', message, { hint });
      // All combinations of a matrix have it from one place.
      if (!seen.has(span)) problems.push({ code: 'SECRET_MISSING', span, message, hint });
      seen.add(span);
    }
  }
  return problemsError(problems, 'SECRET_MISSING');
}

async function readSeveral(paths: readonly string[]): Promise<ReadonlyMap<string, string>> {
  const values = new Map<string, string>();
  for (const path of paths) {
    const bytes = await readBounded(path, MAX_FILE_BYTES);
    if (!isUtf8(bytes)) throw new CtError('SECRET_SOURCE_FAILED', `${path} is not UTF-8 text`);
    for (const [name, value] of parseSecretsFile(bytes.toString('utf8'), path)) {
      if (values.has(name)) {
        throw new CtError(
          'SECRET_SOURCE_FAILED',
          `${path} gives \`${name}\`, which another file gives as well`,
        );
      }
      values.set(name, value);
    }
    bytes.fill(0);
  }
  return values;
}

async function readSecret(name: string, path: string): Promise<Buffer> {
  try {
    return await readBounded(path, MAX_SECRET_BYTES);
  } catch (error) {
    throw new CtError('SECRET_SOURCE_FAILED', `the secret \`${name}\`: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

/** Also from a pipe, such as `<(pass show x)` of a shell. Throws SECRET_SOURCE_FAILED. */
async function readBounded(path: string, maxBytes: number): Promise<Buffer> {
  try {
    await using file = await open(path, 'r');
    const buffer = Buffer.alloc(maxBytes + 1);
    let length = 0;
    for (;;) {
      const { bytesRead } = await file.read(buffer, length, buffer.length - length, null);
      length += bytesRead;
      if (length > maxBytes) {
        buffer.fill(0);
        throw new CtError('SECRET_SOURCE_FAILED', `${path} is longer than ${maxBytes} bytes`);
      }
      if (bytesRead === 0) return buffer.subarray(0, length);
    }
  } catch (error) {
    if (error instanceof CtError) throw error;
    throw new CtError('SECRET_SOURCE_FAILED', `${path} cannot be read: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

async function runCommand(
  name: string,
  command: readonly string[],
  env: Environment,
  input?: Buffer,
): Promise<Buffer> {
  const [file = '', ...args] = command;
  const timeout = AbortSignal.timeout(COMMAND_TIMEOUT_MS);
  try {
    return await runProgram({
      file,
      args,
      // The user's own command, run as if the user had typed it: agents and terminals are found by variables.
      env: Object.fromEntries(
        Object.entries(env).filter((entry): entry is [string, string] => entry[1] !== undefined),
      ),
      ...(input === undefined ? {} : { input }),
      maxOutputBytes: MAX_SECRET_BYTES,
      signal: timeout,
      failureCode: 'SECRET_SOURCE_FAILED',
    });
  } catch (error) {
    const why = timeout.aborted
      ? `${file} did not end within ${COMMAND_TIMEOUT_MS / 1000} s`
      : messageOf(error);
    throw new CtError('SECRET_SOURCE_FAILED', `the command for the secret \`${name}\`: ${why}`, {
      hint: `it is that of your configuration; try it in a terminal: ${command.join(' ')}`,
      cause: error,
    });
  }
}
