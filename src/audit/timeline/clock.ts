/** Times of a run: the guest's monotonic clock, and what the host's clock said when it set that of the guest. */
const NS_PER_SECOND = 1_000_000_000n;
/** 9999-12-31T23:59:59Z: RFC 3339 has four digits for a year. */
const MAX_SECONDS = 253_402_300_799n;

export class RunClock {
  readonly #offsetNs: bigint;
  #second = -1n;
  #secondText = '';

  /** `offsetNs`: nanoseconds since 1970 when the guest's monotonic clock was 0. */
  constructor(offsetNs: bigint) {
    this.#offsetNs = offsetNs;
  }

  /** RFC 3339, UTC, with nine digits; times that the guest made up are cut to what that can hold. */
  text(timeNs: bigint): string {
    const ns = timeNs + this.#offsetNs;
    let second = ns / NS_PER_SECOND;
    if (ns < 0n) second = 0n;
    else if (second > MAX_SECONDS) second = MAX_SECONDS;
    if (second !== this.#second) {
      this.#second = second;
      this.#secondText = new Date(Number(second) * 1000).toISOString().slice(0, 19);
    }
    const rest = ns < 0n ? 0n : ns % NS_PER_SECOND;
    return `${this.#secondText}.${String(rest).padStart(9, '0')}Z`;
  }

  /** Milliseconds since 1970. */
  wallMs(timeNs: bigint): number {
    return Number((timeNs + this.#offsetNs) / 1_000_000n);
  }

  /** The guest's time at a moment of ours. */
  guestNs(wallMs: number): bigint {
    return BigInt(Math.round(wallMs)) * 1_000_000n - this.#offsetNs;
  }
}
