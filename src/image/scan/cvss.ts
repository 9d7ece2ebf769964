/**
 * Base scores of CVSS vectors: v3.0 and v3.1 by the formula of the specification (section 7.1), v4.0 by its macro vectors
 * (section 8). Threat and environmental metrics are ignored: they are about one moment and one site. Pure.
 */

/** A v4.0 vector with every metric has some 180 characters. */
const MAX_VECTOR_CHARACTERS = 400;

type Metrics = ReadonlyMap<string, string>;

/** 0 to 10 in steps of 0.1; undefined if the vector is malformed, incomplete or of another version. */
export function baseScore(vector: string): number | undefined {
  if (vector.length > MAX_VECTOR_CHARACTERS) return undefined;
  const match = /^CVSS:(3\.[01]|4\.0)((?:\/[A-Z]{1,3}:[A-Z]{1,6})+)$/i.exec(vector);
  if (match === null) return undefined;
  const metrics = new Map<string, string>();
  for (const part of (match[2] ?? '').slice(1).split('/')) {
    const [name = '', value = ''] = part.split(':');
    if (metrics.has(name)) return undefined;
    metrics.set(name, value);
  }
  return match[1] === '4.0' ? scoreV4(metrics) : scoreV3(metrics);
}

// ------------------------------------------------------------------------------------------------ version 3

const WEIGHTS: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  AV: { N: 0.85, A: 0.62, L: 0.55, P: 0.2 },
  AC: { L: 0.77, H: 0.44 },
  UI: { N: 0.85, R: 0.62 },
  C: { H: 0.56, L: 0.22, N: 0 },
  I: { H: 0.56, L: 0.22, N: 0 },
  A: { H: 0.56, L: 0.22, N: 0 },
};
/** By whether the scope changes. */
const PRIVILEGES: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  U: { N: 0.85, L: 0.62, H: 0.27 },
  C: { N: 0.85, L: 0.68, H: 0.5 },
};

function scoreV3(metrics: Metrics): number | undefined {
  const scope = metrics.get('S') ?? '';
  const weight = (name: string): number => WEIGHTS[name]?.[metrics.get(name) ?? ''] ?? Number.NaN;
  const privileges = PRIVILEGES[scope]?.[metrics.get('PR') ?? ''] ?? Number.NaN;
  const exploitability = 8.22 * weight('AV') * weight('AC') * privileges * weight('UI');
  const loss = 1 - (1 - weight('C')) * (1 - weight('I')) * (1 - weight('A'));
  if (Number.isNaN(exploitability) || Number.isNaN(loss)) return undefined;
  const impact = scope === 'U' ? 6.42 * loss : 7.52 * (loss - 0.029) - 3.25 * (loss - 0.02) ** 15;
  if (impact <= 0) return 0;
  return roundUp(Math.min((scope === 'U' ? 1 : 1.08) * (impact + exploitability), 10));
}

/** Up to one decimal, in integers as appendix A of the specification wants it. */
function roundUp(value: number): number {
  const scaled = Math.round(value * 100_000);
  return scaled % 10_000 === 0 ? scaled / 100_000 : (Math.floor(scaled / 10_000) + 1) / 10;
}

// ------------------------------------------------------------------------------------------------ version 4

/** Values of each base metric, from the most severe down; the position is the severity level. */
const LEVELS: Readonly<Record<string, string>> = {
  AV: 'NALP',
  PR: 'NLH',
  UI: 'NPA',
  AC: 'LH',
  AT: 'NP',
  VC: 'HLN',
  VI: 'HLN',
  VA: 'HLN',
  SC: 'HLN',
  SI: 'HLN',
  SA: 'HLN',
};

/** One equivalence class of a vector: which it is, how far below its most severe member, and how deep it goes. */
interface Class {
  readonly level: number;
  readonly distance: number;
  readonly depth: number;
}

/**
 * Scores of the macro vectors that base metrics reach, and of those just below: [EQ1][EQ2][EQ3 and EQ6][EQ4 - 1], with EQ3 and
 * EQ6 as 00, 01, 10, 11, 21 and EQ5 0 throughout (no exploit maturity is the worst).
 */
const MACRO_SCORES: readonly (readonly (readonly (readonly number[])[])[])[] = [
  [
    [
      [10, 9.3],
      [9.6, 9],
      [9.3, 8.8],
      [9.2, 8],
      [7.9, 6.9],
    ],
    [
      [9.5, 9.2],
      [9.1, 8.1],
      [9.2, 8.4],
      [8.2, 7],
      [7.1, 6.3],
    ],
  ],
  [
    [
      [9.4, 8.7],
      [8.9, 7.5],
      [8.6, 7.2],
      [7.6, 5.7],
      [6.5, 5.3],
    ],
    [
      [9, 7.7],
      [7.7, 6.6],
      [7.4, 6.1],
      [5.9, 5.2],
      [5.8, 2.3],
    ],
  ],
  [
    [
      [8.6, 7],
      [7.4, 5.4],
      [7.2, 5.3],
      [5.7, 3.6],
      [4.7, 2.4],
    ],
    [
      [7.3, 5.4],
      [5.5, 4.3],
      [6.1, 4.6],
      [5.1, 1.8],
      [2.4, 1],
    ],
  ],
];
const EQ36 = { best: 0, bestLower: 1, some: 2, someLower: 3, none: 4 } as const;

function scoreV4(metrics: Metrics): number | undefined {
  const level = (name: string): number => LEVELS[name]?.indexOf(metrics.get(name) || '?') ?? -1;
  const names = Object.keys(LEVELS);
  if (names.some((name) => level(name) < 0)) return undefined;
  if (['VC', 'VI', 'VA', 'SC', 'SI', 'SA'].every((name) => metrics.get(name) === 'N')) return 0;
  const levels = (...of: readonly string[]): number[] => of.map(level);

  const [av = 0, pr = 0, ui = 0] = levels('AV', 'PR', 'UI');
  const open = [av, pr, ui].filter((value) => value === 0).length;
  const reach = open === 3 ? 0 : open > 0 && av !== 3 ? 1 : 2;
  const eq1 = classOf(reach, [av, pr, ui], REACH_TOPS[reach] ?? [], [1, 4, 5]);
  const eq2 = classOf(
    Math.max(...levels('AC', 'AT')),
    levels('AC', 'AT'),
    level('AC') + level('AT') === 0 ? [[0, 0]] : COMPLEX_TOPS,
    [1, 2],
  );
  const [vc = 0, vi = 0, va = 0] = levels('VC', 'VI', 'VA');
  const harm = vc === 0 && vi === 0 ? 0 : vc * vi * va === 0 ? 1 : 2;
  const eq36 = classOf(harm, [vc, vi, va], HARM_TOPS[harm] ?? [], [7, 8, 10]);
  const spread = levels('SC', 'SI', 'SA').includes(0) ? 0 : 1;
  const eq4 = classOf(spread, levels('SC', 'SI', 'SA'), [[spread, spread, spread]], [5, 4]);

  const at = (one: number, two: number, three: number, four: number): number | undefined =>
    MACRO_SCORES[one]?.[two]?.[three]?.[four];
  const row = [EQ36.best, EQ36.some, EQ36.none][harm] ?? EQ36.none;
  const score = at(eq1.level, eq2.level, row, eq4.level) ?? 0;
  const below36 = { 0: [EQ36.bestLower, EQ36.some], 1: [EQ36.someLower], 2: [] }[harm] ?? [];
  const lower: readonly (readonly [Class, number | undefined])[] = [
    [eq1, at(eq1.level + 1, eq2.level, row, eq4.level)],
    [eq2, at(eq1.level, eq2.level + 1, row, eq4.level)],
    [
      eq36,
      below36.length === 0
        ? undefined
        : Math.max(...below36.map((below) => at(eq1.level, eq2.level, below, eq4.level) ?? 0)),
    ],
    [eq4, at(eq1.level, eq2.level, row, eq4.level + 1)],
  ];
  const steps = lower.flatMap(([{ distance, depth }, below]) =>
    below === undefined ? [] : [((score - below) * distance) / depth],
  );
  // EQ5 always has a class below it, and no base metric has a distance in it.
  const mean = steps.reduce((sum, step) => sum + step, 0) / (steps.length + 1);
  return Math.round(Math.min(Math.max(score - mean, 0), 10) * 10 + 1e-6) / 10;
}

/** Levels of the most severe members of each class, in the order in which they are tried. */
const REACH_TOPS = [
  [[0, 0, 0]],
  [
    [1, 0, 0],
    [0, 1, 0],
    [0, 0, 1],
  ],
  [
    [3, 0, 0],
    [1, 1, 1],
  ],
];
const COMPLEX_TOPS = [
  [1, 0],
  [0, 1],
];
const HARM_TOPS = [
  [[0, 0, 0]],
  [
    [1, 0, 0],
    [0, 1, 0],
  ],
  [[1, 1, 1]],
];

function classOf(
  level: number,
  values: readonly number[],
  tops: readonly (readonly number[])[],
  depths: readonly number[],
): Class {
  const top = tops.find((candidate) => candidate.every((value, index) => value <= (values[index] ?? 0)));
  const distance = values.reduce((sum, value, index) => sum + value - (top?.[index] ?? 0), 0);
  return { level, distance, depth: depths[level] ?? 1 };
}
