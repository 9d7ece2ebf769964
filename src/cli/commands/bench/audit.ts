/** `ct bench audit`. */
import { ctHomePath } from '../../../core/paths.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { renderAudit } from './audit-figures.ts';
import { readCount, statusLine } from './shared.ts';

const DEFAULT_RUNS = 10;
const MAX_RUNS = 100;
const DEFAULT_IMAGE = 'debian-12';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const runs = readCount(parsed, 'runs', DEFAULT_RUNS, MAX_RUNS);
  using cancellation = cancelOnSignals(output);
  const { signal } = cancellation;
  const ctHome = ctHomePath();
  const say = statusLine(output);
  const [{ ensureImage }, { benchAudit }] = await Promise.all([
    import('../../images.ts'),
    import('../../../host/bench-audit.ts'),
  ]);
  const image = await ensureImage(parsed.value('image') ?? DEFAULT_IMAGE, {
    ctHome,
    directory: process.cwd(),
    signal,
    onProgress: say,
  });
  const figures = await benchAudit({ ctHome, image, runs, signal, onProgress: say });
  say('');
  output.write('stdout', parsed.has('json') ? `${JSON.stringify(figures)}\n` : renderAudit(figures));
  return 0;
}
