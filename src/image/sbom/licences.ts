/**
 * Licences: from the names that Debian's machine-readable copyright files use (DEP 5, copyright-format 1.0) to those of
 * the SPDX list, where the two surely mean the same.
 */
import { parseStanzas } from '../sources.ts';

/** Debian's short name in lower case → SPDX identifier. `Artistic` is Perl's, as Debian's common-licenses has it. */
const SPDX_IDS: ReadonlyMap<string, string> = new Map([
  ...gnu('gpl', 'GPL', ['1', '2', '3']),
  ...gnu('lgpl', 'LGPL', ['2', '2.1', '3']),
  ...gnu('agpl', 'AGPL', ['3']),
  ...gnu('gfdl', 'GFDL', ['1.1', '1.2', '1.3']),
  ['0bsd', '0BSD'],
  ['apache-2', 'Apache-2.0'],
  ['apache-2.0', 'Apache-2.0'],
  ['artistic', 'Artistic-1.0-Perl'],
  ['artistic-2', 'Artistic-2.0'],
  ['artistic-2.0', 'Artistic-2.0'],
  ['boost-1.0', 'BSL-1.0'],
  ['bsd-2-clause', 'BSD-2-Clause'],
  ['bsd-3-clause', 'BSD-3-Clause'],
  ['bsd-4-clause', 'BSD-4-Clause'],
  ['bsd-4-clause-uc', 'BSD-4-Clause-UC'],
  ['bsl-1.0', 'BSL-1.0'],
  ['cc-by-3.0', 'CC-BY-3.0'],
  ['cc-by-4.0', 'CC-BY-4.0'],
  ['cc-by-sa-3.0', 'CC-BY-SA-3.0'],
  ['cc-by-sa-4.0', 'CC-BY-SA-4.0'],
  ['cc0', 'CC0-1.0'],
  ['cc0-1.0', 'CC0-1.0'],
  ['curl', 'curl'],
  ['expat', 'MIT'],
  ['fsfap', 'FSFAP'],
  ['fsful', 'FSFUL'],
  ['fsfullr', 'FSFULLR'],
  ['isc', 'ISC'],
  ['mit', 'MIT'],
  ['mit-0', 'MIT-0'],
  ['mpl-1.1', 'MPL-1.1'],
  ['mpl-2.0', 'MPL-2.0'],
  ['ofl-1.1', 'OFL-1.1'],
  ['openssl', 'OpenSSL'],
  ['psf-2', 'PSF-2.0'],
  ['python-2.0', 'Python-2.0'],
  ['sleepycat', 'Sleepycat'],
  ['unlicense', 'Unlicense'],
  ['w3c', 'W3C'],
  ['wtfpl', 'WTFPL'],
  ['x11', 'X11'],
  ['zlib', 'Zlib'],
]);

function gnu(debian: string, spdx: string, versions: readonly string[]): [string, string][] {
  return versions.flatMap((version) => {
    const full = version.includes('.') ? version : `${version}.0`;
    return [...new Set([version, full])].flatMap((written): [string, string][] => [
      [`${debian}-${written}`, `${spdx}-${full}-only`],
      [`${debian}-${written}+`, `${spdx}-${full}-or-later`],
    ]);
  });
}

/** Every identifier that {@link toSpdx} may give. */
export const KNOWN_SPDX_IDS: readonly string[] = [...new Set(SPDX_IDS.values())].sort();

/** Of one package; a copyright file with more is a list of its files. */
const MAX_LICENCES = 200;
const MAX_NAME_CHARACTERS = 200;

/** The licences of the files of a package, each once, sorted. Undefined if the file is not machine-readable. */
export function declaredLicences(copyright: string): readonly string[] | undefined {
  const [header, ...paragraphs] = parseStanzas(copyright);
  if (!/copyright-format|\bdep5\b|\/dep-?5/i.test(header?.get('format') ?? '')) return undefined;
  const names = paragraphs
    // A paragraph without `Files` holds the text of a licence that others name.
    .filter((paragraph) => paragraph.has('files'))
    .map((paragraph) => (paragraph.get('license')?.split('\n', 1)[0] ?? '').trim().replaceAll(/\s+/g, ' '))
    .filter((name) => name !== '' && name.length <= MAX_NAME_CHARACTERS);
  return names.length === 0 ? undefined : [...new Set(names)].sort().slice(0, MAX_LICENCES);
}

/** A licence of Debian's, such as `GPL-2+ or Artistic`, as an SPDX expression; undefined if a part of it is not known. */
export function toSpdx(name: string): string | undefined {
  const words = name.split(/\s+/);
  const parts: string[] = [];
  for (const [index, word] of words.entries()) {
    // `and` binds more strongly than `or` in both languages. Commas group, and exceptions follow `with`: left alone.
    const operator = /^(?:and|or)$/i.test(word) ? word.toUpperCase() : undefined;
    const part = index % 2 === 1 ? operator : SPDX_IDS.get(word.toLowerCase());
    if (part === undefined) return undefined;
    parts.push(part);
  }
  return words.length % 2 === 1 ? parts.join(' ') : undefined;
}
