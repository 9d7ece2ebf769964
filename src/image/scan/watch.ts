/**
 * Looks again whenever there is reason to: another database, another image, or an hour gone by, in which exceptions end and
 * databases grow old. What was not there before in an image that jobs start from is an alert, one per image and look.
 */
import { stat } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Alert, type AlertSink, imageInPlaceOfRun, newAlert } from '../../audit/alert.ts';
import type { StoredImage } from '../store.ts';
import { databasePath } from './database.ts';
import {
  findingKey,
  type JudgedFinding,
  readTold,
  type ScanResult,
  storeResult,
  writeTold,
} from './result.ts';
import { failing, type Scan } from './scan.ts';
import type { Severity, Threshold } from './severity.ts';

export const ALERT_RULE = 'ct.image.vulnerability';
/** Of findings that raise an alert if nothing else is said. */
export const ALERT_THRESHOLD = 'high';

export interface WatchOptions {
  readonly ctHome: string;
  /** Images that a name stands for now: those that jobs start from. */
  readonly images: () => Promise<readonly StoredImage[]>;
  readonly scan: (image: StoredImage) => Promise<Scan>;
  readonly alerts: AlertSink;
  /** Of findings that are worth an alert. */
  readonly threshold: Threshold;
  readonly signal: AbortSignal;
  /** After each look at an image; `fresh`: what an alert was raised for. */
  readonly onScan: (scan: Scan, fresh: readonly JudgedFinding[]) => void;
  /** That an image could not be looked at: its last result is all there is. */
  readonly onProblem: (image: StoredImage | undefined, error: unknown) => void;
  readonly pollMs?: number;
  readonly againMs?: number;
}

/** How often it is seen whether something has changed: two calls of stat and a small directory. */
const POLL_MS = 10_000;
const AGAIN_MS = 60 * 60_000;

/** Resolves once `signal` is aborted. */
export async function watchImages(options: WatchOptions): Promise<void> {
  const { signal, pollMs = POLL_MS, againMs = AGAIN_MS } = options;
  let seen = '';
  let dueMs = 0;
  while (!signal.aborted) {
    try {
      const images = await options.images();
      const state = await stateOf(options.ctHome, images);
      if (state !== seen || performance.now() >= dueMs) {
        for (const image of images) {
          if (signal.aborted) return;
          await lookAtImage(image, options);
        }
        seen = state;
        dueMs = performance.now() + againMs;
      }
    } catch (error) {
      options.onProblem(undefined, error);
    }
    await sleep(pollMs, undefined, { signal }).catch(() => {});
  }
}

async function stateOf(ctHome: string, images: readonly StoredImage[]): Promise<string> {
  const database = await stat(databasePath(ctHome), { bigint: true }).catch(() => undefined);
  const names = images.map(({ name, digest }) => `${name} ${digest}`);
  return [String(database?.ino), String(database?.mtimeNs), ...names].join('\n');
}

/** One look: scans, keeps the result, and files an alert about what is new. Never rejects. */
export async function lookAtImage(
  image: StoredImage,
  options: Pick<WatchOptions, 'ctHome' | 'scan' | 'alerts' | 'threshold' | 'onScan' | 'onProblem'>,
): Promise<void> {
  try {
    const scan = await options.scan(image);
    const file = await storeResult(options.ctHome, scan.result);
    const told = await readTold(options.ctHome, image.digest);
    const found = failing(scan.result, options.threshold);
    const fresh = found.filter((finding) => told?.has(findingKey(finding)) !== true);
    const alert = alertOf(scan.result, fresh, file);
    if (alert) options.alerts.file(alert);
    // After it was filed: told twice is better than not at all.
    await writeTold(options.ctHome, image.digest, new Set(found.map(findingKey)));
    options.onScan(scan, fresh);
  } catch (error) {
    options.onProblem(image, error);
  }
}

const ALERT_SEVERITIES: Readonly<Record<Severity, Alert['severity']>> = {
  critical: 'critical',
  high: 'high',
  medium: 'medium',
  unknown: 'medium',
  low: 'low',
  negligible: 'low',
};

/** `fresh`: the worst first. Undefined if there is none. `file`: of the result. */
export function alertOf(
  { image, scannedAt }: ScanResult,
  fresh: readonly JudgedFinding[],
  file: string,
): Alert | undefined {
  const [worst] = fresh;
  if (!worst) return undefined;
  const { id, severity, package: entry, fixedIn } = worst;
  const fix = fixedIn === undefined ? 'not fixed yet' : `fixed in ${fixedIn}`;
  const count = fresh.length === 1 ? 'a new vulnerability' : `${fresh.length} new vulnerabilities, such as`;
  return newAlert(
    new Date(scannedAt),
    {
      severity: ALERT_SEVERITIES[severity],
      title: `image ${image.name} has ${count} ${id} (${severity}) in ${entry.name} ${entry.version}, ${fix}`,
      rule: ALERT_RULE,
      action: 'recorded',
      run: imageInPlaceOfRun(image),
      evidence: { file, id },
    },
    fresh.length,
  );
}
