/** What a VMM could do if its guest took it over: the jail, tried by a program that tries everything. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { launcherPath } from '../../src/core/install.ts';
import { inspectIsolation } from '../../src/vmm/isolation.ts';
import { QEMU_PATH } from '../../src/vmm/qemu/version.ts';
import { scratchDirectory } from '../support/scratch.ts';

const isRoot = process.getuid?.() === 0;
const JAIL = ['--jail', '--harden', ...(isRoot ? ['--user', '1700000001:1700000001'] : [])];

/** Tries what its argument names; prints what it got. */
const ATTACKER = `
import os, socket, sys
def attempt(action):
    try: return action()
    except OSError as error: return 'refused: ' + os.strerror(error.errno)
secret = sys.argv[1]
print('read', attempt(lambda: open(secret).read()))
print('write', attempt(lambda: open('/usr/ct-was-here', 'w').write('x')))
print('root', ' '.join(sorted(os.listdir('/'))))
print('processes', attempt(lambda: os.kill(int(sys.argv[2]), 0)))
print('interfaces', ' '.join(name for _, name in socket.if_nameindex()))
def connect():
    s = socket.socket(); s.settimeout(2); s.connect(('127.0.0.1', int(sys.argv[3]))); return 'connected'
print('connect', attempt(connect))
status = dict(line.split(':', 1) for line in open('/self/status' if os.path.exists('/self') else '/proc/self/status'))
print('caps', status['CapEff'].strip(), status['CapPrm'].strip(), 'nonewprivs', status['NoNewPrivs'].strip())
print('setuid', attempt(lambda: os.setuid(0)))
print('mount', attempt(lambda: os.unshare(0x10000000) if hasattr(os, 'unshare') else 'n/a'))
`;

async function attack(options: readonly string[]): Promise<Map<string, string>> {
  using scratch = scratchDirectory();
  const secret = join(scratch.path, 'secret');
  writeFileSync(secret, 'host secret', { mode: 0o644 });
  const { createServer } = await import('node:net');
  const server = createServer((socket) => socket.end()).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as { port: number };
  try {
    const { promisify } = await import('node:util');
    const { execFile } = await import('node:child_process');
    const { stdout } = await promisify(execFile)(
      launcherPath,
      [
        'exec',
        ...options,
        '--',
        '/usr/bin/python3',
        '-c',
        ATTACKER,
        secret,
        String(process.pid),
        String(port),
      ],
      { env: {} },
    );
    return new Map(
      stdout.split('\n').map((line) => [line.split(' ')[0] ?? '', line.slice(line.indexOf(' ') + 1)]),
    );
  } finally {
    server.close();
  }
}

test('in the jail nothing of the host can be read, written, signalled or connected to', async () => {
  const seen = await attack(JAIL);
  assert.match(seen.get('read') ?? '', /^refused: No such file/);
  assert.match(seen.get('write') ?? '', /^refused: Read-only file system/);
  assert.equal(seen.get('root'), 'bin dev lib lib64 sbin self usr');
  if (isRoot) assert.match(seen.get('processes') ?? '', /^refused: Operation not permitted/);
  assert.equal(seen.get('interfaces'), 'lo');
  assert.match(seen.get('connect') ?? '', /^refused: (Network is unreachable|Connection refused)/);
  assert.equal(seen.get('caps'), '0000000000000000 0000000000000000 nonewprivs 1');
  assert.match(seen.get('setuid') ?? '', /^refused/);
});

test('the control: without the jail the same program reads the secret and connects', async () => {
  const seen = await attack([]);
  assert.equal(seen.get('read'), 'host secret');
  assert.equal(seen.get('connect'), 'connected');
  assert.equal(seen.get('processes'), 'None');
});

test('the jail needs no root', {
  skip: isRoot ? false : 'runs as root only: it becomes an ordinary user',
}, () => {
  const out = execFileSync('setpriv', [
    ...['--reuid', '65534', '--regid', '65534', '--clear-groups'],
    ...[
      launcherPath,
      'exec',
      '--jail',
      '--harden',
      '--',
      '/usr/bin/python3',
      '-c',
      'import os; print(os.listdir("/"))',
    ],
  ]);
  assert.match(out.toString(), /'self'/);
  assert.doesNotMatch(out.toString(), /'etc'|'home'/);
});

test('the launcher closes what is not meant for the program', () => {
  const list = 'import os; print(sorted(int(fd) for fd in os.listdir("/proc/self/fd")))';
  const run = (keep: string[]): string =>
    execFileSync(launcherPath, ['exec', ...keep, '--', '/usr/bin/python3', '-c', list], {
      stdio: ['ignore', 'pipe', 'inherit', 'pipe', 'pipe', 'pipe'],
    }).toString();
  // python's own descriptor of the directory comes last
  assert.match(run([]), /^\[0, 1, 2, 3, 4, 5, /);
  assert.match(run(['--keep', '3']), /^\[0, 1, 2, 3, \d+\]/);
});

test('a VMM that runs: the kernel confirms every measure; a program that is no QEMU is found out', async () => {
  const measures = await inspectIsolation({ launcherPath, qemuPath: QEMU_PATH });
  assert.deepEqual(
    measures.filter(({ holds }) => !holds),
    [],
  );
  assert.equal(measures.length, 6);
  // The control: the same look at something without a seccomp filter, which ends at once.
  await assert.rejects(inspectIsolation({ launcherPath, qemuPath: '/usr/bin/true' }), {
    code: 'VMM_START_FAILED',
  });
});
