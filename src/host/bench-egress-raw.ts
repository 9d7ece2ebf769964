/** The yardstick of `ct bench egress`: plain bytes over one port of a VM whose only program moves them. */
import { chmodSync, readFileSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { withDeadline } from '../core/deadline.ts';
import { drained } from '../core/drained.ts';
import { CtError } from '../core/errors.ts';
import { launcherPath } from '../core/install.ts';
import { encodeCpio } from '../image/cpio.ts';
import { ImageStore } from '../image/store.ts';
import type { Accelerator } from '../protocol/run.ts';
import type { MachineShape, Vm } from '../vmm/driver.ts';
import { QemuDriver, tscKhz } from '../vmm/qemu/driver.ts';
import { QEMU_PATH, qemuVersion } from '../vmm/qemu/version.ts';

/** A cold boot takes 2 to 3 s under emulation. */
const READY_TIMEOUT_MS = 60_000;
const CHUNK = Buffer.alloc(256 * 1024, 'x');

export interface RawPort extends AsyncDisposable {
  readonly vmm: string;
  /** Moves `bytes` to (`download`) or from the guest; returns how long that took. */
  move(direction: 'download' | 'upload', bytes: number): Promise<number>;
}

/** Boots the VM: kernel and modules of the image, and `program` as its init. Throws what booting throws. */
export async function openRawPort(options: {
  readonly ctHome: string;
  readonly directory: string;
  readonly shape: MachineShape;
  readonly accelerator: Accelerator;
  readonly program: string;
}): Promise<RawPort> {
  const { ctHome, directory, shape, accelerator } = options;
  const images = new ImageStore(ctHome);
  const manifest = await images.manifest(shape.image);
  const initramfsPath = join(directory, 'raw-initramfs');
  // The kernel unpacks archives one after another: the later /init is the one that runs.
  const init = encodeCpio([{ name: 'init', mode: 0o100500, data: readFileSync(options.program) }]);
  const own = readFileSync(await images.checkedBlobPath(manifest.initramfs));
  writeFileSync(initramfsPath, Buffer.concat([own, init]), { mode: 0o600 });
  chmodSync(initramfsPath, 0o444);
  const version = await qemuVersion();
  const driver = new QemuDriver({
    launcherPath,
    qemuPath: QEMU_PATH,
    version,
    accelerator,
    tscKhz: tscKhz(),
    volumeDirectory: directory,
  });
  const vm = driver.boot({
    shape,
    manifest,
    kernelPath: await images.checkedBlobPath(manifest.kernel),
    rootfsPath: await images.checkedBlobPath(manifest.rootfs),
    initramfsPath,
  });
  try {
    const port = new Port(vm);
    await withDeadline(
      port.take('ready\n'.length),
      READY_TIMEOUT_MS,
      () => new CtError('VMM_START_FAILED', `the VM of the yardstick did not start: ${vm.diagnostics()}`),
    );
    return {
      vmm: `${driver.name} ${version}`,
      move: (direction, bytes) => port.move(direction, bytes),
      [Symbol.asyncDispose]: () => vm.destroy(),
    };
  } catch (error) {
    await vm.destroy();
    throw error;
  }
}

class Port {
  readonly #socket: Socket;
  #waiting: { left: number; readonly done: () => void } | undefined;
  #early = 0;

  constructor(vm: Vm) {
    this.#socket = vm.control;
    this.#socket.on('error', () => {}); // the VMM ended; whoever waits has a deadline
    this.#socket.on('data', (chunk: Buffer) => this.#received(chunk.length));
  }

  async move(direction: 'download' | 'upload', bytes: number): Promise<number> {
    const command = Buffer.alloc(16);
    command.write(direction === 'download' ? 'D' : 'U', 'latin1');
    command.writeBigUInt64BE(BigInt(bytes), 8);
    const startedAt = performance.now();
    this.#socket.write(command);
    if (direction === 'download') {
      for (let left = bytes; left > 0; left -= CHUNK.length) {
        if (!this.#socket.write(CHUNK.subarray(0, left))) await drained(this.#socket);
      }
      await this.take('done\n'.length);
    } else await this.take(bytes);
    return performance.now() - startedAt;
  }

  /** Waits for so many bytes. */
  take(bytes: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting = { left: bytes, done: resolve };
    const early = this.#early;
    this.#early = 0;
    this.#received(early);
    return promise;
  }

  #received(bytes: number): void {
    if (!this.#waiting) {
      this.#early += bytes;
      return;
    }
    this.#waiting.left -= bytes;
    if (this.#waiting.left > 0) return;
    const { done } = this.#waiting;
    this.#waiting = undefined;
    done();
  }
}
