/** `ct evidence fetch` as a program, with registries of the test's own. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { runCt } from '../support/run-ct.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';

const SLSA = 'https://slsa.dev/provenance/v1';
const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex');
const integrity = `sha512-${createHash('sha512').update('x').digest('base64')}`;

let scratch: Scratch;
let server: Server;
let url = '';
const asked: string[] = [];
const answers = new Map<string, unknown>();

before(async () => {
  scratch = scratchDirectory();
  server = createServer((request, response) => {
    asked.push(request.url ?? '');
    const answer = answers.get(request.url ?? '');
    response.writeHead(answer === undefined ? 404 : 200, { 'content-type': 'application/json' });
    response.end(JSON.stringify(answer ?? {}));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
after(() => {
  server.closeAllConnections();
  server.close();
  scratch[Symbol.dispose]();
});

const fetchEvidence = (...args: string[]) =>
  runCt(['evidence', 'fetch', ...args], {
    cwd: scratch.path,
    env: { npm_config_registry: `${url}/npm/`, PIP_INDEX_URL: `${url}/simple`, HOME: scratch.path },
  });
const written = (name: string) => JSON.parse(readFileSync(join(scratch.path, name), 'utf8')).packages;

test('npm: signatures and provenance of each package, of the configured registry alone', async () => {
  const packages = {
    '': { name: 'site' },
    'node_modules/left': { version: '1.0.0', integrity, resolved: 'https://elsewhere.example/left.tgz' },
    'node_modules/@acme/right': { version: '2.0.0', integrity },
    'node_modules/none': { version: '3.0.0', integrity },
  };
  writeFileSync(join(scratch.path, 'package-lock.json'), JSON.stringify({ lockfileVersion: 3, packages }));
  const bundle = { mediaType: 'bundle' };
  answers.set('/npm/left/1.0.0', { dist: { signatures: [{ keyid: 'k', sig: 's', more: 1 }] } });
  answers.set('/npm/@acme%2Fright/2.0.0', {
    dist: { signatures: [], attestations: { url: 'https://elsewhere.example/attestations' } },
  });
  answers.set('/npm/-/npm/v1/attestations/@acme/right@2.0.0', {
    attestations: [
      { predicateType: 'https://other.example', bundle: {} },
      { predicateType: SLSA, bundle },
    ],
  });
  const { status, stdout, stderr } = await fetchEvidence('--json');
  assert.equal(status, 0, stderr);
  assert.deepEqual(JSON.parse(stdout).locks, [
    {
      lock: 'package-lock.json',
      evidence: 'package-lock.json.evidence.json',
      packages: 3,
      signed: 1,
      attested: 1,
    },
  ]);
  assert.deepEqual(written('package-lock.json.evidence.json'), {
    '@acme/right@2.0.0': { signatures: [], attestations: [bundle] },
    'left@1.0.0': { signatures: [{ keyid: 'k', sig: 's' }], attestations: [] },
    'none@3.0.0': { signatures: [], attestations: [] },
  });
});

test('Python: attestations of the archives that a requirement allows', async () => {
  writeFileSync(join(scratch.path, 'requirements.txt'), `Left_Pad==1.0 --hash=sha256:${sha256('wheel')}\n`);
  const attestation = { version: 1 };
  answers.set('/simple/left-pad/', {
    files: [
      { hashes: { sha256: sha256('other') }, provenance: `${url}/other` },
      { hashes: { sha256: sha256('wheel') }, provenance: `${url}/provenance` },
      // Somewhere else, which would answer.
      {
        hashes: { sha256: sha256('wheel') },
        provenance: `${url.replace('127.0.0.1', 'localhost')}/elsewhere`,
      },
    ],
  });
  answers.set('/provenance', { version: 1, attestation_bundles: [{ attestations: [attestation] }] });
  const { status, stderr } = await fetchEvidence('requirements.txt');
  assert.equal(status, 0, stderr);
  assert.match(stderr, /1 packages, 0 with signatures, 1 with attestations/);
  assert.deepEqual(written('requirements.txt.evidence.json'), {
    'left-pad@1.0': { signatures: [], attestations: [attestation] },
  });
  assert.ok(!asked.includes('/other') && !asked.includes('/elsewhere'));
});

test('what a project has a link to is not written over', async () => {
  const own = join(scratch.path, 'own');
  writeFileSync(own, 'mine');
  writeFileSync(join(scratch.path, 'app.txt'), '# nothing\n');
  symlinkSync(own, join(scratch.path, 'app.txt.evidence.json'));
  const linked = await fetchEvidence('app.txt');
  assert.equal(linked.status, 2, linked.stderr);
  assert.match(linked.stderr, /USAGE.*app\.txt\.evidence\.json cannot be written/);
  assert.equal(readFileSync(own, 'utf8'), 'mine');
  rmSync(join(scratch.path, 'app.txt.evidence.json'));
  assert.equal((await fetchEvidence('app.txt')).status, 0);
});

test('a lock file that cannot be judged is VERIFY_DEPENDENCY_INTEGRITY, and a registry that does not answer REGISTRY_FAILED', async () => {
  writeFileSync(join(scratch.path, 'older.json'), '{"lockfileVersion":1}');
  const older = await fetchEvidence('older.json');
  assert.equal(older.status, 122);
  assert.match(older.stderr, /VERIFY_DEPENDENCY_INTEGRITY.*lockfileVersion 2 or 3/);
  const silent = await runCt(['evidence', 'fetch', 'package-lock.json'], {
    cwd: scratch.path,
    env: { npm_config_registry: 'http://127.0.0.1:9/', HOME: scratch.path },
  });
  assert.equal(silent.status, 125);
  assert.match(silent.stderr, /REGISTRY_FAILED/);
});
