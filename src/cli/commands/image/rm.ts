/** `ct image rm`. */
import { CtError } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { openBuild } from '../../../image/build.ts';
import { forgetGone } from '../../../image/scan/result.ts';
import { ImageStore } from '../../../image/store.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { formatBytes } from '../../render/format.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const ctHome = ctHomePath();
  // All are looked up first: a wrong name removes nothing.
  for (const name of parsed.positionals) await found(new ImageStore(ctHome), name);
  using cancellation = cancelOnSignals(output);
  await using place = await openBuild({ ctHome, signal: cancellation.signal }, () => {
    output.write('stderr', 'ct: waiting for an image build\n');
  });
  const { store } = place;
  const names = [...new Set(parsed.positionals)];
  const removed = [];
  let freedBytes = 0;
  for (const name of names) {
    const { digest } = await found(store, name);
    freedBytes += await store.removeImage(name);
    removed.push({ name, digest });
  }
  await forgetGone(ctHome, (digest) => store.has(digest));
  output.write(
    'stdout',
    parsed.has('json')
      ? `${JSON.stringify({ version: 1, removed, freedBytes })}\n`
      : `removed ${names.join(', ')}: ${formatBytes(freedBytes)}\n`,
  );
  return 0;
}

async function found(store: ImageStore, name: string): Promise<{ readonly digest: string }> {
  const image = /^[a-z0-9][a-z0-9._-]{0,63}$/.test(name) ? await store.find(name) : undefined;
  if (image) return image;
  throw new CtError('IMAGE_NOT_FOUND', `no image \`${name}\` is stored`, {
    hint: '`ct image ls` lists those that are',
  });
}
