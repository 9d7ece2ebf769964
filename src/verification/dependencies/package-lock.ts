/** Lock files of npm (package-lock.json, versions 2 and 3): which packages, with what digest, from where. */
import { isObject } from '../../core/json.ts';
import { parseBoundedJson } from './bounded-json.ts';

/** Peer-controlled. */
const MAX_PACKAGES = 20_000;
const MAX_TEXT = 4096;
const MAX_DEPTH = 200;
/** Where nothing says from where a package is, npm asks for `name@version`, which could be any address. */
const NAME = /^(?:@[a-z0-9~-][a-z0-9._~-]*\/)?[a-z0-9~_-][a-z0-9._~-]*$/i;
const VERSION = /^\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?$/;

export interface LockedPackage {
  readonly name: string;
  readonly version: string;
  /** As npm and its registry write it: `sha512-<base64>`; undefined if there is none that counts. */
  readonly integrity: string | undefined;
  /** Undefined: from the registry that npm is configured for. */
  readonly resolved: string | undefined;
}

/** Throws an Error saying why it cannot be judged. Packages of the project itself are left out. */
export function parsePackageLock(bytes: Buffer): readonly LockedPackage[] {
  const document = parseBoundedJson(bytes);
  if (!isObject(document)) throw new Error('it is no object');
  const version = document['lockfileVersion'];
  if (version !== 2 && version !== 3) {
    throw new Error('it is not of lockfileVersion 2 or 3; npm 7 and later write them');
  }
  const entries = document['packages'];
  if (!isObject(entries)) throw new Error('it has no `packages`');
  const paths = Object.keys(entries);
  if (paths.length > MAX_PACKAGES) throw new Error(`it has more than ${MAX_PACKAGES} packages`);
  const found: LockedPackage[] = [];
  for (const path of paths) {
    const entry = entries[path];
    if (!isObject(entry) || path.length > MAX_TEXT) throw new Error('a package is no object');
    const name = path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length);
    if (!/(^|\/)node_modules\//.test(path)) {
      // The project, or a part of it that lies in the tree.
      if (path.split('/').includes('..') || path.startsWith('/'))
        throw new Error(`${path} lies outside of the tree`);
      continue;
    }
    if (entry['link'] === true) {
      const target = entry['resolved'];
      if (typeof target !== 'string' || /^(\/|[a-z+]+:)/i.test(target) || target.split('/').includes('..')) {
        throw new Error(`${name} is a link out of the tree`);
      }
      continue;
    }
    // npm installs what the archive of such a package lists, instead of what is listed here.
    if (entry['hasShrinkwrap'] === true) throw new Error(`${name} has a lock file of its own`);
    // One that is bundled as well: what the archive above it does not hold, npm fetches.
    found.push(packageOf(name, entry));
  }
  if (document['dependencies'] !== undefined) {
    requireSameInOlderPart(document['dependencies'], found, entries);
  }
  return found;
}

function packageOf(path: string, entry: Record<string, unknown>): LockedPackage {
  const name = entry['name'] ?? path;
  const version = entry['version'];
  const { integrity, resolved } = entry as { integrity?: unknown; resolved?: unknown };
  if (!isText(name) || !NAME.test(name)) throw new Error(`${path} has no name that packages have`);
  if (!isText(version) || !VERSION.test(version)) throw new Error(`${path} has no version`);
  if (resolved !== undefined && !isText(resolved)) throw new Error(`${path} comes from nowhere`);
  return { name, version, integrity: countingDigest(integrity), resolved };
}

/** One digest, and that of SHA-512: of several, the weakest could be what is compared. */
function countingDigest(integrity: unknown): string | undefined {
  if (typeof integrity !== 'string' || !/^sha512-[A-Za-z0-9+/]{86}==$/.test(integrity)) return undefined;
  return integrity;
}

/** npm 6 reads another part of a lock file: it must not say anything else. */
function requireSameInOlderPart(
  dependencies: unknown,
  packages: readonly LockedPackage[],
  entries: Record<string, unknown>,
): void {
  const known = new Set(
    packages.map(({ version, integrity, resolved }) => `${version} ${integrity} ${resolved}`),
  );
  let count = 0;
  const visit = (level: unknown, depth: number): void => {
    if (!isObject(level) || depth > MAX_DEPTH) throw new Error('its `dependencies` are no object');
    for (const [name, entry] of Object.entries(level)) {
      if (!isObject(entry) || ++count > MAX_PACKAGES) throw new Error('its `dependencies` are no packages');
      const { version, integrity, resolved } = entry as Record<string, unknown>;
      const own =
        typeof version === 'string' && version.startsWith('file:') && isOfTree(version.slice(5), entries);
      if (!own && !known.has(`${version} ${countingDigest(integrity)} ${resolved}`)) {
        throw new Error(`its \`dependencies\` have another ${name} than its \`packages\``);
      }
      if (entry['dependencies'] !== undefined) visit(entry['dependencies'], depth + 1);
    }
  };
  visit(dependencies, 0);
}

function isOfTree(path: string, entries: Record<string, unknown>): boolean {
  return Object.hasOwn(entries, path) && !path.split('/').includes('..');
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value.length > 0 && value.length <= MAX_TEXT;
}
