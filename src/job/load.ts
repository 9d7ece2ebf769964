/** Finds, reads and merges the job files of a project. */
import { CtError } from '../core/errors.ts';
import type { SourceSpan } from '../core/yaml-source.ts';
import type { DefaultsSpec, JobSpec } from './definition.ts';
import type { Locations } from './schema.ts';

/** One job with what its file says about all jobs. */
export interface LoadedJob {
  readonly id: string;
  readonly spec: JobSpec;
  readonly defaults: DefaultsSpec;
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
 * Looks for `ct.yml` and `.ct/*.yml` in `directory` and its parents up to the root of the git work tree.
 * Throws JOB_FILE_NOT_FOUND, JOB_FILE_INVALID, JOB_EXPRESSION_INVALID.
 */
export function loadJobs(directory: string): LoadedJobs {
  throw new CtError('INTERNAL', `not written yet: ${directory}`);
}
