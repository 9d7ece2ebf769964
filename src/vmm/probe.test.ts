import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import type { Accelerator } from '../protocol/run.ts';
import { probeAccelerator } from './probe.ts';

let ctHome = '';
let kvmDevice = '';
beforeEach(() => {
  ctHome = mkdtempSync(join(tmpdir(), 'ct-probe-'));
  kvmDevice = join(ctHome, 'kvm');
  writeFileSync(kvmDevice, '');
});
afterEach(() => rmSync(ctHome, { recursive: true, force: true }));

function probe(fails: readonly Accelerator[], vmmVersion = 'qemu 1') {
  const tried: Accelerator[] = [];
  const boot = async (accelerator: Accelerator): Promise<void> => {
    tried.push(accelerator);
    if (fails.includes(accelerator)) throw new Error(`${accelerator} does not boot\nassertion failed`);
  };
  return { tried, verdict: probeAccelerator({ ctHome, kvmDevice, vmmVersion, boot }) };
}

test('KVM counts when a guest has booted on it, and the verdict is kept', async () => {
  const first = probe([]);
  assert.equal((await first.verdict)?.accelerator, 'kvm');
  assert.deepEqual(first.tried, ['kvm']);
  const second = probe(['kvm', 'tcg']);
  assert.equal((await second.verdict)?.accelerator, 'kvm');
  assert.deepEqual(second.tried, []);
});

test('a device that opens and boots nothing means emulation, if the same guest boots there', async () => {
  const { tried, verdict } = probe(['kvm']);
  assert.deepEqual(await verdict, {
    accelerator: 'tcg',
    reason: '/dev/kvm opens, but no guest booted on it: kvm does not boot: assertion failed',
  });
  assert.deepEqual(tried, ['kvm', 'tcg']);
});

test('a guest that boots nowhere says nothing about KVM: its error is thrown, and nothing is kept', async () => {
  await assert.rejects(probe(['kvm', 'tcg']).verdict, /tcg does not boot/);
  assert.equal(existsSync(join(ctHome, 'accelerator.json')), false);
});

test('a verdict does not outlive the VMM it was found with, nor a damaged file', async () => {
  await probe(['kvm']).verdict;
  assert.equal((await probe([], 'qemu 2').verdict)?.accelerator, 'kvm');
  writeFileSync(join(ctHome, 'accelerator.json'), '{"key":');
  assert.equal((await probe(['kvm']).verdict)?.accelerator, 'tcg');
});

test('without the device nothing is booted, and without a guest to boot nothing is claimed', async () => {
  assert.equal(await probeAccelerator({ ctHome, kvmDevice, vmmVersion: 'qemu 1' }), undefined);
  rmSync(kvmDevice);
  const { tried, verdict } = probe([]);
  assert.deepEqual(await verdict, { accelerator: 'tcg', reason: 'this machine has no /dev/kvm' });
  assert.deepEqual(tried, []);
});
