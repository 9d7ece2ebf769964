// biome-ignore-all lint/suspicious/noTemplateCurlyInString: expressions of the job file, not of this language
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CtError } from '../core/errors.ts';
import { formatPosition, SourceText } from '../core/source-text.ts';
import { loadSources } from './load.ts';
import {
  checkCapacity,
  type Plan,
  type PlanOptions,
  planCommand,
  planJobs,
  secretNames,
  toJobRequest,
} from './plan.ts';

function plan(text: string, targets: readonly string[] = [], options: Partial<PlanOptions> = {}): Plan {
  return planJobs(loadSources('/p', [new SourceText('ct.yml', `version: 1\n${text}`)]), {
    targets,
    ...options,
  });
}

function names(text: string, targets: readonly string[] = []): string[] {
  return plan(text, targets).jobs.map((job) => job.name);
}

function errorOf(action: () => unknown): CtError {
  try {
    action();
  } catch (error) {
    assert.ok(error instanceof CtError, String(error));
    return error;
  }
  assert.fail('nothing was thrown');
}

/** The only job of a file whose job `a` has `body`. */
function only(body: string, options: Partial<PlanOptions> & { defaults?: string } = {}) {
  const defaults = options.defaults === undefined ? '' : `defaults: ${options.defaults}\n`;
  const [job, ...others] = plan(`${defaults}jobs:\n  a: {${body}}\n`, [], options).jobs;
  assert.equal(others.length, 0);
  return job ?? assert.fail();
}

const STEPS = 'steps: [{run: x}]';
const GRAPH = `jobs:
  deploy: {needs: [test, lint], ${STEPS}}
  test: {needs: build, matrix: {os: [debian, alpine]}, ${STEPS}}
  lint: {${STEPS}}
  build: {${STEPS}}
  other: {${STEPS}}
`;

test('a target brings all it needs, each after its needs, otherwise in file order', () => {
  assert.deepEqual(names(GRAPH, ['deploy']), [
    'lint',
    'build',
    'test (os=debian)',
    'test (os=alpine)',
    'deploy',
  ]);
  assert.deepEqual(names(GRAPH, ['lint', 'build']), ['lint', 'build']);
  assert.equal(names(GRAPH).length, 6);
});

test('a job that needs a matrix job needs all of its combinations', () => {
  const deploy = plan(GRAPH, ['deploy']).jobs.at(-1);
  assert.deepEqual(deploy?.needs, ['test (os=debian)', 'test (os=alpine)', 'lint']);
});

test('one combination can be a target by its name', () => {
  assert.deepEqual(names(GRAPH, ['test (os=alpine)']), ['build', 'test (os=alpine)']);
  assert.deepEqual(names(GRAPH, ['test (os=alpine)', 'test']).length, 3);
  assert.deepEqual(names(GRAPH, ['test (os=alpine)', 'deploy']).length, 5);
});

test('JOB_NOT_FOUND suggests the nearest name and lists the others', () => {
  const error = errorOf(() => plan(GRAPH, ['biuld']));
  assert.equal(error.code, 'JOB_NOT_FOUND');
  assert.match(error.message, /no job `biuld` in ct\.yml/);
  assert.match(error.hint ?? '', /did you mean `build`\? there are deploy, test/);
  assert.match(errorOf(() => plan(GRAPH, ['test (os=x)'])).hint ?? '', /test \(os=debian\)/);
  assert.equal(errorOf(() => plan(GRAPH, ['constructor'])).code, 'JOB_NOT_FOUND');
});

test('JOB_NEEDS_CYCLE shows the cycle with its places, and not what leads to it', () => {
  const error = errorOf(() =>
    plan(
      `jobs:\n  a: {needs: b, ${STEPS}}\n  b: {needs: [c], ${STEPS}}\n  c: {needs: [d, b], ${STEPS}}\n  d: {${STEPS}}\n`,
      ['a'],
    ),
  );
  assert.equal(error.code, 'JOB_NEEDS_CYCLE');
  assert.equal(
    error.message,
    'jobs need each other in a circle: b → c → b\n  ct.yml:4:15: `b` needs `c`\n  ct.yml:5:18: `c` needs `b`',
  );
  assert.match(errorOf(() => plan(`jobs: {a: {needs: a, ${STEPS}}}`)).message, /circle: a → a\n/);
});

test('a cycle elsewhere in the file does not stop other jobs', () => {
  assert.deepEqual(names(`jobs: {a: {needs: a, ${STEPS}}, b: {${STEPS}}}`, ['b']), ['b']);
});

test('defaults of the product apply when nothing is said', () => {
  const job = only(STEPS);
  assert.deepEqual(toJobRequest(job, { image: 'sha256:0', sendsTree: true }), {
    name: 'a',
    image: 'sha256:0',
    cpus: 1,
    memoryMib: 2048,
    diskMib: 10_240,
    env: {},
    timeoutMs: 3_600_000,
    artifacts: [],
    sendsTree: true,
    steps: [
      {
        name: 'x',
        argv: ['bash', '--noprofile', '--norc', '-eo', 'pipefail', '{0}'],
        script: 'x\n',
        env: {},
        workingDirectory: '.',
        condition: 'success',
      },
    ],
  });
  assert.equal(job.image, 'debian-12');
});

test('the command line wins over the job, the job over defaults, resources key by key', () => {
  const defaults =
    '{image: d, resources: {cpu: 2, memory: 1G}, timeout: 5m, shell: sh, working-directory: w}';
  const job = only(`resources: {memory: 512M}, ${STEPS}`, { defaults });
  assert.deepEqual([job.image, job.cpus, job.memoryMib, job.timeoutMs], ['d', 2, 512, 300_000]);
  assert.deepEqual(job.steps[0]?.argv, ['sh', '-e', '{0}']);
  assert.equal(job.steps[0]?.workingDirectory, 'w');
  const own = only(`image: j, resources: {cpu: 1}, timeout: 1m, ${STEPS}`, {
    defaults,
    image: 'c',
    cpus: 7,
    diskMib: 300,
  });
  assert.deepEqual(
    [own.image, own.cpus, own.memoryMib, own.diskMib, own.timeoutMs],
    ['c', 7, 1024, 300, 60_000],
  );
});

test('env goes defaults < job < step < command line, and each level sees those before it', () => {
  const job = only(
    'env: {B: "${{ env.A }}2", C: job}, steps: [{run: "${{ env.D }} ${{ env.C }} ${{ env.E }}", env: {C: "${{ env.B }}3", D: "${{ env.C }}"}}]',
    { defaults: '{env: {A: "1", C: defaults}}', env: { E: 'cli', A: 'over' } },
  );
  assert.deepEqual(job.env, { A: 'over', B: 'over2', C: 'job', E: 'cli' });
  assert.deepEqual(job.steps[0]?.env, { C: 'over23', D: 'job' });
  assert.equal(job.steps[0]?.script, 'job over23 cli\n');
});

test('a variable of the command line also wins over one of a step', () => {
  const job = only('steps: [{run: "${{ env.A }}", env: {A: step}}]', { env: { A: 'cli' } });
  assert.deepEqual(job.steps[0]?.env, { A: 'cli' });
  assert.equal(job.steps[0]?.script, 'cli\n');
});

test('USAGE for variable names of the command line that are malformed or reserved', () => {
  for (const name of ['', '1A', 'A B', 'CT_RUN', 'CT']) {
    assert.equal(errorOf(() => only(STEPS, { env: { [name]: 'x' } })).code, 'USAGE', name);
  }
});

test('matrix values reach image, resources, env, names, directories, scripts and artifacts', () => {
  const [job] = plan(`jobs:
  a:
    matrix: {v: [12], mem: [1G]}
    image: debian-\${{ matrix.v }}
    resources: {memory: "\${{ matrix.mem }}", cpu: "\${{ matrix.v }}"}
    env: {V: "\${{ matrix.v }}"}
    artifacts: {paths: ["dist-\${{ matrix.v }}/**"]}
    steps:
      - name: build \${{ matrix.v }}
        working-directory: d/\${{ matrix.v }}
        run: |
          echo \${{ env.V }}
`).jobs;
  assert.equal(job?.name, 'a (v=12, mem=1G)');
  assert.equal(job?.directory, 'a.v=12,mem=1G');
  assert.equal(job?.image, 'debian-12');
  assert.deepEqual([job?.memoryMib, job?.cpus], [1024, 12]);
  assert.deepEqual(job?.artifacts, ['dist-12/**']);
  assert.equal(job?.steps[0]?.name, 'build 12');
  assert.equal(job?.steps[0]?.workingDirectory, 'd/12');
  assert.equal(job?.steps[0]?.script, 'echo 12\n');
});

test('a resource that an expression makes invalid is an error at the expression', () => {
  const error = errorOf(() =>
    plan(`jobs:\n  a: {matrix: {m: [2GB]}, resources: {memory: "\${{ matrix.m }}"}, ${STEPS}}`),
  );
  assert.equal(error.code, 'JOB_FILE_INVALID');
  assert.match(error.message, /ct\.yml:3:47: expected a size.*found `2GB`/);
});

test('an unknown env name is an error at its position', () => {
  const error = errorOf(() => only('env: {FOO: 1}, steps: [{run: "${{ env.FO }}"}]'));
  assert.equal(error.code, 'JOB_EXPRESSION_INVALID');
  assert.match(error.message, /ct\.yml:3:37: unknown name `env\.FO`/);
});

test('directories of artifacts are one safe path component each and never equal', () => {
  const { jobs } = plan(
    `jobs: {a: {matrix: {v: ["x/y", "x_y", "..", "a,b=c", "${'l'.repeat(300)}"]}, ${STEPS}}}`,
  );
  const directories = jobs.map((job) => job.directory);
  assert.equal(new Set(directories).size, 5);
  for (const directory of directories) assert.match(directory, /^a\.v=[\w.,=+-]{1,117}$/);
});

test('a job has the network of its own, else that of its file, else none', () => {
  const { jobs } = plan(`network: [npm, npm, example.org]
jobs:
  own: {network: {allow: [github], mode: terminate}, ${STEPS}}
  none: {network: none, ${STEPS}}
  file: {steps: [{run: x, network: none}, {run: y}]}
`);
  const [own, none, file] = jobs;
  assert.deepEqual(own?.network, { allow: ['github'], mode: 'terminate' });
  assert.equal(none?.network, undefined);
  assert.deepEqual(file?.network, { allow: ['npm', 'example.org'] }, 'each entry once');
  assert.deepEqual(
    file?.steps.map(({ network }) => network),
    ['none', undefined],
  );
  const [span, other] = [own, file].map((job) => job?.spans?.network);
  assert.equal(span && formatPosition(span), 'ct.yml:4:9');
  assert.equal(other && formatPosition(other), 'ct.yml:2:10');
  assert.equal(only(STEPS).network, undefined, 'nothing by default');
  assert.deepEqual(only(`network: {mode: audit}, ${STEPS}`).network, { allow: [], mode: 'audit' });
});

test('--network replaces what jobs may connect to, not their mode', () => {
  const network = 'network: {allow: [npm], mode: terminate}';
  const override = (value: 'none' | readonly string[], body = network) =>
    only(`${body}, ${STEPS}`, { network: value });
  assert.deepEqual(override(['go', 'go']).network, { allow: ['go'], mode: 'terminate' });
  assert.equal(override('none').network, undefined);
  assert.equal(override(['go']).spans?.network, undefined, 'not where the job file stands');
  assert.deepEqual(override(['go'], 'network: none').network, { allow: ['go'] });
  const command = planCommand({ argv: ['x'], network: ['npm'] }).jobs[0] ?? assert.fail();
  assert.deepEqual(command.network, { allow: ['npm'] });
  assert.equal(planCommand({ argv: ['x'], network: 'none' }).jobs[0]?.network, undefined);
  const origin = { trust: 'local', repository: 'a/b' } as const;
  const request = toJobRequest(command, { image: 'sha256:0', sendsTree: true, origin });
  assert.deepEqual(request.network, { allow: ['npm'] });
  assert.deepEqual(request.origin, origin);
});

test('what this version cannot do is NOT_SUPPORTED_YET at its position, all of it at once', () => {
  const error = errorOf(() =>
    plan(`jobs:
  a:
    ${STEPS}
    cache: [{key: a, paths: [b]}]
    resources: {gpu: 1}
    permissions: {id-token: write}
    services: {db: {image: x}}
`),
  );
  assert.equal(error.code, 'NOT_SUPPORTED_YET');
  for (const place of ['5:5: `cache`', '6:17: `resources.gpu`', '7:5: `permissions`', '8:5: `services`']) {
    assert.ok(error.message.includes(`ct.yml:${place} is not supported yet`), `${place} in ${error.message}`);
  }
});

test('empty forms of what is not supported yet are fine, and so is a job that is not run', () => {
  only(`secrets: [], cache: [], resources: {gpu: 0}, permissions: {contents: none}, services: {}, ${STEPS}`);
  only(`permissions: none, ${STEPS}`);
  assert.deepEqual(names(`jobs: {a: {${STEPS}}, b: {cache: [{key: k, paths: [p]}], ${STEPS}}}`, ['a']), [
    'a',
  ]);
  assert.equal(errorOf(() => only(STEPS, { defaults: '{resources: {gpu: 1}}' })).code, 'NOT_SUPPORTED_YET');
});

test('secrets of job and step are lowered to what each step is given, with the place of each name', () => {
  const job = only(
    'secrets: [A, B], steps: [{run: one}, {run: two, secrets: {B: file, C: {env: TOKEN}, D: env}}]',
  );
  assert.deepEqual(
    job.steps.map(({ secrets }) => secrets),
    [
      [
        { name: 'A', env: 'A' },
        { name: 'B', env: 'B' },
      ],
      [{ name: 'A', env: 'A' }, { name: 'B' }, { name: 'C', env: 'TOKEN' }, { name: 'D', env: 'D' }],
    ],
  );
  assert.deepEqual(secretNames(job), ['A', 'B', 'C', 'D']);
  assert.deepEqual([...(job.spans?.secrets?.keys() ?? [])], ['A', 'B', 'C', 'D']);
  assert.equal(only(STEPS).steps[0]?.secrets, undefined);
});

test('a secret does not silently replace a variable, nor another secret', () => {
  for (const body of [
    `env: {A: x}, secrets: [A], ${STEPS}`,
    'secrets: [A], steps: [{run: x, env: {A: y}}]',
    'steps: [{run: x, env: {V: y}, secrets: {A: {env: V}}}]',
    'secrets: [A], steps: [{run: x, secrets: {B: {env: A}}}]',
  ]) {
    const error = errorOf(() => only(body));
    assert.equal(error.code, 'JOB_FILE_INVALID', body);
    assert.match(error.message, /would replace the variable/);
  }
  only('env: {A: x}, secrets: {A: file}, steps: [{run: x}]');
});

test('shells: a custom one is split at spaces and keeps the place of the script', () => {
  const shells = ['bash', 'sh', 'python', 'perl -w {0} --x'].map((shell) =>
    only(`steps: [{run: x, shell: "${shell}"}]`).steps[0]?.argv.join('|'),
  );
  assert.deepEqual(shells, [
    'bash|--noprofile|--norc|-eo|pipefail|{0}',
    'sh|-e|{0}',
    'python3|{0}',
    'perl|-w|{0}|--x',
  ]);
});

test('conditions and timeouts of steps are lowered', () => {
  const { steps } = only(
    'steps: [{run: a, if: failure(), timeout: 3s}, {run: b, if: always()}, {run: c, if: success()}]',
  );
  assert.deepEqual(
    steps.map((step) => [step.condition, step.timeoutMs]),
    [
      ['failure', 3000],
      ['always', undefined],
      ['success', undefined],
    ],
  );
});

test('a step without a name is called by the first line of its script', () => {
  const { steps } = only(
    `steps: [{run: "\\n  make all\\nx"}, {run: "${'y'.repeat(200)}"}, {name: "a\\tb", run: x}]`,
  );
  assert.deepEqual(
    steps.map((step) => step.name),
    ['make all', `${'y'.repeat(99)}…`, 'a b'],
  );
});

test('directories and artifact paths that leave the workspace are errors', () => {
  for (const path of ['/etc', '../x', 'a/../../b', '~/x']) {
    assert.match(
      errorOf(() => only(`artifacts: {paths: ["${path}"]}, ${STEPS}`)).message,
      /the artifact path/,
      path,
    );
    assert.match(
      errorOf(() => only(`steps: [{run: x, working-directory: "${path}"}]`)).message,
      /the working dir/,
      path,
    );
  }
  assert.deepEqual(only(`artifacts: {paths: ["**/*.log", "!x/..y"]}, ${STEPS}`).artifacts, [
    '**/*.log',
    '!x/..y',
  ]);
});

test('a matrix of more than 256 jobs, or of none, is an error at the matrix', () => {
  const many = Array.from({ length: 20 }, (_, index) => index).join(',');
  assert.match(
    errorOf(() => plan(`jobs:\n  a: {matrix: {a: [${many}], b: [${many}]}, ${STEPS}}`)).message,
    /ct\.yml:3:7: the matrix has more than 256 combinations/,
  );
  assert.match(
    errorOf(() => only(`matrix: {a: [1], exclude: [{a: 1}]}, ${STEPS}`)).message,
    /no combination left/,
  );
});

test('a small file that expands to a huge request is refused', () => {
  const value = 'v'.repeat(100_000);
  const run = '${{ env.V }}'.repeat(4);
  const steps = Array.from({ length: 100 }, () => `{run: "${run}"}`).join(', ');
  const error = errorOf(() => only(`env: {V: ${value}}, steps: [${steps}]`));
  assert.match(error.message, /is larger than 4194304 bytes/);
  assert.match(
    errorOf(() => only(`env: {V: ${value}}, steps: [{run: "${run}${run}"}]`)).message,
    /longer than 524288/,
  );
});

test('RESOURCES_EXCEED_HOST names the line and what the host has', () => {
  const planned = plan(`defaults: {resources: {cpu: 8}}\njobs:\n  a: {resources: {memory: 64G}, ${STEPS}}`);
  const error = errorOf(() => checkCapacity(planned, { cpus: 4, memoryMib: 8000 }));
  assert.equal(error.code, 'RESOURCES_EXCEED_HOST');
  assert.match(error.message, /ct\.yml:2:24: job `a` asks for 8 cpus; this host has 4\n/);
  assert.match(error.message, /ct\.yml:4:19: job `a` asks for 64G of memory; this host has 8000M/);
  checkCapacity(planned, { cpus: 8, memoryMib: 65_536 });
  const byDefault = plan(`jobs:\n  a: {${STEPS}}`);
  assert.match(
    errorOf(() => checkCapacity(byDefault, { cpus: 1, memoryMib: 1000 })).message,
    /ct\.yml:3:3: .*2G/,
  );
});

test('a command line is planned as a job of one step', () => {
  const [job] = planCommand({ argv: ['echo', 'a b'], env: { A: '1' }, cpus: 2, stdin: true }).jobs;
  assert.equal(job?.name, 'echo a b');
  assert.deepEqual(job?.steps[0], {
    name: 'echo a b',
    argv: ['echo', 'a b'],
    env: {},
    workingDirectory: '.',
    condition: 'success',
    stdin: true,
  });
  assert.deepEqual([job?.cpus, job?.env['A'], job?.directory], [2, '1', 'command']);
  assert.equal(errorOf(() => planCommand({ argv: [] })).code, 'USAGE');
  assert.equal(
    errorOf(() => checkCapacity(planCommand({ argv: ['x'], memoryMib: 99_999 }), { cpus: 1, memoryMib: 10 }))
      .code,
    'RESOURCES_EXCEED_HOST',
  );
});

test('a step with packages is two: one that fetches, and one of ours that checks', () => {
  const { steps } = only('steps: [{name: i, run: npm ci, packages: npm}, {run: npm test, network: none}]');
  assert.deepEqual(
    steps.map(({ name, network, packages }) => [name, network, packages?.role]),
    [
      ['i', undefined, 'fetch'],
      ['npm: packages are those of the lock file', 'none', 'verify'],
      ['npm test', 'none', undefined],
    ],
  );
  for (const more of ['network: none', "if: 'always()'"]) {
    const error = errorOf(() => only(`steps: [{run: npm ci, packages: npm, ${more}}]`));
    assert.equal(error.code, 'JOB_FILE_INVALID');
    assert.match(error.message, /a step with `packages` cannot have/);
  }
});

test('what a job asks of its code is sent along; the command line comes first', () => {
  assert.equal(only(STEPS).exec, undefined);
  assert.equal(only(`exec: audit, ${STEPS}`).exec, 'audit');
  assert.equal(only(`exec: audit, ${STEPS}`, { exec: 'terminate' }).exec, 'terminate');
  const [job] = planCommand({ argv: ['true'], exec: 'enforce' }).jobs;
  assert.ok(job);
  assert.equal(toJobRequest(job, { image: 'sha256:0', sendsTree: true }).exec, 'enforce');
});
