/**
 * `${{ matrix.x }}` and `${{ env.x }}` in strings of the job file.
 *
 * An expression names one value and nothing else: no operators, no functions, no nesting. What it names is
 * inserted literally; the result is not looked at again. `$${{` stands for a literal `${{`.
 */
import type { ErrorCode } from '../core/errors.ts';
import type { Problem, SourceSpan } from '../core/source-text.ts';
import { didYouMean } from '../core/suggest.ts';

const CODE: ErrorCode = 'JOB_EXPRESSION_INVALID';

export type ExpressionScope = 'matrix' | 'env';
const SCOPES: readonly ExpressionScope[] = ['matrix', 'env'];

export interface Reference {
  readonly scope: ExpressionScope;
  readonly name: string;
  /** Where `${{ … }}` stands. */
  readonly span: SourceSpan;
}

/** A string that may hold expressions. */
export interface Template {
  /** As written. */
  readonly text: string;
  readonly parts: readonly (string | Reference)[];
  readonly span: SourceSpan;
}

/** What expressions can see. `undefined` as a matrix value: named by some `include`, absent here. */
export interface Scope {
  readonly matrix: Readonly<Record<string, string>>;
  /** Names that are known but have no value in this combination; they read as the empty string. */
  readonly absentMatrix: ReadonlySet<string>;
  readonly env: Readonly<Record<string, string>>;
}

const REFERENCE = /^\s*([A-Za-z_][\w-]*)\s*\.\s*([A-Za-z_][\w-]*)\s*$/;

export function hasExpression(text: string): boolean {
  return text.includes('${{');
}

/** Parses a string; every malformed expression is reported with its position. Never throws. */
export function parseTemplate(text: string, span: SourceSpan, report: (problem: Problem) => void): Template {
  const parts: (string | Reference)[] = [];
  let literal = '';
  let at = 0;
  let ordinal = 0;
  for (;;) {
    const open = text.indexOf('${{', at);
    if (open === -1) break;
    const place = expressionSpan(span, ordinal++);
    if (open > at && text[open - 1] === '$') {
      literal += `${text.slice(at, open - 1)}\${{`;
      at = open + 3;
      continue;
    }
    literal += text.slice(at, open);
    const close = text.indexOf('}}', open + 3);
    if (close === -1) {
      report({
        code: CODE,
        span: place,
        message: 'the expression is not closed with `}}`',
        hint: 'write `$${{` for a literal `${{`',
      });
      return { text, parts: [text], span };
    }
    const reference = parseReference(text.slice(open + 3, close), place, report);
    if (reference !== undefined) {
      if (literal !== '') parts.push(literal);
      literal = '';
      parts.push(reference);
    }
    at = close + 2;
  }
  literal += text.slice(at);
  if (literal !== '' || parts.length === 0) parts.push(literal);
  return { text, parts, span };
}

function parseReference(
  inner: string,
  span: SourceSpan,
  report: (problem: Problem) => void,
): Reference | undefined {
  const match = REFERENCE.exec(inner);
  if (match === null) {
    report({
      code: CODE,
      span,
      // biome-ignore lint/suspicious/noTemplateCurlyInString: it shows the syntax
      message: 'an expression is `${{ matrix.NAME }}` or `${{ env.NAME }}` and nothing more',
      hint: 'write `$${{` for a literal `${{`',
    });
    return undefined;
  }
  const [, scope, name] = match as unknown as [string, string, string];
  if (!SCOPES.includes(scope as ExpressionScope)) {
    report({
      code: CODE,
      span,
      message: `unknown name \`${scope}\` in an expression; it can be \`matrix\` or \`env\``,
      hint:
        scope === 'secrets'
          ? 'secrets are never part of a text; name them under `secrets`, and the step has them as variables'
          : didYouMean(scope, SCOPES),
    });
    return undefined;
  }
  return { scope: scope as ExpressionScope, name, span };
}

/**
 * Where the nth `${{` of a string stands in the file. Quoting and block indentation keep the order of the
 * braces, so the nth in the source is the nth in the value; where they do not (an escape such as `\x24`), the
 * start of the string has to do.
 */
function expressionSpan(span: SourceSpan, ordinal: number): SourceSpan {
  const { source, end } = span;
  let at = span.start - 1;
  for (let index = 0; index <= ordinal; index++) {
    at = source.text.indexOf('${{', at + 1);
    if (at === -1 || at >= end) return span;
  }
  const close = source.text.indexOf('}}', at);
  return { source, start: at, end: close === -1 || close >= end ? at + 3 : close + 2 };
}

/**
 * The value of a template, or undefined after reporting unknown names or a result of more than `maxBytes`
 * (checked while it grows: a small template can name a large value many times).
 */
export function evaluate(
  template: Template,
  scope: Scope,
  maxBytes: number,
  report: (problem: Problem) => void,
): string | undefined {
  let result = '';
  let failed = false;
  for (const part of template.parts) {
    if (typeof part === 'string') {
      result += part;
    } else {
      const value = lookUp(part, scope);
      if (value === undefined) {
        failed = true;
        report(unknownName(part, scope));
      } else {
        result += value;
      }
    }
    if (result.length > maxBytes) {
      report({
        code: CODE,
        span: template.span,
        message: `with its values inserted this is longer than ${maxBytes} bytes`,
      });
      return undefined;
    }
  }
  return failed ? undefined : result;
}

function lookUp(reference: Reference, scope: Scope): string | undefined {
  const values = scope[reference.scope];
  if (Object.hasOwn(values, reference.name)) return values[reference.name];
  return reference.scope === 'matrix' && scope.absentMatrix.has(reference.name) ? '' : undefined;
}

/** The problem of a name that is not in scope. */
export function unknownName(
  reference: Reference,
  scope: Pick<Scope, 'matrix' | 'absentMatrix' | 'env'>,
): Problem {
  const known =
    reference.scope === 'matrix'
      ? [...new Set([...Object.keys(scope.matrix), ...scope.absentMatrix])]
      : Object.keys(scope.env);
  const where =
    reference.scope === 'matrix'
      ? 'the matrix of this job has'
      : 'env here (defaults, job, step and -e; not the variables of the image) has';
  const list =
    known.length === 0
      ? 'no names'
      : known
          .slice(0, 20)
          .map((name) => `\`${name}\``)
          .join(', ');
  return {
    code: CODE,
    span: reference.span,
    message: `unknown name \`${reference.scope}.${reference.name}\`; ${where} ${list}`,
    hint: didYouMean(reference.name, known),
  };
}
