/**
 * Hostile images: what must not become an image of ours, nor touch a file of this machine on the way. Each has a
 * neighbour that is harmless and goes through, so that a refusal is about what it claims to be about.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { importImage, parseImportSource } from '../../src/image/import/import.ts';
import { ImageStore } from '../../src/image/store.ts';
import {
  type LayoutOptions,
  paxData,
  sha256,
  type TarMember,
  tar,
  writeLayout,
} from '../support/oci-layout.ts';
import { scratchDirectory } from '../support/scratch.ts';

const scratch = scratchDirectory();
after(() => scratch[Symbol.dispose]());

const NO_BLOB = { digest: `sha256:${'0'.repeat(64)}`, sizeBytes: 1 };
const FINE: TarMember = { name: 'fine', data: 'x' };

let count = 0;
function directory(): string {
  const path = join(scratch.path, String(++count));
  mkdirSync(path);
  return path;
}

async function importFrom(source: string, maxBytes = 64 * 1024 * 1024): Promise<string> {
  const ctHome = join(directory(), 'home');
  try {
    const { manifest } = await importImage({
      source: parseImportSource(source),
      name: 'hostile',
      ctHome,
      machine: { kernel: { ...NO_BLOB, version: '0' }, initramfs: NO_BLOB },
      allowSetuid: false,
      maxBytes,
    });
    return await new ImageStore(ctHome).checkedBlobPath(manifest.rootfs);
  } finally {
    // Whatever became of it, nothing of it is left but what is stored.
    assert.deepEqual(readdirSync(join(ctHome, 'tmp')), []);
  }
}

function layoutOf(options: LayoutOptions): string {
  const path = join(directory(), 'layout');
  writeLayout(path, options);
  return `oci:${path}`;
}

const importLayers = (...layers: readonly (readonly TarMember[])[]): Promise<string> =>
  importFrom(layoutOf({ layers: layers.map((members) => tar(members)) }));

async function refused(what: string, work: Promise<unknown>, message?: RegExp): Promise<void> {
  await assert.rejects(
    work,
    (error: Error & { code?: string }) => {
      assert.equal(error.code, 'IMAGE_IMPORT_REFUSED', `${what}: ${error.stack}`);
      if (message !== undefined) assert.match(error.message, message, what);
      return true;
    },
    what,
  );
}

test('names that lead out of the image are refused with IMAGE_IMPORT_REFUSED, in every spelling', async () => {
  for (const name of [
    '../evil',
    '/evil',
    'a/../../evil',
    './../evil',
    'a/..',
    '..',
    'a//../b',
    '/',
    'a/./../b',
  ]) {
    await refused(name, importLayers([FINE, { name, data: 'x' }]));
    await refused(`${name} as a directory`, importLayers([FINE, { name, type: '5' }]));
    await refused(`${name} by pax`, importLayers([{ ...FINE, pax: { path: name } }]));
    await refused(`${name} as a link`, importLayers([FINE, { name, type: '2', target: 'fine' }]));
    await refused(
      `${name} as the target of a hard link`,
      importLayers([FINE, { name: 'h', type: '1', target: name }]),
    );
  }
  for (const name of ['..a', 'a..', '...', './a/./b', 'a//b', '-rf', 'a b\n'])
    await importLayers([FINE, { name, data: 'x' }]);
});

test('nothing is written through links, into this machine or out of the root', async () => {
  const outside = directory();
  writeFileSync(join(outside, 'victim'), 'untouched');
  for (const target of [outside, `../../../../../../../..${outside}`]) {
    // One layer.
    await refused(
      target,
      importLayers([
        { name: 'l', type: '2', target },
        { name: 'l/victim', data: 'evil' },
      ]),
    );
    // Two: there it is a link within the image, and what it leads to is not there.
    await refused(
      target,
      importLayers([{ name: 'l', type: '2', target }], [{ name: 'l/victim', data: 'evil' }]),
    );
    await refused(target, importLayers([{ name: 'l', type: '2', target }], [{ name: 'l/.wh.victim' }]));
    await refused(target, importLayers([{ name: 'l', type: '2', target }], [{ name: 'l/.wh..wh..opq' }]));
    await refused(
      target,
      importLayers([{ name: 'l', type: '2', target }], [{ name: 'h', type: '1', target: 'l/victim' }]),
    );
  }
  await refused(
    'a hard link to a link to outside',
    importLayers([{ name: 'h', type: '1', target: `..${outside}/victim` }]),
  );
  await refused(
    'a loop',
    importLayers(
      [
        { name: 'a', type: '2', target: 'b' },
        { name: 'b', type: '2', target: 'a' },
      ],
      [{ name: 'a/x', data: 'x' }],
    ),
  );
  await refused(
    'above the root',
    importLayers([{ name: 'd/l', type: '2', target: '../..' }], [{ name: 'd/l/x', data: 'x' }]),
  );
  assert.equal(readFileSync(join(outside, 'victim'), 'utf8'), 'untouched');
  assert.deepEqual(readdirSync(outside), ['victim']);

  // A link that nobody goes through is only text; and through one of a lower layer, within the root, files arrive.
  const image = await importLayers(
    [
      { name: 'd/', type: '5' },
      { name: 'in', type: '2', target: '/d' },
      { name: 'out', type: '2', target: outside },
    ],
    [{ name: 'in/x', data: 'arrived' }],
  );
  const root = join(directory(), 'root');
  execFileSync('fsck.erofs', [`--extract=${root}`, '--overwrite', image], { stdio: 'pipe' });
  assert.equal(readFileSync(join(root, 'd/x'), 'utf8'), 'arrived');
});

test('whiteouts remove names of lower layers and nothing else', async () => {
  for (const name of ['.wh...', '.wh..', '.wh.', 'a/.wh...', '.wh..wh.plnk', '.wh.x/y', '.wh..wh..opq/x']) {
    await refused(name, importLayers([FINE], [{ name }]), /whiteout|no path/);
  }
  await refused('with contents', importLayers([FINE], [{ name: '.wh.fine', data: 'x' }]), /whiteout/);
  await refused('a link', importLayers([FINE], [{ name: '.wh.fine', type: '2', target: 'x' }]), /whiteout/);
  const opaque: TarMember = { name: 'd/.wh..wh..opq' };
  const lower: TarMember[] = [{ name: 'd/x' }, { name: 'l', type: '2', target: 'd' }];
  await refused('the same again', importLayers(lower, [opaque, opaque]), /twice/);
  await refused(
    'the same through a link',
    importLayers(lower, [opaque, { name: 'l/.wh..wh..opq' }]),
    /twice/,
  );
  await refused('the same name', importLayers([FINE], [{ name: '.wh.fine' }, { name: '.wh.fine' }]), /twice/);
  await importLayers(lower, [opaque], [opaque]);
  await importLayers([FINE], [{ name: '.wh.fine' }, { name: '.wh.absent' }, { name: 'absent/.wh..wh..opq' }]);
});

test('devices, pipes, sparse files and unknown types are refused; what lies in /dev is left out', async () => {
  for (const type of ['3', '4', '6'])
    await refused(type, importLayers([FINE, { name: 'etc/d', type }]), /no image may have/);
  for (const type of ['7', 'S', 'M', 'V', 'D', 'A', 'z'])
    await refused(type, importLayers([FINE, { name: 'x', type }]), /type/);
  await refused('sparse by pax', importLayers([{ ...FINE, pax: { 'GNU.sparse.major': '1' } }]), /sparse/);
  await importLayers([FINE, { name: 'dev/null', type: '3' }]);
});

test('an archive that two readers could read differently is refused', async () => {
  const layer = (bytes: Buffer): Promise<string> => importFrom(layoutOf({ layers: [bytes] }));
  await refused('twice the same file', importLayers([FINE, { name: 'fine', data: 'other' }]), /twice/);
  await refused('a file, then a directory', importLayers([FINE, { name: 'fine/', type: '5' }]), /twice/);
  await refused(
    'a directory with files, then a link',
    importLayers([{ name: 'd/x' }, { name: 'd', type: '2', target: '/' }]),
    /twice/,
  );
  await refused('sizes that disagree', importLayers([{ ...FINE, pax: { size: '700' } }]), /size/);
  await refused(
    'a directory with contents',
    importLayers([{ name: 'd/', type: '5', data: 'hidden entry' }]),
    /contents/,
  );
  await refused(
    'a hard link with contents',
    importLayers([FINE, { name: 'h', type: '1', target: 'fine', data: 'x' }]),
    /contents/,
  );
  await refused(
    'a global path',
    importLayers([{ name: 'g', type: 'g', data: paxData({ path: 'evil' }) }, FINE]),
    /global/,
  );
  await importLayers([{ name: 'g', type: 'g', data: paxData({ comment: 'a commit' }) }, FINE]);
  const twice = Buffer.concat([paxData({ path: 'a' }), paxData({ path: 'b' })]);
  await refused('a record twice', importLayers([{ name: 'x', type: 'x', data: twice }, FINE]), /twice/);
  for (const data of ['9 path=a', '99 path=a\n', '0 a=b\n', '-1 a=b\n', '7 path=\n', 'x', '6 =ab\n']) {
    await refused(`pax ${data}`, importLayers([{ name: 'x', type: 'x', data }, FINE]));
  }
  await refused(
    'two long names',
    importLayers([{ name: 'L', type: 'L', data: 'a\0' }, { name: 'L', type: 'L', data: 'b\0' }, FINE]),
  );
  await refused(
    'a long name and a pax name',
    importLayers([
      { name: 'L', type: 'L', data: 'a\0' },
      { ...FINE, pax: { path: 'b' } },
    ]),
  );
  await refused(
    'an extended header for nobody',
    layer(tar([FINE, { name: 'x', type: 'x', data: paxData({ path: 'a' }) }])),
  );
  await importLayers([{ name: 'L', type: 'L', data: `${'long/'.repeat(30)}name\0` }, FINE]);
  await refused('a NUL in a name', importLayers([{ ...FINE, pax: { path: 'a\0b' } }]));
  await refused(
    'bytes after the end',
    layer(Buffer.concat([tar([FINE]), tar([{ name: 'hidden' }])])),
    /follows the end/,
  );
  await layer(tar([FINE], Buffer.alloc(0))); // umoci leaves the end out
  await refused('a cut header', layer(tar([FINE, FINE]).subarray(0, 1300)));
  await refused('a cut file', layer(tar([{ name: 'a', data: Buffer.alloc(5000) }]).subarray(0, 3000)));
  await refused('a wrong checksum', layer(Buffer.concat([tar([FINE])]).fill('z', 0, 1)), /damaged/);
  for (const [what, field] of [
    ['negative', Buffer.from('ffffffffffffffffffffffff', 'hex')],
    ['huge', Buffer.from('80ffffffffffffffffffffff', 'hex')],
    ['no octal', Buffer.from('0000000008\0\0')],
    ['signed', Buffer.from('-0000000001\0')],
  ] as const) {
    await refused(`a ${what} size`, importLayers([{ name: 'a', sizeField: field }]));
  }
});

test('bombs are refused long before they are unpacked', async () => {
  const zeros = tar([{ name: 'zeros', data: Buffer.alloc(80 * 1024 * 1024) }]);
  for (const compression of ['gzip', 'zstd'] as const) {
    const source = layoutOf({ layers: [zeros], compression });
    await refused(`${compression}, by expansion`, importFrom(source, 1024 ** 3), /times its size/);
    await refused(`${compression}, by size`, importFrom(source, 10 * 1024 * 1024), /more than 10485760/);
  }
  await refused('a size that is not there', importLayers([{ name: 'a', size: 8 ** 11 - 1 }]), /more than/);
  await refused(
    'many headers',
    importFrom(
      layoutOf({ layers: [tar(Array.from({ length: 3000 }, (_, i) => ({ name: `d${i}/`, type: '5' })))] }),
      600_000,
    ),
    /unpacks to more/,
  );
  await refused('a deep tree', importLayers([{ ...FINE, pax: { path: `${'d/'.repeat(200)}x` } }]), /deeper/);
  await refused(
    'a long path',
    importLayers([{ ...FINE, pax: { path: `${'d'.repeat(250)}/`.repeat(20) } }]),
    /bytes/,
  );
  await refused('a long name', importLayers([{ ...FINE, pax: { path: 'd'.repeat(256) } }]), /bytes/);
  await refused(
    'a large extended header',
    importLayers([{ name: 'x', type: 'x', size: 3_000_000 }]),
    /extended header/,
  );
});

test('a blob with other bytes than its digest says is refused, whichever it is', async () => {
  const options: LayoutOptions = { layers: [tar([FINE])], compression: 'gzip' };
  await importFrom(layoutOf(options));
  const names = readdirSync(join(layoutOf(options).slice(4), 'blobs/sha256'));
  assert.equal(names.length, 3);
  for (const [index] of names.entries()) {
    const path = layoutOf(options).slice(4);
    const blob = join(path, 'blobs/sha256', readdirSync(join(path, 'blobs/sha256')).sort()[index] ?? '');
    const bytes = readFileSync(blob);
    bytes[bytes.length - 5] = (bytes[bytes.length - 5] ?? 0) ^ 1;
    writeFileSync(blob, bytes);
    await refused(blob, importFrom(`oci:${path}`));
  }
  await refused(
    'a wrong diff id',
    importFrom(
      layoutOf({
        ...options,
        editConfig: (config) => {
          config.rootfs.diff_ids[0] = `sha256:${'1'.repeat(64)}`;
        },
      }),
    ),
    /diff id/,
  );
  await refused(
    'too small a size',
    importFrom(
      layoutOf({
        ...options,
        editManifest: (manifest) => {
          (manifest.layers[0] as { size: number }).size -= 1;
        },
      }),
    ),
    /larger/,
  );
  await refused(
    'too large a size',
    importFrom(
      layoutOf({
        ...options,
        editManifest: (manifest) => {
          (manifest.layers[0] as { size: number }).size += 1;
        },
      }),
    ),
    /smaller/,
  );
  // Bytes behind the compressed archive are under the digest, and still no part of it.
  const packed = Buffer.concat([gzipSync(tar([FINE])), Buffer.from('trailing')]);
  const path = layoutOf(options).slice(4);
  writeLayout(path, {
    layers: [tar([FINE])],
    editManifest: (manifest) => {
      writeFileSync(join(path, 'blobs/sha256', sha256(packed).slice(7)), packed);
      Object.assign(manifest.layers[0] as object, {
        mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip',
        digest: sha256(packed),
        size: packed.length,
      });
    },
  });
  await importFrom(`oci:${path}`).catch((error) => assert.equal(error.code, 'IMAGE_IMPORT_REFUSED'));
});

test('documents of the wrong kind, and layers that lie elsewhere, are refused', async () => {
  const layers = [tar([FINE])];
  const manifest = (edit: NonNullable<LayoutOptions['editManifest']>): Promise<string> =>
    importFrom(layoutOf({ layers, editManifest: edit }));
  const index = (edit: NonNullable<LayoutOptions['editIndex']>): Promise<string> =>
    importFrom(layoutOf({ layers, editIndex: edit }));
  const config = (edit: NonNullable<LayoutOptions['editConfig']>): Promise<string> =>
    importFrom(layoutOf({ layers, editConfig: edit }));
  const layer = (fields: object): Promise<string> =>
    manifest(({ layers: [first] }) => void Object.assign(first as object, fields));
  await refused(
    'foreign',
    layer({ mediaType: 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip' }),
    /media type/,
  );
  await refused(
    'nondistributable',
    layer({ mediaType: 'application/vnd.oci.image.layer.nondistributable.v1.tar' }),
    /media type/,
  );
  await refused('URLs', layer({ urls: ['https://elsewhere.test/layer'] }), /URLs/);
  await refused('a type of an object', layer({ mediaType: 'constructor' }), /media type/);
  await refused('another algorithm', layer({ digest: `sha512:${'0'.repeat(128)}` }), /SHA-256/);
  await refused('a digest that is a path', layer({ digest: 'sha256:../../../../etc/passwd' }), /SHA-256/);
  await refused('no size', layer({ size: '5' }), /size/);
  await refused(
    'gzip called tar',
    importFrom(
      layoutOf({
        layers,
        compression: 'gzip',
        editManifest: ({ layers: [first] }) =>
          void Object.assign(first as object, { mediaType: 'application/vnd.oci.image.layer.v1.tar' }),
      }),
    ),
  );
  await refused(
    'tar called zstd',
    layer({ mediaType: 'application/vnd.oci.image.layer.v1.tar+zstd' }),
    /damaged/,
  );
  await refused(
    'an index that is a manifest',
    manifest((document) => {
      document['manifests'] = [];
    }),
    /at once/,
  );
  await refused(
    'another media type inside',
    manifest((document) => {
      document.mediaType = 'application/vnd.oci.image.index.v1+json';
    }),
    /says that it is/,
  );
  await refused(
    'an artifact',
    manifest((document) => {
      document.config['mediaType'] = 'application/vnd.oci.empty.v1+json';
    }),
    /artifact/,
  );
  await refused(
    'a layer too many',
    manifest(
      (document) => void document.layers.push(document.layers[0] as object as Record<string, unknown>),
    ),
    /numbers of layers/,
  );
  await refused(
    'schema 1',
    manifest((document) => {
      document['schemaVersion'] = 1;
    }),
    /schema version/,
  );
  await refused(
    'another architecture',
    config((document) => {
      document['architecture'] = 'arm64';
    }),
    /linux\/amd64/,
  );
  await refused(
    'another platform',
    index(({ manifests: [first] }) => {
      (first as { platform?: object }).platform = { os: 'windows', architecture: 'amd64' };
    }),
    /linux\/amd64/,
  );
  await refused(
    'an unknown type',
    index(({ manifests: [first] }) => {
      (first as { mediaType: string }).mediaType = 'text/html';
    }),
    /no image/,
  );
  await refused(
    'a variable without a name',
    config((document) => {
      document['config'] = { Env: ['=x'] };
    }),
    /no name/,
  );
  await refused(
    'an endless index',
    index(
      ({ manifests }) =>
        void manifests.push(...Array.from({ length: 2000 }, () => manifests[0] as Record<string, unknown>)),
    ),
    /more than/,
  );

  const large = layoutOf({ layers }).slice(4);
  writeFileSync(join(large, 'index.json'), Buffer.alloc(5 * 1024 * 1024, ' '));
  await refused('a large index', importFrom(`oci:${large}`), /too large/);
  const pipe = layoutOf({ layers }).slice(4);
  execFileSync('rm', [join(pipe, 'index.json')]);
  execFileSync('mkfifo', [join(pipe, 'index.json')]);
  await refused('a pipe', importFrom(`oci:${pipe}`), /no file/);
  // Files of this machine: what they say is in no message.
  const secret = layoutOf({ layers }).slice(4);
  writeFileSync(join(secret, 'secret'), 'the-secret-of-this-machine');
  execFileSync('rm', [join(secret, 'index.json')]);
  symlinkSync(join(secret, 'secret'), join(secret, 'index.json'));
  await assert.rejects(
    importFrom(`oci:${secret}`),
    (error: Error) => !JSON.stringify([error.message, String(error.cause)]).includes('the-secret'),
  );
});

test('a docker archive with names that lead elsewhere is refused', async () => {
  const archive = (config: string, layer: string, extra: readonly TarMember[] = []): string => {
    const path = join(directory(), 'archive.tar');
    writeFileSync(
      path,
      tar([
        {
          name: 'manifest.json',
          data: JSON.stringify([{ Config: config, RepoTags: null, Layers: [layer] }]),
        },
        ...extra,
      ]),
    );
    return `docker-archive:${path}`;
  };
  await refused(
    'a path of this machine',
    importFrom(archive('/etc/passwd', '../../etc/passwd')),
    /not in the archive/,
  );
  await refused(
    'a name that is not the digest',
    importFrom(archive(`${'0'.repeat(64)}.json`, 'l', [{ name: `${'0'.repeat(64)}.json`, data: '{}' }])),
    /digest/,
  );
  await refused('a member twice', importFrom(archive('c', 'l', [{ name: 'c' }, { name: 'c' }])), /twice/);
  await refused(
    'a link out of it',
    importFrom(archive('c', 'l', [{ name: 'c', type: '2', target: '/etc/passwd' }])),
    /not in the archive/,
  );
});

test('a failed import leaves the image that had the name', async () => {
  const ctHome = join(directory(), 'home');
  const run = (source: string) =>
    importImage({
      source: parseImportSource(source),
      name: 'kept',
      ctHome,
      machine: { kernel: { ...NO_BLOB, version: '0' }, initramfs: NO_BLOB },
      allowSetuid: false,
    });
  const { digest } = await run(layoutOf({ layers: [tar([FINE])] }));
  await assert.rejects(run(layoutOf({ layers: [tar([{ name: '../x' }])] })));
  assert.equal((await new ImageStore(ctHome).find('kept'))?.digest, digest);
  assert.ok(existsSync(join(ctHome, 'images/kept.json')));
});

test('set-uid files of lower layers count as long as they are there', async () => {
  const su: TarMember = { name: 'bin/su', data: 'x', mode: 0o4755 };
  await refused('set-uid', importLayers([su]), /bin\/su/);
  await refused(
    'a hard link to it',
    importLayers([su, { name: 'innocent', type: '1', target: 'bin/su' }]),
    /innocent/,
  );
  await refused('set-gid', importLayers([{ ...su, mode: 0o2755 }]), /bin\/su/);
  await importLayers([su], [{ name: 'bin/.wh.su' }]);
  await importLayers([su], [{ name: 'bin/su', data: 'x', mode: 0o755 }]);
});

// Keeps the compressors honest: what they pack is what the tests above import.
test('archives of the test itself are read back', () => {
  assert.ok(
    zstdCompressSync(tar([FINE])).length > 0 &&
      execFileSync('tar', ['-t'], { input: tar([FINE]) }).toString() === 'fine\n',
  );
});
