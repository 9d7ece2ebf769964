/**
 * One member of the Debian security tracker's JSON: a source package with its vulnerabilities, each with its state per
 * release. It comes from outside; fields that we use must have the types that the tracker writes, or the feed is refused.
 *
 *     "openssl": {"CVE-2026-1": {"description": "…", "releases": {"bookworm": {"status": "resolved",
 *       "fixed_version": "3.0.15-1~deb12u1", "urgency": "not yet assigned"}}}}
 */
import { CtError } from '../../core/errors.ts';
import { isObject } from '../../core/json.ts';
import { type Advisory, type Affected, debianEcosystem, MAX_VERSIONS } from './advisory.ts';
import { isVersion, shortSummary } from './osv.ts';

/** Names of Debian policy (5.6.1). */
const PACKAGE = /^[a-z0-9][a-z0-9+.-]{0,127}$/;
const VULNERABILITY = /^(?:CVE|TEMP)-[A-Za-z0-9-]{1,60}$/;
/** Fixed in this version: it never was affected. */
const NEVER_AFFECTED = '0';

/** Throws VULN_DB_INVALID with the names of package and vulnerability. */
export function parseTrackerPackage(name: string, value: unknown): readonly Advisory[] {
  if (!PACKAGE.test(name) || !isObject(value)) throw wrong(name);
  const entries = Object.entries(value);
  if (entries.length > MAX_VERSIONS) throw wrong(name);
  return entries.flatMap(([id, entry]) => {
    if (!VULNERABILITY.test(id) || !isObject(entry)) throw wrong(name, id);
    const { releases, description = '' } = entry;
    if (!isObject(releases) || typeof description !== 'string') throw wrong(name, id);
    const affected = Object.entries(releases).flatMap(([release, state]) =>
      affectedOf(name, id, release, state),
    );
    if (affected.length === 0) return [];
    return [{ id, aliases: [], upstream: [], summary: shortSummary(description), vectors: [], affected }];
  });
}

/** Every release that a feed knows, also those in which nothing is affected. */
export function releasesOf(value: unknown): readonly string[] {
  if (!isObject(value)) return [];
  return Object.values(value).flatMap((entry) =>
    isObject(entry) && isObject(entry['releases']) ? Object.keys(entry['releases']) : [],
  );
}

function affectedOf(name: string, id: string, release: string, state: unknown): readonly Affected[] {
  const ecosystem = debianEcosystem(release);
  if (ecosystem === undefined) return [];
  if (!isObject(state)) throw wrong(name, id);
  const { status, fixed_version: fixed, urgency } = state;
  if (typeof status !== 'string' || (urgency !== undefined && typeof urgency !== 'string'))
    throw wrong(name, id);
  if (fixed === NEVER_AFFECTED) return [];
  if (fixed !== undefined && (typeof fixed !== 'string' || !isVersion(fixed))) throw wrong(name, id);
  // `undetermined` is not `unaffected`: until somebody has looked, it counts.
  if (!['open', 'resolved', 'undetermined'].includes(status)) throw wrong(name, id);
  if (status === 'resolved' && fixed === undefined) throw wrong(name, id);
  return [
    {
      ecosystem,
      package: name,
      ranges: [[['introduced', '0'], ...(fixed === undefined ? [] : [['fixed', fixed] as const])]],
      versions: [],
      vectors: [],
      ...(urgency === undefined ? {} : { word: urgency.slice(0, 40) }),
    },
  ];
}

function wrong(name: string, id?: string): CtError {
  const what =
    JSON.stringify(name.slice(0, 100)) + (id === undefined ? '' : `, ${JSON.stringify(id.slice(0, 100))}`);
  return new CtError('VULN_DB_INVALID', `the tracker's entry of ${what} is not of the known form`, {
    hint: 'the feed is damaged, or of a newer form; the database is as it was',
  });
}
