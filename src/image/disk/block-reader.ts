import type { FileHandle } from 'node:fs/promises';
import { refused } from '../import/refusal.ts';

/** A disk, or a part of one, by position. */
export interface BlockReader {
  readonly sizeBytes: number;
  /** Exactly `length` bytes. Throws IMAGE_IMPORT_REFUSED beyond the end. */
  read(offset: number, length: number): Promise<Buffer>;
}

export function rawDisk(file: FileHandle, sizeBytes: number): BlockReader {
  return {
    sizeBytes,
    read: async (offset, length) => {
      checkRange(offset, length, sizeBytes);
      const bytes = Buffer.allocUnsafe(length);
      for (let at = 0; at < length; ) {
        const { bytesRead } = await file.read(bytes, at, length - at, offset + at);
        if (bytesRead === 0) throw refused('the disk became shorter while it was read');
        at += bytesRead;
      }
      return bytes;
    },
  };
}

export function slice(disk: BlockReader, start: number, sizeBytes: number): BlockReader {
  checkRange(start, sizeBytes, disk.sizeBytes);
  return {
    sizeBytes,
    read: (offset, length) => {
      checkRange(offset, length, sizeBytes);
      return disk.read(start + offset, length);
    },
  };
}

export function checkRange(offset: number, length: number, sizeBytes: number): void {
  if (!Number.isSafeInteger(offset) || offset < 0 || length < 0 || offset + length > sizeBytes) {
    throw refused('the disk refers to what lies beyond its end');
  }
}
