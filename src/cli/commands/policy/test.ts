/** `ct policy test`: the operator's rules and tests, together with the rules that ct ships. */
import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { CtError, EXIT_STATUS } from '../../../core/errors.ts';
import { ctHomePath, openCtHome } from '../../../core/paths.ts';
import { opaTest } from '../../../host/policy-compiler.ts';
import { policyDirectory, shippedRules } from '../../../host/policy-source.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const ctHome = openCtHome(ctHomePath());
  const [named] = parsed.positionals;
  const directory = named === undefined ? policyDirectory({ ctHome, env: process.env }) : resolve(named);
  if (directory !== undefined && !statSync(directory, { throwIfNoEntry: false })?.isDirectory()) {
    throw new CtError('USAGE', `${directory} is not a directory`, {
      hint: 'name the one that holds data.yml and rules of your own',
    });
  }
  using cancellation = cancelOnSignals(output);
  const result = await opaTest([shippedRules, ...(directory === undefined ? [] : [directory])], {
    ctHome,
    signal: cancellation.signal,
    progress: (message) => void output.write('stderr', `ct: ${message}\n`),
  });
  output.write('stdout', result.output);
  return result.passed ? 0 : EXIT_STATUS.job;
}
