/** `ct audit export`, `show`, `query` and `diff` of records that were stored as the product stores them. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { TetragonLines } from '../../src/audit/export/tetragon.ts';
import { auditDirectory } from '../../src/audit/places.ts';
import { type AuditEvent, decodeProcesses, decodeSyscalls } from '../../src/audit/records.ts';
import { parseCommandLine } from '../../src/cli/command.ts';
import { COMMANDS } from '../../src/cli/commands.ts';
import type { Output } from '../../src/cli/output.ts';
import { socketDirectory } from '../../src/core/paths.ts';
import { RunLogWriter } from '../../src/job/run-log.ts';
import { storeRecord } from '../support/audit-record.ts';
import { encodeSyscall, makeBuild, npmCi, reverseShell, SyntheticRun } from '../support/audit-run.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';
import { schemaProblems } from '../support/tetragon-schema.ts';

interface Said {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
  /** Writes that were made while an earlier one had not been taken. */
  readonly overlapping: number;
}

/** Runs a command in this process; its output is taken slowly if `takeMs` is given. */
async function ct(args: readonly string[], { takeMs = 0 } = {}): Promise<Said> {
  const invocation = parseCommandLine(COMMANDS, args);
  assert.ok(invocation.type === 'command');
  const said = { stdout: '', stderr: '' };
  let waiting = 0;
  let overlapping = 0;
  const output = {
    isTty: { stdout: false, stderr: false },
    isBroken: false,
    write(stream: 'stdout' | 'stderr', data: string | Uint8Array) {
      said[stream] += Buffer.from(data as Uint8Array).toString();
      if (takeMs === 0) return undefined;
      if (waiting > 0) overlapping += 1;
      waiting += 1;
      return sleep(takeMs).then(() => {
        waiting -= 1;
      });
    },
  } as unknown as Output;
  const { run } = await invocation.command.load();
  return { status: await run(invocation.parsed, output), ...said, overlapping };
}

const dns = (name: string, id: string): object => ({
  decision_id: id,
  timestamp: '2026-01-31T09:00:00Z',
  path: 'ct/egress/decision',
  input: { version: 1, run: { job: 'build' }, network: {}, request: { kind: 'dns', name, type: 'A' } },
  result: { action: 'allow', allowed_by: 'npm' },
});

const DENIED = {
  ...dns('evil.example', 'd3'),
  result: { action: 'deny', denial: { rule: 'ct.egress.not_allowed', message: 'no rule allows it' } },
};

/** A daemon that knows two runs and says what it is asked for, as the real one does. */
async function startDaemon(ctHome: string): Promise<AsyncDisposable> {
  const details: Record<string, object> = {};
  for (const run of ['r1', 'r2']) {
    details[run] = { run, job: 'build', state: 'ended', steps: [], logDirectory: join(ctHome, 'runs', run) };
  }
  const server = createServer((request, response) => {
    const [, , what, reference = '', more] = (request.url ?? '').split('/');
    const run = reference === 'latest' || reference === 'build' ? 'r2' : reference;
    const answer =
      what === 'info'
        ? { build: 'other', pid: 1 }
        : more === 'decisions'
          ? [dns('registry.example', 'd1'), DENIED, dns('mirror.example', 'd2')]
          : details[run];
    response.statusCode = answer ? 200 : 404;
    const error = { code: 'RUN_NOT_FOUND', message: `there is no run ${reference}` };
    response.end(JSON.stringify(answer ?? { error }));
  });
  const directory = await socketDirectory(ctHome);
  await new Promise<void>((resolve) => server.listen(join(directory, 'host.sock'), resolve));
  return {
    [Symbol.asyncDispose]: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(() => {
          rmSync(directory, { recursive: true, force: true });
          resolve();
        });
      }),
  };
}

describe('commands', () => {
  let scratch: Scratch;
  let daemon: AsyncDisposable;
  const homeBefore = process.env['CT_HOME'];
  before(async () => {
    scratch = scratchDirectory();
    const ctHome = join(scratch.path, 'home');
    mkdirSync(ctHome, { mode: 0o700 });
    process.env['CT_HOME'] = ctHome;
    daemon = await startDaemon(ctHome);
    const acts: Record<string, (run: SyntheticRun) => void> = {
      r1: (run) => {
        makeBuild(run);
        npmCi(run);
      },
      r2: (run) => {
        makeBuild(run);
        npmCi(run);
        run.step('x').connect('198.18.1.2', 443).exit();
        reverseShell(run);
      },
      orphan: (run) => makeBuild(run),
    };
    for (const [id, act] of Object.entries(acts)) {
      const run = new SyntheticRun();
      act(run);
      await storeRecord(auditDirectory(ctHome, id), id, run.frames());
      const log = join(ctHome, 'runs', id);
      mkdirSync(log, { recursive: true });
      using writer = new RunLogWriter(log);
      writer.event({ type: 'step-start', step: 0, name: 'build it' });
    }
  });
  after(async () => {
    await daemon[Symbol.asyncDispose]();
    if (homeBefore === undefined) delete process.env['CT_HOME'];
    else process.env['CT_HOME'] = homeBefore;
    scratch[Symbol.dispose]();
  });

  const linesOf = ({ stdout }: Said): Record<string, unknown>[] =>
    stdout
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as Record<string, unknown>);

  test('export prints lines that Tetragon’s schema accepts; system calls only if asked for', async () => {
    const plain = linesOf(await ct(['audit', 'export', 'r2']));
    const all = linesOf(await ct(['audit', 'export', 'r2', '--syscalls']));
    for (const line of all) assert.deepEqual(schemaProblems(line), []);
    const kinds = (lines: object[]): Set<string> => new Set(lines.map((line) => Object.keys(line)[0] ?? ''));
    assert.equal(kinds(plain).has('process_tracepoint'), false);
    assert.deepEqual([...kinds(all)].sort().at(-1), 'process_tracepoint');
    assert.ok(plain.every(({ node_name }) => node_name === 'r2'));
    assert.match(String(plain[0]?.['time']), /^20[0-9]{2}-/);
  });

  test('export waits for whoever reads it: never is more than one piece on its way', async () => {
    const { overlapping, stdout } = await ct(['audit', 'export', 'r2', '--syscalls', '-f'], { takeMs: 1 });
    assert.equal(overlapping, 0);
    assert.equal(stdout, (await ct(['audit', 'export', 'r2', '--syscalls'])).stdout);
  });

  test('show names destinations by the decision log and tells what policy refused', async () => {
    const { stdout } = await ct(['audit', 'show', 'latest']);
    assert.match(stdout, /^run r2, job build: /);
    assert.match(stdout, /registry\.example:443 {2}×2/);
    assert.match(stdout, /mirror\.example:443/);
    assert.match(stdout, /denied no rule allows it {2}ct\.egress\.not_allowed/);
    assert.match(stdout, /\/usr\/local\/bin\/app/);
    assert.match(stdout, /1 build it/);
  });

  test('show --json and --html say the same to programs and browsers', async () => {
    const document = JSON.parse((await ct(['audit', 'show', 'r2', '--json'])).stdout) as {
      readonly destinations: readonly { readonly host: string }[];
    };
    assert.deepEqual(
      document.destinations.map(({ host }) => host),
      ['registry.example', 'mirror.example', '198.18.1.9'],
    );
    const file = join(scratch.path, 'run.html');
    const { stdout, stderr } = await ct(['audit', 'show', 'r2', '--html', file]);
    assert.equal(stdout, '');
    assert.match(stderr, /run\.html shows run r2/);
    assert.match(readFileSync(file, 'utf8'), /<code>registry\.example:443<\/code>/);
  });

  test('diff tells what the later run did anew', async () => {
    const { stdout } = await ct(['audit', 'diff', 'r1', 'r2']);
    assert.match(stdout, /\+ \/usr\/bin\/python3\n/);
    assert.match(stdout, /\+ mirror\.example:443\n/);
    const { added } = (
      JSON.parse((await ct(['audit', 'diff', 'r1', 'r1', '--json'])).stdout) as {
        readonly programs: { readonly added: unknown[] };
      }
    ).programs;
    assert.deepEqual(added, []);
  });

  test('query finds events and prints them for people and programs', async () => {
    const { stdout } = await ct(['audit', 'query', 'r2', '--destination', '*.example']);
    assert.equal(stdout.split('\n').length - 1, 3);
    assert.match(stdout, /\/usr\/bin\/node \([0-9]+\) connects to registry\.example:443/);
    const lines = linesOf(await ct(['audit', 'query', 'r2', '--syscall', 'dup2', '--json']));
    assert.equal(lines.length, 3);
    for (const line of lines) {
      assert.deepEqual(schemaProblems(line), []);
      assert.match(JSON.stringify(line), /"binary":"\/usr\/bin\/python3"/);
    }
    const none = await ct(['audit', 'query', 'r2', '--path', '/nowhere', '--since', '2h']);
    assert.deepEqual([none.stdout, none.stderr], ['', 'nothing in run r2 fits\n']);
    await assert.rejects(ct(['audit', 'query', 'r2', '--since', 'noon']), { code: 'USAGE' });
  });

  test('a record whose run the daemon has forgotten is shown, without names', async () => {
    assert.match((await ct(['audit', 'show', 'orphan'])).stdout, /^run orphan: [0-9]+ processes/);
    await assert.rejects(ct(['audit', 'show', 'nothing']), { code: 'RUN_NOT_FOUND' });
  });
});

/** As a reader of segments yields them: frames of 4,000 records. */
async function* flood(calls: number): AsyncGenerator<AuditEvent> {
  const run = new SyntheticRun();
  const shell = run.step('x');
  for (const event of run.events()) yield event;
  const args = [3n, 0x7fff_0000_0000n, 4096n, 0n, 0n];
  const records = 4000;
  for (let first = 0; first < calls; first += records) {
    const frame = Array.from({ length: records }, (_, index) =>
      encodeSyscall({ timeNs: BigInt(first + index) * 1000n, thread: shell.pid, number: index % 300, args }),
    );
    yield* decodeSyscalls(Buffer.concat(frame), { cpu: 0, first, records });
  }
}

test('a million system calls are exported in seconds, in memory that does not grow with them', async () => {
  const lines = new TetragonLines({ nodeName: 'r1', clockOffsetNs: 0n, syscalls: true });
  let [bytes, count, peak] = [0, 0, 0];
  const before = process.memoryUsage().heapUsed;
  let rendering = 0;
  for await (const event of flood(1_000_000)) {
    const began = performance.now();
    bytes += lines.render(event).length;
    rendering += performance.now() - began;
    count += 1;
    if (count % 100_000 === 0) peak = Math.max(peak, process.memoryUsage().heapUsed - before);
  }
  const perSecond = count / (rendering / 1000);
  const mib = Math.round(peak / 1024 / 1024);
  console.error(
    `export: ${Math.round(perSecond / 1000)} k events/s, ${Math.round(bytes / count)} bytes a line, heap +${mib} MiB`,
  );
  assert.ok(perSecond > 50_000, `${perSecond} a second`);
  assert.ok(mib < 150, `${mib} MiB`);
});

test('a guest that claims new processes without end is exported in memory that does not grow with them', () => {
  const lines = new TetragonLines({ nodeName: 'r1', clockOffsetNs: 0n, syscalls: false });
  const run = new SyntheticRun();
  const shell = run.step('x');
  for (let index = 0; index < 100; index += 1) shell.spawn('/bin/x', ['x', 'y'.repeat(2000)]);
  const events = run.events();
  const before = process.memoryUsage().rss;
  for (let round = 0; round < 2000; round += 1) {
    for (const event of events) {
      if (event.kind !== 'exec') continue;
      // Another start: another process.
      const process = { pid: event.process.pid, startedNs: event.process.startedNs + BigInt(round) };
      lines.render({ ...event, process, args: [...event.args, String(round)] });
    }
  }
  const mib = Math.round((process.memoryUsage().rss - before) / 1024 / 1024);
  console.error(`200,000 processes: +${mib} MiB`);
  assert.ok(mib < 400, `${mib} MiB`);
});

test('decoding alone is faster than any guest', () => {
  const record = encodeSyscall({ timeNs: 1n, thread: 1, number: 0 });
  const payload = Buffer.concat(Array<Buffer>(4000).fill(record));
  const began = performance.now();
  let sum = 0;
  for (let round = 0; round < 250; round += 1) {
    for (const event of decodeSyscalls(payload, { cpu: 0, first: 0, records: 4000 })) {
      if (event.kind === 'syscall') sum += event.number;
    }
  }
  const perSecond = 1_000_000 / ((performance.now() - began) / 1000);
  console.error(`decoding: ${(perSecond / 1e6).toFixed(1)} M calls/s`);
  assert.equal(sum, 0);
  assert.ok(perSecond > 1_000_000, `${perSecond}`);
  assert.deepEqual(decodeProcesses(Buffer.alloc(0), { first: 0, records: 0 }), []);
});
