import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ImageHolds } from './definition.ts';
import { type Inventory, type InventoryFile, takeInventory, unaccounted } from './inventory.ts';
import { parseTree, type Tree } from './tree.ts';

const NOTHING: ImageHolds = { setuid: [], writable: [], keys: [] };
const HASH = 'a'.repeat(64);

function file(path: string, more: Partial<InventoryFile> = {}): InventoryFile {
  return { path, type: 'file', mode: 0o644, uid: 0, gid: 0, sizeBytes: 3, sha256: HASH, ...more };
}

function problems(
  files: readonly InventoryFile[],
  more: {
    keys?: readonly string[];
    holds?: Partial<ImageHolds>;
    packages?: readonly string[];
    npm?: readonly string[];
  } = {},
): readonly string[] {
  const inventory: Inventory = { schemaVersion: 1, packages: [], npm: [], files };
  return unaccounted(inventory, more.keys ?? [], {
    holds: { ...NOTHING, ...more.holds },
    packages: more.packages ?? [],
    npm: (more.npm ?? []).map((name) => ({ name, version: '1.0.0', integrity: '' })),
  });
}

test('an ordinary tree is accounted for', () => {
  const files = [
    file('/etc/passwd'),
    file('/etc/ssl/certs/root.pem', { owner: 'deb:ca-certificates' }),
    file('/tmp', { type: 'directory', mode: 0o1777 }),
    file('/usr/bin/git', { mode: 0o755, owner: 'deb:git' }),
    file('/usr/bin/awk', { type: 'link', mode: 0o777, target: '/etc/alternatives/awk' }),
    file('/var/mail', { type: 'directory', mode: 0o2775, gid: 8 }),
    file('/var/cache/debconf/config.dat'),
    file('/etc/ssh/ssh_host_rsa_key', { sizeBytes: 0 }),
  ];
  assert.deepEqual(problems(files), []);
});

test('programs with more rights than their user are named unless the definition lists them, and must then be there', () => {
  const files = [
    file('/usr/bin/su', { mode: 0o4755, owner: 'deb:util-linux' }),
    file('/usr/bin/wall', { mode: 0o2755 }),
  ];
  assert.deepEqual(problems(files), [
    '/usr/bin/su (of util-linux): set-uid or set-gid',
    '/usr/bin/wall: set-uid or set-gid',
  ]);
  assert.deepEqual(problems(files, { holds: { setuid: ['/usr/bin/su', '/usr/bin/wall'] } }), []);
  assert.deepEqual(problems([file('/usr/bin/su')], { holds: { setuid: ['/usr/bin/su'] } }), [
    '/usr/bin/su: listed as `setuid`, and is not there',
  ]);
});

test('what everybody may write is named, and devices are', () => {
  const files = [
    file('/srv/drop', { type: 'directory', mode: 0o777 }),
    file('/etc/x', { mode: 0o666 }),
    file('/var/spool/pipe', { type: 'other', mode: 0o600 }),
  ];
  assert.deepEqual(problems(files), [
    '/etc/x: everybody may write it',
    '/srv/drop: everybody may write it',
    '/var/spool/pipe: a device, pipe or socket',
  ]);
  assert.deepEqual(problems(files.slice(0, 2), { holds: { writable: ['/srv/drop', '/etc/x'] } }), []);
});

test('private keys are named by what is in them and by where they are', () => {
  const files = [
    file('/usr/share/doc/example.pem'),
    file('/etc/ssh/ssh_host_ed25519_key'),
    file('/etc/ssl/private/ssl-cert-snakeoil.key'),
    file('/root/.ssh/id_rsa'),
  ];
  const keys = ['/usr/share/doc/example.pem'];
  assert.deepEqual(
    problems(files, { keys }).map((line) => line.split(':')[0]),
    [
      '/etc/ssh/ssh_host_ed25519_key',
      '/etc/ssl/private/ssl-cert-snakeoil.key',
      '/root/.ssh/id_rsa',
      '/usr/share/doc/example.pem',
    ],
  );
  assert.deepEqual(problems(files.slice(0, 1), { keys, holds: { keys } }), []);
});

test('caches, logs and temporary files are named, and no list allows them', () => {
  const paths = [
    ...[
      '/var/cache/apt/pkgcache.bin',
      '/var/cache/ldconfig/aux-cache',
      '/var/lib/apt/lists/x',
      '/var/log/dpkg.log',
    ],
    ...[
      '/tmp/x',
      '/var/tmp/x',
      '/run/x.pid',
      '/root/.cache/pip/x',
      '/root/.npm/_logs/x',
      '/home/ci/.profile',
    ],
  ];
  const found = problems(
    paths.map((path) => file(path)),
    { holds: { writable: paths, keys: paths } },
  );
  assert.deepEqual(
    found.map((line) => line.split(':')[0]),
    [...paths].sort(),
  );
});

test('a package manager is named unless the definition lists the package that has it', () => {
  const files = [
    file('/usr/bin/apt-get', { mode: 0o755, owner: 'deb:apt' }),
    file('/usr/local/bin/npm', {
      type: 'link',
      mode: 0o777,
      target: '../lib/node_modules/npm/bin/npm-cli.js',
      owner: 'npm:npm',
    }),
    file('/usr/local/bin/pip', { mode: 0o755 }),
  ];
  assert.deepEqual(
    problems(files).map((line) => line.split(/[: ]/)[0]),
    ['/usr/bin/apt-get', '/usr/local/bin/npm', '/usr/local/bin/pip'],
  );
  assert.deepEqual(
    problems(files, { packages: ['apt=2.6.1'], npm: ['npm'] }).map((line) => line.split(':')[0]),
    ['/usr/local/bin/pip'],
    'one of nobody cannot be asked for',
  );
});

/** A tree of a dozen files, as the hook would list it. */
function treeOf(
  metadata: Readonly<Record<string, string>>,
  paths: readonly string[],
  links: Readonly<Record<string, string>> = {},
): Tree {
  const sums = new Map([...Object.keys(metadata), ...paths].map((path) => [path, HASH]));
  const sha1 = new Map([...sums.keys()].map((path) => [path, 'b'.repeat(40)]));
  const text = [
    ...[...sums.keys()].map((path) => `f 644 0 0 3\0${path.slice(1)}\0\0`),
    ...Object.entries(links).map(([path, target]) => `l 777 0 0 3\0${path.slice(1)}\0${target}\0`),
  ].join('');
  return { entries: parseTree(text, sums, sha1), keys: [], metadata: (path) => metadata[path] };
}

const locked = (name: string) => ({
  ...{ name, version: '1', architecture: 'amd64', sha256: HASH, source: name, sourceVersion: '1' },
});
const status = (...names: string[]): string =>
  names
    .map((name) => `Package: ${name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n`)
    .join('\n');

test('files belong to their packages, through links of directories and through diversions', () => {
  const tree = treeOf(
    {
      '/var/lib/dpkg/status': status('a', 'b'),
      '/var/lib/dpkg/diversions': '/bin/sh\n/bin/sh.distrib\na\n',
      '/var/lib/dpkg/info/a.list': '/.\n/bin\n/bin/sh\n/usr/share/doc/a/copyright\n',
      '/var/lib/dpkg/info/b:amd64.list': '/bin/sh\n/usr/lib/b.so\n/usr/share/doc/b\n',
      '/usr/share/doc/a/copyright':
        'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-2+ or Artistic\n text\n\nFiles: x\nLicense: Expat\n\nLicense: GPL-2+\n the text\n',
    },
    [
      '/usr/bin/sh',
      '/usr/bin/sh.distrib',
      '/usr/lib/b.so',
      '/etc/made-by-a-script',
      '/usr/local/lib/node_modules/tool/run.js',
    ],
    { '/bin': 'usr/bin', '/usr/share/doc/b': 'a', '/usr/local/bin/tool': '../lib/node_modules/tool/run.js' },
  );
  const { files, packages } = takeInventory(tree, [locked('a'), locked('b')], []);
  const owners = Object.fromEntries(files.map(({ path, owner }) => [path, owner]));
  assert.equal(owners['/usr/bin/sh'], 'deb:a');
  assert.equal(owners['/usr/bin/sh.distrib'], 'deb:b');
  assert.equal(owners['/usr/lib/b.so'], 'deb:b');
  assert.equal(owners['/etc/made-by-a-script'], undefined);
  assert.equal(owners['/usr/local/bin/tool'], 'npm:tool');
  assert.equal(owners['/usr/local/lib/node_modules/tool/run.js'], 'npm:tool');
  assert.deepEqual(packages[0]?.licences, ['Expat', 'GPL-2+ or Artistic']);
  assert.deepEqual(packages[1]?.licences, packages[0]?.licences, 'its documents are those of the other');
  assert.equal(files.find(({ path }) => path === '/usr/bin/sh')?.sha1, undefined);
  assert.match(files.find(({ path }) => path === '/etc/made-by-a-script')?.sha1 ?? '', /^b{40}$/);
});

test('a tree with other packages than it should have is IMAGE_BUILD_FAILED, with their names', () => {
  const tree = treeOf({ '/var/lib/dpkg/status': status('a', 'intruder') }, []);
  assert.throws(() => takeInventory(tree, [locked('a'), locked('b')], []), {
    code: 'IMAGE_BUILD_FAILED',
    message: /without b=1:amd64; with intruder=1:amd64, which was not asked for/,
  });
  assert.throws(() => takeInventory(treeOf({}, []), [locked('a')], []), { code: 'IMAGE_BUILD_FAILED' });
});

test('npm packages are those of the definition and those that they bring along', () => {
  const at = '/usr/local/lib/node_modules';
  const metadata = {
    '/var/lib/dpkg/status': status('a'),
    [`${at}/npm/package.json`]: '{"name":"npm","version":"11.0.0","license":"Artistic-2.0"}',
    [`${at}/npm/node_modules/@x/y/package.json`]: '{"name":"@x/y","version":"1.2.3"}',
    [`${at}/npm/node_modules/z/package.json`]: '{"name":"z","version":"../evil"}',
    [`${at}/npm/node_modules/w/package.json`]: 'no JSON',
    [`${at}/npm/test/package.json`]: '{"name":"fixture","version":"1.0.0"}',
  };
  const npm = [{ name: 'npm', version: '11.0.0', integrity: `sha512-${'A'.repeat(86)}==` }];
  assert.deepEqual(takeInventory(treeOf(metadata, []), [locked('a')], npm).npm, [
    { name: '@x/y', version: '1.2.3' },
    { ...npm[0], licence: 'Artistic-2.0' },
  ]);
});

test('a list of files that is damaged, or a file without a digest, is IMAGE_BUILD_FAILED', () => {
  const none = new Map<string, string>();
  assert.throws(() => parseTree('f 644 0 0\0x\0\0', none, none), { code: 'IMAGE_BUILD_FAILED' });
  assert.throws(() => parseTree('f 644 0 0 1\0x\0\0', none, none), {
    code: 'IMAGE_BUILD_FAILED',
    message: /\/x .*no digest/,
  });
  assert.deepEqual(parseTree('l 777 0 0 1\0a\nb\0c\td\0', none, none), [
    { path: '/a\nb', type: 'link', mode: 0o777, uid: 0, gid: 0, sizeBytes: 0, target: 'c\td' },
  ]);
});
