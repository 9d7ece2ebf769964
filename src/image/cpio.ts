/**
 * Writer of cpio archives in the "new ASCII" format, which the kernel unpacks as initramfs (Documentation/
 * driver-api/early-userspace/buffer-format.rst). Archives may be concatenated: the kernel unpacks all of them.
 *
 * An entry is a header of 110 bytes (magic and thirteen 8-digit hexadecimal numbers), the name with a NUL, and the
 * data; header with name, and data, are each padded to four bytes. An entry named `TRAILER!!!` ends the archive.
 */

export interface CpioEntry {
  /** Relative to the root, without a leading slash; its directory must come before it. */
  readonly name: string;
  /** File type and permissions, as in `st_mode`: 0o100755 is a program, 0o040755 a directory. */
  readonly mode: number;
  readonly data?: Uint8Array;
}

/** All files belong to root and are from 1970, so that the same entries always give the same bytes. */
export function encodeCpio(entries: readonly CpioEntry[]): Buffer {
  const parts: Uint8Array[] = [];
  for (const [index, entry] of [...entries, TRAILER].entries()) {
    const name = Buffer.from(`${entry.name}\0`);
    const data = entry.data ?? EMPTY;
    if (entry !== TRAILER && !isRelative(entry.name)) throw new TypeError(`bad cpio name: ${entry.name}`);
    if (data.length > MAX_DATA_BYTES) throw new RangeError(`${entry.name} is too large for cpio`);
    const numbers = [
      entry === TRAILER ? 0 : index + 1, // inode: only has to differ, since nothing is a hard link
      entry.mode,
      0, // uid
      0, // gid
      1, // links
      0, // mtime
      data.length,
      0, // device, major and minor
      0,
      0, // device a special file stands for
      0,
      name.length,
      0, // checksum, of the other format
    ];
    const header = `070701${numbers.map((number) => number.toString(16).padStart(8, '0')).join('')}`;
    parts.push(Buffer.from(header, 'latin1'), name, padding(header.length + name.length));
    parts.push(data, padding(data.length));
  }
  return Buffer.concat(parts);
}

const EMPTY = new Uint8Array(0);
const TRAILER: CpioEntry = { name: 'TRAILER!!!', mode: 0 };
const MAX_DATA_BYTES = 0xffff_ffff; // eight hexadecimal digits

function padding(length: number): Uint8Array {
  return new Uint8Array((4 - (length % 4)) % 4);
}

function isRelative(name: string): boolean {
  return (
    name.split('/').every((part) => part !== '' && part !== '.' && part !== '..') && !name.includes('\0')
  );
}
