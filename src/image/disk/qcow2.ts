/**
 * Reads disks in QEMU's format (docs/interop/qcow2.txt of QEMU), versions 2 and 3, that anybody may have made:
 *
 *     header   magic 0, version 4, backing file 8+8 and 16+4, cluster bits 20, size 24+8, encryption 32, L1 entries 36,
 *              L1 table 40+8, from version 3: incompatible features 72+8, length of the header 100, compression 104
 *     L1, L2   tables of 64-bit numbers; an L2 entry says where a cluster lies, and whether it is compressed
 *
 * A disk that refers to another file - a backing file, a data file - is refused: qemu-img would open whatever file of
 * this machine it names.
 */
import { inflateRawSync } from 'node:zlib';
import { refused } from '../import/refusal.ts';
import { type BlockReader, checkRange } from './block-reader.ts';

const MAGIC = 0x514649fb;
const HEADER_BYTES = 112;
/** As QEMU limits them. */
const CLUSTER_BITS = { min: 9, max: 21 };
const MAX_L1_BYTES = 32 * 1024 * 1024;
const MAX_DISK_BYTES = 64 * 1024 ** 4;
/** Bits of incompatible features. A disk that was not closed has out-of-date reference counts, which are not read. */
const DIRTY = 1n;
const COMPRESSION_TYPE = 8n;
const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
const COMPRESSED = 1n << 62n;
const ALL_ZEROS = 1n;
const TABLES_KEPT = 64;

/** The disk in `file`. Throws IMAGE_IMPORT_REFUSED. */
export async function openQcow2(file: BlockReader): Promise<BlockReader> {
  if (file.sizeBytes < HEADER_BYTES) throw refused('this is no qcow2 disk');
  const header = await file.read(0, HEADER_BYTES);
  const version = header.readUInt32BE(4);
  if (header.readUInt32BE(0) !== MAGIC || (version !== 2 && version !== 3))
    throw refused('this is no qcow2 disk');
  if (header.readBigUInt64BE(8) !== 0n) {
    throw refused('the disk has a backing file', { hint: '`qemu-img convert -O qcow2` makes one of both' });
  }
  if (header.readUInt32BE(32) !== 0) throw refused('the disk is encrypted');
  const clusterBits = header.readUInt32BE(20);
  if (clusterBits < CLUSTER_BITS.min || clusterBits > CLUSTER_BITS.max)
    throw refused('the disk has no sane cluster size');
  if (version === 3) {
    const features = header.readBigUInt64BE(72);
    const compression = header.readUInt32BE(100) > 104 ? header[104] : 0;
    if ((features & ~(DIRTY | COMPRESSION_TYPE)) !== 0n || compression !== 0) {
      throw refused('the disk is damaged, or uses a feature of qcow2 that is not supported', {
        hint: '`qemu-img convert -O qcow2` makes a plain one',
      });
    }
  }
  const sizeBytes = Number(header.readBigUInt64BE(24));
  if (sizeBytes > MAX_DISK_BYTES) throw refused('the disk is too large');
  const l1Bytes = header.readUInt32BE(36) * 8;
  if (l1Bytes > MAX_L1_BYTES) throw refused('the disk has too large a table');
  const l1 = await file.read(Number(header.readBigUInt64BE(40)), l1Bytes);
  return new Qcow2(file, sizeBytes, clusterBits, l1);
}

class Qcow2 implements BlockReader {
  readonly sizeBytes: number;
  readonly #file: BlockReader;
  readonly #clusterBits: number;
  readonly #clusterBytes: number;
  readonly #l1: Buffer;
  readonly #tables = new Map<number, Buffer>();
  #unpacked: { readonly entry: bigint; readonly bytes: Buffer } | undefined;

  constructor(file: BlockReader, sizeBytes: number, clusterBits: number, l1: Buffer) {
    this.#file = file;
    this.sizeBytes = sizeBytes;
    this.#clusterBits = clusterBits;
    this.#clusterBytes = 2 ** clusterBits;
    this.#l1 = l1;
  }

  async read(offset: number, length: number): Promise<Buffer> {
    checkRange(offset, length, this.sizeBytes);
    const parts: Buffer[] = [];
    for (let at = offset; at < offset + length; ) {
      const inside = at % this.#clusterBytes;
      const wanted = Math.min(offset + length - at, this.#clusterBytes - inside);
      parts.push(await this.#cluster(Math.floor(at / this.#clusterBytes), inside, wanted));
      at += wanted;
    }
    return parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
  }

  async #cluster(index: number, inside: number, length: number): Promise<Buffer> {
    const entriesPerTable = this.#clusterBytes / 8;
    const l1At = Math.floor(index / entriesPerTable) * 8;
    if (l1At + 8 > this.#l1.length) throw refused('the disk is larger than its table');
    const tableOffset = Number(this.#l1.readBigUInt64BE(l1At) & OFFSET_MASK);
    if (tableOffset === 0) return Buffer.alloc(length);
    const entry = (await this.#table(tableOffset)).readBigUInt64BE((index % entriesPerTable) * 8);
    if ((entry & COMPRESSED) !== 0n) return (await this.#unpack(entry)).subarray(inside, inside + length);
    const dataOffset = Number(entry & OFFSET_MASK);
    if (dataOffset === 0 || (entry & ALL_ZEROS) !== 0n) return Buffer.alloc(length);
    // The last cluster of a file need not be complete.
    const there = Math.max(0, Math.min(length, this.#file.sizeBytes - dataOffset - inside));
    if (dataOffset >= this.#file.sizeBytes) throw refused('the disk refers to what lies beyond its end');
    const bytes = await this.#file.read(Math.min(dataOffset + inside, this.#file.sizeBytes), there);
    return there === length ? bytes : Buffer.concat([bytes], length);
  }

  async #table(offset: number): Promise<Buffer> {
    const known = this.#tables.get(offset);
    if (known !== undefined) return known;
    const table = await this.#file.read(offset, this.#clusterBytes);
    const [oldest] = this.#tables.keys();
    if (this.#tables.size >= TABLES_KEPT && oldest !== undefined) this.#tables.delete(oldest);
    this.#tables.set(offset, table);
    return table;
  }

  /** Bits 0 to x-1 say where, those up to 61 how many sectors beyond the first; x is 62 - (cluster bits - 8). */
  async #unpack(entry: bigint): Promise<Buffer> {
    if (this.#unpacked?.entry === entry) return this.#unpacked.bytes;
    const x = BigInt(62 - (this.#clusterBits - 8));
    const offset = Number(entry & ((1n << x) - 1n));
    const sectors = Number((entry & (COMPRESSED - 1n)) >> x) + 1;
    const length = Math.min(sectors * 512 - (offset % 512), this.#file.sizeBytes - offset);
    if (length <= 0) throw refused('the disk refers to what lies beyond its end');
    let bytes: Buffer;
    try {
      bytes = inflateRawSync(await this.#file.read(offset, length), { maxOutputLength: this.#clusterBytes });
    } catch (cause) {
      throw refused('a compressed part of the disk is damaged', { cause });
    }
    if (bytes.length !== this.#clusterBytes)
      throw refused('a compressed part of the disk has the wrong size');
    this.#unpacked = { entry, bytes };
    return bytes;
  }
}
