/** `--list` and `--dryrun`. Pure. */
import type { Plan, PlannedJob } from '../../job/plan.ts';
import { formatDuration, formatSizeMib } from '../../job/quantity.ts';
import type { NetworkRequest } from '../../protocol/network.ts';
import type { RunOptions } from '../run-options.ts';
import { oneLine } from './format.ts';
import { formatTable } from './table.ts';

export function describePlan(plan: Plan, options: Pick<RunOptions, 'action' | 'json'>): string {
  if (options.json)
    return `${JSON.stringify({ version: 1, jobs: plan.jobs.map(describeJob) }, undefined, 2)}\n`;
  return options.action === 'list' ? listJobs(plan) : plan.jobs.map(showJob).join('\n');
}

/** What of a job is shown, in this order. */
const DESCRIBED = [
  'name',
  'id',
  'needs',
  'image',
  'cpus',
  'memoryMib',
  'diskMib',
  'timeoutMs',
  'network',
  'exec',
  'env',
  'steps',
  'artifacts',
] as const satisfies readonly (keyof PlannedJob)[];

function describeJob(job: PlannedJob): object {
  return Object.fromEntries(DESCRIBED.map((key) => [key, job[key]]));
}

function listJobs(plan: Plan): string {
  if (plan.jobs.length === 0) return 'there are no jobs\n';
  return formatTable([
    ['JOB', 'IMAGE', 'CPU', 'MEMORY', 'STEPS', 'NEEDS'],
    ...plan.jobs.map(({ name, image, cpus, memoryMib, steps, needs }) => [
      name,
      image,
      `${cpus}`,
      formatSizeMib(memoryMib),
      `${steps.length}`,
      needs.join(', '),
    ]),
  ]);
}

function showJob(job: PlannedJob): string {
  const { name, image, cpus, memoryMib, diskMib, timeoutMs, needs, network, exec, env, artifacts } = job;
  const shape = `${cpus} cpu, ${formatSizeMib(memoryMib)} memory, ${formatSizeMib(diskMib)} disk`;
  const lines = [
    `${oneLine(name)}: ${image}, ${shape}, at most ${formatDuration(timeoutMs)}`,
    ...(needs.length > 0 ? [`  needs ${needs.map(oneLine).join(', ')}`] : []),
    ...(network === undefined ? [] : [`  network ${describeNetwork(network)}`]),
    ...(exec === undefined ? [] : [`  code ${exec}`]),
    ...Object.entries(env).map(([key, value]) => `  ${key}=${oneLine(value)}`),
    ...job.steps.flatMap((step) => [
      `  ▶ ${oneLine(step.name)}${step.condition === 'success' ? '' : ` (if ${step.condition})`}`,
      ...(step.network === undefined ? [] : ['      without the network']),
      ...(step.secrets ?? []).map(({ name: secret, env: variable }) =>
        variable === undefined
          ? `      secret ${secret} as a file`
          : `      secret ${secret} as $${variable}`,
      ),
      ...(step.script ?? step.argv.map(shellWord).join(' '))
        .trimEnd()
        .split('\n')
        .map((line) => `      ${oneLine(line)}`),
    ]),
    ...(artifacts.length > 0 ? [`  artifacts ${artifacts.map(oneLine).join(', ')}`] : []),
  ];
  return `${lines.join('\n')}\n`;
}

function describeNetwork({ allow, mode }: NetworkRequest): string {
  const what = allow.length === 0 ? 'nothing' : allow.map(oneLine).join(', ');
  return mode === undefined ? what : `${what} (${mode})`;
}

/** As a POSIX shell would take it; for reading, not for running. */
function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
