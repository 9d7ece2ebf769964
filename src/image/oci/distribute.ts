/**
 * Images in registries: an OCI artifact (image-spec v1.1, artifactType) whose configuration is our manifest and whose
 * layers are the parts that it names. Signatures and SBOMs refer to it (`subject`); in registries that keep no list of
 * what refers to what, the list is the index with the tag `sha256-<hex>`, as the specification has it.
 */
import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { CtError } from '../../core/errors.ts';
import { isObject } from '../../core/json.ts';
import { MAX_BUNDLE_BYTES, parseBundle } from '../../verification/bundle.ts';
import { openBuild } from '../build.ts';
import type { BlobRef, ImageManifest } from '../manifest.ts';
import { ImageSignatures, MAX_IMAGE_SIGNATURES } from '../signatures.ts';
import { ImageStore } from '../store.ts';
import { parseJson } from './documents.ts';
import { encodeManifest, MAX_IMAGE_MANIFEST_BYTES, parsePulledManifest } from './pulled-manifest.ts';
import type { Reference } from './reference.ts';
import { OCI_INDEX, OCI_MANIFEST, type Registry } from './registry.ts';

export const IMAGE_ARTIFACT_TYPE = 'application/vnd.ct.image.v1';
const IMAGE_MANIFEST_TYPE = 'application/vnd.ct.image.manifest.v1+json';
const BUNDLE_TYPE = 'application/vnd.dev.sigstore.bundle.v0.3+json';
const EMPTY_TYPE = 'application/vnd.oci.empty.v1+json';
const EMPTY = Buffer.from('{}');
const MAX_REFERRERS = 1000;
/** Of all signatures of an image together; one has some kilobytes, one with an SBOM some megabytes. */
const MAX_SIGNATURES_BYTES = 64 * 1024 * 1024;

interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
  readonly artifactType?: string;
  readonly annotations?: Readonly<Record<string, string>>;
}

export interface TransferProgress {
  /** `root file system`, … */
  readonly what: string;
  /** Of the whole transfer. */
  readonly doneBytes: number;
  readonly totalBytes: number;
}

export interface TransferOptions {
  readonly registry: Registry;
  readonly reference: Reference;
  readonly ctHome: string;
  readonly progress?: (event: TransferProgress) => void;
  readonly signal?: AbortSignal | undefined;
}

export interface PushedImage {
  /** Of the manifest; names the image. */
  readonly digest: string;
  /** Of the OCI manifest; names it in the registry. */
  readonly registryDigest: string;
  readonly signatures: number;
}

interface Part {
  readonly ref: BlobRef;
  readonly mediaType: string;
  readonly title: string;
}

/** Parts in the order in which they lie in the registry. */
function partsOf(manifest: ImageManifest): readonly Part[] {
  const { rootfs, kernel, initramfs, inventory, sbom } = manifest;
  return [
    { ref: rootfs, mediaType: 'application/vnd.ct.image.rootfs.v1.erofs', title: 'rootfs.erofs' },
    { ref: kernel, mediaType: 'application/vnd.ct.image.kernel.v1', title: 'vmlinuz' },
    { ref: initramfs, mediaType: 'application/vnd.ct.image.initramfs.v1', title: 'initramfs' },
    ...(inventory
      ? [{ ref: inventory, mediaType: 'application/vnd.ct.image.inventory.v1+json', title: 'inventory.json' }]
      : []),
    ...(sbom
      ? [
          { ref: sbom.cyclonedx, mediaType: 'application/vnd.cyclonedx+json', title: 'sbom.cdx.json' },
          { ref: sbom.spdx, mediaType: 'application/spdx+json', title: 'sbom.spdx.json' },
        ]
      : []),
  ];
}

/**
 * Uploads what the registry has not, then the manifest under the tag, then what refers to it. A push that breaks leaves
 * parts that nothing refers to, and the tag as it was. Throws REGISTRY_*, IMAGE_NOT_FOUND, IMAGE_CORRUPT.
 */
export async function pushImage(name: string, options: TransferOptions): Promise<PushedImage> {
  const { registry, reference, ctHome, progress = () => {} } = options;
  if (reference.tag === undefined) {
    throw new CtError('USAGE', 'an image is pushed to a tag, not to a digest');
  }
  const store = new ImageStore(ctHome);
  const stored = await store.find(name);
  if (stored === undefined) {
    throw new CtError('IMAGE_NOT_FOUND', `no image ${name} is stored`, {
      hint: '`ct image ls` lists those that are',
    });
  }
  const manifest = await store.manifest(stored.digest);
  const manifestBytes = encodeManifest(manifest);
  if (sha256(manifestBytes) !== stored.digest) {
    throw new CtError('IMAGE_CORRUPT', `the manifest of ${name} was not written by this version of ct`);
  }
  const parts = partsOf(manifest);
  const totalBytes = parts.reduce((sum, { ref }) => sum + ref.sizeBytes, 0);
  let doneBytes = 0;
  for (const { ref, title } of parts) {
    const path = await store.checkedBlobPath(ref);
    if (!(await registry.hasBlob(ref.digest))) {
      await using file = await open(path, 'r');
      const read = async (offset: number, length: number): Promise<Buffer> => {
        const bytes = Buffer.allocUnsafe(length);
        const { bytesRead } = await file.read(bytes, 0, length, offset);
        return bytes.subarray(0, bytesRead);
      };
      await registry.putBlob({ ...ref, read }, (bytes) =>
        progress({ what: title, doneBytes: doneBytes + bytes, totalBytes }),
      );
    }
    doneBytes += ref.sizeBytes;
    progress({ what: title, doneBytes, totalBytes });
  }
  const config = await putSmall(registry, manifestBytes, IMAGE_MANIFEST_TYPE);
  const layers = parts.map(({ ref, mediaType, title }) => ({
    mediaType,
    digest: ref.digest,
    size: ref.sizeBytes,
    annotations: { 'org.opencontainers.image.title': title },
  }));
  const document = json({
    schemaVersion: 2,
    mediaType: OCI_MANIFEST,
    artifactType: IMAGE_ARTIFACT_TYPE,
    config,
    layers,
    annotations: { 'org.opencontainers.image.title': manifest.name },
  });
  await registry.putManifest(reference.tag, document);
  const subject = { mediaType: OCI_MANIFEST, digest: sha256(document), size: document.length };
  for (const { mediaType, digest, size } of layers.filter(
    (layer) => layer.mediaType.includes('cyclonedx') || layer.mediaType.includes('spdx'),
  )) {
    await putReferrer(registry, subject, { mediaType, digest, size }, {});
  }
  const bundles = await new ImageSignatures(ctHome).list(stored.digest);
  for (const bundle of bundles) {
    const layer = await putSmall(registry, bundle, BUNDLE_TYPE);
    const predicateType = predicateTypeOf(bundle);
    await putReferrer(registry, subject, layer, {
      'dev.sigstore.bundle.content': 'dsse-envelope',
      ...(predicateType === undefined ? {} : { 'dev.sigstore.bundle.predicateType': predicateType }),
    });
  }
  return { digest: stored.digest, registryDigest: subject.digest, signatures: bundles.length };
}

/** What a bundle says that it is about, for tools that list what refers to an image; nobody has verified it. */
function predicateTypeOf(bundle: Uint8Array): string | undefined {
  try {
    const { content } = parseBundle(bundle);
    if (content.$case !== 'dsseEnvelope') return undefined;
    const statement: unknown = JSON.parse(content.dsseEnvelope.payload.toString('utf8'));
    const type = isObject(statement) ? statement['predicateType'] : undefined;
    return typeof type === 'string' ? type : undefined;
  } catch {
    return undefined;
  }
}

async function putSmall(registry: Registry, bytes: Buffer, mediaType: string): Promise<Descriptor> {
  const digest = sha256(bytes);
  if (!(await registry.hasBlob(digest))) {
    const read = async (offset: number, length: number): Promise<Buffer> =>
      bytes.subarray(offset, offset + length);
    await registry.putBlob({ digest, sizeBytes: bytes.length, read });
  }
  return { mediaType, digest, size: bytes.length };
}

/** An artifact about the image; its type is that of its only layer. */
async function putReferrer(
  registry: Registry,
  subject: Descriptor,
  layer: Descriptor,
  annotations: Readonly<Record<string, string>>,
): Promise<void> {
  const config = await putSmall(registry, EMPTY, EMPTY_TYPE);
  const document = json({
    schemaVersion: 2,
    mediaType: OCI_MANIFEST,
    artifactType: layer.mediaType,
    config,
    layers: [layer],
    subject,
    annotations,
  });
  const digest = sha256(document);
  const { tracksSubject } = await registry.putManifest(digest, document);
  if (tracksSubject) return;
  const tag = fallbackTag(subject.digest);
  const existing = await registry.manifest(tag, [OCI_INDEX]);
  const others =
    existing === undefined ? [] : referrersIn(existing.bytes).filter((each) => each.digest !== digest);
  const own: Descriptor = {
    mediaType: OCI_MANIFEST,
    digest,
    size: document.length,
    artifactType: layer.mediaType,
    annotations,
  };
  const index = json({ schemaVersion: 2, mediaType: OCI_INDEX, manifests: [...others, own] });
  await registry.putManifest(tag, index, OCI_INDEX);
}

function fallbackTag(digest: string): string {
  return digest.replace(':', '-');
}

export interface PulledImage {
  readonly manifest: ImageManifest;
  /** Of the manifest; names the image, here as where it was pushed. */
  readonly digest: string;
  readonly signatures: readonly Buffer[];
}

export interface PullOptions extends TransferOptions {
  /** The name that it has to have: what a registry hands over shall not take the place of another image. */
  readonly name: string;
  /**
   * Is asked before anything is fetched but manifest and signatures; throws to refuse. Returns what the image was made
   * from, if that was proved: without it, the next run builds an image that has a definition anew.
   */
  readonly verify?: (digest: string, signatures: readonly Buffer[]) => string | undefined;
}

/**
 * Fetches an image, compares every part with its digest, and only then lets its name stand for it. Parts that are here
 * already are not fetched. Throws REGISTRY_*, what `verify` throws, STORE_FULL, CANCELLED; images are as they were then.
 */
export async function pullImage(options: PullOptions): Promise<PulledImage> {
  const { registry, reference, ctHome, progress = () => {}, signal } = options;
  const fetched = await registry.manifest(reference.digest ?? reference.tag ?? 'latest');
  if (fetched === undefined) {
    throw new CtError(
      'REGISTRY_DENIED',
      `${reference.host} has no image ${reference.repository} of that tag or digest`,
    );
  }
  const { config, layers } = parseArtifact(fetched.bytes, fetched.mediaType);
  const bytes = await getSmall(registry, config, MAX_IMAGE_MANIFEST_BYTES);
  const manifest = parsePulledManifest(bytes);
  const digest = config.digest;
  if (manifest.name !== options.name) {
    throw new CtError('REGISTRY_REFUSED', `the image is called ${manifest.name}, not ${options.name}`, {
      hint: `\`--name ${manifest.name}\` says that it shall be stored under that name`,
    });
  }
  const parts = partsOf(manifest);
  for (const { ref } of parts) {
    if (!layers.some((layer) => layer.digest === ref.digest && layer.size === ref.sizeBytes)) {
      throw refused(`the artifact lacks ${ref.digest}, which its manifest names`);
    }
  }
  const signatures = await pullSignatures(registry, fetched.digest);
  const inputsDigest = options.verify?.(digest, signatures) ?? `pulled ${digest}`;

  await using place = await openBuild(
    {
      ctHome,
      signal,
      progress: ({ message }) => progress({ what: message, doneBytes: 0, totalBytes: 1 }),
    },
    () => {},
  );
  const { store, workDirectory } = place;
  const totalBytes = parts.reduce((sum, { ref }) => sum + ref.sizeBytes, 0);
  let doneBytes = 0;
  for (const { ref, title } of parts) {
    if (!(await isStored(store, ref))) {
      const path = join(workDirectory, 'part');
      await download(registry, ref, path, (bytes) =>
        progress({ what: title, doneBytes: doneBytes + bytes, totalBytes }),
      );
      const put = await store.putFile(path);
      if (put.digest !== ref.digest)
        throw refused(`${reference.host} sent other bytes than those of ${ref.digest}`);
    }
    doneBytes += ref.sizeBytes;
    progress({ what: title, doneBytes, totalBytes });
  }
  const own = new ImageSignatures(ctHome);
  for (const bundle of signatures) await own.add(digest, bundle);
  const stored = await store.putImage(manifest, inputsDigest, new Date());
  if (stored.digest !== digest)
    throw new CtError('INTERNAL', 'a pulled manifest has another digest once it is stored');
  return { manifest, digest, signatures };
}

async function isStored(store: ImageStore, ref: BlobRef): Promise<boolean> {
  try {
    await store.checkedBlobPath(ref);
    return true;
  } catch (error) {
    if (error instanceof CtError && error.code === 'IMAGE_CORRUPT') return false;
    throw error;
  }
}

async function download(
  registry: Registry,
  ref: BlobRef,
  path: string,
  onBytes: (bytes: number) => void,
): Promise<void> {
  await using file = await open(path, 'wx', 0o600);
  await registry.getBlob(ref, async (piece, offset) => {
    for (let at = 0; at < piece.length; )
      at += (await file.write(piece, at, piece.length - at, offset + at)).bytesWritten;
    onBytes(offset + piece.length);
  });
}

/** Signatures that refer to the image. Those that are none are left out; whether one counts is for who verifies. */
async function pullSignatures(registry: Registry, registryDigest: string): Promise<readonly Buffer[]> {
  const list =
    (await registry.referrers(registryDigest)) ??
    (await registry.manifest(fallbackTag(registryDigest), [OCI_INDEX]))?.bytes;
  if (list === undefined) return [];
  const bundles: Buffer[] = [];
  let bytes = 0;
  for (const referrer of referrersIn(list)) {
    if (referrer.artifactType !== BUNDLE_TYPE || bundles.length >= MAX_IMAGE_SIGNATURES) continue;
    const fetched = await registry.manifest(referrer.digest);
    if (fetched === undefined) continue;
    const document = parseDocument(fetched.bytes, 'a signature');
    const subject = document['subject'];
    const [layer] = descriptors(document['layers'], 'the layers of a signature');
    if (!isObject(subject) || subject['digest'] !== registryDigest || layer?.mediaType !== BUNDLE_TYPE)
      continue;
    bytes += layer.size;
    if (bytes > MAX_SIGNATURES_BYTES)
      throw refused(`the signatures have more than ${MAX_SIGNATURES_BYTES} bytes`);
    const bundle = await getSmall(registry, layer, MAX_BUNDLE_BYTES);
    try {
      parseBundle(bundle);
      bundles.push(bundle);
    } catch (error) {
      if (!(error instanceof CtError)) throw error;
    }
  }
  return bundles;
}

async function getSmall(registry: Registry, { digest, size }: Descriptor, maxBytes: number): Promise<Buffer> {
  if (size > maxBytes) throw refused(`${digest} has ${size} bytes, more than ${maxBytes}`);
  const parts: Uint8Array[] = [];
  await registry.getBlob(
    { digest, sizeBytes: size },
    async (piece) => void parts.push(Uint8Array.from(piece)),
  );
  return Buffer.concat(parts);
}

function parseArtifact(
  bytes: Buffer,
  mediaType: string,
): { readonly config: Descriptor; readonly layers: readonly Descriptor[] } {
  const document = parseDocument(bytes, 'the answer');
  const isManifest =
    document['mediaType'] === OCI_MANIFEST && mediaType === OCI_MANIFEST && document['schemaVersion'] === 2;
  const [config] = descriptors([document['config']], 'the configuration');
  if (
    !isManifest ||
    document['artifactType'] !== IMAGE_ARTIFACT_TYPE ||
    config?.mediaType !== IMAGE_MANIFEST_TYPE
  ) {
    throw new CtError('REGISTRY_REFUSED', 'what the registry has is no image of ct', {
      hint: 'container images become images of ct by `ct image import`',
    });
  }
  return { config, layers: descriptors(document['layers'], 'the layers') };
}

function referrersIn(index: Buffer): readonly Descriptor[] {
  return descriptors(parseDocument(index, 'the list of referrers')['manifests'], 'the referrers');
}

function descriptors(value: unknown, what: string): readonly Descriptor[] {
  if (!Array.isArray(value) || value.length > MAX_REFERRERS)
    throw refused(`${what} are no list, or too many`);
  return value.map((item) => {
    if (!isObject(item)) throw refused(`${what} are malformed`);
    const { mediaType, digest, size, artifactType } = item;
    const sane =
      typeof mediaType === 'string' &&
      typeof digest === 'string' &&
      /^sha256:[0-9a-f]{64}$/.test(digest) &&
      typeof size === 'number' &&
      Number.isSafeInteger(size) &&
      size >= 0;
    if (!sane) throw refused(`${what} are malformed`);
    return { mediaType, digest, size, ...(typeof artifactType === 'string' ? { artifactType } : {}) };
  });
}

function parseDocument(bytes: Buffer, what: string): Record<string, unknown> {
  try {
    return parseJson(bytes, what);
  } catch (cause) {
    throw new CtError('REGISTRY_REFUSED', `${what} is no JSON object`, { cause });
  }
}

function json(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value));
}

function sha256(bytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}

function refused(reason: string): CtError {
  return new CtError('REGISTRY_REFUSED', reason);
}
