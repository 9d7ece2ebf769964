/** Images, as commands need them: by name, built when they have to be. */
import { join } from 'node:path';
import { guestAgentPath, installRoot, probePath } from '../core/install.ts';
import type { BuiltImage, ImageInputs } from '../image/build.ts';
import type { BuildPhase, BuildProgress } from '../image/progress.ts';
import { recallImage, rememberImage } from '../image/recall.ts';

export interface EnsureOptions {
  readonly ctHome: string;
  /** Root of the project, which may define images of its own in `.ct/images`. */
  readonly directory: string;
  readonly signal: AbortSignal;
  /** `milestone`: the first word of a phase, worth a line of a log; the rest is for a status line. */
  readonly onProgress: (what: string, milestone: boolean) => void;
  readonly force?: boolean;
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

/** Digest of an image's manifest, after building it if it is not current. Throws what buildImage throws. */
export async function ensureImage(name: string, options: EnsureOptions): Promise<string> {
  return recallImage(imageInputs(name, options)) ?? (await buildNamed(name, options)).digest;
}

export async function buildNamed(name: string, options: EnsureOptions): Promise<BuiltImage> {
  const inputs = imageInputs(name, options);
  const { buildImage, currentImage } = await import('../image/build.ts');
  if (options.force !== true) {
    const current = await currentImage(inputs);
    if (current) {
      rememberImage(inputs, current);
      return current;
    }
  }
  const seen = new Set<BuildPhase>();
  const built = await buildImage({
    ...inputs,
    force: options.force === true,
    signal: options.signal,
    progress: (event) => {
      options.onProgress(describeProgress(name, event, !seen.has(event.phase)), !seen.has(event.phase));
      seen.add(event.phase);
    },
  });
  rememberImage(inputs, built);
  return built;
}

function describeProgress(name: string, { phase, message, fraction }: BuildProgress, first: boolean): string {
  const percent = fraction === undefined || first ? '' : ` (${Math.round(fraction * 100)} %)`;
  return `image ${name}: ${first ? PHASES[phase] : message}${percent}`;
}
