/** The guest's half of the audit record, in a real VM: what a job does comes to the host, all of it, whatever it tries. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { exitCode, exitSignal } from '../../src/audit/records.ts';
import { startSession } from '../../src/guest/handshake.ts';
import * as protocol from '../../src/protocol/audit.ts';
import { AuditFrame } from '../../src/protocol/audit.ts';
import { AuditHost, compile } from '../support/audit-host.ts';
import { makeVmm, type TestGuest, type TestVmm } from '../support/machines.ts';

/** Linux x86-64 (arch/x86/entry/syscalls). */
const Call = {
  getppid: 110,
  getuid: 102,
  mmap: 9,
  munmap: 11,
  pread: 17,
  ioUringSetup: 425,
  getpgid: 121,
  futex: 202,
};
const ROOT = { uid: 0, gid: 0 };

let vmm: TestVmm;
before(async () => {
  vmm = await makeVmm({ cpus: 2 });
});
after(() => vmm[Symbol.asyncDispose]());

function clone(): Promise<TestGuest> {
  return vmm.clone({ audit: 'unread' });
}

const open = (guest: TestGuest, options = {}): Promise<AuditHost> =>
  AuditHost.open(guest, { cpus: 2, ...options });

test('bpf/audit.h and src/protocol/audit.ts say the same', () => {
  const text = readFileSync(new URL('../../bpf/audit.h', import.meta.url), 'utf8');
  const c: Record<string, number | string> = {};
  for (const [, name, value] of text.matchAll(/^#define (CT_\w+) (\S+)$/gm)) {
    c[name as string] = value?.startsWith('"') ? JSON.parse(value) : Number(value);
  }
  const snake = (name: string): string => name.replaceAll(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase();
  const ts: Record<string, number | string> = { CT_CUT: 1, CT_NOT_DENIED: 2 };
  for (const [name, value] of Object.entries(protocol)) {
    if (Array.isArray(value)) continue;
    if (typeof value !== 'object') ts[`CT_${name}`] = value;
    else
      for (const [member, number] of Object.entries(value as Record<string, number>)) {
        ts[`CT${snake(name)}_${snake(member)}`] = number;
      }
  }
  assert.deepEqual(
    Object.fromEntries(Object.entries(c).sort()),
    Object.fromEntries(Object.entries(ts).sort()),
  );
});

/** Makes each call as often as its argument says, from two threads and a child. */
const COUNTED = `
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static long n;
static void *work(void *unused) {
  char byte;
  for (long i = 0; i < n; i++) {
    syscall(SYS_getppid);
    if (i % 2) syscall(SYS_getuid);
    if (i % 5 == 0) { void *p = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); munmap(p, 4096); }
    if (i % 3 == 0) pread(-1, &byte, 1, i);
  }
  return unused;
}
int main(int count, char **arguments) {
  pthread_t threads[2];
  n = atol(arguments[1]);
  if (fork() == 0) { work(0); _exit(0); }
  for (int i = 0; i < 2; i++) pthread_create(&threads[i], 0, work, 0);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], 0);
  wait(0);
  return 0;
}`;

test('every system call of a program is counted, as often as the program makes it', async () => {
  await using guest = await clone();
  const host = await open(guest);
  await compile(guest, 'counted', COUNTED);
  const countsOf = async (times: number): Promise<number[]> => {
    await host.caughtUp();
    const before = new Map(host.callsByNumber);
    const { result } = await guest.sh('', { argv: ['./counted', String(times)] });
    assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false });
    await host.caughtUp();
    return [Call.getppid, Call.getuid, Call.mmap, Call.munmap, Call.pread].map(
      (number) => (host.callsByNumber.get(number) ?? 0) - (before.get(number) ?? 0),
    );
  };
  const none = await countsOf(0);
  const some = await countsOf(3000);
  assert.deepEqual(
    some.map((count, index) => count - (none[index] as number)),
    [9000, 4500, 1800, 1800, 3000],
  );
  const failed = host.calls.find((call) => call.number === Call.pread && call.args[3] === 2997n);
  assert.equal(failed?.result, -9n); // EBADF
  assert.deepEqual(failed?.args.slice(2), [1n, 2997n, failed?.args[4]]);
});

/** `strace -c -f`: counts what a program and all that it starts call, as ptrace(2) sees it, and names the threads. */
const TRACER = `
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
struct info { uint8_t op; uint8_t pad[3]; uint32_t arch; uint64_t ip, sp, nr, rest[8]; };
static unsigned long counts[512];
static char known[1 << 22];
int main(int count, char **arguments) {
  int status;
  pid_t first = fork();
  if (first == 0) {
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    execvp(arguments[1], arguments + 1);
    _exit(99);
  }
  waitpid(first, &status, 0);
  long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC;
  if (ptrace(PTRACE_SETOPTIONS, first, 0, options)) return 98;
  known[first] = 1;
  printf("thread %d\\n", first);
  ptrace(PTRACE_SYSCALL, first, 0, 0);
  for (pid_t thread; (thread = waitpid(-1, &status, __WALL)) > 0;) {
    long deliver = 0;
    if (!WIFSTOPPED(status)) continue;
    int signal = WSTOPSIG(status);
    if (!known[thread]) {
      known[thread] = 1;
      printf("thread %d\\n", thread);
      if (signal != SIGSTOP) deliver = signal;
    } else if (signal == (SIGTRAP | 0x80)) {
      struct info info;
      if (ptrace(0x420e /* PTRACE_GET_SYSCALL_INFO */, thread, sizeof info, &info) <= 0) return 97;
      if (info.op == 1 && info.nr < 512) counts[info.nr]++;
    } else if (signal != SIGTRAP) {
      deliver = signal;
    }
    ptrace(PTRACE_SYSCALL, thread, 0, deliver);
  }
  if (errno != ECHILD) return 96;
  for (int number = 0; number < 512; number++)
    if (counts[number]) printf("calls %d %lu\\n", number, counts[number]);
  return 0;
}`;

test('the record counts each system call as often as ptrace(2) does, threads, signals and children included', {
  timeout: 90_000,
}, async () => {
  await using guest = await clone();
  const host = await open(guest);
  await compile(guest, 'tracer', TRACER);
  await compile(guest, 'counted', COUNTED);
  const { out, err, result } = await guest.sh('', {
    argv: [
      './tracer',
      'sh',
      '-c',
      './counted 300; seq 200 | sort -r | head -3 > out; trap : USR1; kill -USR1 $$; (exit 3); cat nowhere 2> out; ls -l /usr/bin > out',
    ],
  });
  assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false }, err);
  await host.caughtUp();
  const numbers = (pattern: RegExp): number[][] =>
    [...out.matchAll(pattern)].map(([, ...values]) => values.map(Number));
  const traced = new Map(numbers(/^calls (\d+) (\d+)$/gm) as [number, number][]);
  const threads = new Set(numbers(/^thread (\d+)$/gm).flat());
  assert.ok(threads.size > 8 && traced.size > 20, out);

  // Of the first thread everything from its exec on: what it does before is not traced.
  const [firstThread] = threads;
  const calls = host.calls
    .filter(({ thread }) => threads.has(thread))
    .sort((a, b) => Number(a.timeNs - b.timeNs));
  const exec = calls.find(
    ({ thread, number, isAtEntry }) => thread === firstThread && number === 59 && isAtEntry,
  );
  assert.ok(exec);
  const recorded = new Map<number, number>();
  for (const { thread, number, isAtEntry, result, timeNs } of calls) {
    if (thread === firstThread && timeNs < exec.timeNs) continue;
    // These do not return: rt_sigreturn, exit, exit_group. All others are counted when they do.
    if (isAtEntry !== [15, 60, 231].includes(number)) continue;
    // rt_sigreturn returns to where no call was made; clone, fork, vfork and clone3 return in the new thread, too.
    if (number === 0xffff || (result === 0n && [56, 57, 58, 435].includes(number))) continue;
    recorded.set(number, (recorded.get(number) ?? 0) + 1);
  }
  const sorted = (counts: ReadonlyMap<number, number>): [number, number][] =>
    [...counts].sort(([a], [b]) => a - b);
  assert.deepEqual(sorted(recorded), sorted(traced));
});

test('sixth arguments, calls of the 32-bit ABI, and calls that seccomp refuses are on record', async () => {
  await using guest = await clone();
  const host = await open(guest);
  await compile(
    guest,
    'odd',
    `
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
  int result;
  syscall(SYS_futex, 0, 1, 2, 0, 0, 0xabcdef0123456789);
  __asm__ volatile("int $0x80" : "=a"(result) : "0"(20 /* getpid */), "b"(0x11), "c"(0x22) : "memory");
  if (result != getpid()) return 2;
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpgid, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 13),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = { 4, code };
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 3;
  return syscall(SYS_getpgid, 77) == -1 ? 0 : 4;
}`,
  );
  const { result } = await guest.sh('./odd');
  assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false });
  await host.caughtUp();
  const futex = host.calls.find((call) => call.number === Call.futex && call.args.length === 6);
  assert.equal(futex?.args[5], 0xabcdef0123456789n);
  const compat = host.calls.filter((call) => call.isCompat);
  assert.deepEqual(
    compat.map(({ number, args, result }) => [
      number,
      args[0],
      args[1],
      result === BigInt(compat[0]?.thread ?? 0),
    ]),
    [[20, 0x11n, 0x22n, true]],
  );
  const refused = host.calls.filter((call) => call.number === Call.getpgid && call.args[0] === 77n);
  assert.deepEqual(
    refused.map((call) => call.result),
    [-13n],
  );
});

test('a call and its sixth argument come in one frame, however full frames are', async () => {
  await using guest = await clone();
  const host = await open(guest, { rate: 3_000_000 });
  await compile(
    guest,
    'pairs',
    `
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
  for (long i = 1; i <= 20000; i++) {
    /* Else every frame would begin with a call. */
    if (i % 7 == 0) syscall(SYS_getppid);
    syscall(SYS_futex, 0, 1, 2, 0, 0, i);
  }
  return 0;
}`,
  );
  const { result } = await guest.sh('./pairs');
  assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false });
  await host.caughtUp();
  const sixth = host.calls.flatMap(({ number, args }) =>
    number === Call.futex && args.length === 6 ? [args[5]] : [],
  );
  // The thread may have moved from one processor to the other.
  const values = sixth.map(Number).toSorted((a, b) => a - b);
  assert.deepEqual(
    values,
    Array.from({ length: 20_000 }, (_, index) => index + 1),
  );
});

test('calls after which there is no exit are on record at their entry', async () => {
  await using guest = await clone();
  const host = await open(guest);
  await guest.sh('trap : USR1; kill -USR1 $$; /bin/true; exit 0');
  await host.caughtUp();
  const atEntry = host.calls.filter((call) => call.isAtEntry).map((call) => call.number);
  // execve, rt_sigreturn, exit_group
  for (const [number, times] of [
    [59, 2],
    [15, 1],
    [231, 2],
  ] as const) {
    assert.ok(atEntry.filter((one) => one === number).length >= times, `${number}: ${atEntry}`);
  }
});

test('the processes of a pipeline: who started whom, with what, where, and how they ended', async () => {
  await using guest = await clone();
  const host = await open(guest);
  const { result } = await guest.sh(
    'mkdir -p "a b" && cd "a b" && printf "%s\\n" "x y" "" z | sort -r | (cat; exit 7); sleep 60 & kill -9 $!; wait; exit 3',
  );
  assert.deepEqual(result, { kind: 'exited', code: 3, oomKilled: false });
  await host.caughtUp();
  const execs = host.of('exec');
  const shell = execs[0];
  assert.ok(shell);
  assert.equal(shell.args[0], 'sh');
  assert.equal(shell.cwd, '/workspace');
  assert.match(shell.binary, /^\/usr\/bin\/[a-z]+$/);
  assert.deepEqual([shell.parentPid, shell.uid, shell.gid, shell.isCut], [1, 1000, 1000, false]);
  const sort = execs.find((event) => event.args[0] === 'sort');
  assert.deepEqual(sort?.args, ['sort', '-r']);
  assert.equal(sort?.cwd, '/workspace/a b');
  assert.equal(sort?.parentPid, shell.process.pid);

  // Every process but the first is the child of one that was there, and each ends once.
  const children = host.of('fork').map((event) => event.child.pid);
  for (const fork of host.of('fork')) {
    assert.ok(fork.process.pid === 1 || children.includes(fork.process.pid), `${fork.process.pid}`);
  }
  const exits = host.of('exit');
  assert.deepEqual(exits.map((event) => event.process.pid).sort(), [...children].sort());
  for (const exit of exits) {
    const fork = host.of('fork').find((event) => event.child.pid === exit.process.pid);
    assert.equal(fork?.child.startedNs, exit.process.startedNs);
  }
  const end = (pid: number | undefined): number =>
    exits.find((event) => event.process.pid === pid)?.status ?? -1;
  assert.equal(exitCode(end(shell.process.pid)), 3);
  assert.ok(exits.some((event) => exitCode(event.status) === 7));
  const sleeper = execs.find((event) => event.args[0] === 'sleep');
  const killed = exits.filter((event) => exitSignal(event.status) === 9);
  assert.equal(killed.length, 1);
  // It may have been killed before its exec.
  if (sleeper) assert.equal(killed[0]?.process.pid, sleeper.process.pid);
});

test('arguments that do not fit are cut and said to be; those that are empty are not lost', async () => {
  await using guest = await clone();
  const host = await open(guest);
  await guest.sh('', { argv: ['/bin/true', '', 'a', ''] });
  await guest.sh('', { argv: ['/bin/true', 'x'.repeat(10_000)] });
  await guest.sh('', { argv: ['/bin/true', ...Array.from({ length: 50 }, (_, n) => `${n}`)] });
  await host.caughtUp();
  const [empty, long, many] = host.of('exec');
  assert.deepEqual([empty?.args, empty?.isCut], [['/bin/true', '', 'a', ''], false]);
  assert.equal(long?.isCut, true);
  assert.ok((long?.args[1]?.length ?? 0) > 4000);
  assert.deepEqual([many?.args.length, many?.args.at(-1), many?.isCut], [51, '49', false]);
});

test('connections: where to, by what, and what came of it', async () => {
  await using guest = await clone();
  const host = await open(guest);
  await guest.sh('', {
    argv: [
      'python3',
      '-c',
      `
import socket
def go(kind, *where):
    one = socket.socket(socket.AF_INET6 if ':' in where[0] else socket.AF_INET, kind)
    one.settimeout(1)
    try: one.connect(where)
    except OSError: pass
go(socket.SOCK_STREAM, '127.0.0.1', 4)
go(socket.SOCK_STREAM, '192.0.2.7', 443)
go(socket.SOCK_STREAM, '2001:db8::5', 8443)
go(socket.SOCK_DGRAM, '198.18.0.1', 53)
`,
    ],
  });
  await host.caughtUp();
  assert.deepEqual(
    host.of('connect').map(({ address, port, protocol, result }) => [address, port, protocol, result]),
    [
      // Python does not block where it waits: EINPROGRESS, and ECONNREFUSED at once.
      ['127.0.0.1', 4, 6, host.of('connect')[0]?.result],
      ['192.0.2.7', 443, 6, -115],
      ['2001:db8::5', 8443, 6, -115],
      ['198.18.0.1', 53, 17, 0],
    ],
  );
  assert.ok([-111, -115].includes(host.of('connect')[0]?.result ?? 0));
});

test('files that are written, removed, renamed and made setuid, and read where they are not of the image', async () => {
  await using guest = await clone();
  const host = await open(guest);
  await guest.sh(
    `mkdir -p deep/er; echo 1 > deep/er/one; for i in 1 2 3; do cat < deep/er/one; done; mv deep/er/one deep/two
     chmod 4755 deep/two; rm deep/two; cat /etc/passwd /proc/self/status > /dev/null`,
  );
  await host.caughtUp();
  const files = host.of('file').map(({ what, path }) => `${what} ${path}`);
  const ours = files.filter((line) => line.includes('/workspace/'));
  assert.deepEqual(
    ours.filter((line) => !line.startsWith('read')),
    [
      'write /workspace/deep/er/one',
      'rename /workspace/deep/two',
      'setuid /workspace/deep/two',
      'unlink /workspace/deep/two',
    ],
  );
  // The shell opens it three times, and one process is told once.
  assert.equal(ours.filter((line) => line === 'read /workspace/deep/er/one').length >= 1, true);
  assert.ok(!files.some((line) => line.includes('/etc/passwd')));
  assert.ok(
    files.some((line) => /^read \/proc\/\d+\/status$/.test(line)),
    files.join('\n'),
  );
});

test('io_uring cannot be had, and is told', async () => {
  await using guest = await clone();
  const host = await open(guest);
  const { out } = await guest.sh('', {
    argv: [
      'python3',
      '-c',
      `
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(${Call.ioUringSetup}, 8, ctypes.create_string_buffer(256)), ctypes.get_errno())
print(libc.syscall(${Call.ioUringSetup}, 0, 0), ctypes.get_errno())`,
    ],
  });
  await host.caughtUp();
  assert.equal(out, '-1 1\n-1 14\n'); // EPERM; EFAULT: it was there to be asked
  assert.deepEqual(
    host.of('denied').map(({ what, uid }) => [what, uid]),
    [['ioUring', 1000]],
  );
  const call = host.calls.find(({ number }) => number === Call.ioUringSetup);
  assert.equal(call?.result, -1n);
});

test('a job that is root has no way to switch the record off', async () => {
  await using guest = await clone();
  const host = await open(guest);
  const { out } = await guest.sh('', {
    ...ROOT,
    argv: [
      'python3',
      '-c',
      `
import ctypes, errno, os, signal
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) >= 0: return 'done'
    return errno.errorcode[ctypes.get_errno()]
def write(path, text):
    try:
        with open(path, 'w') as file: file.write(text)
        return 'done'
    except OSError as error: return errno.errorcode[error.errno]
def names():
    found = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try: found[open('/proc/%s/comm' % pid).read().strip()] = int(pid)
        except OSError: pass
    return found
helper = names()['ct-audit']
print('euid', os.geteuid())
print('trace PID 1', call(101, 16, 1, 0, 0))
print('trace the helper', call(101, 16, helper, 0, 0))
print('memory of PID 1', write('/proc/1/mem', 'x'))
print('memory of the helper', write('/proc/%d/mem' % helper, 'x'))
print('kill the helper', call(62, helper, 9))
print('stop the helper', call(62, helper, 19))
print('starve it', call(144, helper, 0, ctypes.byref(ctypes.c_int(0))))
print('read a map', call(321, 1, ctypes.create_string_buffer(128), 128))
print('tracing off', write('/proc/sys/kernel/ftrace_enabled', '0'))
print('a module', call(313, 0, b'', 0))
print('cgroups', call(165, b'none', b'/tmp', b'cgroup2', 0, 0))
print('tracefs', call(165, b'none', b'/tmp', b'tracefs', 0, 0))
print('kexec', call(320, -1, -1, 0, b'', 0))
os.kill(1, signal.SIGKILL)
os.kill(1, signal.SIGSTOP)
print('still here', names()['ct-audit'] == helper)
`,
    ],
  });
  assert.equal(
    out,
    [
      'euid 0',
      'trace PID 1 EPERM',
      'trace the helper EPERM',
      'memory of PID 1 EACCES',
      'memory of the helper EACCES',
      'kill the helper EPERM',
      'stop the helper EPERM',
      'starve it EPERM',
      'read a map EPERM',
      'tracing off EROFS',
      'a module EPERM',
      'cgroups EPERM',
      'tracefs EPERM',
      'kexec EPERM',
      'still here True',
      '',
    ].join('\n'),
  );
  await host.caughtUp();
  assert.equal(host.calls.filter(({ number, result }) => number === 62 && result === 0n).length >= 2, true);
});

test('root of a user namespace of its own has no way either, and stays on record', async () => {
  await using guest = await clone();
  const host = await open(guest);
  const { out, err } = await guest.sh('', {
    argv: [
      'unshare',
      '-UrmC',
      'python3',
      '-c',
      `
import ctypes, errno, os, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def mount(kind, where):
    os.makedirs(where, exist_ok=True)
    return 'done' if libc.mount(b'none', where.encode(), kind, 0, 0) == 0 else errno.errorcode[ctypes.get_errno()]
def attempt(action, *arguments):
    try:
        action(*arguments)
        return 'done'
    except OSError as error: return errno.errorcode[error.errno]
def put(path, text):
    with open(path, 'w') as file: file.write(text)
print('uid', os.getuid())
print('cgroups', mount(b'cgroup2', '/tmp/c'))
print('the files of its cgroup', os.path.exists('/tmp/c/cgroup.procs'))
print('freeze', attempt(put, '/tmp/c/cgroup.freeze', '0'))
print('another cgroup', attempt(os.mkdir, '/tmp/c/own'))
print('move', attempt(put, '/tmp/c/cgroup.procs', str(os.getpid())))
print('tracing off', attempt(put, '/proc/sys/kernel/ftrace_enabled', '0'))
print('tracefs', mount(b'tracefs', '/tmp/t'))
print('trace PID 1', libc.ptrace(16, 1, 0, 0), errno.errorcode[ctypes.get_errno()])
subprocess.run(['/bin/true', 'seen'])
`,
    ],
  });
  assert.equal(
    out,
    [
      'uid 0',
      'cgroups done',
      'the files of its cgroup True',
      'freeze EACCES',
      'another cgroup EACCES',
      'move EACCES',
      'tracing off EROFS',
      'tracefs EPERM',
      'trace PID 1 -1 EPERM',
      '',
    ].join('\n'),
    err,
  );
  await host.caughtUp();
  assert.ok(host.of('exec').some(({ args }) => args[1] === 'seen'));
});

test('the helper is out of reach of the job: its own user, nothing in its root, no capability, before all others', async () => {
  await using guest = await clone();
  await open(guest);
  const { out } = await guest.sh(
    'for p in /proc/[0-9]*; do read -r name < $p/comm; [ "$name" = ct-audit ] && cat $p/status $p/cgroup && cut -d" " -f41 $p/stat; done',
  );
  assert.match(out, /^Uid:\t1700000002\t1700000002\t1700000002\t1700000002$/m);
  for (const set of ['Inh', 'Prm', 'Eff', 'Bnd', 'Amb'])
    assert.match(out, new RegExp(`^Cap${set}:\t0{16}$`, 'm'));
  assert.match(out, /^NoNewPrivs:\t1$/m);
  assert.match(out, /^Seccomp:\t2$/m);
  assert.match(out, /^1\n$/m); // SCHED_FIFO
});

test('what a job does before the host says hello is kept; it is stopped when the ring is half full, and goes on', async () => {
  await using guest = await clone();
  const done = guest.sh('i=0; while [ $i -lt 20000 ]; do kill -0 $$; i=$((i+1)); done; echo done');
  assert.equal(await Promise.race([done.then(() => 'over'), sleep(4000, 'stopped')]), 'stopped');
  const host = await open(guest, { isBulk: true });
  assert.equal((await done).out, 'done\n');
  await host.caughtUp();
  assert.equal(host.callsByNumber.get(62), 20_000);
  assert.ok(host.of('exec').length > 0);
});

test('a million calls at full speed and a host that reads 10 MB a second: nothing is lost', {
  timeout: 90_000,
}, async () => {
  await using guest = await clone();
  const host = await open(guest, { rate: 10_000_000, isBulk: true });
  await compile(guest, 'counted', COUNTED);
  const { result } = await guest.sh('./counted 330000');
  assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false });
  await host.caughtUp(60_000);
  const count = host.callsByNumber.get(Call.getppid) ?? 0;
  assert.ok(count >= 990_000 && count < 990_100, `${count}`);
});

test('as many files and processes as it can make: each is told once, whatever the host can take', {
  timeout: 90_000,
}, async () => {
  await using guest = await clone();
  const host = await open(guest, { rate: 4_000_000, isBulk: true });
  await compile(
    guest,
    'storm',
    `
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void *wait_for_end(void *unused) { pause(); return unused; }
int main(void) {
  char name[64];
  pthread_t thread;
  if (fork() == 0) {
    for (int i = 0; i < 10000; i++) {
      sprintf(name, "file-%d", i);
      close(open(name, O_CREAT | O_WRONLY, 0600));
      unlink(name);
    }
    _exit(0);
  }
  for (int i = 0; i < 150; i++) {
    if (fork() == 0) {
      for (int n = 0; n < 4; n++) pthread_create(&thread, 0, wait_for_end, 0);
      if (i % 2) execl("/bin/true", "/bin/true", NULL);
      exit(i % 100);
    }
  }
  while (wait(0) > 0);
}`,
  );
  await host.caughtUp(30_000);
  const seen = host.processes.length;
  const { result } = await guest.sh('', { argv: ['./storm'] });
  assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false });
  await host.caughtUp(60_000);
  const events = host.processes.slice(seen);
  const files = events.flatMap((event) =>
    event.kind === 'file' && event.path.startsWith('/workspace/file-') ? [event] : [],
  );
  for (const what of ['write', 'unlink']) {
    const paths = files.filter((event) => event.what === what).map(({ path }) => path);
    assert.deepEqual([paths.length, new Set(paths).size], [10_000, 10_000], what);
  }
  const ended = events.flatMap((event) => (event.kind === 'exit' ? [event.process.pid] : []));
  const born = events.flatMap((event) => (event.kind === 'fork' ? [event.child.pid] : []));
  assert.equal(born.length, 152);
  assert.deepEqual(ended.sort(), born.sort());
  assert.equal(events.filter((event) => event.kind === 'exec' && event.binary.endsWith('/true')).length, 75);
});

/** Of many, so that a busy machine may delay some; `ct bench audit` measures each. */
function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

test('events come within 250 ms while a job does little and while it does all it can, and a heartbeat when nothing happens', async () => {
  await using guest = await clone();
  const host = await open(guest, { isBulk: true });
  await guest.sh('sleep 1.2');
  const delays: number[] = [];
  for (let round = 0; round < 9; round += 1) {
    await sleep(230);
    const from = performance.now();
    const seen = host.of('exec').length;
    await guest.sh('', { argv: ['/bin/true'] });
    while (host.of('exec').length === seen) await sleep(2);
    delays.push(performance.now() - from);
  }
  assert.ok(median(delays) < 250, `${delays}`);

  const before = host.arrivals.length;
  await guest.sh('dd if=/dev/zero of=/dev/null bs=1 count=100000 status=none');
  await host.caughtUp();
  const frames = host.arrivals.slice(before).filter(({ type }) => type === AuditFrame.syscalls);
  // Frames are late, never early: the quickest says how the clocks differ.
  const offsetMs = Math.min(
    ...host.arrivals.flatMap(({ atMs, lastNs }) => (lastNs === 0 ? [] : [atMs - lastNs / 1e6])),
  );
  const oldest = frames.map(({ atMs, firstNs }) => atMs - offsetMs - firstNs / 1e6);
  assert.ok(frames.length > 100 && median(oldest) < 250, `${frames.length} frames, ${median(oldest)} ms`);

  await sleep(2000);
  const beats = host.arrivals.filter(({ type }) => type === AuditFrame.heartbeat).map(({ atMs }) => atMs);
  const gaps = beats.slice(1).map((atMs, index) => atMs - (beats[index] as number));
  assert.ok(beats.length >= 5 && median(gaps) < 1000, `${gaps}`);
});

test('when the host says more than hello, or closes the channel, the VM ends', async () => {
  for (const end of [
    (guest: TestGuest) => guest.audit.write('more'),
    (guest: TestGuest) => guest.audit.destroy(),
  ]) {
    await using guest = await clone();
    await startSession(guest.audit, 20_000);
    guest.audit.resume();
    assert.equal((await guest.sh('echo 1')).out, '1\n');
    end(guest);
    await guest.exited;
    assert.match(guest.diagnostics(), /the audit helper has ended: exit status [01]/);
  }
});
