/** `ct bench jobs`. */
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { runJobsBench } from './shared.ts';

export function run(parsed: ParsedOptions, output: Output): Promise<number> {
  return runJobsBench(parsed, output, undefined);
}
