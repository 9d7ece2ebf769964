/** Exec control in a real VM, apart from the ways around it (test/security/unsigned-code.test.ts): what may run, and what phases are. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { packTree } from '../../src/job/tree.ts';
import type { CodeSettings } from '../../src/protocol/code.ts';
import { CODE_SETTINGS, CPUS, INTERPRETERS, Job } from '../support/code-job.ts';
import { makeVmm, type TestVmm } from '../support/machines.ts';
import { scratchDirectory } from '../support/scratch.ts';

const LIMIT = { timeout: 120_000 };
const ROOT = { uid: 0, gid: 0 };
const TERMINATE: CodeSettings = { ...CODE_SETTINGS, mode: 'terminate' };
const NOTHING: CodeSettings = { ...CODE_SETTINGS, trust: { source: false, built: false } };

let vmm: TestVmm;
before(async () => {
  vmm = await makeVmm({ cpus: CPUS });
});
after(() => vmm[Symbol.asyncDispose]());

const sha256 = (content: string | Buffer): string => createHash('sha256').update(content).digest('hex');

const PROJECT: Record<string, string> = {
  Makefile: `
test: prog libone.so generated.sh
	LD_LIBRARY_PATH=. ./prog
	./generated.sh
	sh generated.sh
	./check.sh
	python3 script.py data.json
	./tool.py
	perl -I. -MOne -e 'print One::two(), "\\n"'
prog: prog.c libone.so
	gcc -o prog prog.c -L. -lone
libone.so: one.c
	gcc -shared -fPIC -o libone.so one.c
generated.sh:
	printf '#!/bin/sh\\necho generated\\n' > generated.tmp && chmod +x generated.tmp && mv generated.tmp generated.sh
`,
  'prog.c': '#include <stdio.h>\nint one(void);\nint main(void) { printf("prog %d\\n", one()); }\n',
  'one.c': 'int one(void) { return 1; }\n',
  'check.sh': '#!/bin/sh\n. ./library.sh\nchecked\n',
  'library.sh': 'checked() { echo checked; }\n',
  'module.py': 'def name():\n    return "module"\n',
  'script.py': 'import json, module, sys\nprint(module.name(), json.load(open(sys.argv[1]))["data"])\n',
  'tool.py': '#!/usr/bin/env python3\nprint("tool")\n',
  'One.pm': 'package One; sub two { 2 } 1;\n',
};

test(
  'a project is built and tested, from source that was staged and with data that was fetched: nothing is told',
  LIMIT,
  async () => {
    await using job = await Job.start(vmm, TERMINATE);
    await stage(job, PROJECT);
    await job.phase('fetch');
    await job.good(`echo '{"data": "fetched"}' > data.json; git init -q . && git status > /dev/null`);
    await job.phase('build');
    const { out, err, told } = await job.run(
      'make -s test && python3 -m venv --without-pip env && env/bin/python3 tool.py',
    );
    assert.deepEqual(told, [], err);
    assert.equal(out, 'prog 1\ngenerated\ngenerated\nchecked\nmodule fetched\ntool\n2\ntool\n', err);
    const again = await job.run('make -s test > /dev/null && rm -rf env prog && make -s test');
    assert.deepEqual([again.told, again.out.length > 0], [[], true], again.err);
  },
);

/** As a job's tree comes: by the built-in. */
async function stage(job: Job, files: Record<string, string | Buffer>): Promise<void> {
  using scratch = scratchDirectory();
  for (const [name, content] of Object.entries(files)) {
    const path = join(scratch.path, name);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, content, { mode: /\.(sh|py)$|^[a-z]+$/.test(name) ? 0o755 : 0o644 });
  }
  await job.good('', {
    builtin: 'tree-in',
    argv: ['/workspace'],
    stdin: packTree({ root: scratch.path, respectIgnore: false }),
  });
}

test(
  'where neither source nor what was built is trusted, the image, the steps and what is signed are',
  LIMIT,
  async () => {
    const signed = '#!/bin/sh\necho signed\n';
    const digests = [signed, ...Array.from({ length: 300 }, (_, index) => `${index}`)].map(sha256);
    await using job = await Job.start(vmm, { ...NOTHING, digests });
    await stage(job, { 'good.sh': signed, 'bad.sh': `${signed}# more\n`, 'other.sh': 'echo other\n' });
    await job.phase('build');
    assert.equal(await job.good('./good.sh; sh good.sh; /bin/echo image'), 'signed\nsigned\nimage\n');
    for (const command of ['./bad.sh', 'sh bad.sh', 'sh other.sh', 'cp good.sh copy.txt; sh copy.txt']) {
      const { out, told } = await job.run(command);
      assert.deepEqual([command, out, told.map(({ what }) => what)], [command, '', ['script']]);
    }
    // A copy is known when it is run as a program, from then on also to its interpreter, and until it is written.
    await job.good('cp good.sh copy.sh');
    assert.equal(await job.good('./copy.sh && sh copy.sh'), 'signed\nsigned\n');
    const { out, told } = await job.run('printf " " >> copy.sh; sh copy.sh');
    assert.deepEqual([out, told.map(({ what }) => what)], ['', ['script']]);
    assert.equal(await job.good('cp good.sh copy.sh; ./copy.sh && sh copy.sh'), 'signed\nsigned\n');
    const evidence = await job.run('./bad.sh');
    assert.equal(evidence.told[0]?.digest, sha256(`${signed}# more\n`));
    const step = { script: { name: 'step-1', content: '#!/bin/sh\necho step\n' } };
    assert.equal(await job.good('', { ...step, argv: ['/run/ct/steps/step-1'] }), 'step\n');
    assert.equal(await job.good('sh /run/ct/steps/step-1'), 'step\n');
  },
);

test(
  'somebody who writes while a digest is computed does not get what he wrote vouched for',
  LIMIT,
  async () => {
    const good = Buffer.alloc(3_000_000, '#!/bin/true\n');
    await using job = await Job.start(vmm, { ...NOTHING, digests: [sha256(good)] });
    await stage(job, { good });
    await job.phase('build');
    assert.equal(await job.good('./good; echo $?'), '0\n');
    const raced = await job.run(`cp good race; for i in 1 2 3 4 5 6; do
    (./race; :) & (sleep 0.0$i; printf "#!/bin/echo" | dd of=race conv=notrunc status=none); wait
    ./race ran; cp good race
  done`);
    assert.doesNotMatch(raced.out, /ran/);
    const { out } = await job.run(
      'printf "#!/bin/echo" | dd of=race conv=notrunc status=none; ./race ran; sh race ran',
    );
    assert.equal(out, '');
  },
);

test('the digest of a program that is not of the image is on record', LIMIT, async () => {
  await using job = await Job.start(vmm, { ...CODE_SETTINGS, mode: 'audit' });
  await job.phase('build');
  const out = await job.good('cp /bin/echo mine; ./mine a; sha256sum mine; /bin/echo b');
  await job.host.caughtUp();
  const digests = job.host
    .of('exec')
    .filter(({ binary }) => /\/(mine|echo)$/.test(binary))
    .map(({ digest }) => digest);
  assert.deepEqual(digests, [/[0-9a-f]{64}/.exec(out)?.[0], undefined]);
});

test('a process of a step that fetched does not live to write in the next', LIMIT, async () => {
  await using job = await Job.start(vmm, CODE_SETTINGS);
  await stage(job, {
    file: 'echo ran\n'.padEnd(64, '#'),
    'hold.py': `
import mmap, os, time
fd = os.open('file', os.O_RDWR)
shared = mmap.mmap(fd, 64)
count = 0
while True:
    count += 1
    shared[0:16] = b'echo ran %06d\\n' % count
    os.pwrite(fd, b'echo ran %06d\\n' % count, 16)
    time.sleep(0.02)`,
  });
  await job.phase('fetch');
  const [first, second] = (
    await job.good(
      'setsid python3 hold.py > /dev/null 2>&1 & sleep 2; sha256sum < file; sleep 1; sha256sum < file; ps ax | grep -c "[h]old.py"',
    )
  ).split('\n');
  assert.notEqual(first, second);
  await job.phase('build');
  const [third, fourth, left] = (
    await job.good('sha256sum < file; sleep 1; sha256sum < file; ps ax | grep -c "[h]old.py" || true')
  ).split('\n');
  assert.deepEqual([third, left], [fourth, '0']);
  const { out, told } = await job.run('sh file');
  assert.deepEqual([out, told.map(({ what }) => what)], ['', ['script']]);
});

test(
  'a phase begins although the job is frozen, because the host does not take its record',
  LIMIT,
  async () => {
    await using guest = await vmm.clone({ audit: 'unread' });
    await guest.session.setCode(CODE_SETTINGS);
    await guest.session.setPhase('fetch');
    const busy = guest.sh('while :; do kill -0 $$; done');
    let before = -1;
    for (let ms = 0; ms < 60_000 && before !== (await calls()); ms += 500) {
      before = await calls();
      await sleep(500);
    }
    async function calls(): Promise<number> {
      return (await guest.session.auditPosition(5_000))?.cpus.reduce((sum, one) => sum + one, 0) ?? -2;
    }
    await guest.session.setPhase('build');
    assert.deepEqual((await busy).result, { kind: 'signalled', signal: 9, oomKilled: false });
  },
);

test('a number that comes again does not bring back a label', LIMIT, async () => {
  await using job = await Job.start(vmm, CODE_SETTINGS);
  await job.phase('build');
  const built = (
    await job.good('for i in 1 2 3 4; do echo echo ran > b$i; done; stat -c %i b*; sync; rm b*')
  ).split('\n');
  await job.phase('fetch');
  const fetched = (await job.good('for i in 1 2 3 4; do echo echo ran > f$i; done; stat -c %i f*')).split(
    '\n',
  );
  assert.ok(
    fetched.some((inode) => built.includes(inode)),
    `${built} ${fetched}`,
  );
  await job.phase('build');
  const { out, told } = await job.run('for i in 1 2 3 4; do sh f$i; done');
  assert.deepEqual([out, told.length], ['', 4]);
});

test('in mode `audit` a process is told once of a file, however often it tries', LIMIT, async () => {
  await using job = await Job.start(vmm, { ...CODE_SETTINGS, mode: 'audit' });
  await job.phase('fetch');
  const { told } = await job.run(
    `echo x=1 > data.py; python3 -c 'for i in range(500): open("data.py").read()'; python3 -c 'open("data.py").read()'`,
  );
  assert.deepEqual(
    told.map(({ what }) => what),
    ['script', 'script'],
  );
});

test(
  'code on a command line or the standard input is forbidden to the interpreters that policy names',
  LIMIT,
  async () => {
    const interpreters = INTERPRETERS.map((one) => ({ ...one, inlineForbidden: true }));
    await using job = await Job.start(vmm, { ...CODE_SETTINGS, interpreters });
    await stage(job, {
      'run.sh': 'echo ran\n',
      'run.py': 'print("ran")\n',
      'pipe.sh': 'exec 9< $1\nsh /dev/fd/9\n',
    });
    await job.phase('build');
    const run = (...argv: string[]) => job.run('', { argv });
    const forbidden = [
      ['sh', '-c', 'echo ran'],
      ['bash', '-ec', 'echo ran'],
      ['bash', '-o', 'errexit', '-c', 'echo ran'],
      ['bash', '-s', 'x'],
      ['sh'],
      ['sh', '-e'],
      ['python3', '-c', 'print("ran")'],
      ['python3', '-Bc', 'print("ran")'],
      ['python3', '-cprint("ran")'],
      ['python3', '-'],
      ['python3', '-B', '--'],
      ['python3', '-i'],
      ['perl', '-e', 'print "ran"'],
      ['perl', '-we', 'print "ran"'],
      ['perl', '-E', 'print "ran"'],
      ['/lib64/ld-linux-x86-64.so.2', '/usr/bin/python3', '-c', 'print("ran")'],
      ['python3', ...Array.from({ length: 900 }, () => '-BB'), '-c', 'print("ran")'],
    ];
    for (const argv of forbidden) {
      const { out, told, signal } = await run(...argv);
      const what = told.map((event) => event.what);
      assert.deepEqual([argv.slice(0, 4), out, what], [argv.slice(0, 4), '', ['inline']]);
      assert.equal(signal === 9 || argv[0]?.startsWith('/lib64'), true, `${argv}`);
    }
    const allowed = [
      ['sh', 'run.sh', '-c'],
      ['sh', '-e', 'run.sh'],
      ['bash', '-o', 'errexit', 'run.sh'],
      ['bash', '--', 'run.sh'],
      ['python3', '-B', 'run.py', '-c'],
      ['python3', '--version'],
      ['python3', '-m', 'this'],
      ['perl', '-MConfig', '-w', 'run.py'],
    ];
    for (const argv of allowed) {
      const { told, signal } = await run(...argv);
      assert.deepEqual([argv, told, signal], [argv, [], 0]);
    }
    const piped = await run('env', 'bash', 'pipe.sh', '/proc/self/fd/0');
    assert.deepEqual([piped.out, piped.told.map(({ what }) => what)], ['', []]);
  },
);

test(
  'a pipe is as good as standard input: where that is allowed, so is a pipe by its name',
  LIMIT,
  async () => {
    await using job = await Job.start(vmm, TERMINATE);
    await stage(job, { 'read.sh': 'while read -r line; do echo "$line"; done < "$1"\n' });
    await job.phase('build');
    const { out, err, told } = await job.run(
      `bash -c 'sh read.sh <(echo data); bash <(echo echo script)'; echo 'echo stdin' | sh /dev/stdin`,
    );
    assert.deepEqual([out, told], ['data\nscript\nstdin\n', []], err);
  },
);

test('what the guest goes by is out of reach of a job that is root', LIMIT, async () => {
  for (const asUser of [ROOT, undefined]) {
    await using job = await Job.start(vmm, CODE_SETTINGS);
    await stage(job, {
      'try.py': `
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    return 'done' if libc.syscall(number, *arguments) >= 0 else errno.errorcode[ctypes.get_errno()]
def tried(what):
    try:
        what()
        return 'done'
    except OSError as error: return errno.errorcode[error.errno]
print(os.geteuid(), [call(321, number, ctypes.create_string_buffer(128), 128) for number in (0, 1, 2, 5, 11, 12, 13, 14)])
for name in ['maps', 'mem', 'map_files'] + ['fd/%d' % number for number in range(40)]:
    path = '/proc/1/' + name
    print(name, tried(lambda: os.listdir(path) if name == 'map_files' else os.open(path, os.O_RDWR if name == 'mem' else os.O_RDONLY)))
print('mount', [call(165, b'none', b'/tmp', kind, 0, 0) for kind in (b'bpf', b'cgroup2', b'debugfs', b'tracefs', b'securityfs')])
print('pidfd', call(438, libc.syscall(434, 1, 0), 5, 0))`,
    });
    await job.phase('fetch');
    const command = 'python3 try.py; printf "#!/bin/sh\\necho ran\\n" > run; chmod +x run; ./run; true';
    const { out } = await job.run(
      '',
      asUser ? { ...asUser, argv: ['sh', '-c', command] } : { argv: ['unshare', '-Ur', 'sh', '-c', command] },
    );
    assert.doesNotMatch(out, /done|ran/);
    assert.match(out, /^0 \['EPERM', 'EPERM'/);
    assert.equal(out.trim().split('\n').length, 46, out);
  }
});

test('what the host says about code is said in time, and once', LIMIT, async () => {
  await using job = await Job.start(vmm);
  const { session } = job.guest;
  await assert.rejects(session.setPhase('build'), /409.*no phases/);
  // What warmed the VM up is gone by then, and what it wrote has nobody to vouch for it.
  await job.good('echo "echo ran" > early; sleep 100 & true');
  await session.setCode(CODE_SETTINGS);
  assert.equal(await job.good('ps ax | grep -c "[s]leep 100" || true'), '0\n');
  const { out, told } = await job.run('sh early');
  assert.deepEqual([out, told.map(({ what }) => what)], ['', ['script']]);
  await assert.rejects(session.setCode(CODE_SETTINGS), /409.*said already/);
});
