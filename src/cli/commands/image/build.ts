/** `ct image build`. */
import { resolve } from 'node:path';
import { ctHomePath } from '../../../core/paths.ts';
import { DEFAULT_IMAGE } from '../../../job/definition.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import { buildNamed } from '../../images.ts';
import type { Output } from '../../output.ts';
import { formatBytes, formatElapsed } from '../../render/format.ts';
import { Terminal } from '../../render/terminal.ts';
import { imageSizeBytes } from './ls.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const name = parsed.positionals[0] ?? DEFAULT_IMAGE;
  const startedAt = performance.now();
  using cancellation = cancelOnSignals(output);
  using terminal = new Terminal(output, { live: output.isTty.stderr && process.env['CI'] !== 'true' });
  let status: string | undefined;
  terminal.showStatus(() => status);
  const { digest, manifest } = await buildNamed(name, {
    ctHome: ctHomePath(),
    directory: resolve(parsed.value('directory') ?? '.'),
    signal: cancellation.signal,
    force: parsed.has('force'),
    onProgress: (what, milestone) => {
      status = what;
      if (milestone && !terminal.live) terminal.line(terminal.style.dim(`• ${what}`));
    },
  });
  const built = status !== undefined;
  const sizeBytes = imageSizeBytes(manifest);
  if (parsed.has('json')) {
    const document = { version: 1, name, digest, built, sizeBytes, packages: manifest.packages.length };
    output.write('stdout', `${JSON.stringify(document, undefined, 2)}\n`);
  } else {
    const took = built ? `built in ${formatElapsed(performance.now() - startedAt)}` : 'is current';
    terminal.line(
      `${terminal.style.green('✓')} ${name} ${took} (${manifest.packages.length} packages, ${formatBytes(sizeBytes)}, ${digest.slice(0, 19)})`,
    );
  }
  return 0;
}
