/**
 * The order of Debian versions: deb-version(7), as dpkg has it. `[epoch:]upstream[-revision]`; runs of digits compare as
 * numbers, all else by character, with letters before other characters and `~` before everything, even the end. Pure.
 */

/** Negative if `a` is older than `b`, 0 if they are equal (`1.0` and `1.0-0` are). Any text has a place in the order. */
export function compareDebianVersions(a: string, b: string): number {
  const [left, right] = [split(a), split(b)];
  return (
    compareNumbers(left.epoch, right.epoch) ||
    compareParts(left.upstream, right.upstream) ||
    compareParts(left.revision, right.revision)
  );
}

function split(version: string): {
  readonly epoch: string;
  readonly upstream: string;
  readonly revision: string;
} {
  const colon = version.indexOf(':');
  const rest = version.slice(colon + 1);
  const dash = rest.lastIndexOf('-');
  return {
    epoch: colon < 0 ? '' : version.slice(0, colon),
    upstream: dash < 0 ? rest : rest.slice(0, dash),
    revision: dash < 0 ? '' : rest.slice(dash + 1),
  };
}

function compareParts(a: string, b: string): number {
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    // Up to the next digit, or the end, in both.
    while ((i < a.length && !isDigit(a, i)) || (j < b.length && !isDigit(b, j))) {
      const difference = weight(a, i) - weight(b, j);
      if (difference !== 0) return difference;
      i += 1;
      j += 1;
    }
    const [numberStart, otherStart] = [i, j];
    while (isDigit(a, i)) i += 1;
    while (isDigit(b, j)) j += 1;
    const difference = compareNumbers(a.slice(numberStart, i), b.slice(otherStart, j));
    if (difference !== 0) return difference;
  }
  return 0;
}

/** Of digits, however many; nothing is zero. */
function compareNumbers(a: string, b: string): number {
  const [left, right] = [a.replace(/^0+/, ''), b.replace(/^0+/, '')];
  if (left.length !== right.length) return left.length - right.length;
  return left < right ? -1 : left > right ? 1 : 0;
}

function weight(text: string, at: number): number {
  if (at >= text.length || isDigit(text, at)) return 0;
  const code = text.charCodeAt(at);
  if (text[at] === '~') return -1;
  return /[A-Za-z]/.test(text[at] ?? '') ? code : code + 0x10000;
}

function isDigit(text: string, at: number): boolean {
  const code = text.charCodeAt(at);
  return code >= 0x30 && code <= 0x39;
}
