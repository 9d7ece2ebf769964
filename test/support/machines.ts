/** VMs for tests, without a daemon: machines of their own, and sessions that the test itself holds. */
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { launcherPath } from '../../src/core/install.ts';
import { awaitReady, startSession } from '../../src/guest/handshake.ts';
import { type ExecRequest, type ExecResult, GuestSession } from '../../src/guest/session.ts';
import { Machines, type MachinesOptions } from '../../src/host/machines.ts';
import { encodeCpio } from '../../src/image/cpio.ts';
import type { ImageManifest } from '../../src/image/manifest.ts';
import { ImageStore } from '../../src/image/store.ts';
import type { CgroupTree } from '../../src/vmm/cgroup.ts';
import type { BootSource, MachineShape, Template, VmExit, VmmDriver } from '../../src/vmm/driver.ts';
import { QemuDriver, tscKhz } from '../../src/vmm/qemu/driver.ts';
import { QEMU_PATH, qemuVersion } from '../../src/vmm/qemu/version.ts';
import { volumeBlocks } from '../../src/vmm/volume.ts';
import { testHome, testImage } from './images.ts';
import { scratchDirectory } from './scratch.ts';

export const CIPHER = '64:aes-xts-plain64';

/** Machines over the test images, with a scratch directory in `directory`. */
export function makeMachines(directory: string, options: Partial<MachinesOptions> = {}): Machines {
  const scratch = join(directory, 'scratch');
  mkdirSync(scratch, { recursive: true });
  return new Machines({
    ctHome: testHome,
    images: new ImageStore(testHome),
    scratchDirectory: scratch,
    ...options,
  });
}

export interface TestGuest extends AsyncDisposable {
  readonly session: GuestSession;
  /** Unread: see Vm. */
  readonly egress: Socket;
  /** Read by nobody but this file, unless the clone was asked for with `audit: 'unread'`. */
  readonly audit: Socket;
  readonly pid: number;
  readonly exited: Promise<VmExit>;
  readonly manifest: ImageManifest;
  /** Runs a shell command as the job user and returns what it printed. */
  sh(
    command: string,
    options?: Partial<ExecRequest>,
  ): Promise<{ out: string; err: string; result: ExecResult }>;
  diagnostics(): string;
}

export interface CloneOptions {
  readonly cipher?: string;
  /** Left to the test. Else it is read and dropped, as a job whose record nobody takes is stopped. */
  readonly audit?: 'unread';
}

export interface TestVmm extends AsyncDisposable {
  readonly driver: VmmDriver;
  readonly source: BootSource;
  readonly template: Template;
  clone(options?: CloneOptions): Promise<TestGuest>;
}

/** A template of `debian-12`, or of another stored image, and clones of it, whose guest bytes are parsed in the test's own process. */
export async function makeVmm(
  options: Partial<MachineShape> = {},
  {
    volumeDirectory,
    cgroups,
    init,
  }: {
    readonly volumeDirectory?: string;
    readonly cgroups?: CgroupTree;
    /** Path of another guest agent. */
    readonly init?: string;
  } = {},
): Promise<TestVmm> {
  const cleanup = new AsyncDisposableStack();
  try {
    const scratch = cleanup.use(scratchDirectory());
    const image = options.image ?? (await testImage('debian-12'));
    const store = new ImageStore(testHome);
    const manifest = await store.manifest(image);
    const shape: MachineShape = { image, cpus: 1, memoryMib: 512, volumeMib: 2048, ...options };
    const blocks = await volumeBlocks({
      scratchDirectory: scratch.path,
      launcherPath,
      sizeMib: shape.volumeMib,
    });
    const initramfsPath = join(scratch.path, 'initramfs');
    writeFileSync(
      initramfsPath,
      Buffer.concat([
        readFileSync(await store.checkedBlobPath(manifest.initramfs)),
        encodeCpio([
          { name: 'volume.blocks', mode: 0o100400, data: blocks },
          ...(init === undefined ? [] : [{ name: 'init', mode: 0o100500, data: readFileSync(init) }]),
        ]),
      ]),
    );
    chmodSync(initramfsPath, 0o444); // the VMM is another user
    const source: BootSource = {
      shape,
      manifest,
      initramfsPath,
      kernelPath: await store.checkedBlobPath(manifest.kernel),
      rootfsPath: await store.checkedBlobPath(manifest.rootfs),
    };
    const driver = new QemuDriver({
      launcherPath,
      qemuPath: QEMU_PATH,
      version: await qemuVersion(),
      accelerator: 'tcg',
      tscKhz: tscKhz(),
      volumeDirectory: volumeDirectory ?? scratch.path,
      cgroups,
    });
    const vm = driver.bootTemplate(source);
    let template: Template;
    try {
      await awaitReady(vm.control, 60_000);
      template = await vm.save();
    } catch (error) {
      throw new Error(`no template:\n${vm.diagnostics()}`, { cause: error });
    } finally {
      await vm.destroy();
    }
    cleanup.defer(() => template.close());
    return {
      driver,
      source,
      template,
      clone: (options) => openClone(driver, template, source, options),
      [Symbol.asyncDispose]: () => cleanup.disposeAsync(),
    };
  } catch (error) {
    await cleanup.disposeAsync();
    throw error;
  }
}

async function openClone(
  driver: VmmDriver,
  template: Template,
  source: BootSource,
  { cipher = CIPHER, audit }: CloneOptions = {},
): Promise<TestGuest> {
  const vm = driver.restore(template, source);
  try {
    if (audit === undefined) {
      // One that ends early is told by `control`.
      startSession(vm.audit, 60_000).then(
        () => vm.audit.resume(),
        () => {},
      );
    }
    const { session } = await GuestSession.open(
      vm.control,
      { hostname: `ct-test-${vm.pid}`, volumeCipher: cipher },
      60_000,
    );
    const { user, env } = source.manifest;
    return {
      session,
      egress: vm.egress,
      audit: vm.audit,
      pid: vm.pid,
      exited: vm.exited,
      manifest: source.manifest,
      diagnostics: () => vm.diagnostics(),
      sh: async (command, options) => {
        const output = { stdout: '', stderr: '' };
        const result = await session.exec({
          argv: ['sh', '-c', command],
          env: { ...env, HOME: user.home },
          cwd: '/workspace',
          uid: user.uid,
          gid: user.gid,
          onOutput: (stream, bytes) => {
            output[stream] += bytes.toString('latin1');
          },
          ...options,
        });
        return { out: output.stdout, err: output.stderr, result };
      },
      [Symbol.asyncDispose]: async () => {
        session.close();
        await vm.destroy();
      },
    };
  } catch (error) {
    const detail = vm.diagnostics();
    await vm.destroy();
    throw new Error(`no clone:\n${detail}`, { cause: error });
  }
}
