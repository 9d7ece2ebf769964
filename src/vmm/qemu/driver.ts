/** QEMU's `microvm` machine behind the VmmDriver interface. */
import { closeSync, fstatSync, openSync } from 'node:fs';
import type { Socket } from 'node:net';
import { withDeadline } from '../../core/deadline.ts';
import { CtError } from '../../core/errors.ts';
import { runProgram } from '../../core/run-program.ts';
import type { Accelerator } from '../../protocol/run.ts';
import type { BootSource, MachineShape, Template, TemplateVm, Vm, VmExit, VmmDriver } from '../driver.ts';
import { VmmProcess } from '../process.ts';
import { createVolume } from '../volume.ts';
import { Fd, qemuArguments } from './arguments.ts';
import { QmpClient } from './qmp.ts';

const MIB = 1024 * 1024;
/** Device state of a microvm is about 60 KB; a broken VMM must not fill our memory. */
const MAX_DEVICE_STATE_BYTES = 16 * MIB;
const SAVE_TIMEOUT_MS = 30_000;

export interface QemuDriverOptions {
  readonly launcherPath: string;
  readonly qemuPath: string;
  readonly version: string;
  readonly accelerator: Accelerator;
  readonly tscKhz: number | undefined;
  /** Where volumes get their blocks. */
  readonly volumeDirectory: string;
}

export class QemuDriver implements VmmDriver {
  readonly name = 'qemu';
  readonly version: string;
  readonly accelerator: Accelerator;
  readonly #options: QemuDriverOptions;

  constructor(options: QemuDriverOptions) {
    this.#options = options;
    this.version = options.version;
    this.accelerator = options.accelerator;
  }

  bootTemplate(source: BootSource): TemplateVm {
    return new QemuTemplateVm(source.shape, this.#start(source, 'template'), this.#options.launcherPath);
  }

  boot(source: BootSource): Vm {
    return new QemuVm(this.#start(source, 'once'));
  }

  restore(template: Template, source: BootSource): Vm {
    if (!(template instanceof QemuTemplate)) throw new TypeError('not a template of this driver');
    const process = this.#start(source, 'clone', template.ramFd);
    const migration = process.sockets.get(Fd.migration);
    // A VMM that dies while it reads is reported by `exited`; the write error says nothing more.
    migration?.on('error', () => {});
    migration?.end(template.deviceState);
    return new QemuVm(process);
  }

  #start(source: BootSource, purpose: 'template' | 'clone' | 'once', ramFd?: number): VmmProcess {
    using opened = new DisposableStack();
    const own = (fd: number): number => {
      opened.defer(() => closeSync(fd));
      return fd;
    };
    const boots = purpose !== 'clone';
    const rootfs = own(openSync(source.rootfsPath, 'r'));
    const volume = own(createVolume(this.#options.volumeDirectory, source.shape.volumeMib));
    const kernel = boots ? own(openSync(source.kernelPath, 'r')) : ('closed' as const);
    const initramfs = boots ? own(openSync(source.initramfsPath, 'r')) : ('closed' as const);
    return new VmmProcess({
      launcherPath: this.#options.launcherPath,
      program: this.#options.qemuPath,
      args: qemuArguments({
        accelerator: this.accelerator,
        purpose,
        source,
        tscKhz: this.#options.tscKhz,
      }),
      fds: [
        'pipe',
        'pipe',
        ramFd ?? 'closed',
        purpose === 'once' ? 'closed' : 'pipe',
        rootfs,
        volume,
        kernel,
        initramfs,
      ],
      ...(purpose === 'template' ? { memfd: { fd: Fd.ram, bytes: source.shape.memoryMib * MIB } } : {}),
    });
  }
}

class QemuVm implements Vm {
  readonly pid: number;
  readonly control: Socket;
  readonly exited: Promise<VmExit>;
  protected readonly process: VmmProcess;

  constructor(process: VmmProcess) {
    const control = process.sockets.get(Fd.control);
    if (!control)
      throw new CtError('VMM_START_FAILED', `the VMM could not be started: ${process.diagnostics()}`);
    this.process = process;
    this.pid = process.pid;
    this.control = control;
    this.exited = process.exited;
  }

  diagnostics(): string {
    return this.process.diagnostics();
  }

  destroy(): Promise<void> {
    return this.process.kill();
  }
}

class QemuTemplateVm extends QemuVm implements TemplateVm {
  readonly #shape: MachineShape;
  readonly #launcherPath: string;

  constructor(shape: MachineShape, process: VmmProcess, launcherPath: string) {
    super(process);
    this.#shape = shape;
    this.#launcherPath = launcherPath;
  }

  async save(): Promise<Template> {
    await using cleanup = new AsyncDisposableStack();
    cleanup.defer(() => this.destroy());
    // A second description of the VMM's memfd: it stays when the VMM ends.
    const ramFd = openSync(`/proc/${this.pid}/fd/${Fd.ram}`, 'r+');
    cleanup.defer(() => closeSync(ramFd));

    const deviceState = await withDeadline(
      this.#freeze(),
      SAVE_TIMEOUT_MS,
      () => new CtError('VMM_COMMAND_FAILED', `the VMM did not save its state within ${SAVE_TIMEOUT_MS} ms`),
    );
    await this.destroy();
    await runProgram({
      file: this.#launcherPath,
      args: ['seal', '3'],
      extraFds: [ramFd],
      maxOutputBytes: 0,
      failureCode: 'VMM_COMMAND_FAILED',
    });
    return new QemuTemplate(this.#shape, openSync(`/proc/self/fd/${ramFd}`, 'r'), deviceState);
  }

  async #freeze(): Promise<Buffer> {
    const qmpSocket = this.process.sockets.get(Fd.qmp);
    const migration = this.process.sockets.get(Fd.migration);
    if (!qmpSocket || !migration) throw new CtError('VMM_COMMAND_FAILED', 'the VMM has no control sockets');
    const qmp = new QmpClient(qmpSocket);
    await qmp.start();
    await qmp.command('stop');
    await qmp.command('migrate-set-capabilities', {
      capabilities: [
        { capability: 'x-ignore-shared', state: true },
        { capability: 'events', state: true },
      ],
    });
    const state = collect(migration, MAX_DEVICE_STATE_BYTES);
    const ended = qmp.event('MIGRATION', (data) => /^(completed|failed)$/.test(String(statusOf(data))));
    await qmp.command('migrate', { uri: `fd:${Fd.migration}` });
    const status = statusOf(await ended);
    if (status !== 'completed') throw new CtError('VMM_COMMAND_FAILED', 'the VMM could not save its state');
    return state;
  }
}

function statusOf(data: unknown): unknown {
  return (data as { status?: unknown } | null)?.status;
}

async function collect(stream: Socket, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of stream) {
    bytes += (chunk as Buffer).length;
    if (bytes > maxBytes) throw new CtError('VMM_COMMAND_FAILED', 'the saved device state is too large');
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks);
}

class QemuTemplate implements Template {
  readonly shape: MachineShape;
  /** A write-sealed memfd: QEMU 7.2 opens the file read-write even for a private mapping. */
  readonly ramFd: number;
  readonly deviceState: Buffer;
  #closed = false;

  constructor(shape: MachineShape, ramFd: number, deviceState: Buffer) {
    this.shape = shape;
    this.ramFd = ramFd;
    this.deviceState = deviceState;
  }

  residentBytes(): number {
    return this.#closed ? 0 : fstatSync(this.ramFd).blocks * 512 + this.deviceState.length;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    closeSync(this.ramFd);
  }
}
