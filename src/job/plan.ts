/** From job files and a target to a graph of jobs that can be sent to a host. */
import { CtError } from '../core/errors.ts';
import { didYouMean } from '../core/suggest.ts';
import {
  formatPosition,
  type Problem,
  printable,
  problemsError,
  type SourceSpan,
} from '../core/yaml-source.ts';
import { MAX_JSON_BYTES, MAX_SCRIPT_BYTES } from '../protocol/limits.ts';
import type { JobRequest, StepRequest } from '../protocol/run.ts';
import {
  DEFAULT_CPUS,
  DEFAULT_DISK_MIB,
  DEFAULT_IMAGE,
  DEFAULT_JOB_TIMEOUT_MS,
  DEFAULT_MEMORY_MIB,
  DEFAULT_SHELL,
  defaultsSchema,
  type EnvSpec,
  isReservedVariable,
  jobSchema,
  MAX_MATRIX_JOBS,
  type ResourcesSpec,
  resourceSchemas,
  type StepSpec,
  VARIABLE_PATTERN,
} from './definition.ts';
import { evaluate, type Scope, type Template } from './expression.ts';
import type { LoadedJob, LoadedJobs } from './load.ts';
import { type Combination, combinationLabel, expandMatrix } from './matrix.ts';
import { formatSizeMib } from './quantity.ts';
import { collectUnsupported, type ScalarSchema } from './schema.ts';

/** Jobs of one plan: matrices multiply, and the plan is held in memory. */
const MAX_PLANNED_JOBS = 2000;

/** Step names are repeated on every line of some logs. */
const MAX_NAME_LENGTH = 100;

/** NAME_MAX of Linux, with room for what is appended while a directory is filled. */
const MAX_DIRECTORY_LENGTH = 120;

/** What the command line says over the job file. */
export interface PlanOptions {
  /** Job ids, or the name of one combination such as `test (node=20)`. Empty: every job. */
  readonly targets: readonly string[];
  /** `-e`: wins over every other variable. Names are checked (USAGE). */
  readonly env?: Readonly<Record<string, string>>;
  readonly image?: string;
  readonly cpus?: number;
  readonly memoryMib?: number;
  readonly diskMib?: number;
}

/** One job of a plan: one VM. */
export interface PlannedJob {
  /** Unique in the plan: `build`, `test (node=20, os=debian)`. */
  readonly name: string;
  /** Key in the job file; absent for a command given on the command line. */
  readonly id?: string;
  /** Names of planned jobs that must succeed first. */
  readonly needs: readonly string[];
  /** Image name, still to be resolved to a digest. */
  readonly image: string;
  readonly cpus: number;
  readonly memoryMib: number;
  readonly diskMib: number;
  /** Over the variables of the image and those the host sets. */
  readonly env: Readonly<Record<string, string>>;
  readonly steps: readonly StepRequest[];
  readonly timeoutMs: number;
  readonly artifacts: readonly string[];
  readonly artifactsExpireMs?: number;
  /** One path component, unique in the plan: artifacts land in `.ct/out/<directory>`. */
  readonly directory: string;
  /** Where things stand in the job file, for messages; absent for a command line. */
  readonly spans?: PlannedSpans;
}

export interface PlannedSpans {
  readonly job: SourceSpan;
  readonly image?: SourceSpan;
  readonly cpu?: SourceSpan;
  readonly memory?: SourceSpan;
  readonly disk?: SourceSpan;
}

export interface Plan {
  /** Each after everything it needs; otherwise in file order. */
  readonly jobs: readonly PlannedJob[];
}

export interface CommandOptions extends Omit<PlanOptions, 'targets'> {
  readonly argv: readonly string[];
  readonly stdin?: boolean;
  readonly timeoutMs?: number;
  readonly artifacts?: readonly string[];
}

/**
 * Plans the targets and everything they need.
 *
 * Throws JOB_NOT_FOUND; JOB_NEEDS_CYCLE with the places that form it; NOT_SUPPORTED_YET for what a planned job
 * asks for and this version cannot do; JOB_EXPRESSION_INVALID and JOB_FILE_INVALID for what shows only when
 * expressions are evaluated; USAGE for a bad variable name. Reports all problems at once.
 */
export function planJobs(loaded: LoadedJobs, options: PlanOptions): Plan {
  const env = checkedCommandEnv(options.env);
  const targets = resolveTargets(loaded, options.targets);
  const order = needsClosure(loaded, targets.keys());

  const problems: Problem[] = [];
  const report = (problem: Problem): void => {
    problems.push(problem);
  };
  for (const job of order) {
    collectUnsupported(defaultsSchema, job.defaults, loaded.locations, report);
    collectUnsupported(jobSchema, job.spec, loaded.locations, report);
  }
  const expansions = new Map(order.map((job) => [job.id, expansionOf(job, loaded, report)]));
  const total = [...expansions.values()].reduce((sum, combinations) => sum + combinations.length, 0);
  if (total > MAX_PLANNED_JOBS) {
    throw new CtError('JOB_FILE_INVALID', `the plan has ${total} jobs; the limit is ${MAX_PLANNED_JOBS}`);
  }
  throwProblems(problems);

  const names = new Map<string, string[]>();
  const jobs: PlannedJob[] = [];
  for (const job of order) {
    const wanted = targets.get(job.id);
    const combinations = (expansions.get(job.id) ?? []).filter(
      (combination) => !(wanted instanceof Set) || wanted.has(jobName(job.id, combination)),
    );
    const needs = [...new Set(job.spec.needs ?? [])].flatMap((id) => names.get(id) ?? []);
    for (const combination of combinations) {
      const planned = new Lowering(job, combination, loaded, { ...options, env }, report).lower(needs);
      if (planned !== undefined) jobs.push(planned);
      // One combination's problems are mostly every combination's.
      if (problems.length > 0) break;
    }
    names.set(
      job.id,
      combinations.map((combination) => jobName(job.id, combination)),
    );
  }
  throwProblems(problems);
  return { jobs };
}

/** The plan of `ct run -- COMMAND`: one job with one step. Throws USAGE. */
export function planCommand(options: CommandOptions): Plan {
  if (options.argv.length === 0) throw new CtError('USAGE', 'there is no command after `--`');
  const name = shortName(options.argv.join(' '));
  return {
    jobs: [
      {
        name,
        needs: [],
        image: options.image ?? DEFAULT_IMAGE,
        cpus: options.cpus ?? DEFAULT_CPUS,
        memoryMib: options.memoryMib ?? DEFAULT_MEMORY_MIB,
        diskMib: options.diskMib ?? DEFAULT_DISK_MIB,
        env: checkedCommandEnv(options.env),
        steps: [
          {
            name,
            argv: options.argv,
            env: {},
            workingDirectory: '.',
            condition: 'success',
            ...(options.stdin === undefined ? {} : { stdin: options.stdin }),
          },
        ],
        timeoutMs: options.timeoutMs ?? DEFAULT_JOB_TIMEOUT_MS,
        artifacts: options.artifacts ?? [],
        directory: 'command',
      },
    ],
  };
}

/** What is sent to the host daemon, once the image's digest is known. */
export function toJobRequest(
  job: PlannedJob,
  resolved: { readonly image: string; readonly sendsTree: boolean },
): JobRequest {
  const { name, cpus, memoryMib, diskMib, env, steps, timeoutMs, artifacts } = job;
  return { name, cpus, memoryMib, diskMib, env, steps, timeoutMs, artifacts, ...resolved };
}

export interface HostCapacity {
  readonly cpus: number;
  readonly memoryMib: number;
}

/** Throws RESOURCES_EXCEED_HOST, naming the line and what the host has, if a job can never run on it. */
export function checkCapacity(plan: Plan, host: HostCapacity): void {
  const problems: Problem[] = [];
  for (const job of plan.jobs) {
    const excess: [SourceSpan | undefined, string][] = [];
    if (job.cpus > host.cpus) {
      excess.push([
        job.spans?.cpu,
        `job \`${job.name}\` asks for ${job.cpus} cpus; this host has ${host.cpus}`,
      ]);
    }
    if (job.memoryMib > host.memoryMib) {
      const asked = formatSizeMib(job.memoryMib);
      const has = `${host.memoryMib}M for jobs`;
      excess.push([
        job.spans?.memory,
        `job \`${job.name}\` asks for ${asked} of memory; this host has ${has}`,
      ]);
    }
    for (const [own, message] of excess) {
      const span = own ?? job.spans?.job;
      const hint = 'ask for less, or run it on a larger host';
      if (span === undefined) throw new CtError('RESOURCES_EXCEED_HOST', message, { hint });
      problems.push({ code: 'RESOURCES_EXCEED_HOST', span, message, hint });
    }
  }
  throwProblems(problems);
}

function throwProblems(problems: readonly Problem[]): void {
  if (problems.length > 0) throw problemsError(problems, 'JOB_FILE_INVALID');
}

function checkedCommandEnv(env: Readonly<Record<string, string>> = {}): Readonly<Record<string, string>> {
  for (const [name, value] of Object.entries(env)) {
    if (!new RegExp(VARIABLE_PATTERN).test(name)) {
      throw new CtError('USAGE', `\`${printable(name)}\` is not a variable name`, {
        hint: 'write -e NAME=VALUE',
      });
    }
    if (isReservedVariable(name)) throw new CtError('USAGE', `\`${name}\` is reserved; ct sets it itself`);
    if (value.includes('\0')) throw new CtError('USAGE', `the value of \`${name}\` has a NUL character`);
  }
  return env;
}

// -------------------------------------------------------------------------------------------- the graph

/** Job ids to `all`, or to the names of the combinations asked for. */
function resolveTargets(loaded: LoadedJobs, targets: readonly string[]): Map<string, 'all' | Set<string>> {
  const resolved = new Map<string, 'all' | Set<string>>();
  for (const target of targets.length === 0 ? loaded.jobs.keys() : targets) {
    if (loaded.jobs.has(target)) {
      resolved.set(target, 'all');
      continue;
    }
    const id = / \(.*\)$/s.test(target) ? target.slice(0, target.indexOf(' (')) : target;
    const matrix = loaded.jobs.get(id)?.spec.matrix;
    const names =
      matrix === undefined
        ? []
        : (expandMatrix(matrix, MAX_MATRIX_JOBS) ?? []).map((combination) => jobName(id, combination));
    if (!names.includes(target)) throw jobNotFound(target, id, names, loaded);
    const earlier = resolved.get(id) ?? new Set<string>();
    if (earlier !== 'all') resolved.set(id, earlier.add(target));
  }
  // A combination asked for by name, of a job that another target needs whole.
  for (const job of needsClosure(loaded, resolved.keys())) {
    for (const need of job.spec.needs ?? []) resolved.set(need, 'all');
  }
  return resolved;
}

function jobNotFound(target: string, id: string, names: readonly string[], loaded: LoadedJobs): CtError {
  const candidates = names.length > 0 ? names : [...loaded.jobs.keys()];
  const what = names.length > 0 ? `combination of \`${id}\`` : 'job';
  const more = candidates.length > 20 ? `, and ${candidates.length - 20} more` : '';
  const list = `there are ${candidates.slice(0, 20).join(', ')}${more}`;
  const meant = didYouMean(target, candidates);
  return new CtError(
    'JOB_NOT_FOUND',
    `there is no ${what} \`${printable(target)}\` in ${loaded.files.join(', ')}`,
    {
      hint: meant === undefined ? list : `${meant} ${list}`,
    },
  );
}

/** The jobs and all they need, each after its needs, otherwise in file order. Throws JOB_NEEDS_CYCLE. */
function needsClosure(loaded: LoadedJobs, ids: Iterable<string>): LoadedJob[] {
  const wanted = new Set<string>();
  const pending = [...ids];
  for (let id = pending.pop(); id !== undefined; id = pending.pop()) {
    if (wanted.has(id)) continue;
    wanted.add(id);
    pending.push(...(loaded.jobs.get(id)?.spec.needs ?? []));
  }
  const order: LoadedJob[] = [];
  const done = new Set<string>();
  const waiting = [...loaded.jobs.values()].filter((job) => wanted.has(job.id));
  while (waiting.length > 0) {
    const next = waiting.findIndex((job) => (job.spec.needs ?? []).every((need) => done.has(need)));
    if (next === -1) throw cycleError(waiting, done, loaded);
    const [job] = waiting.splice(next, 1) as [LoadedJob];
    done.add(job.id);
    order.push(job);
  }
  return order;
}

/** Every job in `waiting` needs another one in it, so following any such need must come round. */
function cycleError(waiting: readonly LoadedJob[], done: ReadonlySet<string>, loaded: LoadedJobs): CtError {
  const path: LoadedJob[] = [];
  let at = waiting[0] as LoadedJob;
  while (!path.includes(at)) {
    path.push(at);
    const need = (at.spec.needs ?? []).find((id) => !done.has(id)) as string;
    at = loaded.jobs.get(need) as LoadedJob;
  }
  const cycle = path.slice(path.indexOf(at));
  const problems = cycle.map((job, index) => {
    const needs = job.spec.needs as readonly string[];
    const next = (cycle[index + 1] ?? cycle[0]) as LoadedJob;
    const span = loaded.locations.of(needs, needs.indexOf(next.id));
    return { span, line: `${formatPosition(span)}: \`${job.id}\` needs \`${next.id}\`` };
  });
  const round = [...cycle, cycle[0] as LoadedJob].map((job) => job.id).join(' → ');
  return new CtError(
    'JOB_NEEDS_CYCLE',
    `jobs need each other in a circle: ${round}\n${problems.map((problem) => `  ${problem.line}`).join('\n')}`,
    { hint: 'take one of these out of `needs`' },
  );
}

function expansionOf(job: LoadedJob, loaded: LoadedJobs, report: (problem: Problem) => void): Combination[] {
  const { matrix } = job.spec;
  if (matrix === undefined) return [{}];
  const combinations = expandMatrix(matrix, MAX_MATRIX_JOBS);
  if (combinations !== undefined && combinations.length > 0) return combinations;
  report({
    code: 'JOB_FILE_INVALID',
    span: loaded.locations.of(job.spec, 'matrix'),
    message:
      combinations === undefined
        ? `the matrix has more than ${MAX_MATRIX_JOBS} combinations`
        : 'the matrix has no combination left',
  });
  return [];
}

function jobName(id: string, combination: Combination): string {
  const label = combinationLabel(combination);
  return label === '' ? id : `${id} (${label})`;
}

/**
 * A path component for a job's artifacts. Ids are safe as they are and hold no dot; where a matrix value had to
 * be changed or could be taken for two, a digest keeps it apart from others.
 */
function directoryName(id: string, combination: Combination): string {
  const label = combinationLabel(combination);
  if (label === '') return id;
  const plain = `${id}.${label.replaceAll(', ', ',').replace(/[^\w.,=+-]/g, '_')}`;
  const exact = Object.values(combination).every((value) => /^[\w.+-]+$/.test(value));
  if (exact && plain.length <= MAX_DIRECTORY_LENGTH) return plain;
  // Loaded here, not above: it costs every `ct run` 4 ms, and few jobs have a matrix.
  const { createHash } = process.getBuiltinModule('node:crypto');
  const digest = createHash('sha256').update(JSON.stringify(combination)).digest('hex').slice(0, 8);
  return `${plain.slice(0, MAX_DIRECTORY_LENGTH - 9)}-${digest}`;
}

// --------------------------------------------------------------------------------------------- lowering

/** Evaluates one combination of one job. */
class Lowering {
  readonly #job: LoadedJob;
  readonly #loaded: LoadedJobs;
  readonly #options: PlanOptions & { readonly env: Readonly<Record<string, string>> };
  readonly #report: (problem: Problem) => void;
  readonly #name: string;
  readonly #matrix: Pick<Scope, 'matrix' | 'absentMatrix'>;
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
    const steps = spec.steps.map((step) => this.#step(step, scope));
    const artifacts = (spec.artifacts?.paths ?? []).map((path) => this.#artifactPath(path, scope));
    const timeoutMs = spec.timeout ?? defaults.timeout ?? DEFAULT_JOB_TIMEOUT_MS;
    const valid = resources !== undefined && steps.every(isDefined) && artifacts.every(isDefined);
    if (!valid) return undefined;

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
      artifacts,
      ...(spec.artifacts?.expire === undefined ? {} : { artifactsExpireMs: spec.artifacts.expire }),
      directory: directoryName(this.#job.id, this.#matrix.matrix),
      spans: {
        job: span,
        ...(imageTemplate === undefined ? {} : { image: locations.of(owner, 'image') }),
        ...resources.spans,
      },
    };
    const requestBytes = Buffer.byteLength(
      JSON.stringify(planned, (key, value) => (key === 'spans' ? undefined : value)),
    );
    if (requestBytes > MAX_JSON_BYTES - 4096) return this.#tooLarge(span);
    return planned;
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
    };
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

/** The first line with anything on it, safe to print. */
function shortName(text: string): string {
  const line = printable((text.split('\n').find((candidate) => candidate.trim() !== '') ?? text).trim());
  return line.length > MAX_NAME_LENGTH ? `${line.slice(0, MAX_NAME_LENGTH - 1)}…` : line;
}
