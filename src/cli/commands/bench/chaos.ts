/** `ct bench chaos`. */
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { runJobsBench } from './shared.ts';

const KILL_EVERY_MS = 1000;

export function run(parsed: ParsedOptions, output: Output): Promise<number> {
  return runJobsBench(parsed, output, KILL_EVERY_MS);
}
