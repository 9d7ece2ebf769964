/**
 * Alerts that wait for a webhook, on disk: one file each in `alerts/outbox`, so that they survive whatever ends the host
 * daemon. A file is written under another name first, so it is whole or not there.
 */
import { readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Alert } from './alert.ts';
import { requirePrivateDirectory } from './alert-file.ts';
import { alertOf, MAX_ALERT_BYTES } from './alert-text.ts';

/** Of one webhook: what comes when so many wait already is not queued (it is in the alert file). Some 4 KiB each. */
export const MAX_WAITING = 200;
/** All webhooks together; more were left by somebody else. */
const MAX_FILES = 10_000;

/** An alert on its way to one webhook. */
export interface Delivery {
  /** Name of its file, in the order of filing. */
  readonly file: string;
  readonly webhook: string;
  readonly alert: Alert;
  /** Milliseconds since 1970, as `dueMs`. */
  readonly filedMs: number;
  attempts: number;
  /** Not before. */
  dueMs: number;
}

export class Outbox {
  readonly #directory: string;
  #count = 0;

  /** Makes the directory if it is absent. Throws STATE_DIRECTORY_UNSAFE. */
  constructor(directory: string) {
    this.#directory = directory;
    requirePrivateDirectory(directory);
  }

  /** What an earlier process left, in the order of filing. What is unreadable is removed. */
  load(): Delivery[] {
    const deliveries: Delivery[] = [];
    for (const file of readdirSync(this.#directory).sort().slice(0, MAX_FILES)) {
      const delivery = this.#read(file);
      if (delivery) deliveries.push(delivery);
      else this.#remove(file);
    }
    return deliveries;
  }

  /** Throws what the system says. */
  add(webhook: string, alert: Alert, nowMs: number): Delivery {
    const order = [nowMs, process.pid, this.#count++].map((part) => String(part).padStart(13, '0'));
    const file = `${order.join('-')}.json`;
    const delivery = { file, webhook, alert, filedMs: nowMs, attempts: 0, dueMs: nowMs };
    this.update(delivery);
    return delivery;
  }

  /** Throws what the system says; then the file is as before. */
  update({ file, ...content }: Delivery): void {
    const path = join(this.#directory, file);
    writeFileSync(`${path}.new`, JSON.stringify({ version: 1, ...content }), { mode: 0o600 });
    renameSync(`${path}.new`, path);
  }

  remove({ file }: Delivery): void {
    this.#remove(file);
  }

  #remove(file: string): void {
    rmSync(join(this.#directory, file), { force: true, recursive: true });
  }

  #read(file: string): Delivery | undefined {
    if (!file.endsWith('.json')) return undefined;
    const path = join(this.#directory, file);
    try {
      if (statSync(path).size > 2 * MAX_ALERT_BYTES) return undefined;
      const { version, webhook, filedMs, attempts, dueMs, ...rest } = JSON.parse(readFileSync(path, 'utf8'));
      const alert = alertOf(rest.alert);
      if (version !== 1 || !alert || typeof webhook !== 'string') return undefined;
      if (![filedMs, attempts, dueMs].every(Number.isSafeInteger)) return undefined;
      return { file, webhook, alert, filedMs, attempts, dueMs };
    } catch {
      return undefined;
    }
  }
}
