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

/** Options that say neither where packages come from nor how they are checked, with nothing behind them. */
const HARMLESS = /^--(?:require-hashes|prefer-binary|pre|(?:only|no)-binary[ =][A-Za-z0-9:._,-]+)$/;
/** No user before the host, and nothing that the shell of pip or its variables make something else of. */
const INDEX = /^(?:-i|--index-url|--extra-index-url)[ =](https:\/\/[A-Za-z0-9.:/_~%+-]+)$/;
/** Ends of lines for Python, and for nobody else. */
const ODD_LINE_ENDS = ['\v', '\f', '\x1c', '\x1d', '\x1e', '\x85', '\u2028', '\u2029'];
/** PEP 263: pip decodes the file as its first lines say. */
const CODING = /^#.*coding[:=]\s*(?!\s|utf-?8(?![-\w.]))/i;

/** Throws an Error saying why it cannot be judged. */
export function parseRequirements(bytes: Buffer): Requirements {
  const packages: PinnedPackage[] = [];
  const indexes: string[] = [];
  for (const content of contentLines(decoded(bytes))) {
    if (!/^[\x20-\x5b\x5d-\x7e]*$/.test(content) || content.includes('${')) {
      throw new Error(`\`${content.slice(0, 80)}\` has characters that names and versions do not have`);
    }
    if (content.startsWith('-')) {
      const index = INDEX.exec(content)?.[1];
      if (index !== undefined) indexes.push(index);
      else if (!HARMLESS.test(content)) throw new Error(`\`${content.slice(0, 80)}\` cannot be judged`);
      continue;
    }
    packages.push(pinned(content));
    if (packages.length > MAX_PACKAGES) throw new Error(`it has more than ${MAX_PACKAGES} packages`);
  }
  return { packages, indexes };
}

function decoded(bytes: Buffer): string {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new Error('it is not UTF-8');
  }
  if (/\r(?!\n)/.test(text) || ODD_LINE_ENDS.some((end) => text.includes(end)))
    throw new Error('it has ends of lines that only Python takes for such');
  if (text.split('\n', 2).some((line) => CODING.test(line)))
    throw new Error('it says to be in another encoding');
  return text;
}

/** Lines as pip joins them: a comment is one line, even if it ends in a backslash. Without comments, and none that are empty. */
function contentLines(text: string): string[] {
  const joined: string[] = [];
  let begun: string | undefined;
  for (const line of text.split(/\r?\n/)) {
    const isComment = /^\s*#/.test(line);
    const goesOn = line.endsWith('\\') && !isComment;
    begun = `${begun ?? ''}${isComment ? ' ' : ''}${goesOn ? line.slice(0, -1) : line}`;
    if (goesOn) continue;
    joined.push(begun);
    begun = undefined;
  }
  if (begun !== undefined) joined.push(begun);
  return joined.map((line) => line.replace(/(^|\s)#.*$/, '').trim()).filter((line) => line !== '');
}

function pinned(content: string): PinnedPackage {
  const [requirement = '', ...options] = content.split(/\s+(?=--)/);
  const match =
    /^([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*===?\s*([A-Za-z0-9][A-Za-z0-9.!+_-]*)\s*(?:;(?!.*\s-).*)?$/.exec(
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
