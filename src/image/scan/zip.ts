/**
 * Reads the files of a ZIP archive one after another (APPNOTE 6.3.10): stored or deflated, with or without ZIP64, not split,
 * not encrypted. Nothing is ever written to where an archive says.
 *
 * Archives come from outside. The central directory decides; what the rest of the archive says must agree with it. Parts must
 * not overlap, which is how small archives unpack to anything; every file unpacks to the size and CRC-32 that were announced,
 * within limits.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { crc32, inflateRawSync } from 'node:zlib';
import { CtError } from '../../core/errors.ts';

export interface ZipLimits {
  readonly maxEntries: number;
  readonly maxFileBytes: number;
  readonly maxTotalBytes: number;
}

interface Entry {
  readonly name: string;
  readonly method: number;
  readonly crc: number;
  readonly compressedBytes: number;
  readonly bytes: number;
  readonly offset: number;
}

const END = 0x06054b50;
const END_BYTES = 22;
const ZIP64_END = 0x06064b50;
const ZIP64_END_BYTES = 56;
const ZIP64_LOCATOR = 0x07064b50;
const ZIP64_LOCATOR_BYTES = 20;
const CENTRAL = 0x02014b50;
const CENTRAL_BYTES = 46;
const LOCAL = 0x04034b50;
const LOCAL_BYTES = 30;
const ZIP64_EXTRA = 0x0001;
const MAX_COMMENT_BYTES = 0xffff;
const MAX_NAME_BYTES = 1024;
/** Of the central directory: five million files with names of usual length. */
const MAX_DIRECTORY_BYTES = 512 * 1024 * 1024;
const [STORED, DEFLATED] = [0, 8];
const ENCRYPTED = 0x2041; // encrypted, strongly so, or with masked headers

/** Files in the order of the archive; directories are left out. Throws VULN_DB_INVALID. */
export function* zipFiles(
  path: string,
  limits: ZipLimits,
): Generator<{ readonly name: string; readonly bytes: Buffer }> {
  const fd = openSync(path, 'r');
  try {
    const archive = new Archive(fd, fstatSync(fd).size, path);
    const { entries, directoryStart } = archive.entries(limits);
    for (const [index, entry] of entries.entries()) {
      if (entry.name.endsWith('/')) continue;
      yield { name: entry.name, bytes: archive.read(entry, entries[index + 1]?.offset ?? directoryStart) };
    }
  } finally {
    closeSync(fd);
  }
}

class Archive {
  readonly #fd: number;
  readonly #size: number;
  readonly #name: string;

  constructor(fd: number, size: number, name: string) {
    this.#fd = fd;
    this.#size = size;
    this.#name = name;
  }

  /** In the order in which they lie in the file. */
  entries(limits: ZipLimits): { readonly entries: readonly Entry[]; readonly directoryStart: number } {
    const { count, start, bytes } = this.#end();
    if (count > limits.maxEntries) throw this.#wrong(`holds more than ${limits.maxEntries} files`);
    if (bytes > MAX_DIRECTORY_BYTES) throw this.#wrong('has a directory that is too large');
    const directory = this.#bytes(start, bytes);
    const entries: Entry[] = [];
    let total = 0;
    let at = 0;
    for (let index = 0; index < count; index++) {
      const { entry, next } = this.#entry(directory, at);
      if (entry.bytes > limits.maxFileBytes || entry.compressedBytes > limits.maxFileBytes) {
        throw this.#wrong(`holds a file of more than ${limits.maxFileBytes} bytes: ${entry.name}`);
      }
      total += entry.bytes;
      if (total > limits.maxTotalBytes)
        throw this.#wrong(`unpacks to more than ${limits.maxTotalBytes} bytes`);
      entries.push(entry);
      at = next;
    }
    if (at !== bytes) throw this.#wrong('has a directory of another size than it says');
    entries.sort((a, b) => a.offset - b.offset);
    return { entries, directoryStart: start };
  }

  /** Contents of a file; `end` is where the next part of the archive begins. */
  read(entry: Entry, end: number): Buffer {
    const header = this.#bytes(entry.offset, LOCAL_BYTES);
    if (header.readUInt32LE(0) !== LOCAL) throw this.#wrong(`has no file where it says: ${entry.name}`);
    const nameBytes = header.readUInt16LE(26);
    const start = entry.offset + LOCAL_BYTES + nameBytes + header.readUInt16LE(28);
    if (start + entry.compressedBytes > end) throw this.#wrong(`has files that overlap: ${entry.name}`);
    const name = this.#bytes(entry.offset + LOCAL_BYTES, nameBytes).toString('utf8');
    if (
      name !== entry.name ||
      header.readUInt16LE(8) !== entry.method ||
      (header.readUInt16LE(6) & ENCRYPTED) !== 0
    ) {
      throw this.#wrong(`says two different things of a file: ${entry.name}`);
    }
    const packed = this.#bytes(start, entry.compressedBytes);
    let bytes: Buffer;
    try {
      // One byte more than announced would be too many; zlib refuses a limit of 0.
      bytes = entry.method === STORED ? packed : inflateRawSync(packed, { maxOutputLength: entry.bytes + 1 });
    } catch {
      throw this.#wrong(`holds a file that does not unpack to what it says: ${entry.name}`);
    }
    if (bytes.length !== entry.bytes || crc32(bytes) !== entry.crc) {
      throw this.#wrong(`holds a file that does not unpack to what it says: ${entry.name}`);
    }
    return bytes;
  }

  #end(): { readonly count: number; readonly start: number; readonly bytes: number } {
    const tailBytes = Math.min(this.#size, END_BYTES + MAX_COMMENT_BYTES);
    const tailStart = this.#size - tailBytes;
    const tail = this.#bytes(tailStart, tailBytes);
    let at = tail.length - END_BYTES;
    // The record whose comment ends with the file.
    while (
      at >= 0 &&
      !(tail.readUInt32LE(at) === END && at + END_BYTES + tail.readUInt16LE(at + 20) === tail.length)
    ) {
      at -= 1;
    }
    if (at < 0) throw this.#wrong('is no ZIP archive, or is cut short');
    const end = {
      disks: tail.readUInt16LE(at + 4) + tail.readUInt16LE(at + 6),
      countHere: tail.readUInt16LE(at + 8),
      count: tail.readUInt16LE(at + 10),
      bytes: tail.readUInt32LE(at + 12),
      start: tail.readUInt32LE(at + 16),
    };
    const endStart = tailStart + at;
    const isZip64 = end.count === 0xffff || end.bytes === 0xffffffff || end.start === 0xffffffff;
    const zip64 = isZip64 ? this.#zip64End(endStart - ZIP64_LOCATOR_BYTES) : undefined;
    const { count, start, bytes, limit } = zip64 ?? { ...end, limit: endStart };
    if (!zip64 && (end.disks !== 0 || end.countHere !== end.count))
      throw this.#wrong('is a part of a split archive');
    if (start + bytes > limit) throw this.#wrong('has a directory that lies outside of it');
    return { count, start, bytes };
  }

  #zip64End(locatorStart: number): {
    readonly count: number;
    readonly start: number;
    readonly bytes: number;
    readonly limit: number;
  } {
    const locator = this.#bytes(locatorStart, ZIP64_LOCATOR_BYTES);
    if (locator.readUInt32LE(0) !== ZIP64_LOCATOR) throw this.#wrong('lacks a part of its directory');
    const limit = this.#number(locator, 8);
    const end = this.#bytes(limit, ZIP64_END_BYTES);
    if (end.readUInt32LE(0) !== ZIP64_END) throw this.#wrong('lacks a part of its directory');
    const count = this.#number(end, 32);
    if (end.readUInt32LE(16) + end.readUInt32LE(20) !== 0 || this.#number(end, 24) !== count) {
      throw this.#wrong('is a part of a split archive');
    }
    return { count, bytes: this.#number(end, 40), start: this.#number(end, 48), limit };
  }

  #entry(directory: Buffer, at: number): { readonly entry: Entry; readonly next: number } {
    if (at + CENTRAL_BYTES > directory.length || directory.readUInt32LE(at) !== CENTRAL) {
      throw this.#wrong('has a damaged directory');
    }
    const nameBytes = directory.readUInt16LE(at + 28);
    const extraStart = at + CENTRAL_BYTES + nameBytes;
    const extraEnd = extraStart + directory.readUInt16LE(at + 30);
    const next = extraEnd + directory.readUInt16LE(at + 32);
    if (next > directory.length) throw this.#wrong('has a damaged directory');
    const name = directory.toString('utf8', at + CENTRAL_BYTES, extraStart);
    if (!isPlainName(name, nameBytes)) {
      throw this.#wrong(
        `holds a file with a name that leads elsewhere: ${JSON.stringify(name.slice(0, 100))}`,
      );
    }
    const method = directory.readUInt16LE(at + 10);
    if ((directory.readUInt16LE(at + 8) & ENCRYPTED) !== 0) throw this.#wrong(`is encrypted: ${name}`);
    if (method !== STORED && method !== DEFLATED) throw this.#wrong(`is packed in an unknown way: ${name}`);
    // In this order, each only where the field of the header is full (APPNOTE 4.5.3).
    const wide = this.#zip64Extra(directory.subarray(extraStart, extraEnd));
    const field = (value: number): number => (value === 0xffffffff ? wide() : value);
    const bytes = field(directory.readUInt32LE(at + 24));
    const compressedBytes = field(directory.readUInt32LE(at + 20));
    const offset = field(directory.readUInt32LE(at + 42));
    return {
      entry: { name, method, crc: directory.readUInt32LE(at + 16), compressedBytes, bytes, offset },
      next,
    };
  }

  /** Gives the numbers of the ZIP64 field one after another. */
  #zip64Extra(extra: Buffer): () => number {
    let at = 0;
    while (at + 4 <= extra.length && extra.readUInt16LE(at) !== ZIP64_EXTRA)
      at += 4 + extra.readUInt16LE(at + 2);
    const end = at + 4 <= extra.length ? Math.min(extra.length, at + 4 + extra.readUInt16LE(at + 2)) : 0;
    let next = at + 4;
    return () => {
      if (next + 8 > end) throw this.#wrong('has a damaged directory');
      next += 8;
      return this.#number(extra, next - 8);
    };
  }

  #number(buffer: Buffer, at: number): number {
    const value = buffer.readBigUInt64LE(at);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw this.#wrong('names a place that lies outside of it');
    return Number(value);
  }

  #bytes(start: number, length: number): Buffer {
    if (start < 0 || start + length > this.#size) throw this.#wrong('names a place that lies outside of it');
    const buffer = Buffer.allocUnsafe(length);
    for (let done = 0; done < length; ) {
      const count = readSync(this.#fd, buffer, done, length - done, start + done);
      if (count === 0) throw this.#wrong('became shorter while it was read');
      done += count;
    }
    return buffer;
  }

  #wrong(what: string): CtError {
    return new CtError('VULN_DB_INVALID', `${this.#name} ${what}`, { hint: 'the database is as it was' });
  }
}

function isPlainName(name: string, bytes: number): boolean {
  if (bytes === 0 || bytes > MAX_NAME_BYTES || name.includes('\0') || name.includes('\\')) return false;
  return !name.startsWith('/') && !/^[A-Za-z]:/.test(name) && !name.split('/').includes('..');
}
