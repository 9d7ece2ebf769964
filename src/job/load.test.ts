// biome-ignore-all lint/suspicious/noTemplateCurlyInString: expressions of the job file, not of this language
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { CtError } from '../core/errors.ts';
import { formatPosition, SourceText } from '../core/source-text.ts';
import { loadJobs, loadSources } from './load.ts';

const scratch = mkdtempSync(join(tmpdir(), 'ct-load-'));
after(() => rmSync(scratch, { recursive: true }));
let projects = 0;

/** A directory with the given files. */
function project(files: Record<string, string>): string {
  const root = join(scratch, `p${projects++}`);
  mkdirSync(root);
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(join(root, name, '..'), { recursive: true });
    writeFileSync(join(root, name), content);
  }
  return root;
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

function problem(text: string): CtError {
  return errorOf(() => loadSources('/p', [new SourceText('ct.yml', text)]));
}

/** The error of a file whose one job has `body` beside valid steps. */
function jobProblem(body: string): CtError {
  return problem(`version: 1\njobs:\n  a:\n    steps: [{run: x}]\n    ${body}\n`);
}

const MINIMAL = 'version: 1\njobs: {a: {steps: [{run: make}]}}\n';

test('every key is parsed into the typed spec', () => {
  const loaded = loadSources('/p', [
    new SourceText(
      'ct.yml',
      `
version: 1
x-shared: &env {A: 1}
defaults: {image: base, timeout: 2h, shell: sh, working-directory: sub, env: {Z: 1}, resources: {cpu: 2}}
jobs:
  a:
    image: debian-12
    resources: {cpu: 4, memory: 1GiB, disk: 20G, gpu: 1}
    env: {<<: *env, B: true, C: "x"}
    needs: b
    matrix: {node: [18, 3.10], include: [{node: 21}], exclude: [{node: 18}]}
    timeout: 1h30m
    steps:
      - {name: n, run: "true", env: {D: ""}, working-directory: w, shell: "perl {0}", timeout: 5s, if: always()}
    secrets: [TOKEN]
    network: {allow: [npm, "*.example.org"], mode: terminate}
    cache: [{key: k, paths: [p]}]
    artifacts: {paths: [dist], expire: 7d}
    permissions: {contents: read}
    services: {db: {image: postgres, env: {P: 1}, ports: [5432], command: run}}
  b:
    network: none
    permissions: none
    steps: [{run: true}]
`,
    ),
  ]);
  const { spec, defaults } = loaded.jobs.get('a') ?? assert.fail();
  assert.equal(defaults.workingDirectory?.text, 'sub');
  assert.equal(defaults.timeout, 7_200_000);
  assert.deepEqual(spec.resources, { cpu: 4, memory: 1024, disk: 20_480, gpu: 1 });
  assert.deepEqual(
    Object.entries(spec.env ?? {}).map(([name, value]) => [name, value.text]),
    [
      ['B', 'true'],
      ['C', 'x'],
      ['A', '1'],
    ],
  );
  assert.deepEqual(spec.needs, ['b']);
  assert.deepEqual({ ...spec.matrix?.axes }, { node: ['18', '3.10'] });
  assert.equal(spec.timeout, 5_400_000);
  const [step] = spec.steps;
  assert.equal(step?.workingDirectory?.text, 'w');
  assert.equal(step?.shell, 'perl {0}');
  assert.equal(step?.if, 'always()');
  assert.equal(step?.timeout, 5000);
  assert.deepEqual(spec.secrets, ['TOKEN']);
  assert.deepEqual(spec.network, { allow: ['npm', '*.example.org'], mode: 'terminate' });
  assert.equal(spec.cache?.[0]?.key.text, 'k');
  assert.equal(spec.artifacts?.expire, 604_800_000);
  assert.deepEqual({ ...(spec.permissions as object) }, { contents: 'read' });
  assert.deepEqual(spec.services?.['db']?.ports, [5432]);
  assert.equal(loaded.jobs.get('b')?.spec.network, 'none');
  assert.equal(loaded.jobs.get('b')?.spec.steps[0]?.run.text, 'true');
  assert.equal(formatPosition(loaded.locations.of(spec, 'timeout')), 'ct.yml:12:5');
});

test('an unknown key is shown with line, caret and the nearest known key', () => {
  const error = problem('version: 1\njobs:\n  build:\n    stpes:\n      - run: make\n');
  assert.equal(error.code, 'JOB_FILE_INVALID');
  assert.equal(
    error.message,
    'ct.yml:4:5: unknown key `stpes`\n  4 |     stpes:\n    |     ^^^^^\n    = did you mean `steps`?',
  );
});

test('a key that resembles none lists the keys there are', () => {
  assert.match(
    jobProblem('volumes: []').message,
    /unknown key `volumes`[\s\S]*the keys here are `image`, `resources`/,
  );
});

test('all errors of a file are reported at once', () => {
  const { message } = problem(
    'version: 2\nfoo: 1\njobs:\n  a: {steps: [], timeout: 5}\n  b: {}\n  1x: {steps: x}\n',
  );
  for (const part of [
    '1:10: expected the number `1`',
    '2:1: unknown key `foo`',
    '4:14: expected a list of steps',
    '4:27',
    '5:6: the key `steps` is missing',
    '6:3: `1x` is not a job id',
    '6:15',
  ]) {
    assert.ok(message.includes(`ct.yml:${part}`), `${part} in\n${message}`);
  }
});

test('wrong types say what was expected, what was found and what to write', () => {
  assert.match(jobProblem('timeout: 30').message, /5:14: expected a duration.*found `30`[\s\S]*write `30s`/);
  assert.match(jobProblem('resources: {memory: 2048}').message, /found `2048`[\s\S]*write `2048M`/);
  assert.match(jobProblem('resources: {memory: 2 gb}').message, /write `2G`/);
  assert.match(jobProblem('resources: {memory: 1M}').message, /`1M` is not between 128M and 4T/);
  assert.match(jobProblem('resources: {cpu: "2"}').message, /found the string `2`[\s\S]*remove the quotes/);
  assert.match(jobProblem('resources: {cpu: 1.5}').message, /a whole number from 1 to 256/);
  assert.match(jobProblem('resources: {cpu: 0}').message, /a whole number from 1 to 256/);
  assert.match(jobProblem('artifacts: dist').message, /expected a mapping with `paths`/);
  assert.match(jobProblem('artifacts: {paths: dist}').message, /write `\[dist\]`/);
  assert.match(jobProblem('env: [A=1]').message, /expected a mapping of variable names/);
  assert.match(jobProblem('image:').message, /expected an image name, found nothing/);
  assert.match(jobProblem('image: ""').message, /empty string/);
  assert.match(jobProblem('secrets: [true]').message, /found the boolean `true`[\s\S]*put it in quotes/);
  assert.match(problem('version: 1\njobs: {a: {steps: [make]}}').message, /write `- run: make`/);
  assert.match(
    problem('version: 1\njobs: {a: {steps: [{run: x, if: failed()}]}}').message,
    /expected `success\(\)`/,
  );
  assert.match(problem('version: 1\njobs: {a: {steps: [{run: x, shell: zsh}]}}').message, /the word `\{0\}`/);
  assert.match(
    problem('- a').message,
    /ct\.yml:1:1: expected a mapping with `version` and `jobs`, found a list/,
  );
});

test('env values may be numbers and booleans, but not null, lists or NUL', () => {
  assert.match(jobProblem('env: {A: null}').message, /expected a string, number or boolean, found nothing/);
  assert.match(jobProblem('env: {A: [1]}').message, /found a list/);
  assert.match(jobProblem('env: {A: "\\0"}').message, /NUL/);
});

test('variables that ct sets itself are reserved, its setting CT_HOME is not', () => {
  assert.match(jobProblem('env: {CT_RUN: 1}').message, /`CT_RUN` is reserved/);
  assert.match(jobProblem('env: {CT: 1}').message, /`CT` is reserved/);
  assert.doesNotThrow(() =>
    loadSources('/p', [new SourceText('ct.yml', MINIMAL.replace('{steps', '{env: {CT_HOME: x}, steps'))]),
  );
});

test('names from the prototype of objects are names like any other', () => {
  assert.match(jobProblem('constructor: 1').message, /unknown key `constructor`/);
  const { jobs } = loadSources('/p', [new SourceText('ct.yml', MINIMAL.replace('a:', '__proto__:'))]);
  assert.deepEqual([...jobs.keys()], ['__proto__']);
});

test('what is wrong with a destination is said at its place, with what to write', () => {
  const wrong: [string, RegExp][] = [
    ['[npm, nmp]', /5:20: there is no network preset `nmp`[\s\S]*did you mean `npm`\?/],
    ['[internal]', /no network preset `internal`[\s\S]*presets are `npm`, .*`https:\/\/internal`/],
    ['{allow: [https://example.com/path]}', /5:23: .*has a path[\s\S]*write `https:\/\/example\.com`/],
    ['["tcp://example.com"]', /names no port[\s\S]*tcp:\/\/example\.com:PORT/],
    ['["example.com:443"]', /does not say which protocol/],
    ['["*"]', /`\*` is not for jobs/],
    ['["ftp://example.com"]', /`ftp:\/\/` is not known/],
    ['["a b.example"]', /not the name of a host/],
    ['{mode: off}', /expected `audit` or `enforce` or `terminate`/],
    ['{allow: npm}', /write `\[npm\]`/],
    ['npm', /expected `none` or a list of destinations[\s\S]*write `\[npm\]` to allow it/],
    ['all', /expected `none`/],
    ['', /found nothing/],
  ];
  for (const [body, expected] of wrong) assert.match(jobProblem(`network: ${body}`).message, expected, body);
  assert.match(problem(`${MINIMAL}network: [nmp]\n`).message, /3:11: there is no network preset/);
  const step = MINIMAL.replace('{run: make}', '{run: make, network: [npm]}');
  assert.match(problem(step).message, /expected `none`, found a list/);
});

test('an expression where none is evaluated is an error, as is a matrix name the job does not have', () => {
  assert.equal(jobProblem('timeout: ${{ env.T }}').code, 'JOB_EXPRESSION_INVALID');
  assert.match(jobProblem('timeout: ${{ env.T }}').message, /5:14: expressions are not evaluated here/);
  const { code, message } = jobProblem('matrix: {node: [1]}\n    image: "a${{ matrix.nod }}"');
  assert.equal(code, 'JOB_EXPRESSION_INVALID');
  assert.match(message, /6:14: unknown name `matrix\.nod`[\s\S]*did you mean `node`\?/);
});

test('needs of an unknown job and exclude of an unknown axis are errors', () => {
  assert.match(jobProblem('needs: [b]\n  bb: {steps: [{run: x}]}').message, /5:13: job `a` needs `b`, but/);
  assert.match(
    jobProblem('matrix: {node: [1], exclude: [{nod: 1}]}').message,
    /which is no axis[\s\S]*`node`\?/,
  );
});

test('an empty file, an empty mapping of jobs and a comment alone are errors that say what to do', () => {
  assert.match(problem('').message, /the file is empty[\s\S]*ct init/);
  assert.match(problem('# hello\n').message, /the file is empty/);
  assert.match(problem('version: 1\njobs: {}').message, /empty mapping/);
});

test('a file with thousands of errors gives a bounded report quickly', () => {
  const startedAt = performance.now();
  const { message } = problem(Array.from({ length: 50_000 }, (_, index) => `k${index}: 1`).join('\n'));
  assert.ok(message.length < 10_000);
  assert.ok(performance.now() - startedAt < 10_000);
});

test('ct.yml and .ct/*.yml are merged in order; each file has its own defaults', () => {
  const root = project({
    'ct.yml': MINIMAL,
    '.ct/b.yml': 'version: 1\ndefaults: {image: other}\njobs: {b: {needs: a, steps: [{run: x}]}}',
    '.ct/c.yml': 'version: 1\njobs: {c: {steps: [{run: x}]}}',
    '.ct/notes.txt': 'no job file',
    '.ct/out/x.yml': 'no job file',
  });
  const loaded = loadJobs(root);
  assert.deepEqual(loaded.files, ['ct.yml', '.ct/b.yml', '.ct/c.yml']);
  assert.deepEqual([...loaded.jobs.keys()], ['a', 'b', 'c']);
  assert.equal(loaded.jobs.get('b')?.defaults.image?.text, 'other');
  assert.equal(loaded.jobs.get('c')?.defaults.image, undefined);
});

test('a job id in two files is an error that names both places', () => {
  const root = project({ 'ct.yml': MINIMAL, '.ct/b.yml': MINIMAL });
  assert.match(errorOf(() => loadJobs(root)).message, /^\.ct\/b\.yml:2:8: duplicate job `a`; .* ct\.yml:2:8/);
});

test('JOB_FILE_NOT_FOUND says what to do, and notices a misnamed file', () => {
  const nothing = errorOf(() => loadJobs(project({})));
  assert.equal(nothing.code, 'JOB_FILE_NOT_FOUND');
  assert.match(nothing.hint ?? '', /ct init/);
  assert.match(errorOf(() => loadJobs(project({ 'ct.yaml': MINIMAL }))).hint ?? '', /the name is ct\.yml/);
  assert.equal(errorOf(() => loadJobs(join(scratch, 'none'))).code, 'JOB_FILE_NOT_FOUND');
});

test('inside a git work tree the job file is also found from below, and nowhere else', () => {
  const root = project({ '.git/HEAD': '', 'ct.yml': MINIMAL, 'a/b/x': '' });
  assert.equal(loadJobs(join(root, 'a/b')).root, root);
  const outside = project({ 'ct.yml': MINIMAL, 'a/x': '' });
  assert.equal(errorOf(() => loadJobs(join(outside, 'a'))).code, 'JOB_FILE_NOT_FOUND');
});

test('a huge and a binary job file are refused', () => {
  const huge = project({ 'ct.yml': `# ${'x'.repeat(1_100_000)}` });
  assert.match(errorOf(() => loadJobs(huge)).message, /ct\.yml is larger than 1048576 bytes/);
  const binary = project({ 'ct.yml': '\u007fELF\0' });
  assert.match(errorOf(() => loadJobs(binary)).message, /ct\.yml is binary/);
});
