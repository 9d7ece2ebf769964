/**
 * The JSON documents of OCI images (image-spec v1.1: index, manifest, configuration) and of Docker's, as far as an
 * image is made from them. All are of strangers: at most {@link MAX_DOCUMENT_BYTES}, read once, by these parsers.
 */
import { refused } from '../import/refusal.ts';
import type { Compression } from './layers.ts';

/** What registries accept of a manifest; configurations have some kilobytes. */
export const MAX_DOCUMENT_BYTES = 4 * 1024 * 1024;
/** Overlay file systems mount at most 128 or so. */
const MAX_LAYERS = 256;
const MAX_MANIFESTS = 1000;
const MAX_ENV = 1000;
const MAX_TEXT = 32 * 1024;

export const MEDIA_TYPES = {
  ociIndex: 'application/vnd.oci.image.index.v1+json',
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociConfig: 'application/vnd.oci.image.config.v1+json',
  dockerIndex: 'application/vnd.docker.distribution.manifest.list.v2+json',
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerConfig: 'application/vnd.docker.container.image.v1+json',
} as const;

const LAYER_TYPES: Readonly<Record<string, Compression>> = {
  'application/vnd.oci.image.layer.v1.tar': 'none',
  'application/vnd.oci.image.layer.v1.tar+gzip': 'gzip',
  'application/vnd.oci.image.layer.v1.tar+zstd': 'zstd',
  'application/vnd.docker.image.rootfs.diff.tar': 'none',
  'application/vnd.docker.image.rootfs.diff.tar.gzip': 'gzip',
};

export interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly sizeBytes: number;
  /** Of an index: `linux/amd64`. */
  readonly platform: string | undefined;
  /** `org.opencontainers.image.ref.name`: the tag. */
  readonly refName: string | undefined;
}

export interface ImageDocument {
  readonly config: Descriptor;
  readonly layers: readonly (Descriptor & { readonly compression: Compression })[];
}

export interface ImageConfig {
  /** `name`, `uid`, `name:group`, …; empty if there is none. */
  readonly user: string;
  readonly env: readonly (readonly [name: string, value: string])[];
  readonly entrypoint: readonly string[];
  readonly command: readonly string[];
  readonly workingDirectory: string;
  readonly diffIds: readonly string[];
}

/** JSON of at most {@link MAX_DOCUMENT_BYTES}; `what` names it in the message. */
export function parseJson(bytes: Uint8Array, what: string): Record<string, unknown> {
  if (bytes.length > MAX_DOCUMENT_BYTES) throw refused(`${what} has more than ${MAX_DOCUMENT_BYTES} bytes`);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    throw refused(`${what} is no JSON`); // the parser's words would quote the file
  }
  return record(value, what);
}

/** Descriptors of the manifests in an index. */
export function parseIndex(bytes: Uint8Array): readonly Descriptor[] {
  const index = parseJson(bytes, 'the index');
  checkVersion(index, [MEDIA_TYPES.ociIndex, MEDIA_TYPES.dockerIndex], 'the index');
  return list(index['manifests'], 'the manifests of the index', MAX_MANIFESTS).map((value) =>
    parseDescriptor(value, 'a descriptor of the index'),
  );
}

export function parseManifest(bytes: Uint8Array): ImageDocument {
  const manifest = parseJson(bytes, 'the manifest');
  checkVersion(manifest, [MEDIA_TYPES.ociManifest, MEDIA_TYPES.dockerManifest], 'the manifest');
  const config = parseDescriptor(manifest['config'], 'the configuration');
  if (config.mediaType !== MEDIA_TYPES.ociConfig && config.mediaType !== MEDIA_TYPES.dockerConfig) {
    throw refused('this is an artifact of another kind, no image: its configuration has another media type');
  }
  const layers = list(manifest['layers'], 'the layers', MAX_LAYERS).map((value, index) => {
    const layer = parseDescriptor(value, `layer ${index}`);
    const compression = Object.hasOwn(LAYER_TYPES, layer.mediaType)
      ? LAYER_TYPES[layer.mediaType]
      : undefined;
    if (compression === undefined) {
      throw refused(`layer ${index} has the media type ${JSON.stringify(layer.mediaType.slice(0, 100))}`, {
        hint: 'layers are tar archives, with gzip, with zstd or plain; those that lie elsewhere are not fetched',
      });
    }
    return { ...layer, compression };
  });
  return { config, layers };
}

export function parseConfig(bytes: Uint8Array): ImageConfig {
  const document = parseJson(bytes, 'the configuration');
  if (document['os'] !== 'linux' || document['architecture'] !== 'amd64') {
    throw refused('the image is not for linux/amd64');
  }
  const rootfs = record(document['rootfs'], 'rootfs of the configuration');
  if (rootfs['type'] !== 'layers') throw refused('the configuration has no layers as rootfs');
  const diffIds = list(rootfs['diff_ids'], 'the diff ids', MAX_LAYERS).map((value) =>
    digest(value, 'a diff id'),
  );
  const config = document['config'] == null ? {} : record(document['config'], 'config of the configuration');
  return {
    user: optionalText(config['User'], 'User'),
    env: optionalTexts(config['Env'], 'Env').map((line) => {
      const equals = line.indexOf('=');
      if (equals < 1) throw refused('a variable in Env has no name');
      return [line.slice(0, equals), line.slice(equals + 1)] as const;
    }),
    entrypoint: optionalTexts(config['Entrypoint'], 'Entrypoint'),
    command: optionalTexts(config['Cmd'], 'Cmd'),
    workingDirectory: optionalText(config['WorkingDir'], 'WorkingDir'),
    diffIds,
  };
}

/** `manifest.json` of `docker save`: which files of the archive make up which image. */
export function parseDockerManifest(bytes: Uint8Array): readonly {
  readonly config: string;
  readonly tags: readonly string[];
  readonly layers: readonly string[];
}[] {
  // A list at the top, which parseJson does not know.
  if (bytes.length > MAX_DOCUMENT_BYTES)
    throw refused(`manifest.json has more than ${MAX_DOCUMENT_BYTES} bytes`);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    throw refused('manifest.json is no JSON');
  }
  return list(value, 'manifest.json', MAX_MANIFESTS).map((item) => {
    const image = record(item, 'an image of manifest.json');
    return {
      config: text(image['Config'], 'Config'),
      tags: optionalTexts(image['RepoTags'], 'RepoTags'),
      layers: list(image['Layers'], 'Layers', MAX_LAYERS).map((layer) => text(layer, 'a layer')),
    };
  });
}

export function parseDescriptor(value: unknown, what: string): Descriptor {
  const descriptor = record(value, what);
  // The bytes would come from wherever a stranger says.
  if (descriptor['urls'] != null)
    throw refused(`${what} lies elsewhere, at URLs of its own; that is not followed`);
  const sizeBytes = descriptor['size'];
  if (typeof sizeBytes !== 'number' || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
    throw refused(`${what} has no size`);
  }
  const annotations = descriptor['annotations'] == null ? {} : record(descriptor['annotations'], what);
  const platform = descriptor['platform'] == null ? undefined : record(descriptor['platform'], what);
  const refName = annotations['org.opencontainers.image.ref.name'];
  return {
    mediaType: text(descriptor['mediaType'], `the media type of ${what}`),
    digest: digest(descriptor['digest'], what),
    sizeBytes,
    platform: platform === undefined ? undefined : `${platform['os']}/${platform['architecture']}`,
    refName: typeof refName === 'string' ? refName : undefined,
  };
}

function checkVersion(document: Record<string, unknown>, mediaTypes: readonly string[], what: string): void {
  if (document['schemaVersion'] !== 2) throw refused(`${what} is not of schema version 2`);
  const mediaType = document['mediaType'];
  // A document that is two things at once is one to some readers and the other to others.
  if (mediaType !== undefined && !mediaTypes.includes(String(mediaType))) {
    throw refused(`${what} says that it is ${JSON.stringify(String(mediaType).slice(0, 100))}`);
  }
  if ('manifests' in document && 'layers' in document)
    throw refused(`${what} is an index and a manifest at once`);
}

function record(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw refused(`${what} is no object`);
  return value as Record<string, unknown>;
}

function list(value: unknown, what: string, max: number): readonly unknown[] {
  if (!Array.isArray(value)) throw refused(`${what} are no list`);
  if (value.length > max) throw refused(`${what} are more than ${max}`);
  return value;
}

function text(value: unknown, what: string): string {
  if (typeof value !== 'string' || value.length > MAX_TEXT || value.includes('\0')) {
    throw refused(`${what} is no string, or too long`);
  }
  return value;
}

function optionalText(value: unknown, what: string): string {
  return value == null ? '' : text(value, what);
}

function optionalTexts(value: unknown, what: string): readonly string[] {
  return value == null ? [] : list(value, what, MAX_ENV).map((item) => text(item, what));
}

function digest(value: unknown, what: string): string {
  const found = text(value, `the digest of ${what}`);
  if (!/^sha256:[0-9a-f]{64}$/.test(found)) throw refused(`${what} has no SHA-256 digest`);
  return found;
}
