/**
 * Jobs whose scripts or commit were tampered with, or are signed by somebody else: each refused with its own code before a
 * secret is asked for; and the right evidence passes.
 */
import assert from 'node:assert/strict';
import { existsSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import type { ErrorCode } from '../../src/core/errors.ts';
import type { Evidence } from '../../src/protocol/evidence.ts';
import type { VerifyRequest } from '../../src/protocol/verify.ts';
import { generateKeyPair } from '../../src/signing/own-key.ts';
import { keylessSigner, type Signer } from '../../src/signing/signer.ts';
import { buildStatement } from '../../src/verification/statement.ts';
import { edited, ownSigner, SignedProject } from '../support/signed-project.ts';
import { IDENTITY, ISSUER, identityToken, type Sigstore, startSigstore } from '../support/sigstore.ts';

const SCRIPTS: VerifyRequest = { scripts: ['ct.signed.json'] };

function withPart(kind: string, bytes: (old: Buffer) => Buffer): (evidence: Evidence) => Evidence {
  return (evidence) => ({
    ...evidence,
    parts: evidence.parts.map((part) => (part.kind === kind ? { ...part, bytes: bytes(part.bytes) } : part)),
  });
}

describe('a signed manifest of scripts', () => {
  let project: SignedProject;
  let sigstore: Sigstore;
  let release: { signer: Signer; publicKey: string };
  const keyless = (subject = IDENTITY, issuer = ISSUER, of = sigstore): Signer =>
    keylessSigner(async () => identityToken(subject, issuer), of.services);
  const policy = (signers: object = {}): void =>
    project.policy(
      {
        signers: {
          release: { key: release.publicKey },
          workflow: { issuer: ISSUER, subject: IDENTITY },
          ...signers,
        },
        'trusted-root': 'root.json',
        'script-signers': ['release', 'workflow'],
      },
      { 'root.json': sigstore.trustedRoot },
    );
  const refused = async (code: ErrorCode, request = SCRIPTS, tamper?: (evidence: Evidence) => Evidence) =>
    assert.rejects(
      project.verify(request, tamper ? { tamper } : {}),
      (error: { code: string; message: string }) => {
        assert.equal(error.code, code, error.message);
        return true;
      },
    );

  before(async () => {
    project = new SignedProject();
    sigstore = await startSigstore();
    release = await ownSigner();
  });
  after(async () => {
    project[Symbol.dispose]();
    await sigstore[Symbol.asyncDispose]();
  });
  beforeEach(async () => {
    rmSync(project.root, { recursive: true });
    project.write('scripts/build.sh', 'make\n');
    project.write('scripts/lib.sh', 'set -e\n');
    symlinkSync('lib.sh', join(project.root, 'scripts/link'));
    project.write('ci/deploy.sh', 'deploy\n');
    project.write('README', 'not signed\n');
    policy();
    project.write('ct.signed.json', await good());
  });
  const good = (): Promise<Buffer> => project.manifest(release.signer, ['scripts', 'ci/deploy.sh']);

  test('negative control: it passes with a key and keyless, and says who signed and which digests count', async () => {
    const verified = await project.verify(SCRIPTS);
    assert.deepEqual(verified?.facts, ['ct.signed.json (3 files) is signed by key release']);
    assert.equal(verified?.digests.length, 3);
    project.write('README', 'changed, and nobody signed it\n');
    await project.verify(SCRIPTS);
    project.write('ct.signed.json', await project.manifest(keyless(), ['scripts']));
    assert.match((await project.verify(SCRIPTS))?.facts[0] ?? '', /signed by https:\/\/github\.com/);
  });

  test('VERIFY_EVIDENCE_MISSING without a manifest, also if it is only a link to one', async () => {
    rmSync(join(project.root, 'ct.signed.json'));
    await refused('VERIFY_EVIDENCE_MISSING');
    writeFileSync(project.path('outside.json'), await good());
    symlinkSync(project.path('outside.json'), join(project.root, 'ct.signed.json'));
    await refused('VERIFY_EVIDENCE_MISSING');
  });

  const TREE: readonly [string, ErrorCode, () => void][] = [
    ['a changed file', 'VERIFY_FILE_CHANGED', () => project.write('scripts/build.sh', 'make evil\n')],
    ['a missing file', 'VERIFY_FILE_MISSING', () => rmSync(join(project.root, 'ci/deploy.sh'))],
    ['an added file', 'VERIFY_FILE_UNLISTED', () => project.write('scripts/more.sh', 'x\n')],
    [
      'an added link',
      'VERIFY_FILE_UNLISTED',
      () => symlinkSync('/etc/passwd', join(project.root, 'scripts/etc')),
    ],
    [
      'a link in place of a file',
      'VERIFY_FILE_CHANGED',
      () => {
        rmSync(join(project.root, 'scripts/build.sh'));
        symlinkSync('../README', join(project.root, 'scripts/build.sh'));
      },
    ],
  ];
  for (const [what, code, tamper] of TREE) {
    test(`${what} is ${code}`, async () => {
      tamper();
      await refused(code);
    });
  }

  test('the client cannot vouch for other files: evidence of what was signed does not make the tree so', async () => {
    const before_ = await project.evidence({
      commit: false,
      scripts: ['ct.signed.json'],
      dependencies: 'none',
    });
    project.write('scripts/build.sh', 'make evil\n');
    await refused('VERIFY_FILE_CHANGED', SCRIPTS, () => before_);
  });

  test('SIGNATURE_INVALID for the payload or signature of another manifest', async () => {
    const ours = await good();
    project.write('scripts/build.sh', 'make evil\n');
    const evil = await project.manifest((await ownSigner()).signer, ['scripts', 'ci/deploy.sh']);
    const { payload } = JSON.parse(evil.toString()).dsseEnvelope;
    project.write(
      'ct.signed.json',
      edited(ours, (json) => (json.dsseEnvelope.payload = payload)),
    );
    await refused('SIGNATURE_INVALID');
    const other = await project.manifest(release.signer, ['ci']);
    const { signatures } = JSON.parse(other.toString()).dsseEnvelope;
    project.write(
      'ct.signed.json',
      edited(ours, (json) => (json.dsseEnvelope.signatures = signatures)),
    );
    await refused('SIGNATURE_INVALID');
  });

  test('each field of the signed statement that is changed is refused', async () => {
    const ours = await good();
    // biome-ignore lint/suspicious/noExplicitAny: the statement of the test
    const changes: ((statement: any) => void)[] = [
      (s) => (s._type = 'https://in-toto.io/Statement/v0.1'),
      (s) => (s.subject[0].name = 'ci/other.sh'),
      (s) => (s.subject[0].digest.sha256 = '0'.repeat(64)),
      (s) => s.subject.pop(),
      (s) => s.subject.push({ name: 'x', digest: { sha256: '0'.repeat(64) } }),
      (s) => (s.predicateType = 'urn:ct:manifest:v2'),
      (s) => (s.predicate.directories = []),
      (s) => (s.predicate.links[0].target = 'build.sh'),
      (s) => (s.predicate.links = []),
    ];
    for (const change of changes) {
      const changed = edited(ours, ({ dsseEnvelope }) => {
        const statement = JSON.parse(Buffer.from(dsseEnvelope.payload, 'base64').toString());
        change(statement);
        dsseEnvelope.payload = Buffer.from(JSON.stringify(statement)).toString('base64');
      });
      await refused(
        'SIGNATURE_INVALID',
        SCRIPTS,
        withPart('manifest', () => changed),
      );
    }
    await refused(
      'SIGNATURE_MALFORMED',
      SCRIPTS,
      withPart('manifest', () => edited(ours, (json) => (json.more = 1))),
    );
    await refused(
      'SIGNATURE_MALFORMED',
      SCRIPTS,
      withPart('manifest', () => Buffer.from('{')),
    );
  });

  test('SIGNATURE_UNTRUSTED for another key, another identity, another issuer, and one that only a loose pattern would match', async () => {
    project.write(
      'ct.signed.json',
      await project.manifest((await ownSigner(generateKeyPair())).signer, ['scripts']),
    );
    await refused('SIGNATURE_UNTRUSTED');
    for (const signer of [
      keyless(`${IDENTITY}0`),
      keyless(`https://evil.example/${IDENTITY}`),
      keyless(IDENTITY.replace('github.com', 'githubxcom')),
      keyless(IDENTITY, 'https://token.example.evil'),
    ]) {
      project.write('ct.signed.json', await project.manifest(signer, ['scripts']));
      await refused('SIGNATURE_UNTRUSTED');
    }
  });

  test('SIGNATURE_UNTRUSTED for a signer of the policy who may sign other things than scripts', async () => {
    const other = await ownSigner();
    policy({ other: { key: other.publicKey } });
    project.write('ct.signed.json', await project.manifest(other.signer, ['scripts']));
    await refused('SIGNATURE_UNTRUSTED');
  });

  test('SIGNATURE_UNTRUSTED where policy names nobody: a job cannot choose its own signers', async () => {
    project.policy({});
    await refused('SIGNATURE_UNTRUSTED');
  });

  test('SIGNATURE_PREDICATE_MISMATCH for a genuine statement that is no manifest', async () => {
    const statement = buildStatement({
      subjects: [{ name: 'scripts/build.sh', digest: `sha256:${'0'.repeat(64)}` }],
      predicateType: 'urn:ct:image:v1',
      predicate: {},
    });
    project.write('ct.signed.json', await release.signer.signStatement(statement));
    await refused('SIGNATURE_PREDICATE_MISMATCH');
  });

  test('SIGNATURE_MALFORMED for a genuine manifest with a path out of the tree', async () => {
    for (const name of ['../x', '/etc/passwd', 'a//b', '.git/hooks/x', './a']) {
      const statement = buildStatement({
        subjects: [{ name, digest: `sha256:${'0'.repeat(64)}` }],
        predicateType: 'urn:ct:manifest:v1',
        predicate: { directories: [], links: [] },
      });
      project.write('ct.signed.json', await release.signer.signStatement(statement));
      await refused('SIGNATURE_MALFORMED');
    }
  });

  test('SIGNATURE_LOG_MISSING without an entry of the log, SIGNATURE_EXPIRED for a certificate that had ended', async () => {
    const genuine = await project.manifest(keyless(), ['scripts']);
    project.write(
      'ct.signed.json',
      edited(genuine, (json) => (json.verificationMaterial.tlogEntries = [])),
    );
    await refused('SIGNATURE_LOG_MISSING');
    await using late = await startSigstore({
      witnessTime: new Date(Math.floor(Date.now() / 1000) * 1000 + 3_600_000),
    });
    project.policy(
      { signers: { workflow: { issuer: ISSUER, subject: IDENTITY } }, 'trusted-root': 'root.json' },
      { 'root.json': late.trustedRoot },
    );
    project.write('ct.signed.json', await project.manifest(keyless(IDENTITY, ISSUER, late), ['scripts']));
    await refused('SIGNATURE_EXPIRED');
  });

  test('policy demands manifest and cover; the job cannot leave either out', async () => {
    const rules = (more: object): void =>
      project.policy({
        signers: { release: { key: release.publicKey } },
        scripts: ['ct.signed.json'],
        ...more,
      });
    rules({ cover: ['scripts', 'ci/deploy.sh'] });
    assert.ok(await project.verify({}));
    rules({ cover: ['ci'] });
    await refused('VERIFY_EVIDENCE_MISSING', {});
    // Without a list of manifests, the job has to name one: naming none is no way out.
    rules({ scripts: [], cover: ['scripts'] });
    await refused('VERIFY_EVIDENCE_MISSING', {});
    assert.ok(await project.verify({ scripts: ['ct.signed.json'] }));
    rules({});
    rmSync(join(project.root, 'ct.signed.json'));
    await refused('VERIFY_EVIDENCE_MISSING', {});
    await refused('VERIFY_EVIDENCE_MISSING', { scripts: ['other.json'] });
  });
});

describe('a signed commit', () => {
  let project: SignedProject;
  let people = '';
  const COMMIT: VerifyRequest = { commit: true };
  const refused = async (code: ErrorCode, options: Parameters<SignedProject['verify']>[1] = {}) =>
    assert.rejects(project.verify(COMMIT, options), (error: { code: string; message: string }) => {
      assert.equal(error.code, code, error.message);
      return true;
    });
  const policy = (allowed: string): void =>
    project.policy({ signers: { people: { 'allowed-signers': 'allowed' } } }, { allowed });

  beforeEach(() => {
    project = new SignedProject();
    people = project.sshKey('alice');
    policy(`alice@example.org namespaces="git" ${people}\n`);
    project.git('init', '-q');
    project.write('src/main.c', 'int main;\n');
    project.write('.gitignore', 'out\n');
    project.git('add', '-A');
    project.signedCommit('alice');
  });
  const end = (): void => project[Symbol.dispose]();

  test('negative control: a clean tree of a commit that an allowed signer signed passes, ignored files or not', async () => {
    project.write('out', 'ignored\n');
    assert.match(
      (await project.verify(COMMIT))?.facts[0] ?? '',
      /^commit [0-9a-f]{12} is signed by alice@example\.org$/,
    );
    const commit = project.git('rev-parse', 'HEAD');
    assert.ok(await project.verify(COMMIT, { origin: { commit } }));
    end();
  });

  test('VERIFY_COMMIT_UNSIGNED, VERIFY_COMMIT_UNTRUSTED, VERIFY_EVIDENCE_MISSING', async () => {
    project.git('commit', '-q', '--allow-empty', '-m', 'unsigned');
    await refused('VERIFY_COMMIT_UNSIGNED');
    project.sshKey('mallory');
    project.signedCommit('mallory');
    await refused('VERIFY_COMMIT_UNTRUSTED');
    await refused('VERIFY_EVIDENCE_MISSING', { tamper: () => ({ parts: [], dirty: [] }) });
    rmSync(join(project.root, '.git'), { recursive: true });
    await refused('VERIFY_EVIDENCE_MISSING');
    end();
  });

  test('VERIFY_COMMIT_UNTRUSTED for a key that counts for other things than commits, or not any more', async () => {
    for (const options of ['namespaces="file"', 'valid-before="20200101Z"', 'valid-after="20990101Z"']) {
      policy(`alice@example.org ${options} ${people}\n`);
      await refused('VERIFY_COMMIT_UNTRUSTED');
    }
    end();
  });

  test('VERIFY_COMMIT_INVALID for the signature of another commit, a changed commit, and one the run is not of', async () => {
    const first = project.git('cat-file', 'commit', 'HEAD');
    project.write('src/main.c', 'int evil;\n');
    project.git('add', '-A');
    project.git('commit', '-qm', 'evil');
    const evil = project.git('cat-file', 'commit', 'HEAD');
    const signature = /^gpgsig [\s\S]*?\n(?=\n)/m.exec(first)?.[0] ?? '';
    assert.notEqual(signature, '');
    const transplanted = Buffer.from(`${evil.replace('\n\n', `\n${signature}\n`)}\n`);
    await refused('VERIFY_COMMIT_INVALID', { tamper: withPart('commit', () => transplanted) });
    const changed = Buffer.from(`${first.replace(/^tree .*$/m, `tree ${'0'.repeat(40)}`)}\n`);
    await refused('VERIFY_COMMIT_INVALID', { tamper: withPart('commit', () => changed) });
    await refused('VERIFY_COMMIT_INVALID', { tamper: withPart('commit', () => Buffer.from('no commit')) });
    project.signedCommit('alice');
    assert.ok(await project.verify(COMMIT));
    await refused('VERIFY_COMMIT_INVALID', { origin: { commit: '0'.repeat(40) } });
    end();
  });

  test('VERIFY_TREE_DIRTY for a dirty tree, whether the client says so or not', async () => {
    const silent = { tamper: (evidence: Evidence): Evidence => ({ ...evidence, dirty: [] }) };
    project.write('src/main.c', 'int changed;\n');
    await refused('VERIFY_TREE_DIRTY');
    await refused('VERIFY_TREE_DIRTY', silent);
    project.git('checkout', '-q', '--', '.');
    assert.ok(await project.verify(COMMIT));
    project.write('new.sh', 'evil\n');
    await refused('VERIFY_TREE_DIRTY');
    await refused('VERIFY_TREE_DIRTY', silent);
    rmSync(join(project.root, 'new.sh'));
    rmSync(join(project.root, 'src/main.c'));
    await refused('VERIFY_TREE_DIRTY', silent);
    end();
  });

  test('VERIFY_TREE_DIRTY for the signed commit of another tree', async () => {
    const older = Buffer.from(`${project.git('cat-file', 'commit', 'HEAD')}\n`);
    project.write('src/main.c', 'int evil;\n');
    project.git('add', '-A');
    project.git('commit', '-qm', 'evil');
    await refused('VERIFY_TREE_DIRTY', { tamper: withPart('commit', () => older) });
    end();
  });

  test('the configuration of the repository cannot make the comparison run a program', async () => {
    const marker = project.path('ran');
    project.git('config', 'core.fsmonitor', `touch ${marker}`);
    for (const name of ['evil', 'e=v=il']) {
      for (const part of ['clean', 'smudge', 'process'])
        project.git('config', `filter.${name}.${part}`, `touch ${marker}; cat`);
      project.git('config', `filter.${name}.required`, 'true');
    }
    project.write('.git/info/attributes', '* filter=evil\n*.c filter=e=v=il\n');
    project.write('src/main.c', 'int evil;\n');
    await refused('VERIFY_TREE_DIRTY');
    assert.ok(!existsSync(marker), 'a program of the repository ran');
    assert.throws(() => project.git('-c', 'core.fsmonitor=false', 'status'));
    assert.ok(existsSync(marker), 'the control: git alone runs it');
    end();
  });

  test('a commit that is not there is not fetched, which the repository could have any program do', async () => {
    const marker = project.path('ran');
    for (const [key, value] of [
      ['core.repositoryFormatVersion', '1'],
      ['extensions.partialClone', 'origin'],
      ['remote.origin.promisor', 'true'],
      ['remote.origin.url', project.path('elsewhere')],
      ['remote.origin.uploadpack', `touch ${marker};`],
    ] as const) {
      project.git('config', key, value);
    }
    const id = project.git('rev-parse', 'HEAD');
    rmSync(join(project.root, '.git/objects', id.slice(0, 2), id.slice(2)));
    await refused('VERIFY_EVIDENCE_MISSING');
    assert.ok(!existsSync(marker), 'a program of the repository ran');
    assert.throws(() => project.git('cat-file', 'commit', 'HEAD'));
    assert.ok(existsSync(marker), 'the control: git alone runs it');
    end();
  });

  test('policy demands it of every job, and a job cannot say otherwise', async () => {
    project.policy(
      { commit: 'required', signers: { people: { 'allowed-signers': 'allowed' } } },
      { allowed: `alice@example.org ${people}\n` },
    );
    assert.ok(await project.verify({ commit: false }));
    project.git('commit', '-q', '--allow-empty', '-m', 'unsigned');
    await assert.rejects(project.verify({ commit: false }), { code: 'VERIFY_COMMIT_UNSIGNED' });
    end();
  });
});
