/**
 * What a scan found, kept for whoever has to decide later:
 *
 *     vuln/results/<hex of the image's digest>/<hex of the database's revision>.json    (`apt.json` of the apt detector)
 *     vuln/told/<hex of the image's digest>.json                                        findings that an alert was raised for
 *
 * Files appear complete or not at all.
 */
import { readdir, readFile, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { writeAtomically } from '../../core/atomic-file.ts';
import { isObject } from '../../core/json.ts';
import { directoryState } from '../signatures.ts';
import { vulnDirectory } from './database.ts';
import type { Exception } from './exceptions.ts';
import type { Finding } from './match.ts';
import { SEVERITIES, type Severity } from './severity.ts';

export interface JudgedFinding extends Finding {
  /** Absent: it counts. With `expired` it counts again. */
  readonly exception?: {
    readonly status: Exception['status'];
    readonly reason: string;
    readonly from: string;
    /** RFC 3339. */
    readonly expires?: string;
    readonly expired: boolean;
  };
}

/** docs/scanning.md describes it; policies will be asked about it. Changes with `version`. */
export interface ScanResult {
  readonly version: 1;
  readonly image: { readonly name: string; readonly digest: string };
  readonly detector: 'database' | 'apt';
  /** What the findings come from; `revision` names it. RFC 3339. */
  readonly source: { readonly revision: string; readonly asOf: string };
  readonly scannedAt: string;
  readonly packages: { readonly examined: number; readonly unexamined: readonly string[] };
  /** Of the findings that count. */
  readonly counts: Readonly<Record<Severity, number>>;
  /** The worst first; also those that do not count. */
  readonly findings: readonly JudgedFinding[];
}

/** Of one image; each takes some 100 KB. */
const RESULTS_KEPT = 10;
const MAX_RESULT_BYTES = 256 * 1024 * 1024;

export function doesCount({ exception }: JudgedFinding): boolean {
  return exception === undefined || exception.expired;
}

function doesCountAt({ exception }: JudgedFinding, now: Date): boolean {
  if (exception === undefined || exception.expired) return true;
  return exception.expires !== undefined && !(now.getTime() <= Date.parse(exception.expires));
}

export function countFindings(findings: readonly JudgedFinding[]): Readonly<Record<Severity, number>> {
  return countSeverities(findings.filter(doesCount));
}

function countSeverities(findings: readonly JudgedFinding[]): Readonly<Record<Severity, number>> {
  const counts = Object.fromEntries(SEVERITIES.map((severity) => [severity, 0])) as Record<Severity, number>;
  // A severity that is none is of a file that somebody changed.
  for (const { severity } of findings) counts[Object.hasOwn(counts, severity) ? severity : 'critical'] += 1;
  return counts;
}

/** What policies are told of an image; facts only. Names are those of the JSON documents. */
export interface ScanFacts {
  readonly detector: ScanResult['detector'];
  readonly scanned_at: string;
  /** Of when the source is, and which it was. */
  readonly as_of: string;
  readonly revision: string;
  /** Of the findings that count. */
  readonly counts: ScanResult['counts'];
  readonly worst: Severity | null;
  /** Findings that somebody has accepted. */
  readonly accepted: number;
  /** Of those that count, how many have a fix. */
  readonly fixable: number;
  readonly unexamined: number;
}

/** `now`: what somebody has accepted until then counts again. */
export function scanFacts(result: ScanResult, now: Date): ScanFacts {
  const counting = result.findings.filter((finding) => doesCountAt(finding, now));
  return {
    detector: result.detector,
    scanned_at: result.scannedAt,
    as_of: result.source.asOf,
    revision: result.source.revision,
    counts: countSeverities(counting),
    worst: counting[0]?.severity ?? null,
    accepted: result.findings.length - counting.length,
    fixable: counting.filter(({ fixedIn }) => fixedIn !== undefined).length,
    unexamined: result.packages.unexamined.length,
  };
}

export function resultPath(
  ctHome: string,
  result: Pick<ScanResult, 'image' | 'detector' | 'source'>,
): string {
  const file = result.detector === 'apt' ? 'apt' : hexOf(result.source.revision);
  return join(resultsDirectory(ctHome), hexOf(result.image.digest), `${file}.json`);
}

/** Returns where it lies. Of each image the newest are kept. */
export async function storeResult(ctHome: string, result: ScanResult): Promise<string> {
  const path = resultPath(ctHome, result);
  await writeAtomically(path, `${JSON.stringify(result, undefined, 1)}\n`);
  const directory = dirname(path);
  const files = (await readdir(directory)).filter((name) => name.endsWith('.json'));
  const aged = await Promise.all(
    files.map(async (name) => ({ name, mtimeMs: (await stat(join(directory, name))).mtimeMs })),
  );
  for (const { name } of aged.sort((a, b) => b.mtimeMs - a.mtimeMs).slice(RESULTS_KEPT)) {
    await rm(join(directory, name), { force: true });
  }
  return path;
}

/** The newest result of an image; undefined if it was never scanned, or what is there cannot be read. */
export async function latestResult(ctHome: string, digest: string): Promise<ScanResult | undefined> {
  const directory = join(resultsDirectory(ctHome), hexOf(digest));
  const names = await readdir(directory).catch(() => []);
  const results = await Promise.all(
    names.filter((name) => name.endsWith('.json')).map((name) => read(join(directory, name))),
  );
  return results
    .filter((result) => result !== undefined)
    .sort((a, b) => (a.scannedAt < b.scannedAt ? 1 : -1))[0];
}

/** Changes with what is stored of an image; empty if nothing is. */
export function resultsState(ctHome: string, digest: string): Promise<string> {
  return directoryState(join(resultsDirectory(ctHome), hexOf(digest)), '.json');
}

/** Removes what was found in images that are not stored any more. */
export async function forgetGone(
  ctHome: string,
  isStored: (digest: string) => Promise<boolean>,
): Promise<void> {
  for (const [directory, suffix] of [
    [resultsDirectory(ctHome), ''],
    [toldDirectory(ctHome), '.json'],
  ] as const) {
    for (const name of await readdir(directory).catch(() => [])) {
      const hex = /^[0-9a-f]{64}/.exec(name)?.[0];
      if (hex === undefined || name !== `${hex}${suffix}` || (await isStored(`sha256:${hex}`))) continue;
      await rm(join(directory, name), { recursive: true, force: true });
    }
  }
}

async function read(path: string): Promise<ScanResult | undefined> {
  try {
    if ((await stat(path)).size > MAX_RESULT_BYTES) return undefined;
    const result: unknown = JSON.parse(await readFile(path, 'utf8'));
    return isResult(result) ? result : undefined;
  } catch {
    return undefined;
  }
}

/** As far as policies are told of it: what was changed on disk is no result. */
function isResult(value: unknown): value is ScanResult {
  if (!isObject(value) || value['version'] !== 1) return false;
  const { image, source, scannedAt, packages, findings, detector } = value;
  return (
    (detector === 'database' || detector === 'apt') &&
    isObject(image) &&
    isObject(source) &&
    isObject(packages) &&
    [image['digest'], source['revision'], source['asOf'], scannedAt].every(
      (text) => typeof text === 'string',
    ) &&
    Array.isArray(packages['unexamined']) &&
    Array.isArray(findings) &&
    findings.every((finding) => isObject(finding) && typeof finding['severity'] === 'string')
  );
}

/** A finding as alerts tell them apart. */
export function findingKey({ id, package: { ecosystem, name } }: Finding): string {
  return `${id} ${ecosystem} ${name}`;
}

/** What was told of an image before; undefined if it never was looked at. */
export async function readTold(ctHome: string, digest: string): Promise<ReadonlySet<string> | undefined> {
  try {
    const keys: unknown = JSON.parse(await readFile(toldPath(ctHome, digest), 'utf8'));
    return Array.isArray(keys) ? new Set(keys.map(String)) : undefined;
  } catch {
    return undefined;
  }
}

export async function writeTold(ctHome: string, digest: string, keys: ReadonlySet<string>): Promise<void> {
  await writeAtomically(toldPath(ctHome, digest), JSON.stringify([...keys].sort()));
}

function toldPath(ctHome: string, digest: string): string {
  return join(toldDirectory(ctHome), `${hexOf(digest)}.json`);
}

function toldDirectory(ctHome: string): string {
  return join(vulnDirectory(ctHome), 'told');
}

function resultsDirectory(ctHome: string): string {
  return join(vulnDirectory(ctHome), 'results');
}

function hexOf(digest: string): string {
  const hex = /^sha256:([0-9a-f]{64})$/.exec(digest)?.[1];
  if (hex === undefined) throw new Error(`no digest: ${digest}`);
  return hex;
}
