/** Hostile registries: wrong bytes, endless ones, and ways to get at credentials or at services of this machine. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';

import { after, test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { pullImage, pushImage } from '../../src/image/oci/distribute.ts';
import { encodeManifest, parsePulledManifest } from '../../src/image/oci/pulled-manifest.ts';
import { parseReference } from '../../src/image/oci/reference.ts';
import type { Registry } from '../../src/image/oci/registry.ts';
import { ImageSignatures, imageStatement } from '../../src/image/signatures.ts';
import { ImageStore } from '../../src/image/store.ts';
import { verifyImageSignature } from '../../src/image/verify.ts';
import { generateKeyPair, ownKey } from '../../src/signing/own-key.ts';
import { NO_SERVICES } from '../../src/signing/services.ts';
import { keySigner } from '../../src/signing/signer.ts';
import { loadTrust } from '../../src/verification/trust.ts';
import { json, sha256 } from '../support/oci-layout.ts';
import { clientOf, type TestRegistry, testRegistry } from '../support/registry.ts';
import { numberedDirectories, scratchDirectory } from '../support/scratch.ts';
import { storeSmallImage } from '../support/stored-image.ts';

const scratch = scratchDirectory();
after(() => scratch[Symbol.dispose]());

const directory = numberedDirectories(scratch);

const image = await storeSmallImage(directory(), 'small');
const keys = generateKeyPair();
const signer = keySigner(await ownKey(keys.privateKeyPem), NO_SERVICES);
await new ImageSignatures(image.ctHome).add(
  image.digest,
  await signer.signStatement(imageStatement('small', image.digest)),
);
const trust = loadTrust({ keys: [{ name: 'ours', pem: keys.publicKeyPem }] });
const policy = { keys: { names: ['ours'], logs: 0, timestampAuthorities: 0 } };

interface Pushed extends AsyncDisposable {
  readonly server: TestRegistry;
  readonly name: string;
  readonly client: Registry;
  readonly registryDigest: string;
}

async function pushed(): Promise<Pushed> {
  const server = await testRegistry();
  const name = `${server.host}/team/small:1`;
  const client = clientOf(name, { idleTimeoutMs: 500 });
  const { registryDigest } = await pushImage('small', {
    registry: client,
    reference: parseReference(name),
    ctHome: image.ctHome,
  });
  return { server, name, client, registryDigest, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

/** Pulls into a CT_HOME of its own, in which nothing may have a name after a failure. */
async function pull({ client, name }: Pushed, reference = name, as = 'small'): Promise<string> {
  const ctHome = directory();
  try {
    const { digest } = await pullImage({
      registry: client,
      reference: parseReference(reference),
      ctHome,
      name: as,
      verify: (manifestDigest, bundles) => {
        verifyImageSignature(manifestDigest, bundles, { trust, policy }, new Date());
        return undefined;
      },
    });
    return digest;
  } catch (error) {
    assert.deepEqual(await new ImageStore(ctHome).list(), []);
    throw error;
  } finally {
    const left = readdirSync(ctHome).includes('tmp') ? readdirSync(join(ctHome, 'tmp')) : [];
    assert.deepEqual(left, []);
  }
}

const REFUSED = { code: 'REGISTRY_REFUSED' };

test('every blob and manifest with other bytes is refused with REGISTRY_REFUSED, and nothing gets a name', async () => {
  await using at = await pushed();
  assert.equal(await pull(at), image.digest);
  for (const [digest, bytes] of [...at.server.blobs]) {
    if (bytes.length < 3) continue; // the empty configuration of signatures, which nobody reads
    const flipped = Buffer.from(bytes);
    flipped[bytes.length >> 1] = (flipped[bytes.length >> 1] ?? 0) ^ 1;
    at.server.blobs.set(digest, flipped);
    await assert.rejects(pull(at), REFUSED, `${digest} (${bytes.length} bytes)`);
    at.server.blobs.set(digest, bytes.subarray(0, -1));
    await assert.rejects(pull(at), { code: /REGISTRY_REFUSED|REGISTRY_FAILED/ } as unknown as Error);
    at.server.blobs.set(digest, Buffer.concat([bytes, Buffer.from('x')]));
    await assert.rejects(pull(at), REFUSED);
    at.server.blobs.set(digest, bytes);
  }
  const byDigest = at.name.replace(/:1$/, `@${at.registryDigest}`);
  assert.equal(await pull(at, byDigest), image.digest);
  const other = [...at.server.manifests].find(
    ([digest]) => digest.startsWith('sha256:') && digest !== at.registryDigest,
  );
  assert.ok(other);
  at.server.manifests.set(at.registryDigest, other[1]);
  await assert.rejects(pull(at, byDigest), REFUSED);
});

test('an image without an accepted signature is refused before its parts are fetched', async () => {
  await using at = await pushed();
  const own = [...at.server.manifests].filter(([, { bytes }]) => bytes.includes('sigstore'));
  for (const [digest] of own) at.server.manifests.delete(digest);
  at.server.requests.length = 0;
  await assert.rejects(pull(at), { code: 'SIGNATURE_MISSING' });
  assert.ok(!at.server.requests.some(({ line }) => line.includes(image.manifest.rootfs.digest)));
});

test('a signature of another image does not count, whoever attaches it', async () => {
  await using at = await pushed();
  const other = await signer.signStatement(imageStatement('small', `sha256:${'1'.repeat(64)}`));
  for (const [digest, bytes] of at.server.blobs) {
    if (!bytes.includes('dsseEnvelope')) continue;
    at.server.blobs.set(sha256(other), other);
    for (const [key, { bytes: document, type }] of [...at.server.manifests]) {
      if (!document.includes(digest)) continue;
      const changed = JSON.parse(document.toString('utf8'));
      Object.assign(changed.layers[0], { digest: sha256(other), size: other.length });
      at.server.manifests.delete(key);
      at.server.manifests.set(sha256(json(changed)), { bytes: json(changed), type });
    }
    break;
  }
  await assert.rejects(pull(at), { code: 'SIGNATURE_SUBJECT_MISMATCH' });
});

test('an image cannot take the name of another one', async () => {
  await using at = await pushed();
  await assert.rejects(pull(at, at.name, 'debian-12'), REFUSED);
});

test('artifacts of other kinds, and manifests that lack a part, are refused', async () => {
  await using at = await pushed();
  const original = at.server.manifests.get('1');
  assert.ok(original);
  const changed = async (
    edit: (
      document: Record<string, unknown> & { layers: unknown[]; config: Record<string, unknown> },
    ) => void,
  ) => {
    const document = JSON.parse(original.bytes.toString('utf8'));
    edit(document);
    at.server.manifests.set('1', { bytes: json(document), type: original.type });
    await assert.rejects(pull(at), REFUSED);
  };
  await changed((document) => {
    document['artifactType'] = 'application/vnd.other';
  });
  await changed((document) => {
    document.config['mediaType'] = 'application/vnd.oci.image.config.v1+json';
  });
  await changed((document) => void document.layers.shift());
  await changed((document) => {
    document.layers = Array.from({ length: 5000 }, () => document.layers[0]);
  });
  await changed((document) => {
    document.config['size'] = 1024 ** 3;
  });
  at.server.manifests.set('1', { ...original, type: 'text/html' });
  await assert.rejects(pull(at), REFUSED);
  at.server.manifests.set('1', original);
  assert.equal(await pull(at), image.digest);
});

test('a manifest of an image with figures that no image has is refused', () => {
  const bytes = encodeManifest(image.manifest);
  assert.deepEqual(parsePulledManifest(bytes), image.manifest);
  const refused = (what: string, change: (manifest: Record<string, unknown>) => void): void => {
    const manifest = structuredClone(image.manifest) as unknown as Record<string, unknown>;
    change(manifest);
    assert.throws(() => parsePulledManifest(encodeManifest(manifest as never)), REFUSED, what);
  };
  const inside = (key: string, fields: object) => (manifest: Record<string, unknown>) =>
    void Object.assign(manifest[key] as object, fields);
  refused('root', inside('user', { uid: 0 }));
  refused('a home elsewhere', inside('user', { home: '/home/../etc' }));
  refused('a home that adds to the command line', inside('user', { home: '/home/a ct.x=1' }));
  refused('a name that is a path', (manifest) => void Object.assign(manifest, { name: '../../x' }));
  refused('a digest that is a path', inside('kernel', { digest: 'sha256:../../x' }));
  refused('a negative size', inside('initramfs', { sizeBytes: -1 }));
  refused('another hash', (manifest) => {
    const rootfs = manifest['rootfs'] as { verity: object };
    manifest['rootfs'] = { ...rootfs, verity: { ...rootfs.verity, rootHash: 'x init=/bin/sh' } };
  });
  refused('a hash tree beyond the end', (manifest) => {
    const rootfs = manifest['rootfs'] as { verity: object };
    manifest['rootfs'] = { ...rootfs, verity: { ...rootfs.verity, dataBlocks: 1e9, hashStartBlock: 1e9 } };
  });
  refused('a variable with a NUL', inside('env', { A: 'x\0y' }));
  refused('an unknown field', (manifest) => void Object.assign(manifest, { hooks: [] }));
  const twice = Buffer.from(bytes.toString('utf8').replace('"name"', '"name": "other",\n  "name"'));
  assert.throws(() => parsePulledManifest(twice), REFUSED, 'a key twice');
  assert.throws(
    () => parsePulledManifest(Buffer.concat([bytes, Buffer.from(' ')])),
    REFUSED,
    'another spelling',
  );
});

/** A request whose path has `part` is answered by `answer`. */
function on(
  server: TestRegistry,
  part: string,
  answer: (request: IncomingMessage, response: ServerResponse) => void,
): void {
  server.intercept = (request, response) => {
    if (!request.url?.includes(part)) return false;
    answer(request, response);
    return true;
  };
}

test('endless answers end at their limit, and silence after a while', async () => {
  await using at = await pushed();
  const endless = (_request: IncomingMessage, response: ServerResponse): void => {
    response.writeHead(200, { 'content-type': 'application/vnd.oci.image.manifest.v1+json' });
    const more = (): void => {
      if (!response.destroyed) response.write(Buffer.alloc(65_536, ' '), () => setImmediate(more));
    };
    more();
  };
  for (const part of ['/manifests/1', '/referrers/', image.manifest.kernel.digest]) {
    on(at.server, part, endless);
    await assert.rejects(pull(at), REFUSED, part);
  }
  on(at.server, '/manifests/1', () => {}); // never answers
  await assert.rejects(pull(at), { code: 'REGISTRY_FAILED' });
  on(at.server, '/manifests/1', (_request, response) => void response.writeHead(200).write('{')); // never goes on
  await assert.rejects(pull(at), { code: 'REGISTRY_FAILED' });
});

test('another part of a blob than was asked for is refused', async () => {
  await using at = await pushed();
  const { digest } = image.manifest.kernel;
  const bytes = at.server.blobs.get(digest) ?? Buffer.alloc(0);
  for (const range of [
    `bytes 0-${bytes.length - 1}/${bytes.length}`,
    'bytes 1-2/3',
    `bytes 1000-${bytes.length - 1}/*`,
    '',
  ]) {
    on(at.server, digest, (request, response) => {
      if (request.headers.range === undefined) {
        response.writeHead(200, { 'content-length': String(bytes.length) });
        response.write(bytes.subarray(0, 1000), () => request.socket.destroy());
      } else {
        response.writeHead(206, range === '' ? {} : { 'content-range': range }).end(bytes.subarray(1000));
      }
    });
    await assert.rejects(pull(at), REFUSED, range);
  }
  // The whole blob again is what a server without ranges sends, and is fine.
  on(at.server, digest, (request, response) => {
    if (request.headers.range !== undefined) return void response.end(bytes);
    response.writeHead(200, { 'content-length': String(bytes.length) });
    response.write(bytes.subarray(0, 1000), () => request.socket.destroy());
  });
  assert.equal(await pull(at), image.digest);
});

test('credentials go to the origin of the registry alone, whatever redirects', async () => {
  await using at = await pushed();
  await using elsewhere = await testRegistry();
  for (const [digest, bytes] of at.server.blobs) elsewhere.blobs.set(digest, bytes);
  const password = 'the-password';
  const client = clientOf(at.name, { credentials: async () => ({ kind: 'basic', user: 'u', password }) });
  at.server.intercept = (request, response) => {
    if (request.headers.authorization === undefined) {
      response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end();
      return true;
    }
    if (!/\/blobs\//.test(request.url ?? '')) return false;
    response.writeHead(307, { location: `http://${elsewhere.host}${request.url}` }).end();
    return true;
  };
  assert.equal(await pull({ ...at, client }), image.digest);
  assert.ok(elsewhere.requests.length > 0);
  assert.deepEqual(
    elsewhere.requests.filter(({ authorization }) => authorization !== undefined),
    [],
  );
  assert.ok(
    at.server.requests.some(({ authorization }) => authorization !== undefined),
    'they are sent where they belong',
  );
  // Uploads carry our bytes and credentials: they go nowhere else.
  at.server.intercept = (request, response) => {
    if (request.method === 'HEAD') {
      response.writeHead(404).end();
      return true;
    }
    if (request.method !== 'POST') return false;
    response.writeHead(202, { location: `http://${elsewhere.host}/upload` }).end();
    return true;
  };
  const source = { digest: sha256(Buffer.from('x')), sizeBytes: 1, read: async () => Buffer.from('x') };
  await assert.rejects(client.putBlob(source), REFUSED);
  at.server.intercept = (_request, response) => {
    response.writeHead(307, { location: `http://${elsewhere.host}/upload` }).end();
    return true;
  };
  await assert.rejects(client.putBlob(source), REFUSED);
});

test('redirects lead to no other scheme, to no end, and not from elsewhere to this machine', async () => {
  await using at = await pushed();
  for (const location of [
    'file:///etc/passwd',
    'http://registry.test/x',
    'ftp://127.0.0.1/',
    'data:,x',
    '//u:p@127.0.0.1/x',
    '',
  ]) {
    on(
      at.server,
      '/manifests/1',
      (_request, response) => void response.writeHead(302, location === '' ? {} : { location }).end(),
    );
    await assert.rejects(pull(at), REFUSED, location);
  }
  on(
    at.server,
    '/manifests/1',
    (request, response) => void response.writeHead(302, { location: request.url }).end(),
  );
  await assert.rejects(pull(at), REFUSED);
  for (const realm of ['http://registry.test/token', 'file:///etc/passwd', 'http://u:p@127.0.0.1/', '']) {
    on(
      at.server,
      '/manifests/1',
      (_request, response) =>
        void response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}"` }).end(),
    );
    await assert.rejects(pull(at), REFUSED, realm);
  }
});

test('no credential is in a message, whatever the registry says', async () => {
  await using at = await pushed();
  const password = 'the-password';
  const client = clientOf(at.name, { credentials: async () => ({ kind: 'basic', user: 'u', password }) });
  at.server.intercept = (request, response) => {
    const status = request.headers.authorization === undefined ? 401 : 403;
    const { authorization } = request.headers;
    response.writeHead(status, { 'www-authenticate': 'Basic realm="x"' });
    response.end(JSON.stringify({ errors: [{ code: password, message: `${password} ${authorization}` }] }));
    return true;
  };
  await assert.rejects(client.manifest('1'), (error: Error & { code: string; hint?: string }) => {
    assert.equal(error.code, 'REGISTRY_DENIED');
    const all = `${error.message} ${error.hint} ${error.stack}`;
    assert.ok(!all.includes(password) && !all.includes(Buffer.from(`u:${password}`).toString('base64')));
    return true;
  });
});

test('a registry whose certificate nobody vouches for is not spoken to', async () => {
  const at = directory();
  const [key, certificate] = [join(at, 'key.pem'), join(at, 'certificate.pem')];
  const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1'];
  const files = ['-keyout', key, '-out', certificate];
  execFileSync(
    'openssl',
    ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '1', ...subject, ...files],
    {
      stdio: 'pipe',
    },
  );
  let requests = 0;
  const server = createHttpsServer(
    { key: readFileSync(key), cert: readFileSync(certificate) },
    (_request, response) => {
      requests += 1;
      response.writeHead(404).end();
    },
  ).listen(0, '127.0.0.1');
  await once(server, 'listening');
  try {
    const name = `https://127.0.0.1:${(server.address() as AddressInfo).port}/small:1`;
    await assert.rejects(clientOf(name).manifest('1'), { code: 'REGISTRY_FAILED', message: /certificate/ });
    assert.equal(requests, 0);
    // The same, by a process that is told whom to trust.
    const script = `import { clientOf } from '${join(installRoot, 'test/support/registry.ts')}';
      console.log(await clientOf('${name}').manifest('1'));`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      env: { PATH: process.env['PATH'], NODE_EXTRA_CA_CERTS: certificate },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => {
      out += chunk.toString();
    });
    await once(child, 'close');
    assert.equal(out, 'undefined\n');
    assert.equal(requests, 1);
  } finally {
    server.closeAllConnections();
    server.close();
  }
});
