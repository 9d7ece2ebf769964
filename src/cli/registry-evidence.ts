/**
 * Collects what registries keep as evidence about packages: signatures and provenance of npm's, attestations (PEP 740) of
 * Python's. Asked is the registry that npm or pip of this machine is configured for, and no other. Nothing of it is verified
 * here, and nothing has to be believed: that is for whoever demands it.
 */
import { CtError, messageOf } from '../core/errors.ts';
import { secureGet } from '../core/https-get.ts';
import { isObject } from '../core/json.ts';
import type { PackageEvidence } from '../verification/dependencies/evidence-file.ts';
import type { LockedPackage } from '../verification/dependencies/package-lock.ts';
import type { PinnedPackage } from '../verification/dependencies/requirements.ts';
import { PROVENANCE_TYPE } from '../verification/provenance.ts';

/** Requests at a time: a registry is somebody else's. */
const PARALLEL = 8;
const REQUEST_TIMEOUT_MS = 30_000;
/** The pages of projects with thousands of archives have some megabytes. */
const MAX_ANSWER_BYTES = 32 * 1024 * 1024;
/** https://peps.python.org/pep-0691/ */
const SIMPLE_JSON = 'application/vnd.pypi.simple.v1+json';

export type FoundEvidence = ReadonlyMap<string, PackageEvidence>;

/** `registry`: its URL. Throws REGISTRY_FAILED; a package that the registry knows nothing of has no evidence. */
export async function npmEvidence(
  packages: readonly LockedPackage[],
  registry: string,
): Promise<FoundEvidence> {
  const base = withSlash(registry);
  return await each(distinct(packages), async ({ name, version }) => {
    const path = name.startsWith('@') ? `@${encodeURIComponent(name.slice(1))}` : encodeURIComponent(name);
    const manifest = await json(new URL(`${path}/${encodeURIComponent(version)}`, base));
    const dist = isObject(manifest) && isObject(manifest['dist']) ? manifest['dist'] : {};
    const signatures = listOf(dist['signatures']).flatMap((entry) => {
      const { keyid, sig } = entry as { keyid?: unknown; sig?: unknown };
      return typeof keyid === 'string' && typeof sig === 'string' ? [{ keyid, sig }] : [];
    });
    if (!isObject(dist['attestations'])) return { signatures, attestations: [] };
    const answer = await json(new URL(`-/npm/v1/attestations/${name}@${encodeURIComponent(version)}`, base));
    const attestations = listOf(isObject(answer) ? answer['attestations'] : undefined).flatMap((entry) =>
      entry['predicateType'] === PROVENANCE_TYPE && isObject(entry['bundle']) ? [entry['bundle']] : [],
    );
    return { signatures, attestations };
  });
}

/** `index`: the URL of its simple API. Of each archive that a requirement allows. As {@link npmEvidence}. */
export async function pythonEvidence(
  packages: readonly PinnedPackage[],
  index: string,
): Promise<FoundEvidence> {
  const base = withSlash(index);
  return await each(distinct(packages), async ({ name, hashes }) => {
    const page = await json(new URL(`${encodeURIComponent(name)}/`, base), SIMPLE_JSON);
    const wanted = new Set(packages.filter((other) => other.name === name).flatMap((other) => other.hashes));
    const files = listOf(isObject(page) ? page['files'] : undefined).filter(
      ({ hashes: known, provenance }) => {
        const digest = isObject(known) ? known['sha256'] : undefined;
        return (
          typeof digest === 'string' &&
          wanted.has(digest) &&
          hashes.length > 0 &&
          typeof provenance === 'string'
        );
      },
    );
    const attestations: unknown[] = [];
    for (const { provenance } of files) {
      const url = new URL(String(provenance), base);
      if (url.origin !== new URL(base).origin) continue; // nobody but the index is asked
      const answer = await json(url);
      for (const bundle of listOf(isObject(answer) ? answer['attestation_bundles'] : undefined)) {
        attestations.push(...listOf(bundle['attestations']));
      }
    }
    return { signatures: [], attestations };
  });
}

function distinct<T extends { readonly name: string; readonly version: string }>(
  packages: readonly T[],
): T[] {
  return [...new Map(packages.map((one) => [`${one.name}@${one.version}`, one])).values()];
}

async function each<T extends { readonly name: string; readonly version: string }>(
  packages: readonly T[],
  find: (one: T) => Promise<PackageEvidence>,
): Promise<FoundEvidence> {
  const found = new Map<string, PackageEvidence>();
  const waiting = packages.values();
  const work = async (): Promise<void> => {
    for (const one of waiting) found.set(`${one.name}@${one.version}`, await find(one));
  };
  await Promise.all(Array.from({ length: PARALLEL }, work));
  return new Map([...found].sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Undefined if there is nothing there. */
async function json(url: URL, accept = 'application/json'): Promise<unknown> {
  const body = await fetchBody(url, accept);
  if (body === undefined) return undefined;
  try {
    return JSON.parse(body.toString('utf8'));
  } catch (error) {
    throw failed(url, 'it does not answer in JSON', error);
  }
}

async function fetchBody(url: URL, accept: string): Promise<Buffer | undefined> {
  const isLoopback = ['localhost', '127.0.0.1', '[::1]'].includes(url.hostname);
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && isLoopback)) {
    throw failed(url, 'only https is asked');
  }
  try {
    const response = await secureGet(url, {
      headers: { accept },
      signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS),
    });
    if (response.statusCode === 404) {
      response.destroy();
      return undefined;
    }
    if (response.statusCode !== 200) {
      response.destroy();
      throw failed(url, `it answers with HTTP status ${response.statusCode}`);
    }
    const chunks: Buffer[] = [];
    let bytes = 0;
    for await (const chunk of response) {
      bytes += (chunk as Buffer).length;
      if (bytes > MAX_ANSWER_BYTES) throw failed(url, `its answer has more than ${MAX_ANSWER_BYTES} bytes`);
      chunks.push(chunk as Buffer);
    }
    return Buffer.concat(chunks);
  } catch (error) {
    throw error instanceof CtError ? error : failed(url, messageOf(error), error);
  }
}

function listOf(value: unknown): Record<string, unknown>[] {
  return Array.isArray(value) ? value.filter(isObject) : [];
}

function withSlash(url: string): string {
  return url.endsWith('/') ? url : `${url}/`;
}

function failed(url: URL, why: string, cause?: unknown): CtError {
  return new CtError('REGISTRY_FAILED', `${url.origin}${url.pathname}: ${why}`, { cause });
}
