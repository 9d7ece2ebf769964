/** Which jobs a plan takes in, and in which order. */
import { CtError } from '../core/errors.ts';
import { formatPosition, printable } from '../core/source-text.ts';
import { didYouMean } from '../core/suggest.ts';
import { MAX_MATRIX_JOBS } from './definition.ts';
import type { LoadedJob, LoadedJobs } from './load.ts';
import { expandMatrix } from './matrix.ts';
import { jobName } from './names.ts';

/** Job ids to `all`, or to the names of the combinations asked for. */
export function resolveTargets(
  loaded: LoadedJobs,
  targets: readonly string[],
): Map<string, 'all' | Set<string>> {
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
  const list = `${candidates.length === 1 ? 'there is' : 'there are'} ${candidates.slice(0, 20).join(', ')}${more}`;
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
export function needsClosure(loaded: LoadedJobs, ids: Iterable<string>): LoadedJob[] {
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
