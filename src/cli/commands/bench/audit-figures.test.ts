import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type AuditFigures, compare, parseTime } from '../../../host/bench-audit.ts';
import { renderAudit } from './audit-figures.ts';

const at = (p50: number) => ({ p50, p95: p50 + 5, min: p50 - 1, max: p50 + 6 });

const by = (p50: number) => ({ p50, p95: 2, min: 1, max: 2 });

const FIGURES: AuditFigures = {
  runs: 3,
  accelerator: 'tcg',
  vmm: 'qemu 8.2.0',
  shape: { cpus: 1, memoryMib: 1024 },
  startedAt: '2026-01-02T03:04:05.000Z',
  host: { cpu: 'A CPU', cpus: 4, loadAtStart: 0.1 },
  files: 20_000,
  workloads: {
    compile: { withoutMs: at(10_000), withMs: at(10_500), slowdown: by(1.05), callsPerSecond: 9000 },
    status: { withoutMs: at(500), withMs: at(600), slowdown: by(1.2), callsPerSecond: 90_000 },
    find: { withoutMs: at(400), withMs: at(600), slowdown: by(1.5), callsPerSecond: 99_000 },
  },
  records: 700_000,
  bytesPerRecord: 9.8,
  state: 'complete',
  age: { ms: { p50: 14.2, p95: 31, max: 80.3 }, events: 1_000_000 },
  linkMib: 70,
};

test('the table has every figure and its budget', () => {
  const text = renderAudit(FIGURES);
  assert.match(text, /^qemu 8\.2\.0, software emulation \(TCG\), 1 cpu, 1024 MiB, 3 runs$/m);
  assert.match(text, /^compile +10000 +10005 +10500 +10505 +1\.05 +2 +≤ 1\.1 +9000$/m);
  assert.match(text, /^find, 20000 files +400 +405 +600 +605 +1\.5 +2 +≤ 1\.6 +99000$/m);
  assert.match(text, /^bytes on disk, each +9\.8 +≤ 12$/m);
  assert.match(text, /^the oldest of all, ms +80\.3 +≤ 250$/m);
  assert.match(renderAudit({ ...FIGURES, accelerator: 'kvm' }), /1\.05 +2 +≤ 1\.05 /);
  assert.doesNotMatch(text, /undefined|NaN|busy/);
  assert.match(
    renderAudit({ ...FIGURES, host: { ...FIGURES.host, loadAtStart: 9 } }),
    /busy before .* \(load 9\)/,
  );
});

test('a time is read from the line of the script, and from nothing else', () => {
  assert.equal(parseTime('make: x\nus 1500\n'), 1500);
  for (const text of ['', 'us x\n', ' us 9\n', 'us 12345678901234\n'])
    assert.equal(parseTime(text), undefined);
});

test('neighbours in time are compared, not the sums', () => {
  const { slowdown, withMs } = compare([11, 22, 300], [10, 20, 100]);
  assert.deepEqual(slowdown, { p50: 1.1, p95: 3, min: 1.1, max: 3 });
  assert.equal(withMs.p50, 22);
});
