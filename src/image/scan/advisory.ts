/** A vulnerability as the database has it, in the terms of the OSV schema. */

export interface Advisory {
  /** `CVE-2026-1234`, `DSA-6001-1`, `GHSA-…`. */
  readonly id: string;
  /** Other names of the same. */
  readonly aliases: readonly string[];
  /** What it comes from; a distribution's advisory may bundle several. */
  readonly upstream: readonly string[];
  /** One line, cut to size; may be empty. */
  readonly summary: string;
  /** RFC 3339. */
  readonly published?: string;
  readonly modified?: string;
  /** CVSS vectors of version 3 and 4. */
  readonly vectors: readonly string[];
  /** What the feed calls its severity, where it does. */
  readonly word?: string;
  readonly affected: readonly Affected[];
}

export interface Affected {
  readonly ecosystem: Ecosystem;
  /** In Debian the source package. */
  readonly package: string;
  readonly ranges: readonly Range[];
  /** Affected versions that no range covers. */
  readonly versions: readonly string[];
  /** Of this package: CVSS vectors, and a word such as Debian's urgency. */
  readonly vectors: readonly string[];
  readonly word?: string;
}

/** `Debian:12`, `npm`: what images hold. */
export type Ecosystem = `Debian:${number}` | 'npm';

export type RangeEvent = readonly ['introduced' | 'fixed' | 'last_affected' | 'limit', string];
/** Events of one line of development, in the order of the feed. */
export type Range = readonly RangeEvent[];

/** Why a record of a feed is not in the database. */
export type Skipped = 'withdrawn' | 'other';

/** The ecosystem that a feed names, if it is one whose packages images hold. */
export function ecosystemOf(name: string): Ecosystem | undefined {
  if (name === 'npm') return 'npm';
  const release = /^Debian:([1-9][0-9]{0,2})$/.exec(name)?.[1];
  return release === undefined ? undefined : `Debian:${Number(release)}`;
}

/** Code names of Debian's releases; the tracker and apt use these, OSV the numbers. */
const DEBIAN_RELEASES: Readonly<Record<string, number>> = {
  stretch: 9,
  buster: 10,
  bullseye: 11,
  bookworm: 12,
  trixie: 13,
  forky: 14,
  duke: 15,
};

/** `bookworm` or `12` → `Debian:12`. */
export function debianEcosystem(release: string): Ecosystem | undefined {
  if (/^[1-9][0-9]{0,2}$/.test(release)) return `Debian:${Number(release)}`;
  const number = Object.hasOwn(DEBIAN_RELEASES, release) ? DEBIAN_RELEASES[release] : undefined;
  return number === undefined ? undefined : `Debian:${number}`;
}

/** Limits of one record; the largest real ones are a tenth of it. Feeds come from outside. */
export const MAX_RECORD_BYTES = 16 * 1024 * 1024;
export const MAX_NAMES = 2000;
export const MAX_AFFECTED = 20_000;
export const MAX_VERSIONS = 100_000;
export const MAX_EVENTS = 2000;
export const MAX_VERSION_CHARACTERS = 256;
export const MAX_SUMMARY_CHARACTERS = 300;
