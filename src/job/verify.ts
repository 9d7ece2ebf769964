/** The `verify:` block of a job file. */
import type { VerifyRequest } from '../protocol/verify.ts';
import type { VerifySpec } from './definition.ts';

/** What is sent to the host; undefined: the job demands nothing of itself. */
export function verifyRequest(spec: VerifySpec | undefined): VerifyRequest | undefined {
  if (spec === undefined) return undefined;
  const { commit, scripts, dependencies } = spec;
  return {
    ...(commit === undefined ? {} : { commit }),
    ...(scripts === undefined ? {} : { scripts: [...new Set(scripts)] }),
    ...(dependencies === undefined
      ? {}
      : { dependencies: typeof dependencies === 'string' ? { level: dependencies } : dependencies }),
  };
}
