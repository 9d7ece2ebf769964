/**
 * The job file, defined once: the types below, the parser (parse.ts), `docs/ct.schema.json` and the reference
 * table of docs/job-file.md all come from this description.
 */
import { MAX_JOB_SECRETS, MAX_SECRET_NAME_BYTES, MAX_STEPS } from '../protocol/limits.ts';
import { MAX_NETWORK_ENTRIES, MAX_NETWORK_ENTRY_BYTES, NETWORK_MODES } from '../protocol/network.ts';
import { PACKAGE_MANAGERS } from '../protocol/run.ts';
import { SECRET_PATTERN } from '../protocol/secret-record.ts';
import { DEPENDENCY_LEVELS, MAX_LOCKS, MAX_MANIFESTS, USUAL_LOCKS } from '../protocol/verify.ts';
import type { Template } from './expression.ts';
import { wrongDestination } from './network.ts';
import { formatSizeMib } from './quantity.ts';
import { type KeyRule, list, listOr, oneOrMany, record, scalarOr } from './schema/collections.ts';
import { object, objectWithRest, optional, required } from './schema/objects.ts';
import {
  duration,
  flag,
  integer,
  oneOf,
  orTemplate,
  scalarText,
  size,
  template,
  text,
} from './schema/scalars.ts';
import type { Infer } from './schema/schema.ts';

// Defaults that hold when neither the job nor `defaults` says otherwise.
export const DEFAULT_IMAGE = 'debian-12';
export const DEFAULT_CPUS = 1;
export const DEFAULT_MEMORY_MIB = 2048;
export const DEFAULT_DISK_MIB = 10 * 1024;
export const DEFAULT_JOB_TIMEOUT_MS = 3_600_000;
export const DEFAULT_SHELL = 'bash';

/** Jobs one matrix may expand to. */
export const MAX_MATRIX_JOBS = 256;

/** Jobs in one file; user-controlled, and a plan is held in memory. */
const MAX_JOBS = 1000;
/** Variables, list entries and the like; far more than anybody writes by hand. */
const MAX_ENTRIES = 1000;
const WEEK_MS = 7 * 86_400_000;
const SECOND_MS = 1000;
const TEN_YEARS_MS = 3650 * 86_400_000;

const JOB_ID_PATTERN = '^[A-Za-z_][A-Za-z0-9_-]{0,63}$';
const jobId = text({
  expected: 'a job id (letters, digits, `_` and `-`, at most 64, first a letter or `_`)',
  typeName: 'job id',
  pattern: JOB_ID_PATTERN,
  maxLength: 64,
});

/** Set by ct for every step; CT_HOME is a setting of ct itself, which a job may need. */
export function isReservedVariable(name: string): boolean {
  return name === 'CT' || (name.startsWith('CT_') && name !== 'CT_HOME');
}

export const VARIABLE_PATTERN = '^[A-Za-z_][A-Za-z0-9_]*$';
const variableName: KeyRule = {
  name: '<NAME>',
  expected: 'a variable name (letters, digits and `_`, first no digit)',
  pattern: VARIABLE_PATTERN,
  strictPattern: '^(?!CT$|CT_(?!HOME$))[A-Za-z_][A-Za-z0-9_]*$',
  refuse: (key) =>
    isReservedVariable(key)
      ? `\`${key}\` is reserved: ct sets \`CT\` and variables that start with \`CT_\``
      : undefined,
};

const secretName = text({
  expected: 'the name of a secret (letters, digits and `_`, first no digit; `CT_…` is reserved)',
  typeName: 'secret name',
  pattern: SECRET_PATTERN,
  maxLength: MAX_SECRET_NAME_BYTES,
});

const secrets = listOr(
  list(secretName, { max: MAX_JOB_SECRETS, expected: 'a list of names of secrets' }),
  record(
    { name: '<NAME>', expected: 'the name of a secret', pattern: SECRET_PATTERN },
    scalarOr(
      oneOf('env', 'file'),
      object(
        {
          env: required(secretName, 'Variable that holds the value, if not that of the same name.'),
        },
        { expected: '`{env: VARIABLE}`' },
      ),
    ),
    { max: MAX_JOB_SECRETS, expected: 'a mapping of names to `env`, `file` or `{env: VARIABLE}`' },
  ),
);

const env = record(variableName, template({ expected: 'a string, number or boolean', empty: true }), {
  max: MAX_ENTRIES,
  expected: 'a mapping of variable names to values',
});

/** Scalars of `resources`, also for values that only an expression gives. */
export const resourceSchemas = {
  cpu: integer(1, 256),
  memory: size(128, 4 * 1024 * 1024),
  disk: size(256, 64 * 1024 * 1024),
} as const;

const resources = object(
  {
    cpu: optional(orTemplate(resourceSchemas.cpu), 'Virtual CPUs.', { fallback: `${DEFAULT_CPUS}` }),
    memory: optional(orTemplate(resourceSchemas.memory), 'Memory of the VM.', {
      fallback: `\`${formatSizeMib(DEFAULT_MEMORY_MIB)}\``,
    }),
    disk: optional(orTemplate(resourceSchemas.disk), 'Size of the encrypted workspace volume.', {
      fallback: `\`${formatSizeMib(DEFAULT_DISK_MIB)}\``,
    }),
    gpu: optional(integer(0, 64), 'GPUs.', { fallback: '0', unsupported: (count) => count > 0 }),
  },
  { expected: 'a mapping with `cpu`, `memory` and `disk`' },
);

const shell = text({
  expected: '`bash`, `sh`, `python`, or a command line in which the word `{0}` stands for the script',
  typeName: '`bash`, `sh`, `python` or a command line with `{0}`',
  pattern: '^(bash|sh|python|([^\\n]*[^\\s][ ])?\\{0\\}([ ][^\\n]*)?)$',
});

const workingDirectory = template({ expected: 'a directory below the workspace' });
const timeout = duration(SECOND_MS, WEEK_MS);

const condition = oneOf('success()', 'failure()', 'always()');

const step = object(
  {
    name: optional(template({ expected: 'a name' }), 'Name in logs.', {
      fallback: 'the first line of `run`',
    }),
    run: required(template({ expected: 'a script' }), 'Script that the shell runs.', {
      advice: 'a step is `- run: COMMAND`',
    }),
    env: optional(env, 'Variables of this step.'),
    secrets: optional(secrets, 'Secrets that only this step is given, besides those of the job.'),
    'working-directory': optional(workingDirectory, 'Where the script starts, relative to the workspace.', {
      fallback: 'that of `defaults`, else the workspace',
    }),
    shell: optional(shell, 'What runs the script.', { fallback: 'that of `defaults`, else `bash`' }),
    timeout: optional(timeout, 'The step is killed and fails after this time.', {
      fallback: 'that of the job',
    }),
    network: optional(oneOf('none'), 'Takes the network of the job from this step.', {
      fallback: 'that of the job',
    }),
    packages: optional(
      oneOf(...PACKAGE_MANAGERS),
      'The step fetches packages with this manager: a step of ct’s own then checks them against the lock file and installs them without a network; docs/signed-code.md explains it.',
    ),
    if: optional(condition, 'When the step runs: if all earlier steps succeeded, if one failed, or always.', {
      fallback: '`success()`',
    }),
  },
  {
    expected: 'a step: a mapping with `run`',
    hintForOther: (node) =>
      node.kind === 'scalar' && node.type === 'string' && !node.text.includes('\n')
        ? `write \`- run: ${node.text}\``
        : undefined,
  },
);

const matrixValue = scalarText('a string, number or boolean');
const combination = record(
  { name: '<axis>', expected: 'a name for a matrix value', pattern: '^[A-Za-z_][A-Za-z0-9_-]*$' },
  matrixValue,
  { min: 1, max: 32, expected: 'a mapping of axis names to values' },
);
const combinations = list(combination, {
  max: MAX_MATRIX_JOBS,
  expected: 'a list of mappings of axis names to values',
  typeName: 'list of mappings',
});
const matrix = objectWithRest(
  {
    include: optional(
      combinations,
      'Extends the combinations whose axis values it repeats; if there are none, it is a further combination.',
    ),
    exclude: optional(combinations, 'Takes out every combination that has all of its values.'),
  },
  'axes',
  {
    name: '<axis>',
    expected: 'the name of an axis (letters, digits, `_` and `-`), `include` or `exclude`',
    pattern: '^[A-Za-z_][A-Za-z0-9_-]*$',
  },
  list(matrixValue, { min: 1, max: MAX_MATRIX_JOBS, expected: 'a list of values' }),
  'Values of one axis; the job runs once for every combination of the axes.',
  { expected: 'a mapping of axis names to lists of values' },
);

const destination = text({
  expected: 'a preset such as `npm`, a name such as `example.com`, or a URL without a path',
  typeName: 'destination',
  // What the grammar (src/policy/destination.ts) says beyond this needs more than a pattern.
  pattern: '^[^\\s/]+(//[^\\s/]+)?$',
  maxLength: MAX_NETWORK_ENTRY_BYTES,
  check: wrongDestination,
});

const destinations = list(destination, {
  max: MAX_NETWORK_ENTRIES,
  expected: 'a list of destinations',
});

const network = scalarOr(
  oneOf('none'),
  listOr(
    destinations,
    object(
      {
        allow: optional(destinations, 'Presets, names and URLs that the job may connect to.', {
          fallback: 'nothing',
        }),
        mode: optional(
          oneOf(...NETWORK_MODES),
          'What happens to a connection that is not allowed: `audit` records it, `enforce` refuses it, `terminate` ends the run. Policy may be stricter.',
          { fallback: "policy's" },
        ),
      },
      { expected: 'a mapping with `allow` and `mode`' },
    ),
  ),
  (text) => `write \`[${text}]\` to allow it`,
);

const relativePath = template({ expected: 'a path or glob below the workspace' });

const cache = list(
  object(
    {
      key: required(template({ expected: 'a key' }), 'Name under which the paths are saved and found.'),
      paths: required(
        list(relativePath, { min: 1, max: MAX_ENTRIES, expected: 'a list of paths' }),
        'What is saved and restored.',
      ),
    },
    { expected: 'a mapping with `key` and `paths`' },
  ),
  { max: 32, expected: 'a list of caches', typeName: 'list of mappings' },
);

const artifacts = object(
  {
    paths: required(
      list(relativePath, { min: 1, max: MAX_ENTRIES, expected: 'a list of paths or globs' }),
      'Paths or globs below the workspace that are copied out when the steps have ended, also after a failure; a leading `!` takes matches out again.',
    ),
    expire: optional(
      duration(3_600_000, TEN_YEARS_MS),
      'How long a server keeps them; a local run keeps them until the next.',
    ),
  },
  { expected: 'a mapping with `paths`' },
);

const permissions = scalarOr(
  oneOf('none'),
  record(
    { name: '<scope>', expected: 'a permission (small letters and `-`)', pattern: '^[a-z][a-z-]*$' },
    oneOf('none', 'read', 'write'),
    { max: 64, expected: 'a mapping of permissions to `none`, `read` or `write`' },
  ),
);

const service = object(
  {
    image: required(template({ expected: 'an image name' }), 'Image of the service.'),
    env: optional(env, 'Variables of the service.'),
    ports: optional(
      list(integer(1, 65_535), { max: 64, expected: 'a list of port numbers' }),
      'TCP ports the job reaches under the name of the service.',
    ),
    command: optional(template({ expected: 'a command' }), 'What to start.', {
      fallback: 'what the image starts',
    }),
  },
  { expected: 'a mapping with `image`' },
);

const image = template({ expected: 'an image name' });

const workspacePath = text({
  expected: 'a path in the workspace',
  pattern: '^(?!/)(?!.*(^|/)\\.{0,2}(/|$))[^\\x00]+$',
  maxLength: 4095,
});
const lockFiles = list(workspacePath, { min: 1, max: MAX_LOCKS, expected: 'a list of lock files' });
const dependencyLevel = oneOf(...DEPENDENCY_LEVELS);

const verify = object(
  {
    commit: optional(flag(), 'The working tree has to be that of a signed commit.', {
      fallback: '`false`',
    }),
    scripts: optional(
      oneOrMany(
        list(workspacePath, { max: MAX_MANIFESTS, expected: 'a list of signed manifests' }),
        workspacePath,
      ),
      'Signed manifests (`ct sign`); every file in them has to be as it was signed.',
    ),
    dependencies: optional(
      scalarOr(
        dependencyLevel,
        object(
          {
            level: required(dependencyLevel, 'What has to be proved of packages.', {
              advice: 'write `level: integrity`',
            }),
            locks: optional(lockFiles, 'Lock files.', {
              fallback: USUAL_LOCKS.map((name) => `\`${name}\``).join(', '),
            }),
          },
          { expected: 'a mapping with `level` and `locks`' },
        ),
      ),
      'What has to be proved of the packages in lock files.',
      { fallback: '`none`' },
    ),
  },
  { expected: 'a mapping with `commit`, `scripts` and `dependencies`' },
);

export const jobSchema = object(
  {
    image: optional(image, 'Image that the VM starts from.', {
      fallback: `that of \`defaults\`, else \`${DEFAULT_IMAGE}\``,
    }),
    resources: optional(resources, 'Size of the VM. A key that is absent here is taken from `defaults`.'),
    env: optional(env, 'Variables of every step.'),
    needs: optional(
      oneOrMany(list(jobId, { max: MAX_JOBS, expected: 'a list of job ids' }), jobId),
      'Jobs that must succeed before this one starts.',
    ),
    matrix: optional(matrix, `Runs the job once per combination, at most ${MAX_MATRIX_JOBS} times.`),
    timeout: optional(timeout, 'The job is killed and fails after this time.', {
      fallback: 'that of `defaults`, else `1h`',
    }),
    steps: required(
      list(step, { min: 1, max: MAX_STEPS, expected: 'a list of steps', typeName: 'list of mappings' }),
      'What the job does, in order, in one VM.',
    ),
    secrets: optional(
      secrets,
      'Secrets that every step is given: as variables, or by a mapping as files in `/run/ct/secrets`; docs/secrets.md explains them.',
    ),
    network: optional(network, 'What the job may connect to; docs/network.md explains it.', {
      fallback: 'that of the file, else `none`',
    }),
    exec: optional(
      oneOf('audit', 'enforce', 'terminate'),
      'What happens to code that nobody vouches for: `audit` records it, `enforce` refuses it, `terminate` ends the run. Policy may be stricter; docs/signed-code.md explains it.',
      { fallback: "policy's" },
    ),
    verify: optional(
      verify,
      'What has to be signed before the job is given a secret; policy may demand more. docs/verify.md explains it.',
      { fallback: 'that of the file' },
    ),
    cache: optional(cache, 'Directories kept between runs.', { unsupported: (caches) => caches.length > 0 }),
    artifacts: optional(artifacts, 'Files that are kept when the VM is destroyed.'),
    permissions: optional(permissions, 'What the identity token of the job may do.', {
      fallback: '`none`',
      unsupported: (value) => value !== 'none' && Object.values(value).some((level) => level !== 'none'),
    }),
    services: optional(
      record(
        {
          name: '<name>',
          expected: 'a service name (small letters, digits and `-`)',
          pattern: '^[a-z][a-z0-9-]{0,62}$',
        },
        service,
        { max: 32, expected: 'a mapping of service names to services' },
      ),
      'Further VMs that run beside the job.',
      { unsupported: (services) => Object.keys(services).length > 0 },
    ),
  },
  { expected: 'a job: a mapping with `steps`' },
);

export const defaultsSchema = object(
  {
    image: optional(image, 'Image of jobs that name none.', { fallback: `\`${DEFAULT_IMAGE}\`` }),
    resources: optional(resources, 'Size of the VM of jobs that do not say.'),
    env: optional(env, 'Variables of every step of every job.'),
    timeout: optional(timeout, 'Timeout of jobs that have none.', { fallback: '`1h`' }),
    shell: optional(shell, 'Shell of steps that name none.', { fallback: '`bash`' }),
    'working-directory': optional(workingDirectory, 'Working directory of steps that name none.', {
      fallback: 'the workspace',
    }),
  },
  { expected: 'a mapping of defaults' },
);

export const jobFileSchema = object(
  {
    version: required(integer(1, 1), 'Version of this format.', { advice: 'write `version: 1`' }),
    defaults: optional(defaultsSchema, 'What the jobs of this file have in common.'),
    network: optional(network, 'What jobs that do not say may connect to.', { fallback: '`none`' }),
    verify: optional(verify, 'What has to be signed of jobs that do not say.', { fallback: 'nothing' }),
    jobs: required(
      record(
        {
          name: '<id>',
          expected: 'a job id (letters, digits, `_` and `-`, at most 64, first a letter or `_`)',
          pattern: JOB_ID_PATTERN,
        },
        jobSchema,
        { min: 1, max: MAX_JOBS, expected: 'a mapping of job ids to jobs' },
      ),
      'The jobs.',
    ),
  },
  { expected: 'a mapping with `version` and `jobs`', ignoredPrefix: 'x-' },
);

/** One file as parsed. Durations are milliseconds, sizes MiB, strings that may hold expressions templates. */
export interface JobFileSpec extends Infer<typeof jobFileSchema> {}
export interface DefaultsSpec extends Infer<typeof defaultsSchema> {}
export interface JobSpec extends Infer<typeof jobSchema> {}
export interface StepSpec extends Infer<typeof step> {}
export interface ResourcesSpec extends Infer<typeof resources> {}
export interface MatrixSpec extends Infer<typeof matrix> {}
export type SecretsSpec = Infer<typeof secrets>;
export type NetworkSpec = Infer<typeof network>;
export interface VerifySpec extends Infer<typeof verify> {}
export type EnvSpec = Readonly<Record<string, Template>>;
