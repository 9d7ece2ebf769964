/**
 * Images as files: a directory in OCI's layout (image-spec v1.1, image-layout.md), or the archive of `docker save`.
 *
 *     oci-layout, index.json, blobs/sha256/<hex>          what umoci, skopeo, buildah and rules_oci write
 *     manifest.json, <config>.json, <layer>/layer.tar     what docker save writes, in one tar archive
 */
import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join, posix } from 'node:path';
import { CtError } from '../../core/errors.ts';
import { ByteSource } from '../import/byte-source.ts';
import { refused, shown } from '../import/refusal.ts';
import {
  type Descriptor,
  type ImageConfig,
  MAX_DOCUMENT_BYTES,
  MEDIA_TYPES,
  parseConfig,
  parseDockerManifest,
  parseIndex,
  parseJson,
  parseManifest,
} from './documents.ts';
import type { Layer } from './layers.ts';
import { readTar } from './tar.ts';

const READ_BYTES = 256 * 1024;
/** An index of indexes is what some tools write; more levels nobody needs. */
const MAX_INDEX_DEPTH = 3;
const MAX_ARCHIVE_FILES = 10_000;

export interface OpenedImage {
  /** Names the image: the digest of its manifest, or of Docker's configuration. */
  readonly digest: string;
  readonly config: ImageConfig;
  readonly layers: readonly Layer[];
}

/**
 * The image in a layout directory: the one with the tag, or the only one, for linux/amd64. Documents are compared with
 * their digests here, layers when they are applied. Throws IMAGE_IMPORT_REFUSED, or USAGE if the tag is not there.
 */
export async function openLayout(directory: string, tag: string | undefined): Promise<OpenedImage> {
  const layout = parseJson(await readDocument(join(directory, 'oci-layout')), 'oci-layout');
  if (layout['imageLayoutVersion'] !== '1.0.0') throw refused('the layout is of an unknown version');
  const blobPath = (digest: string): string =>
    join(directory, 'blobs/sha256', digest.slice('sha256:'.length));
  const read = async (descriptor: Descriptor): Promise<Buffer> => {
    const bytes = await readDocument(blobPath(descriptor.digest));
    if (bytes.length !== descriptor.sizeBytes || digestOf(bytes) !== descriptor.digest) {
      throw refused(`the blob ${descriptor.digest} has other contents`);
    }
    return bytes;
  };
  const top = parseIndex(await readDocument(join(directory, 'index.json')));
  const candidates = tag === undefined ? top : top.filter(({ refName }) => refName === tag);
  if (tag !== undefined && candidates.length === 0) {
    const tags = top.flatMap(({ refName }) => (refName === undefined ? [] : [shown(refName)]));
    throw new CtError('USAGE', `the layout ${directory} has no image with the tag ${tag}`, {
      hint: tags.length === 0 ? 'it has no tags' : `there are: ${tags.slice(0, 10).join(', ')}`,
    });
  }
  const descriptor = await chooseManifest(candidates, read, 0);
  const manifest = parseManifest(await read(descriptor));
  const config = parseConfig(await read(manifest.config));
  if (config.diffIds.length !== manifest.layers.length) {
    throw refused('the manifest and the configuration have different numbers of layers');
  }
  const layers = manifest.layers.map((layer, index) => ({
    open: () => readRange(blobPath(layer.digest), 0, undefined),
    compression: layer.compression,
    digest: layer.digest,
    sizeBytes: layer.sizeBytes,
    diffId: config.diffIds[index] ?? '',
  }));
  return { digest: descriptor.digest, config, layers };
}

async function chooseManifest(
  candidates: readonly Descriptor[],
  read: (descriptor: Descriptor) => Promise<Buffer>,
  depth: number,
): Promise<Descriptor> {
  const images = candidates.filter(({ platform }) => platform === undefined || platform === 'linux/amd64');
  const [image] = images;
  if (image === undefined) throw refused('there is no image for linux/amd64 in the index');
  if (images.length > 1) {
    throw new CtError('USAGE', 'the layout has several images', { hint: 'name one by its tag: oci:DIR:TAG' });
  }
  if (image.mediaType === MEDIA_TYPES.ociManifest || image.mediaType === MEDIA_TYPES.dockerManifest)
    return image;
  if (image.mediaType !== MEDIA_TYPES.ociIndex && image.mediaType !== MEDIA_TYPES.dockerIndex) {
    throw refused('the index leads to something that is no image');
  }
  if (depth >= MAX_INDEX_DEPTH) throw refused('indexes in indexes in indexes');
  return chooseManifest(parseIndex(await read(image)), read, depth + 1);
}

interface Member {
  readonly offset: number;
  readonly sizeBytes: number;
}

/** The image in an archive of `docker save`: the one with the tag, or the only one. Throws as {@link openLayout} does. */
export async function openDockerArchive(path: string, tag: string | undefined): Promise<OpenedImage> {
  const members = await listMembers(path);
  const manifest = parseDockerManifest(await readMember(path, members, 'manifest.json'));
  const images = tag === undefined ? manifest : manifest.filter(({ tags }) => tags.includes(tag));
  const [image] = images;
  if (image === undefined || images.length > 1) {
    const tags = manifest.flatMap((each) => each.tags).slice(0, 10);
    throw new CtError(
      'USAGE',
      `${path} has ${images.length === 0 ? 'no image' : 'several images'} of that name`,
      {
        hint: `name one: docker-archive:FILE:NAME:TAG; there are: ${tags.map((each) => JSON.stringify(each)).join(', ')}`,
      },
    );
  }
  const bytes = await readMember(path, members, image.config);
  const digest = digestOf(bytes);
  // The name is the image's id. Where it has none in it, nothing outside the archive knows the configuration.
  const named = /([0-9a-f]{64})(?:\.json)?$/.exec(image.config)?.[1];
  if (named !== undefined && digest !== `sha256:${named}`)
    throw refused('the configuration has not the digest it is named by');
  const config = parseConfig(bytes);
  if (config.diffIds.length !== image.layers.length) {
    throw refused('the archive and the configuration have different numbers of layers');
  }
  const layers = await Promise.all(
    image.layers.map(async (name, index): Promise<Layer> => {
      const { offset, sizeBytes } = memberOf(members, name);
      const [first, second] = await firstBytes(path, offset, Math.min(2, sizeBytes));
      return {
        open: () => readRange(path, offset, sizeBytes),
        compression: first === 0x1f && second === 0x8b ? 'gzip' : 'none',
        digest: undefined,
        sizeBytes,
        diffId: config.diffIds[index] ?? '',
      };
    }),
  );
  return { digest, config, layers };
}

/** Regular files of an archive by name, and links to them, as older versions of Docker write for equal layers. */
async function listMembers(path: string): Promise<ReadonlyMap<string, Member>> {
  const members = new Map<string, Member>();
  const links: [string, string][] = [];
  let consumed = 0;
  const chunks = (async function* () {
    for await (const chunk of readRange(path, 0, undefined)) {
      consumed += chunk.length;
      yield chunk;
    }
  })();
  const source = new ByteSource(chunks, 'the archive');
  try {
    await readTar(source, async (entry, read) => {
      if (members.size + links.length >= MAX_ARCHIVE_FILES) throw refused('the archive has too many files');
      if (entry.kind === 'symlink') links.push([entry.path, entry.target]);
      if (entry.kind !== 'file') return;
      if (members.has(entry.path)) throw refused(`${shown(entry.path)} is twice in the archive`);
      const offset = consumed - source.buffered;
      members.set(entry.path, { offset, sizeBytes: entry.sizeBytes });
      await read(async () => {});
    });
  } finally {
    await source.close();
  }
  for (const [name, target] of links) {
    const member = members.get(posix.normalize(posix.join(posix.dirname(name), target)));
    if (member !== undefined && !members.has(name)) members.set(name, member);
  }
  return members;
}

function memberOf(members: ReadonlyMap<string, Member>, name: string): Member {
  const member = members.get(name);
  if (member === undefined)
    throw refused(`${shown(name)} is not in the archive`, { hint: 'is this an archive of `docker save`?' });
  return member;
}

async function readMember(path: string, members: ReadonlyMap<string, Member>, name: string): Promise<Buffer> {
  const { offset, sizeBytes } = memberOf(members, name);
  if (sizeBytes > MAX_DOCUMENT_BYTES) throw refused(`${shown(name)} is too large`);
  return firstBytes(path, offset, sizeBytes);
}

async function firstBytes(path: string, offset: number, length: number): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  if (length > 0) for await (const chunk of readRange(path, offset, length)) parts.push(chunk);
  return Buffer.concat(parts);
}

async function readDocument(path: string): Promise<Buffer> {
  await using file = await openRegular(path);
  const { size } = await file.stat();
  if (size > MAX_DOCUMENT_BYTES) throw refused(`${path} is too large`);
  const bytes = Buffer.alloc(size);
  const { bytesRead } = await file.read(bytes, 0, size, 0);
  return bytes.subarray(0, bytesRead);
}

/** Bytes of a file, `length` or all. Links are followed: build tools put them into layouts. */
async function* readRange(
  path: string,
  offset: number,
  length: number | undefined,
): AsyncGenerator<Uint8Array> {
  if (length === 0) return;
  await using file = await openRegular(path);
  const end = length === undefined ? Number.POSITIVE_INFINITY : offset + length;
  for (let at = offset; at < end; ) {
    const chunk = Buffer.allocUnsafe(Math.min(READ_BYTES, end - at));
    const { bytesRead } = await file.read(chunk, 0, chunk.length, at);
    if (bytesRead === 0) return;
    at += bytesRead;
    yield chunk.subarray(0, bytesRead);
  }
}

/** Opening a pipe would wait for ever. */
async function openRegular(path: string): Promise<FileHandle> {
  let file: FileHandle;
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const { code = 'unknown error' } = error as NodeJS.ErrnoException;
    throw refused(`${path} cannot be opened (${code})`, { cause: error });
  }
  if ((await file.stat()).isFile()) return file;
  await file.close();
  throw refused(`${path} is no file`);
}

function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}
