/**
 * The guest's half of the network against root with all capabilities, which no job is (audit-root.test.ts has the same guest agent):
 * whoever ends the egress helper ends the VM, and nobody takes its place.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { EgressHost, echo } from '../support/egress-host.ts';
import { makeVmm, type TestVmm } from '../support/machines.ts';
import { scratchDirectory } from '../support/scratch.ts';

const cleanup = new AsyncDisposableStack();
let vmm: TestVmm;
/** 10.5 s are long for a VM that is to end at once, and short for a machine that is busy. */
const GONE_MS = 10_500;

before(async () => {
  const agents = cleanup.use(scratchDirectory()).path;
  execFileSync('make', ['-s', '-C', join(installRoot, 'guest-agent'), `OUT=${agents}`, 'privileged'], {
    stdio: 'pipe',
  });
  vmm = cleanup.use(await makeVmm({ cpus: 1 }, { init: join(agents, 'init-privileged') }));
});
after(() => cleanup.disposeAsync());

const CONNECT = `
import os, signal, socket
def helper():
    for pid in filter(str.isdigit, os.listdir('/proc')):
        if open('/proc/%s/comm' % pid).read() == 'ct-egress\\n': return int(pid)
one = socket.create_connection(('192.0.2.1', 80))
one.settimeout(20)
one.sendall(b'hi')
print(one.recv(2), flush=True)
`;

for (const signal of ['SIGKILL', 'SIGSEGV'] as const) {
  test(`root that ends the egress helper with ${signal} ends the VM, which says so`, {
    timeout: 100_000,
  }, async () => {
    await using guest = await vmm.clone();
    const host = await EgressHost.open(guest);
    host.onConnect = echo;
    const root = (script: string) =>
      guest.sh('', { uid: 0, gid: 0, argv: ['python3', '-c', CONNECT + script] });
    // The control: as long as the helper lives, so does the network, and the VM.
    assert.equal((await root('os.kill(helper(), 0)')).out, "b'hi'\n");
    const startedAt = performance.now();
    root(`os.kill(helper(), signal.${signal})`).catch(() => {}); // nobody answers any more
    await guest.exited;
    assert.ok(performance.now() - startedAt < GONE_MS);
    assert.match(guest.diagnostics(), /the egress helper has ended: signal \d+/);
  });
}
