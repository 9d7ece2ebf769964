/** Durations (`30s`, `1h30m`) and sizes (`512M`, `2GiB`) as people write them. */

const UNIT_MS = { d: 86_400_000, h: 3_600_000, m: 60_000, s: 1000 } as const;

/** One or more of `<n>d`, `<n>h`, `<n>m`, `<n>s`, each at most once, largest first; draft-07 compatible. */
export const DURATION_PATTERN = '^(?=[0-9])([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$';

/** Powers of two in every spelling: `M` means MiB, `G` GiB, `T` TiB. */
export const SIZE_PATTERN = '^[0-9]+(M|G|T)(iB)?$';

/** Milliseconds, or undefined if `text` is not a duration. */
export function parseDurationMs(text: string): number | undefined {
  if (text.length > 32 || !new RegExp(DURATION_PATTERN).test(text)) return undefined;
  let total = 0;
  for (const [, count, unit] of text.matchAll(/([0-9]+)([dhms])/g)) {
    total += Number(count) * UNIT_MS[unit as keyof typeof UNIT_MS];
  }
  return Number.isSafeInteger(total) ? total : undefined;
}

/** MiB, or undefined if `text` is not a size. */
export function parseSizeMib(text: string): number | undefined {
  if (text.length > 32) return undefined;
  const match = new RegExp(SIZE_PATTERN).exec(text);
  if (match === null) return undefined;
  const factor = { M: 1, G: 1024, T: 1024 * 1024 }[match[1] as 'M' | 'G' | 'T'];
  const mib = Number.parseInt(text, 10) * factor;
  return Number.isSafeInteger(mib) ? mib : undefined;
}

/** `90m` → `1h30m`: the shortest spelling that {@link parseDurationMs} reads back. */
export function formatDuration(milliseconds: number): string {
  let rest = Math.round(milliseconds / 1000);
  let text = '';
  for (const [unit, ms] of Object.entries(UNIT_MS)) {
    const count = Math.floor(rest / (ms / 1000));
    rest -= count * (ms / 1000);
    if (count > 0) text += `${count}${unit}`;
  }
  return text === '' ? '0s' : text;
}

/** `2048` → `2G`, `1536` → `1536M`. */
export function formatSizeMib(mib: number): string {
  if (mib >= 1024 * 1024 && mib % (1024 * 1024) === 0) return `${mib / (1024 * 1024)}T`;
  return mib >= 1024 && mib % 1024 === 0 ? `${mib / 1024}G` : `${mib}M`;
}
