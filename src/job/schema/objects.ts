/** Schemas of mappings with known keys. */

import type { Problem, SourceSpan } from '../../core/source-text.ts';
import { nearest } from '../../core/suggest.ts';
import type { YamlEntry, YamlMap, YamlNode } from '../../core/yaml-source.ts';
import { type KeyRule, record } from './collections.ts';
import {
  fail,
  type JsonSchema,
  type Locations,
  type ParseContext,
  type Schema,
  wrongType,
} from './schema.ts';

export interface Field<T, R extends boolean> {
  readonly schema: Schema<T>;
  readonly required: R;
  /** One or two sentences for the docs and the JSON Schema. */
  readonly doc: string;
  /** What holds when the key is absent, as the docs say it. */
  readonly fallback?: string | undefined;
  /** For a required key: what to write where it is missing. */
  readonly advice?: string | undefined;
  /** True of values that are parsed but that this version refuses to run. */
  readonly unsupported?: ((value: T) => boolean) | undefined;
}

// biome-ignore lint/suspicious/noExplicitAny: a field of any type; T is both read and written by Field
export type Fields = Readonly<Record<string, Field<any, boolean>>>;

interface FieldOptions<T> {
  readonly fallback?: string;
  readonly advice?: string;
  readonly unsupported?: (value: T) => boolean;
}

export function required<T>(schema: Schema<T>, doc: string, options: FieldOptions<T> = {}): Field<T, true> {
  return { schema, required: true, doc, ...options };
}

export function optional<T>(schema: Schema<T>, doc: string, options: FieldOptions<T> = {}): Field<T, false> {
  return { schema, required: false, doc, ...options };
}

type Camel<K> = K extends `${infer Head}-${infer Tail}` ? `${Head}${Capitalize<Camel<Tail>>}` : K & string;

type Flatten<T> = { readonly [K in keyof T]: T[K] };

export type ObjectOf<F extends Fields> = Flatten<
  {
    readonly [K in keyof F as F[K] extends Field<infer _, true> ? Camel<K> : never]: F[K] extends Field<
      infer T,
      true
    >
      ? T
      : never;
  } & {
    readonly [K in keyof F as F[K] extends Field<infer _, true> ? never : Camel<K>]?: F[K] extends Field<
      infer T,
      boolean
    >
      ? T
      : never;
  }
>;

export function camelCase(key: string): string {
  return key.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

/** A mapping with the given keys and no others. */
export function object<const F extends Fields>(
  fields: F,
  options: {
    readonly expected: string;
    /** Keys with this prefix are taken and ignored: a place for anchors. */
    readonly ignoredPrefix?: string;
    /** Answers a value that is no mapping, e.g. a string in place of a step. */
    readonly hintForOther?: (node: YamlNode) => string | undefined;
  },
): Schema<ObjectOf<F>> {
  const { expected, ignoredPrefix } = options;
  return {
    expected,
    typeName: 'mapping',
    children: { kind: 'object', fields },
    jsonSchema() {
      const properties: Record<string, JsonSchema> = {};
      for (const [key, field] of Object.entries(fields)) {
        properties[key] = { description: plainDoc(field), ...field.schema.jsonSchema() };
      }
      const needed = Object.keys(fields).filter((key) => fields[key]?.required);
      return {
        type: 'object',
        properties,
        ...(ignoredPrefix === undefined ? {} : { patternProperties: { [`^${ignoredPrefix}`]: {} } }),
        additionalProperties: false,
        ...(needed.length === 0 ? {} : { required: needed }),
      };
    },
    parse(node, context) {
      if (node.kind !== 'map') return wrongType(node, expected, context, options.hintForOther?.(node));
      return parseObject(node, fields, ignoredPrefix, context) as ObjectOf<F> | undefined;
    },
  };
}

/**
 * A mapping with the given keys and any others that follow `key`; those are gathered under the name `rest` of
 * the parsed value.
 */
export function objectWithRest<const F extends Fields, const R extends string, T>(
  fields: F,
  rest: R,
  key: KeyRule,
  value: Schema<T>,
  doc: string,
  options: { readonly expected: string },
): Schema<ObjectOf<F> & { readonly [K in R]: Readonly<Record<string, T>> }> {
  const closed = object(fields, options);
  const open = record(key, value, { max: 32, expected: options.expected });
  return {
    expected: options.expected,
    typeName: 'mapping',
    children: { kind: 'object', fields, rest: { keyName: key.name, value, doc } },
    jsonSchema: () => ({
      ...closed.jsonSchema(),
      propertyNames: { pattern: key.strictPattern ?? key.pattern },
      additionalProperties: value.jsonSchema(),
      minProperties: 1,
    }),
    parse(node, context) {
      if (node.kind !== 'map') return wrongType(node, options.expected, context);
      if (node.entries.length === 0) {
        return fail(context, node.span, `expected ${options.expected}, found an empty mapping`);
      }
      const isKnown = (entry: YamlEntry) => Object.hasOwn(fields, entry.key);
      const known = closed.parse({ ...node, entries: node.entries.filter(isKnown) }, context);
      const others = open.parse(
        { ...node, entries: node.entries.filter((entry) => !isKnown(entry)) },
        context,
      );
      if (known === undefined || others === undefined) return undefined;
      // The same object, so that its locations stay with it.
      return Object.assign(known, { [rest]: others }) as ObjectOf<F> & { readonly [K in R]: typeof others };
    },
  };
}

function parseObject(
  node: YamlMap,
  fields: Fields,
  ignoredPrefix: string | undefined,
  context: ParseContext,
): Record<string, unknown> | undefined {
  const values: Record<string, unknown> = {};
  const members = new Map<string | number, SourceSpan>();
  const present = new Set(node.entries.map((entry) => entry.key));
  const misspelt = new Set<string>();
  let failed = false;
  for (const entry of node.entries) {
    if (ignoredPrefix !== undefined && entry.key.startsWith(ignoredPrefix)) continue;
    const field = Object.hasOwn(fields, entry.key) ? fields[entry.key] : undefined;
    if (field === undefined) {
      const meant = unknownKey(entry, fields, present, context);
      if (meant !== undefined) misspelt.add(meant);
      failed = true;
      continue;
    }
    const value = field.schema.parse(entry.value, context);
    if (value === undefined) failed = true;
    else values[camelCase(entry.key)] = value;
    members.set(camelCase(entry.key), entry.keySpan);
  }
  for (const [key, field] of Object.entries(fields)) {
    if (!field.required || present.has(key)) continue;
    failed = true;
    if (misspelt.has(key)) continue;
    fail(
      context,
      { ...node.span, end: node.span.start + 1 },
      `the key \`${key}\` is missing here`,
      field.advice,
    );
  }
  context.locations.record(values, node.span, members);
  return failed ? undefined : values;
}

/** Returns the key that was probably meant. */
function unknownKey(
  entry: YamlEntry,
  fields: Fields,
  present: ReadonlySet<string>,
  context: ParseContext,
): string | undefined {
  const known = Object.keys(fields);
  const free = known.filter((key) => !present.has(key));
  const meant = nearest(entry.key, free) ?? nearest(entry.key, known);
  const list = known.map((key) => `\`${key}\``).join(', ');
  const hint = meant === undefined ? `the keys here are ${list}` : `did you mean \`${meant}\`?`;
  fail(context, entry.keySpan, `unknown key \`${entry.key}\``, hint);
  return meant;
}

export function plainDoc(field: Field<unknown, boolean>): string {
  const later = field.unsupported === undefined ? '' : ' Not supported yet.';
  return `${field.doc}${field.fallback === undefined ? '' : ` Default: ${field.fallback}.`}${later}`;
}

/** Reports every value below `value` that this version cannot honour, each at its position. */
export function collectUnsupported(
  schema: Schema<unknown>,
  value: unknown,
  locations: Locations,
  report: (problem: Problem) => void,
  path = '',
): void {
  const { children } = schema;
  if (children?.kind !== 'object' || typeof value !== 'object' || value === null) return;
  for (const [key, field] of Object.entries(children.fields)) {
    const member = (value as Record<string, unknown>)[camelCase(key)];
    if (member === undefined) continue;
    if (field.unsupported?.(member)) {
      report({
        code: 'NOT_SUPPORTED_YET',
        span: locations.of(value, camelCase(key)),
        message: `\`${path}${key}\` is not supported yet`,
        hint: 'this version would have to ignore it, so the job is not run; remove it to run the job without',
      });
    } else {
      collectUnsupported(field.schema, member, locations, report, `${path}${key}.`);
    }
  }
}
