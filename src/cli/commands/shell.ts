/** `ct shell`. */
import type { ParsedOptions } from '../command.ts';
import { anyHost } from '../host.ts';
import type { Output } from '../output.ts';
import { styleFor } from '../render/format.ts';
import { shellSession } from '../shell-session.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const argv = parsed.passthrough ?? [];
  const host = await anyHost();
  const { run, job } = await host.run(parsed.positionals[0] ?? 'latest');
  const { dim } = styleFor(output.isTty.stderr);
  return await shellSession({
    host,
    run,
    argv,
    output,
    onSignal: 'die',
    ...(argv.length === 0
      ? { greeting: dim(`ct: a shell in the VM of run ${run} (${job}); leave it with exit or Ctrl-D`) }
      : {}),
  });
}
