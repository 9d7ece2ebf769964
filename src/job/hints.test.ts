import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type FailedStep, hintFor } from './hints.ts';

function hint(output: string | Uint8Array, more: Partial<FailedStep> = {}): string {
  const bytes = typeof output === 'string' ? Buffer.from(output) : output;
  return (
    hintFor({ output: bytes, exitCode: 1, oomKilled: false, image: 'debian-12', memoryMib: 2048, ...more }) ??
    '(none)'
  );
}

const IMMUTABLE = /the system of the VM cannot be changed by a job.*extends `debian-12`/;

const NETWORK_OUTPUTS = {
  curl: 'curl: (6) Could not resolve host: example.org',
  'curl that was cut off': 'curl: (35) Recv failure: Connection reset by peer',
  'git of a forge':
    "fatal: unable to access 'https://github.com/a/b.git/': Could not resolve host: github.com",
  'npm that was cut off': 'npm error code ECONNRESET\nnpm error network aborted',
  'git over https':
    "fatal: unable to access 'https://example.org/x.git/': Could not resolve host: example.org",
  'git over ssh': 'ssh: Could not resolve hostname example.org: Temporary failure in name resolution',
  'apt-get update':
    "W: Failed to fetch http://deb.example.org/x  Temporary failure resolving 'deb.example.org'",
  npm: 'npm error code EAI_AGAIN\nnpm error syscall getaddrinfo\nnpm error errno EAI_AGAIN',
  'older npm': 'npm ERR! code ENOTFOUND\nnpm ERR! network request to https://x failed',
  'npm without a route': 'npm error code ENETUNREACH',
  node: 'Error: getaddrinfo ENOTFOUND example.org',
  pip: 'WARNING: Retrying ... after connection broken by NewConnectionError(": Failed to establish a new connection: [Errno -3] ...")',
  cargo: 'warning: spurious network error (3 tries remaining): [6] Could not resolve host: index.example.org',
  'go modules':
    'go: x/y@v1: Get "https://proxy.example.org/x": dial tcp: lookup proxy.example.org: no such host',
  'go without a resolver':
    'dial tcp: lookup proxy.example.org on [::1]:53: read udp [::1]:4->[::1]:53: connection refused',
  wget: 'wget: unable to resolve host address ‘example.org’',
  python: 'socket.gaierror: [Errno -2] Name or service not known',
  'an address': 'connect: Network is unreachable',
  java: 'Caused by: java.net.UnknownHostException: repo.example.org',
  rust: 'error trying to connect: dns error: failed to lookup address information: Temporary failure',
};

const ADVICE: Readonly<Record<keyof typeof NETWORK_OUTPUTS, string>> = {
  curl: '"https://example.org"',
  'curl that was cut off': '',
  'git over https': '"https://example.org"',
  'git over ssh': '"https://example.org"',
  'git of a forge': 'github',
  'apt-get update': 'debian',
  npm: 'npm',
  'older npm': 'npm',
  'npm without a route': 'npm',
  'npm that was cut off': 'npm',
  node: '"https://example.org"',
  pip: 'pypi',
  cargo: 'cargo',
  'go modules': 'go',
  'go without a resolver': '"https://proxy.example.org"',
  wget: '"https://example.org"',
  python: '',
  'an address': '',
  java: '"https://repo.example.org"',
  rust: '',
};

for (const [what, output] of Object.entries(NETWORK_OUTPUTS)) {
  test(`a failure of ${what} for want of a network says what to write`, () => {
    const advice = ADVICE[what as keyof typeof NETWORK_OUTPUTS];
    const said = hint(`...\n${output}\n`);
    if (advice === '') assert.match(said, /the step has no network: name what it needs/);
    else assert.ok(said.startsWith(`the step has no network: \`network: {allow: [${advice}]}\``), said);
  });
}

test('a step with a network is told of a preset that it does not name, and otherwise where the reason is', () => {
  const failed = (output: string, allow: string[]): string => hint(output, { network: { allow } });
  assert.match(failed(NETWORK_OUTPUTS.npm, ['github']), /^the job does not name the preset `npm`: add it/);
  const tarball =
    'npm error request to https://Files.example.org/x.tgz failed, reason: getaddrinfo ENOTFOUND';
  assert.match(
    failed(tarball, ['npm']),
    /^if policy refused it, .* did not reach `files\.example\.org` itself$/,
  );
  const clone = "fatal: unable to access 'https://github.com/acme/site.git/': Connection reset by peer";
  assert.match(failed(clone, ['github']), /did not reach `github\.com` itself$/);
  for (const allow of ['https://example.org', '*.example.org', 'https://other.example', '*']) {
    assert.match(failed(NETWORK_OUTPUTS.curl, [allow]), /^if policy refused it, .*`example\.org` itself$/);
  }
  assert.match(failed(NETWORK_OUTPUTS.python, ['npm']), /^if policy refused it, .*did not reach it itself$/);
});

test('only names get from the output into a hint', () => {
  for (const name of [
    '`; rm',
    '$(x).example.org',
    'a\u001b[2J.example.org',
    '192.0.2.7',
    '-a.example',
    `${'x'.repeat(64)}.org`,
  ]) {
    const said = hint(`curl: (6) Could not resolve host: ${name}`);
    assert.match(said, /the step has no network/);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: none of them may be there
    assert.doesNotMatch(said, /rm|\$\(|\u001b|192\.0|x{64}/);
  }
});

const ROOT_OUTPUTS = {
  'sudo in bash': '/run/ct/steps/step-1: line 1: sudo: command not found',
  'sudo in sh': '/run/ct/steps/step-1: 1: sudo: not found',
  'sudo without privileges':
    'sudo: The "no new privileges" flag is set, which prevents sudo from running as root.',
  'apt-get install':
    'E: Could not open lock file /var/lib/dpkg/lock-frontend - open (13: Permission denied)\nE: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), are you root?',
  'apt-get update':
    'E: List directory /var/lib/apt/lists/partial is missing. - Acquire (30: Read-only file system)',
  dpkg: 'dpkg: error: requested operation requires superuser privilege',
};

for (const [what, output] of Object.entries(ROOT_OUTPUTS)) {
  test(`${what} leads to the image definition`, () => assert.match(hint(output), IMMUTABLE));
}

test('a lock of dpkg is the cause even if the network is missing as well', () => {
  assert.match(hint(`${NETWORK_OUTPUTS['apt-get update']}\n${ROOT_OUTPUTS['apt-get install']}`), IMMUTABLE);
});

test('writing to the read-only system names the places that can be written', () => {
  assert.match(
    hint("touch: cannot touch '/usr/x': Read-only file system"),
    /write to the workspace, `\$HOME` or `\/tmp`/,
  );
  assert.match(hint("npm error Error: EROFS: read-only file system, mkdir '/usr/lib/x'"), /read-only/);
  assert.match(
    hint("npm error Error: EACCES: permission denied, mkdir '/usr/local/lib/node_modules'"),
    /below the workspace/,
  );
  assert.match(hint('error: externally-managed-environment'), /python3 -m venv/);
});

test('a job that ran out of memory is told how much it had', () => {
  assert.match(
    hint('', { exitCode: 137, oomKilled: true }),
    /out of memory, it has 2G: raise `resources\.memory`/,
  );
  assert.match(
    hint('FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory'),
    /out of memory/,
  );
  assert.match(hint('fork: Cannot allocate memory'), /out of memory/);
  assert.match(hint('', { exitCode: 137 }), /killed by signal 9; if it needs more than 2G/);
});

test('a full disk is told its size', () => {
  assert.match(
    hint('cp: error writing x: No space left on device', { diskMib: 10_240 }),
    /volume of 10G is full/,
  );
  assert.match(hint('Error: ENOSPC: no space left on device, write'), /`resources\.disk`/);
});

const MISSING = {
  cargo: '/run/ct/steps/step-1: line 3: cargo: command not found',
  go: '/run/ct/steps/step-1: 3: go: not found',
  node: '/usr/bin/env: ‘node’: No such file or directory',
  clang: 'make: clang: No such file or directory',
  docker: 'exec: "docker": executable file not found in $PATH',
  yarn: 'Error: spawn yarn ENOENT',
  cc: 'error: linker `cc` not found',
};

for (const [program, output] of Object.entries(MISSING)) {
  test(`a missing ${program} is named with the image`, () => {
    assert.match(
      hint(output, { exitCode: 127 }),
      new RegExp(`^the image \`debian-12\` has no \`${program}\``),
    );
  });
}

test('a program of the step that could not be started is named', () => {
  const start = (errno: number, program: string) =>
    hint('', { exitCode: 127, startError: { errno, program } });
  assert.match(start(2, 'zsh'), /has no `zsh`/);
  assert.match(start(2, './dist/tool'), /what \.gitignore leaves out is not sent/);
  assert.match(start(13, './x.sh'), /not executable/);
  assert.match(start(8, './x.sh'), /`#!` line/);
  assert.ok(!start(2, 'a\u001b[2J`b').includes('\u001b'));
});

test('127 without a message still has a hint, an ordinary failure has none', () => {
  assert.match(hint('', { exitCode: 127 }), /a program is missing/);
  assert.equal(hint('1 test failed\nassertion: 404 not found\n'), '(none)');
  assert.equal(hint('Error: 3 of 5 tests failed'), '(none)');
});

test('colours in the output do not hide the message, nor do they reach the hint', () => {
  assert.match(
    hint('\u001b[31msh: \u001b[1mcargo: command not found\u001b[0m'),
    /^the image `debian-12` has no `cargo`/,
  );
  assert.ok(!hint('x\u0007evil: command not found', { exitCode: 127 }).includes('\u0007'));
});

test('only the tail is searched, and hostile output takes no time', () => {
  assert.equal(hint(`Could not resolve host\n${'x\n'.repeat(20_000)}`), '(none)');
  const startedAt = performance.now();
  for (const piece of [
    'a',
    '/var/lib/dpkg/',
    'dial tcp ',
    ': ',
    'sudo: a ',
    '\u001b[1',
    'npm error ',
    '(‘',
  ]) {
    hint(piece.repeat(100_000));
    hint(`${piece.repeat(200)}\n`.repeat(100));
  }
  hint(Buffer.alloc(100_000, 0xff));
  assert.ok(performance.now() - startedAt < 5000);
});
