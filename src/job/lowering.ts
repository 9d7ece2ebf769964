/** From one combination of one job to what is sent to a host: expressions evaluated, defaults applied. */
import type { Problem, SourceSpan } from '../core/source-text.ts';
import { MAX_JSON_BYTES, MAX_SCRIPT_BYTES } from '../protocol/limits.ts';
import type { StepRequest, StepSecret } from '../protocol/run.ts';
import {
  DEFAULT_CPUS,
  DEFAULT_DISK_MIB,
  DEFAULT_IMAGE,
  DEFAULT_JOB_TIMEOUT_MS,
  DEFAULT_MEMORY_MIB,
  DEFAULT_SHELL,
  type EnvSpec,
  type ResourcesSpec,
  resourceSchemas,
  type SecretsSpec,
  type StepSpec,
} from './definition.ts';
import { evaluate, type Scope, type Template } from './expression.ts';
import type { LoadedJob, LoadedJobs } from './load.ts';
import type { Combination } from './matrix.ts';
import { directoryName, jobName, shortName } from './names.ts';
import { networkRequest, overridden } from './network.ts';
import { withVerification } from './packages.ts';
import type { PlannedJob, PlannedSpans, PlanOptions } from './planned-job.ts';
import type { ScalarSchema } from './schema/schema.ts';
import { verifyRequest } from './verify.ts';

/** Evaluates one combination of one job. */
export class Lowering {
  readonly #job: LoadedJob;
  readonly #loaded: LoadedJobs;
  readonly #options: PlanOptions & { readonly env: Readonly<Record<string, string>> };
  readonly #report: (problem: Problem) => void;
  readonly #name: string;
  readonly #matrix: Pick<Scope, 'matrix' | 'absentMatrix'>;
  readonly #secretSpans = new Map<string, SourceSpan>();
  /** Characters of all values so far; the whole request has to fit one message. */
  #size = 0;

  constructor(
    job: LoadedJob,
    combination: Combination,
    loaded: LoadedJobs,
    options: PlanOptions & { readonly env: Readonly<Record<string, string>> },
    report: (problem: Problem) => void,
  ) {
    this.#job = job;
    this.#loaded = loaded;
    this.#options = options;
    this.#report = report;
    this.#name = jobName(job.id, combination);
    const names = (job.spec.matrix?.include ?? []).flatMap((entry) => Object.keys(entry));
    this.#matrix = { matrix: combination, absentMatrix: new Set(names) };
  }

  /** Undefined after reporting. */
  lower(needs: readonly string[]): PlannedJob | undefined {
    const { spec, defaults, span } = this.#job;
    const { locations } = this.#loaded;
    // A level sees the levels before it, and the command line over all of them.
    const outer = this.#env(defaults.env, this.#options.env);
    const env = {
      ...outer,
      ...this.#env(spec.env, { ...outer, ...this.#options.env }),
      ...this.#options.env,
    };
    const scope: Scope = { ...this.#matrix, env };

    const imageTemplate = spec.image ?? defaults.image;
    const image = this.#options.image ?? (imageTemplate && this.#text(imageTemplate, scope)) ?? DEFAULT_IMAGE;
    const resources = this.#resources(scope);
    const steps = spec.steps.flatMap((step) => this.#steps(step, scope));
    const artifacts = (spec.artifacts?.paths ?? []).map((path) => this.#artifactPath(path, scope));
    const timeoutMs = spec.timeout ?? defaults.timeout ?? DEFAULT_JOB_TIMEOUT_MS;
    const valid = resources !== undefined && steps.every(isDefined) && artifacts.every(isDefined);
    if (!valid) return undefined;

    const network = overridden(networkRequest(spec.network ?? this.#job.network), this.#options.network);
    const networkSpan = this.#networkSpan();
    const exec = this.#options.exec ?? spec.exec;
    const verify = verifyRequest(spec.verify ?? this.#job.verify);
    const owner = spec.image === undefined ? defaults : spec;
    const planned: PlannedJob = {
      name: this.#name,
      id: this.#job.id,
      needs,
      image,
      ...resources.values,
      env,
      steps,
      timeoutMs,
      ...(network === undefined ? {} : { network }),
      ...(exec === undefined ? {} : { exec }),
      ...(verify === undefined ? {} : { verify }),
      artifacts,
      ...(spec.artifacts?.expire === undefined ? {} : { artifactsExpireMs: spec.artifacts.expire }),
      directory: directoryName(this.#job.id, this.#matrix.matrix),
      spans: {
        job: span,
        ...(imageTemplate === undefined ? {} : { image: locations.of(owner, 'image') }),
        ...resources.spans,
        ...(networkSpan === undefined ? {} : { network: networkSpan }),
        ...(this.#secretSpans.size === 0 ? {} : { secrets: this.#secretSpans }),
      },
    };
    const requestBytes = Buffer.byteLength(
      JSON.stringify(planned, (key, value) => (key === 'spans' ? undefined : value)),
    );
    if (requestBytes > MAX_JSON_BYTES - 4096) return this.#tooLarge(span);
    return planned;
  }

  /** Absent if the command line decides. */
  #networkSpan(): SourceSpan | undefined {
    const { spec, network } = this.#job;
    if (this.#options.network !== undefined) return undefined;
    if (spec.network !== undefined) return this.#loaded.locations.of(spec, 'network');
    return typeof network === 'object' ? this.#loaded.locations.of(network) : undefined;
  }

  #text(template: Template, scope: Scope): string | undefined {
    const value = evaluate(template, scope, MAX_SCRIPT_BYTES, this.#report);
    this.#size += value?.length ?? 0;
    if (this.#size > MAX_JSON_BYTES) return this.#tooLarge(template.span);
    return value;
  }

  #tooLarge(span: SourceSpan): undefined {
    this.#report({
      code: 'JOB_FILE_INVALID',
      span,
      message: `with its values inserted, job \`${this.#name}\` is larger than ${MAX_JSON_BYTES} bytes`,
      hint: 'keep long scripts and data in files of the repository',
    });
  }

  #env(spec: EnvSpec | undefined, visible: Readonly<Record<string, string>>): Record<string, string> {
    const values: Record<string, string> = {};
    for (const [name, template] of Object.entries(spec ?? {})) {
      const value = this.#text(template, { ...this.#matrix, env: visible });
      if (value !== undefined) values[name] = value;
    }
    return values;
  }

  #resources(
    scope: Scope,
  ):
    | { values: Pick<PlannedJob, 'cpus' | 'memoryMib' | 'diskMib'>; spans: Partial<PlannedSpans> }
    | undefined {
    const cpus = this.#resource('cpu', resourceSchemas.cpu, this.#options.cpus, DEFAULT_CPUS, scope);
    const memory = this.#resource(
      'memory',
      resourceSchemas.memory,
      this.#options.memoryMib,
      DEFAULT_MEMORY_MIB,
      scope,
    );
    const disk = this.#resource('disk', resourceSchemas.disk, this.#options.diskMib, DEFAULT_DISK_MIB, scope);
    if (cpus === undefined || memory === undefined || disk === undefined) return undefined;
    return {
      values: { cpus: cpus.value, memoryMib: memory.value, diskMib: disk.value },
      spans: { ...cpus.span, ...memory.span, ...disk.span },
    };
  }

  #resource(
    key: 'cpu' | 'memory' | 'disk',
    schema: ScalarSchema<number>,
    override: number | undefined,
    fallback: number,
    scope: Scope,
  ): { value: number; span: Partial<PlannedSpans> } | undefined {
    if (override !== undefined) return { value: override, span: {} };
    const { spec, defaults } = this.#job;
    for (const resources of [spec.resources, defaults.resources] as (ResourcesSpec | undefined)[]) {
      const given = resources?.[key];
      if (resources === undefined || given === undefined) continue;
      const span = { [key]: this.#loaded.locations.of(resources, key) };
      if (typeof given === 'number') return { value: given, span };
      const text = this.#text(given, scope);
      if (text === undefined) return undefined;
      const result = schema.read(text);
      if ('value' in result) return { value: result.value, span };
      this.#report({ code: 'JOB_FILE_INVALID', span: given.span, message: result.wrong, hint: result.hint });
      return undefined;
    }
    return { value: fallback, span: {} };
  }

  /** One, or two if packages are to be checked. */
  #steps(step: StepSpec, scope: Scope): (StepRequest | undefined)[] {
    const lowered = this.#step(step, scope);
    const { packages } = step;
    if (packages === undefined || lowered === undefined) return [lowered];
    for (const key of ['network', 'if'] as const) {
      if (step[key] === undefined) continue;
      this.#report({
        code: 'JOB_FILE_INVALID',
        span: this.#loaded.locations.of(step, key),
        message: `a step with \`packages\` cannot have \`${key}\``,
        hint: 'it fetches what the step after it checks: it has the network of the job, and runs if all earlier steps succeeded',
      });
      return [undefined];
    }
    return withVerification(packages, lowered);
  }

  #step(step: StepSpec, scope: Scope): StepRequest | undefined {
    const { defaults } = this.#job;
    const own = this.#env(step.env, scope.env);
    const stepScope: Scope = { ...scope, env: { ...scope.env, ...own, ...this.#options.env } };
    const script = this.#text(step.run, stepScope);
    const name = step.name === undefined ? undefined : this.#text(step.name, stepScope);
    const workingDirectory = this.#workingDirectory(
      step.workingDirectory ?? defaults.workingDirectory,
      stepScope,
    );
    if (script === undefined || workingDirectory === undefined) return undefined;
    if (Buffer.byteLength(script) > MAX_SCRIPT_BYTES) {
      this.#report({
        code: 'JOB_FILE_INVALID',
        span: step.run.span,
        message: `the script is longer than ${MAX_SCRIPT_BYTES} bytes`,
        hint: 'keep it in a file of the repository and call that',
      });
      return undefined;
    }
    const secrets = this.#secrets(step, stepScope.env);
    if (secrets === undefined) return undefined;
    // The command line wins over the step, too.
    const env = Object.fromEntries(
      Object.entries(own).map(([key, value]) => [key, this.#options.env[key] ?? value]),
    );
    return {
      name: shortName(name ?? script),
      argv: shellCommand(step.shell ?? defaults.shell ?? DEFAULT_SHELL),
      script: script.endsWith('\n') ? script : `${script}\n`,
      env,
      workingDirectory,
      condition: CONDITIONS[step.if ?? 'success()'],
      ...(step.timeout === undefined ? {} : { timeoutMs: step.timeout }),
      ...(step.network === undefined ? {} : { network: step.network }),
      ...(secrets.length === 0 ? {} : { secrets }),
    };
  }

  /** What the step says of a secret counts more than what the job says. */
  #secrets(step: StepSpec, env: Readonly<Record<string, string>>): readonly StepSecret[] | undefined {
    const given = new Map<string, { readonly secret: StepSecret; readonly span: SourceSpan }>();
    for (const spec of [this.#job.spec.secrets, step.secrets]) {
      for (const entry of spec === undefined ? [] : this.#namedSecrets(spec)) {
        given.set(entry.secret.name, entry);
        if (!this.#secretSpans.has(entry.secret.name)) this.#secretSpans.set(entry.secret.name, entry.span);
      }
    }
    const variables = new Set(Object.keys(env));
    let failed = false;
    for (const { secret, span } of given.values()) {
      if (secret.env === undefined) continue;
      if (variables.has(secret.env)) {
        failed = true;
        this.#report({
          code: 'JOB_FILE_INVALID',
          span,
          message: `the secret \`${secret.name}\` would replace the variable \`${secret.env}\`, which is set already`,
          hint: 'take it out of `env` (or -e), or give the secret another variable: `{NAME: {env: VARIABLE}}`',
        });
      }
      variables.add(secret.env);
    }
    return failed ? undefined : [...given.values()].map(({ secret }) => secret);
  }

  #namedSecrets(spec: SecretsSpec): { readonly secret: StepSecret; readonly span: SourceSpan }[] {
    const { locations } = this.#loaded;
    if (isList(spec)) {
      return spec.map((name, index) => ({ secret: { name, env: name }, span: locations.of(spec, index) }));
    }
    return Object.entries(spec).map(([name, how]) => ({
      secret: how === 'file' ? { name } : { name, env: how === 'env' ? name : how.env },
      span: locations.of(spec, name),
    }));
  }

  #workingDirectory(template: Template | undefined, scope: Scope): string | undefined {
    if (template === undefined) return '.';
    const value = this.#text(template, scope);
    if (value === undefined) return undefined;
    const wrong = wrongRelativePath(value);
    if (wrong === undefined) return value;
    this.#report({
      code: 'JOB_FILE_INVALID',
      span: template.span,
      message: `the working directory \`${value}\` ${wrong}`,
      hint: 'it is relative to the workspace; use `cd` in `run` for a place outside',
    });
    return undefined;
  }

  #artifactPath(template: Template, scope: Scope): string | undefined {
    const value = this.#text(template, scope);
    if (value === undefined) return undefined;
    const wrong = wrongRelativePath(value.replace(/^!/, ''));
    if (wrong === undefined) return value;
    this.#report({
      code: 'JOB_FILE_INVALID',
      span: template.span,
      message: `the artifact path \`${value}\` ${wrong}`,
      hint: 'paths are relative to the workspace; copy what lies elsewhere into it',
    });
    return undefined;
  }
}

const CONDITIONS = { 'success()': 'success', 'failure()': 'failure', 'always()': 'always' } as const;

/** Array.isArray does not narrow readonly arrays. */
function isList(spec: SecretsSpec): spec is readonly string[] {
  return Array.isArray(spec);
}

function isDefined<T>(value: T | undefined): value is T {
  return value !== undefined;
}

function wrongRelativePath(path: string): string | undefined {
  if (path === '') return 'is empty';
  if (path.startsWith('/')) return 'is absolute';
  if (path.startsWith('~')) return 'starts with `~`, which only a shell expands';
  if (path.split('/').includes('..')) return 'climbs with `..`';
  return Buffer.byteLength(path) > 4095 ? 'is too long' : undefined;
}

/** The argument vector of a shell; `{0}` stays in it for the host to fill in. */
function shellCommand(shell: string): readonly string[] {
  switch (shell) {
    case 'bash':
      return ['bash', '--noprofile', '--norc', '-eo', 'pipefail', '{0}'];
    case 'sh':
      return ['sh', '-e', '{0}'];
    case 'python':
      return ['python3', '{0}'];
    default:
      return shell.split(' ').filter((word) => word !== '');
  }
}
