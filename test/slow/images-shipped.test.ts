/**
 * The images that come with ct: each builds something real in a VM, and none holds anything that its definition does not
 * account for, looked at from outside with the tools of this machine.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { definitionNames, loadDefinition } from '../../src/image/definition.ts';
import { type Inventory, type InventoryFile, unaccounted } from '../../src/image/inventory.ts';
import type { ImageManifest } from '../../src/image/manifest.ts';
import { findSources } from '../../src/image/sources.ts';
import { ImageStore } from '../../src/image/store.ts';
import { PROGRAM_PATH } from '../../src/image/supervised.ts';
import { stopHost } from '../support/host.ts';
import { testHome, testImage } from '../support/images.ts';
import { tar, writeLayout } from '../support/oci-layout.ts';
import { runCt } from '../support/run-ct.ts';
import { scratchDirectory } from '../support/scratch.ts';

const DIRECTORIES = [join(installRoot, 'images')];
const NAMES = definitionNames(DIRECTORIES);

const skip = await findSources('bookworm', { env: process.env }).then(
  () => false,
  (error: Error) => `images cannot be built here: ${error.message}`,
);

/** An image may have to be built first. */
const slow = { skip, timeout: 600_000 };

after(() => stopHost(testHome));

type Files = Readonly<Record<string, string | Buffer>>;

/** Runs `argv` in a VM of `image`, over a working tree of `files`; names that end in `!` are programs. */
async function inImage(image: string, files: Files, argv: readonly string[], flags: readonly string[] = []) {
  await testImage(image);
  using scratch = scratchDirectory();
  for (const [name, contents] of Object.entries(files)) {
    const path = join(scratch.path, name.replace(/!$/, ''));
    mkdirSync(join(path, '..'), { recursive: true });
    writeFileSync(path, contents);
    if (name.endsWith('!')) chmodSync(path, 0o755);
  }
  const { status, stdout, stderr } = await runCt(['run', '--image', image, ...flags, '--', ...argv], {
    cwd: scratch.path,
    env: { CT_HOME: testHome },
  });
  return { status, stdout, said: `${stdout}\n${stderr}` };
}

async function script(image: string, files: Files, text: string): Promise<string> {
  const { status, stdout, said } = await inImage(image, { ...files, 'script.sh': text }, [
    ...['bash', '-eux', 'script.sh'],
  ]);
  assert.equal(status, 0, said);
  return stdout;
}

/** A static program for the guest, of this machine's compiler, which ct needs anyway. */
function compile(source: string): Buffer {
  using scratch = scratchDirectory();
  const path = join(scratch.path, 'program');
  execFileSync('gcc', ['-static', '-Os', '-x', 'c', '-o', path, '-'], { input: source });
  return readFileSync(path);
}

// --------------------------------------------------------------------------------------------- what they are for

test('debian-12 builds a project of C with make, and its tests and git work', slow, async () => {
  const files = {
    'sum.h': 'int sum(int a, int b);\n',
    'sum.c': '#include "sum.h"\nint sum(int a, int b) { return a + b; }\n',
    'main.cc':
      'extern "C" {\n#include "sum.h"\n}\n#include <iostream>\nint main() { std::cout << "sum " << sum(2, 40) << "\\n"; }\n',
    Makefile: [
      'app: sum.o main.o',
      '\t$(CXX) -o $@ $^',
      'check: app',
      '\ttest "$$(./app)" = "sum 42"',
      '\tfile app | grep -q "ELF 64-bit"',
      '',
    ].join('\n'),
  };
  const stdout = await script(
    'debian-12',
    files,
    [
      'make -s -j2 check && ./app',
      'git init -q . && git -c user.name=ci -c user.email=ci@localhost commit -q --allow-empty -m first',
      'git add Makefile && git -c user.name=ci -c user.email=ci@localhost commit -q -m second',
      'git bundle create -q all.bundle --all && git clone -q all.bundle clone && cmp Makefile clone/Makefile',
      'git log --format=%s',
      `python3 -c 'import json, sys; print(json.load(sys.stdin)["a"])' <<< '{"a": "python"}'`,
      'tar -cJf all.tar.xz Makefile && tar -tf all.tar.xz && jq -n -r \'"jq"\'',
    ].join('\n'),
  );
  assert.equal(stdout, 'sum 42\nsecond\nfirst\npython\nMakefile\njq\n', stdout);
});

/** A registry of one package, in the VM itself. */
const REGISTRY = `
const { createHash } = require('node:crypto');
const { execFileSync } = require('node:child_process');
const { readFileSync } = require('node:fs');
execFileSync('tar', ['-czf', '/tmp/double.tgz', '-C', 'registry', 'package']);
const archive = readFileSync('/tmp/double.tgz');
const integrity = 'sha512-' + createHash('sha512').update(archive).digest('base64');
require('node:http').createServer((request, response) => {
  if (request.url.endsWith('.tgz')) return response.end(archive);
  const dist = { integrity, tarball: 'http://127.0.0.1:4873/double.tgz' };
  const version = { name: 'double', version: '1.0.0', dist };
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify({ name: 'double', 'dist-tags': { latest: '1.0.0' }, versions: { '1.0.0': version } }));
}).listen(4873, '127.0.0.1', () => console.error('listening'));
`;

test('node installs what a lock file says with `npm ci`, and runs tests', slow, async () => {
  const files = {
    'registry/package/package.json': '{"name":"double","version":"1.0.0","main":"index.js"}',
    'registry/package/index.js': 'module.exports = (n) => 2 * n;\n',
    'registry.cjs': REGISTRY,
    '.npmrc': 'registry=http://127.0.0.1:4873/\naudit=false\nfund=false\n',
    'package.json':
      '{"name":"app","version":"1.0.0","private":true,"scripts":{"test":"node --test"},"dependencies":{"double":"1.0.0"}}',
    'app.test.js':
      "const test = require('node:test');\ntest('doubles', () => require('node:assert').equal(require('double')(21), 42));\n",
  };
  const stdout = await script(
    'node',
    files,
    [
      'node registry.cjs 2> registry.log & server=$!',
      'until grep -q listening registry.log; do sleep 0.1; done',
      'npm install --package-lock-only >&2 && rm -rf ~/.npm',
      'grep -q \'"integrity": "sha512-\' package-lock.json',
      'npm ci >&2 && npm test >&2',
      // Another content under the same name and version is not what the lock says.
      `sed -i 's|sha512-[^"]*|sha512-${'A'.repeat(86)}==|' package-lock.json; rm -rf ~/.npm node_modules`,
      'if npm ci >&2; then echo installed; else echo refused; fi',
      'kill "$server"; node --version',
    ].join('\n'),
  );
  assert.match(stdout, /^refused\nv24\./);
});

/** Makes a wheel as its format has it (PEP 427). */
const WHEEL = `
import zipfile
info = 'double-1.0.dist-info/'
files = {
    'double.py': 'def double(n):\\n    return 2 * n\\n',
    info + 'METADATA': 'Metadata-Version: 2.1\\nName: double\\nVersion: 1.0\\n',
    info + 'WHEEL': 'Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n',
}
with zipfile.ZipFile('double-1.0-py3-none-any.whl', 'w') as wheel:
    for name, text in files.items():
        wheel.writestr(name, text)
    wheel.writestr(info + 'RECORD', ''.join(name + ',,\\n' for name in [*files, info + 'RECORD']))
`;

test('python installs wheels by hash into a venv, without a network, and runs tests', slow, async () => {
  const files = {
    'wheel.py': WHEEL,
    'test_app.py':
      'import unittest\nfrom double import double\n\nclass Test(unittest.TestCase):\n    def test_it(self):\n        self.assertEqual(double(21), 42)\n',
  };
  const stdout = await script(
    'python',
    files,
    [
      'python3 wheel.py',
      'echo "double==1.0 --hash=sha256:$(sha256sum < double-1.0-py3-none-any.whl | cut -c1-64)" > requirements.txt',
      'python3 -c "import ensurepip"',
      'python3 -m venv --without-pip venv',
      'pip --python venv install --no-index --find-links . --require-hashes -r requirements.txt >&2',
      'venv/bin/python -m unittest -v >&2',
      'echo "double==1.0 --hash=sha256:$(printf %064d 0)" > requirements.txt',
      'if pip --python venv install --force-reinstall --no-index --find-links . --require-hashes -r requirements.txt >&2',
      'then echo installed; else echo refused; fi',
      'python3 -c "import ssl, sqlite3, zoneinfo; print(len(ssl.create_default_context().get_ca_certs()) > 50, zoneinfo.ZoneInfo(\'Europe/Berlin\'))"',
      'type cc gcc make apt-get >&2 || echo no compiler',
    ].join('\n'),
  );
  assert.equal(stdout, 'refused\nTrue Europe/Berlin\nno compiler\n');
});

test(
  'minimal runs a static program, knows its user, names and time zones, and has no shell',
  slow,
  async () => {
    const program = compile(`
#include <pwd.h>
#include <stdio.h>
#include <time.h>
#include <stdlib.h>
#include <unistd.h>
int main(void)
{
	FILE *passwd = fopen("/etc/passwd", "r"), *authorities = fopen("/etc/ssl/certs/ca-certificates.crt", "r");
	struct passwd *user;
	while ((user = fgetpwent(passwd)) && user->pw_uid != getuid())
		;
	time_t summer = 1750000000;
	setenv("TZ", "Europe/Berlin", 1);
	struct tm *local = localtime(&summer);
	printf("%s %s %s %s %d\\n", user ? user->pw_name : "?", user ? user->pw_shell : "?", getenv("HOME"),
	       local->tm_zone, authorities != NULL);
	return fopen("made", "w") == NULL;
}
`);
    const ran = await inImage('minimal', { 'app!': program }, ['./app']);
    assert.equal(ran.status, 0, ran.said);
    assert.equal(ran.stdout, 'ci /usr/sbin/nologin /home/ci CEST 1\n');

    for (const name of ['sh', 'bash', '/bin/sh', 'busybox', 'apt-get', 'dpkg']) {
      assert.equal((await inImage('minimal', {}, [name])).status, 127, `${name} is not found`);
    }
    // The control: the same question finds one in an image that has it.
    assert.equal((await inImage('python', {}, ['sh', '-c', 'exit 0'])).status, 0);

    const { files } = await inventoryOf('minimal');
    const executable = files.filter(({ type, mode }) => type === 'file' && (mode & 0o111) !== 0);
    assert.deepEqual(executable, [], 'no program at all');
    assert.ok(files.length < 3000, `${files.length} files`);
  },
);

/** As a step of a container build: is user 0, and makes files of two users. */
const STEP = `
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void)
{
	struct stat base;
	gid_t groups[] = { 7 };
	if (setgroups(1, groups) < 0 || stat("/base", &base) < 0)
		return perror("base"), 1;
	int file = open("/made", O_CREAT | O_WRONLY, 0640);
	if (file < 0 || fchown(file, 33, 65534) < 0)
		return perror("made"), 1;
	printf("user %d, base of %d:%d\\n", getuid(), base.st_uid, base.st_gid);
	return 0;
}
`;

test(
  'containers builds an image from a base in the tree, with files of many users, and runs it',
  slow,
  async () => {
    const step = compile(STEP);
    using scratch = scratchDirectory();
    const base = join(scratch.path, 'base');
    writeLayout(base, { layers: [tar([{ name: 'base', data: 'base', uid: 42, gid: 101 }])], tag: 'base' });
    const files = Object.fromEntries(
      execFileSync('find', ['.', '-type', 'f'], { cwd: base, encoding: 'utf8' })
        .trim()
        .split('\n')
        .map((name) => [`base/${name}`, readFileSync(join(base, name))] as const),
    );
    const containerfile = 'FROM oci:base:base\nCOPY step /step\nRUN ["/step"]\nCMD ["/step"]\n';
    const stdout = await script(
      'containers',
      { ...files, 'step!': step, Containerfile: containerfile },
      [
        'buildah bud --tag app . >&2',
        'buildah from --name made localhost/app >&2',
        'buildah run made /step',
        'buildah unshare sh -c \'cd "$(buildah mount made)" && stat -c "%u:%g %a" base made\'',
        'buildah push localhost/app oci:out:app >&2',
        'grep -o manifests out/index.json',
        // Root in there is nobody outside.
        'root="nsenter --user=/run/ct/users --setuid 0 --setgid 0"',
        '$root id -u',
        'for what in "ls /run/ct/volume" "kill -CONT 1" "cat /proc/1/environ" "chown 5000000 step" "chown 33 step"',
        'do if $root sh -c "$what" >&2; then echo "$what"; fi; done',
        'id -u',
      ].join('\n'),
    );
    assert.match(
      stdout,
      /^user 0, base of 42:101\n42:101 644\n33:65534 640\nmanifests\n0\nchown 33 step\n1000\n$/,
    );
  },
);

test('only an image that asks for them has ids for containers', slow, async () => {
  const [other, asking] = [
    await inImage('python', {}, ['ls', '/run/ct']),
    await inImage('containers', {}, ['ls', '/run/ct']),
  ];
  assert.doesNotMatch(other.stdout, /^users$/m);
  assert.match(asking.stdout, /^users$/m);
});

// --------------------------------------------------------------------------------------------- what they hold

async function manifestOf(name: string): Promise<ImageManifest> {
  return new ImageStore(testHome).manifest(await testImage(name));
}

async function inventoryOf(name: string): Promise<Inventory> {
  const { inventory } = await manifestOf(name);
  assert.ok(inventory);
  return new ImageStore(testHome).readInventory(inventory);
}

function lines(command: string, cwd: string): string[] {
  return execFileSync('sh', ['-c', command], {
    cwd,
    encoding: 'utf8',
    env: { PATH: PROGRAM_PATH, LC_ALL: 'C' },
    maxBuffer: 64 * 1024 * 1024,
  })
    .split('\n')
    .filter((line) => line !== '');
}

for (const name of NAMES) {
  test(`${name} holds nothing that its definition does not account for`, slow, async () => {
    const { holds, ...definition } = loadDefinition(name, DIRECTORIES);
    const { rootfs } = await manifestOf(name);
    using scratch = scratchDirectory();
    const root = join(scratch.path, 'root');
    const blob = join(testHome, 'blobs/sha256', rootfs.digest.slice('sha256:'.length));
    execFileSync('fsck.erofs', [`--extract=${root}`, '--preserve-perms', blob], { stdio: 'ignore' });
    const find = (expression: string): string[] =>
      lines(`find . -mindepth 1 ${expression} -printf '/%P\\n' | sort`, root);

    assert.deepEqual(find('-type f -perm /6000'), [], 'set-uid and set-gid');
    assert.deepEqual(holds.setuid, [], 'and none is asked for');
    assert.deepEqual(find('! -type l -perm /0002'), ['/tmp', '/var/tmp'], 'writable by all');
    assert.deepEqual(find('! -type f ! -type d ! -type l'), [], 'devices, pipes, sockets');
    assert.deepEqual(find("! -user 0 ! -path './var/mail' ! -path './var/cache/man*'"), [], 'not of root');
    const keys = 'grep -rIlE -e "^-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY( BLOCK)?-----" . || true';
    assert.deepEqual(lines(keys, root), [], 'private keys');
    assert.deepEqual(
      find("-type f \\( -path './var/log/*' -o -path './var/lib/apt/*' -o -path './root/.*/*' \\)"),
      [],
    );
    assert.deepEqual(find("-type f -path './var/cache/*' ! -path './var/cache/debconf/*.dat'"), []);
    for (const place of ['proc', 'sys', 'dev', 'run', 'tmp', 'var/tmp', 'home', 'workspace'])
      assert.deepEqual(find(`-path './${place}/*'`), [], `${place} is empty`);
    const managers = find(
      "-regextype posix-extended -regex './usr/(local/)?s?bin/[^/]*' \\( -name 'apt*' -o -name 'pip*' -o -name npm -o -name cargo -o -name gem -o -name yarn \\)",
    );
    const expected: Readonly<Record<string, readonly string[]>> = {
      node: ['/usr/local/bin/npm'],
      python: ['/usr/bin/pip', '/usr/bin/pip3', '/usr/bin/pip3.11'],
    };
    assert.deepEqual(managers, expected[name] ?? [], 'package managers');
    // Each file is a package's, of the definition, or one of those that scripts of packages are known to make.
    const inventory = await inventoryOf(name);
    assert.deepEqual(unaccounted(inventory, [], { ...definition, holds }), []);
    const programs = inventory.files.filter(
      ({ path, type, owner, mode }) =>
        type === 'file' &&
        owner === undefined &&
        (mode & 0o111) !== 0 &&
        /^\/usr\/(local\/)?s?bin\//.test(path),
    );
    assert.deepEqual(
      programs.map(({ path }) => path),
      definition.files.filter(({ executable }) => executable).map(({ path }) => path),
      'programs of no package',
    );

    // The control: whatever else it might hold would be named.
    const hash = 'a'.repeat(64);
    const more = (path: string, mode = 0o644, type: InventoryFile['type'] = 'file'): InventoryFile => ({
      ...{ path, type, mode, uid: 0, gid: 0, sizeBytes: 1, sha256: hash },
    });
    const intruders = [
      more('/etc/ssh/ssh_host_rsa_key'),
      more('/etc/writable', 0o666),
      more('/opt/dir', 0o777, 'directory'),
      more('/root/.npm/x'),
      more('/usr/bin/more-rights', 0o4755),
      more('/usr/bin/yarn', 0o755),
      more('/usr/lib/pipe', 0o644, 'other'),
      more('/var/cache/apt/pkgcache.bin'),
    ];
    const named = unaccounted({ ...inventory, files: [...inventory.files, ...intruders] }, ['/etc/key.pem'], {
      ...{ ...definition, holds },
    });
    assert.deepEqual(
      named.map((line) => line.split(':')[0]),
      intruders.map(({ path }) => path),
    );
  });
}

test('what these tests look for is found where it is', () => {
  using scratch = scratchDirectory();
  spawnSync('sh', ['-c', 'printf "%s\\n" "-----BEGIN RSA PRIVATE KEY-----" > key; : > su; chmod 4755 su'], {
    cwd: scratch.path,
  });
  assert.deepEqual(
    lines('grep -rIlE -e "^-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY( BLOCK)?-----" . || true', scratch.path),
    ['./key'],
  );
  assert.deepEqual(lines("find . -mindepth 1 -type f -perm /6000 -printf '/%P\\n'", scratch.path), ['/su']);
});
