/** How bad a vulnerability is, in words that a threshold can be compared with. Pure. */

/** From the worst down. `unknown`: nobody has said. */
export const SEVERITIES = ['critical', 'high', 'medium', 'unknown', 'low', 'negligible'] as const;
export type Severity = (typeof SEVERITIES)[number];

/** What a threshold can be: `unknown` is none, it only counts as one. */
export const THRESHOLDS = ['critical', 'high', 'medium', 'low', 'negligible'] as const satisfies Severity[];
export type Threshold = (typeof THRESHOLDS)[number];

/** Whether a finding of this severity counts at a threshold. What nobody has rated yet counts as medium. */
export function reaches(severity: Severity, threshold: Threshold): boolean {
  const counted = severity === 'unknown' ? 'medium' : severity;
  return SEVERITIES.indexOf(counted) <= SEVERITIES.indexOf(threshold);
}

/** For sorting: the worst first. */
export function bySeverity(a: Severity, b: Severity): number {
  return SEVERITIES.indexOf(a) - SEVERITIES.indexOf(b);
}

/** The qualitative scale of CVSS v3.1 (section 5) and v4.0 (section 6). `score`: 0 to 10. */
export function severityOfScore(score: number): Severity {
  if (score >= 9) return 'critical';
  if (score >= 7) return 'high';
  if (score >= 4) return 'medium';
  return score > 0 ? 'low' : 'negligible';
}

const WORDS: Readonly<Record<string, Severity>> = {
  critical: 'critical',
  emergency: 'critical',
  high: 'high',
  important: 'high',
  medium: 'medium',
  moderate: 'medium',
  low: 'low',
  unimportant: 'negligible',
  negligible: 'negligible',
};

/** Words of feeds (`MODERATE`) and of Debian's urgencies (`low**`, `unimportant`, `not yet assigned`). */
export function severityOfWord(word: string): Severity {
  return WORDS[word.toLowerCase().replace(/\*+$/, '')] ?? 'unknown';
}
