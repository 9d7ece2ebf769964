/** A registry of packages on the loopback of this machine, for npm and pip: files that a test puts there, and can change. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { dirname, join } from 'node:path';
import { scratchDirectory } from './scratch.ts';

export interface PackageRegistry extends AsyncDisposable {
  readonly port: number;
  /** By path: `/tool`. */
  readonly files: Map<string, Buffer>;
}

export async function packageRegistry(): Promise<PackageRegistry> {
  const files = new Map<string, Buffer>();
  const server = createServer(({ url = '' }, response) => {
    const body = files.get(new URL(url, 'http://x').pathname);
    const type =
      body?.[0] === 0x7b ? 'application/json' : body?.[0] === 0x3c ? 'text/html' : 'application/gzip';
    response.writeHead(body ? 200 : 404, { 'content-type': type }).end(body);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    files,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

export interface NpmPackage {
  readonly name: string;
  readonly version: string;
  readonly archive: Buffer;
  /** As a lock file has it. */
  readonly integrity: string;
}

/** The archive of a package: `files` by path, beside its package.json. */
export function npmPackage(
  manifest: { name: string; version: string },
  files: Record<string, string>,
): NpmPackage {
  using scratch = scratchDirectory();
  const all = { ...files, 'package.json': JSON.stringify(manifest) };
  for (const [path, content] of Object.entries(all)) {
    const file = join(scratch.path, 'package', path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, content);
  }
  execFileSync('tar', ['-czf', 'x.tgz', 'package'], { cwd: scratch.path });
  const archive = readFileSync(join(scratch.path, 'x.tgz'));
  const integrity = `sha512-${createHash('sha512').update(archive).digest('base64')}`;
  const { name, version } = manifest;
  return { name, version, archive, integrity };
}

/** Puts a package into the registry, and returns the entry that a lock file has of it. */
export function publish(
  { files }: PackageRegistry,
  origin: string,
  { name, version, archive, integrity }: NpmPackage,
): { version: string; resolved: string; integrity: string } {
  const path = `/${name}/-/${name}-${version}.tgz`;
  const resolved = `${origin}${path}`;
  const dist = { tarball: resolved, integrity };
  const packument = {
    name,
    'dist-tags': { latest: version },
    versions: { [version]: { name, version, dist } },
  };
  files.set(path, archive);
  files.set(`/${name}`, Buffer.from(JSON.stringify(packument)));
  return { version, resolved, integrity };
}

/** A wheel of one module (packaging.python.org, "Binary distribution format"), and its SHA-256 in hex. */
export function wheel(
  name: string,
  version: string,
  source: string,
): { file: string; bytes: Buffer; digest: string } {
  using scratch = scratchDirectory();
  const info = `${name}-${version}.dist-info`;
  const tags = 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n';
  const content: Readonly<Record<string, string>> = {
    [`${name}.py`]: source,
    [`${info}/METADATA`]: `Metadata-Version: 2.1\nName: ${name}\nVersion: ${version}\n`,
    [`${info}/WHEEL`]: tags,
    [`${info}/RECORD`]: [`${name}.py`, `${info}/METADATA`, `${info}/WHEEL`, `${info}/RECORD`]
      .map((path) => `${path},,\n`)
      .join(''),
  };
  mkdirSync(join(scratch.path, info));
  for (const [path, text] of Object.entries(content)) writeFileSync(join(scratch.path, path), text);
  const file = `${name}-${version}-py3-none-any.whl`;
  execFileSync('zip', ['-qX', file, ...Object.keys(content)], { cwd: scratch.path });
  const bytes = readFileSync(join(scratch.path, file));
  return { file, bytes, digest: createHash('sha256').update(bytes).digest('hex') };
}
