/** What is different between two sets of packages. */
import { compareDebianVersions } from './debian-version.ts';

export interface VersionedPackage {
  readonly name: string;
  readonly version: string;
  /** Of the file, where it is known: the same version may come with other contents. */
  readonly sha256?: string;
}

export type PackageChange = 'added' | 'removed' | 'upgraded' | 'downgraded' | 'rebuilt';

export interface PackageDifference {
  readonly name: string;
  readonly change: PackageChange;
  readonly from?: string;
  readonly to?: string;
}

/** By name. `compare` orders versions; Debian's order if absent. */
export function diffPackages(
  from: readonly VersionedPackage[],
  to: readonly VersionedPackage[],
  compare: (a: string, b: string) => number = compareDebianVersions,
): readonly PackageDifference[] {
  const before = new Map(from.map((entry) => [entry.name, entry]));
  const after = new Map(to.map((entry) => [entry.name, entry]));
  return [...new Set([...before.keys(), ...after.keys()])].sort().flatMap((name): PackageDifference[] => {
    const [old, now] = [before.get(name), after.get(name)];
    if (old === undefined) return [{ name, change: 'added', to: now?.version ?? '' }];
    if (now === undefined) return [{ name, change: 'removed', from: old.version }];
    const versions = { from: old.version, to: now.version };
    if (old.version !== now.version) {
      return [
        { name, change: compare(old.version, now.version) > 0 ? 'downgraded' : 'upgraded', ...versions },
      ];
    }
    const same = old.sha256 === undefined || now.sha256 === undefined || old.sha256 === now.sha256;
    return same ? [] : [{ name, change: 'rebuilt', ...versions }];
  });
}

/** `git 1:2.39.5-0+deb12u2 → 1:2.39.5-0+deb12u3`. */
export function describeDifference({ name, change, from, to }: PackageDifference): string {
  if (change === 'added') return `+ ${name} ${to}`;
  if (change === 'removed') return `- ${name} ${from}`;
  if (change === 'rebuilt') return `~ ${name} ${to}, with another digest`;
  return `~ ${name} ${from} → ${to}${change === 'downgraded' ? ' (older)' : ''}`;
}
