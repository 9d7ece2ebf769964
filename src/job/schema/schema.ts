/**
 * A small schema language. One description gives the TypeScript type (`Infer`), the parser with its error
 * messages, the JSON Schema (draft-07) and the reference table of the docs, so that they cannot disagree.
 *
 * Keys are kebab-case in the file and camelCase in the parsed value. Parsed values are plain objects; where
 * each of them stood in the file is kept beside them in {@link Locations}.
 */
import type { Problem, SourceSpan } from '../../core/source-text.ts';
import type { YamlNode } from '../../core/yaml-source.ts';
import type { Fields } from './objects.ts';

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

/** Reports a problem; returns undefined, which is what a parser returns then. */
export function fail(context: ParseContext, span: SourceSpan, message: string, hint?: string): undefined {
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

export function shorten(text: string): string {
  const line = text.split('\n', 1)[0] as string;
  return line.length > 40 || line !== text ? `\`${line.slice(0, 40)}…\`` : `\`${line}\``;
}

export function wrongType(node: YamlNode, expected: string, context: ParseContext, hint?: string): undefined {
  return fail(context, node.span, `expected ${expected}, found ${describe(node)}`, hint);
}
