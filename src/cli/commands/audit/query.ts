/** `ct audit query`. */
import { TetragonLines } from '../../../audit/export/tetragon.ts';
import { RunClock } from '../../../audit/timeline/clock.ts';
import { Query } from '../../../audit/timeline/query.ts';
import { CtError } from '../../../core/errors.ts';
import { parseDurationMs } from '../../../job/quantity.ts';
import { type AuditRun, openAuditRun, PROCESS_KINDS } from '../../audit-run.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { matchLine } from '../../render/audit.ts';
import { styleFor } from '../../render/format.ts';

const PIECE_CHARACTERS = 64 * 1024;

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const audit = await openAuditRun(parsed.positionals[0] ?? 'latest');
  const { run: nodeName, clockOffsetNs, nameOf } = audit;
  const clock = new RunClock(clockOffsetNs);
  const syscall = parsed.value('syscall');
  const query = new Query(
    {
      ...term(parsed, 'process'),
      ...term(parsed, 'syscall'),
      ...term(parsed, 'path'),
      ...term(parsed, 'destination'),
      ...time(parsed, 'since', 'sinceNs', clock, audit),
      ...time(parsed, 'until', 'untilNs', clock, audit),
    },
    nameOf,
  );
  const lines = parsed.has('json')
    ? new TetragonLines({ nodeName, clockOffsetNs, syscalls: true })
    : undefined;
  const style = styleFor(output.isTty.stdout);
  let piece = '';
  let found = 0;
  for await (const event of audit.events(syscall === undefined ? { kinds: PROCESS_KINDS } : {})) {
    const match = query.match(event);
    if (!match) {
      lines?.note(event);
      continue;
    }
    found += 1;
    piece += lines ? lines.render(event) : matchLine(match, clock, nameOf, style);
    if (piece.length < PIECE_CHARACTERS) continue;
    await output.write('stdout', piece);
    piece = '';
    if (output.isBroken) return 0;
  }
  await output.write('stdout', piece);
  if (found === 0) output.write('stderr', `nothing in run ${nodeName} fits\n`);
  return 0;
}

function term<N extends string>(parsed: ParsedOptions, name: N): { readonly [name in N]?: string } {
  const value = parsed.value(name);
  return value === undefined ? {} : ({ [name]: value } as { readonly [name in N]?: string });
}

/** A time, or how long after the beginning of the first step. Throws USAGE. */
function time<N extends string>(
  parsed: ParsedOptions,
  option: string,
  name: N,
  clock: RunClock,
  { steps }: AuditRun,
): { readonly [name in N]?: bigint } {
  const value = parsed.value(option);
  if (value === undefined) return {};
  const afterMs = parseDurationMs(value);
  const startNs = steps[0]?.startNs ?? 0n;
  const wallMs = afterMs === undefined ? Date.parse(value) : undefined;
  if (Number.isNaN(wallMs)) {
    throw new CtError('USAGE', `--${option} cannot be \`${value}\``, {
      hint: 'write a time, such as 2026-01-31T09:00:00Z, or how long after the first step began, such as 30s',
    });
  }
  const ns = afterMs === undefined ? clock.guestNs(wallMs ?? 0) : startNs + BigInt(afterMs) * 1_000_000n;
  return { [name]: ns } as { readonly [name in N]?: bigint };
}
