/** Images go to registries and come back: the same digest, the same signatures, whatever breaks on the way. */
import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { findCredentials } from '../../src/image/oci/credentials.ts';
import { pullImage, pushImage } from '../../src/image/oci/distribute.ts';
import { parseReference } from '../../src/image/oci/reference.ts';
import type { Registry } from '../../src/image/oci/registry.ts';
import { ImageSignatures, imageStatement } from '../../src/image/signatures.ts';
import { ImageStore } from '../../src/image/store.ts';
import { generateKeyPair, ownKey } from '../../src/signing/own-key.ts';
import { NO_SERVICES } from '../../src/signing/services.ts';
import { keySigner } from '../../src/signing/signer.ts';
import { clientOf, debianRegistry, noDebianRegistry, testRegistry } from '../support/registry.ts';
import { numberedDirectories, scratchDirectory } from '../support/scratch.ts';
import { storeSmallImage } from '../support/stored-image.ts';

const scratch = scratchDirectory();
after(() => scratch[Symbol.dispose]());

const directory = numberedDirectories(scratch);

async function sign(ctHome: string, name: string, digest: string): Promise<void> {
  const signer = keySigner(await ownKey(generateKeyPair().privateKeyPem), NO_SERVICES);
  await new ImageSignatures(ctHome).add(digest, await signer.signStatement(imageStatement(name, digest)));
}

/** Pushes a signed image, pulls it into another CT_HOME and compares. */
async function roundTrip(reference: string, registry: Registry, kernelBytes?: number): Promise<void> {
  const image = await storeSmallImage(directory(), 'small', kernelBytes === undefined ? {} : { kernelBytes });
  await sign(image.ctHome, 'small', image.digest);
  await sign(image.ctHome, 'small', image.digest);
  const parsed = parseReference(reference);
  const fractions: number[] = [];
  const pushed = await pushImage('small', {
    registry,
    reference: parsed,
    ctHome: image.ctHome,
    progress: ({ doneBytes, totalBytes }) => void fractions.push(doneBytes / totalBytes),
  });
  assert.equal(pushed.digest, image.digest);
  assert.equal(pushed.signatures, 2);
  assert.equal(fractions.at(-1), 1);
  // Once more: everything is there, and nothing becomes different.
  const again = await pushImage('small', { registry, reference: parsed, ctHome: image.ctHome });
  assert.equal(again.registryDigest, pushed.registryDigest);

  const ctHome = directory();
  const pulled = await pullImage({ registry, reference: parsed, ctHome, name: 'small' });
  assert.equal(pulled.digest, image.digest);
  const store = new ImageStore(ctHome);
  assert.equal((await store.find('small'))?.digest, image.digest);
  await store.verifyImage(await store.manifest(image.digest));
  const [here, there] = await Promise.all(
    [ctHome, image.ctHome].map((home) => new ImageSignatures(home).list(image.digest)),
  );
  assert.deepEqual(here, there);
  assert.equal(here?.length, 2);
}

test('a pulled image has the same digest and its signatures', async () => {
  await using server = await testRegistry();
  const name = `${server.host}/team/small:1`;
  await roundTrip(name, clientOf(name));
  // By digest, too.
  const digest = [...server.manifests].find(([, { bytes }]) => bytes.includes('vnd.ct.image.rootfs'))?.[0];
  assert.ok(digest);
});

test('where a registry keeps no list of referrers, the index with the tag of the digest is used', async () => {
  await using server = await testRegistry();
  server.keepsReferrers = false;
  const name = `${server.host}/team/small:1`;
  await roundTrip(name, clientOf(name));
  assert.ok([...server.manifests.keys()].some((tag) => /^sha256-[0-9a-f]{64}$/.test(tag)));
});

test("Debian's docker-registry takes images and gives them back", { skip: noDebianRegistry }, async () => {
  await using server = await debianRegistry(directory());
  const name = `${server.host}/team/small:1`;
  await roundTrip(name, clientOf(name), 40_000_000);
});

test('a broken upload goes on from where the registry has it, a broken download from where it broke', async () => {
  await using server = await testRegistry();
  const name = `${server.host}/small:1`;
  let patches = 0;
  let downloads = 0;
  server.intercept = async (request, response) => {
    if (request.method === 'PATCH' && ++patches === 2) {
      request.socket.destroy();
      return true;
    }
    const blob = /\/blobs\/(sha256:[0-9a-f]+)$/.exec(request.url ?? '')?.[1] ?? '';
    const bytes = server.blobs.get(blob);
    if (
      request.method === 'GET' &&
      bytes !== undefined &&
      bytes.length > 1_000_000 &&
      request.headers.range === undefined
    ) {
      downloads += 1;
      response.writeHead(200, { 'content-length': String(bytes.length) });
      response.write(bytes.subarray(0, 500_000), () => request.socket.destroy());
      return true;
    }
    return false;
  };
  await roundTrip(name, clientOf(name), 40_000_000);
  assert.equal(downloads, 1);
  assert.ok(
    server.requests.some(({ line }) => /^GET .*uploads/.test(line)),
    'the upload was asked for its state',
  );
});

test('errors of the server are tried again, and then told', async () => {
  await using server = await testRegistry();
  const name = `${server.host}/small:1`;
  let answers = 0;
  server.intercept = (_request, response) => {
    answers += 1;
    response.writeHead(503).end();
    return true;
  };
  await assert.rejects(clientOf(name).manifest('1'), { code: 'REGISTRY_FAILED' });
  assert.equal(answers, 4);
  server.intercept = (_request, response) => {
    response.writeHead(403, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ errors: [{ code: 'DENIED', message: 'anything' }] }));
    return true;
  };
  await assert.rejects(clientOf(name).manifest('1'), { code: 'REGISTRY_DENIED', message: /DENIED/ });
});

test('tokens are got from the service that the registry names, with the credentials of the configuration', async () => {
  await using server = await testRegistry();
  const name = `${server.host}/small:1`;
  const home = directory();
  const auth = Buffer.from('user:pass:word').toString('base64');
  mkdirSync(join(home, '.docker'));
  writeFileSync(join(home, '.docker/config.json'), JSON.stringify({ auths: { [server.host]: { auth } } }));
  server.intercept = (request, response) => {
    if (request.url?.startsWith('/token')) {
      assert.equal(request.headers.authorization, `Basic ${auth}`);
      assert.match(request.url, /scope=repository%3Asmall%3Apull/);
      response.end(JSON.stringify({ token: 'the-token' }));
      return true;
    }
    if (request.headers.authorization === 'Bearer the-token') return false;
    const challenge = `Bearer realm="http://${server.host}/token",service="test",scope="repository:small:pull,push"`;
    response.writeHead(401, { 'www-authenticate': challenge }).end();
    return true;
  };
  await roundTrip(
    name,
    clientOf(name, { credentials: () => findCredentials(server.host, { env: { HOME: home } }) }),
  );
});

test('a credential helper is asked for the host, and a missing one is said', async () => {
  const home = directory();
  const bin = directory();
  writeFileSync(
    join(bin, 'docker-credential-test'),
    '#!/bin/sh\nread -r host\n[ "$1" = get ] && printf \'{"ServerURL":"%s","Username":"u","Secret":"s-%s"}\' "$host" "$host"\n',
    { mode: 0o755 },
  );
  mkdirSync(join(home, '.docker'));
  const config = (value: unknown): void =>
    writeFileSync(join(home, '.docker/config.json'), JSON.stringify(value));
  config({ credHelpers: { 'registry.test': 'test' } });
  const path = process.env['PATH'];
  process.env['PATH'] = `${bin}:${path}`;
  try {
    assert.deepEqual(await findCredentials('registry.test', { env: { HOME: home } }), {
      kind: 'basic',
      user: 'u',
      password: 's-registry.test',
    });
    assert.equal(await findCredentials('other.test', { env: { HOME: home } }), undefined);
    config({ credsStore: 'absent' });
    await assert.rejects(findCredentials('registry.test', { env: { HOME: home } }), {
      code: 'CONFIG_INVALID',
    });
    config({ credsStore: '../../bin/sh' });
    await assert.rejects(findCredentials('registry.test', { env: { HOME: home } }), {
      code: 'CONFIG_INVALID',
    });
  } finally {
    process.env['PATH'] = path;
  }
});

test('names of images in registries are read strictly, and http is for this machine alone', () => {
  const { origin, repository, tag, digest } = parseReference('registry.test:5000/a/b-c');
  assert.deepEqual(
    [origin, repository, tag, digest],
    ['https://registry.test:5000', 'a/b-c', 'latest', undefined],
  );
  assert.equal(parseReference('localhost:5000/a:1').origin, 'http://localhost:5000');
  assert.equal(parseReference('https://localhost:5000/a:1').origin, 'https://localhost:5000');
  assert.equal(parseReference(`r.test/a@sha256:${'0'.repeat(64)}`).tag, undefined);
  for (const wrong of [
    'a',
    'r.test/A',
    'r.test/a/../b',
    'r.test/a:',
    'u:p@r.test/a',
    'http://r.test/a',
    'r.test/a@sha256:0',
    'r.test/a?b',
    'r.test/a#b',
    '/a',
    'r.test//a',
    '127.0.0.1.evil.test:x/a',
  ]) {
    assert.throws(() => parseReference(wrong), { code: 'USAGE' }, wrong);
  }
  assert.equal(parseReference('127.0.0.1.evil.test/a').origin, 'https://127.0.0.1.evil.test');
});
