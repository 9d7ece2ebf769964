/** `ct image build`. */
import { resolve } from 'node:path';
import { EXIT_STATUS } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { DEFAULT_IMAGE } from '../../../job/definition.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import { buildNamed, type EnsureOptions, imageInputs, progressOf } from '../../images.ts';
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
  const options: EnsureOptions = {
    ctHome: ctHomePath(),
    directory: resolve(parsed.value('directory') ?? '.'),
    signal: cancellation.signal,
    force: parsed.has('force'),
    locked: parsed.has('locked'),
    onProgress: (what, milestone) => {
      status = what;
      if (milestone && !terminal.live) terminal.line(terminal.style.dim(`• ${what}`));
    },
    onNotice: (lines) => {
      for (const line of lines) terminal.line(line);
    },
  };
  if (parsed.has('check')) return check(name, options, terminal, parsed.has('json') ? output : undefined);
  const { digest, manifest } = await buildNamed(name, options);
  const built = status !== undefined;
  const sizeBytes = imageSizeBytes(manifest);
  if (parsed.has('json')) {
    const document = {
      ...{ version: 1, name, digest, built, sizeBytes, packages: manifest.packages.length },
      locked: manifest.lock !== undefined,
      local: manifest.local === true,
    };
    output.write('stdout', `${JSON.stringify(document, undefined, 2)}\n`);
  } else {
    const took = built ? `built in ${formatElapsed(performance.now() - startedAt)}` : 'is current';
    terminal.line(
      `${terminal.style.green('✓')} ${name} ${took} (${manifest.packages.length} packages, ${formatBytes(sizeBytes)}, ${digest.slice(0, 19)})`,
    );
  }
  return 0;
}

/** Two builds, which have to be the same. */
async function check(
  name: string,
  options: EnsureOptions,
  terminal: Terminal,
  json: Output | undefined,
): Promise<number> {
  const { reproduceImage } = await import('../../../image/reproduce.ts');
  const { digest, difference } = await reproduceImage({
    ...imageInputs(name, options),
    signal: options.signal,
    progress: progressOf(name, options.onProgress),
  });
  const reproducible = difference === undefined;
  if (json) {
    json.write(
      'stdout',
      `${JSON.stringify({ version: 1, name, digest, reproducible, difference }, undefined, 2)}\n`,
    );
  } else if (reproducible) {
    terminal.line(`${terminal.style.green('✓')} ${name}: two builds are the same (${digest.slice(0, 19)})`);
  } else {
    terminal.line(`${terminal.style.red('✗')} ${name}: two builds differ, first in ${difference}`);
  }
  return reproducible ? 0 : EXIT_STATUS.system;
}
