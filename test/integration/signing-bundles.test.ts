import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { CtError } from '../../src/core/errors.ts';
import { commandKey, type SigningCommand } from '../../src/signing/command-key.ts';
import { generateKeyPair, ownKey } from '../../src/signing/own-key.ts';
import { NO_SERVICES, parseSigningConfig } from '../../src/signing/services.ts';
import { keylessSigner, keySigner } from '../../src/signing/signer.ts';
import { buildProvenance, PROVENANCE_TYPE } from '../../src/verification/provenance.ts';
import { buildStatement } from '../../src/verification/statement.ts';
import { loadTrust } from '../../src/verification/trust.ts';
import { type Expected, type SignerPolicy, verifyBundle } from '../../src/verification/verify.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { IDENTITY, ISSUER, identityToken, type Sigstore, startSigstore } from '../support/sigstore.ts';

const MANIFEST = Buffer.from('{"schemaVersion":1,"name":"debian-12"}');
const DIGEST = `sha256:${createHash('sha256').update(MANIFEST).digest('hex')}`;
const STATEMENT = buildStatement({
  subjects: [{ name: 'debian-12', digest: DIGEST }],
  predicateType: PROVENANCE_TYPE,
  predicate: buildProvenance({
    buildType: 'https://ct.example/image/v1',
    externalParameters: { definition: 'images/debian-12.yml' },
    builderId: 'https://ct.example/builder',
    startedAt: new Date('2026-01-02T03:04:05Z'),
  }),
});
const EXPECTED: Expected = { kind: 'statement', digest: DIGEST, predicateType: PROVENANCE_TYPE };
const MESSAGE: Expected = { kind: 'message', artifact: MANIFEST };

const KEYLESS: SignerPolicy = {
  keyless: {
    identities: [{ issuer: ISSUER, subject: IDENTITY }],
    logs: 1,
    timestampAuthorities: 1,
    certificateLogs: 1,
  },
};
const BY_KEY: SignerPolicy = { keys: { names: ['release'], logs: 0, timestampAuthorities: 0 } };

const rejectsWith = (code: string, message = /./) => ({ name: 'CtError', code, message });

describe('keyless', () => {
  let sigstore: Sigstore;
  before(async () => {
    sigstore = await startSigstore();
  });
  after(() => sigstore[Symbol.asyncDispose]());
  const signer = (services = sigstore.services) => keylessSigner(async () => identityToken(), services);
  const verify = (bundle: Uint8Array, expected: Expected = EXPECTED, policy = KEYLESS) =>
    verifyBundle({
      bundle,
      expected,
      policy,
      trust: loadTrust({ trustedRoot: sigstore.trustedRoot }),
      now: new Date(),
    });

  test('a statement is signed, and verified without any network', async () => {
    const bundle = await signer().signStatement(STATEMENT);
    const requestsBefore = sigstore.requests.length;
    const proved = verify(bundle);
    assert.equal(sigstore.requests.length, requestsBefore);
    assert.deepEqual(proved.signer, { kind: 'keyless', subject: IDENTITY, issuer: ISSUER });
    assert.equal(proved.logs.length, 1);
    assert.equal(proved.logs[0]?.log, sigstore.url);
    assert.equal(proved.timestamps[0]?.authority, sigstore.url);
    assert.deepEqual(proved.signedAt, sigstore.time);
    assert.ok(proved.content.kind === 'statement');
    assert.deepEqual(proved.content.statement, STATEMENT);
    const json = JSON.parse(bundle.toString());
    assert.equal(json.mediaType, 'application/vnd.dev.sigstore.bundle.v0.3+json');
    assert.ok('certificate' in json.verificationMaterial);
  });

  test('bare bytes are signed and verified', async () => {
    const proved = verify(await signer().signMessage(MANIFEST), MESSAGE);
    assert.deepEqual(proved.content, { kind: 'message', digest: DIGEST });
  });

  test('logs of Rekor 2 count with the time of an authority', async () => {
    const services = { ...sigstore.services, logs: [{ url: sigstore.url, apiVersion: 2 as const }] };
    for (const [bundle, expected] of [
      [await signer(services).signStatement(STATEMENT), EXPECTED],
      [await signer(services).signMessage(MANIFEST), MESSAGE],
    ] as const) {
      const proved = verify(bundle, expected);
      assert.equal(proved.logs.length, 1);
      assert.equal(proved.logs[0]?.integratedAt, undefined);
      assert.deepEqual(proved.signedAt, proved.timestamps[0]?.at);
    }
  });

  test('SIGNING_CONFIG_INVALID when nothing would vouch for the time, or no authority is named', () => {
    const rekor2 = {
      certificateAuthority: sigstore.url,
      logs: [{ url: sigstore.url, apiVersion: 2 as const }],
      timestampAuthorities: [],
    };
    assert.throws(() => signer(rekor2), rejectsWith('SIGNING_CONFIG_INVALID', /time/));
    assert.throws(
      () => signer({ logs: [], timestampAuthorities: [] }),
      rejectsWith('SIGNING_CONFIG_INVALID', /authority/),
    );
    assert.throws(
      () => signer({ ...sigstore.services, certificateAuthority: 'http://fulcio.example' }),
      rejectsWith('SIGNING_CONFIG_INVALID', /https/),
    );
  });

  test('SIGNING_FAILED names no token, whatever goes wrong', async () => {
    const token = 'c2VjcmV0LXRva2Vu.bm90LWpzb24.eHg';
    const broken: [string, string][] = [
      [token, sigstore.url],
      [identityToken(), `${sigstore.url}/nowhere`],
    ];
    for (const [given, certificateAuthority] of broken) {
      const failing = keylessSigner(async () => given, { ...sigstore.services, certificateAuthority });
      await assert.rejects(failing.signStatement(STATEMENT), (error: unknown) => {
        assert.ok(error instanceof CtError);
        assert.equal(error.code, 'SIGNING_FAILED');
        assert.equal(error.cause, undefined);
        assert.ok(!`${error.message} ${error.stack}`.includes(given), error.message);
        return true;
      });
    }
  });

  test('SIGNING_FAILED when a witness fails: there is no bundle with less evidence than was asked for', async () => {
    const services = { ...sigstore.services, timestampAuthorities: [`${sigstore.url}/nowhere`] };
    await assert.rejects(
      signer(services).signStatement(STATEMENT),
      rejectsWith('SIGNING_FAILED', /did not vouch/),
    );
  });

  test('SIGNING_FAILED when a service or the identity provider does not answer', async () => {
    const silent = createServer(() => {});
    silent.listen(0, '127.0.0.1');
    await once(silent, 'listening');
    try {
      const url = `http://127.0.0.1:${(silent.address() as AddressInfo).port}`;
      const timeouts = { requestMs: 200, signatureMs: 300 };
      const waiting = [
        keylessSigner(
          async () => identityToken(),
          { ...sigstore.services, certificateAuthority: url },
          timeouts,
        ),
        keylessSigner(
          async () => identityToken(),
          { ...sigstore.services, timestampAuthorities: [url] },
          timeouts,
        ),
        keylessSigner(() => new Promise(() => {}), sigstore.services, timeouts),
      ];
      for (const signer of waiting) {
        await assert.rejects(
          signer.signStatement(STATEMENT),
          rejectsWith('SIGNING_FAILED', /more than 0\.3 s/),
        );
      }
    } finally {
      silent.closeAllConnections();
      silent.close();
    }
  });

  test('cosign accepts the bundles offline', { skip: cosignMissing() }, async () => {
    using scratch = scratchDirectory();
    const path = (name: string, content: string | Uint8Array): string => {
      writeFileSync(join(scratch.path, name), content);
      return join(scratch.path, name);
    };
    const common = [
      '--trusted-root',
      path('root.json', sigstore.trustedRoot),
      '--certificate-identity',
      IDENTITY,
      '--certificate-oidc-issuer',
      ISSUER,
    ];
    const artifact = path('manifest.json', MANIFEST);
    const attestation = path('attestation.json', await signer().signStatement(STATEMENT));
    const blob = path('blob.json', await signer().signMessage(MANIFEST));
    const type = ['--type', PROVENANCE_TYPE];
    cosign(['verify-blob-attestation', '--bundle', attestation, ...type, ...common, artifact]);
    cosign(['verify-blob', '--bundle', blob, ...common, artifact]);
    const other = path('other.json', 'another artifact');
    assert.throws(() => cosign(['verify-blob', '--bundle', blob, ...common, other]));
  });
});

describe('own keys', () => {
  for (const kind of ['ecdsa-p256', 'ed25519'] as const) {
    test(`a statement signed with an ${kind} key verifies, with a passphrase as without`, async () => {
      for (const passphrase of [undefined, 'correct horse']) {
        const pair = generateKeyPair(kind, passphrase);
        const source = await ownKey(
          pair.privateKeyPem,
          async () => passphrase ?? assert.fail('asked for nothing'),
        );
        const bundle = await keySigner(source, NO_SERVICES).signStatement(STATEMENT);
        const trust = loadTrust({ keys: [{ name: 'release', pem: pair.publicKeyPem }] });
        const proved = verifyBundle({ bundle, expected: EXPECTED, policy: BY_KEY, trust, now: new Date() });
        assert.deepEqual(proved.signer, { kind: 'key', name: 'release', keyId: pair.keyId });
        assert.equal(proved.signedAt, undefined);
        assert.equal(
          JSON.parse(bundle.toString()).verificationMaterial.publicKey.hint,
          createHash('sha256')
            .update(Buffer.from(pair.publicKeyPem.replaceAll(/-----.*-----|\n/g, ''), 'base64'))
            .digest('base64'),
        );
      }
    });
  }

  test('a signature of an own key can be logged and timestamped, and policy can demand that', async () => {
    await using sigstore = await startSigstore();
    for (const kind of ['ecdsa-p256', 'ed25519'] as const) {
      const pair = generateKeyPair(kind);
      const bundle = await keySigner(await ownKey(pair.privateKeyPem), sigstore.services).signStatement(
        STATEMENT,
      );
      const trust = loadTrust({
        trustedRoot: sigstore.trustedRoot,
        keys: [{ name: 'release', pem: pair.publicKeyPem }],
      });
      const policy = { keys: { names: ['release'], logs: 1, timestampAuthorities: 1 } };
      const proved = verifyBundle({ bundle, expected: EXPECTED, policy, trust, now: new Date() });
      assert.equal(proved.logs.length, 1);
      assert.equal(proved.timestamps.length, 1);
    }
  });

  test('SIGNING_KEY_INVALID for a wrong passphrase, a key of another kind, and bare bytes with Ed25519', async () => {
    const encrypted = generateKeyPair('ecdsa-p256', 'right').privateKeyPem;
    await assert.rejects(
      ownKey(encrypted, async () => 'wrong'),
      rejectsWith('SIGNING_KEY_INVALID'),
    );
    await assert.rejects(ownKey(encrypted), rejectsWith('SIGNING_KEY_INVALID', /passphrase/));
    await assert.rejects(ownKey('no key'), rejectsWith('SIGNING_KEY_INVALID', /PKCS#8/));
    const ed25519 = keySigner(await ownKey(generateKeyPair('ed25519').privateKeyPem), NO_SERVICES);
    await assert.rejects(ed25519.signMessage(MANIFEST), rejectsWith('SIGNING_KEY_INVALID', /Ed25519/));
  });

  test('cosign accepts bundles of own keys', { skip: cosignMissing() }, async () => {
    using scratch = scratchDirectory();
    const path = (name: string, content: string | Uint8Array): string => {
      writeFileSync(join(scratch.path, name), content);
      return join(scratch.path, name);
    };
    const artifact = path('manifest.json', MANIFEST);
    for (const kind of ['ecdsa-p256', 'ed25519'] as const) {
      const pair = generateKeyPair(kind);
      const signer = keySigner(await ownKey(pair.privateKeyPem), NO_SERVICES);
      const key = ['--key', path('key.pem', pair.publicKeyPem), '--insecure-ignore-tlog'];
      const attestation = path('attestation.json', await signer.signStatement(STATEMENT));
      const type = ['--type', PROVENANCE_TYPE];
      cosign(['verify-blob-attestation', '--bundle', attestation, ...type, ...key, artifact]);
      if (kind === 'ed25519') continue;
      const blob = path('blob.json', await signer.signMessage(MANIFEST));
      cosign(['verify-blob', '--bundle', blob, ...key, artifact]);
    }
  });
});

describe('a command that signs', () => {
  const pair = generateKeyPair();
  const script = (directory: string, body: string): string => {
    writeFileSync(join(directory, 'key.pem'), pair.privateKeyPem, { mode: 0o600 });
    const file = join(directory, 'kms');
    writeFileSync(file, `#!/bin/sh\n${body}\n`);
    chmodSync(file, 0o755);
    return file;
  };
  const signWith = (file: string, more: Partial<SigningCommand> = {}) =>
    keySigner(
      commandKey({
        argv: [file],
        input: 'message',
        output: 'raw',
        publicKeyPem: pair.publicKeyPem,
        ...more,
      }),
      NO_SERVICES,
    ).signStatement(STATEMENT);

  test('gets the message or its digest and answers in bytes or base64', async () => {
    using scratch = scratchDirectory();
    const key = join(scratch.path, 'key.pem');
    const trust = loadTrust({ keys: [{ name: 'release', pem: pair.publicKeyPem }] });
    const message = script(scratch.path, `exec openssl dgst -sha256 -sign ${key}`);
    const byMessage = await signWith(message);
    const digest = script(scratch.path, `openssl pkeyutl -sign -inkey ${key} | base64`);
    const byDigest = await signWith(digest, { input: 'digest', output: 'base64' });
    for (const bundle of [byMessage, byDigest]) {
      const proved = verifyBundle({ bundle, expected: EXPECTED, policy: BY_KEY, trust, now: new Date() });
      assert.equal(proved.signer.kind, 'key');
    }
  });

  test('SIGNING_FAILED when it fails, is missing, is too slow, or answers with anything else', async () => {
    using scratch = scratchDirectory();
    const failing = script(scratch.path, 'echo no such key >&2; exit 3');
    await assert.rejects(signWith(failing), rejectsWith('SIGNING_FAILED', /no such key/));
    await assert.rejects(signWith(join(scratch.path, 'absent')), rejectsWith('SIGNING_FAILED'));
    const slow = script(scratch.path, 'exec sleep 30');
    await assert.rejects(signWith(slow, { timeoutMs: 200 }), rejectsWith('SIGNING_FAILED', /in time/));
    const wrong = script(scratch.path, 'cat');
    await assert.rejects(signWith(wrong), rejectsWith('SIGNING_FAILED', /verifies/));
  });

  test('sees nothing of our environment but PATH and HOME', async () => {
    using scratch = scratchDirectory();
    process.env['CT_TEST_SECRET'] = 'visible';
    try {
      const spy = script(scratch.path, 'env >&2; exit 1');
      await assert.rejects(signWith(spy, { env: { KMS_KEY: 'release' } }), (error: Error) => {
        assert.match(error.message, /KMS_KEY=release/);
        assert.doesNotMatch(error.message, /CT_TEST_SECRET/);
        return true;
      });
    } finally {
      delete process.env['CT_TEST_SECRET'];
    }
  });
});

describe('a signing configuration', () => {
  const now = new Date('2026-06-01T00:00:00Z');
  const service = (url: string, majorApiVersion: number, start: string, more: object = {}) => ({
    url,
    majorApiVersion,
    validFor: { start, ...more },
    operator: new URL(url).host.split('.').slice(-2).join('.'),
  });
  const config = (change: object = {}): Buffer =>
    Buffer.from(
      JSON.stringify({
        mediaType: 'application/vnd.dev.sigstore.signingconfig.v0.2+json',
        caUrls: [
          service('https://old.ca.example', 1, '2024-01-01T00:00:00Z', { end: '2025-01-01T00:00:00Z' }),
          service('https://ca.example', 1, '2025-01-01T00:00:00Z'),
          service('https://future.example', 9, '2025-01-01T00:00:00Z'),
        ],
        rekorTlogUrls: [
          service('https://log1.example', 1, '2024-01-01T00:00:00Z'),
          service('https://log2.example', 2, '2025-01-01T00:00:00Z'),
          service('https://next.example', 2, '2027-01-01T00:00:00Z'),
        ],
        rekorTlogConfig: { selector: 'ANY' },
        tsaUrls: [service('https://tsa.example/api/v1/timestamp', 1, '2025-01-01T00:00:00Z')],
        tsaConfig: { selector: 'EXACT', count: 1 },
        ...change,
      }),
    );

  test('names the services in force', () => {
    assert.deepEqual(parseSigningConfig(config(), now), {
      certificateAuthority: 'https://ca.example',
      logs: [{ url: 'https://log2.example', apiVersion: 2 }],
      timestampAuthorities: ['https://tsa.example/api/v1/timestamp'],
    });
  });

  test('SIGNING_CONFIG_INVALID if it does not parse, has too few services, or an insecure one', () => {
    const bad = [
      Buffer.from('{'),
      config({ mediaType: 'application/json' }),
      config({ tsaConfig: { selector: 'EXACT', count: 2 } }),
      config({ rekorTlogConfig: {} }),
      config({ caUrls: [service('http://ca.example', 1, '2025-01-01T00:00:00Z')] }),
    ];
    for (const document of bad) {
      assert.throws(() => parseSigningConfig(document, now), rejectsWith('SIGNING_CONFIG_INVALID'));
    }
  });
});

function cosignMissing(): string | false {
  try {
    execFileSync('cosign', ['version'], { stdio: 'ignore' });
    return false;
  } catch {
    return 'cosign is not on PATH: whether it accepts our bundles was not tried';
  }
}

/** Its home is a fresh directory and its proxy leads nowhere: it must not reach for the network. */
function cosign(args: readonly string[]): void {
  using home = scratchDirectory();
  execFileSync('cosign', args, {
    stdio: 'pipe',
    timeout: 60_000,
    env: { PATH: process.env['PATH'], HOME: home.path, HTTPS_PROXY: 'http://127.0.0.1:1' },
  });
}
