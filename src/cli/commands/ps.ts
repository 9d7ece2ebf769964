/** `ct ps`. */
import type { ParsedOptions } from '../command.ts';
import { anyHost } from '../host.ts';
import type { Output } from '../output.ts';
import { runJson, runTable } from '../render/run-info.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const all = parsed.has('all');
  const runs = await (await anyHost()).runs(all ? 'all' : 'unended');
  const now = Date.now();
  if (parsed.has('json')) {
    output.write('stdout', runs.map((run) => `${JSON.stringify(runJson(run, now))}\n`).join(''));
    return 0;
  }
  output.write('stdout', runTable(runs, now));
  if (runs.length === 0) {
    output.write(
      'stderr',
      all ? 'no run is kept\n' : 'nothing runs now; -a lists runs that have ended, too\n',
    );
  }
  return 0;
}
