/** Commits that an identity signed (gitsign), verified without network; tampered with, each is refused. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { ErrorCode } from '../../src/core/errors.ts';
import { verifyCommit } from '../../src/verification/commit-signature.ts';
import { type JobTrust, loadJobTrust } from '../../src/verification/job-trust.ts';
import { type GitsignOptions, gitsign } from '../support/gitsign.ts';
import {
  ISSUER,
  identityToken,
  type LogEntryBody,
  type Sigstore,
  startSigstore,
} from '../support/sigstore.ts';

const ALICE = 'https://users.example/alice';
const TREE = '4b825dc642cb6eb9a060e54bf8d69288fbee4904';
const HEAD = `tree ${TREE}\nauthor A <a@example.org> 1700000000 +0000\ncommitter A <a@example.org> 1700000000 +0000\n`;

let sigstore: Sigstore;
let trust: JobTrust;
before(async () => {
  sigstore = await startSigstore({ rewriteEntry: withLines });
  trust = trustOf();
});
after(() => sigstore[Symbol.asyncDispose]());

/** As the log of Sigstore stores a certificate: in lines of 64 characters; that of the tests has been given one long line. */
function withLines(entry: LogEntryBody): LogEntryBody {
  const { publicKey } = entry.spec.signature;
  const [begin, text = '', end] = Buffer.from(publicKey.content, 'base64').toString().split('\n');
  const pem = [begin, ...(text.match(/.{1,64}/g) ?? []), end, ''].join('\n');
  publicKey.content = Buffer.from(pem).toString('base64');
  return entry;
}

function trustOf(subject = ALICE, issuer = ISSUER, root = sigstore.trustedRoot): JobTrust {
  const signers = [{ name: 'people', kind: 'identity', issuer, subject }] as const;
  return loadJobTrust({ signers, trustedRoot: 'root' }, () => root);
}

async function commit(message: string, options: Partial<GitsignOptions> = {}): Promise<Buffer> {
  const body = `\n${message}\n`;
  const signature = await gitsign(Buffer.from(HEAD + body), {
    token: identityToken(ALICE),
    services: sigstore.services,
    ...options,
  });
  return assembled(body, signature);
}
function assembled(body: string, signature: string): Buffer {
  return Buffer.from(`${HEAD}gpgsig ${signature.trimEnd().replaceAll('\n', '\n ')}\n${body}`);
}
const signatureOf = (object: Buffer): string =>
  (/^gpgsig ([\s\S]*?)\n(?! )/m.exec(object.toString())?.[1] ?? '').replaceAll('\n ', '\n');

const verified = (object: Buffer, by = trust) =>
  verifyCommit({ object, claimed: undefined, dirty: [] }, by, new Date()).facts;
function refused(code: ErrorCode, object: Buffer, by = trust): void {
  const { problem, signers } = verified(object, by);
  assert.equal(problem?.code, code, JSON.stringify(problem));
  assert.deepEqual(signers, []);
}

test('negative control: the commit of an accepted identity, with its entry of the log, passes', async () => {
  const facts = verified(await commit('first'));
  assert.deepEqual(facts.problem, null);
  assert.deepEqual(facts.signers, [{ signer: 'people', who: ALICE }]);
});

test('VERIFY_COMMIT_INVALID for the signature of another commit, and for a message that was changed', async () => {
  const first = await commit('first');
  refused('VERIFY_COMMIT_INVALID', assembled('\nsecond\n', signatureOf(first)));
  refused('VERIFY_COMMIT_INVALID', Buffer.from(first.toString().replace('first', 'other')));
  refused('VERIFY_COMMIT_INVALID', Buffer.from(first.toString().replace(TREE, '0'.repeat(40))));
});

test('VERIFY_COMMIT_UNTRUSTED for another identity, another issuer, one that a loose pattern would match, and another authority', async () => {
  const mallory = (subject: string, issuer = ISSUER) =>
    commit('x', { token: identityToken(subject, issuer) });
  refused('VERIFY_COMMIT_UNTRUSTED', await mallory('https://users.example/mallory'));
  refused('VERIFY_COMMIT_UNTRUSTED', await mallory(`${ALICE}2`));
  refused('VERIFY_COMMIT_UNTRUSTED', await mallory('https://usersxexample/alice'));
  refused('VERIFY_COMMIT_UNTRUSTED', await mallory(ALICE, `${ISSUER}.evil`));
  await using other = await startSigstore();
  const foreign = await commit('x', { services: other.services });
  const { problem } = verified(foreign);
  assert.ok(problem !== null);
});

test('SIGNATURE_LOG_MISSING without the entry of the log: nothing is asked of a network', async () => {
  refused('SIGNATURE_LOG_MISSING', await commit('first', { logEntry: false }));
});

test('SIGNATURE_EXPIRED for a certificate that had ended when it was used', async () => {
  await using late = await startSigstore({
    rewriteEntry: withLines,
    witnessTime: new Date(Math.floor(Date.now() / 1000) * 1000 + 3_600_000),
  });
  refused(
    'SIGNATURE_EXPIRED',
    await commit('x', { services: late.services }),
    trustOf(ALICE, ISSUER, late.trustedRoot),
  );
});

test('no byte of the signature can be changed (every third is tried)', async () => {
  const object = await commit('first');
  const lines = signatureOf(object).split('\n');
  const bytes = Buffer.from(lines.slice(1, -1).join(''), 'base64');
  const passed: number[] = [];
  for (let at = 0; at < bytes.length; at += 3) {
    const changed = Buffer.from(bytes);
    changed[at] = (changed[at] ?? 0) ^ 0x01;
    const armor = [lines[0], ...(changed.toString('base64').match(/.{1,64}/g) ?? []), lines.at(-1)].join(
      '\n',
    );
    if (verified(assembled('\nfirst\n', armor)).problem === null) passed.push(at);
  }
  assert.deepEqual(passed, []);
});
