/**
 * Locks: `NAME.lock.json` beside `NAME.yml` says which packages an image consists of, each by version and digest. A build
 * takes these and no others. One package per line, so that a change reads well in a review; the same contents always
 * give the same bytes, and no mirror is named.
 */
import { createHash } from 'node:crypto';
import { existsSync, globSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { CtError, messageOf } from '../core/errors.ts';
import { installRoot } from '../core/install.ts';
import { VERSION } from '../core/version.ts';
import type { ImageDefinition, NpmPackage } from './definition.ts';
import { INITRAMFS_RECIPE } from './initramfs.ts';
import { byName, type LockedPackage } from './packages.ts';
import { ROOTFS_RECIPE } from './recipe.ts';

export interface ImageLock {
  readonly lockVersion: 1;
  readonly name: string;
  /** `packagesDigest` of the definition that it was made for, `sha256:<hex>`. */
  readonly definition: string;
  readonly base: 'debian';
  readonly suite: string;
  readonly architecture: 'amd64';
  /** What made it. Told in comparisons; an image may be built by another version. */
  readonly builder: {
    readonly ct: string;
    readonly rootfsRecipe: number;
    readonly initramfsRecipe: number;
  };
  /** `sha256:<hex>` of the sources of the guest agent of that version. */
  readonly guestAgent: string;
  readonly kernel: LockedPackage;
  readonly npm: readonly NpmPackage[];
  /** By name. */
  readonly packages: readonly LockedPackage[];
}

/** A package takes 250 bytes, and there may be some thousands. */
const MAX_LOCK_BYTES = 8 * 1024 * 1024;
const MAX_PACKAGES = 10_000;

export function makeLock(
  definition: ImageDefinition,
  packages: readonly LockedPackage[],
  kernel: LockedPackage,
): ImageLock {
  return {
    lockVersion: 1,
    name: definition.name,
    definition: `sha256:${definition.packagesDigest}`,
    base: 'debian',
    suite: definition.suite,
    architecture: 'amd64',
    builder: { ct: VERSION, rootfsRecipe: ROOTFS_RECIPE, initramfsRecipe: INITRAMFS_RECIPE },
    guestAgent: guestAgentSourceDigest(),
    kernel,
    npm: definition.npm,
    packages: [...packages].sort(byName),
  };
}

export function formatLock(lock: ImageLock): string {
  const { kernel, npm, packages, ...head } = lock;
  const rows = (list: readonly object[]): string =>
    list.length === 0 ? '[]' : `[\n${list.map((entry) => `    ${row(entry)}`).join(',\n')}\n  ]`;
  const lines = Object.entries(head).map(
    ([key, value]) =>
      `  ${JSON.stringify(key)}: ${typeof value === 'object' ? row(value) : JSON.stringify(value)}`,
  );
  lines.push(`  "kernel": ${row(kernel)}`, `  "npm": ${rows(npm)}`, `  "packages": ${rows(packages)}`);
  return `{\n${lines.join(',\n')}\n}\n`;
}

function row(entry: object): string {
  const fields = Object.entries(entry).map(
    ([key, value]) => `${JSON.stringify(key)}: ${JSON.stringify(value)}`,
  );
  return `{ ${fields.join(', ')} }`;
}

/** `sha256:<hex>` of what a lock says of the image: who made it, and with which guest agent, does not count. */
export function lockDigest({ builder: _builder, guestAgent: _agent, ...contents }: ImageLock): string {
  return `sha256:${createHash('sha256').update(JSON.stringify(contents)).digest('hex')}`;
}

/** The lock at `path`; undefined if there is none. Throws IMAGE_LOCK_INVALID. */
export function readLock(path: string): ImageLock | undefined {
  if (!existsSync(path)) return undefined;
  try {
    if (statSync(path).size > MAX_LOCK_BYTES) throw invalid(path, `larger than ${MAX_LOCK_BYTES} bytes`);
    return parseLock(readFileSync(path, 'utf8'), path);
  } catch (error) {
    if (error instanceof CtError) throw error;
    throw invalid(path, messageOf(error));
  }
}

/** `source` names the lock in messages. Throws IMAGE_LOCK_INVALID: nothing may be missing, more, or of another form. */
export function parseLock(text: string, source: string): ImageLock {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw invalid(source, messageOf(error));
  }
  return new LockReader(source).lock(json);
}

function invalid(source: string, what: string): CtError {
  return new CtError('IMAGE_LOCK_INVALID', `${source}: ${what}`, {
    hint: 'locks are not written by hand: `ct image lock NAME` makes it again',
  });
}

const HEX = '[0-9a-f]{64}';
const PATTERNS = {
  image: /^[a-z0-9][a-z0-9._-]{0,63}$/,
  digest: new RegExp(`^sha256:${HEX}$`),
  sha256: new RegExp(`^${HEX}$`),
  suite: /^[a-z][a-z0-9-]{1,31}$/,
  // Debian policy §5.6.1, §5.6.12.
  package: /^[a-z0-9][a-z0-9+.-]{1,127}$/,
  version: /^[0-9][A-Za-z0-9.+:~-]{0,127}$/,
  architecture: /^(?:amd64|all)$/,
  npmName: /^(?:@[a-z0-9][a-z0-9._-]{0,63}\/)?[a-z0-9][a-z0-9._-]{0,127}$/,
  npmVersion: /^[0-9]+\.[0-9]+\.[0-9]+(?:-[0-9A-Za-z.-]{1,64})?$/,
  integrity: /^sha512-[A-Za-z0-9+/]{86}==$/,
  ct: /^[0-9A-Za-z.+-]{1,64}$/,
} as const;

/** Walks a parsed lock and says where it is not one. */
class LockReader {
  readonly #source: string;

  constructor(source: string) {
    this.#source = source;
  }

  lock(json: unknown): ImageLock {
    const at = 'the lock';
    const version = (json as { lockVersion?: unknown } | null)?.lockVersion;
    if (typeof version === 'number' && version !== 1) {
      throw invalid(this.#source, `it has version ${version}, and this ct knows version 1 only`);
    }
    const map = this.#map(json, at, [
      ...['lockVersion', 'name', 'definition', 'base', 'suite', 'architecture'],
      ...['builder', 'guestAgent', 'kernel', 'npm', 'packages'],
    ]);
    const builder = this.#map(map['builder'], '`builder`', ['ct', 'rootfsRecipe', 'initramfsRecipe']);
    const packages = this.#list(map['packages'], 'packages').map((entry, index) =>
      this.#package(entry, `package ${index + 1}`),
    );
    for (const [index, { name }] of packages.entries()) {
      const before = packages[index - 1]?.name;
      if (before !== undefined && !(before < name))
        this.#fail(`package ${name} is out of order, or there twice`);
    }
    return {
      lockVersion: this.#constant(map['lockVersion'], 1, `${at}: lockVersion`),
      name: this.#text(map['name'], 'image', `${at}: name`),
      definition: this.#text(map['definition'], 'digest', `${at}: definition`),
      base: this.#constant(map['base'], 'debian', `${at}: base`),
      suite: this.#text(map['suite'], 'suite', `${at}: suite`),
      architecture: this.#constant(map['architecture'], 'amd64', `${at}: architecture`),
      builder: {
        ct: this.#text(builder['ct'], 'ct', '`builder`: ct'),
        rootfsRecipe: this.#number(builder['rootfsRecipe'], '`builder`: rootfsRecipe'),
        initramfsRecipe: this.#number(builder['initramfsRecipe'], '`builder`: initramfsRecipe'),
      },
      guestAgent: this.#text(map['guestAgent'], 'digest', `${at}: guestAgent`),
      kernel: this.#package(map['kernel'], '`kernel`'),
      npm: this.#list(map['npm'], 'npm').map((entry, index) => this.#npm(entry, `npm package ${index + 1}`)),
      packages,
    };
  }

  #package(json: unknown, at: string): LockedPackage {
    const map = this.#map(json, at, ['name', 'version', 'architecture', 'sha256', 'source', 'sourceVersion']);
    return {
      name: this.#text(map['name'], 'package', `${at}: name`),
      version: this.#text(map['version'], 'version', `${at}: version`),
      architecture: this.#text(map['architecture'], 'architecture', `${at}: architecture`),
      sha256: this.#text(map['sha256'], 'sha256', `${at}: sha256`),
      source: this.#text(map['source'], 'package', `${at}: source`),
      sourceVersion: this.#text(map['sourceVersion'], 'version', `${at}: sourceVersion`),
    };
  }

  #npm(json: unknown, at: string): NpmPackage {
    const map = this.#map(json, at, ['name', 'version', 'integrity']);
    return {
      name: this.#text(map['name'], 'npmName', `${at}: name`),
      version: this.#text(map['version'], 'npmVersion', `${at}: version`),
      integrity: this.#text(map['integrity'], 'integrity', `${at}: integrity`),
    };
  }

  #map(json: unknown, at: string, keys: readonly string[]): Readonly<Record<string, unknown>> {
    if (typeof json !== 'object' || json === null || Array.isArray(json))
      this.#fail(`${at} is not an object`);
    const map = json as Readonly<Record<string, unknown>>;
    for (const key of Object.keys(map))
      if (!keys.includes(key)) this.#fail(`${at} has an unknown key \`${key}\``);
    for (const key of keys) if (!Object.hasOwn(map, key)) this.#fail(`${at} has no \`${key}\``);
    return map;
  }

  #list(json: unknown, name: string): readonly unknown[] {
    if (!Array.isArray(json)) this.#fail(`\`${name}\` is not a list`);
    if (json.length > MAX_PACKAGES) this.#fail(`\`${name}\` has more than ${MAX_PACKAGES} entries`);
    return json;
  }

  #text(json: unknown, pattern: keyof typeof PATTERNS, at: string): string {
    if (typeof json !== 'string' || !PATTERNS[pattern].test(json))
      this.#fail(`${at} is not of the right form`);
    return json;
  }

  #number(json: unknown, at: string): number {
    if (!Number.isSafeInteger(json) || (json as number) < 0) this.#fail(`${at} is not a whole number`);
    return json as number;
  }

  #constant<const T extends string | number>(json: unknown, value: T, at: string): T {
    if (json !== value) this.#fail(`${at} is not ${JSON.stringify(value)}`);
    return value;
  }

  #fail(what: string): never {
    throw invalid(this.#source, what);
  }
}

/** `sha256:<hex>` over names and contents of the sources of the guest agent, which come with ct. */
export function guestAgentSourceDigest(): string {
  const hash = createHash('sha256');
  for (const directory of ['bpf', 'guest-agent']) {
    const root = join(installRoot, directory);
    const names = globSync(['**/*.{c,h}', '**/Makefile'], {
      cwd: root,
      exclude: (path) => path === 'build' || path === 'test',
    });
    for (const name of names.sort()) {
      const contents = createHash('sha256')
        .update(readFileSync(join(root, name)))
        .digest('hex');
      hash.update(`${directory}/${name} ${contents}\n`);
    }
  }
  return `sha256:${hash.digest('hex')}`;
}
