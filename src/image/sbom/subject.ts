/** What an SBOM is of: an image, with all that went into it. */
import { createHash } from 'node:crypto';
import type { Inventory } from '../inventory.ts';
import type { LockedPackage } from '../packages.ts';
import { IMAGE_EPOCH } from '../recipe.ts';

export interface SbomSubject {
  readonly name: string;
  /** Debian's code name. */
  readonly suite: string;
  readonly inventory: Inventory;
  /** Digests of the parts of the image, `sha256:<hex>`. */
  readonly rootfs: string;
  readonly initramfs: string;
  readonly kernel: { readonly digest: string; readonly version: string; readonly package: LockedPackage };
  readonly guestAgent: { readonly digest: string; readonly sourceDigest: string };
  readonly probe: { readonly digest: string };
  /** Version of ct, which built it. */
  readonly ctVersion: string;
}

/** The time in an SBOM is that of all files of an image: that of the build would make every build another. */
export const SBOM_TIME: string = new Date(IMAGE_EPOCH * 1000).toISOString().replace('.000Z', 'Z');

/** A UUID (RFC 9562 §5.8, version 8) from the parts of the image: the same image has the same. */
export function subjectUuid({ name, rootfs, initramfs, kernel }: SbomSubject): string {
  const hash = createHash('sha256')
    .update(JSON.stringify([name, rootfs, initramfs, kernel.digest]))
    .digest();
  const bytes = Uint8Array.from(hash.subarray(0, 16));
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x80;
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80;
  return Buffer.from(bytes)
    .toString('hex')
    .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

export function hexOf(digest: string): string {
  return digest.slice(digest.indexOf(':') + 1);
}

/** SHA-512 of an npm package's archive, hex, of its `sha512-<base64>`. */
export function integrityHex(integrity: string): string {
  return Buffer.from(integrity.slice('sha512-'.length), 'base64').toString('hex');
}
