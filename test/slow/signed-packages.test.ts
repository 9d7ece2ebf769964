/**
 * Packages: what a step with a network has unpacked is data, and nothing of it runs. `packages: npm` checks it against the lock file
 * and installs it once more without a network; pip does the same with hashes. A registry that serves something else, or a step that
 * changes the lock file, ends the run.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { CodeHost, type CodeRun, type CodeStep } from '../support/code-host.ts';
import { type NpmPackage, npmPackage, publish, wheel } from '../support/package-registry.ts';

/** npm takes its time under emulation. */
const LIMIT = { timeout: 480_000 };

let host: CodeHost;
let files: Readonly<Record<string, string>>;
let good: NpmPackage;
const EVIL_SOURCE = "console.log('evil-ran');\n";

before(async () => {
  host = await CodeHost.open(['node', 'python']);
  const manifest = {
    name: 'greet',
    version: '1.0.0',
    bin: { greet: 'cli.js' },
    scripts: { install: 'node build.js' },
  };
  good = npmPackage(manifest, {
    'index.js': "exports.greet = () => require('./made.json').word;\n",
    'cli.js': "#!/usr/bin/env node\nconsole.log(require('./index.js').greet());\n",
    'build.js':
      "require('node:fs').writeFileSync('made.json', JSON.stringify({ word: 'hello-from-package' }));\n",
  });
  files = npmProject(publish(host.registry, host.origin, good));
});
after(() => host[Symbol.asyncDispose]());

function npmProject(entry: object): Record<string, string> {
  const scripts = { test: 'node test.js && greet' };
  const project = { name: 'app', version: '1.0.0', scripts, dependencies: { greet: '1.0.0' } };
  const { name, version, dependencies } = project;
  const packages = {
    '': { name, version, dependencies },
    'node_modules/greet': { ...entry, hasInstallScript: true, bin: { greet: 'cli.js' } },
  };
  const lock = { name, version, lockfileVersion: 3, requires: true, packages };
  return {
    'package.json': `${JSON.stringify(project, null, 2)}\n`,
    'package-lock.json': `${JSON.stringify(lock, null, 2)}\n`,
    'test.js': "require('node:assert').equal(require('greet').greet(), 'hello-from-package');\n",
  };
}

const INSTALL: CodeStep = { name: 'install', run: 'npm ci', packages: 'npm' };
const TEST: CodeStep = { name: 'test', run: 'npm test', network: 'none' };

function said({ outcome, job }: CodeRun): string {
  return `${outcome.stderr}\n${JSON.stringify(job)}`;
}

function npm(change: Partial<Parameters<CodeHost['run']>[0]>): Promise<CodeRun> {
  return host.run({ exec: 'terminate', image: 'node', files, steps: [INSTALL, TEST], ...change });
}

test(
  'npm ci, then npm test: checked packages run, their install scripts too, and nothing is said',
  LIMIT,
  async () => {
    const run = await npm({});
    assert.equal(run.outcome.status, 0, said(run));
    assert.deepEqual([run.alerts, run.job.code], [[], undefined]);
    assert.match(run.outcome.stderr, /hello-from-package/);
    assert.deepEqual(
      run.job.steps.map(({ name }: { name: string }) => name),
      ['install', 'npm: packages are those of the lock file', 'test'],
    );
  },
);

test('negative control: packages that nobody has checked do not run', LIMIT, async () => {
  const run = await npm({
    steps: [{ name: 'install', run: 'npm ci --ignore-scripts --no-bin-links' }, TEST],
  });
  assert.equal(run.outcome.status, 122, said(run));
  assert.equal(run.alerts[0]?.rule, 'ct.exec.unsigned');
  assert.match(String(run.alerts[0]?.file?.path), /^\/workspace\/node_modules\/greet\/index\.js$/);
});

async function assertStopped(run: CodeRun, path: RegExp): Promise<void> {
  assert.equal(run.outcome.status, 122, said(run));
  const alert = run.alerts.find(({ action }) => action === 'terminated');
  assert.equal(alert?.rule, 'ct.exec.packages', said(run));
  assert.match(String(alert?.file?.path), path);
  assert.doesNotMatch(run.outcome.stderr, /evil-ran/);
  assert.ok(await host.isGone(run.job.run));
}

test('an archive that is not the one of the lock file ends the run', LIMIT, async () => {
  const evil = npmPackage({ name: 'greet', version: '1.0.0' }, { 'index.js': EVIL_SOURCE });
  publish(host.registry, host.origin, evil);
  try {
    await assertStopped(await npm({}), /^package-lock\.json$/);
  } finally {
    publish(host.registry, host.origin, good);
  }
});

test('a lock file that the step changes ends the run, and so does one that it adds', LIMIT, async () => {
  const evil = npmPackage(
    { name: 'greet', version: '1.0.0' },
    { 'index.js': EVIL_SOURCE, 'cli.js': EVIL_SOURCE },
  );
  host.registry.files.set('/greet/-/evil.tgz', evil.archive);
  const change = `sed -i -e 's,greet-1.0.0.tgz,evil.tgz,' -e 's,"sha512-[^"]*","${evil.integrity}",' package-lock.json`;
  const changed: CodeStep = { ...INSTALL, run: `${change}\nnpm ci` };
  await assertStopped(await npm({ steps: [changed, TEST] }), /^package-lock\.json$/);
  const added: CodeStep = {
    ...INSTALL,
    run: `cp package-lock.json npm-shrinkwrap.json\n${change.replace('package-lock', 'npm-shrinkwrap')}\nnpm ci`,
  };
  await assertStopped(await npm({ steps: [added, TEST] }), /^npm-shrinkwrap\.json$/);
});

test('what lies in the cache of npm is compared, too', LIMIT, async () => {
  const spoil = 'find ~/.npm/_cacache/content-v2 -type f | while read -r file; do echo evil > "$file"; done';
  const run = await npm({ steps: [{ ...INSTALL, run: `npm ci\n${spoil}` }, TEST] });
  assert.ok(run.outcome.status === 122 || run.outcome.status === 1, said(run));
  assert.equal(run.job.steps[1].outcome, 'failure', said(run));
  assert.notEqual(run.job.steps[2].outcome, 'success', said(run));
});

test(
  'without control of code, a check that fails is PACKAGES_UNVERIFIED, and the job fails',
  LIMIT,
  async () => {
    const { 'package-lock.json': _, ...withoutLock } = files;
    const install: CodeStep = { ...INSTALL, run: 'npm install' };
    const run = await host.run({ image: 'node', files: withoutLock, steps: [install, TEST] });
    assert.equal(run.outcome.status, 1, said(run));
    assert.equal(run.job.error?.code, 'PACKAGES_UNVERIFIED', said(run));
    assert.match(run.outcome.stderr, /package-lock\.json is not in the working tree/);
    assert.deepEqual(run.alerts, []);
  },
);

test(
  'pip: wheels are fetched and installed by their hashes, and a program that uses them runs',
  LIMIT,
  async () => {
    const greet = wheel('greet', '1.0', "WORD = 'hello-from-wheel'\n");
    host.registry.files.set(`/wheels/${greet.file}`, greet.bytes);
    const index = `<a href="/wheels/${greet.file}#sha256=${greet.digest}">${greet.file}</a>`;
    host.registry.files.set('/simple/greet/', Buffer.from(index));
    const python = (digest: string): Promise<CodeRun> =>
      host.run({
        exec: 'terminate',
        image: 'python',
        files: {
          'requirements.txt': `greet==1.0 --hash=sha256:${digest}\n`,
          'check.py': "import greet\nassert greet.WORD == 'hello-from-wheel'\nprint('checked')\n",
        },
        steps: [
          {
            name: 'fetch',
            run: 'pip download --require-hashes --no-deps -r requirements.txt -d wheels --index-url "$REGISTRY/simple" --trusted-host registry.example',
          },
          {
            name: 'build',
            network: 'none',
            run: 'pip install --no-index --find-links wheels --require-hashes -r requirements.txt --target lib',
          },
          { name: 'test', network: 'none', run: 'PYTHONPATH=lib python3 check.py' },
        ],
      });
    const run = await python(greet.digest);
    assert.equal(run.outcome.status, 0, said(run));
    assert.match(run.outcome.stderr, /checked/);
    assert.deepEqual([run.alerts, run.job.code], [[], undefined]);
    const other = await python('0'.repeat(64));
    assert.equal(other.outcome.status, 1, said(other));
    assert.equal(other.job.steps[0].outcome, 'failure');
  },
);
