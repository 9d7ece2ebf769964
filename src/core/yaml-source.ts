/**
 * YAML files with positions: read within limits, parsed into a small tree whose every node knows where it
 * stands, and reports that show the offending line with a caret.
 *
 * The files come from a checkout that may be somebody's pull request, so they are foreign bytes: size is
 * checked before reading, aliases and nesting are bounded before anything walks the tree, and what is shown
 * of a file in a message cannot carry control characters to a terminal.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { type Document, isAlias, isMap, isScalar, isSeq, parseDocument, type Scalar } from 'yaml';
import { CtError, type ErrorCode, messageOf } from './errors.ts';

/** Levels of lists and mappings; no real job or image definition needs ten. */
const MAX_DEPTH = 50;

/** Nodes after aliases have been followed: bounds "billion laughs", where few bytes stand for many nodes. */
const MAX_EXPANDED_NODES = 100_000;

/** Problems shown in one report; the rest are counted. */
export const MAX_REPORTED_PROBLEMS = 20;

/** Syntax errors reported per file: those after the first are mostly its consequences. */
const MAX_SYNTAX_PROBLEMS = 3;

/** Columns of a source line shown in a report. */
const MAX_EXCERPT_COLUMNS = 100;

/** The text of one file and the name by which messages call it. */
export class SourceText {
  readonly name: string;
  readonly text: string;
  #lineStarts: number[] | undefined;

  constructor(name: string, text: string) {
    this.name = name;
    this.text = text;
  }

  /** 1-based line and column (in characters) of an offset. */
  position(offset: number): { readonly line: number; readonly column: number } {
    const starts = this.#starts();
    let low = 0;
    let high = starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((starts[middle] as number) <= offset) low = middle;
      else high = middle - 1;
    }
    return { line: low + 1, column: offset - (starts[low] as number) + 1 };
  }

  /** A line without its line end. */
  line(line: number): string {
    const starts = this.#starts();
    const from = starts[line - 1] ?? this.text.length;
    return this.text.slice(from, starts[line] ?? this.text.length).replace(/[\r\n]+$/, '');
  }

  #starts(): number[] {
    if (this.#lineStarts === undefined) {
      this.#lineStarts = [0];
      for (let at = this.text.indexOf('\n'); at !== -1; at = this.text.indexOf('\n', at + 1)) {
        this.#lineStarts.push(at + 1);
      }
    }
    return this.#lineStarts;
  }
}

/** A stretch of a source: offsets in UTF-16 units, `end` exclusive. */
export interface SourceSpan {
  readonly source: SourceText;
  readonly start: number;
  readonly end: number;
}

/** `ct.yml:3:5` */
export function formatPosition(span: SourceSpan): string {
  const { line, column } = span.source.position(span.start);
  return `${span.source.name}:${line}:${column}`;
}

/** Something wrong at a place in a file. */
export interface Problem {
  readonly code: ErrorCode;
  readonly span: SourceSpan;
  /** What is wrong and the rule; one line. */
  readonly message: string;
  /** What was probably meant, or what to do. */
  readonly hint?: string | undefined;
}

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
 * Reads a UTF-8 text file of at most `maxBytes`. Throws a CtError of `code` if it is missing (then
 * `missingCode`), not a regular file, unreadable, too large, or not UTF-8 text; a byte order mark is dropped.
 */
export function readSource(
  path: string,
  name: string,
  options: { readonly maxBytes: number; readonly code: ErrorCode; readonly missingCode: ErrorCode },
): SourceText {
  const { maxBytes, code } = options;
  let fd: number;
  try {
    // O_NONBLOCK: a pipe of that name must not make us wait for a writer.
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const missing = ['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '');
    throw new CtError(missing ? options.missingCode : code, `cannot read ${name}: ${reason(error)}`, {
      cause: error,
    });
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new CtError(code, `${name} is not a regular file`);
    if (stat.size > maxBytes) throw tooLarge(code, name, maxBytes);
    // One byte more than allowed, so that a file that grows meanwhile is noticed.
    const buffer = Buffer.alloc(Math.min(maxBytes, stat.size) + 1);
    let length = 0;
    for (;;) {
      const count = readSync(fd, buffer, length, buffer.length - length, null);
      if (count === 0) break;
      length += count;
      if (length === buffer.length) throw tooLarge(code, name, stat.size);
    }
    return new SourceText(name, decode(buffer.subarray(0, length), name, code));
  } catch (error) {
    if (error instanceof CtError) throw error;
    throw new CtError(code, `cannot read ${name}: ${reason(error)}`, { cause: error });
  } finally {
    closeSync(fd);
  }
}

function tooLarge(code: ErrorCode, name: string, maxBytes: number): CtError {
  return new CtError(code, `${name} is larger than ${maxBytes} bytes`, {
    hint: 'keep long scripts in files of the repository and call them from the step',
  });
}

function reason(error: unknown): string {
  switch ((error as NodeJS.ErrnoException).code) {
    case 'ENOENT':
      return 'there is no such file';
    case 'EACCES':
      return 'permission denied';
    default:
      return messageOf(error);
  }
}

function decode(bytes: Buffer, name: string, code: ErrorCode): string {
  if ((bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff)) {
    throw new CtError(code, `${name} is UTF-16 text`, { hint: 'save it as UTF-8' });
  }
  const nul = bytes.indexOf(0);
  if (nul !== -1) {
    throw new CtError(code, `${name} is binary: it has a NUL byte at offset ${nul}`);
  }
  try {
    // Drops a leading byte order mark.
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (error) {
    throw new CtError(code, `${name} is not UTF-8 text`, { hint: 'save it as UTF-8', cause: error });
  }
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

/**
 * One error for all problems, in file order: its message is the report. The code is that of the problems if
 * they agree, else `mixedCode`. `problems` must not be empty.
 */
export function problemsError(problems: readonly Problem[], mixedCode: ErrorCode): CtError {
  const codes = new Set(problems.map((problem) => problem.code));
  const code = codes.size === 1 ? ([...codes][0] as ErrorCode) : mixedCode;
  return new CtError(code, formatProblems(problems));
}

/** Every problem with its position, rule, line and caret; at most {@link MAX_REPORTED_PROBLEMS} of them. */
export function formatProblems(problems: readonly Problem[]): string {
  const names = [...new Set(problems.map((problem) => problem.span.source.name))];
  const sorted = [...problems].sort(
    (a, b) =>
      names.indexOf(a.span.source.name) - names.indexOf(b.span.source.name) || a.span.start - b.span.start,
  );
  const shown = sorted.slice(0, MAX_REPORTED_PROBLEMS).map(formatProblem);
  const hidden = sorted.length - shown.length;
  if (hidden > 0) shown.push(hidden === 1 ? 'and one more problem' : 'and more problems');
  return shown.join('\n');
}

function formatProblem(problem: Problem): string {
  const { span } = problem;
  const { line, column } = span.source.position(span.start);
  const lines = [`${formatPosition(span)}: ${printable(problem.message)}`];
  const text = span.source.line(line);
  // A window around the column, so that a minified line stays readable.
  const from = Math.max(0, column - 1 - MAX_EXCERPT_COLUMNS / 2);
  const excerpt = printable(text.slice(from, from + MAX_EXCERPT_COLUMNS));
  const gutter = `  ${line} | `;
  const width = Math.min(
    span.end - span.start,
    text.length - (column - 1),
    from + MAX_EXCERPT_COLUMNS - (column - 1),
  );
  lines.push(gutter + excerpt);
  lines.push(
    `${' '.repeat(gutter.length - 2)}| ${' '.repeat(column - 1 - from)}${'^'.repeat(Math.max(1, width))}`,
  );
  if (problem.hint !== undefined) lines.push(`${' '.repeat(gutter.length - 2)}= ${printable(problem.hint)}`);
  return lines.join('\n');
}

/** Text of a file made safe for a terminal: control and direction-changing characters become one `?` each. */
export function printable(text: string): string {
  return text.replaceAll('\t', ' ').replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, '?');
}
