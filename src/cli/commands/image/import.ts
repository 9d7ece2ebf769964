/** `ct image import`. */
import { resolve } from 'node:path';
import { CtError } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { definitionNames } from '../../../image/definition.ts';
import { importImage, parseImportSource } from '../../../image/import/import.ts';
import { ImageStore } from '../../../image/store.ts';
import { DEFAULT_IMAGE } from '../../../job/definition.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import { definitionDirectories, ensureImage } from '../../images.ts';
import type { Output } from '../../output.ts';
import { formatBytes, formatElapsed } from '../../render/format.ts';
import { Terminal } from '../../render/terminal.ts';
import { imageSizeBytes } from './ls.ts';

const SIZE_UNITS: Readonly<Record<string, number>> = { M: 1024 ** 2, G: 1024 ** 3, T: 1024 ** 4 };

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const source = parseImportSource(parsed.positionals[0] ?? '');
  const name = parsed.value('name');
  if (name === undefined) throw new CtError('USAGE', 'an imported image needs a --name');
  const directory = resolve(parsed.value('directory') ?? '.');
  if (definitionNames(definitionDirectories(directory)).includes(name)) {
    throw new CtError('USAGE', `${name} is the name of an image that has a definition`, {
      hint: 'choose another --name: the next build would replace the imported one',
    });
  }
  const maxBytes = maxSize(parsed.value('max-size'));
  const startedAt = performance.now();
  using cancellation = cancelOnSignals(output);
  using terminal = new Terminal(output, { live: output.isTty.stderr && process.env['CI'] !== 'true' });
  let status: string | undefined;
  terminal.showStatus(() => status);
  const show = (what: string): void => {
    status = what;
    if (!terminal.live) terminal.line(terminal.style.dim(`• ${what}`));
  };
  const { signal } = cancellation;
  const ctHome = ctHomePath();
  const machine = await ensureImage(parsed.value('kernel-of') ?? DEFAULT_IMAGE, {
    ctHome,
    directory,
    signal,
    onProgress: (what, milestone) => {
      if (milestone || terminal.live) show(what);
    },
  });
  const { manifest, digest, privileged } = await importImage({
    source,
    name,
    ctHome,
    machine: await new ImageStore(ctHome).manifest(machine),
    user: parsed.value('user'),
    allowSetuid: parsed.has('allow-setuid'),
    ...(maxBytes === undefined ? {} : { maxBytes }),
    signal,
    progress: show,
  });
  const sizeBytes = imageSizeBytes(manifest);
  if (parsed.has('json')) {
    const { imported, user } = manifest;
    const document = { version: 1, name, digest, sizeBytes, imported, user, privilegesDropped: privileged };
    output.write('stdout', `${JSON.stringify(document, undefined, 2)}\n`);
    return 0;
  }
  for (const path of privileged) terminal.line(terminal.style.dim(`• without its special rights: ${path}`));
  const took = formatElapsed(performance.now() - startedAt);
  terminal.line(
    `${terminal.style.green('✓')} ${name} imported in ${took} (${formatBytes(sizeBytes)}, ${digest.slice(0, 19)})`,
  );
  return 0;
}

function maxSize(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const [, digits, unit] = /^([1-9][0-9]{0,4})([MGT])$/.exec(text) ?? [];
  const factor = unit === undefined ? undefined : SIZE_UNITS[unit];
  if (factor === undefined) {
    throw new CtError('USAGE', `--max-size cannot be \`${text}\``, { hint: 'a number and M, G or T: 32G' });
  }
  return Number(digits) * factor;
}
