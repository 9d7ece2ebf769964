/** From a definition to a stored image: decides what has to be made, makes it, and stores it. */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { CtError, toCtError } from '../core/errors.ts';
import { openCtHome } from '../core/paths.ts';
import { VERSION } from '../core/version.ts';
import { type Apt, outOfSpace } from './apt.ts';
import { type ImageDefinition, loadDefinition, lockPath } from './definition.ts';
import { buildProvenanceOf, writeProvenance } from './image-provenance.ts';
import { encodeInitramfs, INITRAMFS_RECIPE } from './initramfs.ts';
import { checkAccounted, type Inventory, takeInventory } from './inventory.ts';
import { unpackKernel } from './kernel.ts';
import { takeLock } from './lock.ts';
import { guestAgentSourceDigest, type ImageLock, lockDigest, makeLock, readLock } from './lock-file.ts';
import { type BlobRef, blobsOf, type ImageManifest } from './manifest.ts';
import { fetchNpmPackages } from './npm.ts';
import { openApt } from './open-apt.ts';
import { PackageCache } from './package-cache.ts';
import { diffPackages, type PackageDifference } from './package-diff.ts';
import { byName, type LockedPackage, pin } from './packages.ts';
import type { BuildProgress } from './progress.ts';
import { MANIFEST_RECIPE } from './recipe.ts';
import { buildRootfs } from './rootfs.ts';
import { encodeCycloneDx } from './sbom/cyclonedx.ts';
import { encodeSpdx } from './sbom/spdx.ts';
import { removeTree, sweepScratch } from './scratch.ts';
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
  /** Only the packages of the image's lock will do. */
  readonly locked?: boolean;
}

export interface BuildOptions extends ImageInputs {
  /** Make file system and kernel again: from the packages of the lock, or without one from those of today. */
  readonly force?: boolean;
  /** Called when the lock of the image cannot be met, and other packages are taken. */
  readonly onUnmetLock?: (unmet: UnmetLock) => void;
  /** Instead of the one beside the definition. */
  readonly lock?: ImageLock;
  /** Whose `cache/` is used; `ctHome` if absent. */
  readonly cacheHome?: string;
  /** More variables for the programs that build: to prove that they change nothing. */
  readonly surroundings?: Readonly<Record<string, string>>;
  readonly progress?: (event: BuildProgress) => void;
  readonly signal?: AbortSignal | undefined;
  /** Where the tree is put together; `CT_TMPDIR` and then a good place if absent. */
  readonly tmpDir?: string | undefined;
}

/** A lock that was not followed. */
export interface UnmetLock {
  readonly reason: string;
  /** From the packages of the lock to those that were taken. */
  readonly differences: readonly PackageDifference[];
}

export interface BuiltImage {
  readonly manifest: ImageManifest;
  /** Of the manifest; names the image. */
  readonly digest: string;
}

/**
 * The stored image, if it is what a build would be made from now: same definition, lock, guest agent and probe. Reads
 * these and one record; needs no network. Undefined if the image has to be built. Throws as
 * {@link loadDefinition} does.
 */
export async function currentImage(inputs: ImageInputs): Promise<BuiltImage | undefined> {
  const definition = loadDefinition(inputs.name, inputs.definitionDirs);
  const lock = readLock(lockPath(inputs.name, inputs.definitionDirs));
  return findCurrent(new ImageStore(inputs.ctHome), definition, lock, inputs);
}

/**
 * Builds the image unless it is current, and returns it. Only one build runs per CT_HOME: a second one waits, and takes
 * the result of the first if that is current.
 *
 * An image with a lock consists of the packages of the lock. If they cannot be had any more, or if the definition asks for
 * others now, that is IMAGE_LOCK_STALE with `locked`; without it, packages are chosen as if there were no lock, `onUnmetLock`
 * is told, and the manifest says `local`.
 *
 * Throws IMAGE_NOT_FOUND, IMAGE_DEFINITION_INVALID, IMAGE_LOCK_INVALID, IMAGE_LOCK_STALE, IMAGE_SOURCES_MISSING,
 * IMAGE_UNACCOUNTED, IMAGE_BUILD_FAILED, REQUIREMENT_MISSING, STORE_FULL, CANCELLED. A failed or killed build leaves the image as it was, and its packages in the cache; what it
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
  const { progress = () => {} } = options;
  const definition = loadDefinition(options.name, options.definitionDirs);
  const lock = options.lock ?? readLock(lockPath(options.name, options.definitionDirs));
  if (lock === undefined && options.locked === true) {
    throw new CtError('IMAGE_LOCK_STALE', `image ${definition.name} has no lock`, {
      hint: `make one with \`ct image lock ${definition.name}\`, or build without --locked`,
    });
  }
  let force = options.force === true;
  await using place = await openBuild(options, () => {
    force = false; // whoever holds it builds from the same packages
  });
  const { store, ctHome, workDirectory, owner, tmpDir } = place;
  const startedAt = new Date();
  if (!force) {
    const current = await findCurrent(store, definition, lock, options);
    if (current !== undefined) return current;
  }
  const { signal } = options;
  const job = new Build({
    ...{ definition, lock, store, ctHome, workDirectory, owner, tmpDir, progress, signal, force },
    cacheDirectory: join(options.cacheHome ?? ctHome, 'cache'),
    locked: options.locked === true,
    onUnmetLock: options.onUnmetLock ?? (() => {}),
    surroundings: options.surroundings ?? {},
  });
  const { rootfs, kernel, origin } = await job.parts();
  progress({ phase: 'storing', message: 'storing the image' });
  const programs = readPrograms(options);
  const modules = await store.readBlob(kernel.modules);
  const initramfs = await store.putBytes(encodeInitramfs({ ...programs, modules }));
  const manifest: ImageManifest = {
    schemaVersion: 1,
    name: definition.name,
    architecture: 'amd64',
    rootfs: rootfs.rootfs,
    kernel: kernel.kernel,
    initramfs,
    user: definition.user,
    env: definition.env,
    definitionDigest: `sha256:${definition.digest}`,
    base: definition.base,
    packages: rootfs.packages.map(({ name, version, architecture }) => ({ name, version, architecture })),
    ...(definition.npm.length === 0 ? {} : { npm: definition.npm }),
    inventory: rootfs.inventory,
    sbom: await putSboms(store, definition, { rootfs, kernel, initramfs }, programs),
    ...origin,
  };
  const inputs = inputsDigest(definition, lock, programs);
  const finishedAt = new Date();
  const { digest } = await store.putImage(manifest, inputs, finishedAt, 'built');
  const provenance = buildProvenanceOf({
    definition,
    packages: rootfs.packages,
    kernel: kernel.package,
    guestAgent: digestOf(programs.guestAgent),
    lock: origin.lock,
    startedAt,
    finishedAt,
  });
  await writeProvenance(ctHome, digest, provenance);
  await store.collectGarbage(Date.now());
  return { manifest, digest };
}

/**
 * The lock of an image as of today: what its definition comes to with this machine's sources. Nothing is built or written
 * but package lists. Throws what {@link buildImage} throws.
 */
export async function resolveLock(
  options: Pick<BuildOptions, 'name' | 'definitionDirs' | 'ctHome' | 'progress' | 'signal' | 'tmpDir'>,
): Promise<ImageLock> {
  const { progress = () => {}, signal } = options;
  const definition = loadDefinition(options.name, options.definitionDirs);
  await using place = await openBuild(options, () => {});
  const cacheDirectory = join(place.ctHome, 'cache');
  const cache = new PackageCache(join(cacheDirectory, 'apt/archives'));
  const { workDirectory } = place;
  const { suite } = definition;
  const apt = await openApt({ suite, cache, cacheDirectory, workDirectory, progress, signal });
  return makeLock(definition, await choosePackages(apt, definition), await apt.kernel());
}

interface BuildPlace extends AsyncDisposable {
  readonly store: ImageStore;
  readonly ctHome: string;
  /** Below it; gone when this is disposed. */
  readonly workDirectory: string;
  readonly owner: string;
  readonly tmpDir: string | undefined;
}

/** Takes the lock of the CT_HOME, calling `onWait` if another build has it, and sweeps what killed builds left. */
export async function openBuild(
  options: Pick<BuildOptions, 'ctHome' | 'progress' | 'signal' | 'tmpDir'>,
  onWait: () => void,
): Promise<BuildPlace> {
  const ctHome = openCtHome(options.ctHome);
  const store = new ImageStore(ctHome);
  store.prepare();
  await using cleanup = new AsyncDisposableStack();
  cleanup.use(
    await takeLock(join(ctHome, 'image-build.lock'), {
      signal: options.signal,
      onWait: () => {
        onWait();
        options.progress?.({ phase: 'waiting', message: 'waiting for another image build' });
      },
    }),
  );
  const tmpDir = options.tmpDir ?? (process.env['CT_TMPDIR'] || undefined);
  const owner = createHash('sha256').update(ctHome).digest('hex').slice(0, 12);
  await sweepScratch(owner, tmpDir);
  for (const path of await store.leftovers()) await removeTree(path);
  const workDirectory = await store.makeWorkDirectory();
  cleanup.defer(() => removeTree(workDirectory));
  const kept = cleanup.move();
  return { store, ctHome, workDirectory, owner, tmpDir, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

async function putSboms(
  store: ImageStore,
  definition: ImageDefinition,
  { rootfs, kernel, initramfs }: { rootfs: RootfsPart; kernel: KernelPart; initramfs: BlobRef },
  programs: Programs,
): Promise<NonNullable<ImageManifest['sbom']>> {
  const subject = {
    name: definition.name,
    suite: definition.suite,
    inventory: await store.readInventory(rootfs.inventory),
    rootfs: rootfs.rootfs.digest,
    initramfs: initramfs.digest,
    kernel: { digest: kernel.kernel.digest, version: kernel.kernel.version, package: kernel.package },
    guestAgent: { digest: digestOf(programs.guestAgent), sourceDigest: guestAgentSourceDigest() },
    probe: { digest: digestOf(programs.probe) },
    ctVersion: VERSION,
  };
  return {
    cyclonedx: await store.putBytes(Buffer.from(encodeCycloneDx(subject))),
    spdx: await store.putBytes(Buffer.from(encodeSpdx(subject))),
  };
}

async function findCurrent(
  store: ImageStore,
  definition: ImageDefinition,
  lock: ImageLock | undefined,
  inputs: ImageInputs,
): Promise<BuiltImage | undefined> {
  const stored = await store.find(definition.name);
  if (stored === undefined || stored.inputsDigest !== inputsDigest(definition, lock, readPrograms(inputs)))
    return undefined;
  try {
    const manifest = await store.manifest(stored.digest);
    if (inputs.locked === true && manifest.lock === undefined) return undefined;
    for (const ref of blobsOf(manifest)) await store.checkedBlobPath(ref);
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

function inputsDigest(
  definition: ImageDefinition,
  lock: ImageLock | undefined,
  { guestAgent, probe }: Programs,
): string {
  const all = [
    definition.digest,
    definition.base,
    lock === undefined ? null : lockDigest(lock),
    digestOf(guestAgent),
    digestOf(probe),
    guestAgentSourceDigest(),
    ...[INITRAMFS_RECIPE, MANIFEST_RECIPE, VERSION],
  ];
  return digestOf(Buffer.from(JSON.stringify(all)));
}

interface RootfsPart {
  readonly rootfs: ImageManifest['rootfs'];
  readonly inventory: BlobRef;
  readonly packages: readonly LockedPackage[];
}

interface KernelPart {
  readonly package: LockedPackage;
  readonly recipe: number;
  readonly kernel: ImageManifest['kernel'];
  readonly modules: BlobRef;
}

interface Parts {
  readonly rootfs: RootfsPart;
  readonly kernel: KernelPart;
}

interface BuildContext {
  readonly definition: ImageDefinition;
  readonly lock: ImageLock | undefined;
  readonly locked: boolean;
  readonly onUnmetLock: (unmet: UnmetLock) => void;
  readonly store: ImageStore;
  readonly ctHome: string;
  readonly cacheDirectory: string;
  readonly workDirectory: string;
  readonly owner: string;
  readonly tmpDir: string | undefined;
  readonly progress: (event: BuildProgress) => void;
  readonly signal: AbortSignal | undefined;
  readonly force: boolean;
  readonly surroundings: Readonly<Record<string, string>>;
}

/** The parts of one image; each is taken from the store if it is there. */
class Build {
  readonly #context: BuildContext;
  readonly #cache: PackageCache;
  #apt: Promise<Apt> | undefined;

  constructor(context: BuildContext) {
    this.#context = context;
    this.#cache = new PackageCache(join(context.cacheDirectory, 'apt/archives'));
  }

  /** And where their packages are from, for the manifest. */
  async parts(): Promise<Parts & { readonly origin: Pick<ImageManifest, 'lock' | 'local'> }> {
    const { definition, lock, locked, onUnmetLock } = this.#context;
    if (lock === undefined) return { ...(await this.#resolved()), origin: {} };
    const parts = await this.#fromLock(lock);
    if (typeof parts !== 'string') return { ...parts, origin: { lock: lockDigest(lock) } };
    if (locked) {
      throw new CtError('IMAGE_LOCK_STALE', `the lock of image ${definition.name} cannot be met: ${parts}`, {
        hint: `\`ct image lock ${definition.name}\` makes it anew and shows what changes; commit the result`,
      });
    }
    const resolved = await this.#resolved();
    onUnmetLock({ reason: parts, differences: diffPackages(lock.packages, resolved.rootfs.packages) });
    return { ...resolved, origin: { local: true } };
  }

  /** What the lock says, or why it cannot be had. */
  async #fromLock(lock: ImageLock): Promise<Parts | string> {
    const { definition, force } = this.#context;
    if (lock.name !== definition.name || lock.definition !== `sha256:${definition.packagesDigest}`)
      return 'it was made for another definition';
    const key = rootfsKey(definition, lock.packages);
    const kernelKey = `kernel-${lock.kernel.sha256}`;
    const rootfs = force ? undefined : await this.#knownRootfs(key);
    const kernel = force ? undefined : await this.#knownKernel(kernelKey);
    const wanted = [
      ...(rootfs === undefined ? lock.packages : []),
      ...(kernel === undefined ? [lock.kernel] : []),
    ];
    const missing = await this.#cache.missing(wanted);
    if (missing.length > 0) {
      const apt = await this.#openApt();
      const gone = await apt.unavailable(missing);
      if (gone.length > 0) {
        const names = gone.slice(0, MAX_NAMES).map(pin).join(', ');
        const more = gone.length > MAX_NAMES ? ` and ${gone.length - MAX_NAMES} more` : '';
        return `the apt sources of this machine no longer have, with the same digest: ${names}${more}`;
      }
      await apt.fetch(missing);
    }
    return {
      rootfs: rootfs ?? (await this.#buildRootfs(key, lock.packages)),
      kernel: kernel ?? (await this.#unpackKernel(kernelKey, lock.kernel)),
    };
  }

  /** What the apt sources of this machine have today, or had when the file system was built. */
  async #resolved(): Promise<Parts> {
    const { definition, force } = this.#context;
    const rootfsPart = `rootfs-${definition.rootfsDigest}`;
    let rootfs = force ? undefined : await this.#knownRootfs(rootfsPart);
    if (rootfs === undefined) {
      const apt = await this.#openApt();
      const packages = await choosePackages(apt, definition);
      await apt.fetch(packages);
      rootfs = await this.#buildRootfs(rootfsPart, packages);
    }
    const kernelPart = `kernel-${definition.suite}`;
    let kernel = force ? undefined : await this.#knownKernel(kernelPart);
    // With package lists at hand, the newest; without, the one that is there is good enough.
    if (kernel === undefined || this.#apt !== undefined) {
      const apt = await this.#openApt();
      const wanted = await apt.kernel();
      if (kernel?.package.sha256 !== wanted.sha256) {
        await apt.fetch([wanted]);
        kernel = await this.#unpackKernel(kernelPart, wanted);
      }
    }
    return { rootfs, kernel };
  }

  async #knownRootfs(key: string): Promise<RootfsPart | undefined> {
    const known = await this.#context.store.readPart<RootfsPart>(key);
    return known !== undefined && (await this.#isIntact([known.rootfs, known.inventory])) ? known : undefined;
  }

  async #knownKernel(key: string): Promise<KernelPart | undefined> {
    const known = await this.#context.store.readPart<KernelPart>(key);
    const intact =
      known?.recipe === INITRAMFS_RECIPE && (await this.#isIntact([known.kernel, known.modules]));
    return intact ? known : undefined;
  }

  /** From files in the cache, each of which has just been compared with its digest. */
  async #buildRootfs(key: string, packages: readonly LockedPackage[]): Promise<RootfsPart> {
    const { definition, store, workDirectory, progress, signal, ctHome, cacheDirectory } = this.#context;
    const npm = await fetchNpmPackages(definition.npm, {
      ...this.#context,
      cacheDirectory: join(cacheDirectory, 'npm'),
    });
    const { path, tree } = await buildRootfs({
      ...this.#context,
      npm,
      packages,
      cache: this.#cache,
      logPath: join(ctHome, `image-build-${definition.name}.log`),
    });
    const inventory = takeInventory(tree, packages, definition.npm);
    checkAccounted(inventory, tree.keys, definition);
    progress({ phase: 'filesystem', message: 'computing the hash tree' });
    const verity = await appendHashTree(path, veritySalt(definition.rootfsDigest), signal);
    progress({ phase: 'storing', message: 'storing the file system' });
    const own = join(workDirectory, 'rootfs');
    renameSync(path, own);
    const part: RootfsPart = {
      rootfs: { ...(await store.putFile(own)), verity },
      inventory: await store.putBytes(encodeInventory(inventory)),
      packages: [...packages].sort(byName),
    };
    await store.writePart(key, part);
    return part;
  }

  async #unpackKernel(key: string, kernelPackage: LockedPackage): Promise<KernelPart> {
    const { store, workDirectory, progress, signal } = this.#context;
    progress({ phase: 'kernel', message: `unpacking ${kernelPackage.name}` });
    const directory = join(workDirectory, 'kernel');
    const unpacked = await unpackKernel(this.#cache.path(kernelPackage), directory, signal);
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
    const { suite } = this.#context.definition;
    this.#apt ??= openApt({ ...this.#context, suite, cache: this.#cache });
    return this.#apt;
  }
}

function choosePackages(
  apt: Apt,
  { suite, packages, distroless }: ImageDefinition,
): Promise<readonly LockedPackage[]> {
  return distroless ? apt.resolveAlone(suite, packages) : apt.resolve(suite, packages);
}

/** Packages that a message names. */
const MAX_NAMES = 5;

/** The file systems of a lock are known by their packages, not only by what was asked for. */
function rootfsKey(definition: ImageDefinition, packages: readonly LockedPackage[]): string {
  const files = packages.map((entry) => [pin(entry), entry.sha256]);
  const hash = createHash('sha256').update(JSON.stringify([definition.rootfsDigest, files]));
  return `rootfs-${hash.digest('hex')}`;
}

/** A file per line: an image has tens of thousands, and a difference can be looked at with any tool. */
function encodeInventory({ files, ...rest }: Inventory): Buffer {
  const head = JSON.stringify(rest).slice(0, -1);
  return Buffer.from(`${head},"files":[\n${files.map((entry) => JSON.stringify(entry)).join(',\n')}\n]}\n`);
}

/** A salt of our own per file system; from the definition, so that the same file system has the same root hash. */
function veritySalt(rootfsDigest: string): string {
  return createHash('sha256').update(`ct dm-verity salt ${rootfsDigest}`).digest('hex');
}
