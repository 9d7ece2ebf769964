import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  appendFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { type LogEntry, RunLogWriter, readRunLog } from './run-log.ts';

const HEAD = 'log-00000';

function scratch(): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(tmpdir(), 'ct-log-'));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

async function entriesOf(directory: string): Promise<LogEntry[]> {
  const entries: LogEntry[] = [];
  for await (const entry of readRunLog(directory)) entries.push(entry);
  return entries;
}

function outputOf(entries: readonly LogEntry[], stream?: 'stdout' | 'stderr'): Buffer {
  return Buffer.concat(
    entries.flatMap((entry) =>
      entry.type === 'output' && (stream === undefined || entry.stream === stream) ? [entry.bytes] : [],
    ),
  );
}

test('a log gives back every byte, in order, with stream, step and time', async () => {
  using directory = scratch();
  using log = new RunLogWriter(directory.path);
  const hostile = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
  const before = Date.now();
  log.event({ type: 'step-start', step: 1, name: 'build' });
  log.output('stdout', 1, hostile);
  log.output('stderr', 2, Buffer.from('\x1b[2J`\0\r\n'));
  log.output('stdout', 65_535, Buffer.alloc(0));
  const entries = await entriesOf(directory.path);
  assert.deepEqual(
    entries.map((entry) =>
      entry.type === 'output' ? [entry.stream, entry.step, entry.bytes.toString('latin1')] : entry.type,
    ),
    ['event', ['stdout', 1, hostile.toString('latin1')], ['stderr', 2, '\x1b[2J`\0\r\n']],
  );
  for (const entry of entries) {
    assert.ok(entry.type !== 'dropped' && entry.timeMs >= before && entry.timeMs <= Date.now());
  }
  assert.equal(statSync(join(directory.path, HEAD)).mode & 0o777, 0o600);
});

test('output and events larger than a record come back whole', async () => {
  using directory = scratch();
  using log = new RunLogWriter(directory.path);
  const large = Buffer.alloc(200_001, 'x');
  log.output('stdout', 0, large);
  log.event({ type: 'notice', level: 'info', message: '“'.repeat(100_000) });
  const entries = await entriesOf(directory.path);
  assert.ok(outputOf(entries).equals(large));
  const event = entries.at(-1);
  assert.ok(event?.type === 'event' && event.event.type === 'notice');
  assert.equal(event.event.message.length, 100_000);
});

test('a log that grows too large keeps its beginning and its end, and says how much is missing between', async () => {
  using directory = scratch();
  using log = new RunLogWriter(directory.path, { segmentBytes: 1000, maxLaterSegments: 2 });
  const lines = Array.from({ length: 500 }, (_, i) => `line ${String(i).padStart(4, '0')}\n`);
  for (const line of lines) log.output('stdout', 0, Buffer.from(line));
  const sizes = readdirSync(directory.path).map((name) => statSync(join(directory.path, name)).size);
  assert.equal(sizes.length, 3);
  assert.ok(
    sizes.every((size) => size <= 1000),
    String(sizes),
  );

  const entries = await entriesOf(directory.path);
  const at = entries.findIndex(({ type }) => type === 'dropped');
  const dropped = entries[at];
  assert.ok(dropped?.type === 'dropped');
  const [head, tail] = [outputOf(entries.slice(0, at)).toString(), outputOf(entries.slice(at)).toString()];
  const all = lines.join('');
  assert.ok(all.startsWith(head) && head.length > 300);
  assert.ok(all.endsWith(tail) && tail.length > 300);
  assert.equal(head.length + dropped.bytes + tail.length, all.length);
  assert.equal(entries.filter(({ type }) => type === 'dropped').length, 1);
});

test('a record that was cut short by a kill is left out; all before it is there', async () => {
  using directory = scratch();
  using log = new RunLogWriter(directory.path);
  log.output('stdout', 0, Buffer.from('first\n'));
  log.output('stdout', 0, Buffer.from('second\n'));
  const path = join(directory.path, HEAD);
  truncateSync(path, statSync(path).size - 3);
  assert.equal(outputOf(await entriesOf(directory.path)).toString(), 'first\n');
});

test('RUN_LOG_UNREADABLE for a damaged log, after what precedes the damage', async () => {
  for (const damage of [
    Buffer.from([0x61, 0xff, 0xff, 0xff, 0xff]),
    Buffer.from([0x7f, 0, 0, 0, 0]),
    Buffer.from([0x61, 0, 0, 0, 1, 0]),
  ]) {
    using directory = scratch();
    using log = new RunLogWriter(directory.path);
    log.output('stderr', 0, Buffer.from('fine\n'));
    appendFileSync(join(directory.path, HEAD), damage);
    const seen: LogEntry[] = [];
    await assert.rejects(
      async () => {
        for await (const entry of readRunLog(directory.path)) seen.push(entry);
      },
      { code: 'RUN_LOG_UNREADABLE' },
    );
    assert.equal(outputOf(seen).toString(), 'fine\n');
  }
});

test('a log that was never begun is empty', async () => {
  using directory = scratch();
  assert.deepEqual(await entriesOf(directory.path), []);
  assert.deepEqual(await entriesOf(join(directory.path, 'absent')), []);
});

test('a follower waits for the log to begin, sees what is written, also across segments, and ends when the run has', async () => {
  using directory = scratch();
  let ended = false;
  const read = (async () => {
    const entries: LogEntry[] = [];
    for await (const entry of readRunLog(directory.path, () => ended)) entries.push(entry);
    return entries;
  })();
  await new Promise((resolve) => setTimeout(resolve, 50));
  using log = new RunLogWriter(directory.path, { segmentBytes: 500, maxLaterSegments: 100 });
  let expected = '';
  for (let i = 0; i < 100; i++) {
    const line = `line ${i}\n`;
    expected += line;
    log.output(i % 2 === 0 ? 'stdout' : 'stderr', 0, Buffer.from(line));
    if (i % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 30));
  }
  ended = true;
  assert.equal(outputOf(await read).toString(), expected);
});

test('the writer follows no link and overwrites nothing; then it writes nothing and says why', () => {
  using directory = scratch();
  const target = join(directory.path, 'target');
  symlinkSync(target, join(directory.path, HEAD));
  using log = new RunLogWriter(directory.path);
  log.output('stdout', 0, Buffer.from('x'));
  assert.match(log.failure ?? '', /EEXIST/);
  assert.throws(() => readFileSync(target), { code: 'ENOENT' });
});

test('RUN_LOG_UNREADABLE where something else lies than a file; nothing is followed, nobody waits', async () => {
  for (const [command, ...args] of [['mkfifo'], ['mkdir'], ['ln', '-s', '/etc/hostname']] as const) {
    using directory = scratch();
    execFileSync(command, [...args, join(directory.path, HEAD)]);
    await assert.rejects(entriesOf(directory.path), { code: 'RUN_LOG_UNREADABLE' }, command);
  }
});
