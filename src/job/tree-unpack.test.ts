import assert from 'node:assert/strict';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { CtError } from '../core/errors.ts';
import { unpackTree } from './tree.ts';
import { EntryType, TREE_HEADER_BYTES, TREE_MAGIC, writeHeader } from './tree-format.ts';

const scratch = mkdtempSync(join(tmpdir(), 'ct-unpack-'));
after(() => rmSync(scratch, { recursive: true, force: true }));
let places = 0;

interface Entry {
  readonly type: number;
  readonly name: string | Buffer;
  readonly mode?: number;
  readonly content?: string;
  readonly size?: bigint;
  readonly nameBytes?: number;
  readonly mtime?: readonly [bigint, number];
}

function encode(entry: Entry): Buffer {
  const name = Buffer.from(entry.name as string, 'latin1');
  const content = Buffer.from(entry.content ?? '');
  const header = Buffer.alloc(TREE_HEADER_BYTES);
  writeHeader(header, 0, {
    type: entry.type,
    mode: entry.mode ?? (entry.type === EntryType.end ? 0 : 0o644),
    mtimeSeconds: entry.mtime?.[0] ?? 0n,
    mtimeNanoseconds: entry.mtime?.[1] ?? 0,
    nameBytes: entry.nameBytes ?? name.length,
    size: entry.size ?? BigInt(content.length),
  });
  return Buffer.concat([header, name, content]);
}

const file = (name: string | Buffer, content = '', more: Partial<Entry> = {}): Entry => ({
  type: EntryType.file,
  name,
  content,
  ...more,
});
const folder = (name: string, more: Partial<Entry> = {}): Entry => ({
  type: EntryType.directory,
  name,
  mode: 0o755,
  ...more,
});
const link = (name: string, target: string): Entry => ({
  type: EntryType.symlink,
  name,
  content: target,
  mode: 0o777,
});
const END: Entry = { type: EntryType.end, name: '' };

function stream(entries: readonly Entry[]): Buffer {
  return Buffer.concat([TREE_MAGIC, ...entries.map(encode)]);
}

async function* pieces(bytes: Buffer, length = bytes.length): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += length) yield bytes.subarray(at, at + length);
}

/** A directory of its own, so that anything written beside the target is seen. */
function place(): string {
  const parent = join(scratch, `p${places++}`);
  mkdirSync(parent);
  return join(parent, 'out');
}

async function refusal(entries: readonly Entry[] | Buffer, options = {}): Promise<string> {
  const out = place();
  const bytes = Buffer.isBuffer(entries) ? entries : stream(entries);
  const error = await unpackTree(pieces(bytes), out, options).then(
    () => assert.fail('it was taken'),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof CtError, String(error));
  assert.equal(error.code, 'ARTIFACT_REFUSED');
  assert.deepEqual(readdirSync(join(out, '..')), [], 'nothing is left behind');
  return error.message;
}

test('a stream is taken in whatever pieces it arrives', async () => {
  const bytes = stream([folder('a'), file('a/b', 'hello'), link('c', 'a/b'), END]);
  for (const length of [1, 2, 7, 29, bytes.length]) {
    const out = place();
    assert.deepEqual(await unpackTree(pieces(bytes, length), out), { files: 1, bytes: 5, warnings: [] });
    assert.equal(readFileSync(join(out, 'c'), 'utf8'), 'hello');
    assert.deepEqual(readdirSync(join(out, '..')), ['out']);
  }
});

test('ARTIFACT_REFUSED for names that leave the directory or are malformed', async () => {
  for (const name of [
    '/etc/passwd',
    '../x',
    'a/../../x',
    '..',
    '.',
    '',
    'a//b',
    './a',
    'a/',
    'a/.',
    'a/..',
  ]) {
    assert.match(await refusal([folder('a'), file(name, 'x'), END]), /absolute|component|comes/, name);
  }
  assert.match(await refusal([file('a\0b'), END]), /NUL/);
  assert.match(await refusal([file('n'.repeat(256)), END]), /255/);
  assert.match(await refusal([file('x', '', { nameBytes: 4096 }), END]), /name of 4096 bytes/);
  assert.match(await refusal([file('x', '', { nameBytes: 0xffffffff }), END]), /name of 4294967295 bytes/);
});

test('ARTIFACT_REFUSED for an entry that leads through a symbolic link or a file, or has no parent', async () => {
  assert.match(await refusal([link('l', '/tmp'), file('l/x', 'x'), END]), /through a symbolic link/);
  assert.match(await refusal([link('l', 'd'), folder('l/x'), END]), /through a symbolic link/);
  assert.match(await refusal([file('f'), file('f/x'), END]), /before its directory/);
  assert.match(await refusal([file('d/x'), END]), /before its directory/);
});

test('ARTIFACT_REFUSED for anything but a directory that comes twice', async () => {
  assert.match(await refusal([file('f'), file('f'), END]), /comes twice/);
  assert.match(await refusal([link('f', 'x'), file('f'), END]), /comes twice/);
  assert.match(await refusal([folder('f'), link('f', '/'), END]), /comes twice/);
  assert.match(await refusal([file('f'), folder('f'), END]), /comes twice/);
  await unpackTree(pieces(stream([folder('d'), folder('d'), END])), place());
});

test('ARTIFACT_REFUSED for sizes that are too large, however they are written', async () => {
  assert.match(await refusal([file('f', 'xx'), END], { maxBytes: 1 }), /larger than 1 bytes/);
  assert.match(await refusal([file('f', '', { size: 2n ** 64n - 1n }), END]), /larger than/);
  assert.match(await refusal([file('f', '', { size: 2n ** 53n }), END]), /larger than/);
  assert.match(
    await refusal([file('a', 'xx'), file('b', 'xx'), END], { maxBytes: 3 }),
    /larger than 3 bytes/,
  );
  assert.match(await refusal([folder('d', { size: 1n }), END]), /has content/);
  assert.match(await refusal([link('l', ''), END]), /target of 0 bytes/);
  assert.match(await refusal([{ ...link('l', 'x'), size: 4096n }, END]), /target of 4096 bytes/);
  assert.match(await refusal([link('l', 'x\0y'), END]), /NUL/);
});

test('ARTIFACT_REFUSED for a stream that is cut short, goes on, or is none', async () => {
  const whole = stream([file('f', 'hello'), END]);
  for (const length of [0, 4, 8, 20, 37, 40, whole.length - 1]) {
    assert.match(await refusal(whole.subarray(0, length)), /cut short/, String(length));
  }
  assert.match(await refusal(Buffer.concat([whole, Buffer.from('x')])), /goes on/);
  assert.match(await refusal(Buffer.from('PK\x03\x04 this is a zip')), /does not begin/);
  assert.match(await refusal([{ type: 0x58, name: 'x' }, END]), /unknown type 88/);
  assert.match(await refusal([{ ...END, mode: 1 }]), /end entry/);
  assert.match(await refusal([file('f', '', { mtime: [0n, 1_000_000_000] }), END]), /nanoseconds/);
});

test('links that stay inside are made, others are left out with a warning', async () => {
  const out = place();
  const good = {
    a: 'd/x',
    'd/up': '../a',
    'd/e/up': '../../a',
    self: 'self',
    dot: './d/./x',
    dangling: 'none',
  };
  const bad = {
    abs: '/etc/passwd',
    climb: '..',
    'd/climb': '../..',
    sneaky: 'd/../../x',
    twice: 'd/..',
    'd/e/c': '../../../x',
  };
  const { warnings } = await unpackTree(
    pieces(
      stream([
        folder('d'),
        folder('d/e'),
        file('d/x', 'x'),
        ...Object.entries({ ...good, ...bad }).map(([name, target]) => link(name, target)),
        END,
      ]),
    ),
    out,
  );
  for (const [name, target] of Object.entries(good)) assert.equal(readlinkSync(join(out, name)), target);
  for (const name of Object.keys(bad))
    assert.equal(lstatSync(join(out, name), { throwIfNoEntry: false }), undefined);
  assert.equal(warnings.length, 6);
  assert.match(warnings[0] ?? '', /abs points outside/);
});

test('modes lose set-user-id, set-group-id and sticky bits; directories stay removable', async () => {
  const out = place();
  const bytes = stream([
    folder('d', { mode: 0o7000 }),
    file('d/f', 'x', { mode: 0o6755 }),
    file('w', '', { mode: 0xffffffff }),
    END,
  ]);
  await unpackTree(pieces(bytes), out);
  assert.equal(lstatSync(join(out, 'd')).mode & 0o7777, 0o700);
  assert.equal(lstatSync(join(out, 'd/f')).mode & 0o7777, 0o755);
  assert.equal(lstatSync(join(out, 'w')).mode & 0o7777, 0o777);
});

test('wild times do no harm', async () => {
  for (const seconds of [-(2n ** 63n), -1n, 2n ** 62n, 2n ** 63n - 1n]) {
    const out = place();
    await unpackTree(pieces(stream([file('f', '', { mtime: [seconds, 5] }), END])), out);
    assert.ok(Math.abs(lstatSync(join(out, 'f')).mtimeMs - Date.now()) < 60_000);
  }
});

test('an existing directory is added to, and links in it are replaced rather than followed', async () => {
  const out = place();
  const outside = join(out, '..', 'outside');
  mkdirSync(join(out, 'd'), { recursive: true });
  writeFileSync(join(out, 'd/old'), 'old');
  writeFileSync(outside, 'untouched');
  symlinkSync(outside, join(out, 'f'));
  await unpackTree(pieces(stream([folder('d'), file('d/new', 'new'), file('f', 'mine'), END])), out);
  assert.equal(readFileSync(outside, 'utf8'), 'untouched');
  assert.equal(readFileSync(join(out, 'f'), 'utf8'), 'mine');
  assert.deepEqual(readdirSync(join(out, 'd')), ['new', 'old']);
});

test('ARTIFACT_WRITE_FAILED when a link stands where a directory has to go', async () => {
  const out = place();
  const outside = join(out, '..', 'outside');
  mkdirSync(out);
  mkdirSync(outside);
  symlinkSync(outside, join(out, 'd'));
  await assert.rejects(unpackTree(pieces(stream([folder('d'), file('d/x', 'x'), END])), out), {
    code: 'ARTIFACT_WRITE_FAILED',
  });
  assert.deepEqual(readdirSync(outside), []);
});

test('the directory stays as it was until the stream has ended well', async () => {
  const out = place();
  mkdirSync(out);
  writeFileSync(join(out, 'f'), 'old');
  await assert.rejects(unpackTree(pieces(stream([file('f', 'new'), file('/x'), END])), out));
  assert.equal(readFileSync(join(out, 'f'), 'utf8'), 'old');
  assert.deepEqual(readdirSync(join(out, '..')), ['out']);
});

test('an abort ends a stream that stalls, with the reason and nothing left', async () => {
  const out = place();
  const controller = new AbortController();
  const stalled = async function* (): AsyncGenerator<Buffer> {
    yield stream([file('f', 'x')]);
    await new Promise(() => {});
  };
  const done = unpackTree(stalled(), out, { signal: controller.signal });
  setImmediate(() => controller.abort(new CtError('CANCELLED', 'stop')));
  await assert.rejects(done, { code: 'CANCELLED' });
  assert.deepEqual(readdirSync(join(out, '..')), []);
});

test('random mutations of a valid stream end in success or ARTIFACT_REFUSED, with nothing outside', async () => {
  const valid = stream([
    folder('a'),
    file('a/b', 'content of b'),
    folder('a/c', { mode: 0o700 }),
    link('a/c/l', '../b'),
    file('a/c/d', 'x'.repeat(300), { mtime: [1_700_000_000n, 5] }),
    link('m', 'a'),
    file('z', ''),
    END,
  ]);
  const interesting = [0x00, 0x2e, 0x2f, 0x44, 0x45, 0x46, 0x4c, 0x7f, 0x80, 0xff];
  const random = xorshift(0x5eed);
  const outcomes = { taken: 0, refused: 0 };
  for (let round = 0; round < 1500; round++) {
    let bytes = Buffer.from(valid);
    for (let count = 1 + random(4); count > 0; count--) {
      const at = random(bytes.length);
      switch (random(5)) {
        case 0:
          bytes[at] = random(256);
          break;
        case 1:
          bytes[at] = interesting[random(interesting.length)] as number;
          break;
        case 2:
          bytes = bytes.subarray(0, at);
          break;
        case 3:
          bytes = Buffer.concat([
            bytes.subarray(0, at),
            valid.subarray(random(valid.length)),
            bytes.subarray(at),
          ]);
          break;
        default:
          bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + random(40))]);
      }
      if (bytes.length === 0) break;
    }
    const out = join(scratch, 'fuzz', 'out');
    try {
      await unpackTree(pieces(bytes, 1 + random(64)), out, { maxBytes: 1e6 });
      outcomes.taken++;
      assert.deepEqual(readdirSync(join(out, '..')), ['out']);
      assertInside(out, 0);
    } catch (error) {
      assert.ok(error instanceof CtError, `round ${round}: ${error}`);
      assert.equal(error.code, 'ARTIFACT_REFUSED', `round ${round}: ${error.message}`);
      outcomes.refused++;
      assert.deepEqual(readdirSync(join(out, '..')), []);
    }
    rmSync(out, { recursive: true, force: true });
  }
  assert.ok(outcomes.taken > 50 && outcomes.refused > 500, JSON.stringify(outcomes));
  assert.ok(existsSync(scratch));
});

/** Every link below leads to a place inside, or nowhere. */
function assertInside(path: string, depth: number): void {
  for (const entry of readdirSync(path, { withFileTypes: true, encoding: 'buffer' })) {
    const child = Buffer.concat([Buffer.from(`${path}/`), entry.name]);
    assert.equal(lstatSync(child).mode & 0o7000, 0);
    if (entry.isSymbolicLink()) {
      const target = readlinkSync(child);
      assert.ok(
        !target.startsWith('/') && target.split('/').filter((part) => part === '..').length <= depth,
        target,
      );
    } else if (entry.isDirectory()) {
      assertInside(child.toString('utf8'), depth + 1);
    }
  }
}

/** Deterministic numbers below a limit. */
function xorshift(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % limit;
  };
}
