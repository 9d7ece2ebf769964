/** One look at one image: what is known of its packages, and what of it counts. */
import { CtError } from '../../core/errors.ts';
import type { Ecosystem } from './advisory.ts';
import { asOf, checkAge } from './age.ts';
import type { StaleLimits } from './config.ts';
import type { VulnDatabase } from './database.ts';
import { type Exception, judge, type ScannedImage } from './exceptions.ts';
import { type Finding, findVulnerabilities } from './match.ts';
import type { SbomPackages } from './packages.ts';
import { countFindings, doesCount, type JudgedFinding, type ScanResult } from './result.ts';
import { reaches, type Threshold } from './severity.ts';

export interface ScanOptions {
  readonly image: ScannedImage;
  readonly sbom: SbomPackages;
  readonly exceptions: readonly Exception[];
  readonly stale: StaleLimits;
  readonly now: Date;
}

export interface Scan {
  readonly result: ScanResult;
  /** Sentences for people. */
  readonly warnings: readonly string[];
}

/**
 * Compares an image with the database. Throws VULN_DB_STALE, or VULN_DB_MISSING if the database knows nothing of a kind of package
 * that the image holds: then finding nothing would mean nothing.
 */
export function scanWithDatabase(database: VulnDatabase, options: ScanOptions): Scan {
  const { status } = database;
  const of = asOf(status);
  const warning = checkAge('the vulnerability database', of, options.stale, options.now);
  requireCovered(options.sbom, status.ecosystems);
  return judged(findVulnerabilities(options.sbom.packages, database), options, {
    detector: 'database',
    source: { revision: status.revision, asOf: of.toISOString() },
    warnings: warning === undefined ? [] : [warning],
  });
}

/** Findings with what is said of them, as a result. */
export function judged(
  findings: readonly Finding[],
  { image, sbom, exceptions, now }: ScanOptions,
  origin: Pick<ScanResult, 'detector' | 'source'> & { readonly warnings: readonly string[] },
): Scan {
  const all = findings.map((finding): JudgedFinding => {
    const verdict = judge(finding, image, exceptions, now.getTime());
    if (!verdict) return finding;
    const { status, reason, from, expiresMs } = verdict.exception;
    const expires = expiresMs === undefined ? {} : { expires: new Date(expiresMs).toISOString() };
    return { ...finding, exception: { status, reason, from, ...expires, expired: verdict.isExpired } };
  });
  const expired = all.flatMap(({ id, package: { name }, exception }) =>
    exception?.expired === true
      ? [
          `${id} in ${name} counts again: its exception in ${exception.from} ended on ${exception.expires?.slice(0, 10)}`,
        ]
      : [],
  );
  const { detector, source, warnings } = origin;
  return {
    result: {
      version: 1,
      image: { name: image.name, digest: image.digest },
      detector,
      source,
      scannedAt: now.toISOString(),
      packages: { examined: sbom.packages.length, unexamined: sbom.unexamined },
      counts: countFindings(all),
      findings: all,
    },
    warnings: [...warnings, ...expired],
  };
}

/** Those that count at a threshold. */
export function failing({ findings }: ScanResult, threshold: Threshold): readonly JudgedFinding[] {
  return findings.filter((finding) => doesCount(finding) && reaches(finding.severity, threshold));
}

/** Throws IMAGE_VULNERABLE if something counts at the threshold. */
export function requireClean(result: ScanResult, threshold: Threshold): void {
  const found = failing(result, threshold);
  const [worst] = found;
  if (!worst) return;
  const what = found.length === 1 ? 'vulnerability' : 'vulnerabilities';
  const fixable = found.filter(({ fixedIn }) => fixedIn !== undefined).length;
  throw new CtError(
    'IMAGE_VULNERABLE',
    `${result.image.name} has ${found.length} ${what} of severity ${threshold} or worse, such as ${worst.id} in ${worst.package.name}`,
    {
      hint:
        fixable > 0
          ? `${fixable} would be gone with newer packages: \`ct image build --force ${result.image.name}\``
          : 'docs/scanning.md says how to accept what cannot be fixed yet, with a reason and a date',
    },
  );
}

function requireCovered(
  { packages }: SbomPackages,
  known: Readonly<Partial<Record<Ecosystem, number>>>,
): void {
  const missing = [...new Set(packages.map(({ ecosystem }) => ecosystem))].filter(
    (ecosystem) => known[ecosystem] === undefined,
  );
  if (missing.length === 0) return;
  throw new CtError(
    'VULN_DB_MISSING',
    `the vulnerability database knows nothing of ${missing.sort().join(' and ')}, and the image holds such packages`,
    { hint: `\`ct vuln db update\` with a feed of ${missing[0]}, too; docs/scanning.md says from which` },
  );
}
