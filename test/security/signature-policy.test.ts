/** Signatures that are genuine, but not what policy asks for; each refused with its own code. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { bundleFromJSON } from '@sigstore/bundle';
import { toSignedEntity, Verifier } from '@sigstore/verify';
import { CtError, type ErrorCode } from '../../src/core/errors.ts';
import { generateKeyPair, type KeyPair, ownKey } from '../../src/signing/own-key.ts';
import { NO_SERVICES, type SigningServices } from '../../src/signing/services.ts';
import { keylessSigner, keySigner, type Signer } from '../../src/signing/signer.ts';
import { buildStatement } from '../../src/verification/statement.ts';
import { loadTrust, type Trust, type TrustedKey } from '../../src/verification/trust.ts';
import {
  type Expected,
  type SignerPolicy,
  type VerifyOptions,
  verifyAnyBundle,
  verifyBundle,
} from '../../src/verification/verify.ts';
import {
  IDENTITY,
  ISSUER,
  identityToken,
  type LogEntryBody,
  type Sigstore,
  type SigstoreOptions,
  startSigstore,
} from '../support/sigstore.ts';

const digestOf = (text: string): string => `sha256:${createHash('sha256').update(text).digest('hex')}`;
const PREDICATE_TYPE = 'https://ct.example/image/v1';
const statementAbout = (artifact: string, predicateType = PREDICATE_TYPE) =>
  buildStatement({ subjects: [{ name: 'image', digest: digestOf(artifact) }], predicateType, predicate: {} });
const ABOUT_NEW: Expected = {
  kind: 'statement',
  digest: digestOf('new image'),
  predicateType: PREDICATE_TYPE,
};
const message = (artifact: string): Expected => ({ kind: 'message', artifact: Buffer.from(artifact) });

type KeylessRule = NonNullable<SignerPolicy['keyless']>;
const keylessRule = (change: Partial<KeylessRule> = {}): SignerPolicy => ({
  keyless: {
    identities: [{ issuer: ISSUER, subject: IDENTITY }],
    logs: 1,
    timestampAuthorities: 1,
    certificateLogs: 1,
    ...change,
  },
});

/** A bundle's JSON, changed. */
// biome-ignore lint/suspicious/noExplicitAny: tests reach into the document
function edited(bundle: Buffer, change: (json: any) => void): Buffer {
  const json: unknown = JSON.parse(bundle.toString());
  change(json);
  return Buffer.from(JSON.stringify(json));
}

function refused(code: ErrorCode, options: Partial<VerifyOptions> & Pick<VerifyOptions, 'bundle' | 'trust'>) {
  const { expected = ABOUT_NEW, policy = keylessRule(), now = new Date() } = options;
  assert.throws(
    () => verifyBundle({ expected, policy, now, bundle: options.bundle, trust: options.trust }),
    (error: unknown) => {
      assert.ok(error instanceof CtError, String(error));
      assert.equal(error.code, code, error.message);
      return true;
    },
  );
}

const accepted = (options: Partial<VerifyOptions> & Pick<VerifyOptions, 'bundle' | 'trust'>) =>
  verifyBundle({ expected: ABOUT_NEW, policy: keylessRule(), now: new Date(), ...options });

describe('keyless signatures', () => {
  let sigstore: Sigstore;
  let trust: Trust;
  let good: Buffer;
  const signer = (token = identityToken(), services: Partial<SigningServices> = {}): Signer =>
    keylessSigner(async () => token, { ...sigstore.services, ...services });
  before(async () => {
    sigstore = await startSigstore();
    trust = loadTrust({ trustedRoot: sigstore.trustedRoot });
    good = await signer().signStatement(statementAbout('new image'));
  });
  after(() => sigstore[Symbol.asyncDispose]());

  test('negative control: the signature as it was made is accepted', () => {
    assert.equal(accepted({ bundle: good, trust }).signer.kind, 'keyless');
  });

  test('SIGNATURE_MISSING when there is none', () => {
    refused('SIGNATURE_MISSING', { bundle: undefined, trust });
  });

  test('SIGNATURE_SUBJECT_MISMATCH for a signature of another artifact, and for an older image played again', async () => {
    const older = await signer().signStatement(statementAbout('old image'));
    refused('SIGNATURE_SUBJECT_MISMATCH', { bundle: older, trust });
    const blob = await signer().signMessage(Buffer.from('old image'));
    refused('SIGNATURE_SUBJECT_MISMATCH', { bundle: blob, trust, expected: message('new image') });
    assert.equal(accepted({ bundle: blob, trust, expected: message('old image') }).content.kind, 'message');
  });

  test('SIGNATURE_PREDICATE_MISMATCH for a statement of another type, another payload, or bytes', async () => {
    const other = await signer().signStatement(statementAbout('new image', `${PREDICATE_TYPE}/other`));
    refused('SIGNATURE_PREDICATE_MISMATCH', { bundle: other, trust });
    const bytes = Buffer.from(JSON.stringify(statementAbout('new image')));
    const payload = await signer().sign({ type: 'application/json', bytes });
    refused('SIGNATURE_PREDICATE_MISMATCH', { bundle: payload, trust });
    const blob = await signer().signMessage(Buffer.from('new image'));
    refused('SIGNATURE_PREDICATE_MISMATCH', { bundle: blob, trust });
    refused('SIGNATURE_PREDICATE_MISMATCH', { bundle: good, trust, expected: message('new image') });
  });

  test('SIGNATURE_MALFORMED for a signed payload that only calls itself a statement', async () => {
    const bytes = Buffer.from(JSON.stringify({ ...statementAbout('new image'), _type: 'something' }));
    const bundle = await signer().sign({ type: 'application/vnd.in-toto+json', bytes });
    refused('SIGNATURE_MALFORMED', { bundle, trust });
  });

  test('SIGNATURE_INVALID when parts of two genuine signatures of the same signer are mixed', async () => {
    const other = JSON.parse((await signer().signStatement(statementAbout('old image'))).toString());
    const mixed = [
      edited(good, (json) => {
        json.dsseEnvelope.payload = other.dsseEnvelope.payload;
      }),
      edited(good, (json) => {
        json.dsseEnvelope.signatures = other.dsseEnvelope.signatures;
      }),
      edited(good, (json) => {
        json.verificationMaterial.tlogEntries = other.verificationMaterial.tlogEntries;
      }),
      edited(good, (json) => {
        json.verificationMaterial.timestampVerificationData =
          other.verificationMaterial.timestampVerificationData;
      }),
      edited(good, (json) => {
        json.verificationMaterial.certificate = other.verificationMaterial.certificate;
      }),
    ];
    for (const bundle of mixed) refused('SIGNATURE_INVALID', { bundle, trust });
  });

  test('SIGNATURE_UNTRUSTED for another issuer of the same identity', async () => {
    const bundle = await signer(identityToken(IDENTITY, 'https://evil.example')).signStatement(
      statementAbout('new image'),
    );
    refused('SIGNATURE_UNTRUSTED', { bundle, trust });
  });

  test('SIGNATURE_UNTRUSTED for identities that only a loose regular expression would take for the right one', async () => {
    const identities = [
      `https://evil.example/${IDENTITY}`,
      `x${IDENTITY}`,
      `${IDENTITY}.evil`,
      `${IDENTITY}0`,
      IDENTITY.replace('github.com', 'githubXcom'),
      IDENTITY.replace('release.yml', 'release-yml'),
    ];
    for (const identity of identities) {
      const bundle = await signer(identityToken(identity)).signStatement(statementAbout('new image'));
      // The control: the library takes what it is given for an unanchored expression, and accepts each of them.
      const entity = toSignedEntity(bundleFromJSON(JSON.parse(bundle.toString())));
      new Verifier(trust.material).verify(entity, { subjectAlternativeName: IDENTITY });
      refused('SIGNATURE_UNTRUSTED', { bundle, trust });
      const pattern = IDENTITY.replace('v1', '*');
      const byPattern = keylessRule({ identities: [{ issuer: ISSUER, subject: { pattern } }] });
      if (!identity.startsWith(IDENTITY)) {
        refused('SIGNATURE_UNTRUSTED', { bundle, trust, policy: byPattern });
      }
      assert.equal(accepted({ bundle: good, trust, policy: byPattern }).signer.kind, 'keyless');
    }
    const cased = await signer(identityToken(IDENTITY.toUpperCase())).signStatement(
      statementAbout('new image'),
    );
    refused('SIGNATURE_UNTRUSTED', { bundle: cased, trust });
  });

  test('SIGNATURE_MALFORMED for names that are not printable ASCII, whatever a decoder would make of them', async () => {
    const bundle = await signer(identityToken(IDENTITY, 'https://tok\u00e9n.example')).signStatement(
      statementAbout('new image'),
    );
    refused('SIGNATURE_MALFORMED', { bundle, trust });
  });

  test('SIGNATURE_UNTRUSTED for a signer of another Sigstore, even where everything else is trusted', async () => {
    await using other = await startSigstore();
    const bundle = await keylessSigner(async () => identityToken(), other.services).signStatement(
      statementAbout('new image'),
    );
    refused('SIGNATURE_UNTRUSTED', { bundle, trust });
    const { certificateAuthorities } = trust.root ?? assert.fail();
    const mixed = other.rootWith((root) => {
      root.certificateAuthorities = certificateAuthorities;
    });
    refused('SIGNATURE_UNTRUSTED', { bundle, trust: loadTrust({ trustedRoot: mixed }) });
    assert.ok(accepted({ bundle, trust: loadTrust({ trustedRoot: other.trustedRoot }) }));
  });

  test('SIGNATURE_LOG_MISSING without the log entry that policy demands, and SIGNATURE_TIMESTAMP_MISSING likewise', async () => {
    const unlogged = await signer(identityToken(), { logs: [] }).signStatement(statementAbout('new image'));
    refused('SIGNATURE_LOG_MISSING', { bundle: unlogged, trust });
    const stripped = edited(good, (json) => {
      json.verificationMaterial.tlogEntries = [];
    });
    refused('SIGNATURE_LOG_MISSING', { bundle: stripped, trust });
    const policy = keylessRule({ logs: 0 });
    for (const bundle of [unlogged, stripped])
      assert.equal(accepted({ bundle, trust, policy }).logs.length, 0);

    const untimed = await signer(identityToken(), { timestampAuthorities: [] }).signStatement(
      statementAbout('new image'),
    );
    refused('SIGNATURE_TIMESTAMP_MISSING', { bundle: untimed, trust });
    const byLog = keylessRule({ timestampAuthorities: 0 });
    assert.equal(accepted({ bundle: untimed, trust, policy: byLog }).timestamps.length, 0);
  });

  test('one log entry, however often it is there, is not two', () => {
    const twice = edited(good, (json) => {
      json.verificationMaterial.tlogEntries.push(json.verificationMaterial.tlogEntries[0]);
    });
    refused('SIGNATURE_LOG_MISSING', { bundle: twice, trust, policy: keylessRule({ logs: 2 }) });
    refused('SIGNATURE_INVALID', { bundle: twice, trust });
  });

  test('SIGNATURE_TIMESTAMP_MISSING when the only witness is a log that signs no times', async () => {
    const logs = [{ url: sigstore.url, apiVersion: 2 as const }];
    const bundle = edited(
      await signer(identityToken(), { logs }).signStatement(statementAbout('new image')),
      (json) => {
        delete json.verificationMaterial.timestampVerificationData;
      },
    );
    refused('SIGNATURE_TIMESTAMP_MISSING', {
      bundle,
      trust,
      policy: keylessRule({ timestampAuthorities: 0 }),
    });
    const withTime = edited(bundle, (json) => {
      json.verificationMaterial.tlogEntries[0].integratedTime = String(
        Math.floor(sigstore.time.getTime() / 1000),
      );
    });
    refused('SIGNATURE_TIMESTAMP_MISSING', {
      bundle: withTime,
      trust,
      policy: keylessRule({ timestampAuthorities: 0 }),
    });
  });

  test('evidence beyond what policy demands is not ignored: it must be trusted too', async () => {
    const noLogs = loadTrust({
      trustedRoot: sigstore.rootWith((root) => {
        root.tlogs = [];
      }),
    });
    refused('SIGNATURE_UNTRUSTED', { bundle: good, trust: noLogs, policy: keylessRule({ logs: 0 }) });
    const noAuthorities = loadTrust({
      trustedRoot: sigstore.rootWith((root) => {
        root.timestampAuthorities = [];
      }),
    });
    refused('SIGNATURE_UNTRUSTED', {
      bundle: good,
      trust: noAuthorities,
      policy: keylessRule({ timestampAuthorities: 0 }),
    });
  });

  test('SIGNATURE_EXPIRED when it was made in the future', () => {
    refused('SIGNATURE_EXPIRED', {
      bundle: good,
      trust,
      now: new Date(sigstore.time.getTime() - 10 * 60_000),
    });
    assert.ok(
      accepted({ bundle: good, trust, now: new Date(sigstore.time.getTime() + 10 * 365 * 86_400_000) }),
    );
  });

  test('TRUST_INVALID for a policy that demands no evidence of the time', () => {
    const policy = keylessRule({ logs: 0, timestampAuthorities: 0 });
    refused('TRUST_INVALID', { bundle: good, trust, policy });
  });

  test('SIGNATURE_UNTRUSTED for keyless signatures where only keys are accepted', () => {
    const pair = generateKeyPair();
    const both = loadTrust({
      trustedRoot: sigstore.trustedRoot,
      keys: [{ name: 'release', pem: pair.publicKeyPem }],
    });
    const policy = { keys: { names: ['release'], logs: 0, timestampAuthorities: 0 } };
    refused('SIGNATURE_UNTRUSTED', { bundle: good, trust: both, policy });
  });

  test('older formats are read: a chain of certificates in version 0.2', () => {
    const bundle = edited(good, (json) => {
      json.mediaType = 'application/vnd.dev.sigstore.bundle+json;version=0.2';
      json.verificationMaterial.x509CertificateChain = {
        certificates: [json.verificationMaterial.certificate],
      };
      delete json.verificationMaterial.certificate;
    });
    assert.ok(accepted({ bundle, trust }));
  });

  test('of several signatures one is enough, and otherwise the error of the best is told', async () => {
    const older = await signer().signStatement(statementAbout('old image'));
    const options = { expected: ABOUT_NEW, trust, policy: keylessRule(), now: new Date() };
    assert.equal(verifyAnyBundle([Buffer.from('{}'), older, good], options).signer.kind, 'keyless');
    const codeOf = (bundles: Buffer[]): unknown => {
      try {
        return verifyAnyBundle(bundles, options);
      } catch (error) {
        return (error as CtError).code;
      }
    };
    assert.equal(codeOf([]), 'SIGNATURE_MISSING');
    assert.equal(codeOf([older, Buffer.from('{}')]), 'SIGNATURE_SUBJECT_MISMATCH');
    assert.equal(codeOf(new Array(65).fill(good)), 'SIGNATURE_MALFORMED');
  });

  test('verifying takes no more than 25 ms', (context) => {
    const times = Array.from({ length: 21 }, () => {
      const start = performance.now();
      accepted({ bundle: good, trust });
      return performance.now() - start;
    }).sort((a, b) => a - b);
    const medianMs = times[10] ?? Number.NaN;
    context.diagnostic(`median ${medianMs.toFixed(1)} ms`);
    assert.ok(medianMs <= 25, `median ${medianMs.toFixed(1)} ms`);
  });
});

describe('a Sigstore that does not behave', () => {
  const signedBy = async (
    options: SigstoreOptions,
    use: (bundle: Buffer, trust: Trust, sigstore: Sigstore) => void,
  ): Promise<void> => {
    await using sigstore = await startSigstore(options);
    const signer = keylessSigner(async () => identityToken(), sigstore.services);
    const bundle = await signer.signStatement(statementAbout('new image'));
    use(bundle, loadTrust({ trustedRoot: sigstore.trustedRoot }), sigstore);
  };

  test('SIGNATURE_EXPIRED when the certificate had ended before it was used', async () => {
    await signedBy({ certificateTime: new Date(Date.now() - 3600_000) }, (bundle, trust) => {
      refused('SIGNATURE_EXPIRED', { bundle, trust });
    });
  });

  test('SIGNATURE_LOG_MISSING when the certificate is in no certificate log, though the root names one', async () => {
    await signedBy({ certificateLog: false }, (bundle, trust, sigstore) => {
      refused('SIGNATURE_LOG_MISSING', { bundle, trust });
      assert.ok(accepted({ bundle, trust, policy: keylessRule({ certificateLogs: 0 }) }));
      const withLog = loadTrust({
        trustedRoot: sigstore.rootWith((root) => {
          root.ctlogs = root.tlogs;
        }),
      });
      refused('SIGNATURE_LOG_MISSING', {
        bundle,
        trust: withLog,
        policy: keylessRule({ certificateLogs: 0 }),
      });
    });
  });

  test('SIGNATURE_INVALID when the log names another signer, so that nobody who watches it would see ours', async () => {
    const other = generateKeyPair().publicKeyPem;
    const rewriteEntry = (entry: LogEntryBody): unknown => {
      entry.spec.signatures[0].verifier = Buffer.from(other).toString('base64');
      return entry;
    };
    await signedBy({ rewriteEntry }, (bundle, trust) => {
      // The control: the library does not compare the two.
      new Verifier(trust.material).verify(toSignedEntity(bundleFromJSON(JSON.parse(bundle.toString()))));
      refused('SIGNATURE_INVALID', { bundle, trust });
    });
  });
});

describe('signatures of own keys', () => {
  const pair = generateKeyPair();
  const attacker = generateKeyPair();
  const signWith = async ({ privateKeyPem }: KeyPair, services = NO_SERVICES): Promise<Buffer> =>
    keySigner(await ownKey(privateKeyPem), services).signStatement(statementAbout('new image'));
  const trustIn = (key: Partial<TrustedKey> = {}, trustedRoot?: Uint8Array): Trust =>
    loadTrust({
      keys: [{ name: 'release', pem: pair.publicKeyPem, ...key }],
      ...(trustedRoot === undefined ? {} : { trustedRoot }),
    });
  const rule = (logs = 0, timestampAuthorities = 0): SignerPolicy => ({
    keys: { names: ['release'], logs, timestampAuthorities },
  });

  test('SIGNATURE_UNTRUSTED for a key that is unknown, not named by policy, or named like a part of JavaScript', async () => {
    const policy = rule();
    refused('SIGNATURE_UNTRUSTED', { bundle: await signWith(attacker), trust: trustIn(), policy });
    const bundle = await signWith(pair);
    refused('SIGNATURE_UNTRUSTED', { bundle, trust: trustIn({ name: 'another' }), policy });
    for (const hint of ['__proto__', 'constructor', '']) {
      const named = edited(bundle, (json) => {
        json.verificationMaterial.publicKey.hint = hint;
      });
      refused('SIGNATURE_UNTRUSTED', { bundle: named, trust: trustIn(), policy });
    }
    assert.ok(accepted({ bundle, trust: trustIn(), policy }));
  });

  test('SIGNATURE_INVALID for a signature of another key under the hint of the right one', async () => {
    const genuine = JSON.parse((await signWith(pair)).toString());
    const bundle = edited(await signWith(attacker), (json) => {
      json.verificationMaterial.publicKey = genuine.verificationMaterial.publicKey;
    });
    refused('SIGNATURE_INVALID', { bundle, trust: trustIn(), policy: rule() });
  });

  test('SIGNATURE_LOG_MISSING and SIGNATURE_TIMESTAMP_MISSING when policy demands evidence for keys', async () => {
    const bundle = await signWith(pair);
    refused('SIGNATURE_LOG_MISSING', { bundle, trust: trustIn(), policy: rule(1, 0) });
    refused('SIGNATURE_TIMESTAMP_MISSING', { bundle, trust: trustIn(), policy: rule(0, 1) });
  });

  test('SIGNATURE_EXPIRED for a key past its term, unless an authority saw the signature before', async () => {
    await using sigstore = await startSigstore();
    const { time, trustedRoot } = sigstore;
    const at = (offsetMs: number): Date => new Date(time.getTime() + offsetMs);
    const later = at(3600_000);
    const bare = await signWith(pair);
    refused('SIGNATURE_EXPIRED', {
      bundle: bare,
      trust: trustIn({ validUntil: at(60_000) }),
      policy: rule(),
      now: later,
    });
    const timed = await signWith(pair, sigstore.services);
    const inTerm = trustIn({ validUntil: at(60_000) }, trustedRoot);
    assert.ok(accepted({ bundle: timed, trust: inTerm, policy: rule(1, 1), now: later }));
    for (const term of [{ validUntil: at(-60_000) }, { validFrom: at(60_000) }]) {
      const trust = trustIn(term, trustedRoot);
      refused('SIGNATURE_EXPIRED', { bundle: timed, trust, policy: rule(1, 1), now: later });
    }
  });

  test('SIGNATURE_UNTRUSTED for log entries and timestamps that no trusted root can vouch for', async () => {
    await using sigstore = await startSigstore();
    const bundle = await signWith(pair, sigstore.services);
    refused('SIGNATURE_UNTRUSTED', { bundle, trust: trustIn(), policy: rule() });
  });
});
