/** Locks of images for real: made from the apt sources of this machine, followed, and found stale. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  chmodSync,
  constants,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, type TestContext, test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import {
  type BuildOptions,
  type BuiltImage,
  buildImage,
  currentImage,
  resolveLock,
  type UnmetLock,
} from '../../src/image/build.ts';
import { formatLock, type ImageLock, lockDigest } from '../../src/image/lock-file.ts';
import { differenceOf, reproduceImage } from '../../src/image/reproduce.ts';
import { findSources } from '../../src/image/sources.ts';
import { ImageStore } from '../../src/image/store.ts';
import { PROGRAM_PATH } from '../../src/image/supervised.ts';
import { testHome } from '../support/images.ts';

const DEFINITION = 'version: 1\nsuite: bookworm\npackages: [busybox-static]\n';

const TOOL = 'a tool';
const BARE = `version: 1
suite: bookworm
distroless: true
packages: [base-files, base-passwd]
files:
  /opt/tool/bin/tool: { from: tool, sha256: ${createHash('sha256').update(TOOL).digest('hex')}, executable: true }
`;

let skip: string | undefined;
let directory: string;
let definitions: string;
let options: BuildOptions;
let lock: ImageLock;
let image: BuiltImage;
const messages: string[] = [];

before(async () => {
  directory = mkdtempSync('/var/tmp/ct-image-lock-');
  definitions = join(directory, 'images');
  mkdirSync(definitions);
  writeFileSync(join(definitions, 'tiny.yml'), DEFINITION);
  for (const name of ['agent', 'probe']) copyFileSync('/bin/true', join(directory, name));
  options = {
    name: 'tiny',
    definitionDirs: [definitions],
    ctHome: join(directory, 'home'),
    guestAgentPath: join(directory, 'agent'),
    probePath: join(directory, 'probe'),
    progress: ({ message }) => messages.push(message),
  };
  // Most packages are there already: the mirror is no part of this test.
  const archives = join(testHome, 'cache/apt/archives');
  if (existsSync(archives)) {
    const own = join(options.ctHome, 'cache/apt/archives');
    cpSync(archives, own, { recursive: true, mode: constants.COPYFILE_FICLONE });
  }
  try {
    await findSources('bookworm', { env: process.env });
    lock = await resolveLock(options);
    writeLock(lock);
    image = await buildImage({ ...options, locked: true });
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    if (code !== 'IMAGE_SOURCES_MISSING' && code !== 'REQUIREMENT_MISSING') throw error;
    skip = `images cannot be built here: ${message}`;
  }
});

after(() => rmSync(directory, { recursive: true, force: true }));

function writeLock(contents: ImageLock): void {
  writeFileSync(join(definitions, 'tiny.lock.json'), formatLock(contents));
}

/** A test that needs the image; the lock is as it was before and after. */
function lockTest(name: string, body: (t: TestContext) => Promise<void>): void {
  test(name, async (t) => {
    if (skip !== undefined) return t.skip(skip);
    writeLock(lock);
    try {
      await body(t);
    } finally {
      writeLock(lock);
      writeFileSync(join(definitions, 'tiny.yml'), DEFINITION);
    }
  });
}

function edited(edit: (entry: ImageLock['packages'][number]) => ImageLock['packages'][number]): ImageLock {
  return {
    ...lock,
    packages: lock.packages.map((entry) => (entry.name === 'busybox-static' ? edit(entry) : entry)),
  };
}

lockTest('a lock names every package with digest and source, the kernel, and no mirror', async () => {
  const names = lock.packages.map(({ name }) => name);
  for (const name of ['base-files', 'busybox-static', 'dpkg', 'libc6']) assert.ok(names.includes(name), name);
  assert.equal(lock.packages.find(({ name }) => name === 'busybox-static')?.source, 'busybox');
  assert.match(lock.kernel.name, /-cloud-amd64$/);
  const { text } = await findSources('bookworm', { env: process.env });
  const hosts = [...text.matchAll(/:\/\/([^/\s:]+)/g)].map(([, host = '']) => host);
  assert.ok(hosts.length > 0);
  for (const host of hosts) assert.ok(!formatLock(lock).includes(host), host);
  assert.equal(
    formatLock(await resolveLock(options)),
    formatLock(lock),
    'the same sources give the same bytes',
  );
});

lockTest('an image is built from exactly the packages of its lock, and says so', async () => {
  assert.equal(image.manifest.lock, lockDigest(lock));
  assert.equal(image.manifest.local, undefined);
  assert.deepEqual(
    image.manifest.packages,
    lock.packages.map(({ name, version, architecture }) => ({ name, version, architecture })),
  );
  assert.deepEqual(await currentImage({ ...options, locked: true }), image);
});

lockTest('with all packages in the cache, a lock needs no sources and no package lists', async () => {
  rmSync(join(options.ctHome, 'cache/apt/lists'), { recursive: true });
  messages.length = 0;
  const before = process.env['CT_APT_SOURCES'];
  process.env['CT_APT_SOURCES'] = join(directory, 'no-such-file');
  try {
    assert.equal((await buildImage({ ...options, force: true, locked: true })).digest, image.digest);
  } finally {
    if (before === undefined) delete process.env['CT_APT_SOURCES'];
    else process.env['CT_APT_SOURCES'] = before;
  }
  assert.ok(messages.some((message) => message === 'writing the file system'));
  assert.ok(!messages.some((message) => /package lists|downloading/.test(message)));
});

lockTest(
  'two builds in other places, with another umask and time zone, are the same, and are this image',
  async () => {
    const umask = process.umask();
    assert.deepEqual(await reproduceImage(options), { digest: image.digest, difference: undefined });
    assert.equal(process.umask(), umask);
  },
);

/** Builds an image from its lock in `home` as user 54321, who has subordinate ids in a view of /etc of its own. */
function buildAsUser(home: string, name: string): string {
  const view = join(directory, 'etc');
  mkdirSync(view, { recursive: true });
  const files: Readonly<Record<string, string>> = {
    passwd: `${readFileSync('/etc/passwd', 'utf8')}ct-builder:x:54321:54321::/nonexistent:/bin/sh\n`,
    group: `${readFileSync('/etc/group', 'utf8')}ct-builder:x:54321:\n`,
    subuid: 'ct-builder:300000:65536\n',
    subgid: 'ct-builder:300000:65536\n',
  };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(view, name), text);
  const script = `import { buildImage } from '${installRoot}/src/image/build.ts';
    const { digest } = await buildImage(JSON.parse(process.argv[1]));
    process.stdout.write(digest);`;
  const { definitionDirs, guestAgentPath, probePath } = options;
  const input = JSON.stringify({
    name,
    definitionDirs,
    guestAgentPath,
    probePath,
    ctHome: home,
    locked: true,
  });
  const mount =
    'for file in passwd group subuid subgid; do mount --bind "$0/$file" "/etc/$file"; done; exec "$@"';
  const asUser = ['setpriv', '--reuid=54321', '--regid=54321', '--clear-groups'];
  return execFileSync(
    'unshare',
    [
      ...['--mount', '--propagation=private', 'sh', '-c', mount, view, ...asUser],
      ...[process.execPath, '--input-type=module', '--eval', script, input],
    ],
    {
      cwd: '/',
      encoding: 'utf8',
      env: { PATH: PROGRAM_PATH, HOME: home },
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  );
}

lockTest('root and a user without rights build the same image', async (t) => {
  if (process.getuid?.() !== 0) return t.skip('only root can build as root and as another user');
  if (spawnSync('newuidmap', [], { stdio: 'ignore' }).error)
    return t.skip('newuidmap (uidmap) is not installed');
  const home = join(directory, 'home-of-a-user');
  cpSync(join(options.ctHome, 'cache/apt/archives'), join(home, 'cache/apt/archives'), { recursive: true });
  chmodSync(directory, 0o755);
  execFileSync('chown', ['--recursive', '54321:54321', home]);
  chmodSync(home, 0o700);
  assert.equal(buildAsUser(home, 'tiny'), image.digest);

  // One without a base system, and with a file of no package.
  writeFileSync(join(definitions, 'tool'), TOOL);
  writeFileSync(join(definitions, 'bare.yml'), BARE);
  const bare = { ...options, name: 'bare' };
  writeFileSync(join(definitions, 'bare.lock.json'), formatLock(await resolveLock(bare)));
  const built = await buildImage({ ...bare, locked: true });
  const { inventory } = built.manifest;
  assert.ok(inventory);
  const { files, packages } = await new ImageStore(options.ctHome).readInventory(inventory);
  assert.deepEqual(
    packages.map(({ name }) => name),
    ['base-files', 'base-passwd'],
  );
  assert.deepEqual(
    files.filter(({ type, mode }) => type === 'file' && (mode & 0o111) !== 0).map(({ path }) => path),
    ['/opt/tool/bin/tool'],
  );
  const tool = files.find(({ path }) => path === '/opt/tool/bin/tool');
  assert.equal(tool?.sha256, createHash('sha256').update(TOOL).digest('hex'));
  assert.equal(tool?.owner, undefined);
  cpSync(join(options.ctHome, 'cache/apt/archives'), join(home, 'cache/apt/archives'), { recursive: true });
  execFileSync('chown', ['--recursive', '54321:54321', home]);
  assert.equal(buildAsUser(home, 'bare'), built.digest);
});

lockTest(
  'a file that would replace one of a package, or lead elsewhere by a link, ends the build',
  async () => {
    const bare = { ...options, name: 'bare' };
    writeFileSync(join(definitions, 'tool'), TOOL);
    for (const path of ['/etc/debian_version', '/bin/tool', '/var/lock/tool']) {
      writeFileSync(join(definitions, 'bare.yml'), BARE.replace('/opt/tool/bin/tool', path));
      await assert.rejects(buildImage(bare), {
        code: 'IMAGE_BUILD_FAILED',
        message: new RegExp(`cannot add ${path}: it is there, or it leads elsewhere`),
      });
    }
    writeFileSync(join(definitions, 'tool'), 'another');
    await assert.rejects(buildImage(bare), {
      code: 'IMAGE_DEFINITION_INVALID',
      message: /tool has the SHA-256 .* instead of/,
    });
  },
);

lockTest(
  'a version that is gone is IMAGE_LOCK_STALE when only the lock will do, and nothing is built',
  async () => {
    writeLock(edited((entry) => ({ ...entry, version: '1:0.1-1', sha256: '0'.repeat(64) })));
    messages.length = 0;
    await assert.rejects(buildImage({ ...options, locked: true }), {
      code: 'IMAGE_LOCK_STALE',
      message: /no longer have, with the same digest: busybox-static=1:0\.1-1$/,
      hint: /ct image lock tiny/,
    });
    assert.ok(!messages.some((message) => message === 'writing the file system'));
  },
);

lockTest('a package of the same version with other contents is never taken', async () => {
  writeLock(edited((entry) => ({ ...entry, sha256: '0'.repeat(64) })));
  await assert.rejects(buildImage({ ...options, locked: true }), {
    code: 'IMAGE_LOCK_STALE',
    message: /busybox-static=/,
  });
});

lockTest(
  'a definition that asks for other packages than its lock is IMAGE_LOCK_STALE; other variables are not',
  async () => {
    writeFileSync(join(definitions, 'tiny.yml'), `${DEFINITION}env: { COLOUR: blue }\n`);
    const coloured = await buildImage({ ...options, locked: true });
    assert.equal(coloured.manifest.env['COLOUR'], 'blue');
    assert.equal(coloured.manifest.rootfs.digest, image.manifest.rootfs.digest);
    writeFileSync(join(definitions, 'tiny.yml'), DEFINITION.replace(']', ', zip]'));
    await assert.rejects(buildImage({ ...options, locked: true }), {
      code: 'IMAGE_LOCK_STALE',
      message: /made for another definition/,
      hint: /ct image lock tiny/,
    });
  },
);

lockTest('without a lock, `locked` is IMAGE_LOCK_STALE; a damaged lock is IMAGE_LOCK_INVALID', async () => {
  rmSync(join(definitions, 'tiny.lock.json'));
  await assert.rejects(buildImage({ ...options, locked: true }), {
    code: 'IMAGE_LOCK_STALE',
    message: /has no lock/,
  });
  writeFileSync(join(definitions, 'tiny.lock.json'), '{}');
  await assert.rejects(buildImage(options), { code: 'IMAGE_LOCK_INVALID' });
  await assert.rejects(currentImage(options), { code: 'IMAGE_LOCK_INVALID' });
});

lockTest(
  'a lock that cannot be met gives a local image with the packages of today, and the difference',
  async () => {
    const stale = edited((entry) => ({ ...entry, version: '1:0.1-1', sha256: '0'.repeat(64) }));
    writeLock(stale);
    const told: UnmetLock[] = [];
    const built = await buildImage({ ...options, onUnmetLock: (unmet) => told.push(unmet) });
    assert.equal(built.manifest.local, true);
    assert.equal(built.manifest.lock, undefined);
    const today = lock.packages.find(({ name }) => name === 'busybox-static')?.version;
    assert.equal(told.length, 1);
    assert.deepEqual(told[0]?.differences, [
      { name: 'busybox-static', change: 'upgraded', from: '1:0.1-1', to: today },
    ]);
    assert.deepEqual(await currentImage(options), built, 'the next run uses it');
    assert.equal(await currentImage({ ...options, locked: true }), undefined);
    await assert.rejects(buildImage({ ...options, locked: true }), { code: 'IMAGE_LOCK_STALE' });

    // The control of the comparison of builds: these two differ, and it says in what.
    const store = new ImageStore(options.ctHome);
    const other = { image: built, store };
    assert.equal(
      await differenceOf({ image, store }, other),
      'lock, local of the manifest, with the same files',
    );
  },
);

lockTest(
  'an image that would hold a private key is IMAGE_UNACCOUNTED, unless its definition lists it',
  async () => {
    const key = '/usr/local/lib/node_modules/tool/test/server.pem';
    const packageDirectory = join(directory, 'package');
    mkdirSync(join(packageDirectory, 'test'), { recursive: true });
    writeFileSync(join(packageDirectory, 'package.json'), '{"name":"tool","version":"1.0.0"}');
    writeFileSync(
      join(packageDirectory, 'test/server.pem'),
      '-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n',
    );
    execFileSync('tar', ['-czf', 'tool.tgz', 'package'], { cwd: directory });
    const archive = readFileSync(join(directory, 'tool.tgz'));
    const integrity = `sha512-${createHash('sha512').update(archive).digest('base64')}`;
    const registry = createServer((request, response) => {
      if (request.url === '/tool.tgz') return void response.end(archive);
      const dist = { tarball: `http://${request.headers.host}/tool.tgz`, integrity };
      const versions = { '1.0.0': { name: 'tool', version: '1.0.0', dist } };
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify({ name: 'tool', 'dist-tags': { latest: '1.0.0' }, versions }));
    });
    registry.listen(0, '127.0.0.1');
    await once(registry, 'listening');
    const settings = {
      npm_config_registry: `http://127.0.0.1:${(registry.address() as AddressInfo).port}`,
      npm_config_cache: join(directory, 'npm-cache'),
    };
    const saved = Object.keys(settings).map((name) => [name, process.env[name]] as const);
    Object.assign(process.env, settings);
    try {
      rmSync(join(definitions, 'tiny.lock.json'));
      const definition = `${DEFINITION}npm: { tool@1.0.0: "${integrity}" }\n`;
      writeFileSync(join(definitions, 'tiny.yml'), definition);
      await assert.rejects(buildImage(options), {
        code: 'IMAGE_UNACCOUNTED',
        message: new RegExp(`${key} \\(of tool\\): a private key`),
        hint: /`holds`/,
      });
      writeFileSync(
        join(definitions, 'tiny.yml'),
        `${definition}holds: { keys: [${key}], setuid: [/usr/bin/su] }\n`,
      );
      const built = await buildImage(options);
      const { sbom, inventory } = built.manifest;
      assert.ok(sbom && inventory);
      const { files } = await new ImageStore(options.ctHome).readInventory(inventory);
      assert.deepEqual(
        files.filter(({ type, mode }) => type === 'file' && (mode & 0o6000) !== 0).map(({ path }) => path),
        ['/usr/bin/su'],
        'what is listed keeps its bits, and nothing else does',
      );
      const document = (await new ImageStore(options.ctHome).readBlob(sbom.cyclonedx)).toString('utf8');
      assert.ok(document.includes('"pkg:npm/tool@1.0.0"'));
    } finally {
      for (const [name, value] of saved) {
        if (value === undefined) delete process.env[name];
        else process.env[name] = value;
      }
      registry.closeAllConnections();
      registry.close();
    }
  },
);

lockTest('`ct image lock` writes what has changed, says it, and with --check only says it', async () => {
  const project = join(directory, 'project');
  const own = join(project, '.ct/images');
  mkdirSync(own, { recursive: true });
  writeFileSync(join(own, 'own.yml'), DEFINITION);
  const ct = (...args: readonly string[]) => {
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      [join(installRoot, 'src/cli/main.ts'), 'image', ...args, '--directory', project],
      { encoding: 'utf8', env: { ...process.env, CI: 'true', CT_HOME: options.ctHome }, cwd: directory },
    );
    return { status, stdout, stderr };
  };
  const path = join(own, 'own.lock.json');
  assert.deepEqual([ct('lock', '--check').status, existsSync(path)], [1, false]);

  const first = ct('lock');
  assert.equal(first.status, 0, first.stderr);
  assert.match(first.stderr, /own: project\/\.ct\/images\/own\.lock\.json is new, with [0-9]+ packages/);
  const text = readFileSync(path, 'utf8');
  assert.equal(text, formatLock({ ...lock, name: 'own' }));
  assert.deepEqual(ct('lock', '--check'), {
    status: 0,
    stdout: '',
    stderr: first.stderr.replace(/is new.*/, 'is up to date'),
  });

  writeFileSync(join(own, 'own.yml'), DEFINITION.replace(']', ', zip]'));
  const stale = ct('build', '--locked', 'own');
  assert.equal(stale.status, 2);
  assert.match(stale.stderr, /error\[IMAGE_LOCK_STALE\].*\n.*`ct image lock own`/);
  const check = ct('lock', '--check', 'own');
  assert.equal(check.status, 1);
  assert.match(check.stderr, /would change\n {2}\+ zip [0-9]/);
  assert.equal(readFileSync(path, 'utf8'), text);

  // A lock that is none, such as one with the marks of a merge, is made again.
  writeFileSync(path, `<<<<<<< ours\n${text}`);
  assert.equal(ct('lock', 'own').status, 0);
  assert.match(readFileSync(path, 'utf8'), /"name": "zip"/);
  assert.deepEqual(readdirSync(own).sort(), ['own.lock.json', 'own.yml']);
});

lockTest('the SBOMs are the same whoever builds, and list what belongs to no package', async () => {
  const store = new ImageStore(options.ctHome);
  const { sbom, inventory } = image.manifest;
  assert.ok(sbom && inventory);
  const cyclonedx = JSON.parse((await store.readBlob(sbom.cyclonedx)).toString('utf8'));
  const spdx = JSON.parse((await store.readBlob(sbom.spdx)).toString('utf8'));
  const files = cyclonedx.components.filter(
    ({ type, name }: { type: string; name: string }) => type === 'file' && name.startsWith('/'),
  );
  assert.ok(files.some(({ name }: { name: string }) => name === '/etc/passwd'));
  assert.ok(!files.some(({ name }: { name: string }) => name === '/usr/bin/busybox'));
  assert.equal(files.length, spdx.files.length);
  const purls = cyclonedx.components.flatMap(({ purl }: { purl?: string }) =>
    purl?.startsWith('pkg:deb/') ? [purl] : [],
  );
  assert.equal(purls.length, lock.packages.length + 1, 'and the kernel');
  const owners = (await store.readInventory(inventory)).files.filter(
    ({ owner }) => owner === 'deb:busybox-static',
  );
  assert.ok(owners.some(({ path }) => /\/bin\/busybox$/.test(path)));
});
