/**
 * A small schema language. One description gives the TypeScript type (`Infer`), the parser with its error
 * messages, the JSON Schema (draft-07) and the reference table of the docs, so that they cannot disagree.
 *
 * Keys are kebab-case in the file and camelCase in the parsed value. Parsed values are plain objects; where
 * each of them stood in the file is kept beside them in {@link Locations}.
 */
import { didYouMean, nearest } from '../core/suggest.ts';
import type { Problem, SourceSpan, YamlEntry, YamlMap, YamlNode, YamlScalar } from '../core/yaml-source.ts';
import { hasExpression, parseTemplate, type Template } from './expression.ts';
import {
  DURATION_PATTERN,
  formatDuration,
  formatSizeMib,
  parseDurationMs,
  parseSizeMib,
  SIZE_PATTERN,
} from './quantity.ts';

export type JsonSchema = { readonly [key: string]: unknown };

/** Where parsed objects and their members stand in the file. */
export class Locations {
  readonly #spans = new WeakMap<object, Map<string | number, SourceSpan>>();
  readonly #selves = new WeakMap<object, SourceSpan>();

  /** Of an object as a whole, or of the value of one of its keys (a list's are its indexes). */
  of(object: object, key?: string | number): SourceSpan {
    const span = key === undefined ? undefined : this.#spans.get(object)?.get(key);
    const found = span ?? this.#selves.get(object);
    if (found === undefined) throw new TypeError('not an object of this job file');
    return found;
  }

  record(object: object, self: SourceSpan, members: Map<string | number, SourceSpan>): void {
    this.#selves.set(object, self);
    this.#spans.set(object, members);
  }
}

export interface ParseContext {
  readonly locations: Locations;
  report(problem: Problem): void;
}

export interface Schema<T> {
  /** Completes "expected …". */
  readonly expected: string;
  /** For the docs' type column. */
  readonly typeName: string;
  jsonSchema(): JsonSchema;
  /** Undefined after at least one problem has been reported. */
  parse(node: YamlNode, context: ParseContext): T | undefined;
  /** Present on schemas that hold others; the docs and `collectUnsupported` walk them. */
  readonly children?: SchemaChildren | undefined;
}

export type SchemaChildren =
  | { readonly kind: 'object'; readonly fields: Fields; readonly rest?: RestChildren | undefined }
  | { readonly kind: 'record'; readonly keyName: string; readonly value: Schema<unknown> }
  | { readonly kind: 'list'; readonly item: Schema<unknown> };

interface RestChildren {
  readonly keyName: string;
  readonly value: Schema<unknown>;
  readonly doc: string;
}

/** A schema whose values are scalars, which can also be read from the result of an expression. */
export interface ScalarSchema<T> extends Schema<T> {
  /** The value, or what is wrong with the text. */
  read(text: string): { readonly value: T } | { readonly wrong: string; readonly hint?: string | undefined };
}

export type Infer<S> = S extends Schema<infer T> ? T : never;

function fail(context: ParseContext, span: SourceSpan, message: string, hint?: string): undefined {
  context.report({ code: 'JOB_FILE_INVALID', span, message, hint });
}

function describe(node: YamlNode): string {
  if (node.kind === 'map') return 'a mapping';
  if (node.kind === 'list') return 'a list';
  if (node.type === 'null') return 'nothing';
  return node.type === 'string'
    ? `the string ${shorten(node.text)}`
    : `the ${node.type} ${shorten(node.text)}`;
}

function shorten(text: string): string {
  const line = text.split('\n', 1)[0] as string;
  return line.length > 40 || line !== text ? `\`${line.slice(0, 40)}…\`` : `\`${line}\``;
}

function wrongType(node: YamlNode, expected: string, context: ParseContext, hint?: string): undefined {
  return fail(context, node.span, `expected ${expected}, found ${describe(node)}`, hint);
}

// ---------------------------------------------------------------------------------------------- scalars

interface ScalarOptions<T> {
  readonly expected: string;
  readonly typeName: string;
  readonly json: JsonSchema;
  readonly read: ScalarSchema<T>['read'];
  /** YAML types that are taken, by their text as written. */
  readonly accepts: readonly YamlScalar['type'][];
}

function scalar<T>(options: ScalarOptions<T>): ScalarSchema<T> {
  const { expected, typeName, json, read, accepts } = options;
  return {
    expected,
    typeName,
    jsonSchema: () => json,
    read,
    parse(node, context) {
      if (node.kind !== 'scalar' || node.type === 'null') return wrongType(node, expected, context);
      if (hasExpression(node.text)) {
        context.report({
          code: 'JOB_EXPRESSION_INVALID',
          span: node.span,
          message: 'expressions are not evaluated here',
          hint: 'docs/job-file.md lists where they are',
        });
        return undefined;
      }
      const result = read(node.text);
      if ('value' in result && accepts.includes(node.type)) return result.value;
      return 'wrong' in result
        ? fail(context, node.span, result.wrong, result.hint)
        : wrongType(
            node,
            expected,
            context,
            node.type === 'string' ? 'remove the quotes' : 'put it in quotes',
          );
    },
  };
}

/** A string that matches `pattern` (draft-07 compatible, anchored). */
export function text(options: {
  readonly expected: string;
  readonly typeName?: string;
  readonly pattern: string;
  readonly maxLength?: number;
}): ScalarSchema<string> {
  const { expected, pattern, maxLength = 4096 } = options;
  const regex = new RegExp(pattern);
  return scalar({
    expected,
    typeName: options.typeName ?? 'string',
    json: { type: 'string', pattern, maxLength },
    accepts: ['string'],
    read: (value) =>
      value.length <= maxLength && regex.test(value)
        ? { value }
        : { wrong: `expected ${expected}, found ${shorten(value)}` },
  });
}

/** A string, number or boolean, taken as the text that was written. */
export function scalarText(expected: string): ScalarSchema<string> {
  return scalar({
    expected,
    typeName: 'string, number or boolean',
    json: { type: ['string', 'number', 'boolean'] },
    accepts: ['string', 'number', 'boolean'],
    read: (value) => ({ value }),
  });
}

export function oneOf<const T extends string>(...values: readonly T[]): ScalarSchema<T> {
  const list = values.map((value) => `\`${value}\``).join(' or ');
  return scalar({
    expected: list,
    typeName: list,
    json: { enum: values },
    accepts: ['string'],
    read: (value) =>
      values.includes(value as T)
        ? { value: value as T }
        : { wrong: `expected ${list}, found ${shorten(value)}`, hint: didYouMean(value, values) },
  });
}

/** A decimal integer. */
export function integer(min: number, max: number): ScalarSchema<number> {
  const expected = min === max ? `the number \`${min}\`` : `a whole number from ${min} to ${max}`;
  return scalar({
    expected,
    typeName: min === max ? `\`${min}\`` : 'integer',
    json: min === max ? { const: min } : { type: 'integer', minimum: min, maximum: max },
    accepts: ['number'],
    read(value) {
      const number = /^[0-9]{1,15}$/.test(value) ? Number(value) : Number.NaN;
      return number >= min && number <= max
        ? { value: number }
        : { wrong: `expected ${expected}, found ${shorten(value)}` };
    },
  });
}

/** A duration in milliseconds, within bounds in milliseconds. */
export function duration(minMs: number, maxMs: number): ScalarSchema<number> {
  const expected = `a duration such as \`30s\`, \`10m\` or \`1h30m\``;
  return scalar({
    expected,
    typeName: 'duration',
    json: { type: 'string', pattern: DURATION_PATTERN },
    accepts: ['string'],
    read(value) {
      const ms = parseDurationMs(value);
      if (ms === undefined) {
        const hint = /^[0-9]+$/.test(value)
          ? `write \`${value}s\` or \`${value}m\``
          : 'the units are s, m, h and d';
        return { wrong: `expected ${expected}, found ${shorten(value)}`, hint };
      }
      if (ms < minMs || ms > maxMs) {
        return { wrong: `\`${value}\` is not between ${formatDuration(minMs)} and ${formatDuration(maxMs)}` };
      }
      return { value: ms };
    },
  });
}

/** A size in MiB, within bounds in MiB. */
export function size(minMib: number, maxMib: number): ScalarSchema<number> {
  const expected = 'a size such as `512M` or `2G`';
  return scalar({
    expected,
    typeName: 'size',
    json: { type: 'string', pattern: SIZE_PATTERN },
    accepts: ['string'],
    read(value) {
      const mib = parseSizeMib(value);
      if (mib === undefined) {
        const bare = /^([0-9]+) *(?:([mgt])i?b?)?$/i.exec(value);
        const hint =
          bare === null
            ? 'the units are M (MiB), G (GiB) and T (TiB), after a whole number'
            : `write \`${bare[1]}${(bare[2] ?? 'M').toUpperCase()}\` (powers of two: M is MiB, G is GiB)`;
        return { wrong: `expected ${expected}, found ${shorten(value)}`, hint };
      }
      if (mib < minMib || mib > maxMib) {
        return { wrong: `\`${value}\` is not between ${formatSizeMib(minMib)} and ${formatSizeMib(maxMib)}` };
      }
      return { value: mib };
    },
  });
}

// -------------------------------------------------------------------------------------------- templates

/** A string with expressions. Numbers and booleans are taken as written. */
export function template(options: { readonly expected: string; readonly empty?: boolean }): Schema<Template> {
  const { expected, empty = false } = options;
  return {
    expected,
    typeName: 'string (e)',
    jsonSchema: () => ({ type: ['string', 'number', 'boolean'], ...(empty ? {} : { minLength: 1 }) }),
    parse(node, context) {
      if (node.kind !== 'scalar' || node.type === 'null') return wrongType(node, expected, context);
      if (!empty && node.text.trim() === '')
        return fail(context, node.span, `expected ${expected}, found an empty string`);
      return parseTemplate(node.text, node.span, (problem) => context.report(problem));
    },
  };
}

/** A value of `schema`, or a string with expressions that gives one when the job is planned. */
export function orTemplate<T>(schema: ScalarSchema<T>): Schema<T | Template> {
  return {
    expected: schema.expected,
    typeName: `${schema.typeName} (e)`,
    jsonSchema: () => ({ anyOf: [schema.jsonSchema(), { type: 'string', pattern: '\\$\\{\\{' }] }),
    parse(node, context) {
      if (node.kind !== 'scalar' || !hasExpression(node.text)) return schema.parse(node, context);
      return parseTemplate(node.text, node.span, (problem) => context.report(problem));
    },
  };
}

// ------------------------------------------------------------------------------------------ collections

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
        return wrongType(node, expected, context, single ? `write \`[${node.text}]\`` : undefined);
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
export function scalarOr<A, B>(one: ScalarSchema<A>, other: Schema<B>): Schema<A | B> {
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
      return 'value' in result ? result.value : wrongType(node, expected, context);
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

// ---------------------------------------------------------------------------------------------- objects

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
