/** The initramfs: the guest agent, the probe, and the kernel modules in load order (docs/guest-link.md). */
import { globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type CpioEntry, encodeCpio } from './cpio.ts';
import { loadOrder, type ModuleInfo, moduleName, readModuleInfo } from './modules.ts';

/** Part of what decides whether a stored image is current: raise it when anything here changes what is made. */
export const INITRAMFS_RECIPE = 1;

/**
 * What the guest agent needs, beyond what Debian's cloud kernel has built in. Those for hardware that a machine has not
 * fail to load with ENODEV, which the guest agent ignores.
 */
const WANTED_MODULES = [
  // The devices, on QEMU and on Firecracker.
  'virtio_mmio',
  'virtio_blk',
  'virtio_console',
  'vmw_vsock_virtio_transport',
  // The root. SHA-256 by the CPU's instructions before dm-verity looks for an implementation.
  'sha256-ssse3',
  'dm-verity',
  'erofs',
  // The workspace: AES-XTS where the CPU does AES, else Adiantum (docs/adr: workspace cipher).
  'aesni-intel',
  'xts',
  'chacha-x86_64',
  'chacha_generic',
  'nhpoly1305-sse2',
  'nhpoly1305-avx2',
  'adiantum',
  'dm-crypt',
];

/**
 * The part that only depends on the kernel: an archive of `/modules/NN-name.ko`. `tree` is an unpacked kernel package,
 * of version `version`.
 */
export function modulesSegment(tree: string, version: string): Buffer {
  const base = join(tree, 'lib/modules', version, 'kernel');
  const paths = new Map(
    globSync('**/*.ko', { cwd: base }).map((path) => [moduleName(path), join(base, path)]),
  );
  const files = new Map<string, Buffer>();
  const lookup = (name: string): ModuleInfo | undefined => {
    const path = paths.get(name);
    if (path === undefined) return undefined;
    const file = readFileSync(path);
    files.set(name, file);
    return readModuleInfo(path, file);
  };
  const entries: CpioEntry[] = [{ name: 'modules', mode: 0o040755 }];
  for (const [index, name] of loadOrder(WANTED_MODULES, lookup).entries()) {
    const data = files.get(name);
    if (data === undefined) continue;
    entries.push({ name: `modules/${String(index).padStart(2, '0')}-${name}.ko`, mode: 0o100400, data });
  }
  return encodeCpio(entries);
}

/** The whole initramfs. Not compressed: under emulation, unpacking would cost more than reading. */
export function encodeInitramfs(parts: {
  readonly guestAgent: Uint8Array;
  readonly probe: Uint8Array;
  /** From {@link modulesSegment}. */
  readonly modules: Uint8Array;
}): Buffer {
  const directories = ['dev', 'proc', 'sys', 'newroot'].map((name) => ({ name, mode: 0o040755 }));
  const programs = encodeCpio([
    ...directories,
    { name: 'init', mode: 0o100500, data: parts.guestAgent },
    { name: 'probe', mode: 0o100555, data: parts.probe },
  ]);
  return Buffer.concat([programs, parts.modules]);
}
