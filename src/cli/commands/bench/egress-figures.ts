/** What `ct bench egress` shows. Pure. */
import type { EgressFigures } from '../../../host/bench-egress.ts';
import { formatTable } from '../../render/table.ts';
import { acceleratorName, countRuns } from './shared.ts';

/** What it should be: issue of the network, measured on any machine. */
const BUDGETS = { ratio: 0.5, answerMs: 50, idleKib: 64, decisionUs: 200 };

export function renderEgress(figures: EgressFigures): string {
  const { rawMbPerSecond: raw, mbPerSecond: proxied, ratio, atOnce, policy, shape } = figures;
  const idleKib = Math.round((figures.idleConnectionKib.daemon + figures.idleConnectionKib.link) * 10) / 10;
  const rows = [
    ['', 'p50', 'worst', 'budget'],
    ['plain bytes over a port, to the guest, MB/s', `${raw.download.p50}`, `${raw.download.min}`, ''],
    ['download through the proxy, MB/s', `${proxied.download.p50}`, `${proxied.download.min}`, ''],
    ['download, share of plain bytes', `${ratio.download}`, '', `≥ ${BUDGETS.ratio}`],
    ['plain bytes over a port, from the guest, MB/s', `${raw.upload.p50}`, `${raw.upload.min}`, ''],
    ['upload through the proxy, MB/s', `${proxied.upload.p50}`, `${proxied.upload.min}`, ''],
    ['upload, share of plain bytes', `${ratio.upload}`, '', ''],
    [`${atOnce.connections} connections at once, ms`, `${atOnce.ms.p50}`, `${atOnce.ms.max}`, ''],
    ['connections lost', `${atOnce.lost}`, '', '0'],
    ['connect → first byte, ms', `${figures.firstByteMs.p50}`, `${figures.firstByteMs.max}`, ''],
    ['connections per second, one by one', `${figures.connectionsPerSecond}`, '', ''],
    [
      'answer of the daemon meanwhile, ms',
      `${figures.daemonAnswerMs.p50}`,
      `${figures.daemonAnswerMs.max}`,
      '',
    ],
    ['longest, without waiting for a processor, ms', '', `${figures.daemonBusyMs}`, `≤ ${BUDGETS.answerMs}`],
    ['memory of an idle connection, KiB', `${idleKib}`, '', `≤ ${BUDGETS.idleKib}`],
  ];
  const decisions = [
    ['', 'p50', 'p99', 'budget of p99'],
    [
      `decision of ${policy.rules} rules, new, µs`,
      `${policy.firstUs.p50}`,
      `${policy.firstUs.p99}`,
      `≤ ${BUDGETS.decisionUs}`,
    ],
    ['the same again, µs', `${policy.againUs.p50}`, `${policy.againUs.p99}`, ''],
  ];
  return [
    `${figures.vmm}, ${acceleratorName(figures.accelerator)}, ${shape.cpus} cpu, ${shape.memoryMib} MiB, ${figures.transferBytes / 1e6} MB, ${countRuns(figures.runs)}\n\n`,
    formatTable(rows),
    '\n',
    formatTable(decisions),
  ].join('');
}
