/** `ct policy data`: what an OPA server needs beside the rules. */
import { resolve } from 'node:path';
import { ctHomePath } from '../../../core/paths.ts';
import { PresetResolver } from '../../../egress/presets/index.ts';
import { policyDirectory, readPolicyData } from '../../../host/policy-source.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const [named] = parsed.positionals;
  const directory =
    named === undefined ? policyDirectory({ ctHome: ctHomePath(), env: process.env }) : resolve(named);
  const presets = new PresetResolver();
  const { config } = await readPolicyData(directory, (names) => presets.resolve(names));
  output.write('stdout', `${JSON.stringify({ ct: { config } })}\n`);
  return 0;
}
