/** Layers of an OCI image, applied one after the other to a tree ([specification](https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md)). */
import { createHash, type Hash } from 'node:crypto';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { constants, createGunzip, createZstdDecompress } from 'node:zlib';
import { CtError } from '../../core/errors.ts';
import { ByteSource } from '../import/byte-source.ts';
import type { ContentSpool } from '../import/content-spool.ts';
import { type FileTree, MAX_ENTRIES, splitPath } from '../import/file-tree.ts';
import { refused, shown } from '../import/refusal.ts';
import { readTar, type TarEntry } from './tar.ts';

const WHITEOUT = '.wh.';
const OPAQUE = '.wh..wh..opq';
/**
 * A layer may unpack to this many times its size, once it is beyond the second figure: programs and texts reach ten,
 * a bomb more than a thousand.
 */
const MAX_EXPANSION = 200;
const EXPANSION_CHECKED_FROM_BYTES = 64 * 1024 * 1024;
/** What zstd's own command line accepts without being told: 128 MiB of memory. */
const ZSTD_WINDOW_LOG_MAX = 27;
const OUTPUT_CHUNK_BYTES = 256 * 1024;

/** Directories may be named again and again, and cost time. */
const MAX_LAYER_ENTRIES = 2 * MAX_ENTRIES;

export type Compression = 'none' | 'gzip' | 'zstd';

export interface Layer {
  /** Its bytes as they are stored. Read once. */
  readonly open: () => AsyncIterable<Uint8Array>;
  readonly compression: Compression;
  /** Of the stored bytes; undefined where a format has none. */
  readonly digest: string | undefined;
  readonly sizeBytes: number;
  /** Of the archive in it. */
  readonly diffId: string;
}

export interface ApplyOptions {
  readonly tree: FileTree;
  readonly spool: ContentSpool;
  /** Most bytes that an archive may have, headers and all. */
  readonly maxArchiveBytes: number;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Applies layer `index` to the tree, and then knows whether it was the right one: digests are compared when it has been
 * read. Throws IMAGE_IMPORT_REFUSED, CANCELLED; the tree is of no use then.
 */
export async function applyLayer(layer: Layer, index: number, options: ApplyOptions): Promise<void> {
  const what = `layer ${index}`;
  const stored = new Meter(layer.sizeBytes, () => refused(`${what} is larger than its descriptor says`));
  const archive = new Meter(options.maxArchiveBytes, () =>
    refused(`${what} unpacks to more than ${options.maxArchiveBytes} bytes`, {
      hint: '`--max-size` allows more',
    }),
  );
  const consume = async (chunks: AsyncIterable<Uint8Array>): Promise<void> => {
    const checked = watch(archive.meter(chunks), () => {
      if (
        archive.bytes > EXPANSION_CHECKED_FROM_BYTES &&
        archive.bytes > MAX_EXPANSION * Math.max(1, stored.bytes)
      ) {
        throw refused(`${what} unpacks to more than ${MAX_EXPANSION} times its size`);
      }
      if (options.signal?.aborted) throw new CtError('CANCELLED', 'the import was cancelled');
    });
    const source = new ByteSource(checked, what);
    try {
      await applyArchive(source, index, options);
    } finally {
      await source.close();
    }
  };
  try {
    const source = Readable.from(stored.meter(layer.open()), { objectMode: false });
    if (layer.compression === 'none') await consume(source);
    else await pipeline(source, decompressor(layer.compression), consume);
  } catch (error) {
    if (error instanceof CtError) throw error;
    const code = String((error as NodeJS.ErrnoException).code ?? '');
    if (!code.startsWith('Z_') && !code.startsWith('ZSTD_') && !code.startsWith('ERR_ZLIB')) throw error;
    throw refused(`${what} cannot be unpacked: its ${layer.compression} data is damaged`, { cause: error });
  }
  if (stored.bytes !== layer.sizeBytes) throw refused(`${what} is smaller than its descriptor says`);
  if (layer.digest !== undefined && stored.digest() !== layer.digest) {
    throw refused(`${what} does not have the digest ${layer.digest}`);
  }
  if (archive.digest() !== layer.diffId) {
    throw refused(`${what} does not have the diff id ${layer.diffId} of the image's configuration`);
  }
}

function decompressor(compression: 'gzip' | 'zstd'): NodeJS.ReadWriteStream {
  if (compression === 'gzip') return createGunzip({ chunkSize: OUTPUT_CHUNK_BYTES });
  return createZstdDecompress({
    chunkSize: OUTPUT_CHUNK_BYTES,
    params: { [constants.ZSTD_d_windowLogMax]: ZSTD_WINDOW_LOG_MAX },
  });
}

async function applyArchive(source: ByteSource, index: number, { tree, spool }: ApplyOptions): Promise<void> {
  let entries = 0;
  await readTar(source, async (entry, read) => {
    entries += 1;
    if (entries > MAX_LAYER_ENTRIES)
      throw refused(`layer ${index} has more than ${MAX_LAYER_ENTRIES} entries`);
    if (applyWhiteout(entry, index, tree)) return;
    switch (entry.kind) {
      case 'directory':
        tree.addDirectory(entry.path, entry, index);
        return;
      case 'symlink':
        tree.addSymlink(entry.path, entry.target, entry, index);
        return;
      case 'hardlink':
        tree.addHardLink(entry.path, entry.target, index);
        return;
      case 'file': {
        spool.expect(entry.sizeBytes);
        const offset = spool.position;
        await read((piece) => spool.write(piece));
        const data = { offset, sizeBytes: entry.sizeBytes };
        tree.addFile(entry.path, entry, data, index, entry.capabilities);
        return;
      }
      default:
        // The VM mounts its own /dev, so those there would never be seen.
        if (splitPath(entry.path)[0] === 'dev') return;
        throw refused(`${shown(entry.path)} is a ${entry.kind}, which no image may have`);
    }
  });
}

/** Whether the entry says that something is not there any more. */
function applyWhiteout(entry: TarEntry, index: number, tree: FileTree): boolean {
  const names = splitPath(entry.path);
  const special = names.findIndex((name) => name.startsWith(WHITEOUT));
  if (special === -1) return false;
  const name = names[special] ?? '';
  if (special !== names.length - 1 || entry.kind !== 'file' || entry.sizeBytes !== 0) {
    throw refused(`${shown(entry.path)} has the name of a whiteout and is none`);
  }
  const directory = names.slice(0, -1).join('/');
  if (name === OPAQUE) tree.whiteOutAll(directory, index);
  else if (name.startsWith(`${WHITEOUT}${WHITEOUT}`))
    throw refused(`${shown(entry.path)} is an unknown whiteout`);
  else tree.whiteOut(directory, name.slice(WHITEOUT.length), index);
  return true;
}

/** Counts and hashes what passes. */
class Meter {
  readonly #hash: Hash = createHash('sha256');
  readonly #maxBytes: number;
  readonly #tooMany: () => Error;
  bytes = 0;

  constructor(maxBytes: number, tooMany: () => Error) {
    this.#maxBytes = maxBytes;
    this.#tooMany = tooMany;
  }

  async *meter(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of chunks) {
      this.bytes += chunk.length;
      if (this.bytes > this.#maxBytes) throw this.#tooMany();
      this.#hash.update(chunk);
      yield chunk;
    }
  }

  digest(): string {
    return `sha256:${this.#hash.digest('hex')}`;
  }
}

async function* watch(chunks: AsyncIterable<Uint8Array>, check: () => void): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    check();
    yield chunk;
  }
}
