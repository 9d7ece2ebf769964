/** Nothing boots that policy does not let in: every way to get another image in ends before a VM is claimed. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { distribution } from '../../src/host/distribution.ts';
import { onPath } from '../../src/host/policy-compiler.ts';
import { attestationStatement } from '../../src/image/attestations.ts';
import { blobsOf, type ImageManifest } from '../../src/image/manifest.ts';
import { type ScanResult, storeResult } from '../../src/image/scan/result.ts';
import { ImageSignatures, imageStatement } from '../../src/image/signatures.ts';
import { verifyImage } from '../../src/image/verify.ts';
import { generateKeyPair, ownKey } from '../../src/signing/own-key.ts';
import { NO_SERVICES } from '../../src/signing/services.ts';
import { keylessSigner, keySigner, type Signer } from '../../src/signing/signer.ts';
import { buildProvenance } from '../../src/verification/provenance.ts';
import { type GuardedHost, guardedHost } from '../support/guarded-host.ts';
import { IDENTITY, ISSUER, identityToken, type Sigstore, startSigstore } from '../support/sigstore.ts';

const keys = generateKeyPair();
const otherKeys = generateKeyPair();
const indented = (pem: string): string => pem.trimEnd().replaceAll(/^/gm, '      ');

/** `local: deny`, an own key and an identity; `more`: further lines. */
const policyOf = (more = '', subject = IDENTITY, issuer = ISSUER): string =>
  `local: deny
trusted-root: trusted_root.json
signers:
  release:
    key: |
${indented(keys.publicKeyPem)}
  workflow: {issuer: '${issuer}', subject: '${subject}'}
${more}`;

let host: GuardedHost;
let sigstore: Sigstore;
before(async () => {
  sigstore = await startSigstore();
  // A little ahead of the clock: its certificates are.
  host = await guardedHost(() => new Date(Date.now() + 5000));
  host.addPolicyFile('trusted_root.json', sigstore.trustedRoot);
});
after(async () => {
  await host[Symbol.asyncDispose]();
  await sigstore[Symbol.asyncDispose]();
});

const release = async (pair = keys): Promise<Signer> =>
  keySigner(await ownKey(pair.privateKeyPem), NO_SERVICES);
const keyless = (
  over: Partial<Sigstore['services']> = {},
  token = identityToken(),
  from = sigstore,
): Signer => keylessSigner(async () => token, { ...from.services, ...over });

async function sign(digest: string, signer: Signer, about = digest, signedAt = new Date()): Promise<Buffer> {
  const bundle = await signer.signStatement(imageStatement('small', about, { signedAt }));
  await new ImageSignatures(host.ctHome).add(digest, bundle);
  return bundle;
}

async function refused(digest: string, code: string, rule?: string): Promise<void> {
  const before = host.alerts.length;
  const { claimed, result, events } = await host.run(digest);
  assert.equal(result.error?.code, code, JSON.stringify(result));
  assert.equal(claimed, false, 'a VM was claimed');
  assert.deepEqual(
    events.filter(({ type }) => type === 'claimed'),
    [],
  );
  assert.equal(result.exitCode, code === 'IMAGE_CORRUPT' || code === 'IMAGE_NOT_FOUND' ? 125 : 122);
  const filed = host.alerts.slice(before);
  assert.equal(filed.length, 1, JSON.stringify(filed));
  assert.equal(filed[0]?.action, 'denied');
  if (rule !== undefined) assert.equal(filed[0]?.rule, rule);
}

/** The control: the same image, as it should be. */
async function boots(digest: string): Promise<void> {
  const before = host.alerts.length;
  const { claimed, result } = await host.run(digest);
  assert.equal(claimed, true, JSON.stringify(result));
  assert.equal(host.alerts.length, before);
}

/** Changes one byte in the middle of a file, and back again. */
async function withFlippedByte(path: string, check: () => Promise<void>): Promise<void> {
  const bytes = readFileSync(path);
  const changed = Buffer.from(bytes);
  const at = Math.floor(bytes.length / 2);
  changed[at] = (changed[at] ?? 0) ^ 1;
  writeFileSync(path, changed);
  try {
    await check();
  } finally {
    writeFileSync(path, bytes);
  }
}

const blob = (digest: string): string => join(host.ctHome, 'blobs', digest.replace(':', '/'));
const signaturesOf = (digest: string): string => join(host.ctHome, 'images', digest.replace(':', '/'));

describe('every file of a signed image', () => {
  let digest: string;
  let manifest: ImageManifest;
  before(async () => {
    host.setPolicy(policyOf());
    digest = await host.addImage();
    await sign(digest, await release());
    manifest = await host.store.manifest(digest);
  });

  for (const part of ['rootfs', 'kernel', 'initramfs', 'inventory', 'cyclonedx', 'spdx']) {
    test(`IMAGE_CORRUPT when one byte of its ${part} was changed, and an alert`, async () => {
      const at = { ...manifest, ...manifest.sbom }[part as 'rootfs' | 'cyclonedx'];
      await boots(digest);
      await withFlippedByte(blob(String(at?.digest)), () =>
        refused(digest, 'IMAGE_CORRUPT', 'ct.image.corrupt'),
      );
      await boots(digest);
    });
  }

  test('these are all its parts', () => assert.equal(blobsOf(manifest).length, 6));

  test('a manifest with another root hash is not the one that was signed', async () => {
    const { rootfs } = manifest;
    const verity = { ...rootfs.verity, rootHash: 'f'.repeat(64) };
    const other = await host.addImage(undefined, { ...manifest, rootfs: { ...rootfs, verity } });
    assert.notEqual(other, digest);
    await refused(other, 'SIGNATURE_MISSING', 'ct.image.signature');
    await sign(other, await release(), digest);
    await refused(other, 'SIGNATURE_SUBJECT_MISMATCH');
  });

  test('IMAGE_CORRUPT when one byte of its manifest was changed', async () => {
    await withFlippedByte(blob(digest), () => refused(digest, 'IMAGE_CORRUPT', 'ct.image.corrupt'));
    await boots(digest);
  });

  test('a signature of which one byte was changed does not count, nor does one that is gone', async () => {
    const [name] = readdirSync(signaturesOf(digest));
    const path = join(signaturesOf(digest), String(name));
    const bytes = readFileSync(path);
    await withFlippedByte(path, async () => {
      const { claimed, result } = await host.run(digest);
      assert.equal(claimed, false);
      assert.match(String(result.error?.code), /^SIGNATURE_/);
    });
    await boots(digest);
    rmSync(path);
    await refused(digest, 'SIGNATURE_MISSING', 'ct.image.signature');
    writeFileSync(path, bytes);
    await boots(digest);
  });

  test('that a part was compared is not believed when the note of it was changed: it is compared again', async () => {
    const note = join(host.ctHome, 'checked', manifest.rootfs.digest.slice('sha256:'.length));
    await withFlippedByte(note, () => boots(digest));
    await withFlippedByte(blob(manifest.rootfs.digest), () =>
      withFlippedByte(note, () => refused(digest, 'IMAGE_CORRUPT')),
    );
  });
});

describe('every field of a signature', () => {
  function* leavesOf(value: unknown, path: readonly string[] = []): Generator<readonly string[]> {
    if (typeof value === 'string') yield path;
    else if (typeof value === 'object' && value !== null) {
      for (const [key, inner] of Object.entries(value)) yield* leavesOf(inner, [...path, key]);
    }
  }

  for (const [kind, signer] of [
    ['own key', () => release()],
    ['identity', async () => keyless()],
  ] as const) {
    test(`one that was changed is refused, in one of an ${kind}`, async () => {
      host.setPolicy(policyOf());
      const digest = await host.addImage();
      const bundle = await sign(digest, await signer());
      const [name] = readdirSync(signaturesOf(digest));
      const path = join(signaturesOf(digest), String(name));
      await boots(digest);
      let fields = 0;
      for (const leaf of leavesOf(JSON.parse(bundle.toString()))) {
        const changed = JSON.parse(bundle.toString());
        let at = changed;
        for (const key of leaf.slice(0, -1)) at = at[key];
        const key = String(leaf.at(-1));
        const value = String(at[key]);
        const middle = Math.floor(value.length / 2);
        at[key] = `${value.slice(0, middle)}${value[middle] === 'A' ? 'B' : 'A'}${value.slice(middle + 1)}`;
        writeFileSync(path, JSON.stringify(changed));
        const { claimed, result } = await host.run(digest);
        assert.equal(claimed, false, leaf.join('.'));
        assert.match(String(result.error?.code), /^SIGNATURE_/, leaf.join('.'));
        fields += 1;
      }
      assert.ok(fields >= (kind === 'own key' ? 5 : 15), String(fields));
      writeFileSync(path, bundle);
      await boots(digest);
    });
  }
});

describe('signatures that are genuine, and not the right ones', () => {
  before(() => host.setPolicy(policyOf()));

  test('SIGNATURE_SUBJECT_MISMATCH for the signature of another image', async () => {
    const [digest, other] = [await host.addImage(), await host.addImage()];
    await sign(other, await release());
    await boots(other);
    await sign(digest, await release(), other);
    await refused(digest, 'SIGNATURE_SUBJECT_MISMATCH', 'ct.image.signature');
  });

  test('SIGNATURE_PREDICATE_MISMATCH when only something else about the image is signed', async () => {
    const digest = await host.addImage();
    const statement = attestationStatement('provenance', 'small', digest, {});
    await new ImageSignatures(host.ctHome).add(digest, await (await release()).signStatement(statement));
    await refused(digest, 'SIGNATURE_PREDICATE_MISMATCH');
    await sign(digest, await release());
    await boots(digest);
  });

  test('SIGNATURE_UNTRUSTED for a key that policy does not name, until it does', async () => {
    const digest = await host.addImage();
    await sign(digest, await release(otherKeys));
    await refused(digest, 'SIGNATURE_UNTRUSTED');
    host.setPolicy(`${policyOf()}\n`.replace(indented(keys.publicKeyPem), indented(otherKeys.publicKeyPem)));
    await boots(digest);
    host.setPolicy(policyOf());
    await refused(digest, 'SIGNATURE_UNTRUSTED');
  });

  test('SIGNATURE_UNTRUSTED for a signer of policy who may not sign for this job', async () => {
    const digest = await host.addImage();
    await sign(digest, await release());
    host.setPolicy(policyOf('signed-by: [workflow]'));
    await refused(digest, 'SIGNATURE_UNTRUSTED', 'ct.image.signature');
    host.setPolicy(policyOf('signed-by: [release]'));
    await boots(digest);
    host.setPolicy(policyOf());
  });

  test('SIGNATURE_UNTRUSTED for another issuer', async () => {
    const digest = await host.addImage();
    await sign(digest, keyless({}, identityToken(IDENTITY, 'https://other.example')));
    await refused(digest, 'SIGNATURE_UNTRUSTED');
    host.setPolicy(policyOf('', IDENTITY, 'https://other.example'));
    await boots(digest);
    host.setPolicy(policyOf());
  });

  test('SIGNATURE_UNTRUSTED for identities that only a loose regular expression would match', async () => {
    for (const identity of [
      `https://evil.example/?${IDENTITY}`,
      `${IDENTITY}.evil`,
      IDENTITY.replace('github.com', 'githubxcom'),
      IDENTITY.replace('/org/', '/org/x/'),
    ]) {
      const digest = await host.addImage();
      await sign(digest, keyless({}, identityToken(identity)));
      await refused(digest, 'SIGNATURE_UNTRUSTED');
    }
    const digest = await host.addImage();
    await sign(digest, keyless());
    await boots(digest);
  });

  test('SIGNATURE_LOG_MISSING without an entry in the log', async () => {
    const digest = await host.addImage();
    await sign(digest, keyless({ logs: [] }));
    await refused(digest, 'SIGNATURE_LOG_MISSING');
    await sign(digest, keyless());
    await boots(digest);
  });

  test('SIGNATURE_EXPIRED for a certificate that had ended when it was used', async () => {
    await using old = await startSigstore({ certificateTime: new Date(Date.now() - 3600_000) });
    const digest = await host.addImage();
    await sign(digest, keyless({}, identityToken(), old));
    host.addPolicyFile('trusted_root.json', old.trustedRoot);
    await refused(digest, 'SIGNATURE_EXPIRED');
    host.addPolicyFile('trusted_root.json', sigstore.trustedRoot);
    await refused(digest, 'SIGNATURE_UNTRUSTED');
  });
});

describe('images from elsewhere and from here', () => {
  test('SIGNATURE_MISSING for an image that was fetched and nobody signed, also by the policy that ct comes with', async () => {
    const [fetched, built] = [await host.addImage(), await host.addImage('built')];
    for (const policy of [policyOf(), 'local: allow']) {
      host.setPolicy(policy);
      await refused(fetched, 'SIGNATURE_MISSING', 'ct.image.signature');
    }
    await boots(built);
    host.setPolicy(policyOf());
    await refused(built, 'SIGNATURE_MISSING', 'ct.image.local');
  });

  test('what says that an image was made here counts for that image, whole, or not at all', async () => {
    host.setPolicy('local: allow');
    const [fetched, built] = [await host.addImage(), await host.addImage('imported')];
    const note = join(signaturesOf(built), 'made.json');
    await boots(built);
    await withFlippedByte(note, async () => {
      const { claimed } = await host.run(built);
      assert.equal(claimed, false);
    });
    await boots(built);
    rmSync(note);
    await refused(built, 'SIGNATURE_MISSING');
    const copied = JSON.stringify({ version: 1, digest: built, how: 'built', at: new Date().toISOString() });
    await sign(fetched, await release());
    writeFileSync(join(signaturesOf(fetched), 'made.json'), copied);
    await refused(fetched, 'SIGNATURE_UNTRUSTED');
  });

  test('the run and its record say where the image was made and who signed it', async () => {
    host.setPolicy(policyOf());
    const digest = await host.addImage();
    await sign(digest, await release());
    const { events } = await host.run(digest);
    const admitted = events.find(({ type }) => type === 'admitted');
    assert.ok(admitted?.type === 'admitted');
    const { policy, ...image } = admitted.image;
    assert.deepEqual(image, {
      name: 'small',
      digest,
      made: 'elsewhere',
      signers: ['release'],
      allowed: true,
    });
    assert.match(policy, /^[0-9a-f]{64}$/);
    assert.deepEqual((await host.client.run('latest')).imageStanding, admitted.image);
    const decisions = (await host.client.decisions('latest')) as {
      path?: string;
      input?: { image?: unknown };
    }[];
    assert.ok(decisions.some(({ path }) => path === 'ct/image/decision'));
  });
});

describe('what policy demands beyond a signature', () => {
  const scan = async (
    digest: string,
    severity: 'high' | 'medium' | undefined,
    asOf = new Date(),
    exception?: ScanResult['findings'][number]['exception'],
  ): Promise<void> => {
    const counts = { critical: 0, high: 0, medium: 0, unknown: 0, low: 0, negligible: 0 };
    await storeResult(host.ctHome, {
      version: 1,
      image: { name: 'small', digest },
      detector: 'database',
      source: { revision: `sha256:${'a'.repeat(64)}`, asOf: asOf.toISOString() },
      scannedAt: new Date().toISOString(),
      packages: { examined: 1, unexamined: [] },
      counts,
      findings:
        severity === undefined
          ? []
          : [
              {
                id: 'CVE-2026-1',
                aliases: [],
                severity,
                summary: 'bad',
                package: { ecosystem: 'deb', name: 'openssl', version: '1', binaries: [], purls: [] },
                ...(exception === undefined ? {} : { exception }),
              } as unknown as ScanResult['findings'][number],
            ],
    });
  };

  test('IMAGE_REVOKED whoever signed it, and wherever it was made', async () => {
    const signed = await host.addImage();
    await sign(signed, await release());
    const built = await host.addImage('built');
    host.setPolicy(
      `${policyOf().replace('local: deny', 'local: allow')}\nrevoked: ['${signed}', '${built}']`,
    );
    for (const digest of [signed, built]) await refused(digest, 'IMAGE_REVOKED', 'ct.image.revoked');
    host.setPolicy(policyOf());
    await boots(signed);
  });

  test('IMAGE_REVOKED while a client takes its time with evidence', async () => {
    const digest = await host.addImage('built');
    const local = 'local: allow';
    const bytes = Buffer.from(`a==1 --hash=sha256:${'0'.repeat(64)}\n`);
    const slow = (meanwhile: () => void) => ({
      evidence: async () => {
        meanwhile();
        return { parts: [{ kind: 'lock' as const, path: 'requirements.txt', bytes }], dirty: [] };
      },
    });
    const request = { verify: { dependencies: { level: 'integrity' as const } } };
    host.setPolicy(local);
    const control = await host.run(
      digest,
      request,
      slow(() => {}),
    );
    assert.ok(control.claimed, JSON.stringify(control.result));
    const before = host.alerts.length;
    const revoke = (): void => host.setPolicy(`${local}\nrevoked: ['${digest}']`);
    const { claimed, result } = await host.run(digest, request, slow(revoke));
    assert.deepEqual([claimed, result.error?.code, result.exitCode], [false, 'IMAGE_REVOKED', 122]);
    assert.deepEqual(
      host.alerts.slice(before).map(({ rule }) => rule),
      ['ct.image.revoked'],
    );
  });

  test('IMAGE_REPLAYED for a genuine image that was signed before the oldest one that still runs', async () => {
    const [old, current] = [await host.addImage(), await host.addImage()];
    await sign(old, await release(), old, new Date('2026-01-01T00:00:00Z'));
    await sign(current, await release(), current, new Date('2026-02-01T00:00:00Z'));
    host.setPolicy(policyOf('minimum: {small: 2026-02-01}'));
    await refused(old, 'IMAGE_REPLAYED', 'ct.image.replayed');
    await boots(current);
    host.setPolicy(policyOf());
    await boots(old);
  });

  test('IMAGE_OUTDATED for one that was signed too long ago, or nobody says when', async () => {
    const digest = await host.addImage();
    await sign(digest, await release(), digest, new Date(Date.now() - 3 * 86_400_000));
    host.setPolicy(policyOf('max-age: 2d'));
    await refused(digest, 'IMAGE_OUTDATED', 'ct.image.age');
    host.setPolicy(policyOf('max-age: 4d'));
    await boots(digest);
  });

  test('IMAGE_BASE_DENIED for one that extends none that policy names', async () => {
    const digest = await host.addImage();
    await sign(digest, await release());
    host.setPolicy(policyOf('base: [debian-13]'));
    await refused(digest, 'IMAGE_BASE_DENIED', 'ct.image.base');
    host.setPolicy(policyOf('base: [debian-12]'));
    await boots(digest);
  });

  test('IMAGE_ATTESTATION_MISSING without provenance and the SBOM of the image, signed by an accepted signer', async () => {
    const digest = await host.addImage();
    const store = new ImageSignatures(host.ctHome);
    const { sbom } = await host.store.manifest(digest);
    const document = JSON.parse(readFileSync(blob(String(sbom?.cyclonedx.digest)), 'utf8'));
    const provenance = buildProvenance({
      buildType: 'urn:ct:image-build:v1',
      externalParameters: {},
      builderId: 'https://builder.example/1',
    });
    const attest = async (kind: 'provenance' | 'sbom', predicate: unknown, pair = keys): Promise<void> => {
      const statement = attestationStatement(kind, 'small', digest, predicate);
      await store.add(digest, await (await release(pair)).signStatement(statement));
    };
    await sign(digest, await release());
    host.setPolicy(policyOf("attestations: [provenance, sbom]\nbuilders: ['https://builder.example/*']"));
    await refused(digest, 'IMAGE_ATTESTATION_MISSING');
    await attest('provenance', provenance, otherKeys);
    await attest('sbom', document, otherKeys);
    await refused(digest, 'IMAGE_ATTESTATION_MISSING', 'ct.image.attestation');
    await attest('provenance', { ...provenance, runDetails: { builder: { id: 'https://evil.example/1' } } });
    await attest('sbom', { ...document, components: [] });
    await refused(digest, 'IMAGE_ATTESTATION_MISSING');
    await attest('sbom', document);
    await refused(digest, 'IMAGE_ATTESTATION_MISSING', 'ct.image.builder');
    await attest('provenance', provenance);
    await boots(digest);
  });

  test('IMAGE_SCAN_MISSING, VULN_DB_STALE and IMAGE_VULNERABLE, until there is a scan that is fresh and finds nothing', async () => {
    const digest = await host.addImage();
    await sign(digest, await release());
    host.setPolicy(policyOf('scan: {fail-on: high, max-age: 2d}'));
    await refused(digest, 'IMAGE_SCAN_MISSING', 'ct.image.scan_missing');
    await scan(digest, undefined, new Date(Date.now() - 3 * 86_400_000));
    await refused(digest, 'VULN_DB_STALE', 'ct.image.scan_stale');
    await scan(digest, 'high');
    await refused(digest, 'IMAGE_VULNERABLE', 'ct.image.vulnerable');
    await scan(digest, 'medium');
    await boots(digest);
    host.setPolicy(policyOf('scan: {fail-on: medium, max-age: 2d}'));
    await refused(digest, 'IMAGE_VULNERABLE');
  });

  test('a result of a scan of which a byte was changed is a denial or as good as before, and never an error of ours', async () => {
    const digest = await host.addImage();
    await sign(digest, await release());
    host.setPolicy(policyOf('scan: {fail-on: high}'));
    await scan(digest, 'high');
    const results = join(host.ctHome, 'vuln/results', digest.slice('sha256:'.length));
    const path = join(results, String(readdirSync(results)[0]));
    const bytes = readFileSync(path);
    for (let at = 0; at < bytes.length; at += 5) {
      const changed = Buffer.from(bytes);
      changed[at] = (changed[at] ?? 0) ^ 1;
      writeFileSync(path, changed);
      const { claimed, result } = await host.run(digest);
      assert.equal(claimed, false, changed.toString());
      assert.match(String(result.error?.code), /^(IMAGE_(VULNERABLE|SCAN_MISSING)|VULN_DB_STALE)$/);
    }
    await scan(digest, 'medium');
    await boots(digest);
  });

  test('what somebody accepted until yesterday counts again today', async () => {
    const digest = await host.addImage();
    await sign(digest, await release());
    host.setPolicy(policyOf('scan: {fail-on: high}'));
    const until = (ms: number) => ({
      status: 'accepted' as const,
      reason: 'no port is open',
      from: 'x',
      expires: new Date(Date.now() + ms).toISOString(),
      expired: false,
    });
    await scan(digest, 'high', new Date(), until(86_400_000));
    await boots(digest);
    await scan(digest, 'high', new Date(), until(-86_400_000));
    await refused(digest, 'IMAGE_VULNERABLE');
  });

  test('a repository has rules of its own, and strangers have to meet those of `untrusted`, too', async () => {
    const digest = await host.addImage('built');
    host.setPolicy('local: allow', 'repositories: {acme/site: {image: {local: deny}}}');
    await boots(digest);
    const origin = { trust: 'trusted', repository: 'acme/site', ref: 'refs/heads/main' } as const;
    const own = await host.run(digest, { origin, steps: [] });
    assert.equal(own.claimed, false);
    assert.equal(own.result.error?.code, 'SIGNATURE_MISSING');
    const other = await host.run(digest, { origin: { ...origin, repository: 'acme/other' }, steps: [] });
    assert.equal(other.claimed, true, JSON.stringify(other.result));
    const request = {
      ...{ name: 'job', image: digest, cpus: 1, memoryMib: 256, diskMib: 64, env: {}, steps: [] },
      ...{ timeoutMs: 30_000, artifacts: [], sendsTree: false, origin },
    };
    const asked = await host.client.checkPolicy(request);
    assert.deepEqual(
      [asked.decision.allow, asked.decision.denials.map(({ rule }) => rule)],
      [false, ['ct.image.local']],
    );
    host.setPolicy('local: allow');
    assert.equal((await host.client.checkPolicy(request)).decision.allow, true);
  });

  test('POLICY_DENIED by a rule of the operator, which nothing overrides', {
    skip: onPath('opa') === undefined && 'the program `opa` is not on PATH',
  }, async () => {
    const digest = await host.addImage();
    await sign(digest, await release());
    host.setPolicy(policyOf());
    await boots(digest);
    const rule = 'package ct.image\n\ndeny contains "not on a Friday" if input.image.name == "small"\n';
    host.addPolicyFile('own.rego', rule);
    await refused(digest, 'POLICY_DENIED', 'ct.image.deny');
    rmSync(join(host.ctHome, 'policy/own.rego'));
    await boots(digest);
  });
});

describe('what it costs', () => {
  const RUNS = 50;
  test('to verify a signed image for a run takes 5 ms at most once it was verified, and to verify it by command 50 ms', async () => {
    host.setPolicy(policyOf('max-age: 30d'));
    const digest = await host.addImage();
    await sign(digest, await release());
    await sign(digest, keyless());
    const policy = await host.policy.current();
    const run = { job: 'job', trust: 'local' } as const;
    const took = async (work: () => Promise<unknown>): Promise<number> => {
      const samples: number[] = [];
      for (let index = 0; index < RUNS; index++) {
        const began = performance.now();
        await work();
        samples.push(performance.now() - began);
      }
      return distribution(samples.slice(1)).p50;
    };
    const judged = await took(() => host.gate.judge(digest, run, policy));
    const now = new Date();
    const command = await took(() => verifyImage({ ctHome: host.ctHome, digest, now }));
    assert.ok(judged <= 5, `${judged} ms for a run`);
    assert.ok(command <= 50, `${command} ms by command`);
  });
});
