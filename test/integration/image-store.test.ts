/** What remains of image builds that end at the wrong moment: locks, processes, directories, a full disk. */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { installRoot } from '../../src/core/install.ts';
import { takeLock } from '../../src/image/lock.ts';
import { sweepScratch } from '../../src/image/scratch.ts';
import { ImageStore } from '../../src/image/store.ts';
import { runSupervised } from '../../src/image/supervised.ts';
import { isAlive } from '../support/processes.ts';

const DEADLINE_MS = 10_000;

function temporaryDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'ct-image-test-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Another process that runs `code`, which may import from src/; it is killed when the test ends. */
function startNode(
  t: TestContext,
  code: string,
  args: readonly string[],
): ChildProcess & { firstLine: Promise<string> } {
  const child = spawn(process.execPath, ['--input-type=module', '-e', code, '--', ...args], {
    cwd: installRoot,
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { PATH: process.env['PATH'] ?? '' },
  });
  t.after(() => child.kill('SIGKILL'));
  const firstLine = once(createInterface({ input: child.stdout }), 'line').then(([line]) => String(line));
  return Object.assign(child, { firstLine });
}

async function until(what: string, condition: () => boolean): Promise<void> {
  for (const deadline = performance.now() + DEADLINE_MS; !condition(); await sleep(20)) {
    assert.ok(performance.now() < deadline, `not within ${DEADLINE_MS} ms: ${what}`);
  }
}

test('a lock excludes other holders until it is disposed', async (t) => {
  const path = join(temporaryDirectory(t), 'lock');
  const order: string[] = [];
  const first = await takeLock(path, { onWait: () => order.push('first waits') });
  const second = takeLock(path, { onWait: () => order.push('second waits') }).then((lock) => {
    order.push('second has it');
    return lock;
  });
  await until('the second waits', () => order.includes('second waits'));
  await sleep(100);
  assert.deepEqual(order, ['second waits']);
  first[Symbol.dispose]();
  (await second)[Symbol.dispose]();
  assert.deepEqual(order, ['second waits', 'second has it']);
});

test('waiting for a lock ends with CANCELLED when it is aborted', async (t) => {
  const path = join(temporaryDirectory(t), 'lock');
  using _first = await takeLock(path, { onWait: assert.fail });
  const abort = new AbortController();
  const waiting = takeLock(path, { signal: abort.signal, onWait: () => abort.abort() });
  await assert.rejects(waiting, { code: 'CANCELLED' });
});

test('a lock whose holder was killed is free at once', async (t) => {
  const path = join(temporaryDirectory(t), 'lock');
  const holder = startNode(
    t,
    `import { takeLock } from './src/image/lock.ts';
     globalThis.lock = await takeLock(process.argv[1], { onWait() {} });
     console.log('locked');
     setInterval(() => {}, 1000);`,
    [path],
  );
  assert.equal(await holder.firstLine, 'locked');
  let waited = false;
  const lock = takeLock(path, { onWait: () => (waited = true) });
  await until('the second waits', () => waited);
  holder.kill('SIGKILL');
  (await lock)[Symbol.dispose]();
});

/** Starts a grandchild in a session of its own, as mmdebstrap's children may be, and writes into its directory. */
const BUSY = 'echo $$; (while :; do date >"$TMPDIR/file"; sleep 0.01; done) & wait';

test('an aborted program is gone with its children and its directory before runSupervised rejects', async (t) => {
  const scratch = join(temporaryDirectory(t), 'scratch');
  mkdirSync(scratch);
  const abort = new AbortController();
  let leader = 0;
  const running = runSupervised({
    argv: ['sh', '-c', BUSY],
    env: { PATH: '/usr/bin:/bin', TMPDIR: scratch },
    scratchDirectory: scratch,
    signal: abort.signal,
    onLine: (line) => {
      leader ||= Number(line);
      setTimeout(() => abort.abort(), 50);
    },
  });
  await assert.rejects(running, { code: 'CANCELLED' });
  assert.ok(leader > 0 && !isAlive(leader));
  assert.equal(existsSync(scratch), false);
});

test('a program whose starter was killed is gone with its children and its directory', async (t) => {
  const scratch = join(temporaryDirectory(t), 'scratch');
  mkdirSync(scratch);
  const starter = startNode(
    t,
    `import { runSupervised } from './src/image/supervised.ts';
     const [scratchDirectory, script] = process.argv.slice(1);
     await runSupervised({ argv: ['sh', '-c', script], env: { PATH: '/usr/bin:/bin', TMPDIR: scratchDirectory },
       scratchDirectory, signal: undefined, onLine: (line) => console.log(line) });`,
    [scratch, BUSY],
  );
  const leader = Number(await starter.firstLine);
  assert.ok(isAlive(leader));
  starter.kill('SIGKILL');
  await until('the program has ended', () => !isAlive(leader));
  await until('its directory is gone', () => !existsSync(scratch));
});

test('a program that fails reports its exit code and the end of its output', async () => {
  const lines: string[] = [];
  const result = await runSupervised({
    argv: ['sh', '-c', 'head -c 200000 /dev/zero | tr "\\0" x; echo; echo last >&2; exit 3'],
    env: { PATH: '/usr/bin:/bin' },
    signal: undefined,
    onLine: (line) => lines.push(line),
  });
  assert.equal(result.exitCode, 3);
  assert.match(result.tail, /last\n/);
  assert.ok(result.tail.length <= 65_536);
  assert.ok(lines.every((line) => line.length <= 16_384));
});

test('a store whose writer is killed again and again never shows a part of a blob', async (t) => {
  const home = temporaryDirectory(t);
  for (let round = 0; round < 5; round++) {
    const writer = startNode(
      t,
      `import { ImageStore } from './src/image/store.ts';
       const store = new ImageStore(process.argv[1]);
       store.prepare();
       console.log('started');
       for (let i = 0; ; i++) {
         const { digest } = await store.putBytes(Buffer.alloc(300_000, \`\${process.argv[2]} \${i}\`));
         await store.writePart('last', { digest });
       }`,
      [home, String(round)],
    );
    await writer.firstLine;
    await sleep(60 + 30 * round);
    writer.kill('SIGKILL');
    await once(writer, 'exit');
    const store = new ImageStore(home);
    for (const hex of readdirSync(join(home, 'blobs/sha256'))) {
      await store.checkedBlobPath({ digest: `sha256:${hex}`, sizeBytes: 300_000 });
    }
    const part = await store.readPart<{ digest: string }>('last');
    if (part !== undefined) assert.match(part.digest, /^sha256:[0-9a-f]{64}$/);
  }
});

test('the sweep removes scratch directories of its own CT_HOME, and no others', async (t) => {
  const base = temporaryDirectory(t);
  for (const name of ['ct-image-0123-abc', 'ct-image-4567-abc', 'other']) {
    mkdirSync(join(base, name));
    writeFileSync(join(base, name, 'file'), '');
  }
  await sweepScratch('0123', base);
  assert.deepEqual(readdirSync(base).sort(), ['ct-image-4567-abc', 'other']);
});

test('a full file system is STORE_FULL, and leaves nothing half-written', async (t) => {
  if (process.getuid?.() !== 0) return t.skip('only root can mount a small file system');
  const mount = mkdtempSync(join(tmpdir(), 'ct-image-test-'));
  t.after(() => rmdirSync(mount));
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m,mode=0700', 'ct-test', mount], { stdio: 'pipe' });
  } catch (error) {
    return t.skip(`a tmpfs cannot be mounted here: ${(error as Error).message}`);
  }
  using cleanup = new DisposableStack();
  cleanup.defer(() => execFileSync('umount', [mount]));
  const store = new ImageStore(mount);
  store.prepare();
  await assert.rejects(store.putBytes(Buffer.alloc(2 * 1024 * 1024, 'x')), { code: 'STORE_FULL' });
  assert.deepEqual(readdirSync(join(mount, 'tmp')), []);
  assert.deepEqual(readdirSync(join(mount, 'blobs/sha256')), []);
  const ref = await store.putBytes(Buffer.from('there is room for this'));
  await store.checkedBlobPath(ref);
});
