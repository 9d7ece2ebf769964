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
  const { detected, content, plan } = initAndPlan({
    'package.json': JSON.stringify(manifest),
    'package-lock.json': '{}',
  });
  assert.deepEqual(detected, ['npm (package.json)']);
  assert.deepEqual(scripts(plan), { build: ['npm ci', 'npm run lint', 'npm run build', 'npm test'] });
  assert.equal(plan.jobs[0]?.image, 'node');
  assert.deepEqual(plan.jobs[0]?.network, { allow: ['npm'] });
  assert.match(content, /# The job reaches the registries of npm.*and nothing else/);
  const fresh = initAndPlan({
    'package.json': '{"scripts":{"test":"echo \\"Error: no test specified\\" && exit 1"}}',
  });
  assert.deepEqual(scripts(fresh.plan), { build: ['node --version && npm --version'] });
  assert.equal(fresh.plan.jobs[0]?.network, undefined, 'nothing to download, no network');
});

test('npm: the lock file tells the client', () => {
  const files = { 'package.json': '{"scripts":{"test":"x"}}', 'yarn.lock': '' };
  assert.deepEqual(scripts(initAndPlan(files).plan), { build: ['yarn test'] });
  const manifest = '{"scripts":{"test":"x"},"dependencies":{"a":"1"}}';
  for (const [lock, install] of [
    ['yarn.lock', 'yarn install --frozen-lockfile'],
    ['pnpm-lock.yaml', 'pnpm install --frozen-lockfile'],
    ['none', 'npm install'],
  ] as const) {
    const { plan } = initAndPlan({ 'package.json': manifest, [lock]: '' });
    assert.equal(scripts(plan)['build']?.[0], install);
    assert.deepEqual(plan.jobs[0]?.network, { allow: ['npm'] });
  }
});

test('make: the targets are found, assignments and patterns are not targets', () => {
  const makefile = 'CC := gcc\nall: a.o\n%.o: %.c\n\tcc\ncheck:: all\n\t./t\n.PHONY: all check\n';
  const { plan, content } = initAndPlan({ Makefile: makefile });
  assert.deepEqual(scripts(plan), { build: ['make all', 'make check'] });
  assert.equal(plan.jobs[0]?.image, 'debian-12');
  assert.match(content, /image: debian-12/);
  assert.deepEqual(scripts(initAndPlan({ Makefile: 'prog:\n' }).plan), { build: ['make'] });
});

test('cargo and go: a network where something is to be downloaded, none where it is vendored', () => {
  const manifest = '[package]\n[dependencies]\nserde = "1"\n';
  const cargo = initAndPlan({ 'Cargo.toml': manifest, 'Cargo.lock': '' });
  assert.deepEqual(scripts(cargo.plan), { build: ['cargo build --locked', 'cargo test --locked'] });
  assert.deepEqual(cargo.plan.jobs[0]?.network, { allow: ['cargo'] });
  assert.match(cargo.content, /follows ~\/\.cargo\/config\.toml/);
  const vendored = initAndPlan({ 'Cargo.toml': manifest, 'vendor/x': '' });
  assert.deepEqual(scripts(vendored.plan), { build: ['cargo build --offline', 'cargo test --offline'] });
  assert.equal(vendored.plan.jobs[0]?.network, undefined);
  const go = initAndPlan({ 'go.mod': 'module x\n', 'go.sum': 'x\n' });
  assert.deepEqual(scripts(go.plan), { build: ['go build ./...', 'go vet ./...', 'go test ./...'] });
  assert.deepEqual(go.plan.jobs[0]?.network, { allow: ['go'] });
  assert.match(go.content, / Write \.ct\/images\/ci\.yml with:/, 'where definitions are looked for');
  assert.match(go.content, / {2}# {3}holds:\n {2}# {5}keys: \[\/usr\/share\/go-1\.19\/\S+-key\.pem\]\n/);
  assert.doesNotMatch(cargo.content, /holds/);
  const local = initAndPlan({ 'go.mod': '', 'go.sum': '', 'vendor/modules.txt': '' });
  assert.equal(local.plan.jobs[0]?.network, undefined);
});

test('python: requirements are installed from pypi, pytest where it is mentioned, unittest otherwise', () => {
  const pytest = initAndPlan({ 'pyproject.toml': '[tool.x]\ntest = ["pytest>=7"]\n' });
  assert.equal(scripts(pytest.plan)['build']?.at(-1), 'python3 -m pytest');
  assert.match(pytest.content, /extends: python\n {2}# {3}packages: \[python3-pytest\]/);
  assert.equal(pytest.plan.jobs[0]?.image, 'ci');
  assert.equal(pytest.plan.jobs[0]?.network, undefined);
  const plain = initAndPlan({ 'requirements.txt': 'requests\n' });
  assert.deepEqual(scripts(plain.plan)['build']?.slice(-2), [
    '.venv/bin/pip install -r requirements.txt',
    '.venv/bin/python -m unittest discover',
  ]);
  assert.equal(plain.plan.jobs[0]?.image, 'python');
  for (const [requirements, install] of [
    ['pytest==8.0\n', '.venv/bin/pip install -r requirements.txt'],
    ['requests\n', '.venv/bin/pip install -r requirements.txt pytest'],
  ] as const) {
    const tested = initAndPlan({ 'requirements.txt': requirements, 'conftest.py': '' });
    assert.deepEqual(scripts(tested.plan)['build']?.slice(-2), [install, '.venv/bin/python -m pytest']);
    assert.equal(tested.plan.jobs[0]?.image, 'python');
  }
  assert.deepEqual(plain.plan.jobs[0]?.network, { allow: ['pypi'] });
  const project = initAndPlan({ 'pyproject.toml': '[project]\nname = "x"\n' });
  assert.ok(scripts(project.plan)['build']?.includes('.venv/bin/pip install -e .'));
});

test('several tools get a job each, each in its image', () => {
  const { detected, plan, content } = initAndPlan({
    'package.json': '{}',
    'go.mod': '',
    Makefile: 'test:\n',
  });
  assert.deepEqual(detected, ['npm (package.json)', 'go (go.mod)', 'make (Makefile)']);
  assert.deepEqual(
    plan.jobs.map((job) => [job.name, job.image]),
    [
      ['node', 'node'],
      ['go', 'ci'],
      ['make', 'debian-12'],
    ],
  );
  assert.match(content, /extends: debian-12\n {2}# {3}packages: \[golang-go\]/);
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
