/** `ct completion`. */
import { CtError } from '../../core/errors.ts';
import type { ParsedOptions } from '../command.ts';
import { COMMANDS } from '../commands.ts';
import { completionScript, type Shell } from '../completion.ts';
import type { Output } from '../output.ts';

const SHELLS: readonly string[] = ['bash', 'zsh', 'fish'] satisfies Shell[];

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const [shell] = parsed.positionals;
  if (shell === undefined || !SHELLS.includes(shell)) {
    throw new CtError(
      'USAGE',
      shell === undefined ? 'which shell?' : `there is no completion for \`${shell}\``,
      {
        hint: 'write: ct completion bash, zsh or fish',
      },
    );
  }
  output.write('stdout', completionScript(COMMANDS, shell as Shell));
  return 0;
}
