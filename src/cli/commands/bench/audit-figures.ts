/** What `ct bench audit` shows. Pure. */
import type { AuditFigures, AuditWorkload } from '../../../host/bench-audit.ts';
import { formatTable } from '../../render/table.ts';
import { acceleratorName, busyNote, countRuns } from './shared.ts';

/** Slow-downs by accelerator: what is emulated weighs less beside the record. */
const SLOWDOWNS: Readonly<Record<'tcg' | 'kvm', Readonly<Record<AuditWorkload, number>>>> = {
  tcg: { compile: 1.1, status: 1.6, find: 1.6 },
  kvm: { compile: 1.05, status: 1.6, find: 1.6 },
};
const BUDGETS = { bytes: 12, ageMs: 250 };

export function renderAudit(figures: AuditFigures): string {
  const { workloads, shape, files, age } = figures;
  const names: readonly [AuditWorkload, string][] = [
    ['compile', 'compile'],
    ['status', `git status, ${files} files`],
    ['find', `find, ${files} files`],
  ];
  const slowdowns = names.map(([name, text]) => {
    const { withoutMs, withMs, slowdown, callsPerSecond } = workloads[name];
    const budget = SLOWDOWNS[figures.accelerator][name];
    return [
      text,
      `${withoutMs.p50}`,
      `${withoutMs.p95}`,
      `${withMs.p50}`,
      `${withMs.p95}`,
      `${slowdown.p50}`,
      `${slowdown.p95}`,
      `≤ ${budget}`,
      `${callsPerSecond}`,
    ];
  });
  return [
    `${figures.vmm}, ${acceleratorName(figures.accelerator)}, ${shape.cpus} cpu, ${shape.memoryMib} MiB, ${countRuns(figures.runs)}\n\n`,
    formatTable([
      ['ms', 'without p50', 'p95', 'with p50', 'p95', 'ratio p50', 'p95', 'budget of p50', 'calls/s'],
      ...slowdowns,
    ]),
    '\n',
    formatTable([
      ['', '', 'budget'],
      ['records', `${figures.records}`, ''],
      ['bytes on disk, each', `${figures.bytesPerRecord}`, `≤ ${BUDGETS.bytes}`],
      ['the record is', figures.state, 'complete'],
      ['age of an event on arrival, p50, ms', `${age.ms.p50}`, ''],
      ['p95, ms', `${age.ms.p95}`, ''],
      ['the oldest of all, ms', `${age.ms.max}`, `≤ ${BUDGETS.ageMs}`],
      ['private memory of the link process, MiB', `${figures.linkMib}`, ''],
    ]),
    busyNote(figures.host),
  ].join('');
}
