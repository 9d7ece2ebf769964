/**
 * YAML with positions: parsed into a small tree whose every node knows where it stands. Aliases and nesting are
 * bounded before anything walks the tree, because the text may be hostile (source-text.ts).
 */
import { type Document, isAlias, isMap, isScalar, isSeq, parseDocument, type Scalar } from 'yaml';
import { type ErrorCode, messageOf } from './errors.ts';
import {
  formatPosition,
  MAX_REPORTED_PROBLEMS,
  type Problem,
  type SourceSpan,
  type SourceText,
} from './source-text.ts';

/** Whoever parses also reads and reports; whoever only reports does not load the parser. */
export * from './source-text.ts';

/** Levels of lists and mappings; no real job or image definition needs ten. */
const MAX_DEPTH = 50;

/** Nodes after aliases have been followed: bounds "billion laughs", where few bytes stand for many nodes. */
const MAX_EXPANDED_NODES = 100_000;

/** Syntax errors reported per file: those after the first are mostly its consequences. */
const MAX_SYNTAX_PROBLEMS = 3;

export type YamlNode = YamlMap | YamlList | YamlScalar;

interface YamlNodeBase {
  readonly span: SourceSpan;
  /** Nodes of this subtree, each alias counted as what it stands for. */
  readonly weight: number;
}

export interface YamlMap extends YamlNodeBase {
  readonly kind: 'map';
  /** In file order, without duplicates; merge keys (`<<`) are already merged in. */
  readonly entries: readonly YamlEntry[];
}

export interface YamlEntry {
  readonly key: string;
  readonly keySpan: SourceSpan;
  readonly value: YamlNode;
}

export interface YamlList extends YamlNodeBase {
  readonly kind: 'list';
  readonly items: readonly YamlNode[];
}

export interface YamlScalar extends YamlNodeBase {
  readonly kind: 'scalar';
  /** What YAML's core schema says it is. */
  readonly type: 'string' | 'number' | 'boolean' | 'null';
  /** The string; for numbers and booleans the characters as written, so that `3.10` does not become `3.1`. */
  readonly text: string;
}

/**
 * Parses one YAML 1.2 document. Anchors, aliases and merge keys are followed. On any problem `root` is
 * undefined and `problems` says what is wrong, as `code`; an empty document has neither.
 */
export function parseYaml(
  source: SourceText,
  code: ErrorCode,
): { readonly root: YamlNode | undefined; readonly problems: readonly Problem[] } {
  const span = (start: number, end: number): SourceSpan => ({ source, start, end: Math.max(start, end) });
  const control = findControlCharacter(source.text);
  if (control !== -1) {
    const message = `control character ${codePoint(source.text, control)} is not allowed in YAML`;
    return { root: undefined, problems: [{ code, span: span(control, control + 1), message }] };
  }
  let document: Document.Parsed;
  try {
    document = parseDocument(source.text, {
      prettyErrors: false,
      // Checked below, in linear time and with both places.
      uniqueKeys: false,
      stringKeys: true,
      resolveKnownTags: false,
      // At `silent` a second document goes unnoticed.
      logLevel: 'error',
    });
  } catch (error) {
    const message = error instanceof RangeError ? 'nested too deeply' : `not valid YAML: ${messageOf(error)}`;
    return { root: undefined, problems: [{ code, span: span(0, 0), message }] };
  }
  const complaints = [...document.errors, ...document.warnings].slice(0, MAX_SYNTAX_PROBLEMS);
  if (complaints.length > 0) {
    const problems = complaints.map((error) => ({
      code,
      span: span(error.pos[0], error.pos[1]),
      ...explainYaml(error.code, error.message),
    }));
    return { root: undefined, problems };
  }
  const converter = new Converter(source, code);
  const root = document.contents === null ? undefined : converter.convert(document.contents, 0);
  return converter.problems.length > 0
    ? { root: undefined, problems: converter.problems }
    : { root, problems: [] };
}

/** The parser's words where they are plain, ours where a user of CI would not understand them. */
function explainYaml(yamlCode: string, message: string): { message: string; hint?: string } {
  switch (yamlCode) {
    case 'TAB_AS_INDENT':
      return { message: 'YAML does not allow tabs as indentation', hint: 'indent with spaces' };
    case 'MULTIPLE_DOCS':
      return {
        message: 'the file has more than one YAML document',
        hint: 'remove the `---` line, or use several files',
      };
    case 'TAG_RESOLVE_FAILED':
      return { message: `YAML tags are not used here: ${firstLine(message)}` };
    case 'RESOURCE_EXHAUSTION':
      return { message: 'nested too deeply' };
    case 'NON_STRING_KEY':
      return { message: 'a key must be a plain word or a string' };
    default:
      return { message: `not valid YAML: ${firstLine(message)}` };
  }
}

function firstLine(text: string): string {
  return text.split('\n', 1)[0] as string;
}

/** Turns the library's document into {@link YamlNode}s: follows aliases, merges, checks keys and bounds. */
class Converter {
  readonly problems: Problem[] = [];
  /** Anchors met so far; YAML wants an anchor before its aliases. (Alias.resolve() searches the whole document.) */
  readonly #anchors = new Map<string, unknown>();
  readonly #source: SourceText;
  readonly #code: ErrorCode;
  /** Each node is converted once; an alias shares the result. `undefined` while it is being converted. */
  readonly #converted = new Map<unknown, YamlNode | undefined>();

  constructor(source: SourceText, code: ErrorCode) {
    this.#source = source;
    this.#code = code;
  }

  convert(node: unknown, depth: number): YamlNode | undefined {
    if (this.#converted.has(node)) {
      const known = this.#converted.get(node);
      if (known === undefined) this.#report(node, 'an alias stands inside the anchor it refers to');
      return known;
    }
    if (depth > MAX_DEPTH) return this.#report(node, `nested more than ${MAX_DEPTH} levels deep`);
    if (isAlias(node)) {
      const target = this.#anchors.get(node.source);
      if (target === undefined) return this.#report(node, `unknown alias \`*${node.source}\``);
      return this.convert(target, depth);
    }
    this.#noteAnchor(node);
    this.#converted.set(node, undefined);
    const result = this.#convertNew(node, depth);
    if (result !== undefined && result.weight > MAX_EXPANDED_NODES) {
      return this.#report(
        node,
        `more than ${MAX_EXPANDED_NODES} values, counting an alias as what it stands for`,
      );
    }
    this.#converted.set(node, result);
    return result;
  }

  #convertNew(node: unknown, depth: number): YamlNode | undefined {
    if (isScalar(node)) return this.#scalar(node);
    if (isSeq(node)) {
      const items: YamlNode[] = [];
      for (const item of node.items) {
        const converted = this.convert(item, depth + 1);
        if (converted === undefined) return undefined;
        items.push(converted);
      }
      return { kind: 'list', span: this.#span(node), weight: weightOf(items), items };
    }
    if (isMap(node)) {
      const entries = new Map<string, YamlEntry>();
      const merged = new Map<string, YamlEntry>();
      for (const pair of node.items) {
        const key = isScalar(pair.key) ? scalarText(pair.key) : undefined;
        if (key === undefined)
          return this.#report(pair.key ?? node, 'a key must be a plain word or a string');
        this.#noteAnchor(pair.key);
        const keySpan = this.#span(pair.key);
        const value = pair.value === null ? nothingAt(keySpan) : this.convert(pair.value, depth + 1);
        if (value === undefined) return undefined;
        if (key === '<<') {
          if (!this.#merge(value, merged)) return undefined;
          continue;
        }
        const earlier = entries.get(key);
        if (earlier !== undefined) {
          this.#add(
            keySpan,
            `duplicate key \`${key}\`; it is first given at ${formatPosition(earlier.keySpan)}`,
          );
          continue;
        }
        entries.set(key, { key, keySpan, value });
      }
      // A key given here wins over a merged one.
      for (const [key, entry] of merged) if (!entries.has(key)) entries.set(key, entry);
      const all = [...entries.values()];
      return {
        kind: 'map',
        span: this.#span(node),
        weight: weightOf(all.map((entry) => entry.value)),
        entries: all,
      };
    }
    return this.#report(node, 'not a value');
  }

  #noteAnchor(node: unknown): void {
    const anchor = (node as { anchor?: string } | null)?.anchor;
    if (anchor !== undefined) this.#anchors.set(anchor, node);
  }

  #merge(value: YamlNode, into: Map<string, YamlEntry>): boolean {
    for (const source of value.kind === 'list' ? value.items : [value]) {
      if (source.kind !== 'map') {
        this.#add(source.span, '`<<` merges mappings: give it an alias of a mapping, or a list of them');
        return false;
      }
      // The first of several sources wins (the YAML merge key type).
      for (const entry of source.entries) if (!into.has(entry.key)) into.set(entry.key, entry);
    }
    return true;
  }

  #scalar(node: Scalar): YamlNode | undefined {
    const { value } = node;
    const type =
      value === null
        ? 'null'
        : typeof value === 'number' || typeof value === 'bigint'
          ? 'number'
          : typeof value === 'boolean'
            ? 'boolean'
            : 'string';
    const text = scalarText(node);
    if (text.includes('\0')) return this.#report(node, 'a string must not contain a NUL character');
    return { kind: 'scalar', span: this.#span(node), weight: 1, type, text };
  }

  #span(node: unknown): SourceSpan {
    const range = (node as { range?: readonly [number, number, number] | null } | null)?.range;
    return { source: this.#source, start: range?.[0] ?? 0, end: range?.[1] ?? 0 };
  }

  #report(node: unknown, message: string): undefined {
    this.#add(this.#span(node), message);
  }

  #add(span: SourceSpan, message: string): void {
    if (this.problems.length <= MAX_REPORTED_PROBLEMS)
      this.problems.push({ code: this.#code, span, message });
  }
}

function nothingAt(span: SourceSpan): YamlScalar {
  return { kind: 'scalar', span, weight: 1, type: 'null', text: '' };
}

function scalarText(node: Scalar): string {
  if (typeof node.value === 'string') return node.value;
  if (node.value === null) return '';
  return node.source ?? String(node.value);
}

function weightOf(children: readonly YamlNode[]): number {
  let weight = 1;
  for (const child of children) weight += child.weight;
  return weight;
}

/** C0 but tab, line feed and carriage return; DEL; C1 but NEL: what YAML 1.2 §5.1 calls not printable. */
function findControlCharacter(text: string): number {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: finding them is the point
  return text.search(/[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]/);
}

function codePoint(text: string, offset: number): string {
  return `U+${text.charCodeAt(offset).toString(16).toUpperCase().padStart(4, '0')}`;
}
