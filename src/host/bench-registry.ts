/**
 * A registry on loopback with the packages of one lock file, and nothing else: `npm ci` fetches the same bytes from the same
 * place in a VM and in a container, whatever the registry of this machine does meanwhile. Its packages are fetched once, by the
 * npm of this machine, and kept in CT_HOME/cache/npm; the lock file says what they have to be.
 */
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { NpmPackage } from '../image/definition.ts';
import { fetchNpmPackages } from '../image/npm.ts';

export interface BenchRegistry extends Disposable {
  readonly port: number;
}

/** Throws IMAGE_BUILD_FAILED with what npm says if a package cannot be had. */
export async function startRegistry(options: {
  readonly lockFile: string;
  readonly cacheDirectory: string;
  readonly workDirectory: string;
  readonly signal: AbortSignal;
}): Promise<BenchRegistry> {
  const archives = await fetchNpmPackages(lockedPackages(readFileSync(options.lockFile, 'utf8')), {
    ...options,
    progress: () => {},
  });
  const answers = new Map<string, (host: string) => string | Buffer>();
  for (const { name, version, integrity, path } of archives) {
    const archive = `/${name}/-/${version}.tgz`;
    const bytes = readFileSync(path);
    answers.set(archive, () => bytes);
    answers.set(`/${name}`, (host) => {
      const dist = { tarball: `http://${host}${archive}`, integrity };
      const versions = { [version]: { name, version, dist } };
      return JSON.stringify({ name, 'dist-tags': { latest: version }, versions });
    });
  }
  const server = createServer((request, response: ServerResponse) => {
    const answer = answers.get(decodeURIComponent(request.url ?? ''));
    if (!answer) response.writeHead(404);
    response.end(answer?.(request.headers.host ?? '') ?? '{}');
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    [Symbol.dispose]: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

/** Those of a package-lock.json of version 3, without the project itself. One of ours, so its form is known. */
export function lockedPackages(text: string): readonly NpmPackage[] {
  const { packages } = JSON.parse(text) as {
    readonly packages: Readonly<Record<string, { readonly version: string; readonly integrity: string }>>;
  };
  return Object.entries(packages)
    .filter(([place]) => place !== '')
    .map(([place, { version, integrity }]) => ({
      name: place.slice(place.lastIndexOf('node_modules/') + 'node_modules/'.length),
      version,
      integrity,
    }));
}
