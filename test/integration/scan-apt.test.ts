/** The detector that needs no feed, against a repository of our own that Debian's apt reads from a directory. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { installRoot } from '../../src/core/install.ts';
import type { ScanResult } from '../../src/image/scan/result.ts';
import { debianPackage, storeImage } from '../fixtures/vuln/image.ts';

const programs = ['apt-get', 'apt-cache', 'dpkg-deb'];
const missing = programs.find((name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status !== 0);
const skip = missing === undefined ? false : `${missing} is not installed`;

let directory: string;
let sources: string;

before(() => {
  directory = mkdtempSync(join(tmpdir(), 'ct-scan-apt-'));
  sources = join(directory, 'ct.sources');
  if (skip === false) makeRepository(new Date());
});
after(() => rmSync(directory, { recursive: true, force: true }));

interface Deb {
  readonly name: string;
  readonly version: string;
  readonly source?: string;
  readonly changelog?: string;
}

function changelog(source: string, ...entries: readonly (readonly [string, string, string])[]): string {
  return entries
    .map(
      ([version, urgency, text]) =>
        `${source} (${version}) x; urgency=${urgency}\n\n  * ${text}\n\n -- A <a@b.c>  x\n`,
    )
    .join('\n');
}

function makeRepository(date: Date): void {
  const root = join(directory, 'repository');
  rmSync(root, { recursive: true, force: true });
  const debs: readonly Deb[] = [
    {
      name: 'openssl',
      version: '3.0.15-1',
      changelog: changelog(
        'openssl',
        ['3.0.15-1', 'high', 'Fixes CVE-2026-0001 and CVE-2026-0002.'],
        ['3.0.11-1', 'high', 'Fixes CVE-2020-0001.'],
      ),
    },
    { name: 'libssl3', version: '3.0.15-1', source: 'openssl' },
    {
      name: 'bash',
      version: '5.2.15-2+b2',
      changelog: changelog('bash', ['5.2.15-2', 'low', 'CVE-2014-6271']),
    },
    { name: 'silent', version: '2.0-1' },
    {
      name: 'linux-image-6.1.0-10-cloud-amd64',
      version: '6.1.30-1',
      source: 'linux-signed-amd64 (6.1.30+1)',
      changelog: changelog(
        'linux-signed-amd64',
        ['6.1.30+1', 'medium', 'CVE-2026-0003'],
        ['6.1.20+1', 'high', 'CVE-2020-0003'],
      ),
    },
  ];
  const pool = join(root, 'pool');
  const lists = join(root, 'dists/bookworm-security/main/binary-amd64');
  for (const path of [pool, lists, join(directory, 'trees')]) mkdirSync(path, { recursive: true });
  const paragraphs = debs.map((deb) => buildDeb(deb, pool));
  const packages = paragraphs.join('\n');
  writeFileSync(join(lists, 'Packages'), packages);
  const sum = createHash('sha256').update(packages).digest('hex');
  const release = [
    'Origin: Debian',
    'Label: Debian-Security',
    'Suite: stable-security',
    'Codename: bookworm-security',
    `Date: ${date.toUTCString().replace('GMT', 'UTC')}`,
    'Architectures: amd64',
    'Components: main',
    'SHA256:',
    ` ${sum} ${Buffer.byteLength(packages)} main/binary-amd64/Packages`,
    '',
  ].join('\n');
  writeFileSync(join(root, 'dists/bookworm-security/Release'), release);
  writeFileSync(
    sources,
    `Types: deb\nURIs: file:${root}\nSuites: bookworm-security\nComponents: main\nTrusted: yes\n`,
  );
}

/** Returns its paragraph of the index. */
function buildDeb({ name, version, source, changelog: text }: Deb, pool: string): string {
  const tree = mkdtempSync(join(directory, 'trees/deb-'));
  const doc = join(tree, 'usr/share/doc', name);
  for (const path of [join(tree, 'DEBIAN'), doc]) mkdirSync(path, { recursive: true, mode: 0o755 });
  execFileSync('chmod', ['0755', tree, join(tree, 'DEBIAN')]);
  const control = [
    `Package: ${name}`,
    ...(source === undefined ? [] : [`Source: ${source}`]),
    `Version: ${version}`,
    'Architecture: amd64',
    'Maintainer: A <a@example.com>',
    'Description: x',
    '',
  ].join('\n');
  writeFileSync(join(tree, 'DEBIAN/control'), control);
  if (text !== undefined) writeFileSync(join(doc, 'changelog.Debian.gz'), gzipSync(text));
  const file = `${name}_${version}_amd64.deb`;
  execFileSync('dpkg-deb', ['--root-owner-group', '--build', tree, join(pool, file)], { stdio: 'ignore' });
  const bytes = readFileSync(join(pool, file));
  const sum = createHash('sha256').update(bytes).digest('hex');
  return `${control}Filename: pool/${file}\nSize: ${statSync(join(pool, file)).size}\nSHA256: ${sum}\n`;
}

function scan(
  ctHome: string,
  ...args: readonly string[]
): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ['src/cli/main.ts', 'image', 'scan', '--detector', 'apt', ...args],
    {
      cwd: installRoot,
      env: { PATH: process.env['PATH'], CT_HOME: ctHome, CT_POLICY_DIR: ctHome, CT_APT_SOURCES: sources },
      encoding: 'utf8',
      timeout: 50_000,
    },
  );
  return { status, stdout, stderr };
}

test('missing security updates are findings, with the CVEs of their changelogs', { skip }, async () => {
  const ctHome = join(directory, 'home');
  mkdirSync(ctHome, { mode: 0o700 });
  await storeImage(ctHome, 'debian-12', {
    packages: [
      debianPackage('bash', '5.2.15-2+b2', 'bash', '5.2.15-2'),
      debianPackage('libssl3', '3.0.11-1', 'openssl'),
      debianPackage('openssl', '3.0.11-1'),
      debianPackage('silent', '1.0-1'),
      debianPackage('unknown', '1.0-1'),
    ],
    npm: [{ name: 'left-pad', version: '1.0.0' }],
  });
  const { status, stdout, stderr } = scan(ctHome, '--format', 'json', '--fail-on', 'high');
  assert.equal(status, 122, stderr);
  assert.match(stderr, /one update does not say which vulnerabilities are fixed/);
  const result = JSON.parse(stdout) as ScanResult;
  assert.equal(result.detector, 'apt');
  assert.deepEqual(result.packages, { examined: 6, unexamined: ['left-pad 1.0.0'] });
  assert.deepEqual(
    result.findings.map(({ id, severity, package: { name, version, binaries }, fixedIn }) => [
      [id, severity, name, version, fixedIn].join(' '),
      binaries.length,
    ]),
    [
      ['CVE-2026-0001 high openssl 3.0.11-1 3.0.15-1', 2],
      ['CVE-2026-0002 high openssl 3.0.11-1 3.0.15-1', 2],
      // It has another name with every version of its interface.
      ['CVE-2026-0003 medium linux 6.1.20-1 6.1.30-1', 1],
      ['bookworm-security/silent/2.0-1 unknown silent 1.0-1 2.0-1', 1],
    ],
  );
  await storeImage(ctHome, 'debian-12', {
    packages: [debianPackage('openssl', '3.0.15-1')],
    kernelVersion: '6.1.30-1',
  });
  const clean = scan(ctHome, '--fail-on', 'negligible');
  assert.equal(clean.status, 0, clean.stderr);
  assert.match(clean.stdout, /2 packages, security updates as of [0-9-]+: nothing known\n$/);
});

test('an index that nobody has renewed for too long is refused', { skip }, async () => {
  const ctHome = join(directory, 'stale');
  mkdirSync(ctHome, { mode: 0o700 });
  await storeImage(ctHome, 'debian-12');
  makeRepository(new Date(Date.now() - 20 * 24 * 3600 * 1000));
  const { status, stdout, stderr } = scan(ctHome, 'debian-12');
  assert.deepEqual([status, stdout], [122, '']);
  assert.match(stderr, /error\[VULN_DB_STALE\]: the index of bookworm-security is as of .*20 days ago/);
});

test('sources without security updates are IMAGE_SOURCES_MISSING', { skip }, async () => {
  const ctHome = join(directory, 'none');
  mkdirSync(ctHome, { mode: 0o700 });
  await storeImage(ctHome, 'debian-12');
  makeRepository(new Date());
  const release = join(directory, 'repository/dists/bookworm-security/Release');
  writeFileSync(
    release,
    readFileSync(release, 'utf8').replace('Codename: bookworm-security', 'Codename: other'),
  );
  const { status, stderr } = scan(ctHome, 'debian-12');
  assert.equal(status, 2);
  assert.match(stderr, /error\[IMAGE_SOURCES_MISSING\]/);
});
