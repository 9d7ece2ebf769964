/**
 * Builds a small image for real, from the apt sources of this machine, and looks at everything that is in it. As root
 * or not: both must give the same bytes.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { type BuildOptions, type BuiltImage, buildImage, currentImage } from '../../src/image/build.ts';
import type { BuildProgress } from '../../src/image/progress.ts';
import { findSources } from '../../src/image/sources.ts';
import { ImageStore } from '../../src/image/store.ts';
import { PROGRAM_PATH } from '../../src/image/supervised.ts';

const DEFINITION = `
version: 1
suite: bookworm
packages: [busybox-static]
user: { name: tester, uid: 1234 }
env: { COLOUR: blue }
`;

let skip: string | undefined;
let directory: string;
let options: BuildOptions;
let image: BuiltImage;
const events: BuildProgress[] = [];

before(async () => {
  // On a file system that is not memory: the store is most of what a build writes.
  directory = mkdtempSync('/var/tmp/ct-image-build-');
  const definitions = join(directory, 'images');
  mkdirSync(definitions);
  writeFileSync(join(definitions, 'tiny.yml'), DEFINITION);
  writeFileSync(join(definitions, 'wrong.yml'), `${DEFINITION.replace('busybox-static', 'no-such-package')}`);
  for (const name of ['agent', 'probe']) copyFileSync('/bin/true', join(directory, name));
  options = {
    name: 'tiny',
    definitionDirs: [definitions],
    ctHome: join(directory, 'home'),
    guestAgentPath: join(directory, 'agent'),
    probePath: join(directory, 'probe'),
    progress: (event) => events.push(event),
  };
  try {
    await findSources('bookworm', { env: process.env });
    image = await buildImage(options);
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    if (code !== 'IMAGE_SOURCES_MISSING' && code !== 'REQUIREMENT_MISSING') throw error;
    skip = `images cannot be built here: ${message}`;
  }
});

after(() => rmSync(directory, { recursive: true, force: true }));

/** A test that needs the image. */
function imageTest(name: string, body: () => void | Promise<void>): void {
  test(name, async (t) => {
    if (skip !== undefined) return t.skip(skip);
    await body();
  });
}

function run(file: string, ...args: readonly string[]): string {
  return execFileSync(file, args, {
    encoding: 'utf8',
    env: { PATH: PROGRAM_PATH, LC_ALL: 'C' },
    stdio: 'pipe',
  });
}

function blobPath(digest: string): string {
  return join(options.ctHome, 'blobs/sha256', digest.slice('sha256:'.length));
}

/** Everything that a build may leave behind besides the store. */
function leftovers(): readonly string[] {
  return ['/dev/shm', '/var/tmp', '/tmp', join(options.ctHome, 'tmp')].flatMap((place) =>
    readdirSync(place).filter(
      (name) => place.startsWith(directory) || name.startsWith(`ct-image-${owner()}-`),
    ),
  );
}

function owner(): string {
  return run('sh', '-c', 'printf %s "$1" | sha256sum | cut -c1-12', 'sh', options.ctHome).trim();
}

imageTest('the root file system is sound, and its hash tree has the root hash of the manifest', () => {
  const { digest, verity } = image.manifest.rootfs;
  const path = blobPath(digest);
  run('fsck.erofs', path);
  assert.match(run('dump.erofs', path), /Filesystem created:.*2025/);
  const verify = (file: string): string =>
    run(
      'veritysetup',
      'verify',
      '--no-superblock',
      `--hash=${verity.algorithm}`,
      `--data-blocks=${verity.dataBlocks}`,
      `--hash-offset=${verity.hashStartBlock * verity.blockBytes}`,
      `--salt=${verity.salt}`,
      file,
      file,
      verity.rootHash,
    );
  verify(path);

  const tampered = join(directory, 'tampered');
  copyFileSync(path, tampered);
  chmodSync(tampered, 0o600);
  const bytes = readFileSync(tampered);
  const at = verity.dataBlocks * verity.blockBytes - 1;
  bytes[at] = (bytes[at] ?? 0) ^ 1;
  writeFileSync(tampered, bytes);
  assert.throws(() => verify(tampered), /Command failed/);
  rmSync(tampered);
});

interface Entry {
  readonly path: string;
  readonly mode: number;
  readonly uid: number;
  readonly isFile: boolean;
  readonly isLink: boolean;
}

function listTree(root: string, below = ''): Entry[] {
  return readdirSync(join(root, below)).flatMap((name) => {
    const path = join(below, name);
    const stats = lstatSync(join(root, path));
    const entry = {
      path,
      mode: stats.mode,
      uid: stats.uid,
      isFile: stats.isFile(),
      isLink: stats.isSymbolicLink(),
    };
    return stats.isDirectory() ? [entry, ...listTree(root, path)] : [entry];
  });
}

imageTest('nothing is in the image that its definition did not ask for', () => {
  const root = join(directory, 'tree');
  run(
    'fsck.erofs',
    `--extract=${root}`,
    '--overwrite',
    '--preserve-perms',
    blobPath(image.manifest.rootfs.digest),
  );
  const entries = listTree(root);
  const paths = entries.map(({ path }) => path);
  const matching = (pattern: RegExp): string[] => paths.filter((path) => pattern.test(path));

  assert.deepEqual(
    entries.filter(({ isFile, mode }) => isFile && (mode & 0o6000) !== 0).map(({ path }) => path),
    [],
    'no set-uid or set-gid programs',
  );
  assert.deepEqual(
    entries.filter(({ isLink, mode }) => !isLink && (mode & 0o002) !== 0).map(({ path }) => path),
    ['tmp', 'var/tmp'],
    'writable by all',
  );
  if (process.getuid?.() === 0) {
    assert.deepEqual(
      entries.filter(({ uid }) => uid !== 0).map(({ path }) => path),
      [],
      'not of root',
    );
  }
  assert.deepEqual(
    entries
      .filter(({ mode }) => ![0o100000, 0o040000, 0o120000].includes(mode & 0o170000))
      .map(({ path }) => path),
    [],
    'devices, pipes and sockets',
  );
  for (const name of ['proc', 'sys', 'dev', 'run', 'tmp', 'var/tmp', 'home', 'workspace']) {
    assert.deepEqual(readdirSync(join(root, name)), [], `${name} is an empty mount point`);
  }
  for (const name of ['etc/hostname', 'etc/machine-id', 'etc/hosts', 'etc/resolv.conf']) {
    const stats = lstatSync(join(root, name));
    assert.ok(stats.isFile() && stats.size === 0, `${name} is an empty file`);
  }
  // No apt in this image, so nothing of apt; no leftovers of a build, a log, a key or an identity.
  assert.deepEqual(matching(/^(etc|var\/lib|var\/cache)\/apt/), []);
  assert.deepEqual(matching(/\.(deb|dpkg-(new|old|tmp|dist)|old|pid)$/), []);
  assert.deepEqual(matching(/^etc\/(passwd|group|shadow|gshadow|subuid|subgid)-$/), []);
  assert.deepEqual(matching(/-old$/), []);
  assert.deepEqual(matching(/ssh_host_|random-seed|\.gnupg|^root\/\.(ssh|cache)|^\.ct/), []);
  assert.deepEqual(matching(/^etc\/dpkg\/dpkg\.cfg\.d\/./), []);
  assert.deepEqual(matching(/policy-rc\.d$|start-stop-daemon\.REAL$/), [], 'of mmdebstrap');
  assert.equal(readFileSync(join(root, 'usr/sbin/start-stop-daemon')).subarray(1, 4).toString(), 'ELF');
  assert.deepEqual(
    entries.filter(({ path, isFile }) => isFile && path.startsWith('var/log/')),
    [],
  );
  assert.deepEqual(matching(/^usr\/share\/(man|info|lintian|locale)\/(?!locale\.alias$)/), []);
  assert.deepEqual(
    entries.filter(
      ({ path, isFile }) => isFile && path.startsWith('usr/share/doc/') && !path.endsWith('/copyright'),
    ),
    [],
  );
  assert.ok(paths.includes('usr/bin/busybox') || paths.includes('bin/busybox'));

  const passwd = readFileSync(join(root, 'etc/passwd'), 'utf8');
  assert.match(passwd, /^tester:[x*]:1234:1234:tester:\/home\/tester:\/bin\/bash$/m);
  assert.match(readFileSync(join(root, 'etc/group'), 'utf8'), /^tester:x:1234:$/m);
  for (const file of ['passwd', 'shadow']
    .map((name) => join(root, 'etc', name))
    .filter((path) => existsSync(path))) {
    assert.doesNotMatch(readFileSync(file, 'utf8'), /^[^:]+:(?:|\$[^:]*):/m, 'no password, empty or set');
  }
});

imageTest('no address of a mirror is in the configuration or the package database of the image', async () => {
  const { text } = await findSources('bookworm', { env: process.env });
  const hosts = [...text.matchAll(/:\/\/([^/\s:]+)/g)]
    .map(([, host = '']) => host)
    .filter((host) => host !== '');
  const root = join(directory, 'tree');
  for (const { path, isFile } of listTree(root)) {
    if (!isFile || !/^(etc|var)\//.test(path)) continue;
    const contents = readFileSync(join(root, path), 'latin1');
    for (const host of hosts) {
      // Packages may name the project's own hosts in their descriptions and home pages.
      const naming = contents
        .split('\n')
        .filter((line) => line.includes(host) && !/^(Homepage|Maintainer| )/.test(line));
      assert.deepEqual(naming, [], `${path} names ${host}`);
    }
  }
});

imageTest('the manifest says what is inside', async () => {
  const { manifest } = image;
  assert.deepEqual(manifest.user, { name: 'tester', uid: 1234, gid: 1234, home: '/home/tester' });
  assert.deepEqual(manifest.env, { COLOUR: 'blue', LANG: 'C.UTF-8', PATH: '/usr/local/bin:/usr/bin:/bin' });
  assert.match(manifest.kernel.version, /-cloud-amd64$/);
  const status = readFileSync(join(directory, 'tree/var/lib/dpkg/status'), 'utf8');
  const installed = [...status.matchAll(/^Package: (.*)$[\s\S]*?^Version: (.*)$/gm)].map(
    ([, name, version]) => `${name} ${version}`,
  );
  assert.deepEqual(
    installed.sort(),
    manifest.packages.map(({ name, version }) => `${name} ${version}`).sort(),
  );
  await new ImageStore(options.ctHome).verifyImage(manifest);
});

imageTest('the initramfs is an archive with the programs and the modules in load order', () => {
  const archive = readFileSync(blobPath(image.manifest.initramfs.digest));
  // cpio(1) may be absent: the names are all that matters here, the format has a test of its own.
  const names = [...archive.toString('latin1').matchAll(/070701[0-9a-f]{104}([^\0]+)\0/g)].map(([, name]) =>
    String(name),
  );
  assert.deepEqual(names.slice(0, 7), ['dev', 'proc', 'sys', 'newroot', 'init', 'probe', 'TRAILER!!!']);
  const modules = names
    .filter((name) => name.endsWith('.ko'))
    .map((name) => name.replace(/^modules\/[0-9]{2}-/, ''));
  const position = (name: string): number => {
    const index = modules.indexOf(`${name}.ko`);
    assert.notEqual(index, -1, `${name} is missing`);
    return index;
  };
  assert.ok(position('virtio') < position('virtio_blk'));
  assert.ok(position('dm_mod') < position('dm_verity'));
  assert.ok(position('adiantum') < position('dm_crypt'));
  for (const name of ['virtio_mmio', 'virtio_console', 'vmw_vsock_virtio_transport', 'erofs', 'xts'])
    position(name);
});

imageTest('progress went through the phases, and nothing is left behind', () => {
  const phases = new Set(events.map(({ phase }) => phase));
  for (const phase of [
    'resolving',
    'downloading',
    'unpacking',
    'configuring',
    'cleaning',
    'filesystem',
    'storing',
  ] as const) {
    assert.ok(phases.has(phase), `no event of ${phase}`);
  }
  assert.ok(events.every(({ fraction }) => fraction === undefined || (fraction >= 0 && fraction <= 1)));
  assert.deepEqual(leftovers(), []);
});

imageTest('a current image is not built again, and needs no apt', async () => {
  events.length = 0;
  assert.deepEqual(await currentImage(options), image);
  assert.deepEqual(await buildImage(options), image);
  assert.deepEqual(events, []);
});

imageTest('another guest agent makes another initramfs and nothing else', async () => {
  events.length = 0;
  const agent = join(directory, 'agent2');
  copyFileSync('/bin/false', agent);
  const other = await buildImage({ ...options, guestAgentPath: agent });
  assert.notEqual(other.digest, image.digest);
  const { initramfs, sbom } = other.manifest;
  assert.ok(
    initramfs.digest !== image.manifest.initramfs.digest &&
      sbom?.spdx.digest !== image.manifest.sbom?.spdx.digest,
  );
  assert.deepEqual(other.manifest, { ...image.manifest, initramfs, sbom });
  assert.deepEqual([...new Set(events.map(({ phase }) => phase))], ['storing']);
});

imageTest('two builds at once give the same bytes again, and only one of them builds', async () => {
  events.length = 0;
  const [first, second] = await Promise.all([
    buildImage({ ...options, force: true }),
    buildImage({ ...options, force: true }),
  ]);
  assert.equal(first.digest, image.digest);
  assert.equal(second.digest, image.digest);
  assert.equal(events.filter(({ phase }) => phase === 'waiting').length, 1);
  assert.equal(events.filter(({ phase }) => phase === 'cleaning').length, 1);
  assert.equal(events.filter(({ phase }) => phase === 'downloading').length, 0, 'packages are fetched once');
});

imageTest('a damaged package in the cache is fetched again', async () => {
  events.length = 0;
  const archives = join(options.ctHome, 'cache/apt/archives');
  const name = readdirSync(archives).find((file) => file.startsWith('busybox-static_')) ?? assert.fail();
  const intact = readFileSync(join(archives, name));
  rmSync(join(archives, name));
  writeFileSync(
    join(archives, name),
    Buffer.concat([intact.subarray(0, 1000), Buffer.alloc(intact.length - 1000)]),
  );
  assert.equal((await buildImage({ ...options, force: true })).digest, image.digest);
  assert.ok(events.some(({ message }) => message === 'downloading 1 package'));
  assert.deepEqual(readFileSync(join(archives, name)), intact);
});

imageTest('a package that does not exist is IMAGE_DEFINITION_INVALID, with its name', async () => {
  await assert.rejects(buildImage({ ...options, name: 'wrong' }), {
    code: 'IMAGE_DEFINITION_INVALID',
    message: /no-such-package/,
  });
  assert.deepEqual(leftovers(), []);
});

test('a build that runs out of space is STORE_FULL, and leaves nothing behind', async (t) => {
  if (skip !== undefined) return t.skip(skip);
  if (process.getuid?.() !== 0) return t.skip('only root can mount a small file system');
  const small = join(directory, 'small');
  mkdirSync(small);
  run('mount', '-t', 'tmpfs', '-o', 'size=64m,mode=0700', 'ct-test', small);
  using cleanup = new DisposableStack();
  cleanup.defer(() => run('umount', small));
  await assert.rejects(buildImage({ ...options, force: true, tmpDir: small }), { code: 'STORE_FULL' });
  assert.deepEqual(readdirSync(small), []);
  assert.deepEqual(leftovers(), []);
  assert.deepEqual(await currentImage(options), image, 'the image is as it was');
});

imageTest('an aborted build is CANCELLED, and leaves no process and no file', async () => {
  const abort = new AbortController();
  const building = buildImage({
    ...options,
    force: true,
    signal: abort.signal,
    progress: (event) => event.phase === 'configuring' && abort.abort(),
  });
  await assert.rejects(building, { code: 'CANCELLED' });
  assert.deepEqual(leftovers(), []);
  assert.doesNotMatch(run('ps', '-eo', 'args'), new RegExp(`ct-image-${owner()}`));
  assert.deepEqual(await currentImage(options), image, 'the image is as it was');
});

test('without any source the error names CT_APT_SOURCES and apt-get update', async () => {
  await assert.rejects(findSources('no-such-suite', { env: {} }), {
    code: 'IMAGE_SOURCES_MISSING',
    hint: /apt-get update.*CT_APT_SOURCES/,
  });
});
