/** `matrix`: every combination of the axes, minus `exclude`, plus `include`. */
import type { MatrixSpec } from './definition.ts';

export type Combination = Readonly<Record<string, string>>;

/**
 * The combinations of a matrix, in order: the last axis varies fastest, additions of `include` come last.
 * Undefined if there are more than `limit`; checked before they are made.
 *
 * `exclude` takes out every combination that has all of its values. Then each entry of `include` in turn is
 * added to every combination made from the axes whose axis values it does not contradict; if there is none, it
 * becomes a combination of its own. Equal combinations count once.
 */
export function expandMatrix(matrix: MatrixSpec, limit: number): Combination[] | undefined {
  const axes = Object.entries(matrix.axes);
  const include = matrix.include ?? [];
  let count = axes.length === 0 ? 0 : 1;
  for (const [, values] of axes) count *= values.length;
  // `exclude` may bring a large product below the limit, but the product has to be walked.
  if (count > limit * 64 || include.length > limit) return undefined;

  const product: Record<string, string>[] = [];
  for (let ordinal = 0; ordinal < count; ordinal++) {
    const combination: Record<string, string> = Object.create(null);
    let rest = ordinal;
    let stride = count;
    for (const [axis, values] of axes) {
      stride /= values.length;
      combination[axis] = values[Math.floor(rest / stride)] as string;
      rest %= stride;
    }
    if (!(matrix.exclude ?? []).some((entry) => hasAll(combination, entry))) product.push(combination);
  }
  if (product.length > limit) return undefined;

  const originals = product.map((combination) => ({ ...combination }));
  const further: Record<string, string>[] = [];
  for (const entry of include) {
    let added = false;
    for (const [index, combination] of product.entries()) {
      const original = originals[index] as Combination;
      const contradicts = Object.entries(entry).some(
        ([key, value]) => Object.hasOwn(original, key) && original[key] !== value,
      );
      if (contradicts) continue;
      Object.assign(combination, entry);
      added = true;
    }
    if (!added) further.push({ ...entry });
  }
  const unique = new Map<string, Combination>();
  for (const combination of [...product, ...further]) unique.set(combinationLabel(combination), combination);
  return unique.size > limit ? undefined : [...unique.values()];
}

function hasAll(combination: Combination, entry: Combination): boolean {
  return Object.entries(entry).every(([key, value]) => combination[key] === value);
}

/** `node=20, os=debian`; control characters, which could forge a log line, become `?`. */
export function combinationLabel(combination: Combination): string {
  return Object.entries(combination)
    .map(([key, value]) => `${key}=${value}`)
    .join(', ')
    .replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, '?');
}
