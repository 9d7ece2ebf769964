/** What the operator says about scans: `vulnerabilities.yml` in the policy directory. docs/scanning.md describes it. */
import { statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { CtError } from '../../core/errors.ts';
import { requireUnchangeable } from '../../core/paths.ts';
import { readSource, type SourceText } from '../../core/source-text.ts';
import { list } from '../../job/schema/collections.ts';
import { parseConfig } from '../../job/schema/config-file.ts';
import { object, optional, required } from '../../job/schema/objects.ts';
import { duration, integer, oneOf, text } from '../../job/schema/scalars.ts';
import type { Infer, Schema } from '../../job/schema/schema.ts';
import { isUrl } from './download.ts';
import type { Exception } from './exceptions.ts';
import { isOpenVex, parseOpenVex } from './openvex.ts';
import { THRESHOLDS, type Threshold } from './severity.ts';

const FILE = 'vulnerabilities.yml';
/** A hand-written file, and documents of vendors. */
const MAX_FILE_BYTES = 8 * 1024 * 1024;
const MAX_ENTRIES = 10_000;
const DAY_MS = 24 * 60 * 60 * 1000;

/** Feeds change every day. */
export const STALE_DEFAULTS: StaleLimits = { warnAfterMs: 3 * DAY_MS, refuseAfterMs: 14 * DAY_MS };

export interface StaleLimits {
  readonly warnAfterMs: number;
  readonly refuseAfterMs: number;
}

export interface ScanConfig {
  /** Paths and URLs. */
  readonly feeds: readonly string[];
  readonly stale: StaleLimits;
  /** From what severity on a scan fails; undefined: whatever it finds, it does not. */
  readonly failOn: Threshold | undefined;
  readonly exceptions: readonly Exception[];
}

const word = text({ expected: 'a name', pattern: '^\\S+$', maxLength: 1000 });
const path = text({ expected: 'a path', pattern: '^[^\\n]+$' });

const allowSchema = list(
  object(
    {
      id: required(word, 'The vulnerability, by any of its names.', { advice: 'write `id: CVE-2026-1234`' }),
      packages: optional(
        list(word, { min: 1, max: MAX_ENTRIES, expected: 'a list of packages' }),
        'Only in these: names of source or installed packages, or purls.',
        { fallback: 'all' },
      ),
      images: optional(
        list(word, { min: 1, max: MAX_ENTRIES, expected: 'a list of images' }),
        'Only in these: names or digests.',
        { fallback: 'all' },
      ),
      reason: required(
        text({ expected: 'a sentence', pattern: '\\S', maxLength: 1000 }),
        'Why it does not matter.',
        {
          advice: 'write `reason: …`: whoever reads it next year should see why',
        },
      ),
      expires: required(
        text({
          expected: 'a day, such as 2027-01-31',
          pattern: '^[0-9]{4}-[0-9]{2}-[0-9]{2}$',
          check: checkDay,
        }),
        'The last day on which it holds.',
        { advice: 'write `expires: 2027-01-31`: what never expires is never looked at again' },
      ),
    },
    { expected: 'a mapping with `id`, `reason` and `expires`' },
  ),
  { max: MAX_ENTRIES, expected: 'a list of vulnerabilities that are accepted' },
);

const version = required(integer(1, 1), 'Version of this format.', { advice: 'write `version: 1`' });

const configSchema = object(
  {
    version,
    feeds: optional(
      list(path, { max: 20, expected: 'a list of files and URLs' }),
      'Where `ct vuln db update` takes vulnerabilities from.',
    ),
    stale: optional(
      object(
        {
          'warn-after': optional(duration(0, 3650 * DAY_MS), 'Age of the database from which scans warn.'),
          'refuse-after': optional(duration(0, 3650 * DAY_MS), 'Age from which they are refused.'),
        },
        { expected: 'a mapping with `warn-after` and `refuse-after`' },
      ),
      'When the database is too old.',
    ),
    'fail-on': optional(oneOf(...THRESHOLDS), 'From what severity on `ct image scan` fails.'),
    allow: optional(allowSchema, 'Findings that do not count.'),
    vex: optional(
      list(path, { max: 1000, expected: 'a list of files' }),
      'OpenVEX documents whose statements count.',
    ),
  },
  { expected: 'a mapping with `version`' },
);

const allowFileSchema = object(
  { version, allow: required(allowSchema, 'Findings that do not count.', { advice: 'write `allow: []`' }) },
  { expected: 'a mapping with `version` and `allow`' },
);

const NONE: ScanConfig = { feeds: [], stale: STALE_DEFAULTS, failOn: undefined, exceptions: [] };

/** Defaults without the file or without a policy directory. Throws CONFIG_INVALID. */
export function readScanConfig(policyDirectory: string | undefined): ScanConfig {
  if (policyDirectory === undefined) return NONE;
  const file = join(policyDirectory, FILE);
  const stats = statSync(file, { throwIfNoEntry: false });
  if (!stats) return NONE;
  // Whoever may write to it decides which vulnerable images pass.
  requireUnchangeable(file, stats);
  const config = parse(configSchema, read(file));
  const at = (name: string): string => resolve(dirname(file), name);
  const stale: StaleLimits = {
    warnAfterMs: config.stale?.warnAfter ?? STALE_DEFAULTS.warnAfterMs,
    refuseAfterMs: config.stale?.refuseAfter ?? STALE_DEFAULTS.refuseAfterMs,
  };
  const documents = (config.vex ?? []).map(at).flatMap((document) => {
    const documentStats = statSync(document, { throwIfNoEntry: false });
    if (documentStats) requireUnchangeable(document, documentStats);
    return parseOpenVex(read(document));
  });
  return {
    feeds: (config.feeds ?? []).map((feed) => (isUrl(feed) ? feed : at(feed))),
    stale,
    failOn: config.failOn,
    exceptions: [...exceptionsOf(config.allow ?? [], file), ...documents],
  };
}

/** A file that somebody names on the command line: OpenVEX, or YAML with `allow`. Throws CONFIG_INVALID. */
export function readAllowFile(file: string): readonly Exception[] {
  const source = read(file);
  if (isOpenVex(source.text)) return parseOpenVex(source);
  return exceptionsOf(parse(allowFileSchema, source).allow, file);
}

function exceptionsOf(entries: Infer<typeof allowSchema>, from: string): readonly Exception[] {
  return entries.map(({ id, packages = [], images = [], reason, expires }) => ({
    ids: [id],
    packages,
    images,
    status: 'accepted' as const,
    reason,
    from,
    // Said by whoever runs this: it is in force.
    saidMs: Number.POSITIVE_INFINITY,
    expiresMs: Date.parse(`${expires}T23:59:59.999Z`),
  }));
}

function checkDay(value: string): { readonly wrong: string } | undefined {
  const time = new Date(`${value}T00:00:00Z`);
  const isDay = !Number.isNaN(time.getTime()) && time.toISOString().startsWith(value);
  return isDay ? undefined : { wrong: `there is no day ${value.slice(0, 20)}` };
}

function parse<T>(schema: Schema<T>, source: SourceText): T {
  const parsed = parseConfig(schema, source);
  if (parsed !== undefined) return parsed;
  throw new CtError('CONFIG_INVALID', `${source.name} is empty`, { hint: 'begin it with `version: 1`' });
}

function read(file: string): SourceText {
  return readSource(file, file, {
    maxBytes: MAX_FILE_BYTES,
    code: 'CONFIG_INVALID',
    missingCode: 'CONFIG_INVALID',
  });
}
