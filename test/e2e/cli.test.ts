import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { VERSION } from '../../src/core/version.ts';
import { ctPath, runCt } from '../support/run-ct.ts';

let directory = '';

before(async () => {
  await runCt(['--version']); // sets up, if a source has changed
  directory = mkdtempSync(join(tmpdir(), 'ct-cli-'));
  const files = {
    'good/ct.yml': `version: 1
jobs:
  build:
    steps:
      - name: "say \\e[2J hello"
        run: echo hello
    artifacts: {paths: [out/**]}
  test:
    needs: build
    matrix: {node: [20, 22]}
    env: {A: "\${{ matrix.node }}"}
    steps: [{run: 'echo $A'}]
`,
    'cycle/ct.yml':
      'version: 1\njobs:\n  a: {needs: b, steps: [{run: x}]}\n  b: {needs: a, steps: [{run: x}]}\n',
    'typo/ct.yml': 'version: 1\njobs:\n  build:\n    stpes:\n      - run: x\n',
    'empty/ct.yml': '',
    'binary/ct.yml': '\0\x01\xff',
    'none/README': '',
  };
  for (const [path, content] of Object.entries(files)) {
    mkdirSync(join(directory, path, '..'), { recursive: true });
    writeFileSync(join(directory, path), content);
  }
});
after(() => rmSync(directory, { recursive: true, force: true }));

const inside = (name: string): { cwd: string } => ({ cwd: join(directory, name) });

test('--version and help go to stdout with status 0', async () => {
  const version = await runCt(['--version']);
  assert.deepEqual([version.status, version.stdout, version.stderr], [0, `ct ${VERSION}\n`, '']);
  for (const args of [[], ['help'], ['run', '--help'], ['help', 'image']]) {
    const { status, stdout, stderr } = await runCt(args);
    assert.deepEqual([status, stderr], [0, ''], args.join(' '));
    assert.match(stdout, /^Usage: ct /);
  }
});

test('USAGE ends with status 2, a message and a hint on stderr, nothing on stdout', async () => {
  const { status, stdout, stderr } = await runCt(['runn']);
  assert.deepEqual([status, stdout], [2, '']);
  assert.equal(stderr, 'error[USAGE]: unknown command `runn`\n  hint: did you mean `run`?\n');
});

test('with --json an error is JSON on stdout, also for a line that does not parse', async () => {
  const { status, stdout, stderr } = await runCt(['run', '--json', '--nope']);
  assert.deepEqual([status, stderr], [2, '']);
  assert.equal(JSON.parse(stdout).error.code, 'USAGE');
});

test('ct works from anywhere, through a symbolic link and through PATH', async () => {
  const link = join(directory, 'ct-link');
  symlinkSync(ctPath, link);
  const viaLink = execFileSync(link, ['--version'], { cwd: '/', encoding: 'utf8' });
  assert.equal(viaLink, `ct ${VERSION}\n`);
  const PATH = `${join(ctPath, '..')}:${process.env['PATH']}`;
  const viaPath = execFileSync('sh', ['-c', 'ct --version'], { cwd: '/', encoding: 'utf8', env: { PATH } });
  assert.equal(viaPath, `ct ${VERSION}\n`);
});

test('run --list shows every job, also as JSON', async () => {
  const listed = await runCt(['run', '--list'], inside('good'));
  assert.deepEqual([listed.status, listed.stderr], [0, '']);
  assert.match(listed.stdout, /^JOB .*\nbuild .*\ntest \(node=20\) .*build\n/);
  const { stdout } = await runCt(['run', '-l', '--json', '-C', join(directory, 'good')]);
  const names = JSON.parse(stdout).jobs.map(({ name }: { name: string }) => name);
  assert.deepEqual(names, ['build', 'test (node=20)', 'test (node=22)']);
});

test('run --dryrun shows steps and overrides, without control characters of the job file', async () => {
  const { status, stdout } = await runCt(
    ['run', '-n', '--cpu', '1', '--memory', '512M', 'build'],
    inside('good'),
  );
  assert.equal(status, 0);
  assert.match(stdout, /^build: debian-12, 1 cpu, 512M memory/);
  assert.match(stdout, /▶ say \?\[2J hello\n {6}echo hello\n {2}artifacts out\/\*\*\n/);
  const command = await runCt(['run', '-n', '-e', 'A=b c', '--', 'make', 'a b']);
  assert.equal(command.status, 0);
  assert.match(command.stdout, /A=b c\n[\s\S]* {6}make 'a b'\n/);
});

test('bad input ends with status 2 and the code that says which', async () => {
  const refusals: [string, string[], RegExp][] = [
    ['good', ['run', 'biuld'], /^error\[JOB_NOT_FOUND\]: .*biuld.*\n {2}hint: did you mean `build`/],
    ['cycle', ['run'], /^error\[JOB_NEEDS_CYCLE\]/],
    ['typo', ['run', 'build'], /^error\[JOB_FILE_INVALID\]: .*ct\.yml:4:5[\s\S]*stpes[\s\S]*`steps`/],
    ['empty', ['run', 'build'], /^error\[JOB_FILE_INVALID\]/],
    ['binary', ['run', 'build'], /^error\[JOB_FILE_INVALID\]/],
    ['none', ['run', 'build'], /^error\[JOB_FILE_NOT_FOUND\][\s\S]*ct init/],
    ['good', ['run', '-C', 'missing', 'build'], /^error\[WORKSPACE_UNREADABLE\]/],
    ['good', ['run', 'build', '--', 'ls'], /^error\[USAGE\]/],
    ['good', ['run', '-e', 'NOT_SET_ANYWHERE', 'build'], /^error\[USAGE\]/],
  ];
  for (const [where, args, expected] of refusals) {
    const { status, stdout, stderr } = await runCt(args, inside(where));
    assert.match(stderr, expected, args.join(' '));
    assert.deepEqual([status, stdout], [2, ''], args.join(' '));
  }
});

test('completion scripts are accepted by their shells', async () => {
  for (const shell of ['bash', 'zsh', 'fish']) {
    const { status, stdout } = await runCt(['completion', shell]);
    assert.equal(status, 0);
    if (shell === 'bash') execFileSync('bash', ['-n'], { input: stdout });
  }
  const { stdout: script } = await runCt(['completion', 'bash']);
  const complete = `${script}
COMP_WORDS=(ct run --pro); COMP_CWORD=2; _ct; echo "\${COMPREPLY[*]}"
COMP_WORDS=(ct run b); COMP_CWORD=2; _ct; echo "\${COMPREPLY[*]}"
COMP_WORDS=(ct image b); COMP_CWORD=2; _ct; echo "\${COMPREPLY[*]}"
`;
  const env = { PATH: `${join(ctPath, '..')}:${process.env['PATH']}`, HOME: process.env['HOME'] };
  const answers = execFileSync('bash', ['-c', complete], { ...inside('good'), env, encoding: 'utf8' });
  assert.deepEqual(answers.trim().split('\n'), ['--progress', 'build', 'build']);
});

test('STATE_DIRECTORY_UNSAFE: a CT_HOME that is no directory is refused, without a stack', async () => {
  const env = { CT_HOME: join(directory, 'good/ct.yml') };
  const { status, stderr } = await runCt(['run', '--', 'true'], { env });
  assert.equal(status, 2);
  assert.match(stderr, /^error\[STATE_DIRECTORY_UNSAFE\]: [^\n]*\n {2}hint: [^\n]*\n$/);
});

test('a reader that leaves ends ct quietly with status 141', async () => {
  const child = spawn(ctPath, ['help', 'run'], { stdio: ['ignore', 'pipe', 'pipe'] });
  child.stdout.destroy();
  const errors: Buffer[] = [];
  child.stderr.on('data', (chunk: Buffer) => errors.push(chunk));
  const [status] = await once(child, 'close');
  assert.equal(Buffer.concat(errors).toString('utf8'), '');
  assert.equal(status, 141);
});

test('doctor names every requirement; --json agrees with its status', async () => {
  const env = { CT_HOME: join(directory, 'home') };
  const { status, stdout } = await runCt(['doctor'], { env });
  for (const name of ['system', 'node', 'packages', 'accelerator', 'memory', 'disk', '/dev/shm', 'sockets']) {
    assert.match(stdout, new RegExp(`^[✓!✗] ${name} `, 'm'));
  }
  const json = await runCt(['doctor', '--json'], { env });
  assert.equal(json.status, status);
  const document = JSON.parse(json.stdout);
  assert.equal(document.canRun, status === 0);
  assert.equal(document.securityBoundary, document.accelerator === 'kvm');
});

test('STATE_DIRECTORY_UNSAFE: a CT_HOME that others may write to is refused', async () => {
  const home = join(directory, 'open');
  mkdirSync(home);
  execFileSync('chmod', ['777', home]);
  const { status, stderr } = await runCt(['run', '--', 'true'], { env: { CT_HOME: home } });
  assert.equal(status, 2);
  assert.match(
    stderr,
    /^error\[STATE_DIRECTORY_UNSAFE\]: .* is open to other users \(mode 777\)\n {2}hint: run: chmod/,
  );
});
