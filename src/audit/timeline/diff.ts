/** What one run did and another did not. Chance is taken out of paths first ({@link withoutChance}), and numbers of processes do not count. */
import { withoutChance } from './paths.ts';
import type { Destination, Program, Refused, Report, WrittenFile } from './report.ts';

export interface Difference<E> {
  /** In the later run alone. */
  readonly added: readonly E[];
  /** In the earlier run alone. */
  readonly removed: readonly E[];
}

/** A program that has another digest is a new one; `was`: digests that its path had in the other run. */
export interface ProgramChange extends Pick<Program, 'path' | 'digest'> {
  readonly was: readonly string[];
}

export interface ReportDiff {
  readonly programs: Difference<ProgramChange>;
  readonly destinations: Difference<Pick<Destination, 'host' | 'port' | 'protocol'>>;
  readonly written: Difference<Pick<WrittenFile, 'what' | 'path'>>;
  readonly refused: Difference<Pick<Refused, 'what' | 'path' | 'digest'>>;
  /** A run had more than its report holds: what is said to be in one alone may be in both. */
  readonly isIncomplete: boolean;
}

/** Compares a run with an earlier one. */
export function diffReports(earlier: Report, later: Report): ReportDiff {
  return {
    programs: diffPrograms(earlier.programs, later.programs),
    destinations: diffBy(
      earlier.destinations,
      later.destinations,
      ({ host, port, protocol }) => `${host} ${port} ${protocol}`,
      ({ host, port, protocol }) => ({ host, port, protocol }),
    ),
    written: diffBy(
      earlier.written,
      later.written,
      ({ what, path }) => `${what} ${withoutChance(path)}`,
      ({ what, path }) => ({ what, path: withoutChance(path) }),
    ),
    refused: diffBy(
      earlier.refused,
      later.refused,
      ({ what, path, digest = '' }) => `${what} ${digest} ${withoutChance(path)}`,
      ({ what, path, digest }) => ({
        what,
        path: withoutChance(path),
        ...(digest === undefined ? {} : { digest }),
      }),
    ),
    isIncomplete: earlier.omitted.entries + later.omitted.entries > 0,
  };
}

/** Programs are compared by what they are, where both runs know that; else by where they lie. */
function diffPrograms(earlier: readonly Program[], later: readonly Program[]): Difference<ProgramChange> {
  const changes = (from: readonly Program[], to: readonly Program[]): ProgramChange[] => {
    const before = Map.groupBy(from, ({ path }) => withoutChance(path));
    const found = new Map<string, ProgramChange>();
    for (const { path: written, digest } of to) {
      const path = withoutChance(written);
      const same = before.get(path) ?? [];
      const known = same.flatMap((program) => program.digest ?? []);
      const isKnown = digest === undefined || known.length === 0 ? same.length > 0 : known.includes(digest);
      if (isKnown) continue;
      found.set(`${path} ${digest ?? ''}`, {
        path,
        ...(digest === undefined ? {} : { digest }),
        was: [...new Set(known)],
      });
    }
    return [...found.values()];
  };
  return { added: changes(earlier, later), removed: changes(later, earlier) };
}

function diffBy<E, T>(
  earlier: readonly E[],
  later: readonly E[],
  key: (entry: E) => string,
  told: (entry: E) => T,
): Difference<T> {
  const [before, after] = [keyed(earlier, key), keyed(later, key)];
  const without = (from: ReadonlyMap<string, E>, other: ReadonlyMap<string, E>): T[] =>
    [...from].flatMap(([name, entry]) => (other.has(name) ? [] : [told(entry)]));
  return { added: without(after, before), removed: without(before, after) };
}

function keyed<E>(entries: readonly E[], key: (entry: E) => string): ReadonlyMap<string, E> {
  return new Map(entries.map((entry) => [key(entry), entry]));
}

export function isEmptyDiff({ programs, destinations, written, refused }: ReportDiff): boolean {
  return [programs, destinations, written, refused].every(
    ({ added, removed }) => added.length === 0 && removed.length === 0,
  );
}
