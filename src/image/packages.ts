/** Debian packages: how they are named, and what is known of one before its file is there. */
import { parseStanzas } from './sources.ts';

export interface Package {
  readonly name: string;
  readonly version: string;
  readonly architecture: string;
}

/** A package of which only one file counts, and where its source is. */
export interface LockedPackage extends Package {
  /** Hex, of the `.deb`. */
  readonly sha256: string;
  /** The source package, by which Debian's security advisories go. */
  readonly source: string;
  readonly sourceVersion: string;
}

/** As apt takes it. */
export function pin(entry: Package): string {
  return `${entry.name}=${entry.version}`;
}

/** As apt names files in its archive directory: the colon of an epoch is escaped. */
export function fileName(entry: Package): string {
  return `${entry.name}_${entry.version.replaceAll(':', '%3a')}_${entry.architecture}.deb`;
}

export function byName(a: Package, b: Package): number {
  return a.name < b.name ? -1 : a.name > b.name ? 1 : 0;
}

/** `name=version` → package, of the paragraphs of `apt-cache show`; those without a digest are left out. */
export function parseRecords(output: string): ReadonlyMap<string, LockedPackage> {
  const records = new Map<string, LockedPackage>();
  for (const stanza of parseStanzas(output)) {
    const name = stanza.get('package');
    const version = stanza.get('version');
    const architecture = stanza.get('architecture');
    const sha256 = stanza.get('sha256');
    if (name === undefined || version === undefined || architecture === undefined || sha256 === undefined)
      continue;
    const entry = { name, version, architecture, sha256, ...sourceOf(stanza.get('source'), name, version) };
    records.set(pin(entry), entry);
  }
  return records;
}

/** The field `Source` of a binary package: absent if it has the package's name and version (Debian policy §5.6.1). */
export function sourceOf(
  field: string | undefined,
  name: string,
  version: string,
): { readonly source: string; readonly sourceVersion: string } {
  const match = /^(\S+)(?: \(([^)]+)\))?$/.exec(field ?? '');
  return { source: match?.[1] ?? name, sourceVersion: match?.[2] ?? version };
}
