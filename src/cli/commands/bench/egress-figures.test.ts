import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { EgressFigures } from '../../../host/bench-egress.ts';
import { renderEgress } from './egress-figures.ts';

const at = (p50: number) => ({ p50, p95: p50 + 5, min: p50 - 1, max: p50 + 6 });

const FIGURES: EgressFigures = {
  runs: 3,
  accelerator: 'kvm',
  vmm: 'qemu 8.2.0',
  shape: { cpus: 1, memoryMib: 512 },
  startedAt: '2026-01-02T03:04:05.000Z',
  host: { cpu: 'A CPU', cpus: 4, loadAtStart: 0.1 },
  transferBytes: 500_000_000,
  rawMbPerSecond: { download: at(1000), upload: at(1200) },
  mbPerSecond: { download: at(600), upload: at(700) },
  ratio: { download: 0.6, upload: 0.58 },
  atOnce: { connections: 500, ms: at(100), lost: 0 },
  connectionsPerSecond: 900,
  firstByteMs: at(2),
  daemonAnswerMs: at(1),
  daemonBusyMs: 4.5,
  idleConnectionKib: { daemon: 1.1, link: 20.2 },
  policy: { rules: 10_000, firstUs: { p50: 20, p99: 90 }, againUs: { p50: 3, p99: 6 } },
};

test('the table has every figure and its budget', () => {
  const text = renderEgress(FIGURES);
  assert.match(text, /^qemu 8\.2\.0, KVM, 1 cpu, 512 MiB, 500 MB, 3 runs$/m);
  assert.match(text, /^download through the proxy, MB\/s +600 +599/m);
  assert.match(text, /^download, share of plain bytes +0\.6 +≥ 0\.5$/m);
  assert.match(text, /^longest, without waiting for a processor, ms +4\.5 +≤ 50$/m);
  assert.match(text, /^memory of an idle connection, KiB +21\.3 +≤ 64$/m);
  assert.match(text, /^decision of 10000 rules, new, µs +20 +90 +≤ 200$/m);
  assert.doesNotMatch(text, /undefined|NaN/);
});
