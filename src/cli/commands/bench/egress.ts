/** `ct bench egress`. */
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { renderEgress } from './egress-figures.ts';
import { runFigures } from './shared.ts';

export function run(parsed: ParsedOptions, output: Output): Promise<number> {
  return runFigures(parsed, output, {
    defaultRuns: 3,
    load: async () => (await import('../../../host/bench-egress.ts')).benchEgress,
    render: renderEgress,
  });
}
