/** A scan as a SARIF 2.1.0 log, as code scanning of forges reads it. Pure: the same result gives the same bytes. */
import { doesCount, type JudgedFinding, type ScanResult } from './result.ts';
import type { Severity } from './severity.ts';

const LEVELS: Readonly<Record<Severity, 'error' | 'warning' | 'note'>> = {
  critical: 'error',
  high: 'error',
  medium: 'warning',
  unknown: 'warning',
  low: 'note',
  negligible: 'note',
};
/** `security-severity` is a number; where there is no score, the middle of its range. */
const SCORES: Readonly<Record<Severity, number>> = {
  critical: 9.5,
  high: 8,
  medium: 5.5,
  unknown: 5.5,
  low: 2,
  negligible: 0.1,
};

/** `version`: of ct. */
export function toSarif(result: ScanResult, version: string): string {
  const { image, findings, source, detector, scannedAt } = result;
  const rules = [...Map.groupBy(findings, ({ id }) => id)].sort(([a], [b]) => (a < b ? -1 : 1));
  const indexes = new Map(rules.map(([id], index) => [id, index]));
  const log = {
    $schema: 'https://json.schemastore.org/sarif-2.1.0.json',
    version: '2.1.0',
    runs: [
      {
        tool: {
          driver: {
            name: 'ct image scan',
            semanticVersion: version,
            rules: rules.map(([id, of]) => ruleOf(id, of)),
          },
        },
        invocations: [{ executionSuccessful: true, endTimeUtc: scannedAt }],
        automationDetails: { id: `ct-image-scan/${image.name}/` },
        properties: { image: image.digest, detector, revision: source.revision, asOf: source.asOf },
        columnKind: 'utf16CodeUnits',
        results: findings.map((finding) => resultOf(finding, image.name, indexes.get(finding.id) ?? 0)),
      },
    ],
  };
  return `${JSON.stringify(log, undefined, 2)}\n`;
}

function ruleOf(id: string, findings: readonly JudgedFinding[]): object {
  const worst = findings[0];
  const severity = worst?.severity ?? 'unknown';
  return {
    id,
    shortDescription: { text: worst === undefined || worst.summary === '' ? id : worst.summary },
    defaultConfiguration: { level: LEVELS[severity] },
    properties: {
      tags: ['security', 'vulnerability', severity],
      'security-severity': String(worst?.score ?? SCORES[severity]),
    },
  };
}

function resultOf(finding: JudgedFinding, image: string, ruleIndex: number): object {
  const { id, severity, package: entry, fixedIn, exception } = finding;
  const fix = fixedIn === undefined ? 'There is no fixed version yet.' : `Fixed in ${fixedIn}.`;
  return {
    ruleId: id,
    ruleIndex,
    level: LEVELS[severity],
    message: { text: `${entry.name} ${entry.version} in image ${image}: ${id} (${severity}). ${fix}` },
    locations: [
      {
        // Images have no lines of text; forges want a file. The definition is what a fix would change.
        physicalLocation: {
          artifactLocation: { uri: `images/${encodeURIComponent(image)}.yml` },
          region: { startLine: 1 },
        },
        logicalLocations: entry.purls.map((purl) => ({ fullyQualifiedName: purl, kind: 'package' })),
      },
    ],
    // Stays the same from one database, and from one version of the package, to the next.
    partialFingerprints: { 'vulnerability/v1': `${image}:${entry.ecosystem}:${entry.name}:${id}` },
    ...(exception === undefined || doesCount(finding)
      ? {}
      : { suppressions: [{ kind: 'external', status: 'accepted', justification: exception.reason }] }),
  };
}
