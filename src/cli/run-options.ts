/** The options of `ct run`, checked. Pure. */
import { resolve } from 'node:path';
import { CtError } from '../core/errors.ts';
import { wrongDestination } from '../job/network.ts';
import type { PlanOptions } from '../job/planned-job.ts';
import { parseSizeMib } from '../job/quantity.ts';
import { MAX_NETWORK_ENTRIES, MAX_NETWORK_ENTRY_BYTES } from '../protocol/network.ts';
import { isSecretName } from '../protocol/secret-record.ts';
import type { ParsedOptions } from './command.ts';

export type ProgressMode = 'plain' | 'tty' | 'rawjson';

export interface RunOptions {
  readonly targets: readonly string[];
  /** The `--` form. */
  readonly command: readonly string[] | undefined;
  readonly directory: string;
  readonly overrides: {
    readonly image?: string;
    readonly cpus?: number;
    readonly memoryMib?: number;
    readonly env: Readonly<Record<string, string>>;
    readonly network?: 'none' | readonly string[];
    readonly exec?: NonNullable<PlanOptions['exec']>;
  };
  readonly secrets: SecretOptions;
  readonly respectIgnore: boolean;
  /** Absolute; undefined for `.ct/out` of the project. */
  readonly artifacts: string | undefined;
  readonly action: 'run' | 'list' | 'dryrun';
  readonly progress: ProgressMode;
  readonly json: boolean;
  readonly shellOnFailure: boolean;
  /** Only images whose locks can be met will do. */
  readonly locked: boolean;
}

/** Where secrets come from; never their values. */
export interface SecretOptions {
  /** From variables of this environment. */
  readonly names: readonly string[];
  /** Absolute path per name. */
  readonly files: Readonly<Record<string, string>>;
  /** Files of several. */
  readonly from: readonly string[];
}

export interface RunEnvironment {
  readonly cwd: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly stderrIsTty: boolean;
  /** Somebody can type into a shell and see what it says. */
  readonly isInteractive: boolean;
}

/** Throws USAGE. */
export function readRunOptions(parsed: ParsedOptions, around: RunEnvironment): RunOptions {
  const command = parsed.passthrough;
  if (command) {
    const [job] = parsed.positionals;
    if (command.length === 0) throw usage('there is no command after --', 'write: ct run -- CMD ARGS…');
    if (job !== undefined) {
      throw usage(
        `a job (\`${job}\`) and a command after -- exclude each other`,
        'run the job alone, or the command alone',
      );
    }
  }
  const [list, dryrun, json] = [parsed.has('list'), parsed.has('dryrun'), parsed.has('json')];
  if (list && command)
    throw usage('--list shows the jobs of ct.yml and takes no command', 'leave out what follows --');
  if (list && dryrun) throw usage('--list and --dryrun exclude each other', 'choose one');
  const mode = parsed.value('progress') ?? 'auto';
  if (json && mode === 'rawjson') {
    throw usage(
      '--json and --progress=rawjson both want stdout',
      'choose one; the last line of rawjson holds the document',
    );
  }
  const shellOnFailure = parsed.has('shell-on-failure');
  if (shellOnFailure && !around.isInteractive) {
    throw usage(
      '--shell-on-failure needs a terminal, and stdin or stdout is none',
      'leave it out in scripts; from a terminal, `ct shell RUN` opens a shell while the job runs',
    );
  }
  const artifacts = parsed.value('artifacts');
  const image = parsed.value('image');
  const cpus = readCpus(parsed.value('cpu'));
  const memoryMib = readMemory(parsed.value('memory'));
  const network = readNetwork(parsed.values('network'));
  const exec = parsed.value('exec') as PlanOptions['exec'];
  return {
    targets: parsed.positionals,
    command,
    directory: resolve(around.cwd, parsed.value('directory') ?? '.'),
    overrides: {
      ...(image === undefined ? {} : { image }),
      ...(cpus === undefined ? {} : { cpus }),
      ...(memoryMib === undefined ? {} : { memoryMib }),
      ...(network === undefined ? {} : { network }),
      ...(exec === undefined ? {} : { exec }),
      env: readEnv(parsed.values('env'), around.env),
    },
    secrets: readSecrets(parsed, around.cwd),
    respectIgnore: !parsed.has('no-ignore'),
    artifacts: artifacts === undefined ? undefined : resolve(around.cwd, artifacts),
    action: list ? 'list' : dryrun ? 'dryrun' : 'run',
    progress: mode === 'auto' ? autoMode(around) : (mode as ProgressMode),
    json,
    shellOnFailure,
    locked: parsed.has('locked'),
  };
}

function autoMode({ stderrIsTty, env }: RunEnvironment): ProgressMode {
  return stderrIsTty && env['TERM'] !== 'dumb' && env['CI'] !== 'true' ? 'tty' : 'plain';
}

function readCpus(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const cpus = /^[0-9]{1,3}$/.test(text) ? Number(text) : 0;
  if (cpus < 1 || cpus > 256)
    throw usage(`--cpu cannot be \`${text}\``, 'a whole number of virtual CPUs, at least 1');
  return cpus;
}

function readMemory(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const mib = parseSizeMib(text);
  if (mib === undefined || mib < 128) {
    throw usage(`--memory cannot be \`${text}\``, 'a size such as 512M or 2G, at least 128M');
  }
  return mib;
}

/** Entries of one or several options; `none` stands alone. */
function readNetwork(options: readonly string[]): 'none' | readonly string[] | undefined {
  if (options.length === 0) return undefined;
  const entries = options.flatMap((option) => option.split(',')).map((entry) => entry.trim());
  if (entries.includes('none')) {
    if (entries.length === 1) return 'none';
    throw usage('--network none and other destinations exclude each other', 'choose one');
  }
  if (entries.length > MAX_NETWORK_ENTRIES) {
    throw usage(`--network names more than ${MAX_NETWORK_ENTRIES} destinations`, 'name fewer');
  }
  for (const entry of entries) {
    if (Buffer.byteLength(entry) > MAX_NETWORK_ENTRY_BYTES) {
      throw usage(
        `--network: an entry is longer than ${MAX_NETWORK_ENTRY_BYTES} bytes`,
        'name hosts, not URLs',
      );
    }
    const problem = wrongDestination(entry);
    if (problem !== undefined)
      throw usage(`--network: ${problem.wrong}`, problem.hint ?? 'see docs/network.md');
  }
  return entries;
}

function readEnv(
  settings: readonly string[],
  environment: Readonly<Record<string, string | undefined>>,
): Record<string, string> {
  const env: Record<string, string> = {};
  for (const setting of settings) {
    const at = setting.indexOf('=');
    const name = at < 0 ? setting : setting.slice(0, at);
    const value = at < 0 ? environment[name] : setting.slice(at + 1);
    if (name === '') throw usage(`-e \`${setting}\` names no variable`, 'write -e NAME=VALUE');
    if (value === undefined) {
      throw usage(`-e ${name}: this environment has no variable ${name}`, `write -e ${name}=VALUE`);
    }
    env[name] = value;
  }
  return env;
}

function readSecrets(parsed: ParsedOptions, cwd: string): SecretOptions {
  const names = parsed.values('secret').map((setting) => {
    const [name = ''] = setting.split('=', 1);
    // Neither here nor anywhere else is the value shown.
    if (name !== setting) {
      throw usage(
        `-s ${name}=… would show the value to everybody who lists processes, and keep it in the history of the shell`,
        `export ${name} and write -s ${name}, or write --secret-file ${name}=PATH`,
      );
    }
    return checkedSecretName(name, '-s');
  });
  const files: Record<string, string> = {};
  for (const setting of parsed.values('secret-file')) {
    const at = setting.indexOf('=');
    if (at < 0 || at === setting.length - 1) {
      throw usage(`--secret-file \`${setting}\` is not NAME=PATH`, 'write --secret-file NAME=PATH');
    }
    files[checkedSecretName(setting.slice(0, at), '--secret-file')] = resolve(cwd, setting.slice(at + 1));
  }
  return {
    names: [...new Set(names)],
    files,
    from: parsed.values('secrets-from').map((path) => resolve(cwd, path)),
  };
}

function checkedSecretName(name: string, option: string): string {
  if (isSecretName(name)) return name;
  throw usage(
    `${option}: \`${name}\` is not the name of a secret`,
    'letters, digits and `_`, first no digit; names that begin with `CT_` are reserved',
  );
}

function usage(message: string, hint: string): CtError {
  return new CtError('USAGE', message, { hint });
}
