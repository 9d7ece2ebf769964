/** `ct audit diff`. */
import { diffReports } from '../../../audit/timeline/diff.ts';
import { buildReport, type Report } from '../../../audit/timeline/report.ts';
import { WORKSPACE_DIRECTORY } from '../../../protocol/guest-link.ts';
import { openAuditRun, PROCESS_KINDS } from '../../audit-run.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { diffJson, diffText } from '../../render/audit.ts';
import { styleFor } from '../../render/format.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const [first = '', second = ''] = parsed.positionals;
  const earlier = await reportOf(first);
  const later = await reportOf(second);
  const diff = diffReports(earlier.report, later.report);
  const runs = [earlier.run, later.run] as const;
  output.write(
    'stdout',
    parsed.has('json')
      ? `${JSON.stringify(diffJson(runs, diff), undefined, 2)}\n`
      : diffText(runs, diff, styleFor(output.isTty.stdout)),
  );
  return 0;
}

async function reportOf(reference: string): Promise<{ readonly run: string; readonly report: Report }> {
  const { run, nameOf, steps, events } = await openAuditRun(reference);
  const options = { workspace: WORKSPACE_DIRECTORY, nameOf, steps };
  return { run, report: await buildReport(events({ kinds: PROCESS_KINDS }), options) };
}
