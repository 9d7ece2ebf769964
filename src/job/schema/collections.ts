/** Schemas of lists and of mappings whose keys the user chooses. */
import type { SourceSpan } from '../../core/source-text.ts';
import { fail, type ScalarSchema, type Schema, wrongType } from './schema.ts';

export function list<T>(
  item: Schema<T>,
  options: {
    readonly min?: number;
    readonly max: number;
    readonly expected: string;
    readonly typeName?: string;
  },
): Schema<readonly T[]> {
  const { min = 0, max, expected } = options;
  return {
    expected,
    typeName: options.typeName ?? `list of ${item.typeName}`,
    children: { kind: 'list', item },
    jsonSchema: () => ({ type: 'array', items: item.jsonSchema(), minItems: min, maxItems: max }),
    parse(node, context) {
      if (node.kind !== 'list') {
        const single = node.kind === 'scalar' && node.type !== 'null' && !node.text.includes('\n');
        return wrongType(
          node,
          expected,
          context,
          single ? `write \`[${quotedWhereNeeded(node.text)}]\`` : undefined,
        );
      }
      if (node.items.length < min)
        return fail(context, node.span, `expected ${expected}, found an empty list`);
      if (node.items.length > max) {
        return fail(context, node.span, `${node.items.length} entries are more than the limit of ${max}`);
      }
      const values: T[] = [];
      const members = new Map<string | number, SourceSpan>();
      for (const [index, child] of node.items.entries()) {
        const value = item.parse(child, context);
        if (value !== undefined) values.push(value);
        members.set(index, child.span);
      }
      context.locations.record(values, node.span, members);
      return values.length === node.items.length ? values : undefined;
    },
  };
}

/** A list, or one item that stands for a list of one. */
export function oneOrMany<T>(many: Schema<readonly T[]>, one: Schema<T>): Schema<readonly T[]> {
  return {
    expected: many.expected,
    typeName: `${one.typeName} or ${many.typeName}`,
    children: many.children,
    jsonSchema: () => ({ anyOf: [one.jsonSchema(), many.jsonSchema()] }),
    parse(node, context) {
      if (node.kind !== 'scalar' || node.type === 'null') return many.parse(node, context);
      const value = one.parse(node, context);
      if (value === undefined) return undefined;
      const values = [value];
      context.locations.record(values, node.span, new Map([[0, node.span]]));
      return values;
    },
  };
}

/** One of two shapes told apart by their YAML kind: a scalar or a collection. */
export function scalarOr<A, B>(
  one: ScalarSchema<A>,
  other: Schema<B>,
  /** What to write instead of another scalar. */
  hintFor?: (text: string) => string,
): Schema<A | B> {
  const expected = `${one.expected} or ${other.expected}`;
  return {
    expected,
    typeName: `${one.typeName} or ${other.typeName}`,
    children: other.children,
    jsonSchema: () => ({ anyOf: [one.jsonSchema(), other.jsonSchema()] }),
    parse(node, context): A | B | undefined {
      if (node.kind !== 'scalar') return other.parse(node, context);
      if (node.type === 'null') return wrongType(node, expected, context);
      const result = one.read(node.text);
      return 'value' in result
        ? result.value
        : wrongType(node, expected, context, hintFor?.(node.text.split('\n', 1)[0] ?? ''));
    },
  };
}

/** A list or a mapping. The docs show the keys of the mapping. */
export function listOr<A, B>(many: Schema<A>, mapping: Schema<B>): Schema<A | B> {
  const expected = `${many.expected}, or ${mapping.expected}`;
  return {
    expected,
    typeName: `${many.typeName} or ${mapping.typeName}`,
    children: mapping.children,
    jsonSchema: () => ({ anyOf: [many.jsonSchema(), mapping.jsonSchema()] }),
    parse(node, context): A | B | undefined {
      if (node.kind === 'map') return mapping.parse(node, context);
      return many.parse(node, context);
    },
  };
}

export interface KeyRule {
  /** Completes "a key here is …". */
  readonly expected: string;
  /** Stands for the key in the docs: `<id>`. */
  readonly name: string;
  readonly pattern: string;
  /** Says why a key that matches the pattern is refused all the same. */
  readonly refuse?: (key: string) => string | undefined;
  /** `pattern` and `refuse` in one, for the JSON Schema. */
  readonly strictPattern?: string;
}

/** A mapping whose keys the user chooses. Keeps file order. */
export function record<T>(
  key: KeyRule,
  value: Schema<T>,
  options: { readonly min?: number; readonly max: number; readonly expected: string },
): Schema<Readonly<Record<string, T>>> {
  const { min = 0, max, expected } = options;
  const regex = new RegExp(key.pattern);
  return {
    expected,
    typeName: value.children === undefined ? `mapping to ${value.typeName}` : 'mapping',
    children: { kind: 'record', keyName: key.name, value },
    jsonSchema: () => ({
      type: 'object',
      propertyNames: { pattern: key.strictPattern ?? key.pattern },
      additionalProperties: value.jsonSchema(),
      ...(min > 0 ? { minProperties: min } : {}),
      maxProperties: max,
    }),
    parse(node, context) {
      if (node.kind !== 'map') return wrongType(node, expected, context);
      if (node.entries.length < min)
        return fail(context, node.span, `expected ${expected}, found an empty mapping`);
      if (node.entries.length > max) {
        return fail(context, node.span, `${node.entries.length} entries are more than the limit of ${max}`);
      }
      // No prototype: `__proto__` and `constructor` are names like any other.
      const values: Record<string, T> = Object.create(null);
      const members = new Map<string | number, SourceSpan>();
      let failed = false;
      for (const entry of node.entries) {
        const refused = regex.test(entry.key)
          ? key.refuse?.(entry.key)
          : `\`${entry.key}\` is not ${key.expected}`;
        if (refused !== undefined) {
          fail(context, entry.keySpan, refused);
          failed = true;
        }
        const parsed = value.parse(entry.value, context);
        if (parsed === undefined) failed = true;
        else values[entry.key] = parsed;
        members.set(entry.key, entry.keySpan);
      }
      context.locations.record(values, node.span, members);
      return failed ? undefined : values;
    },
  };
}

/** As an entry of a flow list of YAML: `*` is an alias there, `a, b` two entries. */
function quotedWhereNeeded(text: string): string {
  const plain = /^[A-Za-z0-9_./][A-Za-z0-9_./@+: -]*$/.test(text) && !/:(?: |$)| $/.test(text);
  return plain ? text : `'${text.replaceAll("'", "''")}'`;
}
