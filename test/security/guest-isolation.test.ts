/** What a job's processes find inside the VM: no device, no way to harm PID 1, limits that keep the guest agent alive. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { makeVmm, type TestGuest, type TestVmm } from '../support/machines.ts';

let vmm: TestVmm;
before(async () => {
  vmm = await makeVmm();
});
after(() => vmm[Symbol.asyncDispose]());

async function alive(guest: TestGuest): Promise<void> {
  const { out } = await guest.sh('echo alive');
  assert.equal(out, 'alive\n');
}

test('the job is an ordinary user without capabilities, and cannot gain any', async () => {
  await using guest = await vmm.clone();
  const { out } = await guest.sh('id -u; grep -E "^(Cap|NoNew)" /proc/self/status');
  assert.match(out, /^1000\n/);
  for (const line of out.trim().split('\n').slice(1))
    assert.match(line, /^(Cap\w+:\s+0{16}|NoNewPrivs:\s+1)$/);
  const { result } = await guest.sh('su -c true root || mount -t tmpfs none /tmp');
  assert.notDeepEqual(result, { kind: 'exited', code: 0, oomKilled: false });
});

test('the job sees neither disks nor guest channels, and cannot write to the system', async () => {
  await using guest = await vmm.clone();
  const { out } = await guest.sh('ls /dev');
  const devices = out.trim().split('\n');
  for (const device of devices) assert.doesNotMatch(device, /^(vd|dm-|vport|mapper|mem|kmsg|hvc|ttyS)/);
  for (const path of [
    '/etc/x',
    '/usr/bin/x',
    '/dev/x',
    '/run/x',
    '/run/ct/steps/x',
    '/proc/sys/kernel/hostname',
    '/sys/x',
  ]) {
    const { result } = await guest.sh(`: > ${path}`);
    assert.notEqual(result.kind === 'exited' && result.code, 0, `${path} is writable`);
  }
  const { result } = await guest.sh(
    'for d in /tmp /var/tmp "$HOME" /workspace /dev/shm /dev/null; do true > $d/x || true > $d; done',
  );
  assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false });
});

test('killing PID 1 does nothing', async () => {
  await using guest = await vmm.clone();
  for (const signal of ['KILL', 'TERM', 'STOP']) {
    const { result } = await guest.sh(`kill -${signal} 1`);
    assert.notDeepEqual(result, { kind: 'exited', code: 0, oomKilled: false }, signal);
  }
  await guest.sh('kill -KILL -1');
  await alive(guest);
});

test('a fork bomb hits its limit, and ends when its step is ended', async () => {
  await using guest = await vmm.clone();
  const timeout = new AbortController();
  const bomb = guest.sh('', {
    argv: ['bash', '-c', 'f() { f | f & }; f; wait; sleep 60'],
    signal: timeout.signal,
  });
  await sleep(4000);
  const { job_processes: processes = 0 } = await guest.session.stats();
  assert.ok(processes > 50 && processes < 4097, `${processes} processes`);
  timeout.abort(new Error('step timeout'));
  await assert.rejects(bomb, /step timeout/);
  await alive(guest);
  assert.ok(((await guest.session.stats())['job_processes'] ?? 0) < 10);
});

test('a job that takes all memory is killed, the guest agent lives on', async () => {
  await using guest = await vmm.clone();
  const { result } = await guest.sh('', {
    argv: ['python3', '-c', 'x = []\nwhile True: x.append(bytearray(16 << 20))'],
  });
  assert.deepEqual(result, { kind: 'signalled', signal: 9, oomKilled: true });
  await alive(guest);
});

test('a full disk is an error of the job, not of the VM', async () => {
  await using vmmSmall = await makeVmm({ volumeMib: 64 });
  await using guest = await vmmSmall.clone();
  const { err, result } = await guest.sh('dd if=/dev/zero of=big bs=1M count=200');
  assert.match(err, /No space left on device/);
  assert.deepEqual(result, { kind: 'exited', code: 1, oomKilled: false });
  await alive(guest);
});
