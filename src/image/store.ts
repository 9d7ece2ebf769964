/**
 * Images on disk, below CT_HOME:
 *
 *     blobs/sha256/<hex>    every part of every image, and every manifest, by its digest
 *     images/<name>.json    which manifest an image's name stands for, and what it was made from
 *     parts/<key>.json      parts that several images share: file systems and kernels, with their figures
 *     checked/<hex>         that a blob had its digest when it last changed
 *     images/sha256/<hex>/made.json    that the image was built or imported here; its signatures lie beside it (signatures.ts)
 *     unused/<hex>          since when no image has had a blob
 *     tmp/                  of the build that is running; nothing in it outlives the next one's start
 *
 * Files appear complete or not at all: written in tmp/, synced, renamed.
 */
import { createHash, randomBytes } from 'node:crypto';
import { type BigIntStats, createReadStream, mkdirSync } from 'node:fs';
import { chmod, mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { writeAtomically } from '../core/atomic-file.ts';
import { CtError, toCtError } from '../core/errors.ts';
import { hasKeys } from '../core/json.ts';
import type { Inventory } from './inventory.ts';
import { type BlobRef, blobsOf, type ImageManifest } from './manifest.ts';

export interface StoredImage {
  readonly name: string;
  /** Of the manifest; names the image. */
  readonly digest: string;
  /** Of everything that decides whether the image is current (build.ts). */
  readonly inputsDigest: string;
  /** ISO 8601, UTC. */
  readonly builtAt: string;
}

/** How an image came to be on this machine. One that was fetched is not made here, whoever vouches for it. */
export interface MadeHere {
  readonly how: 'built' | 'imported';
  /** ISO 8601, UTC. */
  readonly at: string;
}

const REBUILD_HINT = '`ct image build --force` makes it again';
/** A manifest lists some hundred packages. */
const MAX_MANIFEST_BYTES = 16 * 1024 * 1024;
/** Each has some hundred kilobytes in memory. */
const MAX_KNOWN_MANIFESTS = 16;
const HEX = /^[0-9a-f]{64}$/;
const READ_BYTES = 1024 * 1024;
/** The longest jobs take hours. */
const UNUSED_KEPT_MS = 24 * 3600 * 1000;

export class ImageStore {
  readonly #home: string;
  /** Manifests that had their digest when they last changed, by digest: a run asks three times. */
  readonly #manifests = new Map<string, { readonly stamp: string; readonly manifest: ImageManifest }>();

  /** Touches nothing; `ctHome` need not exist. */
  constructor(ctHome: string) {
    this.#home = ctHome;
  }

  // ------------------------------------------------------------------------------------------------ reading

  /** The manifest with this digest. Throws IMAGE_NOT_FOUND, or IMAGE_CORRUPT if it has not that digest. */
  async manifest(digest: string): Promise<ImageManifest> {
    const path = this.#blobPath(digest);
    let bytes: Buffer;
    let stamp: string;
    try {
      // Before it is read: a change meanwhile makes the next look a new one.
      stamp = stampOf(await stat(path, { bigint: true }));
      const known = this.#manifests.get(digest);
      if (known?.stamp === stamp) return known.manifest;
      bytes = await readFile(path);
    } catch (error) {
      if (!isMissing(error)) throw toCtError(error);
      throw new CtError('IMAGE_NOT_FOUND', `no image ${digest} is stored`, {
        hint: '`ct image ls` lists those that are',
      });
    }
    if (bytes.length > MAX_MANIFEST_BYTES || digestOf(bytes) !== digest) {
      throw new CtError('IMAGE_CORRUPT', `the manifest ${digest} has other contents`, { hint: REBUILD_HINT });
    }
    const manifest = JSON.parse(bytes.toString('utf8')) as ImageManifest;
    if (manifest.schemaVersion !== 1) {
      throw new CtError('IMAGE_CORRUPT', `the manifest ${digest} is of an unknown version`, {
        hint: REBUILD_HINT,
      });
    }
    if (this.#manifests.size >= MAX_KNOWN_MANIFESTS) this.#manifests.clear();
    this.#manifests.set(digest, { stamp, manifest });
    return manifest;
  }

  /** What is stored under an image's name. */
  async find(name: string): Promise<StoredImage | undefined> {
    return this.#readJson<StoredImage>(join('images', `${name}.json`));
  }

  /** Undefined if the image was not made on this machine, or if what says so cannot be read: then it needs a signature. */
  async madeHere(digest: string): Promise<MadeHere | undefined> {
    const found: unknown = await this.#readJson(madePath(digest)).catch(() => undefined);
    if (!hasKeys(found, ['version', 'digest', 'how', 'at']) || found['version'] !== 1) return undefined;
    const { how, at } = found;
    if (found['digest'] !== digest || (how !== 'built' && how !== 'imported')) return undefined;
    return typeof at === 'string' && !Number.isNaN(Date.parse(at)) ? { how, at } : undefined;
  }

  /** All stored images, by name. */
  async list(): Promise<readonly StoredImage[]> {
    let files: string[];
    try {
      files = await readdir(join(this.#home, 'images'));
    } catch (error) {
      if (isMissing(error)) return [];
      throw toCtError(error);
    }
    const names = files
      .filter((file) => file.endsWith('.json'))
      .map((file) => file.slice(0, -'.json'.length));
    const found = await Promise.all(names.sort().map((name) => this.find(name)));
    return found.filter((image) => image !== undefined);
  }

  /**
   * Path of a blob whose contents have been compared with its digest since they last changed, by inode, size and times;
   * compares them now if not, which takes a second for a root file system. Throws IMAGE_CORRUPT.
   */
  async checkedBlobPath(ref: BlobRef): Promise<string> {
    const path = this.#blobPath(ref.digest);
    const stamp = await this.#stamp(ref, path);
    const stampPath = join(this.#home, 'checked', hexOf(ref.digest));
    const known = await readFile(stampPath, 'utf8').catch(() => undefined);
    if (known === stamp) return path;
    await this.#compare(ref, path);
    await this.#writeAtomically(stampPath, stamp);
    return path;
  }

  /** Compares every part of an image with its digest, whatever was compared before. Throws IMAGE_CORRUPT. */
  async verifyImage(manifest: ImageManifest): Promise<void> {
    for (const ref of blobsOf(manifest)) {
      const path = this.#blobPath(ref.digest);
      await this.#stamp(ref, path);
      await this.#compare(ref, path);
    }
  }

  /** Whether a blob is there with the right size; says nothing about its contents. */
  async hasBlob(ref: BlobRef): Promise<boolean> {
    const stats = await stat(this.#blobPath(ref.digest)).catch(() => undefined);
    return stats?.size === ref.sizeBytes;
  }

  async #stamp(ref: BlobRef, path: string): Promise<string> {
    const stats = await stat(path, { bigint: true }).catch((error) => {
      if (isMissing(error)) return undefined;
      throw toCtError(error);
    });
    if (stats === undefined) {
      throw new CtError('IMAGE_CORRUPT', `${path} is missing, which an image consists of`, {
        hint: REBUILD_HINT,
      });
    }
    if (stats.size !== BigInt(ref.sizeBytes)) {
      throw new CtError('IMAGE_CORRUPT', `${path} has ${stats.size} bytes instead of ${ref.sizeBytes}`, {
        hint: REBUILD_HINT,
      });
    }
    return stampOf(stats);
  }

  async #compare(ref: BlobRef, path: string): Promise<void> {
    if ((await digestOfFile(path)) !== ref.digest) {
      throw new CtError('IMAGE_CORRUPT', `${path} does not have the contents that its name stands for`, {
        hint: REBUILD_HINT,
      });
    }
  }

  #blobPath(digest: string): string {
    return join(this.#home, 'blobs/sha256', hexOf(digest));
  }

  // ------------------------------------------------------------------------------------------------ writing

  /** Makes the directories. The rest of writing is for the one process that holds the build lock. */
  prepare(): void {
    for (const name of ['blobs/sha256', 'images', 'parts', 'checked', 'unused', 'tmp']) {
      mkdirSync(join(this.#home, name), { recursive: true, mode: 0o700 });
    }
  }

  /** Takes a file on CT_HOME's file system into the store; it is gone from `path` then. */
  async putFile(path: string): Promise<BlobRef> {
    // Readable by all: a VMM of another user is handed the open file, and opens it once more. CT_HOME is closed to others.
    await chmod(path, 0o444);
    const file = await open(path, 'r');
    try {
      await file.sync();
    } finally {
      await file.close();
    }
    const digest = await digestOfFile(path);
    const target = this.#blobPath(digest);
    await rename(path, target);
    await syncDirectory(dirname(target));
    const ref = { digest, sizeBytes: (await stat(target)).size };
    // It was hashed just now: the first run need not do it again.
    await this.#writeAtomically(join(this.#home, 'checked', hexOf(digest)), await this.#stamp(ref, target));
    return ref;
  }

  async putBytes(bytes: Uint8Array): Promise<BlobRef> {
    const path = this.#temporaryPath();
    try {
      await writeFile(path, bytes, { mode: 0o600, flag: 'wx' });
      return await this.putFile(path);
    } catch (error) {
      await rm(path, { force: true });
      throw toCtError(error);
    }
  }

  /**
   * Stores a manifest and lets its name stand for it from now on. `how` it was made here; absent if it comes from elsewhere:
   * then policy decides whether somebody else vouches for it.
   */
  async putImage(
    manifest: ImageManifest,
    inputsDigest: string,
    builtAt: Date,
    how?: MadeHere['how'],
  ): Promise<StoredImage> {
    const { digest } = await this.putBytes(Buffer.from(`${JSON.stringify(manifest, undefined, 2)}\n`));
    const image: StoredImage = { name: manifest.name, digest, inputsDigest, builtAt: builtAt.toISOString() };
    if (how !== undefined) {
      const made = { version: 1, digest, how, at: image.builtAt };
      await this.#writeAtomically(join(this.#home, madePath(digest)), `${JSON.stringify(made)}\n`);
    }
    await this.#writeAtomically(
      join(this.#home, 'images', `${manifest.name}.json`),
      `${JSON.stringify(image)}\n`,
    );
    return image;
  }

  async readPart<T>(key: string): Promise<T | undefined> {
    return this.#readJson<T>(join('parts', `${key}.json`));
  }

  async writePart(key: string, value: unknown): Promise<void> {
    await this.#writeAtomically(join(this.#home, 'parts', `${key}.json`), `${JSON.stringify(value)}\n`);
  }

  /** Contents of a blob, compared with its digest. */
  async readBlob(ref: BlobRef): Promise<Buffer> {
    return readFile(await this.checkedBlobPath(ref));
  }

  /** The inventory of an image. Throws IMAGE_CORRUPT. */
  async readInventory(ref: BlobRef): Promise<Inventory> {
    return JSON.parse((await this.readBlob(ref)).toString('utf8')) as Inventory;
  }

  /** A new empty directory below tmp/. The caller removes it. */
  async makeWorkDirectory(): Promise<string> {
    const path = this.#temporaryPath();
    await mkdir(path, { mode: 0o700 });
    return path;
  }

  /** What killed builds left in tmp/; only while no other build runs. */
  async leftovers(): Promise<readonly string[]> {
    const tmp = join(this.#home, 'tmp');
    return (await readdir(tmp)).map((name) => join(tmp, name));
  }

  /** Whether the manifest of an image is stored; says nothing about its contents. */
  async has(digest: string): Promise<boolean> {
    return (await stat(this.#blobPath(digest)).catch(() => undefined)) !== undefined;
  }

  /**
   * Removes what no image has had for a day: until then, runs that began before may still use it. What was said about an
   * image (signatures, provenance) goes with its manifest. `now` is in milliseconds. Returns the bytes it took.
   */
  async collectGarbage(now: number): Promise<number> {
    const used = await this.#used();
    let freedBytes = 0;
    for (const hex of await readdir(join(this.#home, 'blobs/sha256'))) {
      const mark = join(this.#home, 'unused', hex);
      if (used.has(hex)) {
        await rm(mark, { force: true });
        continue;
      }
      const since = Number(await readFile(mark, 'utf8').catch(() => Number.NaN));
      if (Number.isNaN(since)) await this.#writeAtomically(mark, String(now));
      else if (now - since > UNUSED_KEPT_MS) freedBytes += await this.#removeBlob(hex);
    }
    for (const hex of await readdir(join(this.#home, 'images/sha256')).catch(() => [])) {
      if (HEX.test(hex) && !(await this.has(`sha256:${hex}`))) await this.#removeStatements(hex);
    }
    return freedBytes;
  }

  /**
   * Removes an image at once, with what is said about it and the parts that no other image has; runs that have their VM go on.
   * Returns the bytes it took; 0 if there is none of that name.
   */
  async removeImage(name: string): Promise<number> {
    const image = await this.find(name);
    if (image === undefined) return 0;
    const manifest = await this.manifest(image.digest).catch(() => undefined);
    await rm(join(this.#home, 'images', `${name}.json`), { force: true });
    const used = await this.#used();
    const own = [image, ...(manifest ? blobsOf(manifest) : [])].map(({ digest }) => hexOf(digest));
    let freedBytes = 0;
    for (const hex of new Set(own)) if (!used.has(hex)) freedBytes += await this.#removeBlob(hex);
    if (!used.has(hexOf(image.digest))) await this.#removeStatements(hexOf(image.digest));
    return freedBytes;
  }

  /** Names of blobs that images have, and of parts of which they have something; other parts are forgotten. */
  async #used(): Promise<ReadonlySet<string>> {
    const used = new Set<string>();
    for (const image of await this.list()) {
      used.add(hexOf(image.digest));
      const manifest = await this.manifest(image.digest).catch(() => undefined);
      if (manifest === undefined) continue;
      for (const ref of blobsOf(manifest)) used.add(hexOf(ref.digest));
    }
    for (const file of await readdir(join(this.#home, 'parts'))) {
      const part = await this.#readJson<Readonly<Record<string, Partial<BlobRef>>>>(join('parts', file));
      const digests = Object.values(part ?? {}).flatMap(({ digest }) =>
        digest === undefined ? [] : [hexOf(digest)],
      );
      // A part is of use as long as an image has something of it; the rest of it goes with the same.
      if (digests.some((digest) => used.has(digest))) for (const digest of digests) used.add(digest);
      else await rm(join(this.#home, 'parts', file), { force: true });
    }
    return used;
  }

  async #removeBlob(hex: string): Promise<number> {
    const stats = await stat(join(this.#home, 'blobs/sha256', hex)).catch(() => undefined);
    for (const directory of ['blobs/sha256', 'checked', 'unused']) {
      await rm(join(this.#home, directory, hex), { force: true });
    }
    return stats?.size ?? 0;
  }

  async #removeStatements(hex: string): Promise<void> {
    await rm(join(this.#home, 'images/sha256', hex), { recursive: true, force: true });
  }

  #temporaryPath(): string {
    return join(this.#home, 'tmp', `${process.pid}-${randomBytes(6).toString('hex')}`);
  }

  async #writeAtomically(path: string, text: string): Promise<void> {
    try {
      await writeAtomically(path, text);
    } catch (error) {
      throw toCtError(error);
    }
  }

  /** Undefined if there is none, or none that can be read: then the part or image is made again. */
  async #readJson<T>(relative: string): Promise<T | undefined> {
    try {
      return JSON.parse(await readFile(join(this.#home, relative), 'utf8')) as T;
    } catch (error) {
      if (isMissing(error) || error instanceof SyntaxError) return undefined;
      throw toCtError(error);
    }
  }
}

export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}

async function digestOfFile(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: READ_BYTES }))
    hash.update(chunk as Buffer);
  return `sha256:${hash.digest('hex')}`;
}

function hexOf(digest: string): string {
  const hex = /^sha256:([0-9a-f]{64})$/.exec(digest)?.[1];
  if (hex === undefined)
    throw new CtError('IMAGE_NOT_FOUND', 'an image digest is `sha256:` and 64 hexadecimal digits');
  return hex;
}

/** Changes with the contents of a file, as far as stat(2) tells. */
function stampOf({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return [dev, ino, size, mtimeNs, ctimeNs].join(' ');
}

function madePath(digest: string): string {
  return join('images/sha256', hexOf(digest), 'made.json');
}

function isMissing(error: unknown): boolean {
  return ['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '');
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}
