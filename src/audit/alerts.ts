/** Where the host daemon files alerts: each into the alert file, and to every webhook; the same again, as a number. */
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { messageOf } from '../core/errors.ts';
import type { Alert, AlertSink } from './alert.ts';
import type { AlertConfig } from './alert-config.ts';
import { AlertFile } from './alert-file.ts';
import { type Delivery, Outbox } from './alert-outbox.ts';
import { safeAlert } from './alert-text.ts';
import { DELIVERY_LIMITS, type DeliveryLimits, WebhookSender } from './alert-webhook.ts';

export interface AlertLimits {
  /** For so long after an alert the same is only counted. */
  readonly repeatMs: number;
  readonly delivery: DeliveryLimits;
}

export const ALERT_LIMITS: AlertLimits = { repeatMs: 5 * 60_000, delivery: DELIVERY_LIMITS };

/** Different alerts of one run; a job that tries every name there is gets no more lines, only a count per rule. */
const MAX_KINDS_PER_RUN = 50;
/** Of all runs; beyond it the oldest is given up. Some 1 KiB each. */
const MAX_KINDS = 10_000;
/** How long alerts wait for a webhook that is not configured. */
const ORPHANS_MS = 24 * 60 * 60_000;
/** How long the last requests may take when the daemon ends. */
const CLOSE_MS = 2000;

/** One run, rule, action, and destination or file. */
interface Kind {
  /** The newest. */
  alert: Alert;
  /** How often it happened, and how many of these are in the alert file. */
  count: number;
  told: number;
  /** When it is forgotten, or told again; milliseconds of the monotonic clock. */
  dueMs: number;
}

export class Alerts implements AlertSink {
  readonly #file: AlertFile;
  readonly #outbox: Outbox;
  readonly #limits: AlertLimits;
  readonly #onProblem: (message: string) => void;
  /** In the order in which they are due. */
  readonly #kinds = new Map<string, Kind>();
  readonly #kindsPerRun = new Map<string, number>();
  /** What waits for webhooks that are not configured (yet, or any more). */
  #orphans: Delivery[];
  #senders = new Map<string, WebhookSender>();
  #timer: NodeJS.Timeout | undefined;
  #diskHasFailed = false;

  /**
   * `directory`: {@link alertDirectory}. `onProblem` is told what kept an alert from being written or delivered. Throws
   * STATE_DIRECTORY_UNSAFE. Goes on with what an earlier process did not deliver.
   */
  constructor(
    directory: string,
    options: {
      readonly config: AlertConfig;
      readonly onProblem: (message: string) => void;
      readonly limits?: AlertLimits;
    },
  ) {
    this.#limits = options.limits ?? ALERT_LIMITS;
    this.#onProblem = options.onProblem;
    this.#file = new AlertFile(directory);
    this.#outbox = new Outbox(join(directory, 'outbox'));
    this.#orphans = this.#outbox.load();
    this.configure(options.config);
  }

  /** How many deliveries are outstanding. */
  get waiting(): number {
    return [...this.#senders.values()].reduce((sum, { waiting }) => sum + waiting, 0);
  }

  /**
   * From now on these webhooks. What waits for one that is not among them is kept for a day, in case it comes back: whoever
   * changes a configuration makes mistakes.
   */
  configure({ webhooks }: AlertConfig): void {
    const before = this.#senders;
    const orphans = Map.groupBy(this.#orphans, ({ webhook }) => webhook);
    this.#senders = new Map();
    for (const webhook of webhooks) {
      const { name } = webhook;
      const sender = before.get(name);
      if (sender) sender.webhook = webhook;
      this.#senders.set(
        name,
        sender ??
          new WebhookSender(webhook, orphans.get(name) ?? [], {
            outbox: this.#outbox,
            limits: this.#limits.delivery,
            onProblem: this.#onProblem,
          }),
      );
      if (!sender) orphans.delete(name);
      before.delete(name);
    }
    this.#orphans = [...orphans.values()].flat();
    this.#dropOldOrphans();
    for (const sender of before.values()) {
      void sender.close(AbortSignal.abort()).then((left) => this.#orphans.push(...left));
    }
  }

  #dropOldOrphans(): void {
    const isOld = ({ filedMs }: Delivery): boolean => filedMs < Date.now() - ORPHANS_MS;
    const old = this.#orphans.filter(isOld);
    if (old.length === 0) return;
    this.#orphans = this.#orphans.filter((delivery) => !isOld(delivery));
    for (const delivery of old) this.#outbox.remove(delivery);
    this.#onProblem(
      `alerts given up, because their webhook has not been configured for a day: ${old.length}`,
    );
  }

  /** At once in the file; the same again within a while is counted, and told as a number afterwards. */
  file(filed: Alert): void {
    const alert = safeAlert(filed);
    const { key, told } = this.#kindOf(alert);
    const kind = this.#kinds.get(key);
    if (kind) {
      kind.count = Math.max(kind.count + 1, alert.count);
      kind.alert = told;
      return;
    }
    if (this.#kinds.size >= MAX_KINDS) this.#forgetOldest();
    const { id } = alert.run;
    this.#kindsPerRun.set(id, (this.#kindsPerRun.get(id) ?? 0) + 1);
    this.#kinds.set(key, {
      alert: told,
      count: told.count,
      told: told.count,
      dueMs: performance.now() + this.#limits.repeatMs,
    });
    this.#emit(told);
    this.#schedule();
  }

  /** Tells what was only counted, and gives requests that are under way a moment. What then waits stays on disk. */
  async close(): Promise<void> {
    clearTimeout(this.#timer);
    for (const kind of this.#kinds.values()) this.#tellAgain(kind);
    this.#kinds.clear();
    const signal = AbortSignal.timeout(CLOSE_MS);
    await Promise.all([...this.#senders.values()].map((sender) => sender.close(signal)));
    await this.#file.close();
    this.#checkDisk();
  }

  /** What counts as the same. A run with too many destinations has one more for all others of a rule. */
  #kindOf(alert: Alert): { readonly key: string; readonly told: Alert } {
    const { run, rule, action, destination, file } = alert;
    const key = JSON.stringify([run.id, rule, action, destination?.host, destination?.port, file?.path]);
    const isNew = !this.#kinds.has(key);
    // That a run was ended is said in any case: it happens once.
    if (!isNew || action === 'terminated' || (this.#kindsPerRun.get(run.id) ?? 0) < MAX_KINDS_PER_RUN) {
      return { key, told: alert };
    }
    const { destination: _, file: __, ...rest } = alert;
    const others = file === undefined ? 'destinations' : 'files';
    const title = `${alert.title} (and other ${others}: see the decisions of the run)`;
    return { key: JSON.stringify([run.id, rule, action]), told: { ...rest, title } };
  }

  #emit(alert: Alert): void {
    try {
      this.#file.append(alert);
      this.#checkDisk();
    } catch (error) {
      this.#onProblem(`alert ${alert.id} (${alert.title}) could not be written: ${messageOf(error)}`);
    }
    for (const sender of this.#senders.values()) sender.send(alert);
  }

  /** Whether lines reach the disk shows later than that they were written. */
  #checkDisk(): void {
    const { failure, path } = this.#file;
    if (failure === undefined || this.#diskHasFailed) return;
    this.#diskHasFailed = true;
    this.#onProblem(`${path} does not reach the disk: ${failure}`);
  }

  #schedule(): void {
    const [first] = this.#kinds.values();
    if (!first || this.#timer) return;
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined;
        this.#tellDue();
        this.#schedule();
      },
      Math.max(0, first.dueMs - performance.now()),
    );
    this.#timer.unref();
  }

  /** What has happened again is told and watched on; what has not is forgotten. */
  #tellDue(): void {
    for (const [key, kind] of this.#kinds) {
      if (kind.dueMs > performance.now()) return;
      this.#kinds.delete(key);
      if (this.#tellAgain(kind)) {
        kind.dueMs = performance.now() + this.#limits.repeatMs;
        this.#kinds.set(key, kind);
      } else {
        this.#forget(kind);
      }
    }
  }

  /** False if there is nothing to tell. */
  #tellAgain(kind: Kind): boolean {
    const more = kind.count - kind.told;
    if (more <= 0) return false;
    kind.told = kind.count;
    const title = `${kind.alert.title} (${more} more)`;
    this.#emit({ ...kind.alert, id: randomUUID(), title, count: kind.count });
    return true;
  }

  #forgetOldest(): void {
    for (const [key, kind] of this.#kinds) {
      this.#kinds.delete(key);
      this.#tellAgain(kind);
      this.#forget(kind);
      return;
    }
  }

  #forget({ alert }: Kind): void {
    const { id } = alert.run;
    const left = (this.#kindsPerRun.get(id) ?? 1) - 1;
    if (left > 0) this.#kindsPerRun.set(id, left);
    else this.#kindsPerRun.delete(id);
  }
}
