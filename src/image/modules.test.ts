import assert from 'node:assert/strict';
import { test } from 'node:test';
import { loadOrder, type ModuleInfo, moduleName, readModuleInfo } from './modules.ts';

function lookupOf(graph: Readonly<Record<string, readonly string[]>>) {
  return (name: string): ModuleInfo | undefined =>
    graph[name] === undefined ? undefined : { name, depends: graph[name] };
}

test('modules come after what they depend on, and otherwise in the order asked for', () => {
  const lookup = lookupOf({
    virtio: [],
    virtio_ring: [],
    virtio_mmio: ['virtio_ring', 'virtio'],
    virtio_blk: ['virtio', 'virtio_ring'],
    dm_mod: [],
    dm_bufio: ['dm_mod'],
    dm_verity: ['dm_bufio', 'dm_mod'],
  });
  assert.deepEqual(loadOrder(['virtio_mmio', 'virtio-blk', 'dm-verity'], lookup), [
    'virtio_ring',
    'virtio',
    'virtio_mmio',
    'virtio_blk',
    'dm_mod',
    'dm_bufio',
    'dm_verity',
  ]);
});

test('a dependency that is built into the kernel is left out', () => {
  assert.deepEqual(loadOrder(['erofs'], lookupOf({ erofs: ['libcrc32c'] })), ['erofs']);
});

test('a wanted module that does not exist is IMAGE_BUILD_FAILED', () => {
  assert.throws(() => loadOrder(['erofs'], lookupOf({})), { code: 'IMAGE_BUILD_FAILED', message: /erofs/ });
});

test('a circle is IMAGE_BUILD_FAILED', () => {
  assert.throws(() => loadOrder(['a'], lookupOf({ a: ['b'], b: ['a'] })), { code: 'IMAGE_BUILD_FAILED' });
});

test('names are those of files, with underscores', () => {
  assert.equal(moduleName('kernel/drivers/md/dm-mod.ko'), 'dm_mod');
});

test('dependencies are read from the .modinfo section', () => {
  assert.deepEqual(
    readModuleInfo('dm-verity.ko', elfWith('license=GPL\0depends=dm-bufio,dm-mod\0name=dm_verity\0')),
    {
      name: 'dm_verity',
      depends: ['dm_bufio', 'dm_mod'],
    },
  );
  assert.deepEqual(readModuleInfo('x.ko', elfWith('depends=\0')).depends, []);
});

test('a file that is no module is IMAGE_BUILD_FAILED', () => {
  assert.throws(() => readModuleInfo('x.ko', Buffer.from('not ELF')), { code: 'IMAGE_BUILD_FAILED' });
  assert.throws(() => readModuleInfo('x.ko', elfWith('', '.text')), { code: 'IMAGE_BUILD_FAILED' });
});

/** A little-endian ELF64 file with the sections: none, the names, and one with `text`. */
function elfWith(text: string, name = '.modinfo'): Buffer {
  const names = Buffer.from(`\0.shstrtab\0${name}\0`);
  const body = Buffer.from(text, 'latin1');
  const header = Buffer.alloc(64);
  header.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  header.writeBigUInt64LE(BigInt(64 + names.length + body.length), 40);
  header.writeUInt16LE(64, 58);
  header.writeUInt16LE(3, 60);
  header.writeUInt16LE(1, 62);
  const section = (nameAt: number, offset: number, size: number): Buffer => {
    const bytes = Buffer.alloc(64);
    bytes.writeUInt32LE(nameAt, 0);
    bytes.writeBigUInt64LE(BigInt(offset), 24);
    bytes.writeBigUInt64LE(BigInt(size), 32);
    return bytes;
  };
  return Buffer.concat([
    header,
    names,
    body,
    section(0, 0, 0),
    section(1, 64, names.length),
    section(11, 64 + names.length, body.length),
  ]);
}
