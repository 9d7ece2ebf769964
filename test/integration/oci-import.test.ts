/** Images from OCI layouts and docker archives: what their layers become, and that a VM starts from one. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { type ImportedImage, importImage, parseImportSource } from '../../src/image/import/import.ts';
import type { ImageManifest } from '../../src/image/manifest.ts';
import { ImageStore } from '../../src/image/store.ts';
import { testHome, testImage } from '../support/images.ts';
import { makeVmm } from '../support/machines.ts';
import { type LayoutOptions, sha256, type TarMember, tar, writeLayout } from '../support/oci-layout.ts';
import { scratchDirectory } from '../support/scratch.ts';

const scratch = scratchDirectory();
after(() => scratch[Symbol.dispose]());

const NO_BLOB = { digest: `sha256:${'0'.repeat(64)}`, sizeBytes: 1 };
/** Enough for what is not booted. */
const NO_MACHINE: Pick<ImageManifest, 'kernel' | 'initramfs'> = {
  kernel: { ...NO_BLOB, version: '0' },
  initramfs: NO_BLOB,
};

let count = 0;
function freshDirectory(): string {
  count += 1;
  const path = join(scratch.path, String(count));
  mkdirSync(path);
  return path;
}

interface Extracted {
  readonly image: ImportedImage;
  /** `stat` lines below the root: type, mode, owner, links, path, target. */
  readonly files: readonly string[];
  readonly root: string;
}

/** Imports, and has erofs-utils check and unpack the file system. */
async function importLayout(options: LayoutOptions, source?: string): Promise<Extracted> {
  const directory = freshDirectory();
  if (source === undefined) writeLayout(join(directory, 'layout'), options);
  const image = await importImage({
    source: parseImportSource(source ?? `oci:${join(directory, 'layout')}`),
    name: 'test',
    ctHome: join(directory, 'home'),
    machine: NO_MACHINE,
    allowSetuid: false,
  });
  const store = new ImageStore(join(directory, 'home'));
  const blob = await store.checkedBlobPath(image.manifest.rootfs);
  const root = join(directory, 'root');
  execFileSync('fsck.erofs', [`--extract=${root}`, '--overwrite', blob], { stdio: 'pipe' });
  const listing = execFileSync('find', [root, '-mindepth', '1', '-printf', '%y %m %U:%G %n %P %l\n'], {
    encoding: 'utf8',
  });
  return {
    image,
    root,
    files: listing
      .trim()
      .split('\n')
      .map((line) => line.trimEnd())
      .sort(),
  };
}

test('layers are applied in order, with whiteouts, opaque directories, links and owners', async () => {
  const { files, root, image } = await importLayout({
    compression: 'gzip',
    layers: [
      tar([
        { name: './', type: '5' },
        { name: 'usr/', type: '5' },
        { name: 'usr/lib/', type: '5' },
        { name: 'lib', type: '2', target: 'usr/lib' },
        { name: 'usr/lib/kept', data: 'kept' },
        { name: 'usr/lib/removed', data: 'removed' },
        { name: 'srv/opaque/old', data: 'old' },
        { name: 'srv/opaque/deep/old', data: 'old' },
        { name: 'srv/replaced/inner', data: 'inner' },
        { name: 'etc/owned', data: 'x', uid: 1234, gid: 70_000, mode: 0o640 },
      ]),
      tar([
        { name: 'usr/lib/.wh.removed' },
        { name: 'srv/opaque/new', data: 'new' },
        { name: 'srv/opaque/.wh..wh..opq' },
        { name: 'srv/replaced', data: 'a file now' },
        { name: 'lib/through-a-link', data: 'through' },
        { name: 'usr/first', data: 'linked' },
        { name: 'usr/second', type: '1', target: 'usr/first' },
      ]),
    ],
  });
  const has = (line: string): void => assert.ok(files.includes(line), `${line}\nnot in\n${files.join('\n')}`);
  has('f 644 0:0 1 usr/lib/kept');
  has('f 644 0:0 1 usr/lib/through-a-link');
  has('l 777 0:0 1 lib usr/lib');
  has('f 644 0:0 1 srv/opaque/new');
  has('f 644 0:0 1 srv/replaced');
  has('f 640 1234:70000 1 etc/owned');
  assert.ok(!files.some((line) => /removed|old|\.wh\.|inner/.test(line)), files.join('\n'));
  assert.equal(readFileSync(join(root, 'usr/second'), 'utf8'), 'linked');
  const dump = execFileSync('dump.erofs', ['--path=/usr/second', await blobPath(image, root)], {
    encoding: 'utf8',
  });
  assert.match(dump, /Links: 2/);
});

async function blobPath({ manifest }: ImportedImage, root: string): Promise<string> {
  return new ImageStore(join(root, '../home')).checkedBlobPath(manifest.rootfs);
}

test('the same layers give the same image, whatever compresses them, and files of every size survive', async () => {
  const sizes = [0, 1, 4031, 4032, 4033, 4095, 4096, 4097, 8128, 8192, 1_048_577];
  const members: TarMember[] = sizes.map((size) => ({
    name: `f/${size}`,
    data: Buffer.alloc(size, String(size)),
  }));
  // More names than one block of a directory holds.
  for (let index = 0; index < 700; index++)
    members.push({ name: `many/${'n'.repeat(90)}${index}`, data: `${index}` });
  members.push({ name: 'link', type: '2', target: 'x', pax: { linkpath: `${'t/'.repeat(2030)}e` } });
  members.push({ name: 'short', data: 'pax name', pax: { path: `p/${'q'.repeat(200)}` } });
  const layers = [tar(members)];
  const all = [];
  for (const compression of ['none', 'gzip', 'zstd'] as const)
    all.push(await importLayout({ layers, compression }));
  const [first] = all;
  assert.ok(first);
  // The manifests differ in the source's digest; file system and hash tree depend on it by the salt alone.
  for (const size of sizes) {
    assert.deepEqual(readFileSync(join(first.root, `f/${size}`)), Buffer.alloc(size, String(size)));
  }
  assert.equal(readFileSync(join(first.root, `many/${'n'.repeat(90)}699`), 'utf8'), '699');
  assert.equal(readFileSync(join(first.root, `p/${'q'.repeat(200)}`), 'utf8'), 'pax name');
  for (const { files } of all) assert.deepEqual(files, first.files);
  assert.equal((await importLayout({ layers })).image.digest, first.image.digest);
});

test('user, environment and packages come from the image; an account is added where it has none', async () => {
  const own = await importLayout({
    layers: [
      tar([
        {
          name: 'etc/passwd',
          data: 'root:x:0:0::/root:/bin/sh\nnonroot:x:65532:65532::/home/nonroot:/sbin/nologin\n',
        },
        {
          name: 'var/lib/dpkg/status.d/base',
          data: 'Package: base-files\nVersion: 12.4\nArchitecture: amd64\n',
        },
        { name: 'home/nonroot/hidden', data: 'x' },
        { name: 'etc/ssh/ssh_host_rsa_key', data: 'a key' },
      ]),
    ],
    config: {
      User: '65532',
      Env: ['PATH=/opt/bin', 'HOME=/x', 'LC=C'],
      Entrypoint: ['/app'],
      WorkingDir: '/srv',
    },
  });
  const { manifest } = own.image;
  assert.deepEqual(manifest.user, { name: 'nonroot', uid: 65_532, gid: 65_532, home: '/home/nonroot' });
  assert.deepEqual(manifest.env, { LANG: 'C.UTF-8', LC: 'C', PATH: '/opt/bin' });
  assert.deepEqual(manifest.packages, [{ name: 'base-files', version: '12.4', architecture: 'amd64' }]);
  assert.deepEqual(manifest.imported?.entrypoint, ['/app']);
  assert.ok(!own.files.some((line) => /hidden|ssh_host/.test(line)));

  const directory = freshDirectory();
  const passwd = 'dev:x:1007:1008::/home/dev:/bin/sh\nodd:x:1009:1009::/srv/odd:/bin/sh\n';
  writeLayout(join(directory, 'layout'), { layers: [tar([{ name: 'etc/passwd', data: passwd }])] });
  const importAs = (user: string) =>
    importImage({
      source: { kind: 'oci', path: join(directory, 'layout') },
      name: 'test',
      ctHome: join(directory, 'home'),
      machine: NO_MACHINE,
      user,
      allowSetuid: false,
    });
  const expected = { name: 'dev', uid: 1007, gid: 1008, home: '/home/dev' };
  assert.deepEqual((await importAs('dev')).manifest.user, expected);
  assert.deepEqual((await importAs('1007')).manifest.user, expected);
  for (const user of ['odd', 'root', '0', 'absent'])
    await assert.rejects(importAs(user), { code: 'USAGE' }, user);

  const added = await importLayout({ layers: [tar([{ name: 'app', data: 'x', mode: 0o755 }])] });
  assert.deepEqual(added.image.manifest.user, { name: 'ci', uid: 1000, gid: 1000, home: '/home/ci' });
  assert.match(
    readFileSync(join(added.root, 'etc/passwd'), 'utf8'),
    /^root:.*\nci:x:1000:1000:ci:\/home\/ci:/,
  );
});

test('set-uid files and capabilities are listed and refused, and lose their rights with --allow-setuid', async () => {
  const layers = [
    tar([
      { name: 'bin/su', data: 'x', mode: 0o4755 },
      {
        name: 'bin/ping',
        data: 'x',
        mode: 0o755,
        pax: { 'SCHILY.xattr.security.capability': '\x01\0\0\x02' },
      },
      { name: 'bin/plain', data: 'x', mode: 0o755 },
    ]),
  ];
  await assert.rejects(importLayout({ layers }), (error: Error & { code?: string }) => {
    assert.equal(error.code, 'IMAGE_IMPORT_REFUSED');
    assert.match(error.message, /bin\/su/);
    assert.match(error.message, /bin\/ping/);
    assert.doesNotMatch(error.message, /plain/);
    return true;
  });
  const directory = freshDirectory();
  writeLayout(join(directory, 'layout'), { layers });
  const image = await importImage({
    source: parseImportSource(`oci:${join(directory, 'layout')}`),
    name: 'test',
    ctHome: join(directory, 'home'),
    machine: NO_MACHINE,
    allowSetuid: true,
  });
  assert.deepEqual([...image.privileged].sort(), ['/bin/ping', '/bin/su']);
});

test('an archive of docker save is imported, by its tag', async () => {
  const layer = tar([{ name: 'app', data: 'from docker' }]);
  const config = Buffer.from(
    JSON.stringify({
      architecture: 'amd64',
      os: 'linux',
      rootfs: { type: 'layers', diff_ids: [sha256(layer)] },
    }),
  );
  const name = `${sha256(config).slice(7)}.json`;
  const manifest = [{ Config: name, RepoTags: ['app:1'], Layers: ['a/layer.tar'] }];
  const archive = tar([
    { name: 'a/layer.tar', data: layer },
    { name, data: config },
    { name: 'manifest.json', data: JSON.stringify(manifest) },
  ]);
  const path = join(freshDirectory(), 'image.tar');
  writeFileSync(path, archive);
  const { root } = await importLayout({ layers: [] }, `docker-archive:${path}:app:1`);
  assert.equal(readFileSync(join(root, 'app'), 'utf8'), 'from docker');
  await assert.rejects(importLayout({ layers: [] }, `docker-archive:${path}:app:2`), { code: 'USAGE' });
});

const noOtherUser = process.getuid?.() === 0 ? false : 'only root can run a process of another user';
test('another user without any privilege makes the same image as root', { skip: noOtherUser }, async () => {
  const directory = freshDirectory();
  for (const path of [scratch.path, directory]) chmodSync(path, 0o755);
  const layers = [tar([{ name: 'etc/owned', data: 'x', uid: 1234, gid: 70_000, mode: 0o600 }])];
  writeLayout(join(directory, 'layout'), { layers });
  const options = { name: 'test', machine: NO_MACHINE, allowSetuid: false };
  const source = { kind: 'oci', path: join(directory, 'layout') } as const;
  const own = await importImage({ ...options, source, ctHome: join(directory, 'home') });
  const home = join(directory, 'other');
  mkdirSync(home, { mode: 0o700 });
  chownSync(home, 65_534, 65_534);
  const script = `import { importImage } from '${join(installRoot, 'src/image/import/import.ts')}';
    const { digest } = await importImage(JSON.parse(process.argv[1]));
    process.stdout.write(process.getuid() + ' ' + digest);`;
  const argument = JSON.stringify({ ...options, source, ctHome: home });
  const out = execFileSync(process.execPath, ['--input-type=module', '-e', script, argument], {
    uid: 65_534,
    gid: 65_534,
    env: { PATH: process.env['PATH'] },
    cwd: '/',
    encoding: 'utf8',
  });
  assert.equal(out, `65534 ${own.digest}`);
});

test('an image of one static program, as distroless and rules_oci make them, boots and runs it', async () => {
  const directory = freshDirectory();
  writeFileSync(
    join(directory, 'app.c'),
    '#include <stdio.h>\n#include <unistd.h>\nint main(void){printf("static, as %d\\n",(int)getuid());return 7;}\n',
  );
  execFileSync('gcc', ['-static', '-O1', '-o', join(directory, 'app'), join(directory, 'app.c')]);
  writeLayout(join(directory, 'layout'), {
    layers: [tar([{ name: 'app', data: readFileSync(join(directory, 'app')), mode: 0o755 }])],
    compression: 'gzip',
    config: { Entrypoint: ['/app'] },
  });
  const store = new ImageStore(testHome);
  const machine = await store.manifest(await testImage('debian-12'));
  const { digest, manifest } = await importImage({
    source: { kind: 'oci', path: join(directory, 'layout') },
    name: 'test-static-program',
    ctHome: testHome,
    machine,
    allowSetuid: false,
  });
  await using vmm = await makeVmm({ image: digest });
  await using guest = await vmm.clone();
  let out = '';
  const result = await guest.session.exec({
    argv: [...(manifest.imported?.entrypoint ?? [])],
    env: manifest.env,
    cwd: '/workspace',
    uid: manifest.user.uid,
    gid: manifest.user.gid,
    onOutput: (_stream, bytes) => {
      out += bytes.toString('utf8');
    },
  });
  assert.equal(out, 'static, as 1000\n');
  assert.deepEqual(result, { kind: 'exited', code: 7, oomKilled: false });
});
