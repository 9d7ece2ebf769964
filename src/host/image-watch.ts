/**
 * Images in use, looked at again while jobs come and go: policy, signatures and what scans found change without a job that
 * asks. Warm VMs and templates of an image that would be refused are thrown away, and when the database of vulnerabilities has
 * changed, the image is scanned again, in a thread of its own.
 */
import { stat } from 'node:fs/promises';
import { Worker } from 'node:worker_threads';
import { type Alert, type AlertSink, imageInPlaceOfRun, newAlert } from '../audit/alert.ts';
import { CtError, messageOf } from '../core/errors.ts';
import { entryPoint } from '../core/install.ts';
import { databasePath } from '../image/scan/database.ts';
import type { RunFacts } from '../policy/input.ts';
import { type ImageGate, type ImageVerdict, imageRefusal } from './image-gate.ts';
import type { ScanOrder, ScanReport } from './image-scan-worker.ts';
import type { Machines } from './machines.ts';
import type { CurrentPolicy, HostPolicy } from './policy.ts';
import type { LiveRun } from './runs.ts';

/** Some calls of stat for each image in use. */
const LOOK_MS = 10_000;
/** Exceptions end and databases grow old. */
const SCAN_AGAIN_MS = 60 * 60_000;
/** Images that this host ran lately, and the kinds of runs of each that are asked about. */
const MAX_IMAGES = 64;
const MAX_KINDS = 32;

export interface ImageWatchOptions {
  readonly ctHome: string;
  readonly gate: Pick<ImageGate, 'judge'>;
  readonly policy: HostPolicy;
  readonly machines: Pick<Machines, 'giveUpImage'>;
  readonly alerts: AlertSink;
  readonly onProblem: (error: unknown) => void;
  /** Only tests look more often. */
  readonly lookMs?: number;
}

/** One image that runs were let in with. */
interface Watched {
  /** One run of each kind: what policy sees of a run, without what is different each time. */
  readonly kinds: Map<string, RunFacts>;
  readonly live: Set<{
    readonly run: Pick<LiveRun, 'abort' | 'state'>;
    readonly facts: RunFacts & { readonly id: string };
  }>;
  /** Why it is refused, if it is: told once. */
  refused: string | undefined;
}

export class ImageWatch {
  readonly #options: ImageWatchOptions;
  readonly #images = new Map<string, Watched>();
  readonly #timer: NodeJS.Timeout;
  #looking: Promise<void> | undefined;
  #scanning: Worker | undefined;
  #scanned = '';
  #scanDueMs = 0;
  #problem = '';
  #closed = false;

  constructor(options: ImageWatchOptions) {
    this.#options = options;
    this.#timer = setInterval(() => void this.look(), options.lookMs ?? LOOK_MS);
    this.#timer.unref();
  }

  /** Call it when an image was let in for a run; dispose when the run has ended. */
  admitted(
    run: Pick<LiveRun, 'abort' | 'state'>,
    facts: RunFacts & { readonly id: string },
    digest: string,
  ): Disposable {
    const watched = this.#images.get(digest) ?? { kinds: new Map(), live: new Set(), refused: undefined };
    this.#images.delete(digest); // and to the end: used last
    this.#images.set(digest, watched);
    for (const [oldest, { live }] of this.#images) {
      if (this.#images.size <= MAX_IMAGES) break;
      if (live.size === 0) this.#images.delete(oldest);
    }
    watched.refused = undefined;
    const { id: _, ...kind } = facts;
    const key = JSON.stringify([kind.trust, kind.repository, kind.ref, kind.actor]);
    watched.kinds.delete(key);
    const [first] = watched.kinds.keys();
    if (watched.kinds.size >= MAX_KINDS && first !== undefined) watched.kinds.delete(first);
    watched.kinds.set(key, kind);
    const entry = { run, facts };
    watched.live.add(entry);
    return { [Symbol.dispose]: () => void watched.live.delete(entry) };
  }

  /** One look at every image in use; never rejects. A second call waits for the first. */
  look(): Promise<void> {
    this.#looking ??= this.#lookAtAll()
      .then(
        () => {
          this.#problem = '';
        },
        (error) => this.#complain(error),
      )
      .finally(() => {
        this.#looking = undefined;
      });
    return this.#looking;
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#timer);
    await this.#looking;
    await this.#scanning?.terminate();
  }

  /** Once, not with every look. */
  #complain(error: unknown): void {
    const problem = messageOf(error);
    if (this.#problem !== problem) this.#options.onProblem(error);
    this.#problem = problem;
  }

  async #lookAtAll(): Promise<void> {
    if (this.#images.size === 0 || this.#closed) return;
    // A policy that cannot be read lets no job in, and says so to each; what is warm may be right again with the next edit.
    const policy = await this.#options.policy.current();
    using _held = policy.hold();
    for (const [digest, watched] of this.#images) await this.#lookAt(digest, watched, policy);
    await this.#scanIfDue();
  }

  async #lookAt(digest: string, watched: Watched, policy: CurrentPolicy): Promise<void> {
    const { gate, alerts } = this.#options;
    let refusal: { readonly rule: string; readonly error: CtError; readonly name: string } | undefined;
    let isAllowed = false;
    try {
      for (const kind of watched.kinds.values()) {
        const verdict = await gate.judge(digest, kind, policy);
        const error = imageRefusal(verdict);
        if (error) refusal ??= { rule: ruleOf(verdict), error, name: verdict.input.image.name };
        else isAllowed = true;
      }
      await this.#endRefused(digest, watched, policy);
    } catch (error) {
      if (!(error instanceof CtError)) throw error;
      // Removed, or damaged: what was made of it goes. The next run that asks for it is told why.
      this.#images.delete(digest);
      await this.#options.machines.giveUpImage(digest);
      if (error.code === 'IMAGE_CORRUPT') {
        alerts.file(watchAlert('ct.image.corrupt', 'critical', error.message, digest, digest));
      }
      return;
    }
    if (isAllowed || refusal === undefined) {
      watched.refused = undefined;
      return;
    }
    await this.#options.machines.giveUpImage(digest);
    if (watched.refused === refusal.error.message) return;
    watched.refused = refusal.error.message;
    const { rule, error, name } = refusal;
    alerts.file(watchAlert(rule, 'high', `no job may start in it any more: ${error.message}`, digest, name));
  }

  /** Ends the runs that would not be let in any more: those that wait for their turn, and where policy says so all of them. */
  async #endRefused(digest: string, { live }: Watched, policy: CurrentPolicy): Promise<void> {
    for (const entry of [...live]) {
      if (policy.runningImages === 'finish' && entry.run.state !== 'queued') continue;
      const verdict = await this.#options.gate.judge(digest, entry.facts, policy);
      const error = imageRefusal(verdict);
      if (!error) continue;
      live.delete(entry);
      entry.run.abort(error);
      const alert = watchAlert(ruleOf(verdict), 'high', error.message, digest, verdict.input.image.name);
      this.#options.alerts.file({
        ...alert,
        action: 'terminated',
        run: { id: entry.facts.id, job: entry.facts.job },
      });
    }
  }

  async #scanIfDue(): Promise<void> {
    const { ctHome, alerts, onProblem, policy } = this.#options;
    const database = await stat(databasePath(ctHome), { bigint: true }).catch(() => undefined);
    if (!database || this.#scanning) return;
    const state = [database.ino, database.mtimeNs, ...this.#images.keys()].join('\n');
    if (state === this.#scanned && performance.now() < this.#scanDueMs) return;
    this.#scanned = state;
    this.#scanDueMs = performance.now() + SCAN_AGAIN_MS;
    const order: ScanOrder = {
      ctHome,
      policyDirectory: (await policy.current()).directory,
      digests: [...this.#images.keys()],
      againMs: SCAN_AGAIN_MS,
    };
    const worker = new Worker(entryPoint('host/image-scan-worker'), { workerData: order });
    this.#scanning = worker;
    worker.unref();
    worker.on('message', (report: ScanReport) => {
      if (report.type === 'alert') alerts.file(report.alert);
      else onProblem(new Error(report.message));
    });
    worker.on('error', (error) => onProblem(new Error(`images were not scanned: ${messageOf(error)}`)));
    worker.once('exit', () => {
      this.#scanning = undefined;
    });
  }
}

function ruleOf({ decided }: ImageVerdict): string {
  return decided.decision.denials[0]?.rule ?? 'ct.image.error';
}

function watchAlert(
  rule: string,
  severity: Alert['severity'],
  title: string,
  digest: string,
  name: string,
): Alert {
  return newAlert(new Date(), {
    severity,
    title,
    rule,
    action: 'denied',
    run: imageInPlaceOfRun({ name, digest }),
    evidence: { file: 'policy', id: digest },
  });
}
