/** `ct gc`. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { CtError } from '../../core/errors.ts';
import { ctHomePath } from '../../core/paths.ts';
import { cancelOnSignals } from '../cancellation.ts';
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
  const imageBytes = await collectImages(output);
  output.write(
    'stdout',
    parsed.has('json')
      ? `${JSON.stringify({ version: 1, removed, freedBytes, imageBytes })}\n`
      : `removed ${removed.length} ${removed.length === 1 ? 'run' : 'runs'}, ${formatBytes(freedBytes)} of logs, ${formatBytes(imageBytes)} of images\n`,
  );
  return 0;
}

/** What no image has had for a day, and what was said about images that are gone. */
async function collectImages(output: Output): Promise<number> {
  const ctHome = ctHomePath();
  if (!existsSync(join(ctHome, 'images'))) return 0;
  const { openBuild } = await import('../../image/build.ts');
  const { forgetGone } = await import('../../image/scan/result.ts');
  using cancellation = cancelOnSignals(output);
  await using place = await openBuild({ ctHome, signal: cancellation.signal }, () => {
    output.write('stderr', 'ct: waiting for an image build\n');
  });
  const freedBytes = await place.store.collectGarbage(Date.now());
  await forgetGone(ctHome, (digest) => place.store.has(digest));
  return freedBytes;
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
