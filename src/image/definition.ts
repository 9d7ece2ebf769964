/** Image definitions: `NAME.yml` files, found, read, checked and resolved along `extends`. */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { CtError } from '../core/errors.ts';
import { didYouMean } from '../core/suggest.ts';
import {
  formatPosition,
  type Problem,
  parseYaml,
  problemsError,
  readSource,
  type SourceText,
  type YamlEntry,
  type YamlMap,
  type YamlNode,
} from '../core/yaml-source.ts';
import { IMAGE_EPOCH, ROOTFS_RECIPE } from './recipe.ts';

export interface ImageUser {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
  readonly home: string;
  /** Ids for containers, besides its own. */
  readonly subordinateIds?: true;
}

/** A package of npm, pinned. */
export interface NpmPackage {
  readonly name: string;
  readonly version: string;
  /** `sha512-<base64>` of its archive. */
  readonly integrity: string;
}

/** A file that is in no package. */
export interface ImageFile {
  /** Absolute, in the image. */
  readonly path: string;
  /** Absolute, here. */
  readonly source: string;
  /** Hex, of its contents. */
  readonly sha256: string;
  readonly executable: boolean;
}

/** What an image may hold that is refused otherwise, as absolute paths: sorted, each once. */
export interface ImageHolds {
  /** Programs that keep their set-uid and set-gid bits. */
  readonly setuid: readonly string[];
  /** What everybody may write, besides /tmp and /var/tmp. */
  readonly writable: readonly string[];
  /** Files with a private key, as examples and tests have them. */
  readonly keys: readonly string[];
}

/** A definition with everything it extends merged in. */
export interface ImageDefinition {
  readonly name: string;
  readonly suite: string;
  /** The packages alone: neither what they depend on nor what Debian calls essential, and no maintainer script runs. */
  readonly distroless: boolean;
  /** Names of the images that it extends, the nearest first, and the suite. */
  readonly base: readonly string[];
  /** Sorted, each once: `name` or `name=version`. */
  readonly packages: readonly string[];
  /** Sorted by name, each once. */
  readonly npm: readonly NpmPackage[];
  /** Sorted by path, each once. */
  readonly files: readonly ImageFile[];
  readonly user: ImageUser;
  readonly env: Readonly<Record<string, string>>;
  readonly holds: ImageHolds;
  /** Hex SHA-256 of what decides which packages it has: those asked for, and the suite. A lock is made for it. */
  readonly packagesDigest: string;
  /** Hex SHA-256 of all of the above but the name. */
  readonly digest: string;
  /** Hex SHA-256 of what is inside the file system: without `env`, which only the manifest carries. */
  readonly rootfsDigest: string;
}

/** User-controlled; parsed whole in memory. */
const MAX_DEFINITION_BYTES = 64 * 1024;
/** `extends` of `extends`: user-controlled. */
const MAX_DEPTH = 8;
/** User-controlled; each is an argument of a program, and a kernel takes 2 MiB of those. */
const MAX_PACKAGES = 2000;

const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;
/** Debian policy §5.6.1 and §5.6.12. */
const PACKAGE = /^[a-z0-9][a-z0-9+.-]{1,127}(=[0-9][A-Za-z0-9.+:~-]{0,127})?$/;
/** As the registry has them since 2017 (validate-npm-package-name): lower case, no shell or path characters. */
const NPM_NAME = /^(?:@[a-z0-9][a-z0-9._-]{0,63}\/)?[a-z0-9][a-z0-9._-]{0,127}$/;
/** An exact version: what a digest can be of (SemVer 2.0.0). */
const NPM_VERSION = /^[0-9]+\.[0-9]+\.[0-9]+(?:-[0-9A-Za-z.-]{1,64})?$/;
/** 64 bytes in base64. */
const NPM_INTEGRITY = /^sha512-[A-Za-z0-9+/]{86}==$/;
/** User-controlled; each is fetched by a program of its own. */
const MAX_NPM_PACKAGES = 100;
/** Names that need no quoting anywhere. */
const HELD_PATH = /^(?:\/[A-Za-z0-9_+@][A-Za-z0-9._+@-]{0,127}){1,16}$/;
/** User-controlled. */
const MAX_HELD = 200;
/** User-controlled; each is copied and compared. */
const MAX_FILES = 200;
/** Below the directory of the definition. */
const FILE_SOURCE = /^(?:[A-Za-z0-9_+@][A-Za-z0-9._+@-]{0,127}\/){0,8}[A-Za-z0-9_+@][A-Za-z0-9._+@-]{0,127}$/;
/** Where every VM mounts or writes its own, and dpkg's. */
const NO_PLACE_FOR_FILES =
  /^\/(?:proc|sys|dev|run|tmp|var\/tmp|home|workspace|var\/lib\/dpkg|etc\/(?:hostname|hosts|machine-id|resolv\.conf))(?:\/|$)/;
const SHA256 = /^[0-9a-f]{64}$/;
const SUITE = /^[a-z][a-z0-9-]{1,31}$/;
const USER_NAME = /^[a-z][a-z0-9-]{0,30}$/;
/** Where the workspace volume can give it a place; see docs/guest-link.md. */
const HOME = /^\/home\/[a-z0-9][a-z0-9_-]{0,30}$/;
const ENV_NAME = /^[A-Za-z_][A-Za-z0-9_]{0,127}$/;
const MAX_ENV_VALUE = 4096;
/** Ordinary accounts; Debian policy §9.2.2. */
const MIN_ID = 1000;
const MAX_ID = 59_999;

const DEFAULT_USER: ImageUser = { name: 'ci', uid: 1000, gid: 1000, home: '/home/ci' };
const BASE_ENV = { PATH: '/usr/local/bin:/usr/bin:/bin', LANG: 'C.UTF-8' };

/** What one file says. */
interface DefinitionFile {
  readonly extends?: string;
  readonly suite?: string;
  readonly distroless: boolean;
  readonly packages: readonly string[];
  readonly npm: readonly NpmPackage[];
  /** Their sources are relative to the file. */
  readonly files: readonly ImageFile[];
  readonly user?: ImageUser;
  readonly env: Readonly<Record<string, string>>;
  readonly holds: ImageHolds;
}

/**
 * The definition `name` of the first of `directories` that has it, resolved. Throws IMAGE_NOT_FOUND, or
 * IMAGE_DEFINITION_INVALID with every problem of the file at its line and column.
 */
export function loadDefinition(name: string, directories: readonly string[]): ImageDefinition {
  const chain: DefinitionFile[] = [];
  const names: string[] = [];
  for (let next: string | undefined = name; next !== undefined; ) {
    if (names.includes(next) || names.length === MAX_DEPTH) {
      const what = names.includes(next) ? 'extends itself' : `extends more than ${MAX_DEPTH} others`;
      throw new CtError('IMAGE_DEFINITION_INVALID', `image ${name} ${what}: ${[...names, next].join(' → ')}`);
    }
    names.push(next);
    const directory = findDirectory(next, directories, names.at(-2));
    const file = parseDefinition(readDefinition(join(directory, `${next}.yml`)));
    const files = file.files.map((entry) => ({ ...entry, source: join(directory, entry.source) }));
    chain.unshift({ ...file, files });
    next = file.extends;
  }
  return resolve(name, chain, names.slice(1));
}

/** Names of all definitions, sorted. Directories that do not exist have none. */
export function definitionNames(directories: readonly string[]): readonly string[] {
  const names = directories
    .filter((directory) => existsSync(directory))
    .flatMap((directory) => readdirSync(directory));
  return [...new Set(names.filter((file) => file.endsWith('.yml')).map((file) => file.slice(0, -4)))].sort();
}

/** Where the lock of an image lies, whether there is one or not: beside its definition. Throws IMAGE_NOT_FOUND. */
export function lockPath(name: string, directories: readonly string[]): string {
  return join(findDirectory(name, directories, undefined), `${name}.lock.json`);
}

function findDirectory(name: string, directories: readonly string[], extendedBy: string | undefined): string {
  const directory = NAME.test(name)
    ? directories.find((candidate) => existsSync(join(candidate, `${name}.yml`)))
    : undefined;
  if (directory === undefined) {
    const names = definitionNames(directories);
    const by = extendedBy === undefined ? '' : `, which ${extendedBy} extends`;
    throw new CtError('IMAGE_NOT_FOUND', `no image \`${name}\` is defined${by}`, {
      hint:
        didYouMean(name, names) ??
        `defined are: ${names.join(', ') || 'none'}; define others in .ct/images/NAME.yml (docs/images.md)`,
    });
  }
  return directory;
}

function readDefinition(path: string): SourceText {
  return readSource(path, path, {
    maxBytes: MAX_DEFINITION_BYTES,
    code: 'IMAGE_DEFINITION_INVALID',
    missingCode: 'IMAGE_NOT_FOUND',
  });
}

function resolve(
  name: string,
  chain: readonly DefinitionFile[],
  extended: readonly string[],
): ImageDefinition {
  const suite = chain.findLast((file) => file.suite !== undefined)?.suite;
  if (suite === undefined) {
    throw new CtError(
      'IMAGE_DEFINITION_INVALID',
      `image ${name} names no \`suite\`, and extends none that does`,
      {
        hint: 'add `suite: bookworm` or `extends: debian-12`',
      },
    );
  }
  const base = chain[0]?.distroless === true;
  if (!base && chain.some((file) => file.distroless)) {
    throw new CtError(
      'IMAGE_DEFINITION_INVALID',
      `image ${name} is \`distroless\` and extends one that is not`,
      { hint: 'what a distroless image has not, no image that it extends can have: extend `minimal`' },
    );
  }
  const content = {
    suite,
    distroless: base,
    packages: [...new Set(chain.flatMap((file) => file.packages))].sort(),
    npm: lastOf(
      chain.flatMap((file) => file.npm),
      ({ name }) => name,
    ),
    files: lastOf(
      chain.flatMap((file) => file.files),
      ({ path }) => path,
    ),
    user: chain.findLast((file) => file.user !== undefined)?.user ?? DEFAULT_USER,
    env: sorted<string>(Object.assign({}, BASE_ENV, ...chain.map((file) => file.env))),
    holds: mergeHolds(chain.map((file) => file.holds)),
  };
  const { name: userName, uid, gid, home } = content.user;
  const inside = [
    ROOTFS_RECIPE,
    IMAGE_EPOCH,
    suite,
    content.packages,
    [userName, uid, gid, home],
    ...npmInside(content.npm),
    ...holdsInside(content.holds),
    ...distrolessInside(content.distroless),
    ...filesInside(content.files),
  ];
  return {
    name,
    ...content,
    base: [...extended, suite],
    packagesDigest: sha256([
      ...[suite, content.packages],
      ...npmInside(content.npm),
      ...distrolessInside(content.distroless),
    ]),
    digest: sha256([...inside, content.env, ...(content.user.subordinateIds ? ['subordinate ids'] : [])]),
    rootfsDigest: sha256(inside),
  };
}

/** Each key once, as it is listed last: an image may pin another version than the one it extends. */
function lastOf<T>(entries: readonly T[], key: (entry: T) => string): readonly T[] {
  return Object.values(sorted(Object.fromEntries(entries.map((entry) => [key(entry), entry]))));
}

function mergeHolds(all: readonly ImageHolds[]): ImageHolds {
  const merge = (key: keyof ImageHolds): readonly string[] =>
    [...new Set(all.flatMap((holds) => holds[key]))].sort();
  return { setuid: merge('setuid'), writable: merge('writable'), keys: merge('keys') };
}

function holdsInside({ setuid, writable, keys }: ImageHolds): readonly unknown[] {
  return setuid.length + writable.length + keys.length === 0 ? [] : [{ holds: [setuid, writable, keys] }];
}

function filesInside(files: readonly ImageFile[]): readonly unknown[] {
  if (files.length === 0) return [];
  return [{ files: files.map(({ path, sha256: digest, executable }) => [path, digest, executable]) }];
}

function distrolessInside(distroless: boolean): readonly unknown[] {
  return distroless ? ['distroless'] : [];
}

/** Nothing if there are none, so that images without them keep their digests. */
function npmInside(packages: readonly NpmPackage[]): readonly unknown[] {
  return packages.length === 0
    ? []
    : [packages.map(({ name, version, integrity }) => [name, version, integrity])];
}

function sha256(value: unknown): string {
  return createHash('sha256').update(JSON.stringify(value)).digest('hex');
}

function sorted<T>(record: Readonly<Record<string, T>>): Record<string, T> {
  return Object.fromEntries(Object.entries(record).sort(([a], [b]) => (a < b ? -1 : 1)));
}

// --------------------------------------------------------------------------------------------- one file

const KEYS = [
  'version',
  'extends',
  'suite',
  'distroless',
  'packages',
  'npm',
  'files',
  'user',
  'env',
  'holds',
];
const FILE_KEYS = ['from', 'sha256', 'executable'];
const HOLDS_KEYS = ['setuid', 'writable', 'keys'];
const USER_KEYS = ['name', 'uid', 'gid', 'home', 'subordinate-ids'];

/** Parses one file's text. Throws IMAGE_DEFINITION_INVALID. */
export function parseDefinition(source: SourceText): DefinitionFile {
  const { root, problems } = parseYaml(source, 'IMAGE_DEFINITION_INVALID');
  if (problems.length > 0) throw problemsError(problems, 'IMAGE_DEFINITION_INVALID');
  const reader = new Reader();
  const file = root?.kind === 'map' ? reader.file(root) : undefined;
  if (file === undefined && reader.problems.length === 0) {
    const span = root?.span ?? { source, start: 0, end: 0 };
    reader.report(span, 'expected a mapping', 'an image definition begins with `version: 1`');
  }
  if (file === undefined || reader.problems.length > 0) {
    throw problemsError(reader.problems, 'IMAGE_DEFINITION_INVALID');
  }
  return file;
}

class Reader {
  readonly problems: Problem[] = [];

  report(span: Problem['span'], message: string, hint?: string): undefined {
    this.problems.push({ code: 'IMAGE_DEFINITION_INVALID', span, message, hint });
  }

  file(map: YamlMap): DefinitionFile {
    const entries = this.#keys(map, KEYS, 'an image definition');
    const version = entries.get('version');
    if (version === undefined) this.report(map.span, '`version` is missing', 'add `version: 1`');
    else if (!isScalar(version.value, 'number') || version.value.text !== '1') {
      this.report(version.value.span, 'expected the number `1`, the only version there is');
    }
    const base = this.#text(entries.get('extends'), NAME, 'the name of another image');
    const suite = this.#text(
      entries.get('suite'),
      SUITE,
      'the code name of a Debian release, such as `bookworm`',
    );
    const user = entries.get('user');
    const parsedUser = user === undefined ? undefined : this.#user(user.value);
    return {
      ...(base === undefined ? {} : { extends: base }),
      ...(suite === undefined ? {} : { suite }),
      ...(parsedUser === undefined ? {} : { user: parsedUser }),
      distroless: this.#true(entries.get('distroless')),
      packages: this.#packages(entries.get('packages')),
      npm: this.#npm(entries.get('npm')),
      files: this.#files(entries.get('files')),
      env: this.#env(entries.get('env')),
      holds: this.#holds(entries.get('holds')),
    };
  }

  #true(entry: YamlEntry | undefined): boolean {
    if (entry === undefined) return false;
    if (isScalar(entry.value, 'boolean') && entry.value.text === 'true') return true;
    this.report(entry.value.span, 'expected `true`; leave the key out otherwise');
    return false;
  }

  #packages(entry: YamlEntry | undefined): string[] {
    if (entry === undefined || isScalar(entry.value, 'null')) return [];
    if (entry.value.kind !== 'list') {
      this.report(entry.value.span, 'expected a list of package names');
      return [];
    }
    if (entry.value.items.length > MAX_PACKAGES) {
      this.report(entry.value.span, `more than ${MAX_PACKAGES} packages`);
    }
    const seen = new Map<string, YamlNode>();
    for (const item of entry.value.items) {
      if (!isScalar(item, 'string') || !PACKAGE.test(item.text)) {
        const found = item.kind === 'scalar' ? `, found \`${item.text}\`` : '';
        this.report(item.span, `expected a package name, optionally with \`=version\`${found}`);
        continue;
      }
      const name = item.text.split('=', 1)[0] as string;
      const earlier = seen.get(name);
      if (earlier === undefined) seen.set(name, item);
      else this.report(item.span, `\`${name}\` is listed twice; first at ${formatPosition(earlier.span)}`);
    }
    return [...seen.values()].map((item) => (item.kind === 'scalar' ? item.text : ''));
  }

  #npm(entry: YamlEntry | undefined): NpmPackage[] {
    if (entry === undefined || isScalar(entry.value, 'null')) return [];
    if (entry.value.kind !== 'map') {
      this.report(entry.value.span, 'expected a mapping of `name@version` to an integrity');
      return [];
    }
    if (entry.value.entries.length > MAX_NPM_PACKAGES) {
      this.report(entry.value.span, `more than ${MAX_NPM_PACKAGES} npm packages`);
    }
    const packages = new Map<string, NpmPackage>();
    for (const { key, keySpan, value } of entry.value.entries) {
      const at = key.lastIndexOf('@');
      const [name, version] = [key.slice(0, at), key.slice(at + 1)];
      if (!NPM_NAME.test(name) || !NPM_VERSION.test(version)) {
        this.report(
          keySpan,
          `expected a package and its exact version, such as \`npm@11.0.0\`, found \`${key}\``,
        );
      } else if (packages.has(name)) {
        this.report(keySpan, `\`${name}\` is listed twice`);
      } else if (!isScalar(value, 'string') || !NPM_INTEGRITY.test(value.text)) {
        const hint = `\`npm view ${key} dist.integrity\` prints it`;
        this.report(value.span, 'expected the integrity of the package: `sha512-…`', hint);
      } else packages.set(name, { name, version, integrity: value.text });
    }
    return [...packages.values()];
  }

  #files(entry: YamlEntry | undefined): ImageFile[] {
    if (entry === undefined || isScalar(entry.value, 'null')) return [];
    if (entry.value.kind !== 'map' || entry.value.entries.length > MAX_FILES) {
      this.report(entry.value.span, `expected a mapping of at most ${MAX_FILES} paths to files`);
      return [];
    }
    return entry.value.entries.flatMap(({ key, keySpan, value }) => {
      if (!HELD_PATH.test(key) || NO_PLACE_FOR_FILES.test(key)) {
        const what = 'letters, digits, `.`, `_`, `+`, `@` and `-`, where the VM keeps what an image has';
        return this.report(keySpan, `expected an absolute path of ${what}`) ?? [];
      }
      if (value.kind !== 'map') {
        return this.report(value.span, `expected a mapping with ${list(FILE_KEYS)}`) ?? [];
      }
      const entries = this.#keys(value, FILE_KEYS, 'a file');
      for (const name of ['from', 'sha256'])
        if (!entries.has(name)) this.report(value.span, `\`${name}\` is missing`);
      const source = this.#text(entries.get('from'), FILE_SOURCE, 'a path below the directory of this file');
      const sha256 = this.#text(
        entries.get('sha256'),
        SHA256,
        'the SHA-256 of the file, as sha256sum prints it',
      );
      const executable = this.#true(entries.get('executable'));
      return source === undefined || sha256 === undefined ? [] : [{ path: key, source, sha256, executable }];
    });
  }

  #holds(entry: YamlEntry | undefined): ImageHolds {
    const nothing: ImageHolds = { setuid: [], writable: [], keys: [] };
    if (entry === undefined || isScalar(entry.value, 'null')) return nothing;
    if (entry.value.kind !== 'map') {
      this.report(entry.value.span, `expected a mapping with ${list(HOLDS_KEYS)}`);
      return nothing;
    }
    const entries = this.#keys(entry.value, HOLDS_KEYS, '`holds`');
    return {
      setuid: this.#paths(entries.get('setuid')),
      writable: this.#paths(entries.get('writable')),
      keys: this.#paths(entries.get('keys')),
    };
  }

  #paths(entry: YamlEntry | undefined): string[] {
    if (entry === undefined || isScalar(entry.value, 'null')) return [];
    if (entry.value.kind !== 'list' || entry.value.items.length > MAX_HELD) {
      this.report(entry.value.span, `expected a list of at most ${MAX_HELD} paths`);
      return [];
    }
    return entry.value.items.flatMap((item) => {
      if (isScalar(item, 'string') && HELD_PATH.test(item.text)) return [item.text];
      this.report(item.span, 'expected an absolute path of letters, digits, `.`, `_`, `+`, `@` and `-`');
      return [];
    });
  }

  #user(node: YamlNode): ImageUser | undefined {
    if (node.kind !== 'map') return this.report(node.span, `expected a mapping with ${list(USER_KEYS)}`);
    const entries = this.#keys(node, USER_KEYS, '`user`');
    const name = this.#text(
      entries.get('name'),
      USER_NAME,
      'a user name: lower case letters, digits and `-`',
    );
    if (!entries.has('name')) this.report(node.span, '`user` needs a `name`');
    const uid = this.#id(entries.get('uid'));
    const gid = this.#id(entries.get('gid'));
    const subordinateIds = this.#true(entries.get('subordinate-ids'));
    const home = this.#text(entries.get('home'), HOME, 'a directory directly below /home');
    if (name === undefined) return undefined;
    const resolvedUid = uid ?? DEFAULT_USER.uid;
    return {
      ...{ name, uid: resolvedUid, gid: gid ?? resolvedUid, home: home ?? `/home/${name}` },
      ...(subordinateIds ? { subordinateIds } : {}),
    };
  }

  #id(entry: YamlEntry | undefined): number | undefined {
    if (entry === undefined) return undefined;
    const { value } = entry;
    const id = isScalar(value, 'number') && /^[0-9]{1,5}$/.test(value.text) ? Number(value.text) : Number.NaN;
    if (id >= MIN_ID && id <= MAX_ID) return id;
    return this.report(value.span, `expected a whole number from ${MIN_ID} to ${MAX_ID}`);
  }

  #env(entry: YamlEntry | undefined): Record<string, string> {
    if (entry === undefined || isScalar(entry.value, 'null')) return {};
    if (entry.value.kind !== 'map') {
      this.report(entry.value.span, 'expected a mapping of names to values');
      return {};
    }
    const env: Record<string, string> = {};
    for (const { key, keySpan, value } of entry.value.entries) {
      if (!ENV_NAME.test(key))
        this.report(keySpan, `\`${key}\` cannot be the name of an environment variable`);
      else if (value.kind !== 'scalar' || value.type === 'null' || value.text.length > MAX_ENV_VALUE) {
        this.report(value.span, 'expected a string, number or boolean');
      } else env[key] = value.text;
    }
    return env;
  }

  #text(entry: YamlEntry | undefined, pattern: RegExp, expected: string): string | undefined {
    if (entry === undefined) return undefined;
    const { value } = entry;
    if (isScalar(value, 'string') && pattern.test(value.text)) return value.text;
    return this.report(value.span, `expected ${expected}`);
  }

  #keys(map: YamlMap, known: readonly string[], where: string): Map<string, YamlEntry> {
    for (const { key, keySpan } of map.entries) {
      if (known.includes(key)) continue;
      this.report(
        keySpan,
        `unknown key \`${key}\` in ${where}`,
        didYouMean(key, known) ?? `it has ${list(known)}`,
      );
    }
    return new Map(map.entries.map((entry) => [entry.key, entry]));
  }
}

function isScalar(
  node: YamlNode,
  type: 'string' | 'number' | 'boolean' | 'null',
): node is Extract<YamlNode, { kind: 'scalar' }> {
  return node.kind === 'scalar' && node.type === type;
}

function list(words: readonly string[]): string {
  return words.map((word) => `\`${word}\``).join(', ');
}
