/** A small registry in the test's process, which can be made to misbehave; and Debian's, where it is installed. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { type AddressInfo, createServer as createTcpServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseReference } from '../../src/image/oci/reference.ts';
import { Registry, type RegistryOptions } from '../../src/image/oci/registry.ts';
import { sha256 } from './oci-layout.ts';

export interface TestRegistry extends AsyncDisposable {
  readonly host: string;
  readonly blobs: Map<string, Buffer>;
  /** By tag and by digest. */
  readonly manifests: Map<string, { readonly bytes: Buffer; readonly type: string }>;
  /** `METHOD /path` of every request, with its authorization if it had one. */
  readonly requests: { readonly line: string; readonly authorization: string | undefined }[];
  /** Is asked first; returns true if it has answered itself. */
  intercept: ((request: IncomingMessage, response: ServerResponse) => boolean | Promise<boolean>) | undefined;
  keepsReferrers: boolean;
}

export async function testRegistry(): Promise<TestRegistry> {
  const uploads = new Map<string, Buffer>();
  const server: Server = createServer((request, response) => {
    handle(request, response).catch((error) => {
      response.destroy(error instanceof Error ? error : undefined);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const registry: TestRegistry = {
    host,
    blobs: new Map(),
    manifests: new Map(),
    requests: [],
    intercept: undefined,
    keepsReferrers: true,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };

  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = '', url = '' } = request;
    registry.requests.push({ line: `${method} ${url}`, authorization: request.headers.authorization });
    if (registry.intercept !== undefined && (await registry.intercept(request, response))) return;
    const path = new URL(url, 'http://x').pathname;
    const body = await bodyOf(request);
    const answer = (
      status: number,
      headers: Record<string, string> = {},
      bytes: Buffer = Buffer.alloc(0),
    ): void => {
      response.writeHead(status, { 'content-length': String(bytes.length), ...headers });
      response.end(method === 'HEAD' ? undefined : bytes);
    };
    const upload = /\/blobs\/uploads\/([0-9a-f]+)$/.exec(path)?.[1];
    if (method === 'POST' && path.endsWith('/blobs/uploads/')) {
      const id = randomBytes(8).toString('hex');
      uploads.set(id, Buffer.alloc(0));
      return answer(202, { location: `${path}${id}?state=1` });
    }
    if (upload !== undefined) {
      const have = uploads.get(upload) ?? Buffer.alloc(0);
      if (method === 'PATCH') {
        const start = Number(/^([0-9]+)-/.exec(request.headers['content-range'] ?? '')?.[1] ?? 0);
        if (start !== have.length) return answer(416);
        uploads.set(upload, Buffer.concat([have, body]));
        return answer(202, { location: `${path}?state=2` });
      }
      if (method === 'GET')
        return answer(204, { range: `0-${Math.max(0, have.length - 1)}`, location: path });
      const digest = new URL(url, 'http://x').searchParams.get('digest') ?? '';
      if (sha256(have) !== digest) return answer(400);
      registry.blobs.set(digest, have);
      return answer(201);
    }
    const blob = /\/blobs\/(sha256:[0-9a-f]{64})$/.exec(path)?.[1];
    if (blob !== undefined) {
      const bytes = registry.blobs.get(blob);
      if (bytes === undefined) return answer(404);
      const range = /^bytes=([0-9]+)-([0-9]+)$/.exec(request.headers.range ?? '');
      if (range === null) return answer(200, {}, bytes);
      const [start, end] = [Number(range[1]), Number(range[2])];
      const headers = { 'content-range': `bytes ${start}-${end}/${bytes.length}` };
      return answer(206, headers, bytes.subarray(start, end + 1));
    }
    const name = /\/manifests\/([^/]+)$/.exec(path)?.[1];
    if (name !== undefined && method === 'PUT') {
      const type = request.headers['content-type'] ?? '';
      registry.manifests.set(name, { bytes: body, type });
      registry.manifests.set(sha256(body), { bytes: body, type });
      const { subject } = JSON.parse(body.toString('utf8')) as { subject?: { digest: string } };
      return answer(201, subject && registry.keepsReferrers ? { 'oci-subject': subject.digest } : {});
    }
    if (name !== undefined) {
      const manifest = registry.manifests.get(name);
      return manifest ? answer(200, { 'content-type': manifest.type }, manifest.bytes) : answer(404);
    }
    const referred = /\/referrers\/(sha256:[0-9a-f]{64})$/.exec(path)?.[1];
    if (referred !== undefined && registry.keepsReferrers) {
      const manifests = [...registry.manifests].flatMap(([digest, { bytes, type }]) => {
        const { subject, artifactType } = JSON.parse(bytes.toString('utf8')) as {
          subject?: { digest: string };
          artifactType?: string;
        };
        if (!digest.startsWith('sha256:') || subject?.digest !== referred) return [];
        return [{ mediaType: type, digest, size: bytes.length, artifactType }];
      });
      return answer(200, {}, Buffer.from(JSON.stringify({ schemaVersion: 2, manifests })));
    }
    answer(404);
  }
  return registry;
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of request) parts.push(part as Buffer);
  return Buffer.concat(parts);
}

/** A client, with short pauses and no credentials. */
export function clientOf(name: string, options: Partial<RegistryOptions> = {}): Registry {
  return new Registry(parseReference(name), {
    credentials: async () => undefined,
    firstPauseMs: 5,
    idleTimeoutMs: 2000,
    ...options,
  });
}

export const DEBIAN_REGISTRY = '/usr/bin/docker-registry';
/** For `skip` of a test. */
export const noDebianRegistry: string | false = existsSync(DEBIAN_REGISTRY)
  ? false
  : 'docker-registry is not installed (apt-get install docker-registry)';

/** Debian's registry, serving `directory` until it is disposed. */
export async function debianRegistry(
  directory: string,
): Promise<AsyncDisposable & { readonly host: string }> {
  mkdirSync(join(directory, 'storage'), { recursive: true });
  const host = `127.0.0.1:${await freePort()}`;
  const path = join(directory, 'registry.yml');
  writeFileSync(
    path,
    `version: 0.1\nlog: { level: error }\nstorage: { filesystem: { rootdirectory: ${join(directory, 'storage')} } }\nhttp: { addr: ${host} }\n`,
  );
  const child: ChildProcess = spawn(DEBIAN_REGISTRY, ['serve', path], {
    stdio: 'ignore',
    env: { PATH: '/usr/bin:/bin' },
  });
  const exited = once(child, 'exit');
  for (let attempts = 0; ; attempts++) {
    const answer = await fetch(`http://${host}/v2/`).catch(() => undefined);
    if (answer?.ok) break;
    if (attempts > 100 || child.exitCode !== null) throw new Error('docker-registry does not start');
    await sleep(50);
  }
  return {
    host,
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL');
      await exited;
    },
  };
}

async function freePort(): Promise<number> {
  const server = createTcpServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
