/** Debian changelogs (deb-changelog(5)): which vulnerabilities the versions between two fix, by their own words. Pure. */
import { compareDebianVersions } from '../debian-version.ts';
import { bySeverity, type Severity, severityOfWord } from './severity.ts';
import { advisorySource } from './source-package.ts';

/** Entries looked at; a package that is this far behind has other worries. */
const MAX_ENTRIES = 500;
const MAX_IDS = 2000;
const HEADING = /^([a-z0-9][a-z0-9+.-]*) \(([^()\s]+)\) [^;]*;.*?\burgency=([a-z]+)/;

export interface ChangelogPart {
  readonly cves: readonly string[];
  /** The most urgent of the entries. */
  readonly severity: Severity;
}

/** Of the entries after version `from`, up to and with `to`. */
export function readChangelog(text: string, from: string, to: string): ChangelogPart {
  const cves = new Set<string>();
  const severities: Severity[] = [];
  let isWanted = false;
  let entries = 0;
  for (const line of text.split('\n')) {
    const heading = HEADING.exec(line);
    if (heading) {
      const [, sourceName = '', written = '', urgency = ''] = heading;
      const { sourceVersion: version } = advisorySource({ sourceName, sourceVersion: written });
      entries += 1;
      if (entries > MAX_ENTRIES || compareDebianVersions(version, from) <= 0) break;
      isWanted = compareDebianVersions(version, to) <= 0;
      if (isWanted) severities.push(severityOfWord(urgency));
    } else if (isWanted) {
      for (const [id] of line.matchAll(/\bCVE-[0-9]{4}-[0-9]{4,7}\b/g)) if (cves.size < MAX_IDS) cves.add(id);
    }
  }
  return { cves: [...cves].sort(), severity: severities.sort(bySeverity)[0] ?? 'unknown' };
}
