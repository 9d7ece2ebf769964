/** `ct audit export`. */
import { TetragonLines } from '../../../audit/export/tetragon.ts';
import { openAuditRun, PROCESS_KINDS } from '../../audit-run.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';

/** Lines are handed on in pieces of this size; one that follows a run hands on each. */
const PIECE_CHARACTERS = 64 * 1024;

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const follow = parsed.has('follow');
  const syscalls = parsed.has('syscalls');
  const audit = await openAuditRun(parsed.positionals[0] ?? 'latest', { follow });
  const lines = new TetragonLines({ nodeName: audit.run, clockOffsetNs: audit.clockOffsetNs, syscalls });
  let piece = '';
  for await (const event of audit.events(syscalls ? {} : { kinds: PROCESS_KINDS })) {
    piece += lines.render(event);
    if (piece.length < (follow ? 1 : PIECE_CHARACTERS)) continue;
    await output.write('stdout', piece);
    piece = '';
    if (output.isBroken) return 0;
  }
  await output.write('stdout', piece);
  return 0;
}
