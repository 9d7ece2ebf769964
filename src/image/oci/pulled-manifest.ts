/** Our own manifest, as a registry hands it over: everything that is used later is looked at here. */
import { CtError } from '../../core/errors.ts';
import { isObject } from '../../core/json.ts';
import { blobsOf, type ImageManifest } from '../manifest.ts';

/** A manifest lists some hundred packages. */
export const MAX_IMAGE_MANIFEST_BYTES = 16 * 1024 * 1024;
const MAX_ROOTFS_BYTES = 1024 ** 4;
const MAX_ENV = 1000;
const MAX_LIST = 100_000;

const KEYS = new Set(
  'schemaVersion name architecture rootfs kernel initramfs user env definitionDigest base packages npm inventory sbom lock local imported'.split(
    ' ',
  ),
);
const HEX = /^[0-9a-f]{64}$/;
const DIGEST = /^sha256:[0-9a-f]{64}$/;

/** The bytes that a manifest is stored as; its digest names the image. */
export function encodeManifest(manifest: ImageManifest): Buffer {
  return Buffer.from(`${JSON.stringify(manifest, undefined, 2)}\n`);
}

/**
 * Reads a manifest of a stranger, who may have made it with any name and any numbers. It must be spelled as we spell it, so
 * that its digest is that of what is stored. Throws REGISTRY_REFUSED.
 */
export function parsePulledManifest(bytes: Buffer): ImageManifest {
  let value: unknown;
  try {
    if (bytes.length > MAX_IMAGE_MANIFEST_BYTES) throw new Error('too large');
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    throw refused('it is no JSON, or too large');
  }
  const problem = problemOf(value);
  if (problem !== undefined) throw refused(problem);
  const manifest = value as ImageManifest;
  if (!encodeManifest(manifest).equals(bytes)) throw refused('it is not spelled as manifests are');
  if (blobsOf(manifest).some((ref) => !isBlobRef(ref))) throw refused('a part of it has no digest and size');
  return manifest;
}

function problemOf(value: unknown): string | undefined {
  if (!isObject(value)) return 'it is no object';
  const unknown = Object.keys(value).find((key) => !KEYS.has(key));
  if (unknown !== undefined)
    return `its field ${JSON.stringify(unknown.slice(0, 60))} is not known to this version of ct`;
  if (value['schemaVersion'] !== 1) return 'it is of another version';
  if (value['architecture'] !== 'amd64') return 'it is for another architecture';
  if (!matches(value['name'], /^[a-z0-9][a-z0-9._-]{0,63}$/)) return 'it has no name';
  if (!matches(value['definitionDigest'], DIGEST)) return 'it has no digest of a definition';
  const { rootfs, kernel, initramfs, user, env } = value;
  if (!isObject(rootfs) || !isBlobRef(rootfs) || Number(rootfs['sizeBytes']) > MAX_ROOTFS_BYTES)
    return 'it has no root file system';
  if (!isVerity(rootfs['verity'], Number(rootfs['sizeBytes']))) return 'its hash tree has no sane figures';
  if (
    !isObject(kernel) ||
    !isBlobRef(kernel) ||
    !matches(kernel['version'], /^[A-Za-z0-9][\w.+~-]{0,127}$/)
  ) {
    return 'it has no kernel';
  }
  if (!isObject(initramfs) || !isBlobRef(initramfs)) return 'it has no initramfs';
  if (!isUser(user)) return 'it has no sane user';
  if (!isObject(env) || !isEnvironment(env)) return 'its environment is malformed';
  if (!isListOfRecords(value['packages'])) return 'its packages are malformed';
  if (value['npm'] !== undefined && !isListOfRecords(value['npm'])) return 'its npm packages are malformed';
  const { base, inventory, sbom, imported } = value;
  if (base !== undefined && !isListOfNames(base)) return 'what it extends is malformed';
  if (inventory !== undefined && (!isObject(inventory) || !isBlobRef(inventory)))
    return 'its inventory is malformed';
  if (sbom !== undefined) {
    if (!isObject(sbom)) return 'its SBOM is malformed';
    const { cyclonedx, spdx } = sbom;
    if (!isObject(cyclonedx) || !isBlobRef(cyclonedx) || !isObject(spdx) || !isBlobRef(spdx))
      return 'its SBOM is malformed';
  }
  if (imported !== undefined && !isObject(imported)) return 'what it was imported from is malformed';
  return undefined;
}

/** The figures go to the kernel's command line. */
function isVerity(value: unknown, sizeBytes: number): boolean {
  if (!isObject(value)) return false;
  const { dataBlocks, hashStartBlock } = value;
  return (
    value['algorithm'] === 'sha256' &&
    value['blockBytes'] === 4096 &&
    typeof dataBlocks === 'number' &&
    Number.isSafeInteger(dataBlocks) &&
    dataBlocks > 0 &&
    hashStartBlock === dataBlocks &&
    dataBlocks * 4096 <= sizeBytes &&
    matches(value['rootHash'], HEX) &&
    matches(value['salt'], HEX)
  );
}

function isUser(value: unknown): boolean {
  if (!isObject(value)) return false;
  return (
    matches(value['name'], /^[a-z][a-z0-9_-]{0,30}$/) &&
    isOrdinaryId(value['uid']) &&
    isOrdinaryId(value['gid']) &&
    (value['subordinateIds'] === undefined || value['subordinateIds'] === true) &&
    matches(value['home'], /^\/home\/[a-z0-9][a-z0-9_-]{0,30}$/)
  );
}

function isOrdinaryId(value: unknown): boolean {
  return typeof value === 'number' && Number.isInteger(value) && value >= 1000 && value <= 65_533;
}

function isEnvironment(env: Record<string, unknown>): boolean {
  const entries = Object.entries(env);
  return (
    entries.length <= MAX_ENV &&
    entries.every(
      ([name, text]) => /^[A-Za-z_][A-Za-z0-9_]{0,127}$/.test(name) && matches(text, /^[^\0]{0,32768}$/s),
    )
  );
}

function isListOfRecords(value: unknown): boolean {
  return (
    Array.isArray(value) &&
    value.length <= MAX_LIST &&
    value.every((item) => isObject(item) && Object.values(item).every((field) => typeof field === 'string'))
  );
}

function isListOfNames(value: unknown): boolean {
  return (
    Array.isArray(value) &&
    value.length <= MAX_ENV &&
    value.every((item) => matches(item, /^[a-z0-9][a-z0-9._-]{0,63}$/))
  );
}

function isBlobRef(value: object): boolean {
  const { digest, sizeBytes } = value as { digest?: unknown; sizeBytes?: unknown };
  return (
    matches(digest, DIGEST) &&
    typeof sizeBytes === 'number' &&
    Number.isSafeInteger(sizeBytes) &&
    sizeBytes > 0
  );
}

function matches(value: unknown, pattern: RegExp): boolean {
  return typeof value === 'string' && pattern.test(value);
}

function refused(reason: string): CtError {
  return new CtError('REGISTRY_REFUSED', `the manifest of the image cannot be used: ${reason}`);
}
