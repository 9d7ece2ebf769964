/**
 * Checks JSON of strangers against a shape: what is not described is refused, so depth, counts and lengths are bounded
 * by the description. Bytes must be in the one base64 spelling that encodes them, and counters in the one decimal
 * spelling, so that no character of a document can change without changing what it says.
 */

export type Shape =
  | { readonly is: 'text'; readonly maxLength: number }
  /** One of a few spellings. */
  | { readonly is: 'word'; readonly words: readonly string[] }
  | { readonly is: 'base64'; readonly maxBytes: number }
  /** A 64-bit counter as protobuf's JSON writes it: a decimal string. */
  | { readonly is: 'counter' }
  | { readonly is: 'list'; readonly of: Shape; readonly maxItems: number }
  | {
      readonly is: 'object';
      readonly required?: Readonly<Record<string, Shape>>;
      readonly optional?: Readonly<Record<string, Shape>>;
    };

const MAX_COUNTER = 2n ** 63n - 1n; // int64 of protobuf

/** What is wrong with `value`, as `path: reason`, or undefined. `null` counts as absent, as in protobuf's JSON. */
export function shapeProblem(value: unknown, shape: Shape, path = ''): string | undefined {
  const wrong = (reason: string): string => `${path === '' ? 'the document' : path} ${reason}`;
  switch (shape.is) {
    case 'text':
      if (typeof value !== 'string') return wrong('is no string');
      return value.length > shape.maxLength
        ? wrong(`is longer than ${shape.maxLength} characters`)
        : undefined;
    case 'word':
      return typeof value === 'string' && shape.words.includes(value)
        ? undefined
        : wrong(`is none of ${shape.words.join(', ')}`);
    case 'base64': {
      if (typeof value !== 'string') return wrong('is no string');
      if (value.length > Math.ceil(shape.maxBytes / 3) * 4)
        return wrong(`is more than ${shape.maxBytes} bytes`);
      return Buffer.from(value, 'base64').toString('base64') === value
        ? undefined
        : wrong('is not canonical base64');
    }
    case 'counter':
      return typeof value === 'string' && /^(0|[1-9][0-9]{0,18})$/.test(value) && BigInt(value) <= MAX_COUNTER
        ? undefined
        : wrong('is no decimal counter');
    case 'list':
      if (!Array.isArray(value)) return wrong('is no list');
      if (value.length > shape.maxItems) return wrong(`has more than ${shape.maxItems} items`);
      for (const [index, item] of value.entries()) {
        const problem = shapeProblem(item, shape.of, `${path}[${index}]`);
        if (problem !== undefined) return problem;
      }
      return undefined;
    case 'object': {
      if (typeof value !== 'object' || value === null || Array.isArray(value)) return wrong('is no object');
      const fields = new Map(Object.entries(value));
      for (const [fieldsOfKind, needed] of [
        [shape.required ?? {}, true],
        [shape.optional ?? {}, false],
      ] as const) {
        for (const [name, inner] of Object.entries(fieldsOfKind)) {
          const item = fields.get(name) ?? undefined;
          fields.delete(name);
          const at = path === '' ? name : `${path}.${name}`;
          if (item === undefined) {
            if (needed) return `${at} is missing`;
            continue;
          }
          const problem = shapeProblem(item, inner, at);
          if (problem !== undefined) return problem;
        }
      }
      return fields.size > 0
        ? wrong(`has an unknown field ${JSON.stringify([...fields.keys()][0]).slice(0, 80)}`)
        : undefined;
    }
  }
}
