/** The VMs of this host: which VMM runs them, their templates, and how one is claimed. */
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { chmod, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CtError, messageOf, toCtError } from '../core/errors.ts';
import { launcherPath } from '../core/install.ts';
import { encodeCpio } from '../image/cpio.ts';
import type { ImageStore } from '../image/store.ts';
import type { Accelerator, VmSource } from '../protocol/run.ts';
import type { CgroupTree, ControllerStatus } from '../vmm/cgroup.ts';
import type { BootSource, MachineShape, Template, VmmDriver } from '../vmm/driver.ts';
import { type AcceleratorVerdict, KVM_BOOT_DEADLINE_MS, probeAccelerator } from '../vmm/probe.ts';
import { QemuDriver, tscKhz } from '../vmm/qemu/driver.ts';
import { QEMU_PATH, qemuVersion } from '../vmm/qemu/version.ts';
import { volumeBlocks } from '../vmm/volume.ts';
import { Link } from './link.ts';
import { Machine } from './machine.ts';
import { WarmPool } from './pool.ts';

/** Cold boots take 2 to 3 s under emulation on an idle machine; a hung one is tried once more. */
const BOOT_TIMEOUT_MS = 45_000;
/** Templates kept in memory; each holds about 100 MiB. The least recently used goes first. */
const MAX_TEMPLATES = 4;
/** 256-bit AES-XTS on every accelerator, by measurement: docs/adr/0005-workspace-cipher.md. */
const VOLUME_CIPHER = '64:aes-xts-plain64';

/** A job's first moments are over by then; the pool fills up behind it. */
const REFILL_DELAY_MS = 250;

export interface Claim {
  readonly machine: Machine;
  readonly source: VmSource;
  readonly driver: VmmDriver;
  /** From the call to a VM with its identity. */
  readonly claimMs: number;
}

export interface MachinesOptions {
  readonly ctHome: string;
  readonly images: ImageStore;
  /** For volumes and initramfs files, which lose their names at once. */
  readonly scratchDirectory: string;
  /** Only tests that prove a search for leftovers say `none`. */
  readonly volumeCipher?: string;
  readonly qemuPath?: string;
  readonly bootTimeoutMs?: number;
  /** For what link processes write until they have a run, on the file system of the runs; else as above. */
  readonly linksDirectory?: string;
  /** Owned by the caller, who closes it after these machines. */
  readonly cgroups?: CgroupTree;
  /** Warm VMs held ready at most; none if absent. */
  readonly maxWarm?: number;
}

export class Machines {
  readonly #options: MachinesOptions;
  readonly #templates = new Map<string, Promise<Template>>();
  #driver: Promise<VmmDriver> | undefined;
  #spareLink: Link | undefined;
  readonly #pool: WarmPool<MachineShape, Machine> | undefined;
  #refillTimer: NodeJS.Timeout | undefined;
  #closed = false;
  #verdict: AcceleratorVerdict | undefined;

  constructor(options: MachinesOptions) {
    this.#options = options;
    if (options.maxWarm !== undefined && options.maxWarm > 0) {
      this.#pool = new WarmPool({
        keyOf: shapeKey,
        fill: (shape) => this.#fill(shape),
        maxItems: options.maxWarm,
        onFillError: (error) => process.stderr.write(`ct host: no warm VM: ${messageOf(error)}\n`),
      });
    }
  }

  /** Undefined until the first VM. */
  get accelerator(): AcceleratorVerdict | undefined {
    return this.#verdict;
  }

  /** Name of the image with this manifest digest. Throws IMAGE_NOT_FOUND. */
  async imageName(digest: string): Promise<string> {
    return (await this.#options.images.manifest(digest)).name;
  }

  /** What limits VMs and link processes on this host. */
  get cgroups(): readonly ControllerStatus[] {
    return this.#options.cgroups?.controllers ?? [];
  }

  get templateCount(): number {
    return this.#templates.size;
  }

  /** Warm VMs that wait for a job. */
  get warmCount(): number {
    return this.#pool?.size ?? 0;
  }

  /** Whether warm VMs are being made, or soon will be. */
  get isWarming(): boolean {
    return this.#refillTimer !== undefined || this.#pool?.isFilling === true;
  }

  /** Whether a link process waits for the next claim that finds no warm VM. */
  get hasSpareLink(): boolean {
    return this.#spareLink?.running === true;
  }

  /**
   * A clean VM of `shape`: a warm one if one waits, else restored from its template, which is made first if there is none
   * (`onPreparing`). A template that does not restore is thrown away and made again once.
   */
  async claim(shape: MachineShape, onPreparing: (what: string) => void): Promise<Claim> {
    let startedAt = performance.now();
    const source = await this.#source(shape);
    const driver = await this.#selectDriver(source, onPreparing);
    const warm = await this.#takeWarm(shape);
    if (warm) return { machine: warm, source: 'warm-clone', driver, claimMs: performance.now() - startedAt };
    for (let attempt = 1; ; attempt++) {
      const template = await this.#template(driver, source, (what) => {
        onPreparing(what);
        startedAt = Number.NaN;
      });
      if (Number.isNaN(startedAt)) startedAt = performance.now();
      try {
        const machine = await this.#restore(driver, source, template);
        return { machine, source: 'clone', driver, claimMs: performance.now() - startedAt };
      } catch (error) {
        await this.#drop(shape);
        if (attempt === 2) throw error;
      } finally {
        this.#refillSoon();
      }
    }
  }

  #restore(driver: VmmDriver, source: BootSource, template: Template): Promise<Machine> {
    return Machine.open({
      link: this.#takeLink(),
      startVm: () => driver.restore(template, source),
      image: source.manifest,
      volumeCipher: this.#volumeCipher,
    });
  }

  /** A machine for the pool: with its identity, and what every job does done once. */
  async #fill(shape: MachineShape): Promise<Machine> {
    const source = await this.#source(shape);
    const driver = await this.#selectDriver(source, () => {});
    const template = await this.#template(driver, source, () => {});
    const machine = await this.#restore(driver, source, template);
    try {
      await machine.warmUp();
      return machine;
    } catch (error) {
      await machine.destroy();
      throw error;
    }
  }

  async #takeWarm(shape: MachineShape): Promise<Machine | undefined> {
    const machine = this.#pool?.take(shape);
    if (!machine) return undefined;
    this.#refillSoon();
    if (machine.clockIsRight) return machine;
    await machine.destroy(); // the host slept meanwhile, and the guest's clock did not
    return undefined;
  }

  /** Not at once: the job that was just served is starting, and should not have to share. */
  #refillSoon(): void {
    if (this.#closed) return;
    clearTimeout(this.#refillTimer);
    this.#refillTimer = setTimeout(() => {
      this.#refillTimer = undefined;
      this.#spareLink ??= this.#newLink();
      this.#pool?.refill();
    }, REFILL_DELAY_MS);
  }

  /** A VM of `shape` that boots from its kernel, for figures and as a way out. */
  async coldBoot(shape: MachineShape): Promise<Claim> {
    const startedAt = performance.now();
    const source = await this.#source(shape);
    const driver = await this.#selectDriver(source, () => {});
    await using initramfs = await this.#initramfs(source);
    const machine = await Machine.open({
      link: this.#newLink(),
      startVm: () => driver.boot({ ...source, initramfsPath: initramfs.path }),
      image: source.manifest,
      volumeCipher: this.#volumeCipher,
      bootTimeoutMs: this.#bootTimeoutMs,
    });
    return { machine, source: 'cold-boot', driver, claimMs: performance.now() - startedAt };
  }

  /** Throws away warm VMs and templates of an image, e.g. because policy lets it in no longer. Claimed VMs go on. */
  async giveUpImage(digest: string): Promise<void> {
    await this.#pool?.forgetAll(({ image }) => image === digest);
    for (const [key, template] of [...this.#templates]) {
      if (!key.startsWith(`${digest}/`)) continue;
      this.#templates.delete(key);
      await template.then((made) => made.close()).catch(() => {});
    }
  }

  /** Releases warm VMs, templates and the spare link process; claimed VMs are their owners' business. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#refillTimer);
    await this.#pool?.close();
    await this.#spareLink?.kill();
    for (const template of [...this.#templates.values()]) {
      await template.then((made) => made.close()).catch(() => {});
    }
    this.#templates.clear();
  }

  /** Starting Node takes as long as restoring a clone: one link process waits for the next claim. */
  #takeLink(): Link {
    const spare = this.#spareLink;
    this.#spareLink = undefined;
    return spare?.running ? spare : this.#newLink();
  }

  #newLink(): Link {
    const { scratchDirectory, linksDirectory = scratchDirectory, cgroups } = this.#options;
    return new Link({ scratchDirectory: linksDirectory, cgroups });
  }

  get #bootTimeoutMs(): number {
    return this.#options.bootTimeoutMs ?? BOOT_TIMEOUT_MS;
  }

  get #volumeCipher(): string {
    return this.#options.volumeCipher ?? VOLUME_CIPHER;
  }

  async #source(shape: MachineShape): Promise<BootSource> {
    const { images } = this.#options;
    const manifest = await images.manifest(shape.image);
    return {
      shape,
      manifest,
      kernelPath: await images.checkedBlobPath(manifest.kernel),
      rootfsPath: await images.checkedBlobPath(manifest.rootfs),
      initramfsPath: await images.checkedBlobPath(manifest.initramfs),
    };
  }

  /** The image's initramfs with the volume's blocks behind it, as the kernel takes several archives in a row. */
  async #initramfs(source: BootSource): Promise<AsyncDisposable & { readonly path: string }> {
    const { scratchDirectory } = this.#options;
    const blocks = await volumeBlocks({ scratchDirectory, launcherPath, sizeMib: source.shape.volumeMib });
    const path = join(scratchDirectory, `initramfs-${process.pid}-${randomBytes(6).toString('hex')}`);
    const dispose = (): Promise<void> => rm(path, { force: true });
    try {
      const segment = encodeCpio([{ name: 'volume.blocks', mode: 0o100400, data: blocks }]);
      await writeFile(path, Buffer.concat([readFileSync(source.initramfsPath), segment]), {
        mode: 0o600,
        flag: 'wx',
      });
      // The VMM, another user, opens it again through the descriptor it is given; the directory is closed to others.
      await chmod(path, 0o444);
    } catch (error) {
      await dispose();
      throw toCtError(error);
    }
    return { path, [Symbol.asyncDispose]: dispose };
  }

  async #template(
    driver: VmmDriver,
    source: BootSource,
    onPreparing: (what: string) => void,
  ): Promise<Template> {
    const key = shapeKey(source.shape);
    let template = this.#templates.get(key);
    if (template) {
      this.#templates.delete(key); // and to the end: most recently used
    } else {
      onPreparing(
        `a template of ${source.manifest.name}, ${source.shape.cpus} cpu, ${source.shape.memoryMib} MiB`,
      );
      template = this.#makeTemplate(driver, source);
      template.catch(() => this.#templates.delete(key));
    }
    this.#templates.set(key, template);
    const [oldest] = this.#templates.keys();
    if (this.#templates.size > MAX_TEMPLATES && oldest !== undefined) {
      const evicted = this.#templates.get(oldest);
      this.#templates.delete(oldest);
      void evicted?.then((made) => made.close()).catch(() => {});
    }
    return template;
  }

  async #makeTemplate(driver: VmmDriver, source: BootSource): Promise<Template> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#bootTemplate(driver, source);
      } catch (error) {
        if (attempt === 2) throw error;
      }
    }
  }

  async #bootTemplate(driver: VmmDriver, source: BootSource): Promise<Template> {
    await using cleanup = new AsyncDisposableStack();
    const initramfs = cleanup.use(await this.#initramfs(source));
    const link = this.#newLink();
    cleanup.defer(() => link.kill());
    const vm = driver.bootTemplate({ ...source, initramfsPath: initramfs.path });
    cleanup.defer(() => vm.destroy());
    try {
      await link.call({ type: 'await-ready', timeoutMs: this.#bootTimeoutMs }, vm.control);
    } catch (error) {
      throw withDiagnostics(error, vm.diagnostics());
    }
    return await vm.save();
  }

  async #drop(shape: MachineShape): Promise<void> {
    await this.#pool?.forget(shape);
    const key = shapeKey(shape);
    const template = this.#templates.get(key);
    this.#templates.delete(key);
    await template?.then((made) => made.close()).catch(() => {});
  }

  #selectDriver(source: BootSource, onPreparing: (what: string) => void): Promise<VmmDriver> {
    this.#driver ??= this.#detect(source, onPreparing).catch((error) => {
      this.#driver = undefined;
      throw error;
    });
    return this.#driver;
  }

  async #detect(source: BootSource, onPreparing: (what: string) => void): Promise<VmmDriver> {
    const version = await qemuVersion(this.#options.qemuPath ?? QEMU_PATH);
    const driver = (accelerator: Accelerator): VmmDriver =>
      new QemuDriver({
        launcherPath,
        qemuPath: this.#options.qemuPath ?? QEMU_PATH,
        version,
        accelerator,
        tscKhz: tscKhz(),
        volumeDirectory: this.#options.scratchDirectory,
        cgroups: this.#options.cgroups,
      });
    const verdict = await probeAccelerator({
      ctHome: this.#options.ctHome,
      vmmVersion: `qemu ${version}`,
      boot: async (accelerator) => {
        if (accelerator === 'kvm') onPreparing('whether KVM works here, by booting a guest');
        await using cleanup = new AsyncDisposableStack();
        const initramfs = cleanup.use(await this.#initramfs(source));
        const link = this.#newLink();
        cleanup.defer(() => link.kill());
        const vm = driver(accelerator).boot({ ...source, initramfsPath: initramfs.path });
        cleanup.defer(() => vm.destroy());
        const timeoutMs = accelerator === 'kvm' ? KVM_BOOT_DEADLINE_MS : this.#bootTimeoutMs;
        try {
          await link.call({ type: 'await-ready', timeoutMs }, vm.control);
        } catch (error) {
          throw withDiagnostics(error, vm.diagnostics());
        }
      },
    });
    this.#verdict = verdict;
    return driver(verdict?.accelerator ?? 'tcg');
  }
}

function shapeKey(shape: MachineShape): string {
  return [shape.image, shape.cpus, shape.memoryMib, shape.volumeMib].join('/');
}

function withDiagnostics(error: unknown, diagnostics: string): CtError {
  const failure = error instanceof CtError ? error : new CtError('INTERNAL', String(error), { cause: error });
  if (diagnostics === '') return failure;
  return new CtError(failure.code, `${failure.message}\n${diagnostics}`, {
    hint: failure.hint,
    cause: error,
  });
}
