/** From a definition to a stored image: decides what has to be made, makes it, and stores it. */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { CtError, toCtError } from '../core/errors.ts';
import { openCtHome } from '../core/paths.ts';
import { Apt, outOfSpace, type Package } from './apt.ts';
import { type ImageDefinition, loadDefinition } from './definition.ts';
import { encodeInitramfs, INITRAMFS_RECIPE } from './initramfs.ts';
import { unpackKernel } from './kernel.ts';
import { takeLock } from './lock.ts';
import type { BlobRef, ImageManifest } from './manifest.ts';
import { fetchNpmPackages } from './npm.ts';
import type { BuildProgress } from './progress.ts';
import { buildRootfs } from './rootfs.ts';
import { removeTree, sweepScratch } from './scratch.ts';
import { findSources, readAptMachine } from './sources.ts';
import { digestOf, ImageStore } from './store.ts';
import { appendHashTree } from './verity.ts';

export interface ImageInputs {
  readonly name: string;
  /** Where `NAME.yml` files are looked for, in this order. */
  readonly definitionDirs: readonly string[];
  readonly ctHome: string;
  /** Static programs that become `/init` and `/probe` of the initramfs. */
  readonly guestAgentPath: string;
  readonly probePath: string;
}

export interface BuildOptions extends ImageInputs {
  /** Make file system and kernel again, from the packages of today. */
  readonly force?: boolean;
  readonly progress?: (event: BuildProgress) => void;
  readonly signal?: AbortSignal | undefined;
  /** Where the tree is put together; `CT_TMPDIR` and then a good place if absent. */
  readonly tmpDir?: string | undefined;
}

export interface BuiltImage {
  readonly manifest: ImageManifest;
  /** Of the manifest; names the image. */
  readonly digest: string;
}

/**
 * The stored image, if it is what a build would be made from now: same definition, guest agent and probe. Reads the
 * definition, the two programs and one record; needs no network. Undefined if the image has to be built. Throws as
 * {@link loadDefinition} does.
 */
export async function currentImage(inputs: ImageInputs): Promise<BuiltImage | undefined> {
  const definition = loadDefinition(inputs.name, inputs.definitionDirs);
  return findCurrent(new ImageStore(inputs.ctHome), definition, inputs);
}

/**
 * Builds the image unless it is current, and returns it. Only one build runs per CT_HOME: a second one waits, and takes
 * the result of the first if that is current.
 *
 * Throws IMAGE_NOT_FOUND, IMAGE_DEFINITION_INVALID, IMAGE_SOURCES_MISSING, IMAGE_BUILD_FAILED, REQUIREMENT_MISSING,
 * STORE_FULL, CANCELLED. A failed or killed build leaves the image as it was, and its packages in the cache; what it
 * began is removed at once, or, after a crash of the machine, by the next build.
 */
export async function buildImage(options: BuildOptions): Promise<BuiltImage> {
  try {
    return await build(options);
  } catch (error) {
    if (options.signal?.aborted && !(error instanceof CtError && error.code === 'CANCELLED')) {
      throw new CtError('CANCELLED', 'the image build was cancelled', { cause: error });
    }
    // The tools say it in their own words.
    throw (error instanceof CtError ? outOfSpace(error.message) : undefined) ?? toCtError(error);
  }
}

async function build(options: BuildOptions): Promise<BuiltImage> {
  const { signal, progress = () => {} } = options;
  const definition = loadDefinition(options.name, options.definitionDirs);
  const ctHome = openCtHome(options.ctHome);
  const store = new ImageStore(ctHome);
  store.prepare();
  let force = options.force === true;
  await using cleanup = new AsyncDisposableStack();
  cleanup.use(
    await takeLock(join(ctHome, 'image-build.lock'), {
      signal,
      onWait: () => {
        force = false; // whoever holds it builds from today's packages
        progress({ phase: 'waiting', message: 'waiting for another image build' });
      },
    }),
  );
  if (!force) {
    const current = await findCurrent(store, definition, options);
    if (current !== undefined) return current;
  }
  const tmpDir = options.tmpDir ?? (process.env['CT_TMPDIR'] || undefined);
  const owner = createHash('sha256').update(ctHome).digest('hex').slice(0, 12);
  await sweepScratch(owner, tmpDir);
  for (const path of await store.leftovers()) await removeTree(path);
  const workDirectory = await store.makeWorkDirectory();
  cleanup.defer(() => removeTree(workDirectory));

  const job = new Build({ definition, store, ctHome, workDirectory, owner, tmpDir, progress, signal, force });
  const rootfs = await job.rootfs();
  const kernel = await job.kernel();
  progress({ phase: 'storing', message: 'storing the image' });
  const programs = readPrograms(options);
  const modules = await store.readBlob(kernel.modules);
  const manifest: ImageManifest = {
    schemaVersion: 1,
    name: definition.name,
    architecture: 'amd64',
    rootfs: rootfs.rootfs,
    kernel: kernel.kernel,
    initramfs: await store.putBytes(encodeInitramfs({ ...programs, modules })),
    user: definition.user,
    env: definition.env,
    definitionDigest: `sha256:${definition.digest}`,
    packages: rootfs.packages,
    ...(definition.npm.length === 0 ? {} : { npm: definition.npm }),
  };
  const { digest } = await store.putImage(manifest, inputsDigest(definition, programs), new Date());
  await store.collectGarbage(Date.now());
  return { manifest, digest };
}

async function findCurrent(
  store: ImageStore,
  definition: ImageDefinition,
  inputs: ImageInputs,
): Promise<BuiltImage | undefined> {
  const stored = await store.find(definition.name);
  if (stored === undefined || stored.inputsDigest !== inputsDigest(definition, readPrograms(inputs)))
    return undefined;
  try {
    const manifest = await store.manifest(stored.digest);
    for (const ref of [manifest.rootfs, manifest.kernel, manifest.initramfs])
      await store.checkedBlobPath(ref);
    return { manifest, digest: stored.digest };
  } catch (error) {
    // Then it is made again; whoever runs an image by its digest is told.
    if (error instanceof CtError && ['IMAGE_CORRUPT', 'IMAGE_NOT_FOUND'].includes(error.code))
      return undefined;
    throw error;
  }
}

interface Programs {
  readonly guestAgent: Buffer;
  readonly probe: Buffer;
}

/** Both together are about a megabyte. */
function readPrograms(inputs: ImageInputs): Programs {
  for (const path of [inputs.guestAgentPath, inputs.probePath]) {
    if (existsSync(path)) continue;
    throw new CtError('REQUIREMENT_MISSING', `${path} is missing, which goes into every image`, {
      hint: 'run `./ct --version` in the checkout once: it builds what is missing',
    });
  }
  return { guestAgent: readFileSync(inputs.guestAgentPath), probe: readFileSync(inputs.probePath) };
}

function inputsDigest(definition: ImageDefinition, { guestAgent, probe }: Programs): string {
  const all = [definition.digest, digestOf(guestAgent), digestOf(probe), INITRAMFS_RECIPE];
  return digestOf(Buffer.from(JSON.stringify(all)));
}

interface RootfsPart {
  readonly rootfs: ImageManifest['rootfs'];
  readonly packages: readonly Package[];
}

interface KernelPart {
  readonly package: Package;
  readonly recipe: number;
  readonly kernel: ImageManifest['kernel'];
  readonly modules: BlobRef;
}

interface BuildContext {
  readonly definition: ImageDefinition;
  readonly store: ImageStore;
  readonly ctHome: string;
  readonly workDirectory: string;
  readonly owner: string;
  readonly tmpDir: string | undefined;
  readonly progress: (event: BuildProgress) => void;
  readonly signal: AbortSignal | undefined;
  readonly force: boolean;
}

/** The parts of one image; each is taken from the store if it is there. */
class Build {
  readonly #context: BuildContext;
  #apt: Promise<Apt> | undefined;

  constructor(context: BuildContext) {
    this.#context = context;
  }

  async rootfs(): Promise<RootfsPart> {
    const { definition, store, workDirectory, progress, signal, force, ctHome } = this.#context;
    const key = `rootfs-${definition.rootfsDigest}`;
    const known = force ? undefined : await store.readPart<RootfsPart>(key);
    if (known !== undefined && (await this.#isIntact([known.rootfs]))) return known;

    const apt = await this.#openApt();
    const resolution = await apt.resolve(definition.suite, definition.packages);
    const npm = await fetchNpmPackages(definition.npm, {
      ...this.#context,
      cacheDirectory: join(ctHome, 'cache/npm'),
    });
    const path = await buildRootfs({
      ...this.#context,
      npm,
      resolution,
      apt,
      logPath: join(ctHome, `image-build-${definition.name}.log`),
    });
    progress({ phase: 'filesystem', message: 'computing the hash tree' });
    const verity = await appendHashTree(path, veritySalt(definition.rootfsDigest), signal);
    progress({ phase: 'storing', message: 'storing the file system' });
    const own = join(workDirectory, 'rootfs');
    renameSync(path, own);
    const packages = [...resolution.base, ...resolution.others].sort((a, b) => (a.name < b.name ? -1 : 1));
    const part: RootfsPart = { rootfs: { ...(await store.putFile(own)), verity }, packages };
    await store.writePart(key, part);
    return part;
  }

  async kernel(): Promise<KernelPart> {
    const { definition, store, workDirectory, progress, signal, force } = this.#context;
    const key = `kernel-${definition.suite}`;
    const known = await store.readPart<KernelPart>(key);
    const intact =
      !force && known?.recipe === INITRAMFS_RECIPE && (await this.#isIntact([known.kernel, known.modules]));
    // With package lists at hand, the newest; without, the one that is there is good enough.
    if (intact && this.#apt === undefined) return known;
    const apt = await this.#openApt();
    if (intact && samePackage(known.package, await apt.kernelPackage())) return known;

    const { package: kernelPackage, path } = await apt.fetchKernel();
    progress({ phase: 'kernel', message: `unpacking ${kernelPackage.name}` });
    const unpacked = await unpackKernel(path, join(workDirectory, 'kernel'), signal);
    const part: KernelPart = {
      package: kernelPackage,
      recipe: INITRAMFS_RECIPE,
      kernel: { ...(await store.putFile(unpacked.imagePath)), version: unpacked.version },
      modules: await store.putBytes(unpacked.modules),
    };
    await store.writePart(key, part);
    return part;
  }

  async #isIntact(refs: readonly BlobRef[]): Promise<boolean> {
    try {
      for (const ref of refs) await this.#context.store.checkedBlobPath(ref);
      return true;
    } catch (error) {
      if (error instanceof CtError && error.code === 'IMAGE_CORRUPT') return false;
      throw error;
    }
  }

  #openApt(): Promise<Apt> {
    this.#apt ??= this.#makeApt();
    return this.#apt;
  }

  async #makeApt(): Promise<Apt> {
    const { definition, ctHome, workDirectory, signal, progress } = this.#context;
    progress({ phase: 'resolving', message: "reading this machine's apt sources" });
    const sources = await findSources(definition.suite, { env: process.env, signal });
    const machine = await readAptMachine(signal);
    const aptDirectory = join(workDirectory, 'apt');
    mkdirSync(aptDirectory);
    const cacheDirectory = join(ctHome, 'cache/apt');
    const apt = new Apt({ cacheDirectory, workDirectory: aptDirectory, sources, machine, signal, progress });
    await apt.update();
    return apt;
  }
}

function samePackage(a: Package, b: Package): boolean {
  return a.name === b.name && a.version === b.version;
}

/** A salt of our own per file system; from the definition, so that the same file system has the same root hash. */
function veritySalt(rootfsDigest: string): string {
  return createHash('sha256').update(`ct dm-verity salt ${rootfsDigest}`).digest('hex');
}
