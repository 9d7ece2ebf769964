/** `ct audit show`. */
import { writeFile } from 'node:fs/promises';
import { buildReport } from '../../../audit/timeline/report.ts';
import { CtError, messageOf } from '../../../core/errors.ts';
import { WORKSPACE_DIRECTORY } from '../../../protocol/guest-link.ts';
import { openAuditRun, PROCESS_KINDS } from '../../audit-run.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { reportJson, reportText } from '../../render/audit.ts';
import { reportHtml } from '../../render/audit-html.ts';
import { styleFor } from '../../render/format.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const audit = await openAuditRun(parsed.positionals[0] ?? 'latest');
  const { nameOf, steps } = audit;
  const report = await buildReport(audit.events({ kinds: PROCESS_KINDS }), {
    workspace: WORKSPACE_DIRECTORY,
    nameOf,
    steps,
  });
  const file = parsed.value('html');
  if (file !== undefined) {
    try {
      await writeFile(file, reportHtml(audit, report), { mode: 0o600 });
    } catch (error) {
      throw new CtError('USAGE', `the page cannot be written: ${messageOf(error)}`, { cause: error });
    }
    output.write('stderr', `${file} shows run ${audit.run}\n`);
  }
  if (parsed.has('json')) {
    output.write('stdout', `${JSON.stringify(reportJson(audit, report), undefined, 2)}\n`);
  } else if (file === undefined) {
    output.write('stdout', reportText(audit, report, styleFor(output.isTty.stdout)));
  }
  return 0;
}
