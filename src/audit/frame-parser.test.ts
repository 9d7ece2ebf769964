import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encodeFrame, heartbeatFrame, SyntheticGuest } from '../../test/support/audit-frames.ts';
import {
  deniedBody,
  encodeProcess,
  encodeSyscall,
  execBody,
  forkBody,
} from '../../test/support/audit-run.ts';
import { SeededRandom } from '../../test/support/egress-random.ts';
import {
  AuditFrame,
  MAX_AUDIT_PAYLOAD_BYTES,
  NO_CPU,
  ProcessRecord,
  SyscallFlag,
} from '../protocol/audit.ts';
import { FrameParser } from './frame-parser.ts';
import { AuditViolation } from './violation.ts';

const CPUS = 2;

function parse(chunks: readonly Buffer[]): { frames: Buffer[]; parser: FrameParser } {
  const frames: Buffer[] = [];
  const parser = new FrameParser(CPUS, ({ bytes }) => frames.push(Buffer.from(bytes)));
  for (const chunk of chunks) parser.push(chunk);
  parser.end();
  return { frames, parser };
}

test('frames are found wherever chunks begin and end', () => {
  const guest = new SyntheticGuest(7, CPUS);
  const frames = guest.frames(12, 3);
  const stream = Buffer.concat(frames);
  for (let cut = 0; cut <= stream.length; cut += 1) {
    assert.deepEqual(parse([stream.subarray(0, cut), stream.subarray(cut)]).frames, frames, `cut at ${cut}`);
  }
  assert.deepEqual(parse(Array.from(stream, (byte) => Buffer.of(byte))).frames, frames);
  for (let seed = 1; seed <= 50; seed += 1) {
    const more = new SyntheticGuest(seed, CPUS).frames(30, 40);
    const { frames: found } = parse(new SeededRandom(seed).pieces(Buffer.concat(more)));
    assert.deepEqual(found, more, `seed ${seed}`);
  }
});

test('everything is counted, by CPU and kind', () => {
  const guest = new SyntheticGuest(3, CPUS);
  const { parser } = parse([
    guest.syscalls(0, 5),
    guest.syscalls(1, 7),
    guest.syscalls(0, 1),
    guest.processes(),
    heartbeatFrame(),
  ]);
  const { cpus, firstNs, lastNs, bytes, ...rest } = parser.counts;
  assert.deepEqual(cpus, [
    { frames: 2, records: 6, backwards: 0 },
    { frames: 1, records: 7, backwards: 0 },
  ]);
  assert.deepEqual(rest, { frames: 5, processFrames: 1, processRecords: 4, heartbeats: 1 });
  assert.ok(firstNs >= 5e9 && lastNs > firstNs && bytes > 13 * 64);
});

test('time that goes back on a CPU is counted, and no reason to end the run', () => {
  const guest = new SyntheticGuest(3, CPUS);
  const frame = guest.syscalls(0, 4);
  frame.writeBigUInt64LE(1n, 32 + 2 * 64);
  const { parser } = parse([frame, guest.syscalls(0, 1), guest.syscalls(1, 1)]);
  assert.deepEqual(
    parser.counts.cpus.map(({ backwards }) => backwards),
    [1, 0],
  );
  assert.equal(parser.counts.firstNs, 1);
});

function violationOf(bytes: Buffer, before: readonly Buffer[] = []): AuditViolation {
  const parser = new FrameParser(CPUS, () => {});
  for (const frame of before) parser.push(frame);
  let violation: unknown;
  try {
    parser.push(bytes);
    parser.end();
  } catch (error) {
    violation = error;
  }
  assert.ok(
    violation instanceof AuditViolation,
    `nothing was wrong with ${bytes.toString('hex').slice(0, 80)}`,
  );
  assert.throws(() => parser.push(heartbeatFrame()), violation, 'a parser that failed goes on');
  return violation;
}

test('GUEST_PROTOCOL for every field that is not what it has to be', () => {
  const good = new SyntheticGuest(1).syscalls(0, 2);
  const changed = (at: number, value: number, source = good): Buffer => {
    const copy = Buffer.from(source);
    copy[at] = value;
    return copy;
  };
  const bad: Record<string, Buffer> = {
    magic: changed(0, 0),
    type: changed(4, 9),
    version: changed(5, 2),
    'another CPU than there are': changed(6, CPUS),
    'no CPU': encodeFrame({ type: AuditFrame.syscalls, cpu: NO_CPU, records: 1, payload: Buffer.alloc(64) }),
    'fewer records than bytes': changed(16, 1),
    'more records than bytes': changed(16, 3),
    'no records': encodeFrame({ type: AuditFrame.syscalls, cpu: 0 }),
    'odd bytes': encodeFrame({ type: AuditFrame.syscalls, cpu: 0, records: 1, payload: Buffer.alloc(65) }),
    'unknown flags': changed(32 + 14, 8),
    'time beyond reason': changed(32 + 7, 1),
    'a heartbeat with a CPU': changed(6, 0, heartbeatFrame()),
    'a heartbeat with records': changed(16, 1, heartbeatFrame()),
    'a heartbeat with bytes': encodeFrame({ type: AuditFrame.heartbeat, payload: Buffer.alloc(8) }),
  };
  for (const [what, bytes] of Object.entries(bad)) {
    const { reason, code } = violationOf(bytes);
    assert.deepEqual([what, reason, code], [what, 'malformed', 'GUEST_PROTOCOL']);
  }
  assert.equal(parse([good]).frames.length, 1);
});

test('a sixth argument is only taken behind its call, in one frame', () => {
  const call = { timeNs: 5n, thread: 9, number: 9 };
  const sixth = { ...call, flags: SyscallFlag.sixth };
  const frameOf = (...records: Parameters<typeof encodeSyscall>[0][]): Buffer =>
    encodeFrame({
      type: AuditFrame.syscalls,
      cpu: 0,
      records: records.length,
      payload: Buffer.concat(records.map(encodeSyscall)),
    });
  const bad: Record<string, Buffer> = {
    'before all calls of the frame': frameOf(sixth, call),
    twice: frameOf(call, sixth, sixth),
    'of another thread': frameOf(call, { ...sixth, thread: 8 }),
    'of another number': frameOf(call, { ...sixth, number: 202 }),
    'of the other table': frameOf(call, { ...sixth, flags: SyscallFlag.sixth | SyscallFlag.compat }),
  };
  for (const [what, bytes] of Object.entries(bad)) {
    assert.deepEqual([what, violationOf(bytes).reason], [what, 'malformed']);
  }
  assert.equal(parse([frameOf(call, sixth, call, call, sixth)]).frames.length, 1);
});

test('a payload that is too large is refused by its header, before any of it is kept', () => {
  const header = encodeFrame({ type: AuditFrame.syscalls, cpu: 0, records: 4097 });
  header.writeUInt32LE(MAX_AUDIT_PAYLOAD_BYTES + 64, 20);
  const parser = new FrameParser(CPUS, () => {});
  assert.throws(() => parser.push(header), { reason: 'malformed' });
  const largest = encodeFrame({
    type: AuditFrame.syscalls,
    cpu: 0,
    records: 4096,
    payload: Buffer.alloc(MAX_AUDIT_PAYLOAD_BYTES),
  });
  assert.equal(parse([largest]).frames.length, 1);
});

test('AUDIT_INCOMPLETE for gaps, repetitions, lost records, and an end within a frame', () => {
  const guest = new SyntheticGuest(1);
  const [one, two, three] = [guest.syscalls(0, 2), guest.syscalls(0, 2), guest.syscalls(0, 2)];
  const reasonOf = (bytes: Buffer, before: Buffer[] = []): string => {
    const { reason, code, message } = violationOf(bytes, before);
    assert.equal(code, 'AUDIT_INCOMPLETE');
    return `${reason}: ${message}`;
  };
  assert.match(reasonOf(three, [one]), /^gap: .*number 4 instead of 2: 2 are missing/);
  assert.match(reasonOf(two), /^gap: .*2 are missing/);
  assert.match(reasonOf(one, [one]), /^gap: .*come twice/);
  assert.match(reasonOf(encodeFrame({ type: AuditFrame.heartbeat, first: 1 })), /^gap:/);
  const [processes, later] = [guest.processes(), guest.processes()];
  assert.match(reasonOf(later), /^gap: .*processes.*4 are missing/);
  assert.match(reasonOf(processes, [processes]), /^gap:/);
  const far = Buffer.from(one);
  far.writeBigUInt64LE(2n ** 53n, 8);
  assert.match(reasonOf(far), /^gap:/);
  const lossy = Buffer.from(one);
  lossy.writeUInt32LE(1, 28);
  assert.match(reasonOf(lossy), /^lost: .*4294967296 records of processor 0/);
  assert.match(reasonOf(encodeFrame({ type: AuditFrame.heartbeat, lost: 3 })), /^lost: .* 3 records/);
  assert.match(reasonOf(one.subarray(0, 40)), /^closed:/);
  assert.match(reasonOf(one.subarray(0, 1)), /^closed:/);
  assert.equal(parse([one, processes, two, later, three]).frames.length, 5);
});

test('process records are checked one by one, to the byte', () => {
  const process = { pid: 7, startedNs: 1n };
  const head = (kind: number) => ({ kind, process, parentPid: 1, timeNs: 5n });
  const frameOf = (record: Buffer, records = 1): Buffer =>
    encodeFrame({ type: AuditFrame.processes, records, payload: record });
  const exec = encodeProcess(head(ProcessRecord.exec), execBody('/bin/sh', ['sh', '-c', 'x'], { cwd: '/' }));
  const good: Buffer[] = [
    exec,
    encodeProcess(head(ProcessRecord.fork), forkBody({ pid: 8, startedNs: 2n })),
    encodeProcess(head(ProcessRecord.exit), Buffer.alloc(4)),
    encodeProcess(head(ProcessRecord.connect), Buffer.alloc(28)),
    encodeProcess(head(ProcessRecord.denied), deniedBody('library', '/tmp/x.so')),
    encodeProcess(head(ProcessRecord.file), Buffer.of(1, 0, 1, 0, 0, 0, 0, 0, 0x2f)),
  ];
  for (const record of good) assert.equal(parse([frameOf(record)]).frames.length, 1);
  const changed = (at: number, value: number, source: Buffer): Buffer => {
    const copy = Buffer.from(source);
    copy[at] = value;
    return copy;
  };
  const nul = Buffer.from(exec);
  nul[nul.indexOf('/bin/sh') + 2] = 0;
  const bad: Record<string, Buffer> = {
    'an unknown kind': changed(2, 7, exec),
    'kind 0': changed(2, 0, exec),
    'unknown flags': changed(3, 2, exec),
    'a length beyond the frame': changed(0, exec.length + 1, exec),
    'a length that is too short': changed(0, exec.length - 1, exec),
    'no length': changed(0, 0, exec),
    'strings that do not add up': changed(40, 6, exec),
    'something reserved': changed(46, 1, exec),
    'NUL in a path': nul,
    'bytes after an exit': encodeProcess(head(ProcessRecord.exit), Buffer.alloc(5)),
    'an exit without status': encodeProcess(head(ProcessRecord.exit), Buffer.alloc(3)),
    'an unknown denial': encodeProcess(head(ProcessRecord.denied), changed(0, 99, deniedBody('exec', '/x'))),
    'a path that is too long': encodeProcess(
      head(ProcessRecord.denied),
      changed(2, 9, deniedBody('exec', '/x')),
    ),
    'time beyond reason': changed(16 + 7, 1, exec),
    'a start beyond reason': changed(24 + 7, 1, exec),
  };
  for (const [what, record] of Object.entries(bad)) {
    assert.deepEqual([what, violationOf(frameOf(record)).reason], [what, 'malformed']);
  }
  const two = Buffer.concat([exec, exec]);
  assert.equal(violationOf(frameOf(two, 1)).reason, 'malformed');
  assert.equal(violationOf(frameOf(two, 3)).reason, 'malformed');
  assert.equal(parse([frameOf(two, 2)]).frames.length, 1);
});

test('noise of any kind is refused or is frames, and throws nothing else', () => {
  for (let seed = 1; seed <= 2000; seed += 1) {
    const random = new SeededRandom(seed);
    const noise = random.mutated(Buffer.concat(new SyntheticGuest(seed, CPUS).frames(6, 4)));
    try {
      parse(random.pieces(noise));
    } catch (error) {
      assert.ok(error instanceof AuditViolation, `seed ${seed}: ${String(error)}`);
    }
  }
});
