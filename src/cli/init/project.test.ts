import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { loadJobs } from '../../job/load.ts';
import { type Plan, planJobs } from '../../job/plan.ts';
import { initProject } from '../commands/init.ts';

const scratch = mkdtempSync(join(tmpdir(), 'ct-init-'));
after(() => rmSync(scratch, { recursive: true, force: true }));
let projects = 0;

function project(files: Record<string, string>): string {
  const root = join(scratch, `p${projects++}`);
  mkdirSync(root);
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), content);
  }
  return root;
}

/** Writes the file, parses it with the real parser, and plans all of its jobs. */
function initAndPlan(files: Record<string, string>): {
  detected: readonly string[];
  content: string;
  plan: Plan;
} {
  const directory = project(files);
  const { path, content, detected } = initProject({ directory, force: false });
  assert.equal(readFileSync(path, 'utf8'), content);
  assert.ok(content.split('\n').every((line) => line.length <= 120));
  return { detected, content, plan: planJobs(loadJobs(directory), { targets: [] }) };
}

function scripts(plan: Plan): Record<string, (string | undefined)[]> {
  return Object.fromEntries(plan.jobs.map((job) => [job.name, job.steps.map((step) => step.script?.trim())]));
}

test('npm: the scripts of package.json become steps, what npm init writes does not', () => {
  const manifest = {
    scripts: { build: 'tsc', test: 'node --test', lint: 'x', start: 'y' },
    devDependencies: { a: '1' },
  };
  const { detected, content, plan } = initAndPlan({ 'package.json': JSON.stringify(manifest) });
  assert.deepEqual(detected, ['npm (package.json)']);
  assert.deepEqual(scripts(plan), { build: ['npm run lint', 'npm run build', 'npm test'] });
  assert.match(content, /packages: \[nodejs, npm\]/);
  assert.match(content, /--no-ignore/);
  const fresh = initAndPlan({
    'package.json': '{"scripts":{"test":"echo \\"Error: no test specified\\" && exit 1"}}',
  });
  assert.deepEqual(scripts(fresh.plan), { build: ['node --version && npm --version'] });
});

test('npm: the lock file tells the client', () => {
  const files = { 'package.json': '{"scripts":{"test":"x"}}', 'yarn.lock': '' };
  assert.deepEqual(scripts(initAndPlan(files).plan), { build: ['yarn test'] });
});

test('make: the targets are found, assignments and patterns are not targets', () => {
  const makefile = 'CC := gcc\nall: a.o\n%.o: %.c\n\tcc\ncheck:: all\n\t./t\n.PHONY: all check\n';
  const { plan, content } = initAndPlan({ Makefile: makefile });
  assert.deepEqual(scripts(plan), { build: ['make all', 'make check'] });
  assert.equal(plan.jobs[0]?.image, 'debian-12');
  assert.match(content, /image: debian-12/);
  assert.deepEqual(scripts(initAndPlan({ Makefile: 'prog:\n' }).plan), { build: ['make'] });
});

test('cargo and go: builds work without a network, and vendoring is recommended where it is missing', () => {
  const cargo = initAndPlan({ 'Cargo.toml': '[package]\n[dependencies]\nserde = "1"\n', 'Cargo.lock': '' });
  assert.deepEqual(scripts(cargo.plan), {
    build: ['cargo build --offline --locked', 'cargo test --offline --locked'],
  });
  assert.match(cargo.content, /cargo vendor/);
  assert.doesNotMatch(initAndPlan({ 'Cargo.toml': '[package]\n' }).content, /cargo vendor/);
  const go = initAndPlan({ 'go.mod': 'module x\n', 'go.sum': 'x\n' });
  assert.deepEqual(scripts(go.plan), { build: ['go build ./...', 'go vet ./...', 'go test ./...'] });
  assert.match(go.content, /go mod vendor/);
  assert.doesNotMatch(
    initAndPlan({ 'go.mod': '', 'go.sum': '', 'vendor/modules.txt': '' }).content,
    /mod vendor/,
  );
});

test('python: pytest where it is mentioned, unittest otherwise', () => {
  const pytest = initAndPlan({ 'pyproject.toml': '[project.optional-dependencies]\ntest = ["pytest>=7"]\n' });
  assert.equal(scripts(pytest.plan)['build']?.at(-1), 'python3 -m pytest');
  assert.match(pytest.content, /packages: \[python3-pytest\]/);
  const plain = initAndPlan({ 'requirements.txt': 'requests\n' });
  assert.equal(scripts(plain.plan)['build']?.at(-1), 'python3 -m unittest discover');
  assert.equal(plain.plan.jobs[0]?.image, 'debian-12');
});

test('several tools get a job each and one image', () => {
  const { detected, plan, content } = initAndPlan({
    'package.json': '{}',
    'go.mod': '',
    Makefile: 'test:\n',
  });
  assert.deepEqual(detected, ['npm (package.json)', 'go (go.mod)', 'make (Makefile)']);
  assert.deepEqual(
    plan.jobs.map((job) => [job.name, job.image]),
    [
      ['node', 'ci'],
      ['go', 'ci'],
      ['make', 'ci'],
    ],
  );
  assert.match(content, /packages: \[nodejs, npm, golang-go\]/);
});

test('nothing recognised gives a file to start from', () => {
  const { detected, plan } = initAndPlan({});
  assert.deepEqual(detected, []);
  assert.deepEqual(
    plan.jobs[0]?.steps.map((step) => step.condition),
    ['success', 'always'],
  );
});

test('a broken, huge or strange file of a tool does no harm', () => {
  for (const content of ['{', '[]', 'null', '{"scripts": 5}', '{"scripts": {"test": 1}}', '\0']) {
    assert.equal(initAndPlan({ 'package.json': content }).detected.length, 1, content);
  }
  initAndPlan({ Makefile: 'a'.repeat(2_000_000) });
  initAndPlan({ 'package.json/x': '' });
});

test('USAGE when there is a job file already; force replaces it', () => {
  const directory = project({ 'ct.yml': 'mine' });
  assert.throws(() => initProject({ directory, force: false }), {
    code: 'USAGE',
    message: /a job file already/,
  });
  assert.equal(readFileSync(join(directory, 'ct.yml'), 'utf8'), 'mine');
  initProject({ directory, force: true });
  assert.match(readFileSync(join(directory, 'ct.yml'), 'utf8'), /^# Jobs/);
  assert.throws(() => initProject({ directory: project({ '.ct/a.yml': '' }), force: false }), {
    code: 'USAGE',
  });
  assert.throws(() => initProject({ directory: join(scratch, 'none'), force: false }), { code: 'USAGE' });
});
