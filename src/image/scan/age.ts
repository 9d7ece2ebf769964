/** Whether what findings come from is fresh enough for nothing to mean anything. Pure. */
import { CtError } from '../../core/errors.ts';
import { formatDuration } from '../../job/quantity.ts';
import type { StaleLimits } from './config.ts';
import type { DatabaseStatus } from './database.ts';

/** The oldest of its feeds. */
export function asOf({ feeds }: Pick<DatabaseStatus, 'feeds'>): Date {
  return new Date(Math.min(...feeds.map((feed) => Date.parse(feed.asOf))));
}

/** A warning, or undefined. Throws VULN_DB_STALE. `what`: how a sentence begins, such as `the vulnerability database`. */
export function checkAge(what: string, of: Date, limits: StaleLimits, now: Date): string | undefined {
  const ageMs = now.getTime() - of.getTime();
  // A time that cannot be read may be any.
  const isKnown = !Number.isNaN(ageMs);
  const age = isKnown
    ? `${what} is as of ${of.toISOString().slice(0, 10)}, ${days(ageMs)} ago`
    : `${what} does not say of when it is`;
  if (!isKnown || ageMs > limits.refuseAfterMs) {
    throw new CtError(
      'VULN_DB_STALE',
      `${age}; more than ${formatDuration(limits.refuseAfterMs)} is refused`,
      {
        hint: '`ct vuln db update` reads its feeds again; `stale` in vulnerabilities.yml of the policy directory says what is too old',
      },
    );
  }
  return ageMs > limits.warnAfterMs ? `${age}; update it` : undefined;
}

function days(ms: number): string {
  const count = Math.floor(ms / (24 * 60 * 60 * 1000));
  return count === 1 ? '1 day' : `${count} days`;
}
