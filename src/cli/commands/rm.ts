/** `ct rm`. */
import type { ParsedOptions } from '../command.ts';
import { anyHost } from '../host.ts';
import type { Output } from '../output.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const host = await anyHost();
  // All are looked up first: a wrong name removes nothing, and the newest run of a job is the same one throughout.
  const runs = new Set<string>();
  for (const reference of parsed.positionals) runs.add((await host.run(reference)).run);
  for (const run of runs) {
    await host.removeRun(run);
    output.write('stdout', `${run}\n`);
  }
  return 0;
}
