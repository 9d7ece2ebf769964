/**
 * Code that nobody vouches for, as users and operators meet it: real jobs on a real host daemon. In `terminate`, each way to run
 * it ends the run with exit code 122, its VM and an alert; in `audit`, all of them work and are on record; without, they just
 * work, which shows that it is the control of code that stops them. What the guest's kernel sees is tried more closely in
 * test/security/unsigned-code.test.ts. Ordinary builds pass.
 */
import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CodeHost, type CodeRun, type CodeStep } from '../support/code-host.ts';
import { scratchDirectory } from '../support/scratch.ts';

const LIMIT = { timeout: 240_000 };

let host: CodeHost;
before(async () => {
  host = await CodeHost.open();
  host.registry.files.set('/tool', Buffer.from('#!/bin/sh\necho tool-ran\n'));
});
after(() => host[Symbol.asyncDispose]());

/** The working tree: helpers that the project itself vouches for. */
const FILES: Readonly<Record<string, string>> = {
  'evil.c': 'int main(void) { return 0; }\n',
  'lib.c': '#include <stdio.h>\n__attribute__((constructor)) static void f(void) { puts("lib-ran"); }\n',
  'memfd.py': `import os
fd = os.memfd_create('x')
os.write(fd, open('/usr/bin/true', 'rb').read())
os.execve(fd, ['true'], {})
`,
  'protect.py': `import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
at = libc.mmap(None, 4096, 1, 2, os.open(sys.argv[1], os.O_RDONLY), 0)
sys.exit(0 if libc.mprotect(ctypes.c_void_p(at), 4096, 5) == 0 else 1)
`,
  'over.py': `import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b'evil', b'/usr/bin/true', None, 4096, None): sys.exit('mount: %d' % ctypes.get_errno())
os.execv('/usr/bin/true', ['true'])
`,
  'changed.sh': 'echo changed-ran\n',
};

/** With a network: what it leaves is data. */
const FETCH: CodeStep = {
  name: 'fetch',
  run: [
    'curl -sSf -o tool "$REGISTRY/tool"',
    'chmod +x tool',
    'cp /usr/bin/true modified',
    'printf x >> modified',
    'cc -o evil evil.c 2>&1 || cp /usr/bin/true evil',
    'cc -shared -fPIC -o lib.so lib.c 2>&1 || cp /usr/lib/x86_64-linux-gnu/libc.so.6 lib.so',
    'printf "print(\'script-ran\')\\n" > fetched.py',
    'echo "echo more" >> changed.sh',
  ].join('\n'),
};

interface Attack {
  readonly name: string;
  /** Exits 0 if it worked. */
  readonly run: string;
  /** What the alert is about. */
  readonly path: RegExp;
  /** Of the fields of an alert. */
  readonly rule?: string;
}

const ATTACKS: readonly Attack[] = [
  { name: 'a downloaded tool', run: './tool', path: /^\/workspace\/tool$/ },
  { name: 'a modified binary', run: './modified', path: /^\/workspace\/modified$/ },
  { name: 'a program in memory', run: 'python3 memfd.py', path: /memfd:x/ },
  {
    // There is no overlay in the VM: the guest's kernel has no module for it, and loads none.
    name: 'a program that is mounted over one of the image',
    run: 'unshare -Urm python3 over.py',
    path: /true$/,
  },
  { name: 'a preloaded library', run: 'LD_PRELOAD=./lib.so /usr/bin/true', path: /^\/workspace\/lib\.so$/ },
  {
    name: 'a mapping that is made executable',
    run: 'python3 protect.py fetched.py',
    path: /^\/workspace\/fetched\.py$/,
  },
  {
    name: 'a copy of an interpreter under another name',
    run: 'cp "$(readlink -f /usr/bin/python3)" innocent\n./innocent fetched.py',
    path: /^\/workspace\/fetched\.py$/,
  },
  { name: 'a script for an interpreter', run: 'python3 fetched.py', path: /^\/workspace\/fetched\.py$/ },
  {
    name: 'a script of the tree that a fetch step has changed',
    run: 'sh changed.sh',
    path: /^\/workspace\/changed\.sh$/,
  },
  {
    name: 'a deleted program',
    run: 'exec 9< evil\nrm evil\n/proc/self/fd/9',
    path: /evil/,
  },
  {
    name: 'code on the command line of an interpreter that policy names',
    run: "perl -e 'exit 0'",
    path: /perl/,
    rule: 'ct.exec.inline',
  },
];

const attackStep = ({ name, run }: Attack): CodeStep => ({ name, run, network: 'none' });

function said({ outcome, job }: CodeRun): string {
  return `${outcome.stderr}\n${JSON.stringify(job)}`;
}

for (const attack of ATTACKS) {
  test(`terminate: ${attack.name} ends the run with 122, its VM and an alert`, LIMIT, async () => {
    const after = { name: 'after', run: 'true', network: 'none' } as const;
    const files = { ...FILES };
    const run = await host.run({ exec: 'terminate', files, steps: [FETCH, attackStep(attack), after] });
    assert.equal(run.outcome.status, 122, said(run));
    assert.equal(run.job.outcome, 'violation', said(run));
    const rule = attack.rule ?? 'ct.exec.unsigned';
    const alert = run.alerts.find((one) => one.action === 'terminated');
    assert.equal(alert?.rule, rule, said(run));
    assert.match(String(alert?.file?.path), attack.path);
    assert.ok((alert?.process?.pid ?? 0) > 1 && alert?.process?.binary !== '', JSON.stringify(alert));
    assert.ok(run.outcome.stderr.includes(`the job was ended by the rule ${rule}`), run.outcome.stderr);
    assert.match(run.outcome.stderr, /hint: /);
    assert.equal(run.job.steps.at(-1).outcome, 'skipped', said(run));
    assert.ok(await host.isGone(run.job.run), 'the VM is gone');
  });
}

/** Each in a step of its own, whatever became of the one before. */
const ALL: readonly CodeStep[] = [FETCH, ...ATTACKS.map(attackStep)];

test(
  'audit: all of them run, and each is on record, in the log and in what policy explains',
  LIMIT,
  async () => {
    const run = await host.run({ exec: 'audit', files: FILES, steps: ALL });
    assert.equal(run.outcome.status, 0, said(run));
    assert.deepEqual(run.alerts, [], 'what is only recorded is no alert');
    const recorded = run.job.code as { action: string; path: string; rule: string }[];
    for (const { name, path, rule = 'ct.exec.unsigned' } of ATTACKS) {
      const found = recorded.find((one) => path.test(one.path) && one.rule === rule);
      assert.equal(found?.action, 'recorded', `${name}: ${JSON.stringify(recorded)}`);
    }
    const { stdout } = await host.ct(['policy', 'explain', run.job.run]);
    assert.match(
      stdout,
      /recorded\n {2}.* ran \/workspace\/modified, for which nothing vouches\n {2}rule ct\.exec\.unsigned/,
    );
    const shown = await host.ct(['audit', 'show', run.job.run]);
    assert.match(shown.stdout, /exec \(only recorded\) \/workspace\/modified/);
    const exported = await host.ct(['audit', 'export', run.job.run]);
    assert.match(
      exported.stdout,
      /"message":"exec recorded".*modified.*"action":"KPROBE_ACTION_POST","ima_hash":"sha256:/,
    );
  },
);

test('negative control: without control of code all of them run, and nothing is said', LIMIT, async () => {
  const run = await host.run({ files: FILES, steps: ALL });
  assert.equal(run.outcome.status, 0, said(run));
  assert.deepEqual([run.alerts, run.job.code], [[], undefined]);
});

test('enforce: it is refused, the job goes on and is told why, an alert is filed', LIMIT, async () => {
  const steps: CodeStep[] = [FETCH, { name: 'try', network: 'none', run: './tool || echo "refused: $?"' }];
  const run = await host.run({ exec: 'enforce', files: FILES, steps });
  assert.equal(run.outcome.status, 0, said(run));
  assert.match(run.outcome.stderr, /refused: 126/);
  assert.equal(run.alerts[0]?.action, 'denied');
  assert.match(String(run.alerts[0]?.file?.digest), /^sha256:[0-9a-f]{64}$/);
  assert.deepEqual(
    run.job.code?.map((one: { action: string }) => one.action),
    ['denied'],
  );
});

test('an ordinary build passes: what steps without network write counts as built', LIMIT, async () => {
  const files = {
    Makefile:
      'test: test.o libx.so\n\tcc -o $@ test.o -L. -lx -Wl,-rpath,$(CURDIR)\nlibx.so: x.c\n\tcc -shared -fPIC -o $@ $<\n',
    'test.c': 'int x(void); int main(void) { return x(); }\n',
    'x.c': 'int x(void) { return 0; }\n',
    'generate.sh':
      "#!/bin/sh\nprintf '#!/bin/sh\\necho generated-ran\\n' > generated && chmod +x generated\n",
    'helper.py': 'VALUE = 7\n',
    'check.py': 'import helper\nassert helper.VALUE == 7\n',
  };
  const run = await host.run({
    exec: 'terminate',
    files,
    steps: [
      { name: 'fetch data', run: 'curl -sSf -o data "$REGISTRY/tool"' },
      {
        name: 'build',
        network: 'none',
        run: 'make && ./test\nsh generate.sh && ./generated\npython3 check.py && python3 check.py',
      },
      {
        name: 'test',
        network: 'none',
        run: './test && grep -q tool-ran data\npython3 -m venv --without-pip v && v/bin/python check.py',
      },
    ],
  });
  assert.equal(run.outcome.status, 0, said(run));
  assert.deepEqual([run.alerts, run.job.code], [[], undefined]);
});

test(
  'what is signed runs where nobody trusts the working tree, and its neighbour does not',
  LIMIT,
  async () => {
    using scratch = scratchDirectory();
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
    const key = publicKey.export({ type: 'spki', format: 'pem' }) as string;
    const pkcs8 = privateKey.export({ type: 'pkcs8', format: 'pem' });
    writeFileSync(join(scratch.path, 'release.key'), pkcs8, { mode: 0o600 });
    const signed = 'echo signed-ran\n';
    writeFileSync(join(scratch.path, 'signed.sh'), signed);
    const made = await host.ct(['sign', 'signed.sh', '--key', 'release.key'], scratch.path);
    assert.equal(made.status, 0, made.stderr);
    const manifest = readFileSync(join(scratch.path, 'ct.signed.json'), 'utf8');
    const files = { 'signed.sh': signed, 'neighbour.sh': 'echo neighbour-ran\n', 'ct.signed.json': manifest };
    using _policy = host.policy({ exec: { trust: ['built'] }, verify: { signers: { release: { key } } } });
    const job = { exec: 'terminate', verify: { scripts: 'ct.signed.json' }, files } as const;
    const run = await host.run({ ...job, steps: [{ name: 'signed', run: 'sh signed.sh' }] });
    assert.equal(run.outcome.status, 0, said(run));
    assert.match(run.outcome.stderr, /signed-ran/);
    assert.deepEqual(run.alerts, []);
    const other = await host.run({ ...job, steps: [{ name: 'neighbour', run: 'sh neighbour.sh' }] });
    assert.equal(other.outcome.status, 122, said(other));
    assert.doesNotMatch(other.outcome.stderr, /neighbour-ran/);
  },
);

test(
  'between a step with and one without network nothing survives: no process, and no descriptor',
  LIMIT,
  async () => {
    const files = { 'writer.sh': 'exec 8> late\nwhile :; do echo x >&8; sleep 0.1; done\n' };
    const run = await host.run({
      exec: 'enforce',
      files,
      steps: [
        {
          name: 'fetch',
          run: 'setsid sh writer.sh > /dev/null 2>&1 < /dev/null &\nsleep 0.5; pgrep -f writer.sh',
        },
        {
          name: 'build',
          network: 'none',
          run: '! pgrep -f writer.sh\ncp late before; sleep 0.5; cmp late before',
        },
        { name: 'no way out', network: 'none', run: '! curl -sSf --max-time 5 "$REGISTRY/tool"' },
      ],
    });
    assert.equal(run.outcome.status, 0, said(run));
  },
);
