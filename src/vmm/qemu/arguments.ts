/**
 * QEMU's command line for a microVM (docs/system/i386/microvm.rst). Everything the VMM touches arrives as an open
 * descriptor, so that no file or socket has a name that could leak, collide or be swept away under it.
 */

import { AUDIT_PORT_NAME } from '../../protocol/audit.ts';
import { CONTROL_PORT_NAME, EGRESS_PORT_NAME } from '../../protocol/guest-link.ts';
import type { Accelerator } from '../../protocol/run.ts';
import type { BootSource } from '../driver.ts';

/** Descriptors of the VMM process; the launcher closes everything above the last one. */
export const Fd = {
  qmp: 3,
  control: 4,
  ram: 5,
  migration: 6,
  rootfs: 7,
  volume: 8,
  kernel: 9,
  initramfs: 10,
  egress: 11,
  audit: 12,
} as const;

/**
 * Code that the emulator has translated. Left alone it grows to an eighth of the host's memory, up to 1 GiB, which a VM
 * did not ask for; when it is full, it is thrown away and made again.
 */
export const TRANSLATION_CACHE_MIB = 128;

/** QEMU's own filter of system calls (docs/system/security.rst). */
export const SANDBOX_ARGUMENTS: readonly string[] = [
  '-sandbox',
  'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny',
];

export interface QemuArgumentsOptions {
  readonly accelerator: Accelerator;
  /** `template`: memory is shared with the memfd, to be kept. `clone`: copy-on-write. `once`: private memory. */
  readonly purpose: 'template' | 'clone' | 'once';
  readonly source: BootSource;
  /** Host TSC frequency in kHz; under emulation the guest must not calibrate (facts: it hangs without a PIT). */
  readonly tscKhz: number | undefined;
}

export function qemuArguments(options: QemuArgumentsOptions): string[] {
  const { accelerator, purpose, source } = options;
  const { shape } = source;
  const emulated = accelerator === 'tcg';
  const ram =
    purpose === 'once'
      ? `memory-backend-ram,id=ram,size=${shape.memoryMib}M,share=off`
      : `memory-backend-file,id=ram,size=${shape.memoryMib}M,mem-path=/self/fd/${Fd.ram},share=${purpose === 'template' ? 'on' : 'off'}`;
  return [
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...SANDBOX_ARGUMENTS,
    // Memory of VMs is neither shared with that of others that looks the same (KSM: a side channel) nor dumped.
    '-M',
    'microvm,acpi=on,pit=off,pic=off,mem-merge=off,dump-guest-core=off,memory-backend=ram',
    ...['-object', ram],
    ...['-m', `${shape.memoryMib}M`, '-smp', String(shape.cpus)],
    ...(emulated
      ? // The kernel's `rep movsb` is slow in the translator: without ERMS it copies 2 to 4 times as fast.
        ['-accel', `tcg,thread=multi,tb-size=${TRANSLATION_CACHE_MIB}`, '-cpu', 'max,-erms,-fsrm']
      : ['-accel', 'kvm', '-cpu', 'host']),
    ...['-chardev', 'stdio,id=console,signal=off', '-serial', 'chardev:console'],
    ...['-chardev', `socket,id=qmp,fd=${Fd.qmp}`, '-mon', 'chardev=qmp,mode=control'],
    ...['-device', 'virtio-serial-device,max_ports=4'],
    ...['-chardev', `socket,id=control,fd=${Fd.control}`],
    ...['-device', `virtserialport,chardev=control,name=${CONTROL_PORT_NAME},nr=1`],
    ...['-chardev', `socket,id=egress,fd=${Fd.egress}`],
    ...['-device', `virtserialport,chardev=egress,name=${EGRESS_PORT_NAME},nr=2`],
    ...['-chardev', `socket,id=audit,fd=${Fd.audit}`],
    ...['-device', `virtserialport,chardev=audit,name=${AUDIT_PORT_NAME},nr=3`],
    ...drive('rootfs', Fd.rootfs, true),
    ...drive('volume', Fd.volume, false),
    ...(purpose === 'clone'
      ? ['-incoming', 'defer']
      : [
          ...['-kernel', `/self/fd/${Fd.kernel}`, '-initrd', `/self/fd/${Fd.initramfs}`],
          ...['-append', kernelCommandLine(source, emulated, options.tscKhz)],
        ]),
  ];
}

function drive(id: string, fd: number, readOnly: boolean): string[] {
  const set = fd;
  return [
    ...['-add-fd', `fd=${fd},set=${set}`],
    '-blockdev',
    [
      `driver=file,node-name=${id},filename=/dev/fdset/${set},read-only=${readOnly ? 'on' : 'off'}`,
      // Locks would be taken on behalf of a file nobody else can open; and one rootfs serves many VMs.
      'locking=off,discard=unmap,cache.direct=off',
    ].join(','),
    ...['-device', `virtio-blk-device,drive=${id}${readOnly ? '' : ',werror=report,rerror=report'}`],
  ];
}

function kernelCommandLine(source: BootSource, emulated: boolean, tscKhz: number | undefined): string {
  const { verity } = source.manifest.rootfs;
  const { user } = source.manifest;
  return [
    'console=ttyS0 quiet loglevel=4 panic=-1 reboot=t',
    ...(!emulated || tscKhz === undefined ? [] : [`tsc_early_khz=${tscKhz} tsc=reliable`]),
    // The emulator's RDRAND is the host's getrandom(2); and nothing random is used before the host reseeds a clone.
    'random.trust_cpu=on cryptomgr.notests=1',
    // Inside an emulator, mitigations cost time and protect nothing that counts, and so does clearing pages for the kernel. A
    // change of processes throws away what the emulator knows of memory: with every 64 KiB that a download hands to a reader who
    // waits, unless the system call that writes them may finish (`preempt=none`).
    ...(emulated ? ['mitigations=off init_on_alloc=0 preempt=none'] : []),
    `ct.verity=${verity.dataBlocks},${verity.hashStartBlock},${verity.rootHash},${verity.salt}`,
    `ct.user=${user.uid}:${user.gid}:${user.home}`,
    ...(user.subordinateIds ? ['ct.subids=1'] : []),
  ].join(' ');
}
