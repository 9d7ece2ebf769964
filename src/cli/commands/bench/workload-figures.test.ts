import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { WorkloadFigures } from '../../../host/bench-workload.ts';
import { renderBarPlot } from '../../render/bar-plot.ts';
import { renderWorkloads, workloadPlot } from './workload-figures.ts';

const at = (p50: number): { p50: number; p95: number; min: number; max: number } => ({
  p50,
  p95: p50 + 5,
  min: p50 - 1,
  max: p50 + 6,
});

const FIGURES: WorkloadFigures = {
  runs: 5,
  accelerator: 'kvm',
  vmm: 'qemu 8.2.0',
  shape: { cpus: 1, memoryMib: 1024 },
  startedAt: '2026-01-02T03:04:05.000Z',
  host: { cpu: 'A CPU', cpus: 4, loadAtStart: 0.1 },
  container: { runc: 'runc version 1.1.5', rootfs: 'mounted', uid: 1000, limited: true },
  workloads: {
    clone: {
      image: 'debian-12',
      vm: { insideMs: at(30), wholeMs: at(90), warm: 5 },
      runc: { insideMs: at(20), wholeMs: at(60) },
      insideRatio: 1.5,
      wholeRatio: 1.5,
    },
  },
};

test('the table has both sides, their percentiles and the ratios, labelled by accelerator', () => {
  const text = renderWorkloads(FIGURES);
  assert.match(text, /^qemu 8\.2\.0, KVM, debian-12, 1 cpu, 1024 MiB, 5 runs$/m);
  assert.match(text, /^runc version 1\.1\.5: the same image, mounted, user 1000, the same cpu and memory$/m);
  assert.match(text, /^git clone +microVM +30 +35 +90 +95$/m);
  assert.match(text, /^ +container +20 +25 +60 +65$/m);
  assert.match(text, /^ +ratio of p50 +1\.5 +1\.5$/m);
  assert.match(text, /^Ratios: microVM by container, under KVM\.$/m);
  assert.doesNotMatch(text, /emulation|busy|undefined|NaN/);
});

test('under emulation it says that the ratios say nothing about KVM', () => {
  const figures = { ...FIGURES, accelerator: 'tcg' } as const;
  assert.match(renderWorkloads(figures), /software emulation .* say nothing about KVM\.$/m);
  assert.ok(workloadPlot(figures).facts.some((fact) => /Emulated: .* KVM/.test(fact)));
});

test('it says when the machine was busy, and when containers had not the same', () => {
  const container = { runc: 'runc version 1.1.5', rootfs: 'extracted', uid: 0, limited: false } as const;
  const text = renderWorkloads({ ...FIGURES, container, host: { ...FIGURES.host, loadAtStart: 3.5 } });
  assert.match(text, /busy before the first run \(load 3\.5\)/);
  assert.match(text, /extracted to a directory of this host, user 0, no limits of cpu and memory/);
});

test('without containers there are neither ratios nor a legend', () => {
  const { container: _, ...alone } = FIGURES;
  const figures: WorkloadFigures = {
    ...alone,
    workloads: { disk: { image: 'debian-12', vm: { insideMs: at(30), wholeMs: at(90), warm: 5 } } },
  };
  assert.doesNotMatch(renderWorkloads(figures), /ratio|container|undefined/i);
  const plot = workloadPlot(figures);
  assert.deepEqual(plot.series, ['microVM']);
  assert.equal(plot.panels[0]?.note, undefined);
  assert.doesNotMatch(renderBarPlot(plot), /undefined|NaN/);
});

test('the plot names VMM, accelerator, CPU and date, and has a bar per clock and side', () => {
  const plot = workloadPlot(FIGURES);
  assert.equal(plot.facts[0], 'qemu 8.2.0, KVM, A CPU, 2026-01-02');
  assert.deepEqual(
    plot.panels[0]?.bars.map(({ label, value, high, series }) => [label, value, high, series]),
    [
      ['inside, microVM', 30, 35, 0],
      ['inside, container', 20, 25, 1],
      ['whole, microVM', 90, 95, 0],
      ['whole, container', 60, 65, 1],
    ],
  );
  assert.match(renderBarPlot(plot), /microVM by container: 1\.5 inside, 1\.5 whole/);
});
