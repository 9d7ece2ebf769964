/**
 * Where the packages of an image come from: the Debian sources of this machine's own apt configuration.
 *
 * No mirror is named in this program. `apt-get indextargets` says what apt knows of each source after an update; those
 * whose Release file says `Origin: Debian` and that carry the wanted suite, its updates or its security updates are
 * taken, and every other source of the machine is left out of images. `CT_APT_SOURCES` names a file to use instead.
 */
import { readFileSync } from 'node:fs';
import { CtError, messageOf } from '../core/errors.ts';
import { runProgram } from '../core/run-program.ts';

/** Bounds for what apt prints about this machine's configuration. */
const MAX_OUTPUT_BYTES = 4 * 1024 * 1024;

export interface AptSources {
  readonly format: 'sources' | 'list';
  /** Contents of a file in `sources.list.d`, in that format. */
  readonly text: string;
}

/** How this machine's apt reaches and trusts its sources. */
export interface AptMachine {
  /** Lines of apt.conf(5): proxies, certificates and other settings of the transports. */
  readonly acquire: string;
  /** Absolute paths: key ring, directory of key rings, and the same for passwords of sources. */
  readonly trusted: string;
  readonly trustedParts: string;
  readonly netrc: string;
  readonly netrcParts: string;
}

/**
 * The sources for `suite`. Throws IMAGE_SOURCES_MISSING if the machine has none, or if the file that
 * `CT_APT_SOURCES` names cannot be read.
 */
export async function findSources(
  suite: string,
  options: { readonly env: Readonly<NodeJS.ProcessEnv>; readonly signal?: AbortSignal | undefined },
): Promise<AptSources> {
  const file = options.env['CT_APT_SOURCES'];
  if (file) return readSourcesFile(file);
  const output = await runProgram({
    file: 'apt-get',
    args: ['indextargets'],
    maxOutputBytes: MAX_OUTPUT_BYTES,
    failureCode: 'IMAGE_SOURCES_MISSING',
    ...(options.signal ? { signal: options.signal } : {}),
  });
  const targets = selectTargets(parseStanzas(output.toString('utf8')), suite);
  if (!targets.some((target) => target.release.codename === suite)) {
    throw new CtError('IMAGE_SOURCES_MISSING', `this machine has no apt source of Debian ${suite}`, {
      hint: 'run `apt-get update` as root if it has one, or set CT_APT_SOURCES to a sources.list or .sources file that names one',
    });
  }
  return { format: 'sources', text: formatSources(targets, readEntry) };
}

function readSourcesFile(file: string): AptSources {
  try {
    const text = readFileSync(file, 'utf8');
    return { format: /^\s*(?:#.*\n\s*)*[A-Za-z-]+:/.test(text) ? 'sources' : 'list', text };
  } catch (error) {
    throw new CtError('IMAGE_SOURCES_MISSING', `CT_APT_SOURCES names ${file}: ${messageOf(error)}`, {
      hint: 'let it name a readable sources.list or .sources file, or unset it to use the sources of this machine',
      cause: error,
    });
  }
}

/** Settings of this machine that its sources need to be reachable. */
export async function readAptMachine(signal?: AbortSignal): Promise<AptMachine> {
  const run = async (args: readonly string[]): Promise<string> => {
    const output = await runProgram({
      file: 'apt-config',
      args,
      maxOutputBytes: MAX_OUTPUT_BYTES,
      failureCode: 'IMAGE_SOURCES_MISSING',
      ...(signal ? { signal } : {}),
    });
    return output.toString('utf8');
  };
  // `/f` and `/d` make absolute paths of files and directories (apt-config(8)).
  const directories =
    'TRUSTED Dir::Etc::trusted/f PARTS Dir::Etc::trustedparts/d NETRC Dir::Etc::netrc/f NETRCPARTS Dir::Etc::netrcparts/d';
  const paths = parseShell(await run(['shell', ...directories.split(' ')]));
  return {
    acquire: acquireSettings(await run(['dump'])),
    trusted: paths.get('TRUSTED') ?? '/etc/apt/trusted.gpg',
    trustedParts: paths.get('PARTS') ?? '/etc/apt/trusted.gpg.d',
    netrc: paths.get('NETRC') ?? '/etc/apt/auth.conf',
    netrcParts: paths.get('NETRCPARTS') ?? '/etc/apt/auth.conf.d',
  };
}

/**
 * Of `apt-config dump`, what concerns how files are fetched. Hooks (`APT::Update::Post-Invoke`) and directories must
 * stay out: they would act on this machine. What is fetched is ours to say.
 */
export function acquireSettings(dump: string): string {
  const ours =
    /^Acquire::(?:IndexTargets|Changelogs|AlwaysOnline|Languages|GzipIndexes|CompressionTypes|cdrom)\b/i;
  return dump
    .split('\n')
    .filter((line) => /^Acquire::[^"]* ".*";$/.test(line) && !ours.test(line))
    .map((line) => `${line}\n`)
    .join('');
}

/** `NAME='value'` lines of `apt-config shell`. */
function parseShell(output: string): Map<string, string> {
  const lines = output.matchAll(/^([A-Z]+)='([^']*)'$/gm);
  return new Map([...lines].map(([, name = '', value = '']) => [name, value]));
}

type Stanza = ReadonlyMap<string, string>;

/** RFC 822 paragraphs with lower case keys; continuation lines keep their line breaks and lose nothing. */
export function parseStanzas(text: string): readonly Stanza[] {
  const stanzas: Stanza[] = [];
  for (const paragraph of text.split(/\n[ \t]*\n/)) {
    const fields = new Map<string, string>();
    let key: string | undefined;
    for (const line of paragraph.split('\n')) {
      if (line.startsWith('#')) continue;
      const field = /^([A-Za-z0-9-]+):[ \t]*(.*)$/.exec(line);
      if (field !== null) {
        key = (field[1] ?? '').toLowerCase();
        fields.set(key, (field[2] ?? '').trimEnd());
      } else if (key !== undefined && /^[ \t]/.test(line)) {
        fields.set(key, `${fields.get(key) ?? ''}\n${line.trimEnd()}`);
      }
    }
    if (fields.size > 0) stanzas.push(fields);
  }
  return stanzas;
}

/** One source line or stanza, as far as we use it. */
export interface Target {
  readonly uri: string;
  /** The name in the URI's `dists/`, and the Release file's code name: `oldstable` may be `bookworm`. */
  readonly release: { readonly path: string; readonly codename: string };
  readonly components: readonly string[];
  /** `FILE:N`, the Nth line of a one-line-style file or the Nth stanza of a `.sources` file. */
  readonly entry: string;
}

/** Debian's own sources of `suite`, its updates and its security updates, in a fixed order. */
export function selectTargets(stanzas: readonly Stanza[], suite: string): readonly Target[] {
  const wanted = [suite, `${suite}-updates`, `${suite}-security`];
  const targets = new Map<string, Target>();
  for (const stanza of stanzas) {
    const field = (name: string): string => stanza.get(name) ?? '';
    const codename = field('codename');
    const uri = field('repo-uri');
    if (field('created-by') !== 'Packages' || field('origin') !== 'Debian' || !wanted.includes(codename))
      continue;
    if (uri === '' || uri.startsWith('cdrom:') || /\s/.test(uri) || field('release').endsWith('/')) continue;
    const key = `${wanted.indexOf(codename)} ${uri} ${field('release')} ${field('sourcesentry')}`;
    const known = targets.get(key);
    targets.set(key, {
      uri,
      release: { path: field('release') || codename, codename },
      components: [...new Set([...(known?.components ?? []), field('component')])].sort(),
      entry: field('sourcesentry'),
    });
  }
  return [...targets].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, target]) => target);
}

/** Options of a source that decide whether apt trusts it. */
interface EntryOptions {
  /** Path, or an ASCII-armoured key as indented lines. */
  readonly signedBy?: string | undefined;
  readonly trusted?: string | undefined;
}

/** deb822-style sources (sources.list(5)) for `targets`; `options` answers for a target's `entry`. */
export function formatSources(targets: readonly Target[], options: (entry: string) => EntryOptions): string {
  return targets
    .map((target) => {
      const { signedBy, trusted } = options(target.entry);
      return [
        'Types: deb',
        `URIs: ${target.uri}`,
        `Suites: ${target.release.path}`,
        `Components: ${target.components.join(' ')}`,
        'Architectures: amd64',
        ...(signedBy === undefined ? [] : [`Signed-By: ${signedBy}`]),
        ...(trusted === undefined ? [] : [`Trusted: ${trusted}`]),
        '',
      ].join('\n');
    })
    .join('\n');
}

/** `indextargets` does not tell a source's options, so they are read where it says the source stands. */
function readEntry(entry: string): EntryOptions {
  const match = /^(\/.*):([0-9]+)$/.exec(entry);
  if (match === null) return {};
  const [, file = '', number = ''] = match;
  try {
    return entryOptions(readFileSync(file, 'utf8'), file.endsWith('.sources'), Number(number));
  } catch {
    return {}; // then apt's own key rings have to do, and apt says so if they do not
  }
}

export function entryOptions(text: string, deb822: boolean, number: number): EntryOptions {
  if (deb822) {
    const stanza = parseStanzas(text)[number - 1];
    return { signedBy: stanza?.get('signed-by') || undefined, trusted: stanza?.get('trusted') || undefined };
  }
  const line = text.split('\n')[number - 1] ?? '';
  const bracketed = /^\s*deb\s+\[([^\]]*)\]/.exec(line)?.[1] ?? '';
  const option = (name: string): string | undefined =>
    bracketed
      .split(/\s+/)
      .find((word) => word.toLowerCase().startsWith(`${name}=`))
      ?.slice(name.length + 1)
      .replaceAll(',', ' ');
  return { signedBy: option('signed-by'), trusted: option('trusted') };
}
