/** From a foreign image to a stored one: reads it, makes it one that a VM starts from, and stores it. */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { CtError, toCtError } from '../../core/errors.ts';
import { openBuild } from '../build.ts';
import { importProvenanceOf, writeProvenance } from '../image-provenance.ts';
import type { ImageManifest } from '../manifest.ts';
import { applyLayer } from '../oci/layers.ts';
import { type OpenedImage, openDockerArchive, openLayout } from '../oci/layout.ts';
import { IMAGE_EPOCH } from '../recipe.ts';
import { appendHashTree } from '../verity.ts';
import { ContentSpool } from './content-spool.ts';
import { openDisk } from './disk.ts';
import { writeErofs } from './erofs.ts';
import { FileTree } from './file-tree.ts';
import { findPackages } from './packages.ts';
import { dropPrivileges, jobUser, makeMountPoints, privilegedFiles } from './prepare.ts';
import { refused, shown } from './refusal.ts';

/** Of all files together; `debian-12` has 450 MB. */
export const DEFAULT_MAX_BYTES = 16 * 1024 ** 3;
/** Part of what an import is made from: raise it when the same source would give another file system. */
const IMPORT_RECIPE = 1;
const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;
const ENV_NAME = /^[A-Za-z_][A-Za-z0-9_]{0,127}$/;
const BASE_ENV: Readonly<Record<string, string>> = { PATH: '/usr/local/bin:/usr/bin:/bin', LANG: 'C.UTF-8' };
/** The VM sets them. */
const OWN_ENV = new Set(['HOME', 'HOSTNAME', 'USER', 'LOGNAME', 'SHELL', 'PWD']);
const SHOWN_FILES = 20;

export interface ImportSource {
  readonly kind: 'oci' | 'docker-archive' | 'raw' | 'qcow2';
  readonly path: string;
  /** Of the image in a layout or an archive; the only one if absent. */
  readonly tag?: string | undefined;
  /** Of a disk, from 1; the only one with a file system if absent. */
  readonly partition?: number | undefined;
}

export interface ImportOptions {
  readonly source: ImportSource;
  readonly name: string;
  readonly ctHome: string;
  /** A stored image, whose kernel and initramfs it gets. */
  readonly machine: Pick<ImageManifest, 'kernel' | 'initramfs'>;
  /** Account of the image that steps run as, by name or uid; what the image says if absent. */
  readonly user?: string | undefined;
  /** Takes images with set-uid files and file capabilities, without these rights. */
  readonly allowSetuid: boolean;
  readonly maxBytes?: number;
  readonly progress?: (message: string) => void;
  readonly signal?: AbortSignal | undefined;
}

export interface ImportedImage {
  readonly manifest: ImageManifest;
  /** Of the manifest; names the image. */
  readonly digest: string;
  /** Files that lost rights; empty unless `allowSetuid`. */
  readonly privileged: readonly string[];
}

/**
 * `oci:DIR[:TAG]`, `docker-archive:FILE[:NAME:TAG]`, `raw:FILE` or `qcow2:FILE`; a disk's partition may follow as
 * `:pN`. Throws USAGE.
 */
export function parseImportSource(text: string): ImportSource {
  const [, kind, rest] = /^(oci|docker-archive|raw|qcow2):(.+)$/s.exec(text) ?? [];
  if (kind === 'oci' || kind === 'docker-archive') {
    const [path = '', ...tag] = (rest ?? '').split(':');
    if (path !== '') return { kind, path, tag: tag.length === 0 ? undefined : tag.join(':') };
  }
  if (kind === 'raw' || kind === 'qcow2') {
    const [, path = '', number] = /^(.+?)(?::p([1-9][0-9]{0,2}))?$/s.exec(rest ?? '') ?? [];
    if (path !== '') return { kind, path, partition: number === undefined ? undefined : Number(number) };
  }
  throw new CtError('USAGE', `${JSON.stringify(text)} is nothing that can be imported`, {
    hint: 'name it as oci:DIR[:TAG], docker-archive:FILE[:NAME:TAG], raw:FILE or qcow2:FILE',
  });
}

/**
 * Imports it and lets `name` stand for it. The same source always gives the same image. Needs neither root nor a
 * namespace, and runs nothing of what it reads. Throws IMAGE_IMPORT_REFUSED, IMAGE_BUILD_FAILED, REQUIREMENT_MISSING,
 * STORE_FULL, USAGE, CANCELLED; images are as they were then.
 */
export async function importImage(options: ImportOptions): Promise<ImportedImage> {
  try {
    return await importNamed(options);
  } catch (error) {
    if (options.signal?.aborted && !(error instanceof CtError && error.code === 'CANCELLED')) {
      throw new CtError('CANCELLED', 'the import was cancelled', { cause: error });
    }
    throw toCtError(error);
  }
}

async function importNamed(options: ImportOptions): Promise<ImportedImage> {
  const { name, signal, progress = () => {} } = options;
  if (!NAME.test(name)) {
    throw new CtError('USAGE', `an image cannot be called ${JSON.stringify(name)}`, {
      hint: 'lower case letters, digits, `.`, `_` and `-`, 64 at most',
    });
  }
  const startedAt = new Date();
  await using cleanup = new AsyncDisposableStack();
  const { store, workDirectory } = cleanup.use(
    await openBuild(
      { ctHome: options.ctHome, signal, progress: ({ message }) => progress(message) },
      () => {},
    ),
  );
  const maxBytes = options.maxBytes ?? DEFAULT_MAX_BYTES;
  const spool = cleanup.use(await ContentSpool.create(join(workDirectory, 'contents'), maxBytes));
  const tree = new FileTree();
  const { digest: sourceDigest, config } = await readSource(options, tree, spool, maxBytes);

  const privileged = privilegedFiles(tree);
  if (privileged.length > 0 && !options.allowSetuid) throw privilegesRefused(privileged);
  dropPrivileges(tree);
  const packages = await findPackages(tree, spool);
  await makeMountPoints(tree, spool);
  const user = await jobUser(tree, spool, options.user ?? config?.user ?? '');
  if (options.user !== undefined && ![user.name, String(user.uid)].includes(options.user)) {
    throw new CtError('USAGE', `the image has no account ${options.user} that a job can run as`, {
      hint: 'its uid and gid must be between 1000 and 65533, and its home directly below /home',
    });
  }
  progress('writing the file system');
  const path = join(workDirectory, 'rootfs');
  const definitionDigest = sha256(
    JSON.stringify([IMPORT_RECIPE, options.source.kind, sourceDigest, options.allowSetuid, user]),
  );
  await writeErofs({
    root: tree.root,
    spool,
    path,
    timeSeconds: IMAGE_EPOCH,
    uuid: '63740000000040008000000000000001',
    signal,
  });
  progress('computing the hash tree');
  const verity = await appendHashTree(path, sha256(`ct dm-verity salt import ${definitionDigest}`), signal);
  progress('storing the image');
  const manifest: ImageManifest = {
    schemaVersion: 1,
    name,
    architecture: 'amd64',
    rootfs: { ...(await store.putFile(path)), verity },
    kernel: options.machine.kernel,
    initramfs: options.machine.initramfs,
    user,
    env: environment(config?.env ?? []),
    definitionDigest: `sha256:${definitionDigest}`,
    packages,
    imported: {
      from: options.source.kind,
      digest: sourceDigest,
      entrypoint: config?.entrypoint ?? [],
      command: config?.command ?? [],
      workingDirectory: config?.workingDirectory ?? '',
    },
  };
  const finishedAt = new Date();
  const { digest } = await store.putImage(manifest, `imported ${definitionDigest}`, finishedAt, 'imported');
  if (manifest.imported) {
    const provenance = importProvenanceOf(name, manifest.imported, { startedAt, finishedAt });
    await writeProvenance(options.ctHome, digest, provenance);
  }
  return { manifest, digest, privileged };
}

interface Read {
  readonly digest: string;
  readonly config: OpenedImage['config'] | undefined;
}

async function readSource(
  { source, progress = () => {}, signal }: ImportOptions,
  tree: FileTree,
  spool: ContentSpool,
  maxBytes: number,
): Promise<Read> {
  if (source.kind === 'raw' || source.kind === 'qcow2') {
    progress('reading the disk');
    const { kind, path, partition } = source;
    return { digest: await openDisk(kind, path, { partition, tree, spool, signal }), config: undefined };
  }
  const open = source.kind === 'oci' ? openLayout : openDockerArchive;
  const opened = await open(source.path, source.tag);
  // Headers and padding of small files take more than the files.
  const maxArchiveBytes = 2 * maxBytes;
  for (const [index, layer] of opened.layers.entries()) {
    progress(`reading layer ${index + 1} of ${opened.layers.length}`);
    await applyLayer(layer, index, { tree, spool, maxArchiveBytes, signal });
  }
  return { digest: opened.digest, config: opened.config };
}

function environment(env: OpenedImage['config']['env']): Readonly<Record<string, string>> {
  const kept = env.filter(
    ([name, value]) => ENV_NAME.test(name) && !OWN_ENV.has(name) && !/[\n\0]/.test(value),
  );
  const all = { ...BASE_ENV, ...Object.fromEntries(kept) };
  return Object.fromEntries(Object.entries(all).sort(([a], [b]) => (a < b ? -1 : 1)));
}

function privilegesRefused(paths: readonly string[]): CtError {
  const listed = [...paths]
    .sort()
    .slice(0, SHOWN_FILES)
    .map((path) => `  ${shown(path)}`);
  const more = paths.length > SHOWN_FILES ? [`  and ${paths.length - SHOWN_FILES} more`] : [];
  return refused(
    `the image has set-uid or set-gid files, or file capabilities:\n${[...listed, ...more].join('\n')}`,
    { hint: '`--allow-setuid` takes the image without these rights: in a VM of ct they are without effect' },
  );
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
