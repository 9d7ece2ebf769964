/** `ct inspect`. */
import type { ParsedOptions } from '../command.ts';
import { anyHost } from '../host.ts';
import type { Output } from '../output.ts';
import { styleFor } from '../render/format.ts';
import { inspectJson, inspectPage } from '../render/run-info.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const detail = await (await anyHost()).run(parsed.positionals[0] ?? 'latest');
  const now = Date.now();
  output.write(
    'stdout',
    parsed.has('json')
      ? `${JSON.stringify(inspectJson(detail, now), undefined, 2)}\n`
      : inspectPage(detail, styleFor(output.isTty.stdout), now),
  );
  return 0;
}
