/** `ct policy show`. */
import type { ParsedOptions } from '../../command.ts';
import { anyHost } from '../../host.ts';
import type { Output } from '../../output.ts';
import { oneLine } from '../../render/format.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const policy = await (await anyHost()).policy();
  if (parsed.has('json')) {
    output.write('stdout', `${JSON.stringify({ version: 1, ...policy }, undefined, 2)}\n`);
    return 0;
  }
  const rows: [string, string][] = [
    ['policy', policy.directory ?? 'the one that ct comes with'],
    ['revision', policy.revision],
    ['decided by', policy.opaUrl === undefined ? 'the built-in engine' : `the OPA server ${policy.opaUrl}`],
    ['network', `${policy.mode}, or stricter`],
  ];
  output.write('stdout', rows.map(([name, value]) => `${name.padEnd(10)}  ${oneLine(value)}\n`).join(''));
  return 0;
}
