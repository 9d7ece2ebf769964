/** Whoever can write to the files of a record changes them: each change is found, and said where it is. */
import assert from 'node:assert/strict';
import {
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { hostSigner } from '../../src/audit/host-key.ts';
import { sealAudit } from '../../src/audit/seal.ts';
import {
  BLOCK_HEADER_BYTES,
  SEGMENT_HEADER_BYTES,
  segmentName,
  TRAILER_BYTES,
} from '../../src/audit/segment-format.ts';
import { type AuditVerdict, verifyAudit } from '../../src/audit/verify.ts';
import { SyntheticGuest } from '../support/audit-frames.ts';
import { factsOf, framesOf, type SealedRecord, sealedRecord, storeRecord } from '../support/audit-record.ts';
import { SeededRandom } from '../support/egress-random.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';

const RUN = 'ngbmevh208';
const OTHER_RUN = 'ngbmevh209';
const NOW = new Date('2026-06-01T00:00:00Z');

let scratch: Scratch;
let record: SealedRecord;
let pristine: string;

before(async () => {
  scratch = scratchDirectory();
  record = await sealedRecord(scratch.path, RUN, framesOf(1, 250));
  await sealedRecord(scratch.path, OTHER_RUN, framesOf(2, 250));
  pristine = join(scratch.path, 'pristine');
  cpSync(record.directory, pristine, { recursive: true });
});
after(() => scratch[Symbol.dispose]());

const other = (): string => join(scratch.path, 'audit', OTHER_RUN);
const path = (segment: number | string): string =>
  join(record.directory, typeof segment === 'number' ? segmentName(segment) : segment);
const verify = (): Promise<AuditVerdict> =>
  verifyAudit({ directory: record.directory, run: RUN, trust: record.trust, now: NOW });

/** What is found after `change`; the record is put back, and holds again. */
async function verdictAfter(change: () => unknown): Promise<AuditVerdict> {
  await change();
  const verdict = await verify();
  rmSync(record.directory, { recursive: true });
  cpSync(pristine, record.directory, { recursive: true });
  return verdict;
}

async function damageAfter(change: () => unknown): Promise<Extract<AuditVerdict, { status: 'tampered' }>> {
  const verdict = await verdictAfter(change);
  assert.equal(verdict.status, 'tampered', JSON.stringify(verdict).slice(0, 300));
  return verdict as Extract<AuditVerdict, { status: 'tampered' }>;
}

function flip(file: string, offset: number, mask: number): void {
  const bytes = readFileSync(file);
  bytes[offset] = (bytes[offset] as number) ^ mask;
  writeFileSync(file, bytes);
}

test('negative control: a record that nobody touched is proved', async () => {
  const verdict = await verify();
  assert.equal(verdict.status, 'proved', JSON.stringify(verdict));
  assert.ok(record.summary.segments.length >= 3);
});

test('one flipped bit anywhere in a segment is found, and its very byte named', async () => {
  const random = new SeededRandom(99);
  for (const segment of [0, 1, record.summary.segments.length - 1]) {
    const bytes = readFileSync(path(segment));
    const { bodyBytes } = record.summary.segments[segment] as { bodyBytes: number };
    const firstBlock = SEGMENT_HEADER_BYTES;
    const trailer = bytes.length - TRAILER_BYTES;
    const indexOffset = Number(bytes.readBigUInt64LE(trailer + 8));
    const places = new Set<number>();
    for (let at = 0; at < firstBlock + BLOCK_HEADER_BYTES; at += segment === 0 ? 1 : 7) places.add(at);
    for (let at = trailer; at < bytes.length; at += 1) places.add(at);
    for (let sample = 0; sample < 12; sample += 1) {
      places.add(
        firstBlock + BLOCK_HEADER_BYTES + random.below(indexOffset - firstBlock - BLOCK_HEADER_BYTES),
      );
      places.add(indexOffset + random.below(bodyBytes - indexOffset));
      places.add(bodyBytes + random.below(trailer - bodyBytes));
    }
    for (const offset of places) {
      const mask = 1 << random.below(8);
      const found = await damageAfter(() => flip(path(segment), offset, mask));
      const expected = { file: segmentName(segment), from: offset, to: offset + 1 };
      assert.deepEqual([found.damage, found.place], ['changed', expected], found.message);
    }
  }
});

test('a byte that was overwritten is named, and what it was; of more than one, the piece', async () => {
  const offset = 1500;
  const was = readFileSync(path(1))[offset] as number;
  const one = await damageAfter(() => flip(path(1), offset, 0x5a));
  assert.deepEqual(one.place, { file: segmentName(1), from: offset, to: offset + 1 });
  assert.match(one.message, new RegExp(`and 0x${was.toString(16).padStart(2, '0')} was written$`));
  const many = await damageAfter(() => {
    const bytes = readFileSync(path(1));
    bytes.fill(0, 3000, 6000);
    writeFileSync(path(1), bytes);
  });
  assert.deepEqual(many.place, { file: segmentName(1), from: 2048, to: 3072 });
});

test('one flipped bit anywhere in the seal is found', async () => {
  const { length } = readFileSync(path('seal.json'));
  const random = new SeededRandom(5);
  for (let at = 0; at < length; at += 1 + random.below(9)) {
    const found = await damageAfter(() => flip(path('seal.json'), at, 1 << random.below(8)));
    assert.deepEqual([found.damage, found.place.file], ['seal-invalid', 'seal.json'], `byte ${at}`);
  }
});

test('segments that are dropped, swapped, duplicated, exchanged or added are told apart', async () => {
  const last = record.summary.segments.length - 1;
  const ways: [string, string, string, () => void][] = [
    ['first dropped', 'segment-missing', segmentName(0), () => rmSync(path(0))],
    ['one dropped', 'segment-missing', segmentName(1), () => rmSync(path(1))],
    ['last dropped', 'segment-missing', segmentName(last), () => rmSync(path(last))],
    [
      'all dropped',
      'segment-missing',
      segmentName(0),
      () => {
        for (let segment = 0; segment <= last; segment += 1) rmSync(path(segment));
      },
    ],
    [
      'dropped, and the gap closed',
      'segment-moved',
      segmentName(1),
      () => {
        for (let segment = 1; segment < last; segment += 1) renameSync(path(segment + 1), path(segment));
      },
    ],
    [
      'swapped',
      'segment-moved',
      segmentName(0),
      () => {
        renameSync(path(0), path('aside'));
        renameSync(path(1), path(0));
        renameSync(path('aside'), path(1));
      },
    ],
    ['duplicated over another', 'segment-moved', segmentName(1), () => cpSync(path(0), path(1))],
    [
      'duplicated at the end',
      'segment-extra',
      segmentName(last + 1),
      () => cpSync(path(last), path(last + 1)),
    ],
    [
      'of another run',
      'segment-foreign',
      segmentName(1),
      () => cpSync(join(other(), segmentName(1)), path(1)),
    ],
    [
      'first of another run',
      'segment-foreign',
      segmentName(0),
      () => cpSync(join(other(), segmentName(0)), path(0)),
    ],
    [
      'added of another run',
      'segment-extra',
      segmentName(last + 1),
      () => cpSync(join(other(), segmentName(1)), path(last + 1)),
    ],
    ['empty', 'truncated', segmentName(1), () => writeFileSync(path(1), '')],
    [
      'a directory',
      'changed',
      segmentName(1),
      () => {
        rmSync(path(1));
        mkdirSync(path(1));
      },
    ],
  ];
  const messages = new Set<string>();
  for (const [what, damage, file, change] of ways) {
    const found = await damageAfter(change);
    assert.deepEqual([what, found.damage, found.place.file], [what, damage, file], found.message);
    messages.add(found.message.replace(/^segment-\d+(, bytes? [\d to]+)?: /, '').replaceAll(/\d+/g, 'N'));
  }
  assert.ok(messages.size >= 6, [...messages].join('\n'));
});

test('a segment that is cut short or made longer is found, and where it ends said', async () => {
  const { bytes, bodyBytes } = record.summary.segments[1] as { bytes: number; bodyBytes: number };
  const lengths = [
    1,
    95,
    96,
    150,
    191,
    192,
    1000,
    Math.floor(bodyBytes / 2),
    bodyBytes - 1,
    bodyBytes,
    bodyBytes + 5,
    bytes - TRAILER_BYTES,
    bytes - 1,
  ];
  for (const length of lengths) {
    const found = await damageAfter(() => truncateSync(path(1), length));
    const expected = { file: segmentName(1), from: length, to: length + 1 };
    assert.deepEqual([found.damage, found.place], ['truncated', expected], found.message);
    assert.match(found.message, new RegExp(`${bytes - length} bytes are missing`));
  }
  for (const spare of [1, 100, 5000]) {
    const found = await damageAfter(() =>
      writeFileSync(path(1), Buffer.concat([readFileSync(path(1)), Buffer.alloc(spare)])),
    );
    const expected = { file: segmentName(1), from: bytes, to: bytes + 1 };
    assert.deepEqual([found.damage, found.place], ['extended', expected], found.message);
  }
});

test('bytes that are taken out or put in are found no later than where that was', async () => {
  const at = 4000;
  const out = await damageAfter(() => {
    const bytes = readFileSync(path(1));
    writeFileSync(path(1), Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 64)]));
  });
  const into = await damageAfter(() => {
    const bytes = readFileSync(path(1));
    writeFileSync(path(1), Buffer.concat([bytes.subarray(0, at), Buffer.alloc(64), bytes.subarray(at)]));
  });
  for (const found of [out, into]) {
    assert.equal(found.place.file, segmentName(1));
    assert.ok(found.place.from !== undefined && found.place.from <= at, found.message);
  }
});

test('a record without a seal, or with that of another, is not taken for a proved one', async () => {
  const none = await verdictAfter(() => rmSync(path('seal.json')));
  assert.equal(none.status === 'incomplete' && none.reason, 'seal-missing');
  assert.match(
    'message' in none ? none.message : '',
    /no seal, so nothing vouches for it; the chain holds for its 250 frames/,
  );
  const foreign = await damageAfter(() => cpSync(join(other(), 'seal.json'), path('seal.json')));
  assert.equal(foreign.damage, 'seal-foreign');
  assert.match(foreign.message, /seal of the run ngbmevh209/);
  const exchanged = await damageAfter(() => {
    rmSync(record.directory, { recursive: true });
    cpSync(other(), record.directory, { recursive: true });
  });
  assert.equal(exchanged.damage, 'seal-foreign');
  const resigned = await damageAfter(async () => {
    using elsewhere = scratchDirectory();
    await sealAudit(
      record.directory,
      factsOf(RUN),
      record.summary,
      await hostSigner(join(elsewhere.path, 'keys')),
    );
  });
  assert.equal(resigned.damage, 'seal-invalid');
});

test('without a seal, damage is found by the chain alone', async () => {
  const unsealed = async (change: () => void): Promise<AuditVerdict> =>
    verdictAfter(() => {
      rmSync(path('seal.json'));
      change();
    });
  const flipped = await unsealed(() => flip(path(1), SEGMENT_HEADER_BYTES + BLOCK_HEADER_BYTES + 500, 4));
  assert.equal(flipped.status === 'tampered' && flipped.place.file, segmentName(1));
  const dropped = await unsealed(() => rmSync(path(1)));
  assert.equal(dropped.status === 'tampered' && dropped.damage, 'segment-missing');
  const foreign = await unsealed(() => cpSync(join(other(), segmentName(1)), path(1)));
  assert.equal(foreign.status === 'tampered' && foreign.damage, 'segment-foreign');
  const swapped = await unsealed(() => cpSync(path(2), path(1)));
  assert.equal(swapped.status === 'tampered' && swapped.damage, 'segment-moved');
  const head = await unsealed(() => flip(path(0), SEGMENT_HEADER_BYTES + 70, 1));
  assert.equal(head.status === 'tampered' && head.place.from, SEGMENT_HEADER_BYTES + 64);
  const cut = await unsealed(() => truncateSync(path(1), statSync(path(1)).size - 3));
  assert.equal(cut.status === 'tampered' && cut.damage, 'truncated');
  // What a killed writer leaves, and what a thief leaves who cuts the end, look alike: that is why the seal is missed.
  const last = record.summary.segments.length - 1;
  const killed = await unsealed(() => truncateSync(path(last), SEGMENT_HEADER_BYTES + 20));
  assert.equal(killed.status, 'incomplete');
});

test('a link process that lies about its own record cannot make it look whole', async () => {
  const lie = (change: object) =>
    damageAfter(async () =>
      sealAudit(
        record.directory,
        factsOf(RUN),
        { ...record.summary, ...change },
        await hostSigner(join(scratch.path, 'keys')),
      ),
    );
  const { counts, segments } = record.summary;
  assert.equal((await lie({ head: '00'.repeat(32) })).damage, 'contradiction');
  assert.equal(
    (await lie({ counts: { ...counts, heartbeats: counts.heartbeats + 1 } })).damage,
    'contradiction',
  );
  assert.equal((await lie({ lastMs: record.summary.lastMs + 1 })).damage, 'contradiction');
  assert.equal((await lie({ segments: segments.slice(0, -1) })).damage, 'segment-extra');
});

test('a sealed record whose frames leave a gap is found out, whoever sealed it', async () => {
  const guest = new SyntheticGuest(3);
  const frames = [guest.syscalls(0, 50), guest.syscalls(0, 50), guest.syscalls(0, 50)];
  const bent = join(scratch.path, 'bent');
  const honest = await storeRecord(bent, RUN, frames);
  const found = await damageAfter(async () => {
    rmSync(record.directory, { recursive: true });
    cpSync(bent, record.directory, { recursive: true });
    // The head of a chain from which the second frame is missing, with files that have it.
    const skipped = await storeRecord(join(scratch.path, 'skipped'), RUN, [frames[0] as Buffer]);
    const summary = { ...honest, head: skipped.head, counts: skipped.counts };
    await sealAudit(record.directory, factsOf(RUN), summary, await hostSigner(join(scratch.path, 'keys')));
  });
  assert.equal(found.damage, 'contradiction');
});

test('files made to harm whoever verifies are refused without harm', async () => {
  const random = new SeededRandom(17);
  for (let round = 0; round < 60; round += 1) {
    const segment = random.below(record.summary.segments.length);
    const verdict = await verdictAfter(() => {
      if (round % 2 === 0) rmSync(path('seal.json'));
      const bytes = readFileSync(path(segment));
      // Lengths and offsets as large as they get, where headers, index and trailer have theirs.
      const spots = [8, 80, 96 + 4, 96 + 8, 96 + 56, bytes.length - 16, bytes.length - 8];
      const at = spots[random.below(spots.length)] as number;
      const width = 1 + random.below(8);
      bytes.fill(random.below(2) === 0 ? 0xff : 0x7f, at, Math.min(bytes.length, at + width));
      writeFileSync(path(segment), bytes);
    });
    assert.notEqual(verdict.status, 'proved');
  }
  assert.deepEqual(readdirSync(record.directory), readdirSync(pristine));
  assert.equal((await verify()).status, 'proved');
});
