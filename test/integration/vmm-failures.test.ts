/** What the host makes of VMMs that misbehave: the right code, a message with the reason, nothing left behind. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { Link } from '../../src/host/link.ts';
import { Machine } from '../../src/host/machine.ts';
import type { MachineShape } from '../../src/vmm/driver.ts';
import { testImage } from '../support/images.ts';
import { CIPHER, makeMachines, makeVmm, type TestVmm } from '../support/machines.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';

const fixture = (name: string): string => join(installRoot, 'test/fixtures/vmm', name);

let shape: MachineShape;
let scratch: Scratch;

before(async () => {
  shape = { image: await testImage('debian-12'), cpus: 1, memoryMib: 256, volumeMib: 512 };
  scratch = scratchDirectory();
});
after(() => scratch[Symbol.dispose]());

/** Processes below us and descriptors of ours on unlinked files: what a forgotten VM would hold. */
function held(): { children: number; deletedFiles: number } {
  const children = readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8')
    .split(' ')
    .filter(Boolean).length;
  const deletedFiles = readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).endsWith('(deleted)');
    } catch {
      return false;
    }
  }).length;
  return { children, deletedFiles };
}

for (const [name, options, expected] of [
  ['dies-at-start', {}, { code: 'VMM_EXITED_EARLY', message: /fixture: no such machine type/ }],
  [
    'never-ready',
    { bootTimeoutMs: 500 },
    { code: 'GUEST_BOOT_TIMEOUT', message: /fixture: guest is stuck here/ },
  ],
  ['babbles', {}, { code: 'GUEST_PROTOCOL', message: /too much before its session/ }],
] as const) {
  test(`a claim rejects with ${expected.code} when the VMM ${name.replaceAll('-', ' ')}, and nothing is left`, async () => {
    const heldBefore = held();
    const machines = makeMachines(scratch.path, { qemuPath: fixture(name), ...options });
    await assert.rejects(
      machines.claim(shape, () => {}),
      expected,
    );
    await machines.close();
    assert.deepEqual(held(), heldBefore);
    assert.deepEqual(readdirSync(join(scratch.path, 'scratch')), []);
  });
}

test('a claim rejects with REQUIREMENT_MISSING when there is no VMM', async () => {
  const machines = makeMachines(scratch.path, { qemuPath: '/nonexistent/qemu' });
  await assert.rejects(
    machines.claim(shape, () => {}),
    { code: 'REQUIREMENT_MISSING' },
  );
  await machines.close();
});

test('a template whose device state is corrupt is refused with VMM_RESTORE_FAILED, and nothing is left', async () => {
  await using vmm: TestVmm = await makeVmm({ memoryMib: 256, volumeMib: 512 });
  const heldBefore = held();
  const { deviceState } = vmm.template as unknown as { deviceState: Buffer };
  const original = Buffer.from(deviceState);
  for (const corrupt of [
    () => deviceState.fill(0),
    () => deviceState.fill(0xff, 100, 2000),
    () => original.copy(deviceState, 0, 1),
  ]) {
    corrupt();
    const opening = Machine.open({
      link: new Link(),
      startVm: () => vmm.driver.restore(vmm.template, vmm.source),
      image: vmm.source.manifest,
      volumeCipher: CIPHER,
    });
    await assert.rejects(opening, { code: 'VMM_RESTORE_FAILED' });
    original.copy(deviceState);
  }
  assert.deepEqual(held(), heldBefore);
  // The control: with the state as it was, the same call gives a machine.
  const machine = await Machine.open({
    link: new Link(),
    startVm: () => vmm.driver.restore(vmm.template, vmm.source),
    image: vmm.source.manifest,
    volumeCipher: CIPHER,
  });
  await machine.probe();
  await machine.destroy();
  assert.deepEqual(held(), heldBefore);
});
