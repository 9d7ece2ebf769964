/**
 * The tree stream of docs/guest-link.md: how files travel into and out of a VM.
 *
 *     "CTTREE1\n", then entries:
 *     offset 0   u8   type: 'F' file, 'D' directory, 'L' symbolic link, 'E' end
 *     offset 1   u32  permission bits
 *     offset 5   i64  mtime, seconds; offset 13 u32 nanoseconds
 *     offset 17  u32  name length
 *     offset 21  u64  size of the content that follows the name
 *     offset 29  name, content
 *
 * All numbers big endian.
 */

export const TREE_MAGIC = Buffer.from('CTTREE1\n');
export const TREE_HEADER_BYTES = 29;

export const EntryType = { file: 0x46, directory: 0x44, symlink: 0x4c, end: 0x45 } as const;

export interface EntryHeader {
  readonly type: number;
  readonly mode: number;
  readonly mtimeSeconds: bigint;
  readonly mtimeNanoseconds: number;
  readonly nameBytes: number;
  readonly size: bigint;
}

/** Writes a header at `offset`; there must be room for TREE_HEADER_BYTES. */
export function writeHeader(buffer: Buffer, offset: number, header: EntryHeader): void {
  buffer[offset] = header.type;
  buffer.writeUInt32BE(header.mode, offset + 1);
  buffer.writeBigInt64BE(header.mtimeSeconds, offset + 5);
  buffer.writeUInt32BE(header.mtimeNanoseconds, offset + 13);
  buffer.writeUInt32BE(header.nameBytes, offset + 17);
  buffer.writeBigUInt64BE(header.size, offset + 21);
}

/** Reads the fields of a header; judges none of them. */
export function readHeader(bytes: Buffer): EntryHeader {
  return {
    type: bytes.readUInt8(0),
    mode: bytes.readUInt32BE(1),
    mtimeSeconds: bytes.readBigInt64BE(5),
    mtimeNanoseconds: bytes.readUInt32BE(13),
    nameBytes: bytes.readUInt32BE(17),
    size: bytes.readBigUInt64BE(21),
  };
}

/** A tree stream without entries. */
export function emptyTree(): Buffer {
  const stream = Buffer.alloc(TREE_MAGIC.length + TREE_HEADER_BYTES);
  TREE_MAGIC.copy(stream);
  stream[TREE_MAGIC.length] = EntryType.end;
  return stream;
}
