/**
 * The inventory of an image: every file with the package that it came with, and every package with its source and its
 * licences. It is what SBOMs and comparisons of images are made from, and what tells whether an image holds anything that
 * its definition does not account for.
 */
import { posix } from 'node:path';
import { CtError } from '../core/errors.ts';
import type { ImageDefinition, NpmPackage } from './definition.ts';
import { byName, type LockedPackage, type Package, pin } from './packages.ts';
import { declaredLicences } from './sbom/licences.ts';
import { parseStanzas } from './sources.ts';
import type { Tree, TreeEntry } from './tree.ts';

export interface InventoryPackage extends LockedPackage {
  /** As its copyright file names them, where that is machine-readable (DEP 5). */
  readonly licences?: readonly string[];
}

export interface InventoryNpmPackage {
  readonly name: string;
  readonly version: string;
  /** Of its archive; absent for one that another brings along. */
  readonly integrity?: string;
  /** As its package.json says it. */
  readonly licence?: string;
}

export interface InventoryFile extends TreeEntry {
  /** `deb:NAME` or `npm:NAME`; absent for what a maintainer script or the build made. */
  readonly owner?: string;
}

export interface Inventory {
  readonly schemaVersion: 1;
  /** By name. */
  readonly packages: readonly InventoryPackage[];
  readonly npm: readonly InventoryNpmPackage[];
  /** By path. */
  readonly files: readonly InventoryFile[];
}

const NODE_MODULES = '/usr/local/lib/node_modules/';

/** Throws IMAGE_BUILD_FAILED if the tree has other packages than `packages`. */
export function takeInventory(
  tree: Tree,
  packages: readonly LockedPackage[],
  npm: readonly NpmPackage[],
): Inventory {
  compareInstalled(installedPackages(tree.metadata('/var/lib/dpkg/status') ?? ''), packages);
  const links = new Map(
    tree.entries.flatMap(({ path, target }) => (target === undefined ? [] : [[path, target]])),
  );
  const owners = packageOwners(tree, packages, links);
  return {
    schemaVersion: 1,
    packages: [...packages].sort(byName).map((entry) => {
      const text = tree.metadata(canonical(`/usr/share/doc/${entry.name}/copyright`, links));
      const licences = text === undefined ? undefined : declaredLicences(text);
      return licences === undefined ? entry : { ...entry, licences };
    }),
    npm: npmPackages(tree, npm),
    files: tree.entries.map((entry) => {
      const owner = owners.get(entry.path) ?? npmOwner(entry);
      // SHA-1 is for SPDX, which wants it of files that it lists: those of no package.
      const { sha1, ...rest } = entry;
      if (owner !== undefined) return { ...rest, owner };
      return sha1 === undefined ? rest : { ...rest, sha1 };
    }),
  };
}

/** Those that dpkg has as installed; of a status file (deb-status). */
export function installedPackages(status: string): readonly Package[] {
  return parseStanzas(status)
    .filter((stanza) => stanza.get('status') === 'install ok installed')
    .map((stanza) => ({
      name: stanza.get('package') ?? '',
      version: stanza.get('version') ?? '',
      architecture: stanza.get('architecture') ?? '',
    }));
}

function compareInstalled(installed: readonly Package[], wanted: readonly Package[]): void {
  const [there, asked] = [installed, wanted].map(
    (list) => new Set(list.map((entry) => `${pin(entry)}:${entry.architecture}`)),
  );
  const missing = [...(asked ?? [])].filter((entry) => !there?.has(entry));
  const more = [...(there ?? [])].filter((entry) => !asked?.has(entry));
  if (missing.length + more.length === 0) return;
  const parts = [
    missing.length > 0 ? `without ${missing.sort().join(', ')}` : undefined,
    more.length > 0 ? `with ${more.sort().join(', ')}, which was not asked for` : undefined,
  ];
  throw new CtError(
    'IMAGE_BUILD_FAILED',
    `the image has other packages than it should have: ${parts.filter((part) => part !== undefined).join('; ')}`,
  );
}

/** Path → owner, of dpkg's lists of files. */
function packageOwners(
  tree: Tree,
  packages: readonly LockedPackage[],
  links: ReadonlyMap<string, string>,
): ReadonlyMap<string, string> {
  const diverted = diversions(tree.metadata('/var/lib/dpkg/diversions') ?? '');
  const owners = new Map<string, string>();
  for (const { name, architecture } of packages) {
    const list =
      tree.metadata(`/var/lib/dpkg/info/${name}.list`) ??
      tree.metadata(`/var/lib/dpkg/info/${name}:${architecture}.list`);
    for (const line of (list ?? '').split('\n')) {
      if (!line.startsWith('/')) continue;
      const path = diverted(line, name);
      // The last name of a path is the package's own, also if it is a link; those before may be links of others.
      const at = posix.join(canonical(posix.dirname(path), links), posix.basename(path));
      owners.set(at, `deb:${name}`);
    }
  }
  return owners;
}

/** `from`, `to` and the package that diverts, a line each (dpkg-divert): all but that one write to `to`. */
function diversions(text: string): (path: string, packageName: string) => string {
  const lines = text.split('\n');
  const known = new Map<string, { readonly to: string; readonly by: string }>();
  for (let at = 0; at + 2 < lines.length; at += 3) {
    known.set(lines[at] ?? '', { to: lines[at + 1] ?? '', by: lines[at + 2] ?? '' });
  }
  return (path, packageName) => {
    const diversion = known.get(path);
    return diversion === undefined || diversion.by === packageName ? path : diversion.to;
  };
}

/** As many links as the kernel follows (path_resolution(7)). */
const MAX_LINKS = 40;

/** `path` without symbolic links in it, inside the tree; as it is if they lead in a circle. */
function canonical(path: string, links: ReadonlyMap<string, string>): string {
  let rest = path.split('/').filter((name) => name !== '');
  let at = '/';
  for (let followed = 0; rest.length > 0; ) {
    const [name = '', ...others] = rest;
    const next = posix.join(at, name);
    const target = links.get(next);
    rest = others;
    if (target === undefined) at = next;
    else if (++followed > MAX_LINKS) return path;
    else {
      rest = [...target.split('/').filter((part) => part !== ''), ...others];
      if (target.startsWith('/')) at = '/';
    }
  }
  return at;
}

/** Links of programs belong to the package that they lead into. */
function npmOwner({ path, target }: TreeEntry): string | undefined {
  const at = target === undefined ? path : posix.join(posix.dirname(path), target);
  if (!at.startsWith(NODE_MODULES)) return undefined;
  const name = /^(?:@[^/]+\/)?[^/]+/.exec(at.slice(NODE_MODULES.length))?.[0];
  return name === undefined ? undefined : `npm:${name}`;
}

/** Those of the definition, and those that they bring along, each version once; sorted. */
function npmPackages(tree: Tree, npm: readonly NpmPackage[]): readonly InventoryNpmPackage[] {
  const found = new Map<string, InventoryNpmPackage>();
  for (const { path } of tree.entries) {
    const match = /^\/usr\/local\/lib\/(?:.*\/)?node_modules\/((?:@[^/]+\/)?[^/]+)\/package\.json$/.exec(
      path,
    );
    if (match === null) continue;
    const declared = packageJson(tree.metadata(path));
    if (declared === undefined) continue;
    const pinned = npm.find(({ name }) => path === `${NODE_MODULES}${name}/package.json`);
    const entry: InventoryNpmPackage = {
      // A pinned package is what its definition says that it is.
      name: pinned?.name ?? declared.name,
      version: pinned?.version ?? declared.version,
      ...(pinned === undefined ? {} : { integrity: pinned.integrity }),
      ...(declared.licence === undefined ? {} : { licence: declared.licence }),
    };
    const key = `${entry.name}@${entry.version}`;
    if (pinned !== undefined || !found.has(key)) found.set(key, entry);
  }
  return [...found].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, entry]) => entry);
}

function packageJson(
  text: string | undefined,
): { readonly name: string; readonly version: string; readonly licence?: string } | undefined {
  try {
    const json = JSON.parse(text ?? '') as Readonly<Record<string, unknown>> | null;
    const [name, version, licence] = [json?.['name'], json?.['version'], json?.['license']];
    if (typeof name !== 'string' || typeof version !== 'string') return undefined;
    if (!NPM_NAME.test(name) || !NPM_VERSION.test(version)) return undefined;
    return typeof licence === 'string' ? { name, version, licence } : { name, version };
  } catch {
    return undefined; // a file of that name that is none, as tests and templates of packages have them
  }
}

/** What can be a purl; versions of packages that are brought along may be of any form. */
const NPM_NAME = /^(?:@[A-Za-z0-9._~-]{1,128}\/)?[A-Za-z0-9._~-]{1,214}$/;
const NPM_VERSION = /^[0-9A-Za-z.+-]{1,128}$/;

// --------------------------------------------------------------------------------------------- accounted for

/** Programs that install software; the definition has to ask for the package that has one. */
const PACKAGE_MANAGERS = new Set(
  'apt apt-get aptitude apk dnf yum microdnf rpm zypper pacman snap flatpak pip pip3 pipx npm pnpm yarn gem cargo conda'.split(
    ' ',
  ),
);
const PROGRAM_DIRECTORIES = /^\/(?:usr\/(?:local\/)?)?s?bin\/([^/]+)$/;
/** Where programs keep what they could make again, what was said while the image was built, and what nobody keeps. */
const CACHES =
  /^\/(?:var\/cache\/(?!debconf\/(?:config|passwords|templates)\.dat$)|var\/lib\/apt\/|var\/log\/|var\/tmp\/|tmp\/|run\/|root\/\.(?:cache|npm|local)\/|home\/|var\/crash\/|var\/backups\/)/;
const KEYS =
  /^\/(?:etc\/ssh\/ssh_host_[^/]*_key|etc\/ssl\/private\/.+|(?:root|home\/[^/]+)\/\.(?:ssh|gnupg)\/.+)$/;
const WRITABLE = new Set(['/tmp', '/var/tmp']);

/**
 * Throws IMAGE_UNACCOUNTED with every path of an image that its definition does not account for: programs with more rights
 * than their user, what everybody may write, private keys, caches and logs, devices, and ways to install software.
 */
export function checkAccounted(
  inventory: Inventory,
  keys: readonly string[],
  definition: ImageDefinition,
): void {
  const problems = unaccounted(inventory, keys, definition);
  if (problems.length === 0) return;
  const shown = problems.slice(0, MAX_SHOWN).map((problem) => `  ${problem}`);
  const more = problems.length > MAX_SHOWN ? [`  and ${problems.length - MAX_SHOWN} more`] : [];
  throw new CtError(
    'IMAGE_UNACCOUNTED',
    `image ${definition.name} would hold what its definition does not account for:\n${[...shown, ...more].join('\n')}`,
    {
      hint: 'leave out the package that brings it, or list it under `holds` in the definition; docs/images.md says how',
    },
  );
}

const MAX_SHOWN = 20;

/** A line for each path that is not accounted for, sorted by path. */
export function unaccounted(
  inventory: Inventory,
  keys: readonly string[],
  definition: Pick<ImageDefinition, 'holds' | 'packages' | 'npm'>,
): readonly string[] {
  const { setuid, writable, keys: knownKeys } = definition.holds;
  const asked = new Set([
    ...definition.packages.map((entry) => `deb:${entry.split('=', 1)[0]}`),
    ...definition.npm.map(({ name }) => `npm:${name}`),
  ]);
  const withKey = new Set(keys);
  const problems: string[] = [];
  for (const { path, type, mode, owner, sizeBytes } of inventory.files) {
    const say = (what: string): void => {
      const from = owner === undefined ? '' : ` (of ${owner.slice(owner.indexOf(':') + 1)})`;
      problems.push(`${path}${from}: ${what}`);
    };
    if (type === 'other') say('a device, pipe or socket');
    if (type === 'file' && (mode & 0o6000) !== 0 && !setuid.includes(path)) say('set-uid or set-gid');
    if (type !== 'link' && (mode & 0o002) !== 0 && !WRITABLE.has(path) && !writable.includes(path))
      say('everybody may write it');
    if (
      type === 'file' &&
      (withKey.has(path) || (KEYS.test(path) && sizeBytes > 0)) &&
      !knownKeys.includes(path)
    )
      say('a private key');
    if (type === 'file' && CACHES.test(path)) say('a cache, a log or a temporary file');
    const program = type === 'directory' ? undefined : PROGRAM_DIRECTORIES.exec(path)?.[1];
    if (program !== undefined && PACKAGE_MANAGERS.has(program) && (owner === undefined || !asked.has(owner)))
      say('a package manager that the definition does not list');
  }
  const files = new Map(inventory.files.map((entry) => [entry.path, entry]));
  for (const path of setuid) {
    if (((files.get(path)?.mode ?? 0) & 0o6000) === 0)
      problems.push(`${path}: listed as \`setuid\`, and is not there`);
  }
  return problems.sort();
}
