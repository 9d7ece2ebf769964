/**
 * Reads tar archives that anybody may have made: ustar, pax (POSIX.1-2017), and the long names of GNU tar.
 *
 *     header   512 bytes: name 0+100, mode 100+8, uid 108+8, gid 116+8, size 124+12, mtime 136+12, checksum 148+8,
 *              type 156, link 157+100, magic 257+6, version 263+2, …, prefix 345+155
 *     data     `size` bytes, filled up to 512
 *     …        ends with blocks of zeros, behind which nothing but zeros may follow; some tools leave them out, with the
 *              filling before them, and what a digest says is complete is complete without
 *
 * Strict, because every leniency is an archive that two readers read differently: numbers have one form, a record
 * of a pax header is there once, and nothing but what is listed here is accepted. Names are byte strings.
 */
import type { ByteSource } from '../import/byte-source.ts';
import { refused, shown } from '../import/refusal.ts';

const BLOCK_BYTES = 512;
/** Room for names and for attributes of 64 KiB; read into memory. */
const MAX_PAX_BYTES = 1024 * 1024;
/** PATH_MAX and a zero byte. */
const MAX_LONG_NAME_BYTES = 4097;
/** The largest size that the field of a header holds in octal; pax writes greater ones. */
const MAX_OCTAL_SIZE = 8 ** 11 - 1;

export interface TarEntry {
  readonly kind: 'file' | 'hardlink' | 'symlink' | 'directory' | 'device' | 'fifo';
  readonly path: string;
  /** Of links. */
  readonly target: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Of files; 0 for all others. */
  readonly sizeBytes: number;
  /** It has file capabilities. Other extended attributes are not reported. */
  readonly capabilities: boolean;
}

const KINDS: Readonly<Record<string, TarEntry['kind']>> = {
  '0': 'file',
  '\0': 'file',
  '1': 'hardlink',
  '2': 'symlink',
  '3': 'device',
  '4': 'device',
  '5': 'directory',
  '6': 'fifo',
};

/** What applies to the next entry. */
interface Extension {
  pax?: ReadonlyMap<string, string>;
  longName?: string;
  longLink?: string;
}

/**
 * Calls `onEntry` for each entry; `read` hands over the data of a file in pieces and must be called at most once, before
 * `onEntry` resolves. Data that is not read is skipped. Reads to the very end. Throws IMAGE_IMPORT_REFUSED.
 */
export async function readTar(
  source: ByteSource,
  onEntry: (entry: TarEntry, read: (to: (piece: Buffer) => Promise<void>) => Promise<void>) => Promise<void>,
): Promise<void> {
  let extension: Extension = {};
  for (;;) {
    const header = await source.take(BLOCK_BYTES);
    if (header === undefined || isZero(header)) break;
    checkSum(header);
    const type = String.fromCharCode(header[156] ?? 0);
    if (type === 'x' || type === 'g' || type === 'L' || type === 'K') {
      const size = number(header, 124, 12, 'size');
      const max = type === 'x' || type === 'g' ? MAX_PAX_BYTES : MAX_LONG_NAME_BYTES;
      if (size > max) throw refused(`an extended header has ${size} bytes, more than ${max}`);
      const data = await source.take(padded(size));
      if (data === undefined && size > 0) throw refused('the archive ends in an extended header');
      extend(extension, type, (data ?? Buffer.alloc(0)).subarray(0, size));
      continue;
    }
    const entry = parseEntry(header, type, extension);
    extension = {};
    let isRead = false;
    const read = async (to: (piece: Buffer) => Promise<void>): Promise<void> => {
      isRead = true;
      await source.forward(entry.sizeBytes, to);
    };
    await onEntry(entry, read);
    if (!isRead) await source.forward(entry.sizeBytes, async () => {});
    await source.take(padded(entry.sizeBytes) - entry.sizeBytes);
  }
  if (extension.pax !== undefined || extension.longName !== undefined || extension.longLink !== undefined) {
    throw refused('the archive ends with an extended header that belongs to no file');
  }
  for (
    let block = await source.take(BLOCK_BYTES);
    block !== undefined;
    block = await source.take(BLOCK_BYTES)
  ) {
    if (!isZero(block)) throw refused('something follows the end of the archive');
  }
}

function extend(extension: Extension, type: string, data: Buffer): void {
  if (type === 'g') {
    // git archive writes the commit there. What would change entries would change all that follow.
    for (const key of parsePax(data).keys()) {
      if (key !== 'comment') throw refused(`a global header sets ${shown(key)} for all files`);
    }
    return;
  }
  const field = type === 'x' ? 'pax' : type === 'L' ? 'longName' : 'longLink';
  if (extension[field] !== undefined) throw refused('two extended headers say the same about one file');
  if (type === 'x') extension.pax = parsePax(data);
  else extension[field as 'longName' | 'longLink'] = withoutFinalZero(data);
}

function parseEntry(header: Buffer, type: string, { pax, longName, longLink }: Extension): TarEntry {
  const kind = KINDS[type];
  const magic = header.toString('latin1', 257, 265);
  const isUstar = magic === 'ustar\x0000';
  const isGnu = magic === 'ustar  \0';
  if (!isUstar && !isGnu && magic !== '\0'.repeat(8)) throw refused('the archive is of an unknown format');
  const name = text(header, 0, 100);
  const prefix = isUstar ? text(header, 345, 155) : '';
  const own = prefix === '' ? name : `${prefix}/${name}`;
  const path = one('path', pax?.get('path'), longName) ?? own;
  if (kind === undefined) throw refused(`${shown(path)} is of the unsupported type ${shown(type)}`);
  if (path === '' || path.includes('\0')) throw refused(`an entry has the name ${shown(path)}`);
  for (const key of pax?.keys() ?? []) {
    if (key.startsWith('GNU.sparse.'))
      throw refused(`${shown(path)} is a sparse file, which is not supported`);
  }
  const headerSize = number(header, 124, 12, 'size');
  const paxSize = paxNumber(pax, 'size');
  if (paxSize !== undefined && paxSize !== headerSize && paxSize <= MAX_OCTAL_SIZE) {
    throw refused(`the two headers of ${shown(path)} disagree about its size`);
  }
  const size = paxSize ?? headerSize;
  // A size of others would be data to some readers and headers to others; tools write 0, for hard links sometimes more.
  if (kind !== 'file' && size !== 0) throw refused(`${shown(path)} is no file and has contents`);
  const target = one('target', pax?.get('linkpath'), longLink) ?? text(header, 157, 100);
  return {
    kind,
    path,
    target: kind === 'hardlink' || kind === 'symlink' ? target : '',
    mode: number(header, 100, 8, 'mode') & 0o7777,
    uid: paxNumber(pax, 'uid') ?? number(header, 108, 8, 'uid'),
    gid: paxNumber(pax, 'gid') ?? number(header, 116, 8, 'gid'),
    sizeBytes: size,
    capabilities:
      pax?.has('SCHILY.xattr.security.capability') === true ||
      pax?.has('LIBARCHIVE.xattr.security.capability') === true,
  };
}

/** `length key=value\n`, where length counts the whole record. */
function parsePax(data: Buffer): ReadonlyMap<string, string> {
  const records = new Map<string, string>();
  for (let at = 0; at < data.length; ) {
    const digits = /^([1-9][0-9]{0,7}) /.exec(data.toString('latin1', at, at + 9))?.[1];
    const length = Number(digits);
    if (digits === undefined || at + length > data.length || data[at + length - 1] !== 0x0a) {
      throw refused('an extended header has a malformed record');
    }
    const record = data.toString('latin1', at + digits.length + 1, at + length - 1);
    const equals = record.indexOf('=');
    if (equals < 1) throw refused('an extended header has a record without a key');
    const key = record.slice(0, equals);
    if (records.has(key)) throw refused(`an extended header sets ${shown(key)} twice`);
    records.set(key, record.slice(equals + 1));
    at += length;
  }
  return records;
}

function paxNumber(pax: ReadonlyMap<string, string> | undefined, key: string): number | undefined {
  const value = pax?.get(key);
  if (value === undefined) return undefined;
  if (!/^(0|[1-9][0-9]{0,14})$/.test(value)) throw refused(`an extended header has no number as ${key}`);
  return Number(value);
}

function one(what: string, pax: string | undefined, gnu: string | undefined): string | undefined {
  if (pax !== undefined && gnu !== undefined) throw refused(`two extended headers give one file a ${what}`);
  return pax ?? gnu;
}

/** Octal, or base 256 as GNU tar writes what does not fit. */
function number(header: Buffer, offset: number, length: number, what: string): number {
  const first = header[offset] ?? 0;
  if (first >= 0x80) {
    // 0xff begins a negative number, and more than 48 bits are no size of anything.
    const value = header.subarray(offset + 1, offset + length);
    if (first !== 0x80 || !isZero(value.subarray(0, value.length - 6)))
      throw refused(`a header has no sane ${what}`);
    return value.readUIntBE(value.length - 6, 6);
  }
  const digits = /^ *([0-7]*)[ \0]*$/.exec(header.toString('latin1', offset, offset + length))?.[1];
  if (digits === undefined) throw refused(`a header has no number as ${what}`);
  return digits === '' ? 0 : Number.parseInt(digits, 8);
}

function checkSum(header: Buffer): void {
  let sum = 8 * 0x20;
  for (let at = 0; at < BLOCK_BYTES; at++) if (at < 148 || at >= 156) sum += header[at] ?? 0;
  if (sum !== number(header, 148, 8, 'checksum')) throw refused('this is no tar archive, or a damaged one');
}

function text(header: Buffer, offset: number, length: number): string {
  const field = header.toString('latin1', offset, offset + length);
  const end = field.indexOf('\0');
  return end === -1 ? field : field.slice(0, end);
}

function withoutFinalZero(data: Buffer): string {
  const value = data.toString('latin1');
  const name = value.endsWith('\0') ? value.slice(0, -1) : value;
  if (name === '' || name.includes('\0')) throw refused('an extended header has no usable name');
  return name;
}

function padded(size: number): number {
  return Math.ceil(size / BLOCK_BYTES) * BLOCK_BYTES;
}

const ZEROS = Buffer.alloc(BLOCK_BYTES);

function isZero(bytes: Uint8Array): boolean {
  return ZEROS.subarray(0, bytes.length).equals(bytes);
}
