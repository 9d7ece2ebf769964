/** Finds, reads, parses and merges the job files of a project. */
import { type Dirent, existsSync, readdirSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import {
  formatPosition,
  type Problem,
  problemsError,
  readSource,
  type SourceSpan,
  type SourceText,
} from '../core/source-text.ts';
import { didYouMean } from '../core/suggest.ts';
import { parseYaml } from '../core/yaml-source.ts';
import { MAX_JOB_FILE_BYTES } from '../protocol/limits.ts';
import {
  type DefaultsSpec,
  type JobFileSpec,
  type JobSpec,
  jobFileSchema,
  type NetworkSpec,
  type VerifySpec,
} from './definition.ts';
import { type Template, unknownName } from './expression.ts';
import { Locations } from './schema/schema.ts';

/** Files of `.ct/`; user-controlled, and each may be MAX_JOB_FILE_BYTES. */
const MAX_JOB_FILES = 100;

/** Problems kept while parsing; the report shows fewer still. */
const MAX_PROBLEMS = 200;

/** One job with what its file says about all jobs. */
export interface LoadedJob {
  readonly id: string;
  readonly spec: JobSpec;
  readonly defaults: DefaultsSpec;
  /** `network` of its file. */
  readonly network?: NetworkSpec;
  /** `verify` of its file. */
  readonly verify?: VerifySpec;
  /** Where its id stands. */
  readonly span: SourceSpan;
}

/** All job files of a project, merged. */
export interface LoadedJobs {
  /** Directory the files were found in; the workspace of the jobs. Absolute. */
  readonly root: string;
  /** Names of the files, relative to `root`. */
  readonly files: readonly string[];
  /** In file order. */
  readonly jobs: ReadonlyMap<string, LoadedJob>;
  readonly locations: Locations;
}

/**
 * Looks for `ct.yml` and `.ct/*.yml` in `directory`, and if that is inside a git work tree, in its parents up to
 * the root of the work tree; reads all of the first directory that has any.
 *
 * Throws JOB_FILE_NOT_FOUND; JOB_FILE_INVALID, or JOB_EXPRESSION_INVALID if only expressions are wrong, with
 * all problems of all files in one report.
 */
export function loadJobs(directory: string): LoadedJobs {
  const { root, files } = findJobFiles(directory);
  const sources = files.map((name) =>
    readSource(join(root, name), name, {
      maxBytes: MAX_JOB_FILE_BYTES,
      code: 'JOB_FILE_INVALID',
      missingCode: 'JOB_FILE_NOT_FOUND',
    }),
  );
  return loadSources(root, sources);
}

/** The same for texts already read. Throws JOB_FILE_INVALID, JOB_EXPRESSION_INVALID. */
export function loadSources(root: string, sources: readonly SourceText[]): LoadedJobs {
  const problems: Problem[] = [];
  const report = (problem: Problem): void => {
    if (problems.length < MAX_PROBLEMS) problems.push(problem);
  };
  const locations = new Locations();
  const jobs = new Map<string, LoadedJob>();
  for (const source of sources) {
    const file = parseJobFile(source, locations, report);
    if (file === undefined) continue;
    for (const [id, spec] of Object.entries(file.jobs)) {
      const span = locations.of(file.jobs, id);
      const earlier = jobs.get(id);
      if (earlier === undefined) {
        jobs.set(id, {
          id,
          spec,
          defaults: file.defaults ?? {},
          ...(file.network === undefined ? {} : { network: file.network }),
          ...(file.verify === undefined ? {} : { verify: file.verify }),
          span,
        });
      } else {
        report({
          code: 'JOB_FILE_INVALID',
          span,
          message: `duplicate job \`${id}\`; it is first given at ${formatPosition(earlier.span)}`,
        });
      }
    }
  }
  const complete = problems.length === 0;
  for (const job of jobs.values()) checkReferences(job, complete ? jobs : undefined, locations, report);
  if (problems.length > 0) throw problemsError(problems, 'JOB_FILE_INVALID');
  return { root, files: sources.map((source) => source.name), jobs, locations };
}

function parseJobFile(
  source: SourceText,
  locations: Locations,
  report: (problem: Problem) => void,
): JobFileSpec | undefined {
  const { root, problems } = parseYaml(source, 'JOB_FILE_INVALID');
  for (const problem of problems) report(problem);
  if (problems.length > 0) return undefined;
  if (root === undefined || (root.kind === 'scalar' && root.type === 'null')) {
    report({
      code: 'JOB_FILE_INVALID',
      span: { source, start: 0, end: 0 },
      message: 'the file is empty',
      hint: 'it needs `version: 1` and `jobs`; `ct init` writes one to start from',
    });
    return undefined;
  }
  return jobFileSchema.parse(root, { locations, report });
}

/** What can be said of one job without knowing the command line: `needs`, matrix keys, `matrix.x`. */
function checkReferences(
  job: LoadedJob,
  jobs: ReadonlyMap<string, LoadedJob> | undefined,
  locations: Locations,
  report: (problem: Problem) => void,
): void {
  const { spec } = job;
  for (const [index, need] of (spec.needs ?? []).entries()) {
    // With problems elsewhere the job may only be missing because it did not parse.
    if (jobs === undefined || jobs.has(need)) continue;
    report({
      code: 'JOB_FILE_INVALID',
      span: locations.of(spec.needs as readonly string[], index),
      message: `job \`${job.id}\` needs \`${need}\`, but there is no such job`,
      hint: didYouMean(need, jobs.keys()),
    });
  }
  const axes = Object.keys(spec.matrix?.axes ?? {});
  for (const exclusion of spec.matrix?.exclude ?? []) {
    for (const key of Object.keys(exclusion)) {
      if (axes.includes(key)) continue;
      report({
        code: 'JOB_FILE_INVALID',
        span: locations.of(exclusion, key),
        message: `\`exclude\` names \`${key}\`, which is no axis of this matrix`,
        hint: didYouMean(key, axes),
      });
    }
  }
  const names = new Set([...axes, ...(spec.matrix?.include ?? []).flatMap((entry) => Object.keys(entry))]);
  for (const template of templatesOf(spec)) {
    for (const part of template.parts) {
      if (typeof part === 'string' || part.scope !== 'matrix' || names.has(part.name)) continue;
      report(unknownName(part, { matrix: {}, absentMatrix: names, env: {} }));
    }
  }
}

function* templatesOf(value: unknown): Generator<Template> {
  if (typeof value !== 'object' || value === null) return;
  if ('parts' in value && 'span' in value) {
    yield value as Template;
    return;
  }
  for (const member of Object.values(value)) yield* templatesOf(member);
}

/** Throws JOB_FILE_NOT_FOUND. */
function findJobFiles(directory: string): { readonly root: string; readonly files: readonly string[] } {
  const start = resolve(directory);
  for (const root of searchPath(start)) {
    const files = jobFilesIn(root);
    if (files.length > 0) return { root, files };
  }
  const misnamed = ['ct.yaml', '.ct.yml', '.ct.yaml'].find((name) => existsSync(join(start, name)));
  throw new CtError('JOB_FILE_NOT_FOUND', `there is no ct.yml and no .ct/*.yml in ${start}`, {
    hint:
      misnamed === undefined
        ? '`ct init` writes one that fits the repository'
        : `there is ${misnamed}; the name is ct.yml`,
  });
}

/**
 * The directory and, inside a git work tree, its parents up to the root of that. Never beyond, and never into
 * a directory of somebody else: a file put into /tmp by another user must not become our job file.
 */
function searchPath(start: string): string[] {
  const path = [start];
  let owner: number;
  try {
    owner = statSync(start).uid;
  } catch {
    return path;
  }
  for (let at = start; !existsSync(join(at, '.git')); ) {
    const parent = dirname(at);
    if (parent === at || statSync(parent).uid !== owner) return [start];
    path.push(parent);
    at = parent;
  }
  return path;
}

function jobFilesIn(root: string): string[] {
  const files = existsSync(join(root, 'ct.yml')) ? ['ct.yml'] : [];
  let entries: Dirent[];
  try {
    entries = readdirSync(join(root, '.ct'), { withFileTypes: true });
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return files;
    throw new CtError('JOB_FILE_INVALID', `cannot read the directory .ct: ${messageOf(error)}`, {
      cause: error,
    });
  }
  const more = entries
    .filter((entry) => entry.name.endsWith('.yml') && !entry.name.startsWith('.') && !entry.isDirectory())
    .map((entry) => `.ct/${entry.name}`)
    .sort();
  if (more.length > MAX_JOB_FILES) {
    throw new CtError('JOB_FILE_INVALID', `.ct has ${more.length} job files; the limit is ${MAX_JOB_FILES}`);
  }
  return [...files, ...more];
}
