/** First questions about JSON of somebody else. */

/** Whether it is an object: no list, not null. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Whether it is an object with the keys `needed`, perhaps `possible`, and no others. */
export function hasKeys(
  value: unknown,
  needed: readonly string[],
  possible: readonly string[] = [],
): value is Readonly<Record<string, unknown>> {
  return (
    isObject(value) &&
    needed.every((key) => Object.hasOwn(value, key)) &&
    Object.keys(value).every((key) => needed.includes(key) || possible.includes(key))
  );
}
