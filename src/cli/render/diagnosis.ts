/** The page that `ct doctor` prints. Pure. */
import type { Check, Diagnosis } from '../checks.ts';
import { oneLine, type Style } from './format.ts';

export function canRun({ checks }: Pick<Diagnosis, 'checks'>): boolean {
  return checks.every(({ level }) => level !== 'failed');
}

export function formatDiagnosis(diagnosis: Diagnosis, style: Style): string {
  const width = Math.max(...diagnosis.checks.map(({ name }) => name.length));
  const marks: Record<Check['level'], string> = {
    ok: style.green('✓'),
    warning: style.yellow('!'),
    failed: style.red('✗'),
  };
  const lines = diagnosis.checks.flatMap(({ name, level, message, fix }) => [
    `${marks[level]} ${name.padEnd(width)}  ${oneLine(message)}`,
    ...(fix === undefined ? [] : [style.dim(`  ${' '.repeat(width)}  → ${oneLine(fix)}`)]),
  ]);
  return `${lines.join('\n')}\n\n${verdict(diagnosis, style)}\n`;
}

function verdict(diagnosis: Diagnosis, style: Style): string {
  if (!canRun(diagnosis)) return style.red('Jobs cannot run here yet: fix what is marked ✗.');
  if (diagnosis.accelerator === 'kvm') return style.green('Jobs run here, in microVMs under KVM.');
  if (diagnosis.accelerator === undefined) return 'Jobs can run here; the first one shows whether under KVM.';
  return [
    style.yellow('Jobs run here under software emulation, which is NOT a security boundary:'),
    style.yellow('use it for development and tests, not for code you do not trust.'),
  ].join('\n');
}
