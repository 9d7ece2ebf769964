/**
 * Code that nobody vouches for, in a real VM: each way to run it is really tried. The guest stops it in `enforce` and `terminate`,
 * tells and allows it in `audit`, and has nothing to do with it without settings (the negative control).
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { DeniedName } from '../../src/audit/records.ts';
import type { CodeSettings } from '../../src/protocol/code.ts';
import { CODE_SETTINGS, CPUS, Job } from '../support/code-job.ts';
import { makeVmm, type TestVmm } from '../support/machines.ts';

let vmm: TestVmm;
before(async () => {
  vmm = await makeVmm({ cpus: CPUS });
});
after(() => vmm[Symbol.asyncDispose]());

/** Python of the tree that was staged: what no program of the image does by itself. */
const HELPERS: Record<string, string> = {
  'protect.py': `
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
if len(sys.argv) > 2: libc.personality(0x0400000)  # READ_IMPLIES_EXEC
at = libc.mmap(None, 4096, 1, 2, os.open(sys.argv[1], os.O_RDONLY), 0)
if at is None or at == 2**64 - 1: sys.exit('mmap: %d' % ctypes.get_errno())
if len(sys.argv) == 2 and libc.mprotect(ctypes.c_void_p(at), 4096, 5): sys.exit('mprotect: %d' % ctypes.get_errno())
print('ran')`,
  'memfd.py': `
import os, sys
fd = os.memfd_create('x')
os.write(fd, open('/bin/echo', 'rb').read())
os.execve(fd, ['echo', 'ran'], {})`,
  'deleted.py': `
import os, shutil
shutil.copy('/bin/echo', 'gone')
fd = os.open('gone', os.O_RDONLY)
os.unlink('gone')
os.execve(fd, ['echo', 'ran'], {})`,
  'tmpfile.py': `
import os
fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o755)
os.write(fd, open('/bin/echo', 'rb').read())
os.link('/proc/self/fd/%d' % fd, 'linked', src_dir_fd=os.open('.', os.O_RDONLY))`,
  'mount.py': `
import ctypes, os, shutil
if ctypes.CDLL(None).mount(b'none', b'm', b'tmpfs', 0, None): raise SystemExit('mount')
shutil.copy('tool', 'm')
os.execv('m/tool', ['tool', 'ran'])`,
  'fork.py': `
import os, sys
pid = os.fork()
if pid:
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status): os.kill(os.getpid(), os.WTERMSIG(status))
else:
    exec(open('data.py').read())`,
  'mapped.py': `
import ctypes
library = ctypes.CDLL('./z.so')
with open('z.so', 'r+b') as file: file.write(b'x')
print('ran')`,
  'shm.py': `
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
one = libc.shmget(0, 4096, 0o700)
if libc.shmat(one, None, 0o100000) == 2**64 - 1: raise SystemExit('shmat: %d' % ctypes.get_errno())  # SHM_EXEC
print('ran')`,
  'set-version.py': `
import fcntl, os, struct, sys
def version(number):
    fd = os.open(sys.argv[1], os.O_RDONLY)
    old = struct.unpack('l', fcntl.ioctl(fd, 0x80087601, struct.pack('l', 0)))[0]
    try: fcntl.ioctl(fd, 0x40087602, struct.pack('l', number))
    except OSError: pass
    return old
old = version(7)
open(sys.argv[1], 'a').write('\\necho ran\\n')
version(old)`,
  'hold.py': `
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
shared = mmap.mmap(fd, 64)
count = 0
while True:
    count += 1
    shared[0:16] = b'echo ran %06d\\n' % count
    os.pwrite(fd, b'echo ran %06d\\n' % count, 16)
    time.sleep(0.02)`,
};

interface Attack {
  readonly what: DeniedName;
  /** Each of these runs in the directory of the attack, one phase after the other; only `run` may say `ran`. */
  readonly source?: string;
  readonly built?: string;
  readonly fetch?: string;
  readonly runIn?: 'fetch';
  readonly run: string;
}

/** A program that differs from one of the image by a byte. */
const MODIFIED = 'cp /bin/echo tool && printf x >> tool';
const ATTACKS: Record<string, Attack> = {
  'a modified program': { what: 'exec', runIn: 'fetch', run: `${MODIFIED}; exec ./tool ran` },
  'a copied program': { what: 'exec', runIn: 'fetch', run: 'cp /bin/echo tool; exec ./tool ran' },
  'a downloaded tool, in a build step': { what: 'exec', fetch: MODIFIED, run: 'exec ./tool ran' },
  'a tool that a build step makes executable': {
    what: 'exec',
    fetch: 'cat /bin/echo > tool',
    run: 'chmod +x tool; exec ./tool ran',
  },
  'a tool with more links and other names': {
    what: 'exec',
    fetch: `${MODIFIED}; ln tool linked; rm tool`,
    run: 'mv linked other; ln other last; exec ./last ran',
  },
  'a download in the place of what was built': {
    what: 'exec',
    built: 'cp /bin/echo tool',
    fetch: `mv tool old; ${MODIFIED}; mv tool new; mv old tool; mv -f new tool`,
    run: 'exec ./tool ran',
  },
  'a file without a name that gets one': {
    what: 'exec',
    fetch: 'python3 ../helpers/tmpfile.py',
    run: 'exec ./linked ran',
  },
  'a file in shared memory': {
    what: 'exec',
    run: 'exec python3 ../helpers/memfd.py',
  },
  'a deleted file': { what: 'exec', run: 'exec python3 ../helpers/deleted.py' },
  'a program on a file system of its own namespace': {
    what: 'exec',
    runIn: 'fetch',
    run: `${MODIFIED}; mkdir m; exec unshare -Urm python3 ../helpers/mount.py`,
  },
  'the loader as a program': {
    what: 'library',
    fetch: MODIFIED,
    run: 'exec /lib64/ld-linux-x86-64.so.2 ./tool ran',
  },
  'a preloaded library': {
    what: 'library',
    fetch: 'cp /lib/x86_64-linux-gnu/libz.so.1 z.so',
    run: `export LD_PRELOAD=./z.so; exec python3 -c 'print(*["ran" for line in open("/proc/self/maps") if "/z.so" in line and "x" in line.split()[1]])'`,
  },
  'a library that is loaded later': {
    what: 'library',
    fetch: 'cp /lib/x86_64-linux-gnu/libz.so.1 z.so',
    run: `exec python3 -c 'import ctypes; ctypes.CDLL("./z.so"); print("ran")'`,
  },
  'a library in use that a fetch step writes to': {
    what: 'library',
    built: 'cp /lib/x86_64-linux-gnu/libz.so.1 z.so',
    runIn: 'fetch',
    run: 'exec python3 ../helpers/mapped.py',
  },
  'a mapping that is made executable': {
    what: 'mprotect',
    fetch: MODIFIED,
    run: 'exec python3 ../helpers/protect.py tool',
  },
  'a mapping that is executable as it can be read': {
    what: 'library',
    fetch: MODIFIED,
    run: 'exec python3 ../helpers/protect.py tool implied',
  },
  'shared memory of System V': { what: 'library', run: 'exec python3 ../helpers/shm.py' },
  'a script with #!': {
    what: 'script',
    fetch: `printf '#!/bin/sh\\necho ran\\n' > run; chmod +x run`,
    run: 'exec ./run',
  },
  'sh script': { what: 'script', fetch: 'echo echo ran > run', run: 'exec sh run' },
  'bash -o option script': {
    what: 'script',
    fetch: 'echo echo ran > run',
    run: 'exec bash -o errexit ./run',
  },
  'python3 script': { what: 'script', fetch: `echo 'print("ran")' > run`, run: 'exec python3 -B run' },
  'perl script': { what: 'script', fetch: `echo 'print "ran"' > run`, run: 'exec perl -w run' },
  'a script by way of a link': {
    what: 'script',
    fetch: `echo 'print("ran")' > data; ln -s data run`,
    run: 'exec python3 run',
  },
  'a script on the standard input by its name': {
    what: 'script',
    fetch: `echo 'print("ran")' > data`,
    run: 'exec python3 /dev/stdin < data',
  },
  'a module': {
    what: 'script',
    fetch: `echo 'print("ran")' > fetched.py`,
    run: `exec python3 -c 'import fetched'`,
  },
  'a module by way of a link': {
    what: 'script',
    fetch: `echo 'print("ran")' > data; ln -s data fetched.py`,
    run: `exec python3 -c 'import fetched'`,
  },
  'a copied and renamed interpreter': {
    what: 'script',
    built: 'cp /usr/bin/python3 calc',
    fetch: `echo 'print("ran")' > data`,
    run: 'exec ./calc data',
  },
  'an interpreter by way of the loader': {
    what: 'script',
    fetch: `echo 'print("ran")' > data`,
    run: 'exec /lib64/ld-linux-x86-64.so.2 /usr/bin/python3 data',
  },
  'a child of an interpreter that reads what its parent was given': {
    what: 'script',
    fetch: `echo 'print("ran", flush=True)' > data.py`,
    run: 'exec python3 ../helpers/fork.py',
  },
  'what was built, with something added': {
    what: 'script',
    built: `printf '#!/bin/sh\\n' > run; chmod +x run`,
    fetch: 'echo echo ran >> run',
    run: 'exec ./run',
  },
  'the source, with something written into it': {
    what: 'script',
    source: 'echo "echo no  " > run',
    fetch: 'printf "echo ran" | dd of=run conv=notrunc status=none',
    run: 'exec sh run',
  },
  'what was built, cut short': {
    what: 'script',
    built: 'echo "echo ran; echo but no more" > run',
    fetch: `perl -e 'truncate("run", 9)'`,
    run: 'exec sh run',
  },
  'what was built, opened to be emptied by one that only reads': {
    what: 'script',
    built: 'echo "echo ran" > run',
    fetch: `python3 -c 'import os; os.open("run", os.O_RDONLY | os.O_TRUNC)'; echo "echo ran" >> run`,
    run: 'exec sh run',
  },
  'what was built, under another generation meanwhile': {
    what: 'script',
    built: 'echo true > run',
    fetch: 'python3 ../helpers/set-version.py run',
    run: 'exec sh run',
  },
  'a download that a build step adds to': {
    what: 'script',
    fetch: 'echo true > run',
    run: 'echo "echo ran" >> run; exec sh run',
  },
};

const directoryOf = (name: string): string => name.replaceAll(/[^a-z0-9]+/gi, '-');

type End = Awaited<ReturnType<Job['run']>>;

/** Throws what `judge` finds wrong. */
async function tryAll(
  settings: CodeSettings | undefined,
  judge: (end: End, attack: Attack) => boolean,
): Promise<void> {
  await using job = await Job.start(vmm, settings);
  for (const [name, content] of Object.entries(HELPERS)) await job.write(`helpers/${name}`, content);
  const all = Object.entries(ATTACKS);
  const prepare = (part: 'source' | 'built' | 'fetch'): Promise<string> =>
    job.good(
      all
        .map(([name, attack]) => [directoryOf(name), attack[part] ?? 'true'])
        .map(([directory, text]) => `mkdir -p ${directory} && (cd ${directory}; ${text}) || exit 1`)
        .join('\n'),
    );
  const wrong: [string, End][] = [];
  const runAll = async (when: 'fetch' | undefined): Promise<void> => {
    for (const [name, attack] of all.filter(([, { runIn }]) => runIn === when)) {
      const end = await job.run(attack.run, { cwd: `/workspace/${directoryOf(name)}` });
      if (!judge(end, attack)) wrong.push([name, end]);
    }
  };
  await prepare('source');
  await job.phase('build');
  await prepare('built');
  await job.phase('fetch');
  await prepare('fetch');
  await runAll('fetch');
  await job.phase('build');
  await runAll(undefined);
  assert.deepEqual(wrong, []);
}

/** Forty programs, one after the other, on a machine that may be busy. */
const LIMIT = { timeout: 240_000 };

const ran = ({ out }: End): boolean => /ran/.test(out);
const isTold = ({ told }: End, { what }: Attack, blocked: boolean): boolean =>
  told.some((event) => event.what === what) && told.every((event) => event.blocked === blocked);

test('negative control: without settings every one of them runs, and nothing is told', LIMIT, async () => {
  await tryAll(undefined, (end) => ran(end) && end.told.length === 0);
});

test('in mode `audit` every one of them runs and is told', LIMIT, async () => {
  await tryAll({ ...CODE_SETTINGS, mode: 'audit' }, (end, attack) => ran(end) && isTold(end, attack, false));
});

test('in mode `enforce` none of them runs, each is told, and whoever tries lives', LIMIT, async () => {
  await tryAll(CODE_SETTINGS, (end, attack) => !ran(end) && end.signal === 0 && isTold(end, attack, true));
});

test('in mode `terminate` none of them runs, each is told, and whoever tries is killed', LIMIT, async () => {
  const settings = { ...CODE_SETTINGS, mode: 'terminate' } as const;
  await tryAll(settings, (end, attack) => !ran(end) && end.signal === 9 && isTold(end, attack, true));
});
