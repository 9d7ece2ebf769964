/**
 * Scans images that the daemon uses, as `ct image scan --watch` does, once, in a thread of its own: a scan takes a second, and
 * the daemon answers for running jobs meanwhile. Reads what the daemon's user has written; no byte of a guest.
 */
import { stat } from 'node:fs/promises';
import { parentPort, workerData } from 'node:worker_threads';
import type { Alert } from '../audit/alert.ts';
import { messageOf } from '../core/errors.ts';
import { readScanConfig } from '../image/scan/config.ts';
import { VulnDatabase } from '../image/scan/database.ts';
import { packagesOfSbom } from '../image/scan/packages.ts';
import { resultPath } from '../image/scan/result.ts';
import { scanWithDatabase } from '../image/scan/scan.ts';
import { readSbom } from '../image/scan/stored-image.ts';
import { ALERT_THRESHOLD, lookAtImage } from '../image/scan/watch.ts';
import { ImageStore } from '../image/store.ts';

export interface ScanOrder {
  readonly ctHome: string;
  readonly policyDirectory: string | undefined;
  /** Of images that jobs start from. */
  readonly digests: readonly string[];
  /** A result of this database that is younger than this will do. */
  readonly againMs: number;
}

export type ScanReport =
  | { readonly type: 'alert'; readonly alert: Alert }
  | { readonly type: 'problem'; readonly message: string };

const { ctHome, policyDirectory, digests, againMs } = workerData as ScanOrder;
const report = (message: ScanReport): void => parentPort?.postMessage(message);

const store = new ImageStore(ctHome);
const { stale, exceptions, failOn } = readScanConfig(policyDirectory);
using database = new VulnDatabase(ctHome);
const source = { revision: database.status.revision, asOf: '' };
for (const image of await store.list()) {
  if (!digests.includes(image.digest) || (await isFresh(image))) continue;
  await lookAtImage(image, {
    ctHome,
    scan: async () =>
      scanWithDatabase(database, {
        image: { name: image.name, digest: image.digest },
        sbom: packagesOfSbom(await readSbom(store, image)),
        exceptions,
        stale,
        now: new Date(),
      }),
    alerts: { file: (alert) => report({ type: 'alert', alert }) },
    threshold: failOn ?? ALERT_THRESHOLD,
    onScan: () => {},
    onProblem: (_image, error) =>
      report({ type: 'problem', message: `image ${image.name} was not scanned: ${messageOf(error)}` }),
  });
}

async function isFresh(image: { readonly name: string; readonly digest: string }): Promise<boolean> {
  const stats = await stat(resultPath(ctHome, { image, detector: 'database', source })).catch(
    () => undefined,
  );
  return stats !== undefined && Date.now() - stats.mtimeMs < againMs;
}
