/** Images, as commands need them: by name, built when they have to be. */
import { join } from 'node:path';
import { CtError } from '../core/errors.ts';
import { guestAgentPath, installRoot, probePath } from '../core/install.ts';
import type { BuiltImage, ImageInputs, UnmetLock } from '../image/build.ts';
import { describeDifference } from '../image/package-diff.ts';
import { type BuildPhase, type BuildProgress, overallFraction } from '../image/progress.ts';
import { recallImage, rememberImage } from '../image/recall.ts';
import type { ImageStore } from '../image/store.ts';
import { progressBar } from './render/format.ts';

export interface EnsureOptions {
  readonly ctHome: string;
  /** Root of the project, which may define images of its own in `.ct/images`. */
  readonly directory: string;
  readonly signal: AbortSignal;
  /** `milestone`: the first word of a phase, worth a line of a log; the rest is for a status line. */
  readonly onProgress: (what: string, milestone: boolean) => void;
  readonly force?: boolean;
  /** Only the packages of the image's lock will do. */
  readonly locked?: boolean;
  /** Lines about a lock that could not be met; they are progress if this is absent. */
  readonly onNotice?: (lines: readonly string[]) => void;
}

const PHASES: Readonly<Record<BuildPhase, string>> = {
  waiting: 'waiting for another build',
  resolving: 'reading package lists',
  downloading: 'downloading packages',
  unpacking: 'unpacking packages',
  configuring: 'configuring packages',
  cleaning: 'cleaning up',
  filesystem: 'writing the file system',
  kernel: 'unpacking the kernel',
  storing: 'storing',
};

/** Where definitions are looked for. Those of ct come first: a project cannot give one of their names another meaning. */
export function definitionDirectories(directory: string): readonly string[] {
  return [join(installRoot, 'images'), join(directory, '.ct/images')];
}

export function imageInputs(name: string, options: Pick<EnsureOptions, 'ctHome' | 'directory'>): ImageInputs {
  const definitionDirs = definitionDirectories(options.directory);
  return { name, definitionDirs, ctHome: options.ctHome, guestAgentPath, probePath };
}

/** Digest of a stored image that is named by its name, or by its digest. Throws IMAGE_NOT_FOUND. */
export async function storedDigest(store: ImageStore, image: string): Promise<string> {
  if (/^sha256:[0-9a-f]{64}$/.test(image)) return image;
  const stored = /^[a-z0-9][a-z0-9._-]{0,63}$/.test(image) ? await store.find(image) : undefined;
  if (stored !== undefined) return stored.digest;
  throw new CtError('IMAGE_NOT_FOUND', `no image \`${image}\` is built`, {
    hint: `\`ct image ls\` lists those that are; \`ct image build ${image}\` builds it if it is defined`,
  });
}

/** Digest of an image's manifest, after building it if it is not current. Throws what buildImage throws. */
export async function ensureImage(name: string, options: EnsureOptions): Promise<string> {
  // What is remembered may have been built from other packages than those of the lock.
  const recalled = options.locked === true ? undefined : recallImage(imageInputs(name, options));
  if (recalled !== undefined) return recalled;
  try {
    return (await buildNamed(name, options)).digest;
  } catch (error) {
    if (!(error instanceof CtError) || error.code !== 'IMAGE_NOT_FOUND') throw error;
    const foreign = await foreignImage(name, options.ctHome);
    if (foreign === undefined) throw error;
    return foreign;
  }
}

/** Digest of an image that was imported or pulled and that no definition here defines, with its parts compared. */
async function foreignImage(name: string, ctHome: string): Promise<string | undefined> {
  const { ImageStore: Store } = await import('../image/store.ts');
  const { blobsOf } = await import('../image/manifest.ts');
  const store = new Store(ctHome);
  const stored = /^[a-z0-9][a-z0-9._-]{0,63}$/.test(name) ? await store.find(name) : undefined;
  if (stored === undefined) return undefined;
  const manifest = await store.manifest(stored.digest);
  for (const ref of blobsOf(manifest)) await store.checkedBlobPath(ref);
  return stored.digest;
}

export async function buildNamed(name: string, options: EnsureOptions): Promise<BuiltImage> {
  const inputs = { ...imageInputs(name, options), locked: options.locked === true };
  const { buildImage, currentImage } = await import('../image/build.ts');
  if (options.force !== true) {
    const current = await currentImage(inputs);
    if (current) {
      rememberImage(inputs, current);
      return current;
    }
  }
  const built = await buildImage({
    ...inputs,
    force: options.force === true,
    signal: options.signal,
    progress: progressOf(name, options.onProgress),
    onUnmetLock: (unmet) => {
      const lines = unmetLockLines(name, unmet);
      if (options.onNotice) options.onNotice(lines);
      else for (const line of lines) options.onProgress(line, true);
    },
  });
  rememberImage(inputs, built);
  return built;
}

export function progressOf(
  name: string,
  onProgress: EnsureOptions['onProgress'],
): (event: BuildProgress) => void {
  const seen = new Set<BuildPhase>();
  let done = 0; // phases come in another order where parts are there already, and no bar goes backwards
  return (event) => {
    const first = !seen.has(event.phase);
    seen.add(event.phase);
    done = Math.max(done, overallFraction(event));
    const text = first ? PHASES[event.phase] : `${progressBar(done)} ${event.message}`;
    onProgress(`image ${name}: ${text}`, first);
  };
}

/** A difference of two releases has some tens of lines; more than these are only counted. */
const MAX_DIFFERENCES = 30;

function unmetLockLines(name: string, { reason, differences }: UnmetLock): readonly string[] {
  const more = differences.length - MAX_DIFFERENCES;
  return [
    `image ${name}: its lock cannot be met: ${reason}`,
    differences.length === 0
      ? 'It was built from the same packages all the same, and is marked as local.'
      : 'It was built from the packages of today, and is marked as local. Against the lock:',
    ...differences.slice(0, MAX_DIFFERENCES).map((entry) => `  ${describeDifference(entry)}`),
    ...(more > 0 ? [`  and ${more} more`] : []),
    `\`ct image lock ${name}\` makes the lock anew.`,
  ];
}
