/** What the host tells a job, written by the guest agent's own code (guest-agent/test/serve.c), without a VM. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { GuestSession } from '../../src/guest/session.ts';
import {
  AUTHORITIES_PATH,
  type GuestSettingsTarget,
  guestVariables,
  installGuestSettings,
} from '../../src/job/guest-settings.ts';
import { MAX_SCRIPT_BYTES } from '../../src/protocol/limits.ts';
import { scratchDirectory } from '../support/scratch.ts';

const SOURCES = fileURLToPath(new URL('../../guest-agent/', import.meta.url));
const BUILD = fileURLToPath(new URL('../../build/guest-agent/', import.meta.url));

before(() => {
  execFileSync('make', ['-s', '-C', SOURCES, `OUT=${BUILD}`, 'serve'], { stdio: 'pipe' });
});

interface Target extends GuestSettingsTarget, AsyncDisposable {
  readonly scripts: string;
}

async function openTarget(): Promise<Target> {
  const cleanup = new AsyncDisposableStack();
  const scratch = cleanup.use(scratchDirectory());
  const [scripts, home] = [join(scratch.path, 'steps'), join(scratch.path, 'home')];
  mkdirSync(scripts);
  mkdirSync(home);
  const child = spawn(join(BUILD, 'test', 'serve'), [scripts], {
    stdio: ['ignore', 'ignore', 'ignore', 'pipe'],
    env: {},
  });
  cleanup.defer(() => void child.kill('SIGKILL'));
  const { session } = await GuestSession.open(
    child.stdio[3] as Socket,
    { hostname: 'job', volumeCipher: 'none' },
    30_000,
  );
  cleanup.defer(() => session.close());
  return {
    scripts,
    home,
    exec: (request) =>
      session.exec({
        env: { PATH: '/usr/bin:/bin' },
        cwd: home,
        uid: process.getuid?.() ?? 0,
        gid: process.getgid?.() ?? 0,
        ...request,
      }),
    [Symbol.asyncDispose]: () => cleanup.disposeAsync(),
  };
}

test('authorities become a file that cannot be written, settings files of the home directory', async () => {
  await using target = await openTarget();
  mkdirSync(join(target.home, '.cargo'));
  writeFileSync(join(target.home, '.cargo/credentials'), 'kept');
  const authoritiesPem = 'x'.repeat(MAX_SCRIPT_BYTES);
  const homeFiles = { '.cargo/config.toml': 'a = "é"\n', '.config/a/b': '', '.config/a/c': '2' };
  await installGuestSettings({ env: {}, authoritiesPem, homeFiles }, target);
  const file = join(target.scripts, 'ca-certificates.pem');
  assert.equal(readFileSync(file, 'utf8'), authoritiesPem);
  assert.equal(statSync(file).mode & 0o222, 0);
  const read = (path: string): string => readFileSync(join(target.home, path), 'utf8');
  assert.deepEqual(['.cargo/config.toml', '.config/a/b', '.config/a/c', '.cargo/credentials'].map(read), [
    'a = "é"\n',
    '',
    '2',
    'kept',
  ]);
});

test('GUEST_REFUSED when the settings cannot be written, rather than a job that trusts others', async () => {
  await using target = await openTarget();
  const tooLong = 'x'.repeat(MAX_SCRIPT_BYTES + 1);
  await assert.rejects(installGuestSettings({ env: {}, authoritiesPem: tooLong }, target), {
    code: 'GUEST_REFUSED',
  });
  const nowhere = { ...target, home: join(target.home, 'none') };
  await assert.rejects(installGuestSettings({ env: {}, homeFiles: { a: '' } }, nowhere), {
    code: 'GUEST_REFUSED',
    message: /settings of this host could not be written into the VM: ./,
  });
});

test('variables name the file of authorities only if there is one', () => {
  const env = { npm_config_registry: 'https://r.example/' };
  assert.deepEqual(guestVariables({ env }), env);
  const told = guestVariables({ env, authoritiesPem: 'x' });
  assert.equal(told['npm_config_registry'], 'https://r.example/');
  for (const name of [
    'SSL_CERT_FILE',
    'NODE_EXTRA_CA_CERTS',
    'npm_config_cafile',
    'PIP_CERT',
    'GIT_SSL_CAINFO',
  ]) {
    assert.equal(told[name], AUTHORITIES_PATH);
  }
  assert.ok(!Object.keys(told).some((name) => /strict|insecure|verify|trusted/i.test(name)));
});
