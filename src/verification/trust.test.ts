import assert from 'node:assert/strict';
import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { test } from 'node:test';
import { loadTrust } from './trust.ts';
import { type Expected, type SignerPolicy, verifyBundle } from './verify.ts';

const pemOf = (publicKey: KeyObject): string => publicKey.export({ type: 'spki', format: 'pem' }) as string;
const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const pem = pemOf(publicKey);
const invalid = (message: RegExp) => ({ code: 'TRUST_INVALID', message });

test('keys are found by their id, or by a hint of their own', () => {
  const { keys } = loadTrust({
    keys: [
      { name: 'a', pem },
      { name: 'b', pem, hint: 'SHA256:b' },
    ],
  });
  assert.deepEqual(
    [...keys.values()].map(({ name }) => name),
    ['a', 'b'],
  );
  assert.match([...keys.keys()][0] ?? '', /^[A-Za-z0-9+/]{43}=$/);
  assert.equal(keys.get('SHA256:b')?.name, 'b');
});

test('TRUST_INVALID for keys that do not parse, are of another kind, private, or ambiguous', () => {
  const rsa = pemOf(generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey);
  const p384 = pemOf(generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey);
  const secret = privateKey.export({ type: 'pkcs8', format: 'pem' }) as string;
  assert.throws(() => loadTrust({}), invalid(/neither/));
  assert.throws(() => loadTrust({ keys: [{ name: 'a', pem: 'nonsense' }] }), invalid(/no public key/));
  const broken = pem.replace(/.{9}\n-----END/, '\n-----END');
  assert.throws(() => loadTrust({ keys: [{ name: 'a', pem: broken }] }), invalid(/parse/));
  assert.throws(() => loadTrust({ keys: [{ name: 'a', pem: secret }] }), invalid(/private key/));
  for (const other of [rsa, p384]) {
    assert.throws(() => loadTrust({ keys: [{ name: 'a', pem: other }] }), invalid(/neither ECDSA/));
  }
  const twice = [
    { name: 'a', pem },
    { name: 'b', pem },
  ];
  assert.throws(() => loadTrust({ keys: twice }), invalid(/the hint/));
  const sameName = [
    { name: 'a', pem },
    { name: 'a', pem, hint: 'x' },
  ];
  assert.throws(() => loadTrust({ keys: sameName }), invalid(/the name/));
  assert.throws(() => loadTrust({ keys: [{ name: '', pem }] }), invalid(/empty/));
});

test('TRUST_INVALID for a root that is none', () => {
  const root = (value: unknown): Uint8Array => Buffer.from(JSON.stringify(value));
  const mediaType = 'application/vnd.dev.sigstore.trustedroot+json;version=0.1';
  const bad = [
    Buffer.from('{'),
    root(null),
    root({}),
    root({ mediaType }),
    root({ mediaType, tlogs: [{}] }),
    root({ mediaType, tlogs: [{ publicKey: { rawBytes: '', validFor: { end: '2030-01-01T00:00:00Z' } } }] }),
    root({ mediaType, certificateAuthorities: [{ certChain: { certificates: [{ rawBytes: 'AAAA' }] } }] }),
    new Uint8Array(5 * 1024 * 1024),
  ];
  for (const trustedRoot of bad) assert.throws(() => loadTrust({ trustedRoot }), { code: 'TRUST_INVALID' });
});

test('TRUST_INVALID for a policy that accepts nobody, or cannot be met', () => {
  const trust = loadTrust({ keys: [{ name: 'a', pem }] });
  const expected: Expected = { kind: 'message', artifact: new Uint8Array() };
  const evidence = { logs: 1, timestampAuthorities: 0 };
  const identities = [{ issuer: 'https://token.example', subject: 'a@example.com' }];
  const policies: [SignerPolicy, RegExp][] = [
    [{}, /nobody/],
    [{ keys: { names: [], ...evidence } }, /nobody/],
    [{ keys: { names: ['a'], ...evidence, logs: -1 } }, /whole number/],
    [{ keys: { names: ['a'], ...evidence, logs: Number.NaN } }, /whole number/],
    [{ keyless: { identities, certificateLogs: 1, ...evidence } }, /no trusted root/],
  ];
  for (const [policy, message] of policies) {
    assert.throws(
      () => verifyBundle({ bundle: undefined, expected, trust, policy, now: new Date() }),
      invalid(message),
    );
  }
});
