import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  connectBody,
  deniedBody,
  encodeProcess,
  encodeSyscall,
  execBody,
  fileBody,
  forkBody,
  type ProcessHead,
} from '../../test/support/audit-run.ts';
import { ProcessRecord, SyscallFlag } from '../protocol/audit.ts';
import { decodeProcesses, decodeSyscalls, exitCode, exitSignal } from './records.ts';

const key = { pid: 12, startedNs: 2n ** 63n };
const head = (kind: number): ProcessHead => ({ kind, process: key, thread: 13, parentPid: 1, timeNs: 99n });
const by = {
  sequence: 7,
  timeNs: 99n,
  process: key,
  thread: 13,
  parentPid: 1,
  uid: 1000,
  gid: 1000,
  isCut: false,
};

const decode = (record: Buffer): unknown => decodeProcesses(record, { first: 7, records: 1 })[0];

const body = (...numbers: number[]): Buffer => Buffer.from(numbers);

test('every kind of process record becomes an event with what it says', () => {
  const digest = '0f'.repeat(32);
  const cases: [Buffer, object][] = [
    [
      encodeProcess(head(ProcessRecord.fork), forkBody({ pid: 20, startedNs: 5n })),
      { kind: 'fork', child: { pid: 20, startedNs: 5n } },
    ],
    [
      encodeProcess(head(ProcessRecord.exec), execBody('/bin/é', ['é', '', 'b c'], { cwd: '/w', digest })),
      {
        kind: 'exec',
        binary: '/bin/é',
        args: ['é', '', 'b c'],
        cwd: '/w',
        device: 0x700002,
        inode: 4711n,
        digest,
      },
    ],
    [encodeProcess(head(ProcessRecord.exit), body(0, 3, 0, 0)), { kind: 'exit', status: 0x300 }],
    [
      encodeProcess(head(ProcessRecord.connect), connectBody(2, body(198, 18, 1, 1), 443, -115)),
      { kind: 'connect', family: 2, address: '198.18.1.1', port: 443, protocol: 6, result: -115 },
    ],
    [
      encodeProcess(head(ProcessRecord.denied), deniedBody('library', '/tmp/x.so', digest)),
      { kind: 'denied', what: 'library', blocked: true, path: '/tmp/x.so', device: 0, digest },
    ],
    [
      encodeProcess(head(ProcessRecord.file), fileBody('setuid', '/tmp/s', 0o4755)),
      { kind: 'file', what: 'setuid', path: '/tmp/s', flags: 0o4755 },
    ],
  ];
  for (const [record, event] of cases) assert.deepEqual(decode(record), { ...by, ...event });
});

test('a digest of zeros was not computed, and a program without arguments has none', () => {
  const event = decode(encodeProcess(head(ProcessRecord.exec), execBody('/bin/true', []))) as object;
  assert.equal('digest' in event, false);
  assert.deepEqual((event as { args: unknown }).args, []);
});

test('IPv6 addresses have their canonical form, other families none', () => {
  const address = (family: number, bytes: string): unknown =>
    (
      decode(
        encodeProcess(head(ProcessRecord.connect), connectBody(family, Buffer.from(bytes, 'hex'), 1)),
      ) as { address: string }
    ).address;
  assert.equal(address(10, `fd637463${'00'.repeat(8)}c6120101`), 'fd63:7463::c612:101');
  assert.equal(address(10, `${'00'.repeat(15)}01`), '::1');
  assert.equal(address(10, `${'00'.repeat(10)}ffff7f000001`), '127.0.0.1');
  assert.equal(address(1, '00'.repeat(16)), '');
});

test('statuses are read as wait(2) gives them', () => {
  assert.deepEqual([exitCode(0x300), exitSignal(0x300)], [3, undefined]);
  assert.deepEqual([exitCode(9), exitSignal(9)], [undefined, 9]);
  assert.deepEqual([exitCode(0x86), exitSignal(0x86)], [undefined, 6], 'with a core dump');
});

test('bytes that are no UTF-8 become replacement characters', () => {
  const record = encodeProcess(head(ProcessRecord.file), fileBody('read', '/ab'));
  record[record.length - 1] = 0xff;
  assert.equal((decode(record) as { path: string }).path, '/a�');
});

const refused = { code: 'GUEST_PROTOCOL' };

test('process records that do not fit their layout are refused with GUEST_PROTOCOL', () => {
  const bodies: [string, Buffer][] = [
    ['kind 0', encodeProcess(head(0), body())],
    ['kind 7', encodeProcess(head(7), body())],
    ['fork cut', encodeProcess(head(ProcessRecord.fork), Buffer.alloc(15))],
    ['fork with more', encodeProcess(head(ProcessRecord.fork), Buffer.alloc(17))],
    ['exec cut', encodeProcess(head(ProcessRecord.exec), Buffer.alloc(55))],
    [
      'exec with strings beyond',
      encodeProcess(head(ProcessRecord.exec), execBody('/bin/x', []).subarray(0, -1)),
    ],
    ['exec with bytes after', encodeProcess(head(ProcessRecord.exec), Buffer.alloc(57))],
    ['exit cut', encodeProcess(head(ProcessRecord.exit), Buffer.alloc(3))],
    ['connect cut', encodeProcess(head(ProcessRecord.connect), Buffer.alloc(27))],
    ['denied 0', encodeProcess(head(ProcessRecord.denied), Buffer.alloc(40))],
    ['file 6', encodeProcess(head(ProcessRecord.file), Buffer.from([6, 0, 0, 0, 0, 0, 0, 0]))],
    [
      'file with a longer path',
      encodeProcess(head(ProcessRecord.file), fileBody('read', '/a').subarray(0, -1)),
    ],
  ];
  for (const [what, record] of bodies) assert.throws(() => decode(record), refused, what);

  const good = encodeProcess(head(ProcessRecord.exit), Buffer.alloc(4));
  assert.doesNotThrow(() => decodeProcesses(good, { first: 0, records: 1 }));
  assert.throws(() => decodeProcesses(good, { first: 0, records: 2 }), refused, 'fewer than said');
  assert.throws(() => decodeProcesses(good, { first: 0, records: 0 }), refused, 'more than said');
  for (const bytes of [0, 39, 45, 65_535]) {
    const wrong = Buffer.from(good);
    wrong.writeUInt16LE(bytes, 0);
    assert.throws(() => decodeProcesses(wrong, { first: 0, records: 1 }), refused, `${bytes} bytes`);
  }
});

test('whatever bytes a guest sends, decoding ends with events or GUEST_PROTOCOL', () => {
  let state = 1;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return (state >>> 8) % below;
  };
  let decoded = 0;
  for (let round = 0; round < 20_000; round += 1) {
    const record = encodeProcess(
      head(1 + random(6)),
      Buffer.from(Array.from({ length: random(90) }, () => random(4) * random(256))),
    );
    try {
      decoded += decodeProcesses(record, { first: 0, records: 1 }).length;
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'GUEST_PROTOCOL', String(error));
    }
  }
  assert.ok(decoded > 100, `only ${decoded} were well-formed`);
});

const calls = (...records: Buffer[]): ReturnType<typeof decodeSyscalls> =>
  decodeSyscalls(Buffer.concat(records), { cpu: 1, first: 40, records: records.length });

test('system calls have their values, with the sixth argument that follows', () => {
  const args = [1n, 2n, 3n, 4n, 2n ** 64n - 1n];
  const [first, second] = calls(
    encodeSyscall({ timeNs: 5n, thread: 9, number: 9, result: -38n, args }),
    encodeSyscall({ timeNs: 5n, thread: 9, number: 9, flags: SyscallFlag.sixth, args: [6n] }),
    encodeSyscall({ timeNs: 6n, thread: 9, number: 11, flags: SyscallFlag.compat | SyscallFlag.atEntry }),
  );
  assert.ok(first?.kind === 'syscall' && second?.kind === 'syscall');
  assert.deepEqual([first.cpu, first.sequence, first.timeNs, first.thread, first.number], [1, 40, 5n, 9, 9]);
  assert.deepEqual([first.result, first.args], [-38n, [...args, 6n]]);
  assert.deepEqual([first.isCompat, first.isAtEntry], [false, false]);
  assert.deepEqual([second.sequence, second.isCompat, second.isAtEntry], [42, true, true]);
  assert.equal(second.args.length, 5);
});

test('a sixth argument without its call is refused with GUEST_PROTOCOL', () => {
  const sixth = encodeSyscall({ timeNs: 1n, thread: 9, number: 9, flags: SyscallFlag.sixth, args: [6n] });
  assert.throws(() => calls(sixth), refused);
  assert.throws(() => calls(encodeSyscall({ timeNs: 1n, thread: 9, number: 9 }), sixth, sixth), refused);
});

test('system calls that do not fill their frame exactly are refused with GUEST_PROTOCOL', () => {
  const payload = Buffer.alloc(64);
  for (const records of [0, 2]) {
    assert.throws(() => decodeSyscalls(payload, { cpu: 0, first: 0, records }), refused);
  }
});
