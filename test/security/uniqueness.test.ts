/** Two clones of one template are two machines: nothing that should be unique or secret is shared. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeVmm } from '../support/machines.ts';

const QUESTIONS = {
  random: 'head -c 32 /dev/urandom | od -An -tx1 | tr -d " \\n"',
  bootId: 'cat /proc/sys/kernel/random/boot_id',
  machineId: 'cat /etc/machine-id',
  hostname: 'hostname; cat /etc/hostname',
  uuid: 'cat /proc/sys/kernel/random/uuid',
  shellRandom: 'bash -c "echo \\$RANDOM\\$RANDOM\\$RANDOM"',
} as const;

test('clones differ in random bytes, boot_id, machine-id and hostname, and know the time', async () => {
  await using vmm = await makeVmm();
  const answers: Record<string, string>[] = [];
  for (let i = 0; i < 3; i++) {
    await using guest = await vmm.clone();
    const answer: Record<string, string> = {};
    for (const [name, command] of Object.entries(QUESTIONS)) {
      const { out, result } = await guest.sh(command);
      assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false }, `${name}: ${out}`);
      answer[name] = out.trim();
    }
    answers.push(answer);
    const { out } = await guest.sh('date +%s');
    const skewSeconds = Math.abs(Number(out) - Date.now() / 1000);
    assert.ok(skewSeconds < 5, `the guest's clock is off by ${skewSeconds} s`);
  }
  for (const name of Object.keys(QUESTIONS)) {
    const values = answers.map((answer) => answer[name]);
    assert.equal(new Set(values).size, values.length, `${name}: ${values.join(' | ')}`);
  }
  for (const { machineId, bootId } of answers) {
    assert.match(machineId ?? '', /^[0-9a-f]{32}$/);
    assert.match(bootId ?? '', /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  }
});
