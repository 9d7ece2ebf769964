/**
 * One record of an OSV feed (OSV schema 1.7), as far as it concerns packages that images hold. The record comes from outside:
 * fields that we use must have the types of the schema and stay within limits, or the feed is refused.
 */
import { CtError } from '../../core/errors.ts';
import { isObject } from '../../core/json.ts';
import {
  type Advisory,
  type Affected,
  ecosystemOf,
  MAX_AFFECTED,
  MAX_EVENTS,
  MAX_NAMES,
  MAX_SUMMARY_CHARACTERS,
  MAX_VERSION_CHARACTERS,
  MAX_VERSIONS,
  type Range,
  type RangeEvent,
  type Skipped,
} from './advisory.ts';
import { isInRanges, orderOf } from './ranges.ts';

const ID = /^[A-Za-z0-9][A-Za-z0-9._:+-]{0,127}$/;
const NAME = /^[^\s\p{Cc}]{1,256}$/u;
const TIME = /^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,24}(?:Z|[+-][0-9]{2}:[0-9]{2})$/;
const EVENTS = ['introduced', 'fixed', 'last_affected', 'limit'] as const;

type Json = Readonly<Record<string, unknown>>;

/** Throws VULN_DB_INVALID with the name of the record and of the field. */
export function parseOsv(value: unknown): Advisory | Skipped {
  const record = new Reader(value);
  if (record.optionalText('withdrawn', TIME) !== undefined) return 'withdrawn';
  const affected = record.list('affected', MAX_AFFECTED).flatMap((entry) => affectedOf(record, entry));
  const vectors = vectorsOf(record, record.value);
  // A record of the vulnerability itself, from which those of distributions may take the severity.
  const isRating = record.id.startsWith('CVE-') && vectors.length > 0;
  if (affected.length === 0 && !isRating) return 'other';
  const published = record.optionalText('published', TIME);
  const word = wordOf(record.value);
  return {
    id: record.id,
    aliases: record.names('aliases'),
    upstream: record.names('upstream'),
    summary: summaryOf(record),
    modified: record.text('modified', TIME),
    ...(published === undefined ? {} : { published }),
    vectors,
    ...(word === undefined ? {} : { word }),
    affected,
  };
}

function affectedOf(record: Reader, entry: Json): readonly Affected[] {
  const target = entry['package'];
  if (target === undefined || target === null) return [];
  if (!isObject(target)) throw record.wrong('affected.package');
  const { ecosystem: named, name } = target;
  if (typeof named !== 'string') throw record.wrong('affected.package.ecosystem');
  const ecosystem = ecosystemOf(named);
  if (ecosystem === undefined) return [];
  if (typeof name !== 'string' || !NAME.test(name)) throw record.wrong('affected.package.name');
  const ranges = record
    .list('ranges', MAX_EVENTS, entry)
    .flatMap((range): Range[] => (range['type'] === 'GIT' ? [] : [rangeOf(record, range)]));
  const order = orderOf(ecosystem);
  const versions = record
    .texts('versions', MAX_VERSIONS, entry)
    .filter((version) => isVersion(version) && !isInRanges(version, ranges, order));
  const word = wordOf(entry);
  return [
    {
      ecosystem,
      package: name,
      ranges,
      versions,
      vectors: vectorsOf(record, entry),
      ...(word === undefined ? {} : { word }),
    },
  ];
}

function rangeOf(record: Reader, range: Json): Range {
  return record.list('events', MAX_EVENTS, range).map((event): RangeEvent => {
    const kind = EVENTS.find((name) => event[name] !== undefined);
    const version = kind === undefined ? undefined : event[kind];
    if (kind === undefined || typeof version !== 'string' || !(isVersion(version) || version === '*')) {
      throw record.wrong('affected.ranges.events');
    }
    return [kind, version];
  });
}

function vectorsOf(record: Reader, owner: Json): readonly string[] {
  return record.list('severity', MAX_NAMES, owner).flatMap(({ type, score }) => {
    if (type !== 'CVSS_V3' && type !== 'CVSS_V4') return [];
    if (typeof score !== 'string' || score.length > 400) throw record.wrong('severity.score');
    return [score];
  });
}

/** GitHub's advisories and Debian's name a severity in their own fields. */
function wordOf(owner: Json): string | undefined {
  for (const [field, key] of [
    ['ecosystem_specific', 'urgency'],
    ['database_specific', 'severity'],
  ] as const) {
    const specific = owner[field];
    const word = isObject(specific) ? specific[key] : undefined;
    if (typeof word === 'string' && word.length <= 40) return word;
  }
  return undefined;
}

function summaryOf(record: Reader): string {
  const { summary, details } = record.value;
  const text = typeof summary === 'string' && summary !== '' ? summary : details;
  return typeof text === 'string' ? shortSummary(text) : '';
}

/** The beginning of a text on one line. */
export function shortSummary(text: string): string {
  const line = text
    .slice(0, 4 * MAX_SUMMARY_CHARACTERS)
    .replaceAll(/[\s\p{Cc}\p{Cf}]+/gu, ' ')
    .trim();
  const cut = line.slice(0, MAX_SUMMARY_CHARACTERS).toWellFormed();
  return line.length > MAX_SUMMARY_CHARACTERS ? `${cut}…` : cut;
}

/** Whether text can be a version at all, whatever the ecosystem. */
export function isVersion(text: string): boolean {
  return text.length <= MAX_VERSION_CHARACTERS && /^[^\s\p{Cc}]+$/u.test(text);
}

class Reader {
  readonly value: Json;
  readonly id: string;

  constructor(value: unknown) {
    const id = isObject(value) ? value['id'] : undefined;
    if (!isObject(value) || typeof id !== 'string' || !ID.test(id)) {
      throw new CtError('VULN_DB_INVALID', 'a record has no `id`, or one that is none', {
        hint: 'it is no OSV feed, or a damaged one; the database is as it was',
      });
    }
    this.value = value;
    this.id = id;
  }

  text(field: string, pattern: RegExp): string {
    const text = this.optionalText(field, pattern);
    if (text === undefined) throw this.wrong(field);
    return text;
  }

  optionalText(field: string, pattern: RegExp): string | undefined {
    const text = this.value[field] ?? undefined;
    if (text === undefined) return undefined;
    if (typeof text !== 'string' || !pattern.test(text)) throw this.wrong(field);
    return text;
  }

  names(field: string): readonly string[] {
    // One that is no name joins nothing; it is not worth a whole feed.
    const names = this.texts(field, MAX_NAMES).filter((name) => ID.test(name) && name !== this.id);
    return [...new Set(names)];
  }

  texts(field: string, max: number, owner: Json = this.value): readonly string[] {
    const list = owner[field] ?? [];
    if (!Array.isArray(list) || list.length > max || !list.every((item) => typeof item === 'string')) {
      throw this.wrong(field);
    }
    return list;
  }

  list(field: string, max: number, owner: Json = this.value): readonly Json[] {
    const list = owner[field] ?? [];
    if (!Array.isArray(list) || list.length > max || !list.every(isObject)) throw this.wrong(field);
    return list;
  }

  wrong(field: string): CtError {
    return new CtError('VULN_DB_INVALID', `record ${this.id}: \`${field}\` is not what OSV allows there`, {
      hint: 'the feed is damaged, or of a newer schema; the database is as it was',
    });
  }
}
