/** From job files and a target to a graph of jobs that can be sent to a host. */
import { CtError } from '../core/errors.ts';
import { type Problem, printable, problemsError, type SourceSpan } from '../core/source-text.ts';
import type { JobOrigin } from '../protocol/network.ts';
import type { JobRequest } from '../protocol/run.ts';
import {
  DEFAULT_CPUS,
  DEFAULT_DISK_MIB,
  DEFAULT_IMAGE,
  DEFAULT_JOB_TIMEOUT_MS,
  DEFAULT_MEMORY_MIB,
  defaultsSchema,
  isReservedVariable,
  jobSchema,
  MAX_MATRIX_JOBS,
  VARIABLE_PATTERN,
} from './definition.ts';
import { needsClosure, resolveTargets } from './graph.ts';
import type { LoadedJob, LoadedJobs } from './load.ts';
import { Lowering } from './lowering.ts';
import { type Combination, expandMatrix } from './matrix.ts';
import { jobName, shortName } from './names.ts';
import { overridden } from './network.ts';
import type { Plan, PlannedJob, PlanOptions } from './planned-job.ts';
import { formatSizeMib } from './quantity.ts';
import { collectUnsupported } from './schema/objects.ts';

export type { Plan, PlannedJob, PlannedSpans, PlanOptions } from './planned-job.ts';
export { secretNames } from './planned-job.ts';

/** Jobs of one plan: matrices multiply, and the plan is held in memory. */
const MAX_PLANNED_JOBS = 2000;

export interface CommandOptions extends Omit<PlanOptions, 'targets'> {
  readonly argv: readonly string[];
  readonly stdin?: boolean;
  readonly timeoutMs?: number;
  readonly artifacts?: readonly string[];
  /** Given to the command as variables. */
  readonly secrets?: readonly string[];
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
  const secrets = options.secrets ?? [];
  const env = checkedCommandEnv(options.env);
  const network = overridden(undefined, options.network);
  for (const secret of secrets) {
    if (Object.hasOwn(env, secret)) {
      throw new CtError('USAGE', `\`${secret}\` is given both by -e and as a secret`, {
        hint: 'leave one out',
      });
    }
  }
  return {
    jobs: [
      {
        name,
        needs: [],
        image: options.image ?? DEFAULT_IMAGE,
        cpus: options.cpus ?? DEFAULT_CPUS,
        memoryMib: options.memoryMib ?? DEFAULT_MEMORY_MIB,
        diskMib: options.diskMib ?? DEFAULT_DISK_MIB,
        env,
        steps: [
          {
            name,
            argv: options.argv,
            env: {},
            workingDirectory: '.',
            condition: 'success',
            ...(options.stdin === undefined ? {} : { stdin: options.stdin }),
            ...(secrets.length === 0
              ? {}
              : { secrets: secrets.map((secret) => ({ name: secret, env: secret })) }),
          },
        ],
        timeoutMs: options.timeoutMs ?? DEFAULT_JOB_TIMEOUT_MS,
        ...(network === undefined ? {} : { network }),
        ...(options.exec === undefined ? {} : { exec: options.exec }),
        artifacts: options.artifacts ?? [],
        directory: 'command',
      },
    ],
  };
}

/** What is sent to the host daemon, once the image's digest is known. */
export function toJobRequest(
  job: PlannedJob,
  resolved: { readonly image: string; readonly sendsTree: boolean; readonly origin?: JobOrigin },
): JobRequest {
  const { name, cpus, memoryMib, diskMib, env, steps, timeoutMs, artifacts, network, exec, verify } = job;
  return {
    name,
    cpus,
    memoryMib,
    diskMib,
    env,
    steps,
    timeoutMs,
    artifacts,
    ...(network === undefined ? {} : { network }),
    ...(exec === undefined ? {} : { exec }),
    ...(verify === undefined ? {} : { verify }),
    ...resolved,
  };
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
