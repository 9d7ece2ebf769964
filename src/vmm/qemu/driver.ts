/** QEMU's `microvm` machine behind the VmmDriver interface. */
import { spawn } from 'node:child_process';
import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { withDeadline } from '../../core/deadline.ts';
import { CtError } from '../../core/errors.ts';
import { runProgram } from '../../core/run-program.ts';
import type { Accelerator } from '../../protocol/run.ts';
import type { CgroupTree } from '../cgroup.ts';
import type { BootSource, MachineShape, Template, TemplateVm, Vm, VmExit, VmmDriver } from '../driver.ts';
import { VmmProcess } from '../process.ts';
import { createVolume } from '../volume.ts';
import { Fd, qemuArguments, TRANSLATION_CACHE_MIB } from './arguments.ts';
import { QmpClient } from './qmp.ts';

const MIB = 1024 * 1024;
/** Device state of a microvm is about 60 KB; a broken VMM must not fill our memory. */
const MAX_DEVICE_STATE_BYTES = 16 * MIB;
const SAVE_TIMEOUT_MS = 30_000;
/** Main loop and I/O, beside the vCPUs, in CPUs. */
const VMM_CPUS = 0.1;
/** QEMU itself, and what the page cache needs of a volume that is written at full speed. */
const VMM_MEMORY_MIB = 128;
/** Page tables are charged, too: 8 bytes for 4096 on the host, and as many for the guest's under KVM. */
const PAGE_TABLE_SHARE = 1 / 256;
/** QEMU's threads: vCPUs, main loop, RCU, and up to 64 for I/O. It may not start processes. */
const VMM_PIDS = 128;
/** Guest memory stays where it is (the memfd); only device state travels. */
const CAPABILITIES = {
  capabilities: [
    { capability: 'x-ignore-shared', state: true },
    { capability: 'events', state: true },
  ],
};

export interface QemuDriverOptions {
  readonly launcherPath: string;
  readonly qemuPath: string;
  readonly version: string;
  readonly accelerator: Accelerator;
  readonly tscKhz: number | undefined;
  /** Where volumes get their blocks. */
  readonly volumeDirectory: string;
  /** Without it nothing but the guest's own size limits a VMM. */
  readonly cgroups?: CgroupTree | undefined;
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
    load(process, template.deviceState);
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
    const { cpus, memoryMib } = source.shape;
    const overheadMib = VMM_MEMORY_MIB + (this.accelerator === 'tcg' ? TRANSLATION_CACHE_MIB : 0);
    const cgroup = this.#options.cgroups?.create('vmm', {
      cpus: cpus + VMM_CPUS,
      memoryMib: memoryMib + Math.ceil(memoryMib * PAGE_TABLE_SHARE) + overheadMib,
      pids: cpus + VMM_PIDS,
    });
    return new VmmProcess({
      cgroup,
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
        purpose === 'clone' ? 'pipe' : 'closed',
        rootfs,
        volume,
        kernel,
        initramfs,
        'pipe',
        'pipe',
      ],
      ...(this.accelerator === 'kvm' ? { devices: ['/dev/kvm'] } : {}),
      ...(purpose === 'template' ? { memfd: { fd: Fd.ram, bytes: source.shape.memoryMib * MIB } } : {}),
    });
  }
}

/**
 * Has a VMM that was started with `-incoming defer` load its state. All commands are sent at once, and the guest runs
 * as soon as the state is loaded, because it was saved from a running guest. A refusal ends the VMM.
 */
function load(process: VmmProcess, deviceState: Buffer): void {
  const qmpSocket = process.sockets.get(Fd.qmp);
  const migration = process.sockets.get(Fd.migration);
  if (!qmpSocket || !migration) return; // it could not be started: `exited` says so
  // A VMM that dies while it reads is reported by `exited` too; the write error says nothing more.
  migration.on('error', () => {});
  migration.end(deviceState);
  const qmp = new QmpClient(qmpSocket);
  Promise.all([
    qmp.command('qmp_capabilities'),
    qmp.command('migrate-set-capabilities', CAPABILITIES),
    qmp.command('migrate-incoming', { uri: `fd:${Fd.migration}` }),
  ]).catch((error: Error) => process.fail(error.message));
}

class QemuVm implements Vm {
  readonly pid: number;
  readonly cgroupDirectories: readonly string[];
  readonly control: Socket;
  readonly egress: Socket;
  readonly audit: Socket;
  readonly exited: Promise<VmExit>;
  protected readonly process: VmmProcess;

  constructor(process: VmmProcess) {
    const control = process.sockets.get(Fd.control);
    const egress = process.sockets.get(Fd.egress);
    const audit = process.sockets.get(Fd.audit);
    if (!control || !egress || !audit)
      throw new CtError('VMM_START_FAILED', `the VMM could not be started: ${process.diagnostics()}`);
    this.process = process;
    this.pid = process.pid;
    this.cgroupDirectories = process.cgroupDirectories;
    this.control = control;
    // A VMM that ends is reported by `exited`; an error here, before somebody takes the channel, says nothing more.
    this.egress = egress.on('error', () => {});
    this.audit = audit.on('error', () => {});
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
    if (!qmpSocket) throw new CtError('VMM_COMMAND_FAILED', 'the VMM has no control socket');
    const qmp = new QmpClient(qmpSocket);
    await qmp.start();
    await qmp.command('migrate-set-capabilities', CAPABILITIES);
    await using state = this.#stateReceiver(qmp, qmpSocket);
    await state.given;
    const ended = qmp.event('MIGRATION', (data) => /^(completed|failed)$/.test(String(statusOf(data))));
    ended.catch(() => {}); // awaited behind the command
    // The guest is not stopped before: clones of a running guest run as soon as they are loaded.
    await qmp.command('migrate', { uri: 'fd:state' });
    if (statusOf(await ended) !== 'completed') {
      throw new CtError('VMM_COMMAND_FAILED', 'the VMM could not save its state');
    }
    return await state.bytes;
  }

  /** QEMU writes its state only to a descriptor that came over QMP (`getfd`): the launcher sends one end of a pair. */
  #stateReceiver(
    qmp: QmpClient,
    qmpSocket: Socket,
  ): AsyncDisposable & { readonly given: Promise<unknown>; readonly bytes: Promise<Buffer> } {
    const answered = qmp.expect('getfd');
    const command = JSON.stringify({ execute: 'getfd', arguments: { fdname: 'state' } });
    const child = spawn(this.#launcherPath, ['send-fd', '3', '4', command], {
      stdio: ['ignore', 'ignore', 'ignore', qmpSocket, 'pipe'],
      env: {},
    });
    qmpSocket.resume(); // sharing it with a child has paused it
    const sent = new Promise<void>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (code) => {
        if (code === 0) resolve();
        else
          reject(new CtError('VMM_COMMAND_FAILED', `the descriptor could not be sent to the VMM (${code})`));
      });
    });
    const receiver = child.stdio[4] as Socket;
    const bytes = collect(receiver, MAX_DEVICE_STATE_BYTES);
    bytes.catch(() => {}); // awaited last
    return {
      given: Promise.all([sent, answered]),
      bytes,
      [Symbol.asyncDispose]: async () => {
        child.kill('SIGKILL');
        receiver.destroy();
      },
    };
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

/** The emulator's time stamp counter ticks with the host's. */
export function tscKhz(): number | undefined {
  const mhz = /^cpu MHz\s*:\s*([\d.]+)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1];
  return mhz === undefined ? undefined : Math.round(Number(mhz) * 1000);
}
