/** Finds the file system on a disk: the whole disk, or a partition of a GPT or MBR, with sectors of 512 bytes. */
import { CtError } from '../../core/errors.ts';
import { refused } from '../import/refusal.ts';
import { type BlockReader, slice } from './block-reader.ts';
import { isExt } from './ext4.ts';

const SECTOR_BYTES = 512;
const MBR_SIGNATURE = 0xaa55;
const MBR_GPT_TYPE = 0xee;
const MBR_EXTENDED_TYPES = [0x05, 0x0f, 0x85];
/** 128 entries of 128 bytes are what everybody writes. */
const MAX_GPT_ENTRIES = 1024;

interface Partition {
  /** From 1, as the kernel counts. */
  readonly number: number;
  readonly startBytes: number;
  readonly sizeBytes: number;
}

/**
 * The ext4 file system on the disk: partition `number`, or the only one. Throws IMAGE_IMPORT_REFUSED if there is none,
 * USAGE if there are several.
 */
export async function findFileSystem(disk: BlockReader, number: number | undefined): Promise<BlockReader> {
  if (number === undefined && (await isExt(disk))) return disk;
  const partitions = await readPartitions(disk);
  if (number !== undefined) {
    const named = partitions.find((partition) => partition.number === number);
    if (named === undefined) throw new CtError('USAGE', `the disk has no partition ${number}`);
    return slice(disk, named.startBytes, named.sizeBytes);
  }
  const found: { readonly number: number; readonly reader: BlockReader }[] = [];
  for (const partition of partitions) {
    const reader = slice(disk, partition.startBytes, partition.sizeBytes);
    if (await isExt(reader)) found.push({ number: partition.number, reader });
  }
  const [only] = found;
  if (only === undefined) {
    throw refused('the disk has no ext4 file system', {
      hint: 'the root must lie on a partition of its own as ext4, without LVM or encryption',
    });
  }
  if (found.length > 1) {
    throw new CtError('USAGE', 'the disk has several ext4 file systems', {
      hint: `name the partition: raw:FILE:p${only.number}; there are ${found.map((each) => each.number).join(', ')}`,
    });
  }
  return only.reader;
}

async function readPartitions(disk: BlockReader): Promise<readonly Partition[]> {
  if (disk.sizeBytes < 2 * SECTOR_BYTES) return [];
  const mbr = await disk.read(0, SECTOR_BYTES);
  if (mbr.readUInt16LE(510) !== MBR_SIGNATURE) return [];
  const entries = [0, 1, 2, 3].map((index) => {
    const at = 446 + index * 16;
    return {
      number: index + 1,
      type: mbr[at + 4] ?? 0,
      start: mbr.readUInt32LE(at + 8),
      sectors: mbr.readUInt32LE(at + 12),
    };
  });
  if (entries.some(({ type }) => type === MBR_GPT_TYPE)) return readGpt(disk);
  return entries
    .filter(({ type, sectors }) => type !== 0 && sectors > 0 && !MBR_EXTENDED_TYPES.includes(type))
    .map(({ number, start, sectors }) => ({
      number,
      startBytes: start * SECTOR_BYTES,
      sizeBytes: sectors * SECTOR_BYTES,
    }));
}

/** UEFI 2.10, chapter 5: signature 0+8, first LBA of the entries 72+8, their number 80, size of one 84. */
async function readGpt(disk: BlockReader): Promise<readonly Partition[]> {
  const header = await disk.read(SECTOR_BYTES, SECTOR_BYTES);
  if (header.toString('latin1', 0, 8) !== 'EFI PART')
    throw refused('the partition table of the disk is damaged');
  const [count, entryBytes] = [header.readUInt32LE(80), header.readUInt32LE(84)];
  if (count > MAX_GPT_ENTRIES || entryBytes < 128 || entryBytes > 4096) {
    throw refused('the partition table of the disk is damaged');
  }
  const table = await disk.read(Number(header.readBigUInt64LE(72)) * SECTOR_BYTES, count * entryBytes);
  const partitions: Partition[] = [];
  for (let index = 0; index < count; index++) {
    const entry = table.subarray(index * entryBytes, (index + 1) * entryBytes);
    if (entry.subarray(0, 16).every((byte) => byte === 0)) continue;
    const [first, last] = [Number(entry.readBigUInt64LE(32)), Number(entry.readBigUInt64LE(40))];
    partitions.push({
      number: index + 1,
      startBytes: first * SECTOR_BYTES,
      sizeBytes: (last - first + 1) * SECTOR_BYTES,
    });
  }
  return partitions;
}
