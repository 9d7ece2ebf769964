import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { countsNow, parseAllowedSigners } from './allowed-signers.ts';
import { sshFingerprint } from './ssh-key.ts';
import { verifySshSignature } from './ssh-signature.ts';

const TYPES: readonly [string, string?][] = [
  ['ed25519'],
  ['ecdsa', '256'],
  ['ecdsa', '384'],
  ['ecdsa', '521'],
  ['rsa', '2048'],
];
let directory = '';
const message = Buffer.from('what is signed\n');
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'ct-ssh-'));
  writeFileSync(join(directory, 'message'), message);
});
after(() => rmSync(directory, { recursive: true, force: true }));

function keyPair(type: string, bits?: string): string {
  const path = join(directory, `${type}${bits ?? ''}`);
  rmSync(path, { force: true });
  execFileSync('ssh-keygen', [
    '-q',
    '-t',
    type,
    ...(bits ? ['-b', bits] : []),
    '-N',
    '',
    '-C',
    'k',
    '-f',
    path,
  ]);
  return path;
}
function sign(key: string, namespace = 'git'): string {
  rmSync(join(directory, 'message.sig'), { force: true });
  execFileSync('ssh-keygen', ['-q', '-Y', 'sign', '-n', namespace, '-f', key, join(directory, 'message')], {
    stdio: 'ignore',
  });
  return readFileSync(join(directory, 'message.sig'), 'utf8');
}
const blobOf = (key: string): Buffer =>
  Buffer.from(readFileSync(`${key}.pub`, 'utf8').split(' ')[1] ?? '', 'base64');

for (const [type, bits] of TYPES) {
  test(`signatures of ${type}${bits ?? ''} keys by ssh-keygen verify, and every changed byte is refused`, () => {
    const key = keyPair(type, bits);
    const armor = sign(key);
    const found = verifySshSignature(armor, message, 'git');
    assert.ok('key' in found, 'wrong' in found ? found.wrong : '');
    assert.equal(sshFingerprint(found.key.blob), sshFingerprint(blobOf(key)));
    assert.ok('wrong' in verifySshSignature(armor, Buffer.from('something else\n'), 'git'));
    assert.ok('wrong' in verifySshSignature(armor, message, 'file'));
    const [begin = '', ...rest] = armor.trim().split('\n');
    const end = rest.pop() ?? '';
    const bytes = Buffer.from(rest.join(''), 'base64');
    const own = sshFingerprint(blobOf(key));
    for (let at = 0; at < bytes.length; at++) {
      const changed = Buffer.from(bytes);
      changed[at] = (changed[at] ?? 0) ^ 1;
      const result = verifySshSignature(`${begin}\n${changed.toString('base64')}\n${end}`, message, 'git');
      assert.ok('wrong' in result || sshFingerprint(result.key.blob) !== own, `byte ${at}`);
      assert.ok('wrong' in result, `byte ${at}`);
    }
  });
}

test('a short RSA key does not count', () => {
  const result = verifySshSignature(sign(keyPair('rsa', '1024')), message, 'git');
  assert.match('wrong' in result ? result.wrong : '', /2048 bits/);
});

test('allowed signers: principals, namespaces and terms; certificates and local times are refused', () => {
  const publicKey = readFileSync(`${keyPair('ed25519')}.pub`, 'utf8').trim();
  const now = new Date('2026-06-01T00:00:00Z');
  const counts = (options: string): string => {
    const parsed = parseAllowedSigners(
      `# people\n\na@example.org,b@example.org ${options} ${publicKey}\n`,
      'file',
    );
    const [signers = []] = parsed.values();
    assert.deepEqual(signers[0]?.principals, ['a@example.org', 'b@example.org']);
    return signers[0] ? countsNow(signers[0], 'git', now) : 'none';
  };
  assert.equal(counts(''), 'yes');
  assert.equal(counts('namespaces="git,file"'), 'yes');
  assert.equal(counts('namespaces="file"'), 'no');
  assert.equal(counts('valid-after="20260101Z",valid-before="20270101Z"'), 'yes');
  assert.equal(counts('valid-before="20260601Z"'), 'expired');
  assert.equal(counts('valid-after="202606010001Z"'), 'expired');
  for (const options of [
    'cert-authority',
    'valid-before="20260601"',
    'valid-before="20261301Z"',
    'unknown="x"',
  ]) {
    assert.throws(() => counts(options), { code: 'TRUST_INVALID', message: /^file, line 3/ }, options);
  }
});
