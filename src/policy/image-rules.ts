/**
 * What operators say about images (`image:` of the policy data), checked and prepared for Rego: who signs them, and what
 * else an image must have to boot. Keys are written into the data, so that the revision of a policy covers them.
 */
import { list, record } from '../job/schema/collections.ts';
import { object, optional } from '../job/schema/objects.ts';
import { duration, oneOf, text } from '../job/schema/scalars.ts';
import type { Infer } from '../job/schema/schema.ts';
import {
  ANY_NAME,
  lowerSigner,
  lowerSigners,
  type NamedSigner,
  type NamePatterns,
  type PatternReader,
  signerFields,
  signersField,
  trustedRootField,
  type WrongReporter,
  word,
} from './signers.ts';

const DAY_MS = 86_400_000;
const MAX_NAMES = 5000;
const MAX_REVOKED = 50_000;
/** Advisories that are a fortnight old say little. */
const DEFAULT_SCAN_AGE_MS = 14 * DAY_MS;

/** Severities from the worst down, as findings are counted by; `unknown` counts as `medium`. */
const SEVERITIES = ['critical', 'high', 'medium', 'unknown', 'low', 'negligible'] as const;

const ATTESTATIONS = ['provenance', 'sbom'] as const;
type AttestationKind = (typeof ATTESTATIONS)[number];

const names = list(word, { max: MAX_NAMES, expected: 'a list of names, or beginnings followed by `*`' });
const time = text({
  expected: 'a time, such as 2027-01-31 or 2027-01-31T12:00:00Z',
  pattern: '^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)?$',
  check: (value) => (secondsOf(value) === undefined ? { wrong: `there is no time ${value}` } : undefined),
});

const ruleFields = {
  local: optional(
    oneOf('allow', 'deny'),
    'Whether images that were built or imported on this machine run without a signature.',
    { fallback: '`allow`' },
  ),
  'signed-by': optional(names, 'Those of `signers` whose signature counts.', { fallback: 'all' }),
  'max-age': optional(duration(1000, 3650 * DAY_MS), 'How long ago an image may have been signed.'),
  minimum: optional(
    record(
      { name: '<image>', expected: 'the name of an image', pattern: '^[a-z0-9][a-z0-9._-]{0,63}$' },
      time,
      {
        max: MAX_NAMES,
        expected: 'a mapping of images to times',
      },
    ),
    'Signed images of that name that are older do not run: somebody may have put them back.',
  ),
  base: optional(names, 'Images or suites of which an image has to extend one.', { fallback: 'any' }),
  attestations: optional(
    list(oneOf(...ATTESTATIONS), { max: 2, expected: 'a list of `provenance` and `sbom`' }),
    'What has to be signed beside the image.',
  ),
  builders: optional(names, 'Builders of which the provenance has to name one.', { fallback: 'any' }),
  scan: optional(
    object(
      {
        'fail-on': optional(
          oneOf('critical', 'high', 'medium', 'low', 'negligible'),
          'From what severity on a finding that counts keeps the image out.',
        ),
        'max-age': optional(duration(1000, 3650 * DAY_MS), 'How old what it was compared with may be.', {
          fallback: '`14d`',
        }),
      },
      { expected: 'a mapping with `fail-on` and `max-age`' },
    ),
    'An image has to have been scanned for vulnerabilities.',
  ),
};

const rulesSchema = object(ruleFields, { expected: 'a mapping of rules about images' });

const signerSchema = object(signerFields, {
  expected: 'a mapping with `key`, or with `issuer` and `subject`',
});

export const imageSchema = object(
  {
    ...ruleFields,
    signers: signersField(signerSchema, 'Whose signatures of images are verified.'),
    'trusted-root': trustedRootField,
    revoked: optional(
      list(text({ expected: 'the digest of an image', pattern: '^sha256:[0-9a-f]{64}$' }), {
        max: MAX_REVOKED,
        expected: 'a list of digests of images',
      }),
      'Images that do not run any more, whoever signed or built them.',
    ),
    running: optional(
      oneOf('finish', 'terminate'),
      'What happens to jobs that run in an image that policy lets in no longer.',
      { fallback: '`finish`' },
    ),
  },
  { expected: 'a mapping of rules about images' },
);

export const imageRulesSchema = rulesSchema;

type ImageData = Infer<typeof imageSchema>;
type RulesData = Infer<typeof rulesSchema>;

/** One set of rules, complete; null: nothing is demanded. */
export interface ImageRules {
  readonly local: boolean;
  readonly signers: NamePatterns;
  readonly max_age_seconds: number | null;
  /** Seconds since 1970, by the name of an image. */
  readonly minimum: Readonly<Record<string, number>>;
  readonly base: NamePatterns;
  readonly attestations: readonly AttestationKind[];
  readonly builders: NamePatterns;
  readonly scan: { readonly max_age_seconds: number; readonly failing: readonly string[] } | null;
}

/** What verification goes by; Rego sees the names alone. */
export interface ImageTrust {
  readonly signers: readonly NamedSigner[];
  /** Name of a file in the policy directory. */
  readonly trustedRoot?: string;
}

/** What counts where nothing is said: images of this machine run, others need a signature of anybody in `signers`. */
export const DEFAULT_IMAGE_RULES: ImageRules = {
  local: true,
  signers: ANY_NAME,
  max_age_seconds: null,
  minimum: {},
  base: ANY_NAME,
  attestations: [],
  builders: ANY_NAME,
  scan: null,
};

/** `data` over `base`: each key that is there takes the place of the one below it. */
export function lowerImageRules(data: RulesData, base: ImageRules, patterns: PatternReader): ImageRules {
  const { maxAge, signedBy, scan } = data;
  return {
    local: data.local === undefined ? base.local : data.local === 'allow',
    signers: signedBy === undefined ? base.signers : patterns(signedBy),
    max_age_seconds: maxAge === undefined ? base.max_age_seconds : Math.floor(maxAge / 1000),
    minimum:
      data.minimum === undefined
        ? base.minimum
        : Object.fromEntries(
            Object.entries(data.minimum).map(([name, value]) => [
              name,
              secondsOf(value) ?? Number.MAX_SAFE_INTEGER,
            ]),
          ),
    base: data.base === undefined ? base.base : patterns(data.base),
    attestations: data.attestations ?? base.attestations,
    builders: data.builders === undefined ? base.builders : patterns(data.builders),
    scan:
      scan === undefined
        ? base.scan
        : {
            max_age_seconds: Math.floor((scan.maxAge ?? DEFAULT_SCAN_AGE_MS) / 1000),
            failing: scan.failOn === undefined ? [] : severitiesFrom(scan.failOn),
          },
  };
}

export function lowerImageTrust(data: ImageData, wrong: WrongReporter): ImageTrust {
  const signers = lowerSigners(data, 'a `key`, or an `issuer` and a `subject`', lowerSigner, wrong);
  const { trustedRoot } = data;
  return { signers, ...(trustedRoot === undefined ? {} : { trustedRoot }) };
}

/** Seconds since 1970 of a day or time in UTC. */
function secondsOf(value: string): number | undefined {
  const ms = Date.parse(value.includes('T') ? value : `${value}T00:00:00Z`);
  if (Number.isNaN(ms) || !new Date(ms).toISOString().startsWith(value.slice(0, 10))) return undefined;
  return Math.floor(ms / 1000);
}

/** That severity and the worse ones. What nobody has rated counts as medium. */
function severitiesFrom(threshold: (typeof SEVERITIES)[number]): readonly string[] {
  const last = threshold === 'medium' ? 'unknown' : threshold;
  return SEVERITIES.slice(0, SEVERITIES.indexOf(last) + 1);
}
