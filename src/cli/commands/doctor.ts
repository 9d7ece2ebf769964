/** `ct doctor`. */
import { ctHomePath } from '../../core/paths.ts';
import { diagnose } from '../checks.ts';
import type { ParsedOptions } from '../command.ts';
import type { Output } from '../output.ts';
import { canRun, formatDiagnosis } from '../render/diagnosis.ts';
import { styleFor } from '../render/format.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const ctHome = ctHomePath();
  const diagnosis = await diagnose(ctHome);
  const ready = canRun(diagnosis);
  const report = parsed.value('report');
  if (report !== undefined) {
    const { writeReport } = await import('../report.ts');
    writeReport(report, diagnosis, ctHome);
  }
  if (parsed.has('json')) {
    const { checks, accelerator = null } = diagnosis;
    const securityBoundary = accelerator === 'kvm';
    const document = { version: 1, canRun: ready, accelerator, securityBoundary, checks };
    output.write('stdout', `${JSON.stringify(document, undefined, 2)}\n`);
  } else {
    output.write('stdout', formatDiagnosis(diagnosis, styleFor(output.isTty.stdout)));
    if (report !== undefined)
      output.write('stdout', `The report is in ${report}; read it before you pass it on.\n`);
  }
  return ready ? 0 : 1;
}
