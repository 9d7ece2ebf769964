/**
 * Text files of a checkout and reports about them: read within limits, and shown with the offending line and a
 * caret. The files may be somebody's pull request: size is checked before reading, and what is shown of them
 * in a message cannot carry control characters to a terminal.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { CtError, type ErrorCode, messageOf } from './errors.ts';

/** Problems shown in one report; the rest are counted. */
export const MAX_REPORTED_PROBLEMS = 20;

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
