/**
 * Requirements files of pip in which every package has a version and digests (`--require-hashes`). What pip would read besides,
 * such as other files, directories and URLs, is refused: nothing is known of it.
 */

/** Peer-controlled. */
const MAX_PACKAGES = 20_000;
const MAX_HASHES = 200;

export interface PinnedPackage {
  /** In the form of PEP 503. */
  readonly name: string;
  readonly version: string;
  /** Hex SHA-256 of each archive that may be installed; empty if there is none. */
  readonly hashes: readonly string[];
}

export interface Requirements {
  readonly packages: readonly PinnedPackage[];
  /** Indexes that it names. */
  readonly indexes: readonly string[];
}

/** Options that say neither where packages come from nor how they are checked. */
const HARMLESS = /^--(require-hashes|only-binary|no-binary|prefer-binary|pre)(\s|=|$)/;

/** Throws an Error saying why it cannot be judged. */
export function parseRequirements(bytes: Buffer): Requirements {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new Error('it is not UTF-8');
  }
  const packages: PinnedPackage[] = [];
  const indexes: string[] = [];
  for (const line of text.replaceAll(/\\\r?\n/g, ' ').split(/\r?\n/)) {
    const content = line.replace(/(^|\s)#.*$/, '').trim();
    if (content === '') continue;
    if (content.startsWith('-')) {
      const index = /^(?:-i|--index-url|--extra-index-url)[\s=]+(\S+)$/.exec(content)?.[1];
      if (index !== undefined) indexes.push(index);
      else if (!HARMLESS.test(content)) throw new Error(`\`${content.slice(0, 80)}\` cannot be judged`);
      continue;
    }
    packages.push(pinned(content));
    if (packages.length > MAX_PACKAGES) throw new Error(`it has more than ${MAX_PACKAGES} packages`);
  }
  return { packages, indexes };
}

function pinned(content: string): PinnedPackage {
  const [requirement = '', ...options] = content.split(/\s+(?=--)/);
  const match =
    /^([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*===?\s*([A-Za-z0-9][A-Za-z0-9.!+_-]*)\s*(?:;.*)?$/.exec(
      requirement.trim(),
    );
  const [, name, version] = match ?? [];
  if (name === undefined || version === undefined) {
    throw new Error(`\`${content.slice(0, 80)}\` is not pinned as NAME==VERSION`);
  }
  const hashes: string[] = [];
  for (const option of options) {
    const hash = /^--hash[=\s]\s*sha256:([0-9a-f]{64})$/.exec(option.trim())?.[1];
    if (hash === undefined) throw new Error(`\`${option.slice(0, 80)}\` of ${name} cannot be judged`);
    hashes.push(hash);
  }
  if (hashes.length > MAX_HASHES) throw new Error(`${name} has more than ${MAX_HASHES} digests`);
  return { name: name.toLowerCase().replaceAll(/[-_.]+/g, '-'), version, hashes };
}
