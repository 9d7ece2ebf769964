/**
 * Secrets with real VMs: they reach the steps that name them, and nothing of them is seen anywhere else. Every search
 * has its control: the same value as an ordinary variable is found.
 */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { findHost } from '../../src/host/client.ts';
import { MAX_SECRET_BYTES } from '../../src/protocol/limits.ts';
import { stopHost } from '../support/host.ts';
import { testHome, testImage } from '../support/images.ts';
import { descendantsOf } from '../support/processes.ts';
import { type CtOutcome, ctPath, runCt } from '../support/run-ct.ts';

let directory = '';
const env = { CT_HOME: testHome, XDG_CONFIG_HOME: '/nonexistent' };

before(async () => {
  await testImage('debian-12');
  directory = mkdtempSync(join(tmpdir(), 'ct-secrets-'));
});
after(async () => {
  await stopHost(testHome);
  rmSync(directory, { recursive: true, force: true });
});

function project(name: string, jobs: string): string {
  const path = join(directory, name);
  mkdirSync(path, { recursive: true });
  writeFileSync(join(path, 'ct.yml'), `version: 1\ndefaults: {resources: {memory: 512M}}\njobs:\n${jobs}`);
  return path;
}

const newValue = (): string => `s3cr3t-${randomBytes(24).toString('hex')}`;
const hash = (text: string): string => createHash('sha256').update(text).digest('hex');

/** Everything the outcome shows, and what the lines of rawjson carry in pieces. */
function everything({ stdout, stderr }: CtOutcome): string {
  const pieces = { stdout: '', stderr: '' };
  for (const line of stdout.split('\n').filter((text) => text.startsWith('{"type":"output"'))) {
    const { stream, text, base64 } = JSON.parse(line) as Record<string, string>;
    pieces[stream as 'stdout' | 'stderr'] += text ?? Buffer.from(base64 ?? '', 'base64').toString('latin1');
  }
  return [stdout, stderr, pieces.stdout, pieces.stderr].join('\n');
}

function forms(value: string): string[] {
  const base64 = Buffer.from(value).toString('base64');
  return [
    value,
    base64.slice(0, 40),
    Buffer.from(value).toString('hex'),
    value.slice(0, 24),
    value.slice(-24),
  ];
}

function shown(text: string, value: string): string[] {
  return forms(value).filter((form) => text.includes(form));
}

/** Writes the value of $TOKEN in every way that has to be masked, and its hash. */
const TELL_ALL = `
          echo "plain $TOKEN"
          echo "error $TOKEN" >&2
          printf 'split %s' "\${TOKEN:0:20}"; sleep 0.5; printf '%s\\n' "\${TOKEN:20}"
          printf 'base64 '; printf %s "$TOKEN" | base64 -w0; echo
          printf 'hex '; printf %s "$TOKEN" | od -An -tx1 -v | tr -d ' \\n'; echo
          printf 'hash '; printf %s "$TOKEN" | sha256sum
          "$TOKEN"`;

test('a secret reaches only the steps that name it, as variable or file in memory', {
  timeout: 300_000,
}, async () => {
  const [token, key] = [newValue(), `${newValue()}\n`];
  const keyFile = join(directory, 'key');
  writeFileSync(keyFile, key, { mode: 0o600 });
  const root = project(
    'reach',
    `  with:
    steps:
      - name: named
        secrets: {TOKEN: {env: OTHER}, KEY: file}
        run: |
          printf %s "$OTHER" | sha256sum
          sha256sum < /run/ct/secrets/KEY
          stat -c '%a %U' /run/ct/secrets/KEY
          stat -f -c %T /run/ct/secrets
          touch /run/ct/secrets/other || echo read-only
      - name: not named
        run: |
          env | grep -c s3cr3t || echo none in the environment
          echo "files $(ls -A /run/ct/secrets | wc -l)"
          echo "found $(grep -rlE 's3cr3t-[0-9a-f]{48}' /run /tmp /workspace /dev/shm 2>/dev/null | wc -l)"
  without:
    steps:
      - run: 'env | grep -c s3cr3t || echo "nothing and $(ls -A /run/ct/secrets | wc -l)"'
`,
  );
  const outcome = await runCt(['run', '-s', 'TOKEN', '--secret-file', `KEY=${keyFile}`], {
    cwd: root,
    env: { ...env, TOKEN: token },
  });
  assert.equal(outcome.status, 0, outcome.stdout + outcome.stderr);
  for (const expected of [
    hash(token),
    hash(key),
    /400 \w+/,
    /tmpfs/,
    /read-only/,
    /none in the environment/,
    /files 0/,
    /found 0/,
    /nothing and 0/,
  ]) {
    if (typeof expected === 'string') assert.ok(outcome.stdout.includes(expected), outcome.stdout);
    else assert.match(outcome.stdout, expected);
  }
});

for (const mode of [['--progress=plain'], ['--json'], ['--progress=rawjson']]) {
  test(`a secret is masked in all that ${mode[0]} shows; a variable is not`, {
    timeout: 300_000,
  }, async () => {
    const value = newValue();
    const steps = `
    steps:
      - name: tell
        run: |${TELL_ALL}
      - {name: after, if: always(), run: 'echo "after $TOKEN"'}
`;
    const secret = project('masked', `  build:\n    secrets: [TOKEN]${steps}`);
    const masked = await runCt(['run', ...mode, '-s', 'TOKEN'], {
      cwd: secret,
      env: { ...env, TOKEN: value },
    });
    assert.equal(masked.status, 1, masked.stderr);
    const text = everything(masked);
    assert.deepEqual(shown(text, value), [], text);
    assert.ok(text.includes(hash(value)), `the step did not have the value: ${text}`);
    if (mode[0] === '--progress=plain') {
      for (const line of ['plain ***', 'error ***', 'split ***', 'base64 ***', 'hex ***', 'after ***']) {
        assert.ok(text.includes(line), `${line} in ${text}`);
      }
    }

    const open = project('open', `  build:${steps}`);
    const control = await runCt(['run', ...mode, '-e', `TOKEN=${value}`], { cwd: open, env });
    assert.deepEqual(shown(everything(control), value), forms(value), everything(control));
  });
}

/** Whether files below CT_HOME hold the value, plain or in base64. */
function leftAtHome(value: string): string[] {
  const patterns = forms(value).flatMap((form) => ['-e', form]);
  const { stdout, status } = spawnSync('grep', ['-rlaF', ...patterns, testHome], { encoding: 'utf8' });
  assert.ok(status === 0 || status === 1, `grep ended with ${status}`);
  return stdout.split('\n').filter(Boolean);
}

/** Whether the memory of a process holds the value; what cannot be read is not looked at. */
function memoryHolds(pid: number, value: string): boolean {
  const marker = Buffer.from(value);
  let fd: number;
  try {
    fd = openSync(`/proc/${pid}/mem`, 'r');
  } catch {
    return false; // it has ended
  }
  try {
    for (const line of readFileSync(`/proc/${pid}/maps`, 'latin1').split('\n')) {
      const match = /^([0-9a-f]+)-([0-9a-f]+) r/.exec(line);
      if (!match?.[1] || !match[2]) continue;
      const end = Number.parseInt(match[2], 16);
      const buffer = Buffer.alloc(4 * 1024 * 1024);
      for (let at = Number.parseInt(match[1], 16); at < end; at += buffer.length - marker.length) {
        try {
          const bytes = readSync(fd, buffer, 0, Math.min(buffer.length, end - at), at);
          if (buffer.subarray(0, bytes).includes(marker)) return true;
        } catch {
          break; // device memory, or unmapped meanwhile
        }
      }
    }
    return false;
  } finally {
    closeSync(fd);
  }
}

function procFiles(pid: number): string {
  return ['cmdline', 'environ']
    .map((name) => {
      try {
        return readFileSync(`/proc/${pid}/${name}`, 'latin1');
      } catch {
        return ''; // it has ended
      }
    })
    .join('\n');
}

/** A smaller VM is searched sooner. */
const SMALL = ['--memory', '512M'];

test('while a job has a secret no process of the host shows it, and afterwards no file does', {
  timeout: 300_000,
}, async () => {
  const value = newValue();
  const child = spawn(
    ctPath,
    ['run', ...SMALL, '-s', 'TOKEN', '--', 'sh', '-c', 'echo "$TOKEN"; read line'],
    {
      cwd: directory,
      env: { PATH: process.env['PATH'], HOME: process.env['HOME'], CI: 'true', ...env, TOKEN: value },
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  );
  using _gone = { [Symbol.dispose]: () => void child.kill('SIGKILL') };
  const end = once(child, 'exit');
  let stdout = '';
  const told = Promise.withResolvers<void>();
  child.stdout.on('data', (chunk: Buffer) => {
    stdout += chunk.toString();
    if (stdout.includes('\n')) told.resolve();
  });
  await Promise.race([told.promise, end]);
  assert.equal(stdout, '***\n');

  const host = await findHost(testHome);
  assert.ok(host, 'no host daemon runs');
  const daemon = (await host.info()).pid;
  const family = descendantsOf(daemon);
  const vmms = family.filter(({ name }) => name.startsWith('qemu'));
  assert.ok(vmms.length > 0 && family.length >= 3, JSON.stringify(family));
  for (const { pid } of family) assert.ok(!procFiles(pid).includes(value), `process ${pid}`);
  assert.ok(procFiles(child.pid ?? 0).includes(value), 'the control: the user gave it to the client');
  if (process.getuid?.() === 0) {
    const holders = vmms.filter(({ pid }) => memoryHolds(pid, value));
    assert.equal(holders.length, 1, 'the control: the memory of one guest holds it');
    assert.ok(!memoryHolds(daemon, value), 'the daemon has seen it');
  }
  child.stdin.end('go\n');
  assert.deepEqual(await end, [0, null]);
  await stopHost(testHome);
  assert.deepEqual(leftAtHome(value), []);

  const control = newValue();
  await runCt(['run', ...SMALL, '-e', `TOKEN=${control}`, '--', 'sh', '-c', 'echo "$TOKEN"'], {
    cwd: directory,
    env,
  });
  assert.notDeepEqual(leftAtHome(control), [], 'the control: the log of the run holds a variable');
});

test('a template holds no secret: it is older than any', { timeout: 300_000 }, async () => {
  const [first, second] = [newValue(), newValue()];
  for (const TOKEN of [first, second]) {
    const { stdout, status, stderr } = await runCt(
      ['run', ...SMALL, '-s', 'TOKEN', '--', 'sh', '-c', 'printf %s "$TOKEN" | sha256sum'],
      { cwd: directory, env: { ...env, TOKEN } },
    );
    assert.deepEqual([status, stdout.split(' ')[0]], [0, hash(TOKEN)], stderr);
  }
  if (process.getuid?.() !== 0) return;
  const host = await findHost(testHome);
  assert.ok(host);
  const family = descendantsOf((await host.info()).pid);
  for (const { pid } of family) {
    for (const value of [first, second]) assert.ok(!memoryHolds(pid, value), `process ${pid}`);
  }
});

test('the largest secret arrives and is masked', { timeout: 300_000 }, async () => {
  const file = join(directory, 'big-value');
  writeFileSync(
    file,
    randomBytes(MAX_SECRET_BYTES).map((byte) => byte || 1),
  );
  const root = project(
    'big',
    `  build:
    secrets: {BIG: file}
    steps: [{run: 'cd /run/ct/secrets; sha256sum BIG; base64 -w0 BIG; echo; cat BIG; echo; echo "$(wc -c < BIG)"'}]
`,
  );
  const outcome = await runCt(['run', '--secret-file', `BIG=${file}`], { cwd: root, env });
  assert.equal(outcome.status, 0, outcome.stderr);
  const value = readFileSync(file);
  assert.ok(outcome.stdout.includes(createHash('sha256').update(value).digest('hex')), outcome.stdout);
  assert.ok(outcome.stdout.includes(`${MAX_SECRET_BYTES}`));
  assert.ok(outcome.stdout.length < 2000, 'it was masked');
});

test('artifacts are not masked, and a secret in them is told', { timeout: 300_000 }, async () => {
  const value = newValue();
  const root = project(
    'artifacts',
    `  build:
    secrets: [TOKEN]
    steps: [{run: 'echo "x $TOKEN" > out'}]
    artifacts: {paths: [out]}
`,
  );
  const outcome = await runCt(['run', '-s', 'TOKEN'], { cwd: root, env: { ...env, TOKEN: value } });
  assert.equal(outcome.status, 0, outcome.stderr);
  assert.match(outcome.stderr, /artifacts contain the value of the secret `TOKEN`/);
  assert.equal(readFileSync(join(root, '.ct/out/build/out'), 'utf8'), `x ${value}\n`);
});

test('a step that is given up takes its secrets along, and the next has its own', {
  timeout: 300_000,
}, async () => {
  const value = newValue();
  const root = project(
    'timeout',
    `  build:
    steps:
      - {name: hangs, run: sleep 100, timeout: 2s, secrets: {TOKEN: file}}
      - {name: same, if: always(), run: 'sha256sum < /run/ct/secrets/TOKEN', secrets: {TOKEN: file}}
      - {name: none, if: always(), run: 'ls -A /run/ct/secrets; echo end'}
`,
  );
  const outcome = await runCt(['run', '-s', 'TOKEN'], { cwd: root, env: { ...env, TOKEN: value } });
  assert.equal(outcome.status, 124, outcome.stderr);
  assert.ok(outcome.stdout.includes(hash(value)), outcome.stdout + outcome.stderr);
  assert.doesNotMatch(outcome.stdout, /TOKEN/);
});

test('a token that was made for a run is revoked after it, also when it fails', {
  timeout: 300_000,
}, async () => {
  const value = newValue();
  const root = project(
    'brokered',
    '  build:\n    secrets: [TOKEN]\n    steps: [{run: \'test -n "$TOKEN" && exit 3\'}]\n',
  );
  const config = join(root, '.config');
  const [issued, revoked] = [join(root, 'issued'), join(root, 'revoked')];
  mkdirSync(join(config, 'ct'), { recursive: true, mode: 0o700 });
  writeFileSync(issued, `${value}\n`);
  writeFileSync(
    join(config, 'ct/config.yml'),
    `secrets: {TOKEN: {command: [cat, ${issued}], revoke: [tee, ${revoked}]}}\n`,
    { mode: 0o600 },
  );
  const outcome = await runCt(['run'], { cwd: root, env: { ...env, XDG_CONFIG_HOME: config } });
  assert.match(outcome.stderr, /exit code 3/);
  assert.equal(readFileSync(revoked, 'utf8'), value);
  assert.deepEqual(shown(everything(outcome), value), []);
});

test('a job without what it names does not start: SECRET_MISSING, 2', async () => {
  const root = project('missing', '  build:\n    secrets: [TOKEN]\n    steps: [{run: echo ran}]\n');
  const outcome = await runCt(['run'], { cwd: root, env });
  assert.equal(outcome.status, 2);
  assert.match(outcome.stderr, /error\[SECRET_MISSING\]: ct\.yml:5:15: job `build` names the secret `TOKEN`/);
  const value = newValue();
  const refused = await runCt(['run', '-s', `TOKEN=${value}`], { cwd: root, env });
  assert.equal(refused.status, 2);
  assert.deepEqual(shown(everything(refused), value), []);
});
