/** Where audit records and the key that seals them lie in CT_HOME. */
import { join } from 'node:path';

/** The segments and the seal of one run. */
export function auditDirectory(ctHome: string, run: string): string {
  return join(ctHome, 'audit', run);
}

/** For `hostSigner` and whoever verifies. */
export function keysDirectory(ctHome: string): string {
  return join(ctHome, 'keys');
}
