import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { DAMAGE_KINDS } from '../../src/audit/damage.ts';
import { FrameParser } from '../../src/audit/frame-parser.ts';
import { HOST_KEY_NAME, hostSigner, trustKeyFile } from '../../src/audit/host-key.ts';
import { sealingDirectory } from '../../src/audit/places.ts';
import { guestClockOffsetNs, readAudit, syscallCode } from '../../src/audit/reader.ts';
import { AuditRecorder } from '../../src/audit/recorder.ts';
import type { AuditEvent } from '../../src/audit/records.ts';
import { sealAudit } from '../../src/audit/seal.ts';
import { segmentName } from '../../src/audit/segment-format.ts';
import { AuditWriter, DEFAULT_AUDIT_LIMITS } from '../../src/audit/segment-writer.ts';
import { parseAuditSummary } from '../../src/audit/summary.ts';
import { verifyAudit } from '../../src/audit/verify.ts';
import { ParsedOptions } from '../../src/cli/command.ts';
import { run as auditVerify } from '../../src/cli/commands/audit/verify.ts';
import type { Output } from '../../src/cli/output.ts';
import { installRoot } from '../../src/core/install.ts';
import { heartbeatFrame, SyntheticGuest } from '../support/audit-frames.ts';
import { CPUS, factsOf, framesOf, SMALL_LIMITS, sealedRecord, storeRecord } from '../support/audit-record.ts';
import { SeededRandom } from '../support/egress-random.ts';
import { scratchDirectory } from '../support/scratch.ts';

const RUN = 'ngbmevh208';
const NOW = new Date('2026-06-01T00:00:00Z');

async function all(events: AsyncIterable<AuditEvent>): Promise<AuditEvent[]> {
  const found: AuditEvent[] = [];
  for await (const event of events) found.push(event);
  return found;
}

/** Comparable, as events of system calls read their fields when asked. */
function plain(event: AuditEvent): string {
  const fields =
    event.kind === 'syscall'
      ? {
          ...event,
          timeNs: event.timeNs,
          thread: event.thread,
          number: event.number,
          result: event.result,
          args: event.args,
        }
      : event;
  return JSON.stringify(fields, (_, value: unknown) => (typeof value === 'bigint' ? `${value}n` : value));
}

test('a record is proved, and read as it came, whatever the sizes of blocks and segments', async () => {
  using scratch = scratchDirectory();
  const frames = framesOf(11, 400);
  const { directory, trust, summary } = await sealedRecord(scratch.path, RUN, frames);
  assert.ok(summary.segments.length >= 4, `only ${summary.segments.length} segments`);
  const verdict = await verifyAudit({ directory, run: RUN, trust, now: NOW });
  assert.equal(verdict.status, 'proved', JSON.stringify(verdict));
  assert.deepEqual(verdict.status === 'proved' && verdict.seal, { ...factsOf(RUN), record: summary });
  const found = await all(readAudit(directory));
  const { counts } = summary;
  const records = counts.cpus.reduce((sum, cpu) => sum + cpu.records, 0);
  const withSixth = found.filter((event) => event.kind === 'syscall' && event.args.length === 6).length;
  assert.equal(found.length + withSixth, records + counts.processRecords);

  const large = join(scratch.path, 'large');
  const other = await storeRecord(large, RUN, frames, DEFAULT_AUDIT_LIMITS);
  assert.equal(other.head, summary.head, 'the chain does not depend on how frames are stored');
  assert.equal(other.segments.length, 1);
  assert.deepEqual((await all(readAudit(large))).map(plain), found.map(plain));
});

test('filters find exactly what a look at everything finds, with and without an index', async () => {
  using scratch = scratchDirectory();
  const { directory } = await sealedRecord(scratch.path, RUN, framesOf(5, 400));
  const killed = join(scratch.path, 'killed');
  execFileSync('cp', ['-r', directory, killed]);
  const everything = await all(readAudit(directory));
  const times = everything.map(({ timeNs }) => timeNs).sort((a, b) => (a < b ? -1 : 1));
  const [sinceNs, untilNs] = [
    times[Math.floor(times.length * 0.4)],
    times[Math.floor(times.length * 0.5)],
  ] as [bigint, bigint];
  const callsOf = (thread: number, event: AuditEvent): boolean =>
    event.kind === 'syscall' && event.thread === thread;
  const cases: [string, Parameters<typeof readAudit>[1], (event: AuditEvent) => boolean][] = [
    ['kind', { kinds: new Set(['exec', 'exit']) }, ({ kind }) => kind === 'exec' || kind === 'exit'],
    [
      'syscall',
      { syscalls: new Set([syscallCode(12, false)]) },
      (event) => event.kind === 'syscall' && event.number === 12,
    ],
    ['i386', { syscalls: new Set([syscallCode(12, true)]) }, () => false],
    ['time', { sinceNs, untilNs }, ({ timeNs }) => timeNs >= sinceNs && timeNs <= untilNs],
    ['thread', { process: 105 }, (event) => callsOf(105, event)],
    ['process', { process: 203 }, (event) => 'process' in event && event.process.pid === 203],
    [
      'both',
      { process: 104, syscalls: new Set([9]), sinceNs },
      (event) =>
        callsOf(104, event) && (event.kind !== 'syscall' || event.number === 9) && event.timeNs >= sinceNs,
    ],
  ];
  const last = segmentName(readdirSync(killed).filter((name) => name.startsWith('segment')).length - 1);
  truncateSync(join(killed, last), statSync(join(killed, last)).size - 30);
  for (const [what, filter, expected] of cases) {
    const wanted = everything.filter(expected).map(plain);
    for (const place of [directory, killed]) {
      const found = await all(readAudit(place, filter));
      assert.deepEqual(found.map(plain), wanted, what);
    }
    if (what !== 'i386') assert.ok(wanted.length > 0, what);
  }
});

test('what a thread cloned belongs to its process, what it forked does not', async () => {
  using scratch = scratchDirectory();
  const { SyntheticRun } = await import('../support/audit-run.ts');
  const { encodeFrame } = await import('../support/audit-frames.ts');
  const run = new SyntheticRun();
  const records: { type: string; bytes: Buffer }[] = [];
  run.add = (type, bytes) => void records.push({ type, bytes });
  const shell = run.step('x');
  shell.call('clone', [], 900n).call('read', [], 1n, 900);
  const child = shell.fork();
  shell.call('clone', [], BigInt(child.pid));
  child.call('read', [], 2n);
  const frames = records.map(({ type, bytes }, index) => {
    const isCall = type === 'syscall';
    const first = records.slice(0, index).filter((record) => record.type === type).length;
    return encodeFrame({
      type: isCall ? 1 : 2,
      ...(isCall ? { cpu: 0 } : {}),
      first,
      records: 1,
      payload: bytes,
    });
  });
  const directory = join(scratch.path, RUN);
  await storeRecord(directory, RUN, frames);
  const calls = await all(readAudit(directory, { process: shell.pid, kinds: new Set(['syscall']) }));
  assert.deepEqual(
    calls.map((event) => event.kind === 'syscall' && event.result),
    [900n, 1n, BigInt(child.pid)],
  );
});

test('a record that is under way is followed to its end', async () => {
  using scratch = scratchDirectory();
  const frames = framesOf(9, 200);
  const directory = join(scratch.path, RUN);
  mkdirSync(directory);
  const writer = new AuditWriter(directory, RUN, { ...SMALL_LIMITS, flushMs: 5 });
  const parser = new FrameParser(CPUS, (frame) => writer.append(frame, Date.now()));
  let isEnded = false;
  const following = all(readAudit(directory, {}, () => isEnded));
  for (const frame of frames) {
    parser.push(frame);
    if (parser.counts.frames % 20 === 0) await sleep(10);
  }
  await writer.finish();
  isEnded = true;
  assert.deepEqual((await following).map(plain), (await all(readAudit(directory))).map(plain));
});

test('a record that is sealed while it is read is read to its end, and found by who comes meanwhile', async () => {
  using scratch = scratchDirectory();
  const directory = join(scratch.path, RUN);
  await storeRecord(directory, RUN, framesOf(3, 400));
  const expected = (await all(readAudit(directory))).map(plain);
  const names = readdirSync(directory).sort();
  assert.ok(names.length > 2, `${names}`);
  const reading = readAudit(directory);
  const seen = [(await reading.next()).value as AuditEvent];
  // As src/host/audit-records.ts does it.
  const sealing = sealingDirectory(directory);
  mkdirSync(sealing);
  for (const name of names) renameSync(join(directory, name), join(sealing, name));
  const late = all(readAudit(directory));
  const offset = guestClockOffsetNs(directory);
  const rest = all(reading);
  await sleep(100);
  renameSync(directory, join(scratch.path, 'old'));
  await sleep(20);
  renameSync(sealing, directory);
  assert.deepEqual([...seen, ...(await rest)].map(plain), expected);
  assert.deepEqual((await late).map(plain), expected);
  assert.ok((await offset) !== undefined);
});

test('the clocks of guest and host are set against each other by the first records', async () => {
  using scratch = scratchDirectory();
  const directory = join(scratch.path, RUN);
  await storeRecord(directory, RUN, framesOf(2, 50));
  const offset = await guestClockOffsetNs(directory);
  // The made-up guest begins at 5 s, and its frames come from 1,700,000,000,000 ms on, one each millisecond.
  assert.ok(offset !== undefined && Math.abs(Number(offset / 1_000_000n) - (1_700_000_000_000 - 5000)) < 200);
  mkdirSync(join(scratch.path, 'empty'));
  assert.equal(await guestClockOffsetNs(join(scratch.path, 'empty')), undefined);
});

function recorderOf(
  directory: string,
  options: Partial<ConstructorParameters<typeof AuditRecorder>[0]> = {},
) {
  mkdirSync(directory);
  const channel = new PassThrough();
  const recorder = new AuditRecorder({
    channel,
    directory,
    run: RUN,
    cpus: CPUS,
    limits: SMALL_LIMITS,
    ...options,
  });
  return { channel, recorder };
}

test('the recorder keeps what comes in pieces of any size, and says when the guest has sent all of it', async () => {
  using scratch = scratchDirectory();
  const directory = join(scratch.path, RUN);
  const guest = new SyntheticGuest(4, CPUS);
  const frames = guest.frames(60);
  const stream = Buffer.concat(frames);
  const { channel, recorder } = recorderOf(directory, { pending: stream.subarray(0, 50) });
  for (const piece of new SeededRandom(4).pieces(stream.subarray(50))) channel.write(piece);
  const counter = new FrameParser(CPUS, () => {});
  counter.push(stream);
  const { cpus, processRecords: processes } = counter.counts;
  const position = { cpus: cpus.map(({ records }) => records), processes };
  assert.equal(await recorder.reaches(position, 5000), true);
  assert.equal(await recorder.reaches(position, 5000), true, 'where it is already');
  assert.equal(await recorder.reaches({ ...position, processes: processes + 1 }, 30), false);
  const waiting = recorder.reaches({ ...position, cpus: [(cpus[0]?.records ?? 0) + 3, 0] }, 5000);
  channel.write(guest.syscalls(0, 3));
  assert.equal(await waiting, true);
  const summary = await recorder.finish();
  assert.equal(summary.counts.frames, frames.length + 1);
  assert.equal(summary.violation, undefined);
  assert.deepEqual(parseAuditSummary(JSON.parse(JSON.stringify(summary))), summary);
  await sealAudit(directory, factsOf(RUN), summary, await hostSigner(join(scratch.path, 'keys')));
  const trust = await trustKeyFile(join(scratch.path, 'keys/host.pub'));
  assert.equal((await verifyAudit({ directory, run: RUN, trust, now: NOW })).status, 'proved');
});

test('AUDIT_INCOMPLETE when the guest is silent, closes the channel, or leaves a gap; what came before is kept', async () => {
  using scratch = scratchDirectory();
  const guest = new SyntheticGuest(1);
  const [one, , three] = [guest.syscalls(0, 5), guest.syscalls(0, 5), guest.syscalls(0, 5)];
  const ways: Record<string, (channel: PassThrough) => void> = {
    silent: () => {},
    closed: (channel) => channel.end(),
    gap: (channel) => channel.write(three),
    malformed: (channel) => channel.write(Buffer.alloc(40)),
  };
  for (const [reason, act] of Object.entries(ways)) {
    const directory = join(scratch.path, reason);
    const { channel, recorder } = recorderOf(directory, { silenceMs: 300 });
    channel.write(one);
    await sleep(20);
    const before = performance.now();
    act(channel);
    const error = await recorder.lost;
    if (reason === 'silent') assert.ok(performance.now() - before >= 250, 'too early');
    assert.equal(error.code, reason === 'malformed' ? 'GUEST_PROTOCOL' : 'AUDIT_INCOMPLETE');
    assert.equal(await recorder.reaches({ cpus: [100], processes: 0 }, 5000), false);
    const summary = await recorder.finish();
    assert.equal(summary.violation?.reason, reason);
    assert.equal(summary.counts.frames, 1);
    await sealAudit(directory, factsOf(RUN), summary, await hostSigner(join(scratch.path, 'keys')));
    const trust = await trustKeyFile(join(scratch.path, 'keys/host.pub'));
    const verdict = await verifyAudit({ directory, run: RUN, trust, now: NOW });
    assert.equal(verdict.status === 'incomplete' && verdict.reason, 'violation', JSON.stringify(verdict));
    assert.match(
      'message' in verdict ? verdict.message : '',
      /as it was sealed, but ends before the run did/,
    );
  }
});

test('heartbeats alone keep a run alive, and a recorder that is itself late ends none', async () => {
  using scratch = scratchDirectory();
  const { channel, recorder } = recorderOf(join(scratch.path, RUN), { silenceMs: 300 });
  for (let beat = 0; beat < 8; beat += 1) {
    channel.write(heartbeatFrame());
    await sleep(100);
  }
  channel.write(heartbeatFrame());
  const until = performance.now() + 900;
  while (performance.now() < until); // this process does nothing else, while a heartbeat is there to be read
  channel.write(heartbeatFrame());
  await sleep(50);
  assert.equal((await recorder.finish()).violation, undefined);
});

test('a record that has become as large as it may be ends its run, and is whole', async () => {
  using scratch = scratchDirectory();
  const directory = join(scratch.path, RUN);
  const { channel, recorder } = recorderOf(directory, { limits: { ...SMALL_LIMITS, runBytes: 200_000 } });
  const guest = new SyntheticGuest(8);
  let written = 0;
  for (let isLost = false; !isLost && written < 1000; written += 1) {
    channel.write(guest.syscalls(0, 500));
    isLost = await Promise.race([recorder.lost.then(() => true), sleep(1, false)]);
  }
  const error = await recorder.lost;
  assert.equal(error.code, 'AUDIT_INCOMPLETE');
  const summary = await recorder.finish();
  assert.equal(summary.violation?.reason, 'full');
  const bytes = summary.segments.reduce((sum, segment) => sum + segment.bytes, 0);
  assert.ok(bytes > 200_000 && bytes < 2_000_000, `${bytes} bytes`);
  await sealAudit(directory, factsOf(RUN), summary, await hostSigner(join(scratch.path, 'keys')));
  const trust = await trustKeyFile(join(scratch.path, 'keys/host.pub'));
  const verdict = await verifyAudit({ directory, run: RUN, trust, now: NOW });
  assert.equal(
    verdict.status === 'incomplete' && verdict.frames,
    summary.counts.frames,
    JSON.stringify(verdict),
  );
});

test('a disk that takes nothing more ends the run, and leaves nothing to seal', async () => {
  using scratch = scratchDirectory();
  const directory = join(scratch.path, RUN);
  const { channel, recorder } = recorderOf(directory);
  await sleep(20);
  rmSync(directory, { recursive: true }); // the next segment cannot be made
  const guest = new SyntheticGuest(8);
  for (let written = 0; written < 20; written += 1) channel.write(guest.syscalls(0, 4000));
  const error = await recorder.lost;
  assert.match(error.message, /ENOENT/);
  await assert.rejects(recorder.finish(), /ENOENT/);
});

test('a guest is held back while the disk is slower than it, and memory stays bounded', async () => {
  using scratch = scratchDirectory();
  const directory = join(scratch.path, RUN);
  const { channel, recorder } = recorderOf(directory, { limits: DEFAULT_AUDIT_LIMITS, silenceMs: 200 });
  const guest = new SyntheticGuest(6);
  const before = process.memoryUsage();
  let most = 0;
  let heldBack = 0;
  for (let written = 0; written < 300; written += 1) {
    if (!channel.write(guest.syscalls(written % 2, 4000))) {
      heldBack += 1;
      await new Promise((resolve) => channel.once('drain', resolve));
    }
    const now = process.memoryUsage();
    most = Math.max(most, now.external + now.arrayBuffers - before.external - before.arrayBuffers);
  }
  assert.equal(await recorder.reaches({ cpus: [600_000, 600_000], processes: 0 }, 10_000), true);
  const summary = await recorder.finish();
  assert.equal(summary.violation, undefined);
  assert.equal(summary.counts.cpus[0]?.records, 600_000);
  assert.ok(heldBack > 0);
  const stored = summary.segments.reduce((sum, segment) => sum + segment.bytes, 0);
  assert.ok(stored / 1_200_000 <= 12, `${stored / 1_200_000} bytes a record`);
  assert.ok(most < 160e6, `${Math.round(most / 1e6)} MB`);
});

test('the key of a host is made once, by whoever comes first, and never one that others may read', async () => {
  using scratch = scratchDirectory();
  const keys = join(scratch.path, 'keys');
  const signers = await Promise.all([hostSigner(keys), hostSigner(keys), hostSigner(keys)]);
  assert.equal(signers.length, 3);
  assert.deepEqual(readdirSync(keys).sort(), ['host.key', 'host.pub']);
  assert.equal(statSync(join(keys, HOST_KEY_NAME)).mode & 0o777, 0o600);
  const pem = readFileSync(join(keys, HOST_KEY_NAME), 'utf8');
  await hostSigner(keys);
  assert.equal(readFileSync(join(keys, HOST_KEY_NAME), 'utf8'), pem);
  chmodSync(join(keys, HOST_KEY_NAME), 0o640);
  await assert.rejects(hostSigner(keys), { code: 'STATE_DIRECTORY_UNSAFE' });
});

test('a summary is taken in with suspicion', async () => {
  using scratch = scratchDirectory();
  const summary = await storeRecord(join(scratch.path, RUN), RUN, framesOf(1, 20));
  assert.deepEqual(parseAuditSummary(summary), summary);
  const bad: object[] = [
    { head: 'x' },
    { head: summary.head.toUpperCase() },
    { counts: null },
    { counts: { ...summary.counts, frames: -1 } },
    { counts: { ...summary.counts, bytes: 0.5 } },
    { counts: { ...summary.counts, cpus: [] } },
    { counts: { ...summary.counts, cpus: new Array(300).fill({ frames: 0, records: 0, backwards: 0 }) } },
    { segments: [] },
    { segments: new Array(300).fill(summary.segments[0]) },
    { segments: [{ ...summary.segments[0], bytes: 2 ** 40 }] },
    { firstMs: '1' },
    { violation: { reason: 'bored', message: '' } },
    { violation: { reason: 'gap', message: 'x'.repeat(501) } },
  ];
  for (const change of bad) {
    assert.throws(
      () => parseAuditSummary({ ...summary, ...change }),
      RangeError,
      JSON.stringify(change).slice(0, 80),
    );
  }
});

test('what the link process left in the place of the seal is replaced, not followed', async () => {
  using scratch = scratchDirectory();
  const { directory, trust } = await sealedRecord(scratch.path, RUN, framesOf(1, 20));
  const outside = join(scratch.path, 'outside');
  writeFileSync(outside, 'precious');
  rmSync(join(directory, 'seal.json'));
  symlinkSync(outside, join(directory, 'seal.json'));
  symlinkSync(outside, join(directory, '.seal.json'));
  const verdict = await verifyAudit({ directory, run: RUN, trust, now: NOW });
  assert.equal(verdict.status === 'tampered' && verdict.damage, 'seal-invalid');
  rmSync(join(directory, 'seal.json'));
  const again = await storeRecord(join(scratch.path, 'again'), RUN, framesOf(1, 20));
  symlinkSync(outside, join(directory, 'seal.json'));
  await sealAudit(directory, factsOf(RUN), again, await hostSigner(join(scratch.path, 'keys')));
  assert.equal(readFileSync(outside, 'utf8'), 'precious');
  assert.ok(statSync(join(directory, 'seal.json')).isFile());
});

class Collected {
  readonly isTty = { stdout: false, stderr: false };
  stdout = '';
  stderr = '';
  write(stream: 'stdout' | 'stderr', data: string | Uint8Array): undefined {
    this[stream] += String(data);
  }
}

async function verifyCommand(home: string, args: readonly string[], options: [string, string[]][] = []) {
  const output = new Collected();
  const before = process.env['CT_HOME'];
  process.env['CT_HOME'] = home;
  try {
    const parsed = new ParsedOptions(args, undefined, new Map(options));
    const status = await auditVerify(parsed, output as unknown as Output);
    return { status, ...output };
  } finally {
    if (before === undefined) delete process.env['CT_HOME'];
    else process.env['CT_HOME'] = before;
  }
}

test('ct audit verify says what is proved, or what is wrong and where, to people and to scripts', async () => {
  using scratch = scratchDirectory();
  const home = scratch.path;
  const { directory, summary } = await sealedRecord(home, RUN);
  const good = await verifyCommand(home, [RUN]);
  assert.equal(good.status, 0);
  assert.match(good.stdout, /^intact and complete: the audit record of the run ngbmevh208\n/);
  assert.match(good.stdout, new RegExp(summary.head));
  const goodJson = JSON.parse((await verifyCommand(home, [RUN], [['json', ['']]])).stdout);
  assert.deepEqual([goodJson.version, goodJson.status, goodJson.seal.record], [1, 'proved', summary]);

  appendFileSync(join(directory, segmentName(0)), 'x');
  const bad = await verifyCommand(home, [RUN]);
  assert.deepEqual([bad.status, bad.stdout], [122, '']);
  const size = summary.segments[0]?.bytes;
  assert.equal(bad.stderr, `error[AUDIT_TAMPERED]: segment-00000, byte ${size}: 1 bytes were appended\n`);
  const badJson = JSON.parse((await verifyCommand(home, [RUN], [['json', ['']]])).stdout);
  assert.deepEqual(
    [badJson.status, badJson.damage, badJson.place, badJson.error.code],
    ['tampered', 'extended', { file: 'segment-00000', from: size, to: (size ?? 0) + 1 }, 'AUDIT_TAMPERED'],
  );
});

test('ct audit verify trusts the key it is given, and no other', async () => {
  using scratch = scratchDirectory();
  using elsewhere = scratchDirectory();
  await sealedRecord(scratch.path, RUN, framesOf(1, 20));
  await hostSigner(join(elsewhere.path, 'keys'));
  const own = join(scratch.path, 'keys/host.pub');
  const other = join(elsewhere.path, 'keys/host.pub');
  assert.equal((await verifyCommand(scratch.path, [RUN], [['key', [own]]])).status, 0);
  const refused = await verifyCommand(scratch.path, [RUN], [['key', [other]]]);
  assert.equal(refused.status, 122);
  assert.match(refused.stderr, /AUDIT_TAMPERED.*seal\.json: it does not verify/);
  await assert.rejects(verifyCommand(scratch.path, [RUN], [['key', ['/nonexistent']]]), {
    code: 'TRUST_INVALID',
  });
});

test('docs/audit.md explains every kind of damage', () => {
  const page = readFileSync(join(installRoot, 'docs/audit.md'), 'utf8');
  const [, table = ''] = page.split('| `damage` | |');
  assert.deepEqual(
    [...table.matchAll(/`([a-z]+-?[a-z]*)`(?=[^|]*\|[^|]+\|)/g)].map(([, kind]) => kind).sort(),
    [...DAMAGE_KINDS].sort(),
  );
});
