/** `ct image ls`. */
import { ctHomePath } from '../../../core/paths.ts';
import { currentImage } from '../../../image/build.ts';
import { definitionNames } from '../../../image/definition.ts';
import type { ImageManifest } from '../../../image/manifest.ts';
import { ImageStore, type StoredImage } from '../../../image/store.ts';
import type { ParsedOptions } from '../../command.ts';
import { definitionDirectories, imageInputs } from '../../images.ts';
import type { Output } from '../../output.ts';
import { formatBytes } from '../../render/format.ts';
import { formatTable } from '../../render/table.ts';

interface ListedImage {
  readonly name: string;
  /** `stale`: the next run builds it again. `orphan`: its definition is not found from here; one that was built has one. */
  readonly state: 'current' | 'stale' | 'not built' | 'orphan' | 'imported';
  readonly stored: (StoredImage & { readonly manifest: ImageManifest }) | undefined;
}

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const images = await listImages(ctHomePath(), process.cwd());
  output.write('stdout', parsed.has('json') ? asJson(images) : asTable(images));
  return 0;
}

/** What an image takes on disk; parts that it shares with others count in full. */
export function imageSizeBytes({ rootfs, kernel, initramfs }: ImageManifest): number {
  return rootfs.sizeBytes + kernel.sizeBytes + initramfs.sizeBytes;
}

async function listImages(ctHome: string, directory: string): Promise<readonly ListedImage[]> {
  const store = new ImageStore(ctHome);
  const defined = definitionNames(definitionDirectories(directory));
  const stored = new Map<string, StoredImage & { readonly manifest: ImageManifest }>();
  for (const image of await store.list()) {
    stored.set(image.name, { ...image, manifest: await store.manifest(image.digest) });
  }
  const names = [...new Set([...defined, ...stored.keys()])].sort();
  return Promise.all(
    names.map(async (name): Promise<ListedImage> => {
      const image = stored.get(name);
      if (!defined.includes(name)) {
        return { name, state: image?.manifest.imported ? 'imported' : 'orphan', stored: image };
      }
      if (!image) return { name, state: 'not built', stored: undefined };
      const current = await currentImage(imageInputs(name, { ctHome, directory }));
      return { name, state: current ? 'current' : 'stale', stored: image };
    }),
  );
}

function asTable(images: readonly ListedImage[]): string {
  return formatTable([
    ['IMAGE', 'STATE', 'DIGEST', 'SIZE', 'KERNEL', 'BUILT'],
    ...images.map(({ name, state, stored }) =>
      stored
        ? [
            name,
            // Built from other packages than those of its lock.
            stored.manifest.local === true ? `${state}, local` : state,
            stored.digest.slice(0, 19),
            formatBytes(imageSizeBytes(stored.manifest)),
            stored.manifest.kernel.version,
            stored.builtAt,
          ]
        : [name, state],
    ),
  ]);
}

function asJson(images: readonly ListedImage[]): string {
  const list = images.map(({ name, state, stored }) => ({
    name,
    state,
    digest: stored?.digest,
    sizeBytes: stored && imageSizeBytes(stored.manifest),
    kernel: stored?.manifest.kernel.version,
    packages: stored?.manifest.packages.length,
    lock: stored?.manifest.lock,
    local: stored && stored.manifest.local === true,
    builtAt: stored?.builtAt,
  }));
  return `${JSON.stringify({ version: 1, images: list }, undefined, 2)}\n`;
}
