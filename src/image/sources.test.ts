import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  acquireSettings,
  entryOptions,
  findSources,
  formatSources,
  parseStanzas,
  selectTargets,
} from './sources.ts';

/** As `apt-get indextargets` prints it, without the fields that nobody reads. */
function target(fields: Readonly<Record<string, string>>): string {
  const all = { 'Created-By': 'Packages', Origin: 'Debian', Component: 'main', ...fields };
  return `MetaKey: main/binary-amd64/Packages\n${Object.entries(all)
    .map(([key, value]) => `${key}: ${value}\n`)
    .join('')}`;
}

const BOOKWORM = {
  Codename: 'bookworm',
  Release: 'oldstable',
  'Repo-URI': 'https://mirror.example/debian/',
  Sourcesentry: '/etc/apt/sources.list:1',
};
const SECURITY = {
  Codename: 'bookworm-security',
  Release: 'bookworm-security',
  'Repo-URI': 'https://security.example/',
  Sourcesentry: '/etc/apt/sources.list.d/s.sources:2',
};
const RECORDED = [
  target(BOOKWORM),
  target({ ...BOOKWORM, 'Created-By': 'DEP-11' }),
  target({ ...BOOKWORM, Component: 'contrib' }),
  target(SECURITY),
  target({ ...BOOKWORM, Codename: 'bookworm-updates', Release: 'bookworm-updates' }),
  target({ ...BOOKWORM, Codename: 'bookworm-backports', Release: 'bookworm-backports' }),
  target({ ...BOOKWORM, Codename: 'trixie', Release: 'trixie' }),
  target({ ...BOOKWORM, Origin: 'Example Vendor', 'Repo-URI': 'https://vendor.example/apt/' }),
  target({ ...BOOKWORM, Release: './', 'Repo-URI': 'https://flat.example/' }),
  target({ ...BOOKWORM, 'Repo-URI': 'cdrom:[Debian]/' }),
  // Not updated yet: apt has no Release file, and so no origin.
  'MetaKey: main/binary-amd64/Packages\nCreated-By: Packages\nRepo-URI: https://new.example/\nRelease: bookworm\n',
].join('\n');

test('only the suite, its updates and its security updates from Debian are taken', () => {
  assert.deepEqual(selectTargets(parseStanzas(RECORDED), 'bookworm'), [
    {
      uri: 'https://mirror.example/debian/',
      release: { path: 'oldstable', codename: 'bookworm' },
      components: ['contrib', 'main'],
      entry: '/etc/apt/sources.list:1',
    },
    {
      uri: 'https://mirror.example/debian/',
      release: { path: 'bookworm-updates', codename: 'bookworm-updates' },
      components: ['main'],
      entry: '/etc/apt/sources.list:1',
    },
    {
      uri: 'https://security.example/',
      release: { path: 'bookworm-security', codename: 'bookworm-security' },
      components: ['main'],
      entry: '/etc/apt/sources.list.d/s.sources:2',
    },
  ]);
});

test('sources are written with the key and the trust of the entry they come from', () => {
  const targets = selectTargets(parseStanzas(`${target(BOOKWORM)}\n${target(SECURITY)}`), 'bookworm');
  const text = formatSources(targets, (entry) =>
    entry.endsWith('s.sources:2') ? { signedBy: '/usr/share/keyrings/example.gpg' } : { trusted: 'yes' },
  );
  assert.equal(
    text,
    [
      'Types: deb',
      'URIs: https://mirror.example/debian/',
      'Suites: oldstable',
      'Components: main',
      'Architectures: amd64',
      'Trusted: yes',
      '',
      'Types: deb',
      'URIs: https://security.example/',
      'Suites: bookworm-security',
      'Components: main',
      'Architectures: amd64',
      'Signed-By: /usr/share/keyrings/example.gpg',
      '',
    ].join('\n'),
  );
});

test('options are read from the stanza of a .sources file, comments and keys included', () => {
  const text = [
    '# first',
    '',
    'Types: deb',
    'URIs: https://mirror.example/debian/',
    'Signed-By: /usr/share/keyrings/one.gpg',
    '',
    'Types: deb',
    '# in between',
    'URIs: https://security.example/',
    'Signed-By:',
    ' -----BEGIN PGP PUBLIC KEY BLOCK-----',
    ' .',
    ' mQINBF',
    ' -----END PGP PUBLIC KEY BLOCK-----',
  ].join('\n');
  assert.equal(entryOptions(text, true, 1).signedBy, '/usr/share/keyrings/one.gpg');
  assert.equal(
    entryOptions(text, true, 2).signedBy,
    '\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----',
  );
  assert.deepEqual(entryOptions(text, true, 3), { signedBy: undefined, trusted: undefined });
});

test('options are read from the line of a one-line-style file', () => {
  const text = [
    'deb https://mirror.example/debian bookworm main',
    'deb [arch=amd64 signed-by=/a.gpg,/b.gpg trusted=yes] https://mirror.example/debian bookworm main',
  ].join('\n');
  assert.deepEqual(entryOptions(text, false, 1), { signedBy: undefined, trusted: undefined });
  assert.deepEqual(entryOptions(text, false, 2), { signedBy: '/a.gpg /b.gpg', trusted: 'yes' });
});

test('of the machine’s configuration, only how files are fetched is taken over', () => {
  const dump = [
    'APT::Update::Post-Invoke:: "rm -f /var/cache/apt/*.bin";',
    'Dir::Cache "var/cache/apt";',
    'Acquire "";',
    'Acquire::http::Proxy "http://proxy.example:3142";',
    'Acquire::https::mirror.example::CaInfo "/etc/ssl/example.pem";',
    'Acquire::Check-Valid-Until "false";',
    'Acquire::Languages:: "de";',
    'Acquire::GzipIndexes "true";',
    'Acquire::IndexTargets::deb::Packages::MetaKey "x";',
  ].join('\n');
  assert.equal(
    acquireSettings(dump),
    [
      'Acquire::http::Proxy "http://proxy.example:3142";\n',
      'Acquire::https::mirror.example::CaInfo "/etc/ssl/example.pem";\n',
      'Acquire::Check-Valid-Until "false";\n',
    ].join(''),
  );
});

test('CT_APT_SOURCES that cannot be read is IMAGE_SOURCES_MISSING and named', async () => {
  await assert.rejects(findSources('bookworm', { env: { CT_APT_SOURCES: '/absent/sources.list' } }), {
    code: 'IMAGE_SOURCES_MISSING',
    message: /CT_APT_SOURCES names \/absent\/sources\.list/,
  });
});
