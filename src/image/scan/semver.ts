/** Precedence of versions by Semantic Versioning 2.0.0 (section 11), which npm follows. Pure. */

interface Version {
  readonly core: readonly bigint[];
  readonly prerelease: readonly string[];
}

/** Negative if `a` precedes `b`. What is no semantic version comes before all that are, in the order of its characters. */
export function compareSemver(a: string, b: string): number {
  const [left, right] = [parse(a), parse(b)];
  if (!left || !right) return left ? 1 : right ? -1 : compare(a, b);
  for (const [index, number] of left.core.entries()) {
    const order = compare(number, right.core[index] ?? 0n);
    if (order !== 0) return order;
  }
  if (left.prerelease.length === 0 || right.prerelease.length === 0) {
    return right.prerelease.length - left.prerelease.length;
  }
  for (let index = 0; ; index++) {
    const [one, other] = [left.prerelease[index], right.prerelease[index]];
    if (one === undefined || other === undefined) return left.prerelease.length - right.prerelease.length;
    const order = compareIdentifiers(one, other);
    if (order !== 0) return order;
  }
}

/** Feeds also write `1.2` and `v1.2.3`. */
function parse(text: string): Version | undefined {
  const match = /^v?([0-9]+)(?:\.([0-9]+))?(?:\.([0-9]+))?(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?$/.exec(
    text,
  );
  if (match === null) return undefined;
  const core = match.slice(1, 4).map((number) => BigInt(number ?? '0'));
  return { core, prerelease: match[4]?.split('.') ?? [] };
}

function compareIdentifiers(a: string, b: string): number {
  const [isNumber, otherIsNumber] = [/^[0-9]+$/.test(a), /^[0-9]+$/.test(b)];
  if (isNumber && otherIsNumber) return compare(BigInt(a), BigInt(b));
  if (isNumber !== otherIsNumber) return isNumber ? -1 : 1;
  return compare(a, b);
}

function compare<T extends string | bigint>(a: T, b: T): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
