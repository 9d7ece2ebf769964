/**
 * What guards the record, tried by root with all capabilities. A job never is that: its capability bounding set is empty, as
 * test/integration/audit-guest.test.ts shows. So the guest agents here are linked for it (guest-agent/test/privileged.c), once
 * with the tracer and once without, where the same attacks succeed.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { AuditRecorder, SILENCE_MS } from '../../src/audit/recorder.ts';
import type { AuditViolation } from '../../src/audit/violation.ts';
import { installRoot } from '../../src/core/install.ts';
import { startSession } from '../../src/guest/handshake.ts';
import { AuditHost } from '../support/audit-host.ts';
import { makeVmm, type TestGuest, type TestVmm } from '../support/machines.ts';
import { scratchDirectory } from '../support/scratch.ts';

const CPUS = 1;

const cleanup = new AsyncDisposableStack();
let agents = '';

before(() => {
  agents = cleanup.use(scratchDirectory()).path;
  execFileSync('make', ['-s', '-C', join(installRoot, 'guest-agent'), `OUT=${agents}`, 'privileged'], {
    stdio: 'pipe',
  });
});
after(() => cleanup.disposeAsync());

let guarded: Promise<TestVmm> | undefined;

/** A clone with the tracer; its template is made once. */
async function guardedClone(): Promise<TestGuest> {
  guarded ??= makeVmm({ cpus: CPUS }, { init: join(agents, 'init-privileged') }).then((vmm) =>
    cleanup.use(vmm),
  );
  return (await guarded).clone({ audit: 'unread' });
}

const ATTACKS = `
import ctypes, errno, os, signal, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) >= 0: return 'done'
    return errno.errorcode[ctypes.get_errno()]
def put(path, text):
    try:
        with open(path, 'w') as file: file.write(text)
        return 'done'
    except OSError as error: return errno.errorcode[error.errno]
def get(path):
    try: return open(path, 'rb', 0)
    except OSError as error: return errno.errorcode[error.errno]
def pids(name):
    found = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            if open('/proc/%s/comm' % pid).read().strip() == name: found.append(int(pid))
        except OSError: pass
    return found
def mount(kind, where):
    os.makedirs(where, exist_ok=True)
    return call(165, kind, where.encode(), kind, 0, 0)
`;

const GUARDED_THINGS = `${ATTACKS}
helper = pids('ct-audit')[0]
status = open('/proc/self/status').read()
print('capabilities', [line.split()[1] for line in status.split('\\n') if line.startswith('CapEff')][0].lstrip('0')[:4])
def seized(pid):
    result = call(101, 0x4206, pid, 0, 0)
    if result == 'done':
        call(101, 0x4207, pid, 0, 0)
        os.waitpid(pid, 0x40000000)
        call(101, 17, pid, 0, 0)
    return result
print('trace PID 1', seized(1))
print('trace the helper', seized(helper))
for name, pid in (('PID 1', 1), ('the helper', helper)):
    memory = get('/proc/%d/mem' % pid)
    print('memory of', name, memory if isinstance(memory, str) else 'done')
    print('environment of', name, get('/proc/%d/environ' % pid) if isinstance(get('/proc/%d/environ' % pid), str) else 'done')
    buffer = ctypes.create_string_buffer(8)
    start = int(open('/proc/%d/stat' % pid).read().rsplit(')', 1)[1].split()[23])
    local = struct.pack('QQ', ctypes.addressof(buffer), 8)
    remote = struct.pack('QQ', start, 8)
    print('process_vm_readv of', name, call(310, pid, local, 1, remote, 1, 0))
attribute = ctypes.create_string_buffer(128)
print('next map', call(321, 12, attribute, 128))
identifier = struct.unpack_from('II', attribute)[1]
struct.pack_into('I', attribute, 0, identifier)
print('open map', call(321, 14, attribute, 128))
print('a module', call(313, 0, b'', 0))
print('modules on', mount(b'proc', '/tmp/proc'), put('/tmp/proc/sys/kernel/modules_disabled', '0'))
print('tracing off', put('/tmp/proc/sys/kernel/ftrace_enabled', '0'))
`;
const SIGNALS = `
os.kill(1, signal.SIGKILL)
os.kill(1, signal.SIGSTOP)
print('PID 1 goes on', open('/proc/1/stat').read().rsplit(')', 1)[1].split()[0] in 'RS')
`;

const ROOT = { uid: 0, gid: 0 };

function attack(guest: TestGuest, script: string) {
  return guest.sh('', { ...ROOT, argv: ['python3', '-c', script] });
}

test('root with all capabilities gets at neither PID 1, the helper, the maps, modules nor ftrace_enabled', {
  timeout: 100_000,
}, async () => {
  await using guest = await guardedClone();
  const host = await AuditHost.open(guest, { cpus: CPUS });
  const { out, err } = await attack(guest, GUARDED_THINGS + SIGNALS);
  assert.equal(
    out,
    [
      'capabilities 1fff',
      'trace PID 1 EPERM',
      'trace the helper EPERM',
      'memory of PID 1 EACCES',
      'environment of PID 1 EACCES',
      'process_vm_readv of PID 1 EPERM',
      'memory of the helper EACCES',
      'environment of the helper EACCES',
      'process_vm_readv of the helper EPERM',
      'next map EPERM',
      'open map EPERM',
      'a module EPERM',
      'modules on done EPERM',
      'tracing off EPERM',
      'PID 1 goes on True',
      '',
    ].join('\n'),
    err,
  );
  // Told, and it goes on being recorded.
  await host.caughtUp();
  const denied = host.of('denied').map(({ what, uid }) => `${what} ${uid}`);
  assert.deepEqual([...new Set(denied)].sort(), ['bpf 0', 'ptrace 0']);
  const before = host.of('exec').length;
  await guest.sh('/bin/true');
  await host.caughtUp();
  assert.ok(host.of('exec').length > before);
});

test('negative control: without the tracer the same attacks succeed', { timeout: 100_000 }, async () => {
  await using vmm = await makeVmm({ cpus: CPUS }, { init: join(agents, 'init-untraced-privileged') });
  await using guest = await vmm.clone();
  const { out, err } = await attack(guest, GUARDED_THINGS);
  const results = new Map(out.split('\n').map((line) => [line.replace(/ \S+$/, ''), line.split(' ').at(-1)]));
  for (const what of [
    'trace PID 1',
    'trace the helper',
    'memory of PID 1',
    'memory of the helper',
    'process_vm_readv of PID 1',
    'next map',
    'open map',
    'tracing off',
  ]) {
    assert.equal(results.get(what), 'done', `${what}\n${out}${err}`);
  }
});

/** Each silences the helper in another way; none is kept from it, and the host notices all of them. */
const SILENCERS: Readonly<
  Record<string, { readonly reason: AuditViolation['reason']; readonly script: string }>
> = {
  'kills the helper': {
    reason: 'closed',
    script: `${ATTACKS}\nos.kill(pids('ct-audit')[0], signal.SIGKILL)`,
  },
  'stops the helper': {
    reason: 'silent',
    script: `${ATTACKS}\nos.kill(pids('ct-audit')[0], signal.SIGSTOP)`,
  },
  'freezes the helper in its cgroup': {
    reason: 'silent',
    script: `${ATTACKS}\nmount(b'cgroup2', '/tmp/cgroup')\nprint(put('/tmp/cgroup/audit/cgroup.freeze', '1'))`,
  },
  'moves PID 1 and the helper into a cgroup and freezes that': {
    reason: 'silent',
    script: `${ATTACKS}
mount(b'cgroup2', '/tmp/cgroup')
os.mkdir('/tmp/cgroup/ice')
print(put('/tmp/cgroup/ice/cgroup.procs', '1'), put('/tmp/cgroup/ice/cgroup.procs', str(pids('ct-audit')[0])))
print(put('/tmp/cgroup/ice/cgroup.freeze', '1'))`,
  },
};

for (const [what, { reason, script }] of Object.entries(SILENCERS)) {
  test(`root that ${what} ends the record as ${reason} at once`, { timeout: 100_000 }, async () => {
    await using guest = await guardedClone();
    using scratch = scratchDirectory();
    await startSession(guest.audit, 20_000);
    const recorder = new AuditRecorder({
      channel: guest.audit,
      directory: scratch.path,
      run: 'ngbmevh208',
      cpus: CPUS,
    });
    await recorder.started;
    await guest.sh('/bin/true');
    const startedAt = performance.now();
    // PID 1 may not answer any more.
    attack(guest, script).catch(() => {});
    const lost = (await recorder.lost) as AuditViolation;
    const tookMs = performance.now() - startedAt;
    assert.equal(lost.reason, reason, lost.message);
    assert.ok(tookMs < SILENCE_MS + 8000, `${tookMs} ms`);
    assert.equal((await recorder.finish()).violation?.reason, reason);
  });
}
