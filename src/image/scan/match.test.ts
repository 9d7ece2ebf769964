import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AffectedAdvisory } from './database.ts';
import { type AdvisorySource, type Finding, findVulnerabilities } from './match.ts';
import type { InstalledPackage } from './packages.ts';

function installed(over: Partial<InstalledPackage> = {}): InstalledPackage {
  return {
    name: 'libssl3',
    version: '3.0.11-1',
    architecture: 'amd64',
    sourceName: 'openssl',
    sourceVersion: '3.0.11-1',
    purl: 'pkg:deb/debian/libssl3@3.0.11-1?distro=bookworm',
    ecosystem: 'Debian:12',
    ...over,
  };
}

interface Told {
  readonly id: string;
  readonly aliases?: readonly string[];
  readonly upstream?: readonly string[];
  readonly vectors?: readonly string[];
  readonly word?: string;
  readonly fixed?: string;
  readonly from?: string;
}

function advisory({
  id,
  aliases = [],
  upstream = [],
  vectors = [],
  word,
  fixed,
  from = '0',
}: Told): AffectedAdvisory {
  return {
    advisory: { id, aliases, upstream, summary: `about ${id}`, vectors },
    affected: {
      ecosystem: 'Debian:12',
      package: 'openssl',
      ranges: [[['introduced', from], ...(fixed === undefined ? [] : [['fixed', fixed] as const])]],
      versions: [],
      vectors: [],
      ...(word === undefined ? {} : { word }),
    },
  };
}

function find(
  told: readonly Told[],
  ratings: Readonly<Record<string, string>> = {},
  packages = [installed()],
): readonly Finding[] {
  const source: AdvisorySource = {
    advisoriesOf: (_, name) => (name === 'openssl' ? told.map(advisory) : []),
    ratingsOf: (name) => (ratings[name] === undefined ? [] : [ratings[name]]),
  };
  return findVulnerabilities(packages, source);
}

const CRITICAL = 'CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H';
const MEDIUM = 'CVSS:3.1/AV:L/AC:L/PR:L/UI:N/S:U/C:H/I:N/A:N';

test('what is installed is looked up by the name and version of its source', () => {
  const packages = [
    installed(),
    installed({ name: 'openssl', purl: 'pkg:deb/debian/openssl@3.0.11-1?distro=bookworm' }),
  ];
  const [finding, ...others] = find([{ id: 'CVE-2026-1', fixed: '3.0.12-1' }], {}, packages);
  assert.equal(others.length, 0);
  assert.deepEqual(finding?.package.binaries, ['libssl3', 'openssl']);
  assert.equal(finding?.package.name, 'openssl');
  assert.equal(finding?.fixedIn, '3.0.12-1');
  assert.deepEqual(find([{ id: 'CVE-2026-1', fixed: '3.0.11-1' }]), []);
  assert.deepEqual(find([{ id: 'CVE-2026-1' }], {}, [installed({ sourceName: 'libssl3' })]), []);
});

test('records that share a name are one finding, with the CVE as its name and the last fix', () => {
  const found = find([
    { id: 'DEBIAN-CVE-2026-1', upstream: ['CVE-2026-1'], fixed: '3.0.12-1' },
    { id: 'GHSA-aaaa', aliases: ['CVE-2026-1'], fixed: '3.0.13-1' },
    { id: 'OSV-2026-9', aliases: ['GHSA-aaaa'] },
    { id: 'CVE-2026-1', fixed: '3.0.12-1', word: 'high' },
  ]);
  assert.equal(found.length, 1);
  assert.equal(found[0]?.id, 'CVE-2026-1');
  assert.deepEqual(found[0]?.aliases, ['DEBIAN-CVE-2026-1', 'GHSA-aaaa', 'OSV-2026-9']);
  assert.equal(found[0]?.fixedIn, '3.0.13-1');
  assert.equal(found[0]?.severity, 'high');
});

test('aliases that point at each other in a circle end in one finding', () => {
  const found = find([
    { id: 'A-1', aliases: ['A-2'] },
    { id: 'A-2', aliases: ['A-3'] },
    { id: 'A-3', aliases: ['A-1', 'A-3'] },
  ]);
  assert.deepEqual(
    found.map(({ id, aliases }) => [id, aliases]),
    [['A-1', ['A-2', 'A-3']]],
  );
});

test('an advisory of a distribution is about each CVE that it bundles, and joins none of them', () => {
  const found = find([
    { id: 'DSA-6001-1', upstream: ['CVE-2026-1', 'CVE-2026-2'], fixed: '3.0.12-1' },
    { id: 'CVE-2026-1', vectors: [CRITICAL], fixed: '3.0.12-1' },
  ]);
  assert.deepEqual(
    found.map(({ id, aliases, severity }) => [id, aliases, severity]),
    [
      ['CVE-2026-1', ['DSA-6001-1'], 'critical'],
      ['CVE-2026-2', ['DSA-6001-1'], 'unknown'],
    ],
  );
});

test('a severity is a score before a word, comes from other records if need be, and is not more than Debian sees in it', () => {
  const severity = (told: Told, ratings = {}): unknown => find([told], ratings)[0]?.severity;
  assert.equal(severity({ id: 'CVE-2026-1', vectors: [MEDIUM, CRITICAL], word: 'low' }), 'critical');
  assert.equal(severity({ id: 'CVE-2026-1', word: 'low**' }), 'low');
  assert.equal(severity({ id: 'CVE-2026-1', word: 'not yet assigned' }), 'unknown');
  assert.equal(severity({ id: 'CVE-2026-1', word: 'not yet assigned' }, { 'CVE-2026-1': MEDIUM }), 'medium');
  assert.equal(severity({ id: 'CVE-2026-1', vectors: [CRITICAL], word: 'unimportant' }), 'negligible');
  assert.equal(severity({ id: 'MAL-2026-1' }), 'critical');
  assert.equal(severity({ id: 'CVE-2026-1', vectors: ['CVSS:3.1/nonsense'] }), 'unknown');
});

test('the worst comes first', () => {
  const found = find([
    { id: 'CVE-2026-1', word: 'low' },
    { id: 'CVE-2026-2', vectors: [CRITICAL] },
    { id: 'CVE-2026-3' },
    { id: 'CVE-2026-4', vectors: [MEDIUM] },
  ]);
  assert.deepEqual(
    found.map(({ id }) => id),
    ['CVE-2026-2', 'CVE-2026-4', 'CVE-2026-3', 'CVE-2026-1'],
  );
});
