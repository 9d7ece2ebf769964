/**
 * From packages and advisories to findings: one per vulnerability and source package, whatever names and however many records
 * it has. Pure, but for what it is handed to look advisories up.
 */
import type { Advisory, Affected, Ecosystem } from './advisory.ts';
import { baseScore } from './cvss.ts';
import type { AffectedAdvisory } from './database.ts';
import type { InstalledPackage } from './packages.ts';
import { fixAfter, isInRanges, type Order, orderOf } from './ranges.ts';
import { bySeverity, type Severity, severityOfScore, severityOfWord } from './severity.ts';

export interface Finding {
  /** `CVE-2026-1234`, or another name where it has no CVE. */
  readonly id: string;
  /** All its other names, and those of the advisories that tell of it. */
  readonly aliases: readonly string[];
  readonly severity: Severity;
  /** CVSS base score and vector that gave the severity; absent if a word did, or nothing. */
  readonly score?: number;
  readonly vector?: string;
  readonly summary: string;
  readonly package: {
    readonly ecosystem: Ecosystem;
    /** In Debian the source package and its version. */
    readonly name: string;
    readonly version: string;
    /** Installed packages that come from it. */
    readonly binaries: readonly string[];
    readonly purls: readonly string[];
  };
  /** The first version without it; absent if there is none yet. */
  readonly fixedIn?: string;
  /** RFC 3339; absent where no feed says. */
  readonly published?: string;
}

/** Where advisories are looked up: {@link VulnDatabase}. */
export interface AdvisorySource {
  advisoriesOf(ecosystem: Ecosystem, name: string): readonly AffectedAdvisory[];
  ratingsOf(name: string): readonly string[];
}

/** Findings, the worst first. Packages without an ecosystem are passed over. */
export function findVulnerabilities(
  packages: readonly InstalledPackage[],
  source: AdvisorySource,
): readonly Finding[] {
  const sources = Map.groupBy(
    packages.filter(({ ecosystem }) => ecosystem !== undefined),
    ({ ecosystem, sourceName, sourceVersion }) => `${ecosystem} ${sourceName} ${sourceVersion}`,
  );
  return [...sources.values()].flatMap((group) => findingsOf(group, source)).sort(byUrgency);
}

/** The worst first; then by package and name. */
export function byUrgency(a: Finding, b: Finding): number {
  return (
    bySeverity(a.severity, b.severity) ||
    (b.score ?? 0) - (a.score ?? 0) ||
    compare(a.package.name, b.package.name) ||
    compare(a.id, b.id) ||
    compare(a.package.version, b.package.version)
  );
}

type Record = Omit<Advisory, 'affected'>;

/** What one advisory says of the version at hand. */
interface Match {
  readonly advisory: Record;
  readonly affected: Affected;
  readonly fixedIn: string | undefined;
}

/** `group`: everything installed from one version of one source package. */
function findingsOf(group: readonly InstalledPackage[], source: AdvisorySource): readonly Finding[] {
  const [first] = group;
  if (first?.ecosystem === undefined) return [];
  const { ecosystem, sourceName, sourceVersion } = first;
  const order = orderOf(ecosystem);
  const matches = source.advisoriesOf(ecosystem, sourceName).flatMap(({ advisory, affected }): Match[] => {
    const isAffected =
      isInRanges(sourceVersion, affected.ranges, order) ||
      affected.versions.some((version) => version === sourceVersion || order(version, sourceVersion) === 0);
    return isAffected
      ? [{ advisory, affected, fixedIn: fixAfter(sourceVersion, affected.ranges, order) }]
      : [];
  });
  return [...byVulnerability(matches)].map(([id, { names, matches: told }]): Finding => {
    const fixedIn = latestFix(told, order);
    const published = told.flatMap(({ advisory }) => advisory.published ?? []).sort()[0];
    return {
      id,
      aliases: [...names].filter((name) => name !== id).sort(),
      ...rate([id, ...names], told, source),
      summary: told.map(({ advisory }) => advisory.summary).find((summary) => summary !== '') ?? '',
      package: {
        ecosystem,
        name: sourceName,
        version: sourceVersion,
        binaries: [...new Set(group.map(({ name }) => name))].sort(),
        purls: group.map(({ purl }) => purl).sort(),
      },
      ...(fixedIn === undefined ? {} : { fixedIn }),
      ...(published === undefined ? {} : { published }),
    };
  });
}

/** Whoever goes there is rid of it, whichever record is right. */
function latestFix(matches: readonly Match[], order: Order): string | undefined {
  return matches
    .flatMap(({ fixedIn }) => fixedIn ?? [])
    .sort(order)
    .at(-1);
}

interface Vulnerability {
  readonly names: Set<string>;
  readonly matches: Match[];
}

const isCve = (name: string): boolean => name.startsWith('CVE-');

/**
 * Matches by the vulnerability that they are about. Records that share a name are about the same; aliases may point at each
 * other in circles. A record that names several CVEs (an advisory of a distribution) is about each of them.
 */
function byVulnerability(matches: readonly Match[]): ReadonlyMap<string, Vulnerability> {
  const groups = new Groups();
  const bundles: { readonly match: Match; readonly cves: readonly string[] }[] = [];
  for (const match of matches) {
    const { id, aliases, upstream } = match.advisory;
    const cves = [...new Set([id, ...aliases, ...upstream].filter(isCve))];
    if (cves.length > 1 && !isCve(id)) bundles.push({ match, cves });
    else if (isCve(id)) groups.join([id, ...aliases.filter((name) => !isCve(name))]);
    else groups.join([id, ...aliases, ...(upstream.length === 1 ? upstream : [])]);
  }
  const found = new Map<string, Vulnerability>();
  const put = (name: string, match: Match, extra: readonly string[]): void => {
    const names = groups.namesWith(name);
    const id = names.filter(isCve).sort()[0] ?? names.sort()[0] ?? name;
    const vulnerability = found.get(id) ?? { names: new Set(names), matches: [] };
    for (const alias of extra) vulnerability.names.add(alias);
    vulnerability.matches.push(match);
    found.set(id, vulnerability);
  };
  const bundled = new Set(bundles.map(({ match }) => match));
  for (const match of matches) if (!bundled.has(match)) put(match.advisory.id, match, []);
  for (const { match, cves } of bundles) for (const cve of cves) put(cve, match, [match.advisory.id]);
  return found;
}

/** Disjoint sets of names. */
class Groups {
  readonly #parent = new Map<string, string>();

  join(names: readonly string[]): void {
    const [first = '', ...rest] = names.map((name) => this.#root(name));
    for (const root of rest) this.#parent.set(root, this.#root(first));
    this.#members = undefined;
  }

  namesWith(name: string): string[] {
    this.#members ??= Map.groupBy(this.#parent.keys(), (member) => this.#root(member));
    return [...(this.#members.get(this.#root(name)) ?? [name])];
  }

  #members: Map<string, string[]> | undefined;

  #root(name: string): string {
    let root = name;
    for (let up = this.#parent.get(root); up !== undefined && up !== root; up = this.#parent.get(root))
      root = up;
    // Every name on the way points at the root from now on.
    for (let at = name; at !== root; ) {
      const up = this.#parent.get(at) ?? root;
      this.#parent.set(at, root);
      at = up;
    }
    if (!this.#parent.has(root)) this.#parent.set(root, root);
    return root;
  }
}

/**
 * Debian's word that something has no effect in Debian counts before all else; then the highest score of any vector that is
 * about this, then the worst word. A package that is malware is critical.
 */
function rate(
  names: readonly string[],
  matches: readonly Match[],
  source: AdvisorySource,
): Pick<Finding, 'severity' | 'score' | 'vector'> {
  if (names.some((name) => name.startsWith('MAL-'))) return { severity: 'critical' };
  const words = matches.flatMap(({ advisory, affected }) =>
    [affected.word ?? [], advisory.word ?? []].flat(),
  );
  if (matches.some(({ affected }) => affected.word === 'unimportant')) return { severity: 'negligible' };
  // A bundle's vectors are those of the worst in it.
  const own = matches.flatMap(({ advisory, affected }) =>
    [...advisory.upstream, ...advisory.aliases].filter(isCve).length > 1
      ? []
      : [...affected.vectors, ...advisory.vectors],
  );
  const vectors = own.length > 0 ? own : names.flatMap((name) => source.ratingsOf(name));
  const scored = vectors
    .flatMap((vector) => {
      const score = baseScore(vector);
      return score === undefined ? [] : [{ score, vector }];
    })
    .sort((a, b) => b.score - a.score || compare(a.vector, b.vector))[0];
  if (scored) return { severity: severityOfScore(scored.score), ...scored };
  const worst = words.map(severityOfWord).filter((word) => word !== 'unknown');
  return { severity: worst.sort(bySeverity)[0] ?? 'unknown' };
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
