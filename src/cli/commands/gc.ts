/** `ct gc`. */
import { CtError } from '../../core/errors.ts';
import type { ParsedOptions } from '../command.ts';
import { anyHost } from '../host.ts';
import type { Output } from '../output.ts';
import { formatBytes } from '../render/format.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const [keep, maxAgeDays] = [whole(parsed, 'keep'), whole(parsed, 'days')];
  const { removed, freedBytes } = await (await anyHost()).retainRuns({
    ...(keep === undefined ? {} : { keep }),
    ...(maxAgeDays === undefined ? {} : { maxAgeDays }),
  });
  output.write(
    'stdout',
    parsed.has('json')
      ? `${JSON.stringify({ version: 1, removed, freedBytes })}\n`
      : `removed ${removed.length} ${removed.length === 1 ? 'run' : 'runs'}, ${formatBytes(freedBytes)} of logs\n`,
  );
  return 0;
}

function whole(parsed: ParsedOptions, option: string): number | undefined {
  const text = parsed.value(option);
  if (text === undefined) return undefined;
  if (!/^\d{1,6}$/.test(text)) {
    throw new CtError('USAGE', `--${option} cannot be \`${text}\``, {
      hint: 'it is a whole number such as 50',
    });
  }
  return Number(text);
}
