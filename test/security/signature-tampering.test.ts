/** Changes each leaf of a bundle, byte for byte: nothing in it can be altered without a refusal or without effect. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { CtError } from '../../src/core/errors.ts';
import { generateKeyPair, ownKey } from '../../src/signing/own-key.ts';
import { NO_SERVICES } from '../../src/signing/services.ts';
import { keylessSigner, keySigner, type Signer } from '../../src/signing/signer.ts';
import { buildStatement } from '../../src/verification/statement.ts';
import { loadTrust, type Trust } from '../../src/verification/trust.ts';
import { type Expected, type SignerPolicy, verifyBundle } from '../../src/verification/verify.ts';
import { IDENTITY, ISSUER, identityToken, type Sigstore, startSigstore } from '../support/sigstore.ts';

const ARTIFACT = Buffer.from('an image manifest');
const DIGEST = `sha256:${createHash('sha256').update(ARTIFACT).digest('hex')}`;
const PREDICATE_TYPE = 'https://ct.example/image/v1';
const STATEMENT = buildStatement({
  subjects: [{ name: 'image', digest: DIGEST }],
  predicateType: PREDICATE_TYPE,
  predicate: { built: true },
});
const AS_STATEMENT: Expected = { kind: 'statement', digest: DIGEST, predicateType: PREDICATE_TYPE };
const AS_MESSAGE: Expected = { kind: 'message', artifact: ARTIFACT };
const evidence = { logs: 1, timestampAuthorities: 1 };
const KEYLESS: SignerPolicy = {
  keyless: { identities: [{ issuer: ISSUER, subject: IDENTITY }], certificateLogs: 1, ...evidence },
};

/** Each of the first bytes of a leaf is changed (headers of ASN.1 are there), then every 17th. */
const EVERY_BYTE_UP_TO = 48;
const STRIDE = 17;

/**
 * The only leaf in which some bytes may change: the wrapper of an RFC 3161 timestamp (tags and versions of CMS around what
 * is signed) says nothing that is used. What is proved has to stay the same then.
 */
const UNCOVERED = 'signedTimestamp';
const MAX_UNCOVERED_SHARE = 0.4; // the first bytes, of which all are tried, are mostly wrapper

type Path = readonly (string | number)[];

function* leavesOf(value: unknown, path: Path = []): Generator<{ path: Path; value: string }> {
  if (typeof value === 'string') yield { path, value };
  else if (typeof value === 'object' && value !== null) {
    for (const [key, inner] of Object.entries(value)) yield* leavesOf(inner, [...path, key]);
  } else assert.fail(`${path.join('.')} is neither text nor a container`);
}

function* changesOf(value: string): Generator<string> {
  const bytes = Buffer.from(value, 'base64');
  const isBase64 = value.length >= 16 && bytes.toString('base64') === value;
  const length = isBase64 ? bytes.length : value.length;
  for (let index = 0; index < length; index += index < EVERY_BYTE_UP_TO ? 1 : STRIDE) {
    if (isBase64) {
      const changed = Buffer.from(bytes);
      changed[index] = (changed[index] ?? 0) ^ 1;
      yield changed.toString('base64');
    } else {
      const character = String.fromCharCode(value.charCodeAt(index) ^ 1);
      yield value.slice(0, index) + character + value.slice(index + 1);
    }
  }
  yield `${value}A`;
  yield value.slice(0, -1);
  yield '';
}

function withLeaf(bundle: unknown, path: Path, value: string): Buffer {
  const copy = structuredClone(bundle);
  let at = copy as Record<string | number, unknown>;
  for (const key of path.slice(0, -1)) at = at[key] as typeof at;
  at[path.at(-1) ?? ''] = value;
  return Buffer.from(JSON.stringify(copy));
}

describe('a bundle of which any byte was changed is refused, or proves the same as before', () => {
  let sigstore: Sigstore;
  let trust: Trust;
  const pair = generateKeyPair();
  before(async () => {
    sigstore = await startSigstore();
    trust = loadTrust({
      trustedRoot: sigstore.trustedRoot,
      keys: [{ name: 'release', pem: pair.publicKeyPem }],
    });
  });
  after(() => sigstore[Symbol.asyncDispose]());

  const keyless = (apiVersion: 1 | 2): Signer =>
    keylessSigner(async () => identityToken(), {
      ...sigstore.services,
      logs: [{ url: sigstore.url, apiVersion }],
    });
  const byKey = async (witnessed: boolean): Promise<Signer> =>
    keySigner(await ownKey(pair.privateKeyPem), witnessed ? sigstore.services : NO_SERVICES);
  const keys = (demanded: typeof evidence): SignerPolicy => ({ keys: { names: ['release'], ...demanded } });

  const cases: [string, () => Promise<Buffer>, Expected, SignerPolicy][] = [
    ['keyless statement, Rekor 1', () => keyless(1).signStatement(STATEMENT), AS_STATEMENT, KEYLESS],
    ['keyless message, Rekor 2', () => keyless(2).signMessage(ARTIFACT), AS_MESSAGE, KEYLESS],
    [
      'statement of an own key, logged',
      async () => (await byKey(true)).signStatement(STATEMENT),
      AS_STATEMENT,
      keys(evidence),
    ],
    [
      'statement of an own key alone',
      async () => (await byKey(false)).signStatement(STATEMENT),
      AS_STATEMENT,
      keys({ logs: 0, timestampAuthorities: 0 }),
    ],
  ];
  for (const [name, sign, expected, policy] of cases) {
    test(name, async () => {
      const bundle = await sign();
      const verify = (document: Buffer) =>
        verifyBundle({ bundle: document, expected, policy, trust, now: sigstore.time });
      const proved = verify(bundle);
      const json: unknown = JSON.parse(bundle.toString());
      const leaves = [...leavesOf(json)];
      assert.ok(leaves.length >= 5);
      for (const { path, value } of leaves) {
        const where = path.join('.');
        let [tried, accepted] = [0, 0];
        for (const change of changesOf(value)) {
          if (change === value) continue;
          tried++;
          try {
            assert.deepEqual(verify(withLeaf(json, path, change)), proved, `${where} changed what is proved`);
            accepted++;
            assert.ok(path.at(-1) === UNCOVERED, `${where} can be ${JSON.stringify(change).slice(0, 200)}`);
          } catch (error) {
            if (!(error instanceof CtError)) throw error;
            assert.match(error.code, /^SIGNATURE_/, `${where}: ${error.message}`);
          }
        }
        assert.ok(accepted <= tried * MAX_UNCOVERED_SHARE, `${where}: ${accepted} of ${tried} accepted`);
      }
    });
  }

  test('no field can be left out', async () => {
    const json: unknown = JSON.parse((await keyless(1).signStatement(STATEMENT)).toString());
    const paths = new Set<string>();
    for (const { path } of leavesOf(json)) {
      for (let end = 1; end <= path.length; end++) paths.add(JSON.stringify(path.slice(0, end)));
    }
    // The proof or the promise alone is enough of an inclusion in the log; the format asks for the proof.
    const spare = ['inclusionPromise', 'signedEntryTimestamp', 'keyid'];
    for (const serialized of paths) {
      const path = JSON.parse(serialized) as Path;
      const copy = structuredClone(json);
      let at = copy as Record<string | number, unknown>;
      for (const key of path.slice(0, -1)) at = at[key] as typeof at;
      if (Array.isArray(at)) at.splice(Number(path.at(-1)), 1);
      else delete at[path.at(-1) ?? ''];
      if (spare.includes(String(path.at(-1)))) continue;
      assert.throws(
        () =>
          verifyBundle({
            bundle: Buffer.from(JSON.stringify(copy)),
            expected: AS_STATEMENT,
            policy: KEYLESS,
            trust,
            now: sigstore.time,
          }),
        (error: unknown) => error instanceof CtError && error.code.startsWith('SIGNATURE_'),
        `${path.join('.')} can be left out`,
      );
    }
  });
});
