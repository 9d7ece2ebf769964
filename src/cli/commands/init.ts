/** `ct init`. */
import type { ParsedOptions } from '../command.ts';
import { initProject } from '../init/project.ts';
import type { Output } from '../output.ts';

export { type InitOptions, type InitResult, initProject } from '../init/project.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const { path, detected } = initProject({
    directory: parsed.value('directory') ?? '.',
    force: parsed.has('force'),
  });
  const found = detected.length === 0 ? 'nothing known was recognised' : `for ${detected.join(', ')}`;
  output.write('stdout', `wrote ${path} (${found})\n`);
  return 0;
}
