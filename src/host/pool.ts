/**
 * Warm VMs: restored, with their identity, and with one throw-away process behind them, so that the next job finds the
 * code it needs translated and its pages mapped. One VM, one job: what is taken never comes back.
 *
 * The pool follows demand: a shape that was asked for is held ready as often as it was asked for lately, and given up
 * when nobody asks any more.
 */

/** What the pool needs to know of a machine. */
export interface Poolable {
  /** Settles when the machine is of no use any more, e.g. because its VMM has died. */
  readonly ended: Promise<unknown>;
  destroy(): Promise<unknown>;
}

export interface WarmPoolOptions<Shape, Item extends Poolable> {
  readonly keyOf: (shape: Shape) => string;
  /** Makes a warm machine; called for one at a time. */
  readonly fill: (shape: Shape) => Promise<Item>;
  /** Machines held at most, over all shapes: the memory budget divided by what an idle one costs. */
  readonly maxItems: number;
  readonly onFillError: (error: unknown) => void;
  /** For tests. */
  readonly now?: () => number;
}

/** Jobs that came within this time count as simultaneous demand. */
export const DEMAND_WINDOW_MS = 15_000;
/** A shape that nobody asked for this long is given up. */
export const KEEP_WARM_MS = 10 * 60_000;
/** After a failure to fill, the next attempt waits: a host that cannot restore must not spin. */
const FAILURE_PAUSE_MS = 30_000;

interface Entry<Shape, Item> {
  readonly shape: Shape;
  readonly items: Item[];
  takenAt: number[];
  pausedUntil: number;
}

export class WarmPool<Shape, Item extends Poolable> {
  readonly #options: WarmPoolOptions<Shape, Item>;
  readonly #entries = new Map<string, Entry<Shape, Item>>();
  readonly #now: () => number;
  #filling: Promise<void> | undefined;
  #closed = false;

  constructor(options: WarmPoolOptions<Shape, Item>) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  get size(): number {
    let size = 0;
    for (const { items } of this.#entries.values()) size += items.length;
    return size;
  }

  /** Whether machines are being made that somebody may have to share processors with. */
  get isFilling(): boolean {
    return this.#filling !== undefined;
  }

  /** A warm machine of this shape, if one is ready; the caller owns it. Counts as demand either way. */
  take(shape: Shape): Item | undefined {
    const key = this.#options.keyOf(shape);
    let entry = this.#entries.get(key);
    if (!entry) {
      entry = { shape, items: [], takenAt: [], pausedUntil: 0 };
      this.#entries.set(key, entry);
    }
    entry.takenAt = entry.takenAt.filter((at) => at > this.#now() - DEMAND_WINDOW_MS);
    entry.takenAt.push(this.#now());
    return entry.items.shift();
  }

  /** Fills up in the background, one machine at a time. Call it when a claim is through, so as not to compete with it. */
  refill(): void {
    if (this.#filling || this.#closed) return;
    this.#filling = this.#fillUp().finally(() => {
      this.#filling = undefined;
    });
  }

  /** Settles when nothing is being filled. */
  async settled(): Promise<void> {
    await this.#filling;
  }

  /** Gives up the machines of one shape, e.g. because its template is gone. */
  async forget(shape: Shape): Promise<void> {
    await this.#giveUp(this.#options.keyOf(shape));
  }

  /** The same of all shapes that `isConcerned`. What is being filled meanwhile is given up, too. */
  async forgetAll(isConcerned: (shape: Shape) => boolean): Promise<void> {
    const keys = [...this.#entries].flatMap(([key, { shape }]) => (isConcerned(shape) ? [key] : []));
    await Promise.all(keys.map((key) => this.#giveUp(key)));
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#filling;
    for (const key of [...this.#entries.keys()]) await this.#giveUp(key);
  }

  async #fillUp(): Promise<void> {
    for (const [key, { takenAt }] of this.#entries) {
      if (this.#now() - (takenAt.at(-1) ?? 0) > KEEP_WARM_MS) await this.#giveUp(key);
    }
    for (let entry = this.#next(); entry && !this.#closed; entry = this.#next()) {
      // A burst of one shape must not keep all others out for as long as its machines are held.
      if (this.size >= this.#options.maxItems && !(await this.#giveUpSurplus())) return;
      try {
        const item = await this.#options.fill(entry.shape);
        if (this.#entries.get(this.#options.keyOf(entry.shape)) !== entry) {
          await item.destroy(); // the shape was given up meanwhile
          continue;
        }
        entry.items.push(item);
        this.#watch(entry, item);
      } catch (error) {
        entry.pausedUntil = this.#now() + FAILURE_PAUSE_MS;
        this.#options.onFillError(error);
      }
    }
  }

  /** The shape that lacks most; those asked for last come first among equals. */
  #next(): Entry<Shape, Item> | undefined {
    let best: { entry: Entry<Shape, Item>; missing: number } | undefined;
    for (const entry of this.#entries.values()) {
      if (entry.pausedUntil > this.#now()) continue;
      const missing = this.#wanted(entry) - entry.items.length;
      if (missing <= 0) continue;
      const last = entry.takenAt.at(-1) ?? 0;
      const isBetter =
        !best ||
        missing > best.missing ||
        (missing === best.missing && last > (best.entry.takenAt.at(-1) ?? 0));
      if (isBetter) best = { entry, missing };
    }
    return best?.entry;
  }

  #wanted(entry: Entry<Shape, Item>): number {
    const last = entry.takenAt.at(-1) ?? 0;
    if (this.#now() - last > KEEP_WARM_MS) return 0;
    return Math.max(1, entry.takenAt.filter((at) => at > this.#now() - DEMAND_WINDOW_MS).length);
  }

  /** One machine of the shape that holds most beyond what is asked of it; false if none does. */
  async #giveUpSurplus(): Promise<boolean> {
    let most: { entry: Entry<Shape, Item>; surplus: number } | undefined;
    for (const entry of this.#entries.values()) {
      const surplus = entry.items.length - this.#wanted(entry);
      if (surplus > (most?.surplus ?? 0)) most = { entry, surplus };
    }
    const item = most?.entry.items.shift();
    await item?.destroy();
    return item !== undefined;
  }

  #watch(entry: Entry<Shape, Item>, item: Item): void {
    void item.ended.then(async () => {
      const at = entry.items.indexOf(item);
      if (at < 0) return; // taken or given up
      entry.items.splice(at, 1);
      await item.destroy();
    });
  }

  async #giveUp(key: string): Promise<void> {
    const entry = this.#entries.get(key);
    this.#entries.delete(key);
    await Promise.all((entry?.items.splice(0) ?? []).map((item) => item.destroy()));
  }
}
