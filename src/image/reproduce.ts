/**
 * Whether an image can be reproduced: it is built twice from the same lock, in different surroundings, and both must have
 * the same manifest. Where they have not, the inventories tell which file is the first that differs.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { CtError } from '../core/errors.ts';
import { type BuildOptions, type BuiltImage, buildImage, openBuild, resolveLock } from './build.ts';
import { lockPath } from './definition.ts';
import type { InventoryFile } from './inventory.ts';
import { readLock } from './lock-file.ts';
import { ImageStore } from './store.ts';

export interface Reproduction {
  /** Of the manifest of the first build. */
  readonly digest: string;
  /** What differs first; undefined if both builds are the same. */
  readonly difference: string | undefined;
}

/** What builds must not depend on. The clock moves on by itself between the two. */
const SURROUNDINGS = [
  { directory: 'a', umask: 0o022, env: { TZ: 'UTC' } },
  {
    directory: 'a place with another name/b',
    umask: 0o077,
    env: { TZ: 'Pacific/Kiritimati', HOME: '/nonexistent', USER: 'other', LOGNAME: 'other', COLUMNS: '40' },
  },
] as const;

/**
 * Builds the image twice in homes of their own, which are gone afterwards; only packages are kept, in the cache of
 * `ctHome`. Takes twice as long as a build, and changes the umask of this process for a while. Throws what
 * {@link buildImage} throws.
 */
export async function reproduceImage(options: BuildOptions): Promise<Reproduction> {
  const { name, definitionDirs } = options;
  const lock = options.lock ?? readLock(lockPath(name, definitionDirs)) ?? (await resolveLock(options));
  await using place = await openBuild(options, () => {});
  const built: StoredBuild[] = [];
  for (const { directory, umask, env } of SURROUNDINGS) {
    const ctHome = join(place.workDirectory, directory);
    mkdirSync(ctHome, { recursive: true, mode: 0o700 });
    const before = process.umask(umask);
    try {
      const image = await buildImage({
        ...options,
        ...{ lock, ctHome, cacheHome: place.ctHome, force: true, locked: true },
        surroundings: { ...env, ...options.surroundings },
      });
      built.push({ image, store: new ImageStore(ctHome) });
    } finally {
      process.umask(before);
    }
  }
  const [first, second] = built;
  if (first === undefined || second === undefined) throw new CtError('INTERNAL', 'there were no two builds');
  return { digest: first.image.digest, difference: await differenceOf(first, second) };
}

interface StoredBuild {
  readonly image: BuiltImage;
  readonly store: ImageStore;
}

/** What differs first between two images; undefined if they are the same, byte for byte. */
export async function differenceOf(first: StoredBuild, second: StoredBuild): Promise<string | undefined> {
  if (first.image.digest === second.image.digest) return undefined;
  const [before, after] = await Promise.all(
    [first, second].map(async ({ image: { manifest }, store }) =>
      manifest.inventory === undefined ? [] : (await store.readInventory(manifest.inventory)).files,
    ),
  );
  return (
    firstDifferentFile(before ?? [], after ?? []) ??
    `${differentKeys(first.image, second.image).join(', ')} of the manifest, with the same files`
  );
}

/** The first path, by name, that only one has or that differs, and in what; both lists are sorted by path. */
export function firstDifferentFile(
  before: readonly InventoryFile[],
  after: readonly InventoryFile[],
): string | undefined {
  const others = new Map(after.map((entry) => [entry.path, entry]));
  const known = new Set(before.map(({ path }) => path));
  const candidates = [
    ...before.flatMap((entry): string[] => {
      const other = others.get(entry.path);
      if (other === undefined) return [`${entry.path}: only in the first build`];
      const keys = (Object.keys({ ...entry, ...other }) as (keyof InventoryFile)[]).filter(
        (key) => entry[key] !== other[key],
      );
      return keys.length === 0
        ? []
        : [`${entry.path}: another ${keys.map((key) => KEY_NAMES[key]).join(', ')}`];
    }),
    ...after.filter(({ path }) => !known.has(path)).map(({ path }) => `${path}: only in the second build`),
  ];
  return candidates.sort()[0];
}

const KEY_NAMES: Readonly<Record<keyof InventoryFile, string>> = {
  path: 'path',
  type: 'type',
  mode: 'mode',
  uid: 'user',
  gid: 'group',
  sizeBytes: 'size',
  target: 'target',
  sha256: 'digest',
  sha1: 'SHA-1',
  owner: 'package',
};

function differentKeys(first: BuiltImage, second: BuiltImage): readonly string[] {
  const [one, other]: readonly Readonly<Record<string, unknown>>[] = [
    { ...first.manifest },
    { ...second.manifest },
  ];
  return [...new Set([...Object.keys(one ?? {}), ...Object.keys(other ?? {})])].filter(
    (key) => JSON.stringify(one?.[key]) !== JSON.stringify(other?.[key]),
  );
}
