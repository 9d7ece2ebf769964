/**
 * What somebody has looked at and answers for: findings that do not count, by whose word, and until when. Entries of our own
 * YAML and statements of OpenVEX come to the same here. Pure.
 */
import type { Finding } from './match.ts';
import { parsePurl, purlCovers } from './purl.ts';

export interface Exception {
  /** Names of the vulnerability. */
  readonly ids: readonly string[];
  /** What it covers; empty lists cover everything. */
  readonly packages: readonly string[];
  readonly images: readonly string[];
  /** `affected` takes an earlier word back. */
  readonly status: 'accepted' | 'not_affected' | 'fixed' | 'under_investigation' | 'affected';
  readonly reason: string;
  /** File that says so. */
  readonly from: string;
  /** When it was said, and up to when it holds; milliseconds since 1970. */
  readonly saidMs: number;
  readonly expiresMs: number | undefined;
}

export interface ScannedImage {
  readonly name: string;
  readonly digest: string;
}

/** How a finding is excused, or that an excuse of it has run out. */
export interface Verdict {
  readonly exception: Exception;
  readonly isExpired: boolean;
}

/**
 * What the newest word on a finding is; undefined if there is none. One that has expired excuses nothing, and hides no older
 * word that still holds.
 */
export function judge(
  finding: Finding,
  image: ScannedImage,
  exceptions: readonly Exception[],
  nowMs: number,
): Verdict | undefined {
  const names = new Set([finding.id, ...finding.aliases]);
  const said = exceptions
    .filter((exception) => exception.ids.some((id) => names.has(id)) && covers(exception, finding, image))
    .toSorted((a, b) => b.saidMs - a.saidMs);
  const isExpired = ({ expiresMs }: Exception): boolean => expiresMs !== undefined && expiresMs < nowMs;
  const holding = said.find((exception) => !isExpired(exception));
  if (holding) return holding.status === 'affected' ? undefined : { exception: holding, isExpired: false };
  const [expired] = said;
  return expired && { exception: expired, isExpired: true };
}

function covers(exception: Exception, finding: Finding, image: ScannedImage): boolean {
  const { packages, images } = exception;
  return (
    (images.length === 0 || images.some((pattern) => isImage(pattern, image))) &&
    (packages.length === 0 || packages.some((pattern) => isPackage(pattern, finding)))
  );
}

/** By its name, its digest, or a `pkg:oci/NAME@sha256:…`. */
export function isImage(pattern: string, image: ScannedImage): boolean {
  const purl = parsePurl(pattern);
  if (!purl) return pattern === image.name || pattern === image.digest;
  return (
    purl.type === 'oci' &&
    purl.name === image.name &&
    (purl.version === undefined || purl.version === image.digest)
  );
}

/** By the name of its source package, of one that is installed, or by a purl of either. */
function isPackage(
  pattern: string,
  { package: { ecosystem, name, version, binaries, purls } }: Finding,
): boolean {
  const purl = parsePurl(pattern);
  if (!purl) return pattern === name || binaries.includes(pattern);
  const installed = purls.map(parsePurl).filter((one) => one !== undefined);
  if (installed.some((one) => purlCovers(purl, one))) return true;
  return (
    ecosystem !== 'npm' &&
    purlCovers(purl, { type: 'deb', namespace: 'debian', name, version, qualifiers: new Map() })
  );
}
