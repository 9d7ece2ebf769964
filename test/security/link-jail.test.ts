/** What a link process could do if its guest took it over: what the kernel says of one that runs. */
import assert from 'node:assert/strict';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { Link, type LinkOptions } from '../../src/host/link.ts';
import { linkIdentity } from '../../src/host/link-jail.ts';
import { cgroupOf, lacking, testCgroups } from '../support/cgroups.ts';
import { scratchDirectory } from '../support/scratch.ts';

const isRoot = process.getuid?.() === 0;
const scratch = scratchDirectory();
after(() => scratch[Symbol.dispose]());

/** A program in place of the link process that answers the first command with what it found out. */
const EXPLORER = `
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
const attempt = (act) => { try { return act(); } catch (error) { return error.code; } };
process.on('message', async () => {
  const found = {
    root: readdirSync('/').sort().join(' '),
    secret: attempt(() => readFileSync(process.argv[2] ?? '/etc/shadow', 'utf8')),
    code: attempt(() => writeFileSync(import.meta.filename, '')),
    log: attempt(() => writeFileSync('/out/log-00000', 'written inside')),
    elsewhere: attempt(() => writeFileSync('/there', '')),
  };
  process.stderr.write(JSON.stringify(found));
  process.exit(3);
});
`;

interface Explored {
  readonly found: Readonly<Record<string, string>>;
  readonly status: Readonly<Record<string, string>>;
  readonly otherNamespaces: readonly string[];
  readonly log: string;
}

async function explore(program: string, options: Partial<LinkOptions> = {}): Promise<Explored> {
  const scratchOfLinks = join(scratch.path, 'links');
  mkdirSync(scratchOfLinks, { recursive: true });
  const link = new Link({ program, scratchDirectory: scratchOfLinks, ...options });
  // It has joined, become and executed everything once it is Node.
  await retry(() => assert.match(readlinkSync(`/proc/${link.pid}/exe`), /node$/));
  const logs = join(scratch.path, `run-${link.pid}`);
  mkdirSync(logs);
  assert.equal(link.giveLogs(logs), '/out');
  const ended = link.call({ type: 'await-ready', timeoutMs: 20_000 }).then(
    () => assert.fail('it answered'),
    (error: Error) => error.message,
  );
  const status = Object.fromEntries(
    readFileSync(`/proc/${link.pid}/status`, 'utf8')
      .split('\n')
      .map((line) => line.split(':').map((part) => part.trim())),
  );
  const otherNamespaces = readdirSync('/proc/self/ns').filter(
    (name) => readlinkSync(`/proc/${link.pid}/ns/${name}`) !== readlinkSync(`/proc/self/ns/${name}`),
  );
  const message = await ended;
  await link.exited;
  const json = /\{.*\}/.exec(message)?.[0];
  assert.ok(json, message);
  assert.deepEqual(readdirSync(scratchOfLinks), [], 'nothing is left of its jail');
  return {
    found: JSON.parse(json),
    status,
    otherNamespaces,
    log: readFileSync(join(logs, 'log-00000'), 'utf8'),
  };
}

function writeExplorer(directory: string, mode: number): string {
  mkdirSync(directory);
  const path = join(directory, 'explorer.mjs');
  writeFileSync(path, EXPLORER);
  chmodSync(path, mode & 0o444);
  chmodSync(directory, mode);
  return path;
}

test('a link process sees its code and its log, has no powers and no network, and is limited', async () => {
  const skipped = await lacking(scratch, 'memory', 'pids');
  await using cgroups = await testCgroups(scratch);
  const program = writeExplorer(join(scratch.path, 'open'), 0o755);
  const { found, status, otherNamespaces, log } = await explore(program, { cgroups });
  // What is made for it, and the way to the code it runs: nothing else of the host has a name inside.
  const wayToCode = [installRoot, program, process.execPath].map((path) => path.split('/')[1] ?? '');
  const made = ['bin', 'dev', 'lib', 'lib64', 'out', 'out2', 'sbin', 'self', 'usr'];
  assert.deepEqual(found['root'], [...new Set([...made, ...wayToCode])].sort().join(' '));
  assert.deepEqual(
    [found['secret'], found['code'], found['elsewhere'], found['log']],
    ['ENOENT', 'EROFS', 'EROFS', undefined],
  );
  assert.equal(log, 'written inside');
  assert.equal(status['NoNewPrivs'], '1');
  assert.equal(status['CapEff'], '0000000000000000');
  assert.equal(status['CapPrm'], '0000000000000000');
  if (isRoot) assert.match(status['Uid'] ?? '', /^17\d{8}\b/);
  for (const name of ['mnt', 'net', 'ipc', 'uts']) assert.ok(otherNamespaces.includes(name), name);
  if (skipped) return;
  // One that lives: its cgroup is gone with it.
  const link = new Link({ scratchDirectory: scratch.path, cgroups });
  const directory = await retry(() => cgroupOf(link.pid, cgroups, 'memory'));
  assert.match(directory, /\/link-\d+$/);
  await link.kill();
  assert.equal(existsSync(directory), false);
});

test("where only root may read the code, root's link process has a user namespace instead of a user", {
  skip: isRoot ? false : 'without root it is always so',
}, async () => {
  const program = writeExplorer(join(scratch.path, 'closed'), 0o700);
  assert.deepEqual(linkIdentity(program), {
    kind: 'user-namespace',
    unreadable: join(scratch.path, 'closed'),
  });
  assert.deepEqual(linkIdentity(join(installRoot, 'package.json')).kind, 'own-user');
  const { found, status, otherNamespaces, log } = await explore(program);
  assert.equal(found['secret'], 'ENOENT');
  assert.equal(log, 'written inside');
  assert.equal(status['CapEff'], '0000000000000000');
  assert.equal(status['NoNewPrivs'], '1');
  assert.ok(otherNamespaces.includes('user') && otherNamespaces.includes('net'));
});

/** What it does every few milliseconds; it answers heartbeats, so that only what it writes gives it away. */
const FLOODS = {
  'more bytes': "appendFileSync('/out/log-00000', Buffer.alloc(4 * 1024 * 1024));",
  'more files': "appendFileSync('/out/log-' + i++, 'x');",
  'a directory rather': "mkdirSync('/out/log-00000', { recursive: true });",
};

for (const [what, flood] of Object.entries(FLOODS)) {
  test(`a link process that writes ${what} than a log is ended, and all it wrote is removed`, async () => {
    const directory = join(scratch.path, what.replaceAll(' ', '-'));
    mkdirSync(directory);
    const program = join(directory, 'flood.mjs');
    writeFileSync(
      program,
      `import { appendFileSync, mkdirSync } from 'node:fs';
       let i = 0;
       process.on('message', ({ type }) => {
         if (type === 'heartbeat') process.send({ type: 'alive' });
         else setInterval(() => { ${flood} }, 5);
       });`,
    );
    chmodSync(directory, 0o755);
    const link = new Link({ program, scratchDirectory: scratch.path, heartbeatIntervalMs: 50 });
    await retry(() => assert.match(readlinkSync(`/proc/${link.pid}/exe`), /node$/));
    const logs = join(directory, 'logs');
    mkdirSync(logs);
    link.giveLogs(logs);
    await assert.rejects(link.call({ type: 'await-ready', timeoutMs: 30_000 }), {
      code: 'LINK_DIED',
      message: /wrote more than a log/,
    });
    await link.exited;
    assert.equal(existsSync(logs), false);
  });
}

test('a link process that takes more memory than its limit is killed by the kernel, and that is said', async (t) => {
  const skipped = await lacking(scratch, 'memory');
  if (skipped) return t.skip(skipped);
  await using cgroups = await testCgroups(scratch);
  const directory = join(scratch.path, 'greedy');
  mkdirSync(directory);
  const program = join(directory, 'greedy.mjs');
  // Buffers lie outside of the heap that V8 bounds.
  writeFileSync(
    program,
    `process.on('message', () => { globalThis.all = []; for (;;) all.push(Buffer.alloc(16 << 20, 1)); });`,
  );
  const link = new Link({ program, scratchDirectory: scratch.path, cgroups });
  await assert.rejects(link.call({ type: 'await-ready', timeoutMs: 30_000 }), {
    code: 'LINK_DIED',
    message: /it reached its limit of 256 MiB/,
  });
  await link.exited;
});

async function retry<T>(act: () => T): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return act();
    } catch (error) {
      if (attempt === 200) throw error;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}
