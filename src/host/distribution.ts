/** What benchmarks make of their samples. Pure. */

export interface Distribution {
  readonly p50: number;
  readonly p95: number;
  readonly min: number;
  readonly max: number;
}

/** Nearest-rank percentiles, rounded to that many decimals; of no samples, NaN. */
export function distribution(samples: readonly number[], decimals = 1): Distribution {
  const sorted = samples.toSorted((a, b) => a - b);
  const at = (percent: number): number => {
    const value = sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)] ?? Number.NaN;
    return Math.round(value * 10 ** decimals) / 10 ** decimals;
  };
  return { p50: at(50), p95: at(95), min: at(0), max: at(100) };
}

/** p50 of the one by p50 of the other, rounded to a hundredth. */
export function ratio(of: Distribution, by: Distribution): number {
  return Math.round((of.p50 / by.p50) * 100) / 100;
}
