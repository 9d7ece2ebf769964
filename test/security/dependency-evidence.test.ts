/** Lock files and evidence that were tampered with: each refused with its own code; the right evidence passes. */
import assert from 'node:assert/strict';
import { createHash, createSign, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { rmSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import type { ErrorCode } from '../../src/core/errors.ts';
import type { DependencyLevel } from '../../src/protocol/verify.ts';
import { keylessSigner } from '../../src/signing/signer.ts';
import { buildStatement } from '../../src/verification/statement.ts';
import { REGISTRY, SignedProject, sha512Integrity } from '../support/signed-project.ts';
import { IDENTITY, ISSUER, identityToken, type Sigstore, startSigstore } from '../support/sigstore.ts';

const PYPI = 'https://pypi.example';
const SLSA = 'https://slsa.dev/provenance/v1';
const PYPI_PUBLISH = 'https://docs.pypi.org/attestations/publish/v1';

/** A registry's key as it publishes it. */
function registryKey(expires: string | null = null): { document: object; privateKey: KeyObject; id: string } {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const der = publicKey.export({ type: 'spki', format: 'der' });
  const id = `SHA256:${createHash('sha256').update(der).digest('base64')}`;
  return {
    privateKey,
    id,
    document: { keyid: id, key: der.toString('base64'), expires, keytype: 'ecdsa-sha2-nistp256' },
  };
}
const hexOf = (integrity: string): string => Buffer.from(integrity.slice(7), 'base64').toString('hex');
const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex');

let project: SignedProject;
let sigstore: Sigstore;
const key = registryKey();
const old = registryKey('2025-01-29T00:00:00.000Z');

function policy(more: object = {}, keys: readonly object[] = [key.document, old.document]): void {
  project.policy(
    {
      signers: { workflow: { issuer: ISSUER, subject: IDENTITY } },
      'trusted-root': 'root.json',
      npm: { urls: [`${REGISTRY}/`], keys: 'npm-keys.json' },
      pypi: { urls: [`${PYPI}/simple`] },
      ...more,
    },
    { 'root.json': sigstore.trustedRoot, 'npm-keys.json': JSON.stringify({ keys }) },
  );
}

before(async () => {
  sigstore = await startSigstore();
  project = new SignedProject();
});
after(async () => {
  project[Symbol.dispose]();
  await sigstore[Symbol.asyncDispose]();
});
beforeEach(() => {
  rmSync(project.root, { recursive: true });
  project.write('README', 'x');
  policy();
});

const attest = async (
  subject: { readonly name: string; readonly digest: string },
  { predicateType = SLSA, identity = IDENTITY }: { predicateType?: string; identity?: string } = {},
): Promise<unknown> => {
  const signer = keylessSigner(async () => identityToken(identity), sigstore.services);
  const statement = buildStatement({ subjects: [subject], predicateType, predicate: {} });
  return JSON.parse((await signer.signStatement(statement)).toString());
};

async function refused(level: DependencyLevel, code: ErrorCode): Promise<void> {
  await assert.rejects(
    project.verify({ dependencies: { level } }),
    (error: { code: string; message: string }) => {
      assert.equal(error.code, code, error.message);
      return true;
    },
  );
}
const passes = async (level: DependencyLevel): Promise<void> => {
  assert.ok(await project.verify({ dependencies: { level } }));
};

describe('npm', () => {
  const packages = [
    { path: 'node_modules/left', name: 'left', version: '1.0.0', integrity: sha512Integrity('left') },
    {
      path: 'node_modules/@acme/right',
      name: '@acme/right',
      version: '2.1.0',
      integrity: sha512Integrity('right'),
    },
  ] as const;
  type Entries = Record<string, Record<string, unknown>>;
  type Evidence = Record<string, { signatures: { keyid: string; sig: string }[]; attestations: unknown[] }>;
  let entries: Entries;
  let evidence: Evidence;

  const registrySign = (text: string, by = key): { keyid: string; sig: string } => ({
    keyid: by.id,
    sig: createSign('sha256').update(text).sign(by.privateKey, 'base64'),
  });
  const write = (more: object = {}): void => {
    const lock = {
      name: 'site',
      lockfileVersion: 3,
      packages: { '': { name: 'site' }, ...entries },
      ...more,
    };
    project.write('package-lock.json', JSON.stringify(lock));
    project.write('package-lock.json.evidence.json', JSON.stringify({ version: 1, packages: evidence }));
  };
  /** The entry of the first package. */
  const left = (): Record<string, unknown> => entries['node_modules/left'] as Record<string, unknown>;
  const leftEvidence = (): Evidence[string] => evidence['left@1.0.0'] as Evidence[string];

  let attestations: unknown[];
  before(async () => {
    attestations = await Promise.all(
      packages.map(({ name, version, integrity }) =>
        attest({
          name: `pkg:npm/${name.replace('@', '%40')}@${version}`,
          digest: `sha512:${hexOf(integrity)}`,
        }),
      ),
    );
  });
  beforeEach(() => {
    entries = {};
    evidence = {};
    for (const [index, { path, name, version, integrity }] of packages.entries()) {
      entries[path] = { version, integrity, resolved: `${REGISTRY}/${name}/-/${version}.tgz` };
      evidence[`${name}@${version}`] = {
        signatures: [registrySign(`${name}@${version}:${integrity}`)],
        attestations: [attestations[index]],
      };
    }
    write();
  });

  test('negative control: packages of the registry with signatures and provenance pass each level', async () => {
    for (const level of ['integrity', 'signature', 'provenance'] as const) await passes(level);
    rmSync(join(project.root, 'package-lock.json.evidence.json'));
    await passes('integrity');
  });

  const INTEGRITY: readonly [string, () => void][] = [
    ['a package without a digest', () => delete left()['integrity']],
    ['a digest of SHA-1', () => (left()['integrity'] = `sha1-${Buffer.alloc(20).toString('base64')}`)],
    [
      'several digests',
      () => (left()['integrity'] = `${left()['integrity']} sha512-${Buffer.alloc(64).toString('base64')}`),
    ],
    ['a package from elsewhere', () => (left()['resolved'] = 'https://registry.example.evil/left/-/1.tgz')],
    ['a package over plain HTTP', () => (left()['resolved'] = 'http://registry.example/left/-/1.tgz')],
    ['a package from git', () => (left()['resolved'] = 'git+ssh://git@registry.example/left.git#abc')],
    ['a package from a file', () => (left()['resolved'] = 'file:left.tgz')],
    ['a link out of the tree', () => (entries['node_modules/out'] = { link: true, resolved: '../out' })],
    [
      'a package that says to be bundled in one that bundles nothing',
      () => (entries['node_modules/left/node_modules/b'] = { version: '1.0.0', inBundle: true }),
    ],
    [
      'a package that says to be bundled, which npm fetches if the archive lacks it',
      () => {
        left()['bundleDependencies'] = ['b'];
        left()['dependencies'] = { b: '1.0.0' };
        entries['node_modules/left/node_modules/b'] = { version: '1.0.0', inBundle: true };
      },
    ],
    ['a package with a lock file of its own', () => (left()['hasShrinkwrap'] = true)],
    [
      'an address in the place of a version',
      () => {
        delete left()['resolved'];
        left()['version'] = 'https://registry.example.evil/left.tgz';
      },
    ],
    [
      'an address in a name',
      () => {
        delete left()['resolved'];
        left()['name'] = 'left@https://registry.example.evil/left.tgz#';
      },
    ],
    [
      'a package that says to be bundled in the project',
      () => (entries['node_modules/b'] = { version: '1.0.0', inBundle: true }),
    ],
  ];
  for (const [what, change] of INTEGRITY) {
    test(`${what} is VERIFY_DEPENDENCY_INTEGRITY`, async () => {
      change();
      write();
      await refused('integrity', 'VERIFY_DEPENDENCY_INTEGRITY');
      await refused('provenance', 'VERIFY_DEPENDENCY_INTEGRITY');
    });
  }

  test('a lock file that cannot be judged is VERIFY_DEPENDENCY_INTEGRITY', async () => {
    write({ lockfileVersion: 1 });
    await refused('integrity', 'VERIFY_DEPENDENCY_INTEGRITY');
    project.write('package-lock.json', '{');
    await refused('integrity', 'VERIFY_DEPENDENCY_INTEGRITY');
    // What npm 6 reads of version 2 must not be something else.
    const { version, integrity, resolved } = left();
    const older = { left: { version, integrity, resolved } };
    entries = { 'node_modules/left': left() };
    write({ lockfileVersion: 2, dependencies: older });
    await passes('integrity');
    for (const lockfileVersion of [2, 3]) {
      const evil = { ...older.left, integrity: sha512Integrity('evil') };
      for (const entry of [evil, { version: '9.0.0', bundled: true }]) {
        write({ lockfileVersion, dependencies: { left: entry } });
        await refused('integrity', 'VERIFY_DEPENDENCY_INTEGRITY');
      }
    }
  });

  test('a lock file that is missing, or that the client keeps back, is VERIFY_EVIDENCE_MISSING', async () => {
    await assert.rejects(
      project.verify({
        dependencies: { level: 'integrity', locks: ['package-lock.json', 'app/package-lock.json'] },
      }),
      { code: 'VERIFY_EVIDENCE_MISSING' },
    );
    project.write('requirements.txt', `a==1 --hash=sha256:${sha256('a')}\n`);
    const kept = {
      tamper: (sent: Awaited<ReturnType<SignedProject['evidence']>>) => ({
        ...sent,
        parts: sent.parts.filter(({ path }) => path !== 'requirements.txt'),
      }),
    };
    await passes('integrity');
    await assert.rejects(project.verify({ dependencies: { level: 'integrity' } }, kept), {
      code: 'VERIFY_EVIDENCE_MISSING',
    });
    rmSync(join(project.root, 'requirements.txt'));
    rmSync(join(project.root, 'package-lock.json'));
    await refused('integrity', 'VERIFY_EVIDENCE_MISSING');
  });

  test('a job that names other lock files keeps those in the root from nothing that policy demands', async () => {
    project.write('decoy.json', JSON.stringify({ lockfileVersion: 3, packages: { '': {} } }));
    delete left()['integrity'];
    write();
    const demanded = { dependencies: { level: 'none', locks: ['decoy.json'] } } as const;
    const own = { dependencies: { level: 'integrity', locks: ['decoy.json'] } } as const;
    assert.ok(await project.verify(own));
    policy({ dependencies: 'integrity' });
    for (const request of [demanded, own]) {
      await assert.rejects(project.verify(request), { code: 'VERIFY_DEPENDENCY_INTEGRITY' });
    }
    const kept = (sent: Awaited<ReturnType<SignedProject['evidence']>>) => ({
      ...sent,
      parts: sent.parts.filter(({ path }) => path === 'decoy.json'),
    });
    await assert.rejects(project.verify(own, { tamper: kept }), { code: 'VERIFY_EVIDENCE_MISSING' });
    rmSync(join(project.root, 'package-lock.json'));
    assert.ok(await project.verify(own));
  });

  test('a lock file that is another than the one that was judged is VERIFY_FILE_CHANGED', async () => {
    const judged = await project.evidence({ commit: false, scripts: [], dependencies: 'integrity' });
    left()['integrity'] = sha512Integrity('evil');
    write();
    await assert.rejects(project.verify({ dependencies: { level: 'integrity' } }, { tamper: () => judged }), {
      code: 'VERIFY_FILE_CHANGED',
    });
  });

  test('a signature that is missing, of an unknown key or of one that has expired is VERIFY_DEPENDENCY_UNSIGNED', async () => {
    leftEvidence().signatures = [];
    write();
    await refused('signature', 'VERIFY_DEPENDENCY_UNSIGNED');
    const text = `left@1.0.0:${packages[0].integrity}`;
    leftEvidence().signatures = [registrySign(text, registryKey())];
    write();
    await refused('signature', 'VERIFY_DEPENDENCY_UNSIGNED');
    leftEvidence().signatures = [registrySign(text, old)];
    write();
    await refused('signature', 'VERIFY_DEPENDENCY_UNSIGNED');
    rmSync(join(project.root, 'package-lock.json.evidence.json'));
    await refused('signature', 'VERIFY_DEPENDENCY_UNSIGNED');
  });

  test('a signature of another package, version or digest, or a changed one, is VERIFY_DEPENDENCY_INVALID', async () => {
    for (const text of [
      `@acme/right@1.0.0:${packages[0].integrity}`,
      `left@1.0.1:${packages[0].integrity}`,
      `left@1.0.0:${packages[1].integrity}`,
    ]) {
      leftEvidence().signatures = [registrySign(text)];
      write();
      await refused('signature', 'VERIFY_DEPENDENCY_INVALID');
    }
    leftEvidence().signatures = [{ keyid: key.id, sig: 'AAAA' }];
    write();
    await refused('signature', 'VERIFY_DEPENDENCY_INVALID');
    // One that is right does not make up for one that is wrong.
    leftEvidence().signatures = [
      registrySign(`left@1.0.0:${packages[0].integrity}`),
      { keyid: key.id, sig: 'AAAA' },
    ];
    write();
    await refused('signature', 'VERIFY_DEPENDENCY_INVALID');
  });

  test('an integrity that was changed in the lock file is not what the registry signed', async () => {
    left()['integrity'] = sha512Integrity('evil');
    write();
    await passes('integrity');
    await refused('signature', 'VERIFY_DEPENDENCY_INVALID');
  });

  test('a provenance that is missing, of somebody else or of another type is VERIFY_DEPENDENCY_UNPROVEN', async () => {
    const subject = { name: 'pkg:npm/left@1.0.0', digest: `sha512:${hexOf(packages[0].integrity)}` };
    const choices: unknown[][] = [
      [],
      [await attest(subject, { identity: `${IDENTITY}0` })],
      [await attest(subject, { predicateType: 'urn:other' })],
    ];
    for (const chosen of choices) {
      leftEvidence().attestations = chosen;
      write();
      await passes('signature');
      await refused('provenance', 'VERIFY_DEPENDENCY_UNPROVEN');
    }
    // Besides the one that counts, registries keep others.
    leftEvidence().attestations = [...choices.flat(), attestations[0]];
    write();
    await passes('provenance');
  });

  test('a provenance of another package, or a changed one, is VERIFY_DEPENDENCY_INVALID', async () => {
    const changed = structuredClone(attestations[0]) as { dsseEnvelope: { signatures: { sig: string }[] } };
    const other = structuredClone(attestations[1]) as typeof changed;
    changed.dsseEnvelope.signatures = other.dsseEnvelope.signatures;
    const digest = `sha512:${hexOf(packages[0].integrity)}`;
    for (const attestation of [
      attestations[1],
      changed,
      { mediaType: 'x' },
      await attest({ name: 'pkg:npm/left@1.0.1', digest }),
      await attest({ name: 'pkg:npm/left@1.0.0', digest: `sha512:${hexOf(packages[1].integrity)}` }),
    ]) {
      leftEvidence().attestations = [attestation];
      write();
      await refused('provenance', 'VERIFY_DEPENDENCY_INVALID');
    }
  });

  test('a publisher who may not publish for this repository is VERIFY_DEPENDENCY_UNPROVEN', async () => {
    policy({ publishers: ['others'] });
    await passes('signature');
    await refused('provenance', 'VERIFY_DEPENDENCY_UNPROVEN');
  });

  test('evidence that cannot be read is VERIFY_DEPENDENCY_INVALID', async () => {
    for (const content of [
      '{',
      '{"version":2,"packages":{}}',
      '{"version":1,"packages":{"left@1.0.0":{"more":1}}}',
    ]) {
      project.write('package-lock.json.evidence.json', content);
      await refused('signature', 'VERIFY_DEPENDENCY_INVALID');
    }
  });

  test('without keys of the registry nothing is signed, and policy demands more than the job', async () => {
    policy({ npm: { urls: [`${REGISTRY}/`] }, dependencies: 'signature' });
    await refused('none', 'VERIFY_DEPENDENCY_UNSIGNED');
    policy({ dependencies: 'provenance' });
    await passes('none');
    leftEvidence().attestations = [];
    write();
    await refused('integrity', 'VERIFY_DEPENDENCY_UNPROVEN');
  });
});

describe('Python', () => {
  const [wheel, sdist] = [sha256('wheel'), sha256('sdist')];
  let attestations: unknown[];
  const pep740 = (bundle: unknown): unknown => {
    // biome-ignore lint/suspicious/noExplicitAny: the document of the test
    const { verificationMaterial, dsseEnvelope } = bundle as any;
    return {
      version: 1,
      verification_material: {
        certificate: verificationMaterial.certificate.rawBytes,
        transparency_entries: verificationMaterial.tlogEntries,
      },
      envelope: { statement: dsseEnvelope.payload, signature: dsseEnvelope.signatures[0].sig },
    };
  };
  const write = (requirements: string, proofs: unknown[] = attestations): void => {
    project.write('requirements.txt', requirements);
    const packages = { 'left-pad@1.0': { attestations: proofs } };
    project.write('requirements.txt.evidence.json', JSON.stringify({ version: 1, packages }));
  };
  const good = `# pinned\n--require-hashes\n-i ${PYPI}/simple\nLeft_Pad==1.0 ; python_version > "3" \\\n    --hash=sha256:${wheel} \\\n    --hash=sha256:${sdist}\n`;

  before(async () => {
    const of = async (digest: string): Promise<unknown> =>
      pep740(
        await attest({ name: 'left_pad.whl', digest: `sha256:${digest}` }, { predicateType: PYPI_PUBLISH }),
      );
    attestations = [await of(wheel), await of(sdist)];
  });
  beforeEach(() => write(good));

  test('negative control: pinned packages with attestations of PEP 740 pass each level', async () => {
    for (const level of ['integrity', 'signature', 'provenance'] as const) await passes(level);
  });

  test('what is not pinned by a digest, or comes from elsewhere, is VERIFY_DEPENDENCY_INTEGRITY', async () => {
    for (const line of [
      'left-pad==1.0',
      `left-pad>=1.0 --hash=sha256:${wheel}`,
      `left-pad==1.* --hash=sha256:${wheel}`,
      `left-pad==1.0 --hash=md5:${'0'.repeat(32)}`,
      `left-pad @ ${PYPI}/left.whl --hash=sha256:${wheel}`,
      `-r other.txt`,
      `-e .`,
      `./left`,
      `--find-links ${PYPI}/links`,
      `--extra-index-url https://elsewhere.example/simple`,
      `--trusted-host elsewhere.example`,
    ]) {
      write(`${good}${line}\n`);
      await refused('integrity', 'VERIFY_DEPENDENCY_INTEGRITY');
    }
  });

  test('what pip reads in another way than it looks is VERIFY_DEPENDENCY_INTEGRITY', async () => {
    const hash = `--hash=sha256:${wheel}`;
    const hidden = `hidden @ https://elsewhere.example/h.whl ${hash}`;
    for (const text of [
      `# a comment does not go on \\\n${hidden}\n`,
      ...['\r', '\v', '\f', '\x1c', '\x85', '\u2028', '\u2029'].map(
        (end) => `# a line for Python${end}${hidden}\n`,
      ),
      `# coding: utf-7\n# +AAo-${hidden}\n`,
      `--pre -r other.txt\n`,
      `--require-hashes --extra-index-url https://elsewhere.example/simple\n`,
      `--only-binary :all: --find-links https://elsewhere.example/\n`,
      `-i ${PYPI}\\@elsewhere.example/simple\n`,
      `-i https://\${HOST}@${new URL(PYPI).host}/simple\n`,
      `left-pad==1.0 ; python_version > "3" -r other.txt ${hash}\n`,
      `left-pad==1.0 ; python_version > "\${MARKER}" ${hash}\n`,
    ]) {
      write(`${text}${good}`);
      await refused('integrity', 'VERIFY_DEPENDENCY_INTEGRITY');
    }
    write(`# coding: utf-8\n# Grüße \\\n# ${hidden}\n--only-binary :all:\n--pre\n${good}`);
    await passes('provenance');
  });

  test('an attestation that is missing for one of the archives, or is of somebody else, is VERIFY_DEPENDENCY_UNPROVEN', async () => {
    write(good, attestations.slice(0, 1));
    await passes('integrity');
    await refused('signature', 'VERIFY_DEPENDENCY_UNPROVEN');
    const stranger = await attest(
      { name: 'left_pad.whl', digest: `sha256:${sdist}` },
      { predicateType: PYPI_PUBLISH, identity: `${IDENTITY}0` },
    );
    write(good, [attestations[0], pep740(stranger)]);
    await refused('signature', 'VERIFY_DEPENDENCY_UNPROVEN');
    // That of another archive proves nothing about this one.
    write(good, [attestations[0], attestations[0]]);
    await refused('provenance', 'VERIFY_DEPENDENCY_UNPROVEN');
  });

  test('an attestation whose signature is that of another is VERIFY_DEPENDENCY_INVALID', async () => {
    const changed = structuredClone(attestations) as { envelope: { signature: string } }[];
    for (const one of changed) one.envelope.signature = changed[1]?.envelope.signature ?? '';
    write(good, changed);
    await refused('signature', 'VERIFY_DEPENDENCY_INVALID');
  });
});

test('a lock file that is too large to be sent is VERIFY_EVIDENCE_MISSING', async () => {
  project.write('requirements.txt', '');
  truncateSync(join(project.root, 'requirements.txt'), 33 * 1024 * 1024);
  await refused('integrity', 'VERIFY_EVIDENCE_MISSING');
  project.write('requirements.txt', `a==1 --hash=sha256:${'0'.repeat(64)}\n`);
  await passes('integrity');
});

test('evidence that would fill the memory of the daemon is VERIFY_DEPENDENCY_INVALID, and the daemon goes on', async () => {
  const packages = { 'node_modules/a': { version: '1.0.0', integrity: sha512Integrity('a') } };
  project.write(
    'package-lock.json',
    JSON.stringify({ lockfileVersion: 3, packages: { '': {}, ...packages } }),
  );
  const bomb = `{"version":1,"packages":{"a@1.0.0":{"attestations":[${'[[],[]],'.repeat(3_500_000)}0]}}}`;
  project.write('package-lock.json.evidence.json', bomb);
  const before_ = process.memoryUsage().heapTotal;
  const startedAt = performance.now();
  await refused('provenance', 'VERIFY_DEPENDENCY_INVALID');
  assert.ok(performance.now() - startedAt < 10_000);
  assert.ok(process.memoryUsage().heapTotal - before_ < 64 * 1024 * 1024);
});
