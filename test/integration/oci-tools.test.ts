/** What other people's tools make is imported: umoci, skopeo; and the Packer template is one that Packer accepts. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { type ImportedImage, importImage, parseImportSource } from '../../src/image/import/import.ts';
import { ImageStore } from '../../src/image/store.ts';
import { scratchDirectory } from '../support/scratch.ts';

const scratch = scratchDirectory();
after(() => scratch[Symbol.dispose]());

const NO_BLOB = { digest: `sha256:${'0'.repeat(64)}`, sizeBytes: 1 };

/** For `skip` of a test. */
function without(...programs: readonly string[]): string | false {
  const missing = programs.filter((program) => spawnSync(program, ['--version']).error !== undefined);
  return missing.length === 0 ? false : `not installed: ${missing.join(', ')}`;
}

let count = 0;
async function importAndUnpack(source: string): Promise<{ image: ImportedImage; root: string }> {
  const at = join(scratch.path, String(++count));
  mkdirSync(at);
  const image = await importImage({
    source: parseImportSource(source),
    name: 'test',
    ctHome: join(at, 'home'),
    machine: { kernel: { ...NO_BLOB, version: '0' }, initramfs: NO_BLOB },
    allowSetuid: false,
  });
  const blob = await new ImageStore(join(at, 'home')).checkedBlobPath(image.manifest.rootfs);
  const root = join(at, 'root');
  execFileSync('fsck.erofs', [`--extract=${root}`, '--overwrite', blob], { stdio: 'pipe' });
  return { image, root };
}

/** A layout of three layers with a whiteout, made by umoci. */
function umociLayout(): string {
  const at = join(scratch.path, `umoci-${++count}`);
  const tree = join(at, 'tree');
  mkdirSync(join(tree, 'bin'), { recursive: true });
  writeFileSync(join(tree, 'bin/app'), 'app', { mode: 0o755 });
  writeFileSync(join(tree, 'bin/gone'), 'gone');
  symlinkSync('app', join(tree, 'bin/link'));
  writeFileSync(join(at, 'extra'), 'extra');
  const layout = join(at, 'layout');
  const umoci = (...args: readonly string[]): void => void execFileSync('umoci', args, { stdio: 'pipe' });
  umoci('init', '--layout', layout);
  umoci('new', '--image', `${layout}:v1`);
  umoci('insert', '--image', `${layout}:v1`, tree, '/opt');
  umoci('insert', '--image', `${layout}:v1`, join(at, 'extra'), '/opt/extra');
  umoci('insert', '--image', `${layout}:v1`, '--whiteout', '/opt/bin/gone');
  umoci('config', '--image', `${layout}:v1`, '--config.env', 'A=b', '--config.entrypoint', '/opt/bin/app');
  return layout;
}

function check({ image, root }: { image: ImportedImage; root: string }): void {
  assert.equal(readFileSync(join(root, 'opt/bin/link'), 'utf8'), 'app');
  assert.equal(readFileSync(join(root, 'opt/extra'), 'utf8'), 'extra');
  assert.throws(() => readFileSync(join(root, 'opt/bin/gone')));
  assert.equal(image.manifest.env['A'], 'b');
  assert.deepEqual(image.manifest.imported?.entrypoint, ['/opt/bin/app']);
}

test('a layout that umoci made is imported', { skip: without('umoci') }, async () => {
  check(await importAndUnpack(`oci:${umociLayout()}:v1`));
});

test('what skopeo makes of it is the same, as docker archive and with zstd', {
  skip: without('umoci', 'skopeo'),
}, async () => {
  const layout = umociLayout();
  const at = join(scratch.path, 'skopeo');
  mkdirSync(at);
  const skopeo = (...args: readonly string[]): void =>
    void execFileSync('skopeo', ['--insecure-policy', 'copy', '--quiet', ...args], { stdio: 'pipe' });
  skopeo(`oci:${layout}:v1`, `docker-archive:${join(at, 'image.tar')}:registry.test/app:v1`);
  check(await importAndUnpack(`docker-archive:${join(at, 'image.tar')}:registry.test/app:v1`));
  skopeo(
    '--dest-compress-format',
    'zstd',
    '--dest-compress',
    `oci:${layout}:v1`,
    `oci:${join(at, 'zstd')}:v2`,
  );
  check(await importAndUnpack(`oci:${join(at, 'zstd')}:v2`));
});

test('Packer accepts the template', { skip: without('packer') }, () => {
  const base = join(scratch.path, 'base.qcow2');
  writeFileSync(base, '');
  const variables = ['-var', `base=${base}`, '-var', 'base_checksum=none', '-var', 'name=x'];
  execFileSync('packer', ['validate', ...variables, 'image.pkr.hcl'], {
    cwd: join(installRoot, 'deploy/packer'),
    stdio: 'pipe',
    env: { PATH: process.env['PATH'], HOME: scratch.path, CHECKPOINT_DISABLE: '1' },
  });
});
