import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CtError } from '../core/errors.ts';
import { parseCommandLine } from './command.ts';
import { COMMANDS } from './commands.ts';
import { type RunEnvironment, type RunOptions, readRunOptions } from './run-options.ts';

const AROUND: RunEnvironment = {
  cwd: '/work',
  env: { TOKEN: 't', EMPTY: '' },
  stderrIsTty: false,
  isInteractive: false,
};

function read(line: string, around: Partial<RunEnvironment> = {}): RunOptions {
  const invocation = parseCommandLine(COMMANDS, ['run', ...line.split(' ').filter((word) => word !== '')]);
  if (invocation.type !== 'command') return assert.fail(line);
  return readRunOptions(invocation.parsed, { ...AROUND, ...around });
}

test('defaults: every job, the current directory, what git ignores stays', () => {
  assert.deepEqual(read(''), {
    targets: [],
    command: undefined,
    directory: '/work',
    overrides: { env: {} },
    secrets: { names: [], files: {}, from: [] },
    respectIgnore: true,
    artifacts: undefined,
    action: 'run',
    progress: 'plain',
    json: false,
    shellOnFailure: false,
    locked: false,
  });
});

test('values are converted to units and absolute paths', () => {
  const options = read(
    '-C sub --artifacts out --image i --cpu 4 --memory 2G -e A=1 -e TOKEN -e EMPTY -n build',
  );
  assert.equal(options.directory, '/work/sub');
  assert.equal(options.artifacts, '/work/out');
  assert.deepEqual(options.overrides, {
    image: 'i',
    cpus: 4,
    memoryMib: 2048,
    env: { A: '1', TOKEN: 't', EMPTY: '' },
  });
  assert.equal(options.action, 'dryrun');
});

test('sources of secrets: names once, paths absolute', () => {
  assert.deepEqual(read('-s A -s B -s A --secret-file C=dir/c=1 --secrets-from several').secrets, {
    names: ['A', 'B'],
    files: { C: '/work/dir/c=1' },
    from: ['/work/several'],
  });
});

test('--network: presets and destinations, in one option or several, or none at all', () => {
  assert.equal(read('').overrides.network, undefined);
  assert.equal(read('--network none').overrides.network, 'none');
  assert.deepEqual(
    read('--network npm,https://example.org:8443 --network tcp://[::1]:5432').overrides.network,
    ['npm', 'https://example.org:8443', 'tcp://[::1]:5432'],
  );
});

test('auto progress is live on a terminal only, and never in CI', () => {
  assert.equal(read('').progress, 'plain');
  assert.equal(read('', { stderrIsTty: true }).progress, 'tty');
  assert.equal(read('', { stderrIsTty: true, env: { CI: 'true' } }).progress, 'plain');
  assert.equal(read('', { stderrIsTty: true, env: { TERM: 'dumb' } }).progress, 'plain');
  assert.equal(read('--progress=tty').progress, 'tty');
});

test('USAGE refuses what makes no sense', () => {
  const refusals: [string, RegExp][] = [
    ['--', /no command after --/],
    ['build -- ls', /job \(`build`\) and a command/],
    ['-l -- ls', /--list shows the jobs/],
    ['-l -n', /exclude each other/],
    ['--json --progress=rawjson', /both want stdout/],
    ['--cpu 0', /--cpu cannot be `0`/],
    ['--cpu 1.5', /--cpu cannot be/],
    ['--cpu 257', /--cpu cannot be/],
    ['--memory 2', /--memory cannot be `2`/],
    ['--memory 64M', /at least 128M/],
    ['--network nmp', /--network: there is no network preset `nmp`.*did you mean `npm`/],
    ['--network npm,none', /exclude each other/],
    ['--network npm,', /--network: /],
    ['--network https://example.org/path', /has a path.*write `https:\/\/example\.org`/],
    [`--network ${'x'.repeat(301)}`, /longer than 300 bytes/],
    ['-e =x', /names no variable/],
    ['-s TOKEN=hunter22', /-s TOKEN=… would show.*--secret-file TOKEN=PATH/],
    ['-s 1A', /not the name of a secret/],
    ['-s CT_TOKEN', /not the name of a secret/],
    ['--secret-file TOKEN', /not NAME=PATH/],
    ['--secret-file TOKEN=', /not NAME=PATH/],
    ['--shell-on-failure', /needs a terminal.*ct shell RUN/],
    ['-e NOT_SET', /no variable NOT_SET/],
  ];
  for (const [line, expected] of refusals) {
    assert.throws(
      () => read(line),
      (error) =>
        error instanceof CtError &&
        error.code === 'USAGE' &&
        expected.test(`${error.message} ${error.hint}`) &&
        !error.message.includes('hunter22'),
      line,
    );
  }
});

test('--shell-on-failure is for terminals', () => {
  assert.equal(read('').shellOnFailure, false);
  assert.equal(read('--shell-on-failure', { isInteractive: true }).shellOnFailure, true);
});
