/** `ct host`. */
import { CtError } from '../../core/errors.ts';
import { ctHomePath, openCtHome } from '../../core/paths.ts';
import { becomeHost } from '../../host/client.ts';
import type { ParsedOptions } from '../command.ts';

export async function run(parsed: ParsedOptions): Promise<number> {
  if (!parsed.has('foreground')) {
    throw new CtError('USAGE', '`ct host` needs --foreground', {
      hint: 'a daemon in the background is started by the commands that need it, such as ct run',
    });
  }
  return await becomeHost(openCtHome(ctHomePath()));
}
