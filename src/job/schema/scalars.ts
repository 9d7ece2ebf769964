/** Schemas of single values, with and without expressions. */
import { didYouMean } from '../../core/suggest.ts';
import type { YamlScalar } from '../../core/yaml-source.ts';
import { hasExpression, parseTemplate, type Template } from '../expression.ts';
import {
  DURATION_PATTERN,
  formatDuration,
  formatSizeMib,
  parseDurationMs,
  parseSizeMib,
  SIZE_PATTERN,
} from '../quantity.ts';
import { fail, type JsonSchema, type ScalarSchema, type Schema, shorten, wrongType } from './schema.ts';

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
  /** Says better than the pattern what is wrong, and finds more than that can. */
  readonly check?: (
    value: string,
  ) => { readonly wrong: string; readonly hint?: string | undefined } | undefined;
}): ScalarSchema<string> {
  const { expected, pattern, maxLength = 4096, check } = options;
  const regex = new RegExp(pattern);
  return scalar({
    expected,
    typeName: options.typeName ?? 'string',
    json: { type: 'string', pattern, maxLength },
    accepts: ['string'],
    read: (value) => {
      if (value.length > maxLength) return { wrong: `expected ${expected}, found ${shorten(value)}` };
      const problem = check?.(value);
      if (problem !== undefined) return problem;
      return regex.test(value) ? { value } : { wrong: `expected ${expected}, found ${shorten(value)}` };
    },
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

/** `true` or `false`, without quotes. */
export function flag(): ScalarSchema<boolean> {
  const expected = '`true` or `false`';
  return scalar({
    expected,
    typeName: expected,
    json: { type: 'boolean' },
    accepts: ['boolean'],
    read: (value) =>
      value === 'true' || value === 'false'
        ? { value: value === 'true' }
        : { wrong: `expected ${expected}, found ${shorten(value)}` },
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
