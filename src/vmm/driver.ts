/** What the product needs of a virtual machine monitor. QEMU and Firecracker implement it; one suite tests both. */
import type { Socket } from 'node:net';
import type { ImageManifest } from '../image/manifest.ts';
import type { Accelerator } from '../protocol/run.ts';

/** Everything that decides what a template looks like: two VMs of one shape are interchangeable until injected. */
export interface MachineShape {
  /** Manifest digest. */
  readonly image: string;
  readonly cpus: number;
  readonly memoryMib: number;
  readonly volumeMib: number;
}

/** Files and figures a cold boot needs. Paths are the daemon's own, never a client's. */
export interface BootSource {
  readonly shape: MachineShape;
  readonly manifest: ImageManifest;
  readonly kernelPath: string;
  readonly rootfsPath: string;
  /** Initramfs with the volume's blocks appended; read during the call to `boot`, may be unlinked after. */
  readonly initramfsPath: string;
}

export interface VmExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** What the host did to it, where that is known: `it reached its memory limit …`. */
  readonly reason?: string;
}

/** One running VMM process with its guest. Exactly one owner, who calls `destroy`. */
export interface Vm {
  readonly pid: number;
  /** What limits it on the host, one directory per hierarchy; removed with it. */
  readonly cgroupDirectories: readonly string[];
  /**
   * The control channel, unread. Hand it to a link process in the same turn of the event loop in which the VM was
   * made, so that no guest byte is ever read by the daemon.
   */
  readonly control: Socket;
  /** The egress channel, unread; the same holds. Destroyed with the VM if nobody takes it. */
  readonly egress: Socket;
  /** The audit channel, unread; the same holds. */
  readonly audit: Socket;
  /** Settles when the VMM process has ended, however it came to it; never rejects. */
  readonly exited: Promise<VmExit>;
  /** What the guest's console and the VMM printed last, fit for a terminal. */
  diagnostics(): string;
  /** Kills the VMM and waits until the process is gone and its descriptors are closed. Idempotent. */
  destroy(): Promise<void>;
}

/** A VM booted to become a template. */
export interface TemplateVm extends Vm {
  /**
   * Freezes the idle guest and turns it into a template; the VM is gone afterwards, also on failure.
   * Legal once, after the guest agent has reported ready and before any session.
   * Throws VMM_COMMAND_FAILED.
   */
  save(): Promise<Template>;
}

/** A frozen guest: sealed memory plus device state. Immutable; any number of clones may be restored from it. */
export interface Template {
  readonly shape: MachineShape;
  /** Bytes of host memory it holds. */
  residentBytes(): number;
  /** Releases the memory. Running clones keep what they mapped. */
  close(): void;
}

export interface VmmDriver {
  readonly name: 'qemu' | 'firecracker';
  readonly version: string;
  readonly accelerator: Accelerator;
  /** Boots a guest that will be saved as a template. */
  bootTemplate(source: BootSource): TemplateVm;
  /** Boots a guest for one job, without a template. */
  boot(source: BootSource): Vm;
  /** Restores a clone; it runs as soon as the VMM has loaded the state. */
  restore(template: Template, source: BootSource): Vm;
}
