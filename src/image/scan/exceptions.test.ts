import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SourceText } from '../../core/source-text.ts';
import { type Exception, judge } from './exceptions.ts';
import type { Finding } from './match.ts';
import { parseOpenVex } from './openvex.ts';

const image = { name: 'debian-12', digest: `sha256:${'a'.repeat(64)}` };
const NOW = Date.parse('2026-11-24T12:00:00Z');
const finding: Finding = {
  id: 'CVE-2026-1',
  aliases: ['GHSA-aaaa'],
  severity: 'high',
  summary: '',
  package: {
    ecosystem: 'Debian:12',
    name: 'openssl',
    version: '3.0.11-1',
    binaries: ['libssl3'],
    purls: ['pkg:deb/debian/libssl3@3.0.11-1?arch=amd64&distro=bookworm'],
  },
};

function exception(over: Partial<Exception> = {}): Exception {
  const shared = { packages: [], images: [], reason: 'because', from: 'f', saidMs: 0, expiresMs: NOW + 1 };
  return { ids: ['CVE-2026-1'], status: 'accepted', ...shared, ...over };
}

const holds = (...exceptions: readonly Exception[]): boolean | undefined => {
  const verdict = judge(finding, image, exceptions, NOW);
  return verdict && !verdict.isExpired;
};

test('an exception holds for the names, packages and images that it names', () => {
  assert.equal(holds(exception()), true);
  assert.equal(holds(exception({ ids: ['GHSA-aaaa'] })), true);
  assert.equal(holds(exception({ ids: ['CVE-2026-2'] })), undefined);
  for (const name of ['openssl', 'libssl3', 'pkg:deb/debian/libssl3', 'pkg:deb/debian/openssl@3.0.11-1']) {
    assert.equal(holds(exception({ packages: [name] })), true, name);
  }
  for (const name of [
    'openssl3',
    'pkg:deb/debian/libssl3@3.0.12-1',
    'pkg:npm/libssl3',
    'pkg:deb/ubuntu/libssl3',
  ]) {
    assert.equal(holds(exception({ packages: [name] })), undefined, name);
  }
  for (const name of ['debian-12', image.digest, 'pkg:oci/debian-12', `pkg:oci/debian-12@${image.digest}`]) {
    assert.equal(holds(exception({ images: [name] })), true, name);
  }
  assert.equal(holds(exception({ images: ['debian'] })), undefined);
  assert.equal(holds(exception({ images: [`pkg:oci/debian-12@sha256:${'b'.repeat(64)}`] })), undefined);
});

test('one that has expired excuses nothing, and hides no other that holds', () => {
  const expired = exception({ expiresMs: NOW - 1, saidMs: 9 });
  assert.equal(holds(expired), false);
  assert.equal(holds(expired, exception()), true);
});

test('the newest word counts: what was called unaffected can be called affected', () => {
  const [not, yes] = [
    exception({ status: 'not_affected', saidMs: 1 }),
    exception({ status: 'affected', saidMs: 2 }),
  ];
  assert.equal(holds(not, yes), undefined);
  assert.equal(holds({ ...not, saidMs: 3 }, yes), true);
});

function vex(statement: object, over: object = {}): readonly Exception[] {
  const document = {
    '@context': 'https://openvex.dev/ns/v0.2.0',
    '@id': 'https://example.com/vex/1',
    author: 'the security team',
    timestamp: '2026-11-01T00:00:00Z',
    version: 1,
    statements: [
      { vulnerability: { name: 'CVE-2026-1' }, products: [{ '@id': 'pkg:oci/debian-12' }], ...statement },
    ],
    ...over,
  };
  return parseOpenVex(new SourceText('vex.json', JSON.stringify(document)));
}

test('statements of OpenVEX excuse what they name', () => {
  const justification = 'vulnerable_code_not_in_execute_path';
  assert.equal(holds(...vex({ status: 'not_affected', justification })), true);
  assert.equal(holds(...vex({ status: 'fixed' })), true);
  assert.equal(holds(...vex({ status: 'affected' })), undefined);
  const products = (id: string, ...parts: readonly string[]): object => ({
    products: [{ '@id': id, subcomponents: parts.map((part) => ({ '@id': part })) }],
  });
  const at = (id: string, ...parts: readonly string[]): boolean | undefined =>
    holds(...vex({ status: 'fixed', ...products(id, ...parts) }));
  assert.equal(at('pkg:deb/debian/libssl3'), true);
  assert.equal(at('pkg:oci/debian-12', 'pkg:deb/debian/libssl3@3.0.11-1'), true);
  assert.equal(at('pkg:oci/debian-12', 'pkg:deb/debian/zlib1g'), undefined);
  assert.equal(at('pkg:oci/other'), undefined);
});

test('an investigation excuses for 30 days, and then counts', () => {
  const status_notes = 'looked at by the security team';
  assert.equal(holds(...vex({ status: 'under_investigation', status_notes })), true);
  const timestamp = '2026-10-01T00:00:00Z';
  assert.equal(holds(...vex({ status: 'under_investigation', status_notes, timestamp })), false);
});

test('a document that does not say enough is refused with CONFIG_INVALID', () => {
  const wrong: readonly (readonly [object, object?])[] = [
    [{ status: 'not_affected' }],
    [{ status: 'under_investigation' }],
    [{ status: 'fine' }],
    [{ status: 'not_affected', justification: 'trust_me' }],
    [{ status: 'fixed', products: [] }],
    [{ status: 'fixed', products: [{}] }],
    [{ status: 'fixed', vulnerability: {} }],
    [{ status: 'fixed' }, { '@context': 'https://example.com/ns' }],
    [{ status: 'fixed' }, { timestamp: 'yesterday' }],
    [{ status: 'fixed' }, { statements: {} }],
  ];
  for (const [statement, over] of wrong) {
    assert.throws(() => vex(statement, over), { code: 'CONFIG_INVALID' }, JSON.stringify([statement, over]));
  }
  assert.throws(() => parseOpenVex(new SourceText('x', '{')), { code: 'CONFIG_INVALID' });
});
