/** Whether a version is affected: ranges of the OSV schema, in the order of the ecosystem. Pure. */
import { compareDebianVersions } from '../debian-version.ts';
import type { Ecosystem, Range, RangeEvent } from './advisory.ts';
import { compareSemver } from './semver.ts';

export type Order = (a: string, b: string) => number;

export function orderOf(ecosystem: Ecosystem): Order {
  return ecosystem === 'npm' ? compareSemver : compareDebianVersions;
}

export function isInRanges(version: string, ranges: readonly Range[], order: Order): boolean {
  return ranges.some((range) => isInRange(version, range, order));
}

/** The evaluation of the OSV schema: events sorted by version; the last one that the version has reached decides. */
function isInRange(version: string, range: Range, order: Order): boolean {
  const limits = range.filter(([kind, at]) => kind === 'limit' && at !== '*');
  if (limits.length > 0 && limits.every(([, at]) => order(version, at) >= 0)) return false;
  let isAffected = false;
  for (const [kind, at] of sorted(range, order)) {
    if (kind === 'introduced' && reaches(version, at, order)) isAffected = true;
    else if (kind === 'fixed' && order(version, at) >= 0) isAffected = false;
    else if (kind === 'last_affected' && order(version, at) > 0) isAffected = false;
  }
  return isAffected;
}

/** The first fix after `version` in the ranges that it is in. */
export function fixAfter(version: string, ranges: readonly Range[], order: Order): string | undefined {
  const fixes = ranges
    .filter((range) => isInRange(version, range, order))
    .map(
      (range) => sorted(range, order).find(([kind, at]) => kind === 'fixed' && order(at, version) > 0)?.[1],
    );
  // Whoever is in several ranges has to leave all of them; one without a fix cannot be left.
  return fixes.includes(undefined) ? undefined : fixes.toSorted((a, b) => order(a ?? '', b ?? '')).at(-1);
}

/** `0` stands for a version before any other. */
function reaches(version: string, introduced: string, order: Order): boolean {
  return introduced === '0' || order(version, introduced) >= 0;
}

/** Where a fix and a new introduction fall together, the version is affected. */
function sorted(range: Range, order: Order): readonly RangeEvent[] {
  const rank = ([kind]: RangeEvent): number => (kind === 'introduced' ? 1 : 0);
  if (range.length < 2) return range;
  return range.toSorted((a, b) => {
    if (a[1] === '0' || b[1] === '0') return a[1] === b[1] ? rank(a) - rank(b) : a[1] === '0' ? -1 : 1;
    return order(a[1], b[1]) || rank(a) - rank(b);
  });
}
