import assert from 'node:assert/strict';
import { test } from 'node:test';
import { buildProvenance, PROVENANCE_TYPE } from './provenance.ts';
import { buildStatement, encodeStatement, isAbout, parseDigest, parseStatement } from './statement.ts';

const HEX = 'a'.repeat(64);
const DIGEST = `sha256:${HEX}`;
const statement = buildStatement({
  subjects: [
    { name: 'one', digest: DIGEST },
    { name: 'two', digest: `sha512:${'b'.repeat(128)}` },
  ],
  predicateType: PROVENANCE_TYPE,
  predicate: buildProvenance({
    buildType: 'https://ct.example/v1',
    externalParameters: {},
    builderId: 'https://ct.example',
  }),
});
const parse = (change: object): unknown =>
  parseStatement(Buffer.from(JSON.stringify({ ...statement, ...change })));

test('a statement is read as it was written', () => {
  assert.deepEqual(parseStatement(encodeStatement(statement)), statement);
  assert.ok(isAbout(statement, parseDigest(DIGEST)));
  assert.ok(isAbout(statement, parseDigest(`sha512:${'b'.repeat(128)}`)));
});

test('it is about nothing but the digests of its subjects, each under its own algorithm', () => {
  assert.ok(!isAbout(statement, parseDigest(`sha256:${'b'.repeat(64)}`)));
  assert.ok(!isAbout(statement, { algorithm: 'sha512', hex: HEX }));
  assert.ok(!isAbout(statement, { algorithm: 'toString', hex: HEX }));
  assert.ok(!isAbout({ ...statement, subject: [] }, parseDigest(DIGEST)));
});

test('SIGNATURE_MALFORMED for what only looks like a statement', () => {
  const bad: object[] = [
    { _type: 'https://in-toto.io/Statement/v2' },
    { predicateType: '' },
    { predicateType: 7 },
    { subject: [] },
    { subject: {} },
    { subject: [{ digest: {} }] },
    { subject: [{ name: 'x' }] },
    { subject: [{ name: 7, digest: { sha256: HEX } }] },
    { subject: [{ digest: { sha256: HEX.toUpperCase() } }] },
    { subject: [{ digest: { sha256: HEX.slice(1) } }] },
    { subject: [{ digest: { sha256: [HEX] } }] },
    { subject: [null] },
    { subject: new Array(10_001).fill({ digest: { sha256: HEX } }) },
  ];
  for (const change of bad) assert.throws(() => parse(change), { code: 'SIGNATURE_MALFORMED' });
  for (const payload of ['', 'null', '[]', '{', '"text"', '\xff']) {
    assert.throws(() => parseStatement(Buffer.from(payload, 'latin1')), { code: 'SIGNATURE_MALFORMED' });
  }
});

test('digests of our own code have to be digests', () => {
  for (const digest of [HEX, 'sha256:', `sha256:${HEX}0`, `md5:${HEX}`, `sha256:${HEX}:x`, 'toString:aa']) {
    assert.throws(() => parseDigest(digest), { code: 'INTERNAL' }, digest);
  }
});

test('provenance leaves out what is not known', () => {
  const full = buildProvenance({
    buildType: 'https://ct.example/v1',
    externalParameters: { name: 'x' },
    internalParameters: { host: 'y' },
    resolvedDependencies: [{ uri: 'pkg:deb/debian/bash', digest: { sha256: HEX } }],
    builderId: 'https://ct.example',
    builderVersion: { ct: '1' },
    invocationId: 'run',
    startedAt: new Date(0),
    finishedAt: new Date(1000),
  });
  assert.deepEqual(full.runDetails, {
    builder: { id: 'https://ct.example', version: { ct: '1' } },
    metadata: {
      invocationId: 'run',
      startedOn: '1970-01-01T00:00:00.000Z',
      finishedOn: '1970-01-01T00:00:01.000Z',
    },
  });
  assert.deepEqual(Object.keys((statement.predicate as typeof full).runDetails), ['builder']);
});
