/**
 * Text of IP addresses and networks, in one form each: addresses as RFC 5952 writes them, networks with the bits beyond
 * their prefix cleared. Strict: no leading zeros, no short forms (`127.1`), no zones (`fe80::1%eth0`).
 */

/** The canonical form, or undefined if `text` is no address. An IPv4-mapped one is the IPv4 address that it stands for. */
export function canonicalAddress(text: string): string | undefined {
  const groups = parseAddress(text);
  return groups === undefined ? undefined : formatAddress(groups).replace(/^::ffff:(?=[0-9]+\.)/, '');
}

/** An address range, `192.0.2.0/24`. */
export interface Network {
  /** Canonical; of one address alone without its `/32` or `/128`. */
  readonly text: string;
  readonly prefixBits: number;
  /** 32 or 128. */
  readonly widthBits: number;
}

/** A network or a single address, or undefined if `text` is neither. Bits beyond the prefix must be zero: a slip otherwise. */
export function parseNetwork(text: string): Network | { readonly wrong: string } | undefined {
  const slash = text.indexOf('/');
  const groups = parseAddress(slash === -1 ? text : text.slice(0, slash));
  if (groups === undefined) return undefined;
  const groupBits = groups.length === 4 ? 8 : 16;
  const widthBits = groups.length * groupBits;
  const prefixText = slash === -1 ? String(widthBits) : text.slice(slash + 1);
  const prefixBits = /^(0|[1-9][0-9]{0,2})$/.test(prefixText) ? Number(prefixText) : Number.NaN;
  if (!(prefixBits <= widthBits))
    return { wrong: `\`/${prefixText}\` is not a prefix of 0 to ${widthBits} bits` };
  const masked = groups.map((group, index) => {
    const kept = Math.min(Math.max(prefixBits - index * groupBits, 0), groupBits);
    return group & ~((1 << (groupBits - kept)) - 1);
  });
  const base = formatAddress(masked);
  if (base !== formatAddress(groups))
    return { wrong: `\`${text}\` has bits set beyond its prefix; write \`${base}/${prefixBits}\`` };
  return { text: prefixBits === widthBits ? base : `${base}/${prefixBits}`, prefixBits, widthBits };
}

/** Four groups of 8 bits, or eight of 16. */
function parseAddress(text: string): number[] | undefined {
  return text.includes(':') ? parseV6(text) : parseV4(text);
}

function parseV4(text: string): number[] | undefined {
  const parts = text.split('.');
  if (parts.length !== 4 || !parts.every((part) => /^(0|[1-9][0-9]{0,2})$/.test(part))) return undefined;
  const groups = parts.map(Number);
  return groups.every((group) => group <= 255) ? groups : undefined;
}

/** RFC 4291 §2.2; at most 45 characters, so a longer text costs nothing. */
function parseV6(text: string): number[] | undefined {
  if (text.length > 45) return undefined;
  const halves = text.split('::');
  if (halves.length > 2) return undefined;
  const parsed = halves.map((half, index) => parseGroups(half, index === halves.length - 1));
  const [head, tail] = parsed;
  if (head === undefined || (halves.length === 2 && tail === undefined)) return undefined;
  if (tail === undefined) return head.length === 8 ? head : undefined;
  const missing = 8 - head.length - tail.length;
  return missing >= 1 ? [...head, ...Array<number>(missing).fill(0), ...tail] : undefined;
}

function parseGroups(text: string, last: boolean): number[] | undefined {
  if (text === '') return [];
  const groups: number[] = [];
  const parts = text.split(':');
  for (const [index, part] of parts.entries()) {
    if (part.includes('.')) {
      const v4 = last && index === parts.length - 1 ? parseV4(part) : undefined;
      if (v4 === undefined) return undefined;
      const [a, b, c, d] = v4 as [number, number, number, number];
      groups.push((a << 8) | b, (c << 8) | d);
    } else if (/^[0-9a-fA-F]{1,4}$/.test(part)) {
      groups.push(Number.parseInt(part, 16));
    } else {
      return undefined;
    }
  }
  return groups;
}

function formatAddress(groups: readonly number[]): string {
  if (groups.length === 4) return groups.join('.');
  // RFC 5952 §5: IPv4-mapped addresses show the IPv4 address.
  if (groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff) {
    const [high, low] = groups.slice(6) as [number, number];
    return `::ffff:${high >> 8}.${high & 255}.${low >> 8}.${low & 255}`;
  }
  // §4.2: the longest run of two or more zero groups, the first of equally long ones.
  let best = { start: -1, length: 1 };
  for (let start = 0; start < 8; start++) {
    let length = 0;
    while (groups[start + length] === 0) length++;
    if (length > best.length) best = { start, length };
    start += length;
  }
  const hex = groups.map((group) => group.toString(16));
  if (best.start === -1) return hex.join(':');
  return `${hex.slice(0, best.start).join(':')}::${hex.slice(best.start + best.length).join(':')}`;
}
