/** Where audit records and the key that seals them lie in CT_HOME. */
import { basename, dirname, join } from 'node:path';

/** The segments and the seal of one run. */
export function auditDirectory(ctHome: string, run: string): string {
  return join(ctHome, 'audit', run);
}

/** Before the name of a run: where its segments lie while they are being sealed. Then that takes the place of the other. */
export const SEALING_PREFIX = '.sealing-';

/** The same, of an {@link auditDirectory}. */
export function sealingDirectory(directory: string): string {
  return join(dirname(directory), `${SEALING_PREFIX}${basename(directory)}`);
}

/** For `hostSigner` and whoever verifies. */
export function keysDirectory(ctHome: string): string {
  return join(ctHome, 'keys');
}
