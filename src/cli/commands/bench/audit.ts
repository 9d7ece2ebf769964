/** `ct bench audit`. */
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { renderAudit } from './audit-figures.ts';
import { runFigures } from './shared.ts';

export function run(parsed: ParsedOptions, output: Output): Promise<number> {
  return runFigures(parsed, output, {
    defaultRuns: 10,
    load: async () => (await import('../../../host/bench-audit.ts')).benchAudit,
    render: renderAudit,
  });
}
