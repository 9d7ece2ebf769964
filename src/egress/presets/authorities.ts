/**
 * Certificate authorities that the operator configured on this machine, for the guest.
 *
 * Nothing but certificates leaves a file: each is parsed and written anew from its DER, so that a private key that lies
 * beside it in the file cannot come along.
 */
import { X509Certificate } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open, readdir } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import { MAX_SCRIPT_BYTES } from '../../protocol/limits.ts';
import type { Environment } from './preset.ts';

/** Operator-controlled; the bundle of all public authorities is a quarter of this. */
const MAX_FILE_BYTES = 1024 * 1024;
/** Files of the directory of local authorities. */
const MAX_LOCAL_FILES = 200;

/** Variables by which clients are told of a file of authorities. */
const AUTHORITY_VARIABLES = [
  'SSL_CERT_FILE',
  'NODE_EXTRA_CA_CERTS',
  'GIT_SSL_CAINFO',
  'CURL_CA_BUNDLE',
  'REQUESTS_CA_BUNDLE',
  'PIP_CERT',
  'CARGO_HTTP_CAINFO',
] as const;

/** Where distributions keep the authorities of the whole machine; the first that exists counts. */
const SYSTEM_BUNDLES = [
  '/etc/ssl/certs/ca-certificates.crt',
  '/etc/pki/tls/certs/ca-bundle.crt',
  '/etc/ssl/ca-bundle.pem',
  '/etc/ssl/cert.pem',
];
/** What update-ca-certificates(8) adds to that bundle. */
const LOCAL_DIRECTORY = '/usr/local/share/ca-certificates';

export interface AuthorityPlaces {
  readonly systemBundles: readonly string[];
  readonly localDirectory: string;
}

export const AUTHORITY_PLACES: AuthorityPlaces = {
  systemBundles: SYSTEM_BUNDLES,
  localDirectory: LOCAL_DIRECTORY,
};

export interface Authorities {
  /** One certificate each, in PEM. */
  readonly certificates: readonly string[];
  readonly notices: readonly string[];
}

/** What files held when they were parsed last; jobs come in bursts, and 150 certificates take 10 ms. */
const parsedFiles = new Map<string, { readonly text: string; readonly found: Authorities }>();
const MAX_PARSED_FILES = 32;

/** The certificates of a file. Never rejects: what cannot be used is a notice, and TLS then fails rather than passes. */
export async function readAuthorities(path: string, setting: string): Promise<Authorities> {
  if (!isAbsolute(path)) return nothing(`${setting} is not an absolute path`);
  let file: FileHandle | undefined;
  try {
    // A pipe without a writer would wait for one.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const stats = await file.stat();
    if (!stats.isFile()) return nothing(`${setting}: ${path} is no file`);
    if (stats.size > MAX_FILE_BYTES) {
      return nothing(`${setting}: ${path} is larger than ${MAX_FILE_BYTES} bytes`);
    }
    const bytes = Buffer.alloc(stats.size);
    const { bytesRead } = await file.read(bytes, 0, bytes.length, 0);
    return parseFile(path, bytes.toString('latin1', 0, bytesRead), setting);
  } catch (error) {
    return nothing(
      `${setting}: ${path} cannot be read (${(error as NodeJS.ErrnoException).code ?? 'error'})`,
    );
  } finally {
    await file?.close();
  }
}

/** As {@link certificatesOf}; what has not changed since is not parsed again. */
function parseFile(path: string, text: string, setting: string): Authorities {
  const key = `${setting}: ${path}`;
  const known = parsedFiles.get(key);
  if (known?.text === text) return known.found;
  const found = certificatesOf(text, key);
  parsedFiles.delete(key);
  parsedFiles.set(key, { text, found });
  const [oldest] = parsedFiles.keys();
  if (parsedFiles.size > MAX_PARSED_FILES && oldest !== undefined) parsedFiles.delete(oldest);
  return found;
}

/** The certificates of a text in PEM; `where` is for notices. */
export function certificatesOf(text: string, where: string): Authorities {
  const certificates: string[] = [];
  let unusable = 0;
  for (const [block] of text.matchAll(
    /-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----/g,
  )) {
    try {
      certificates.push(pemOf(new X509Certificate(block).raw));
    } catch {
      unusable += 1;
    }
  }
  const notices =
    certificates.length === 0
      ? [`${where} holds no certificate in PEM`]
      : unusable > 0
        ? [`${where}: ${unusable} of its certificates cannot be parsed and are left out`]
        : [];
  return { certificates, notices };
}

/**
 * The bundle for the guest: what was configured, by `given` (of presets), variables or as local authorities of the machine,
 * and then every authority of the machine, because the bundle replaces that of the image. Absent if nothing was configured.
 */
export async function authorityBundle(
  given: readonly string[],
  around: Environment,
  places: AuthorityPlaces = AUTHORITY_PLACES,
): Promise<{ readonly pem?: string; readonly notices: readonly string[] }> {
  const paths = new Map<string, string>();
  for (const name of AUTHORITY_VARIABLES) {
    const path = around[name];
    if (path !== undefined && path !== '' && !paths.has(path)) paths.set(path, name);
  }
  for (const path of await localFiles(places.localDirectory)) paths.set(path, 'local authority');
  const read = await Promise.all([...paths].map(([path, setting]) => readAuthorities(path, setting)));
  const notices = read.flatMap((one) => one.notices);
  const configured = [...given, ...read.flatMap(({ certificates }) => certificates)];
  if (configured.length === 0) return { notices };
  const all = new Set([...configured, ...(await systemAuthorities(places.systemBundles))]);
  const kept: string[] = [];
  let bytes = 0;
  for (const certificate of all) {
    if (bytes + certificate.length > MAX_SCRIPT_BYTES) continue;
    bytes += certificate.length;
    kept.push(certificate);
  }
  const missing = all.size - kept.length;
  return {
    pem: kept.join(''),
    notices:
      missing === 0
        ? notices
        : [
            ...notices,
            `${missing} certificate authorities of this host do not fit into ${MAX_SCRIPT_BYTES} bytes`,
          ],
  };
}

async function systemAuthorities(bundles: readonly string[]): Promise<readonly string[]> {
  for (const path of bundles) {
    const { certificates } = await readAuthorities(path, 'the authorities of this machine');
    if (certificates.length > 0) return certificates;
  }
  return [];
}

async function localFiles(directory: string): Promise<string[]> {
  try {
    const names = await readdir(directory, { recursive: true });
    return names
      .filter((name) => name.endsWith('.crt'))
      .sort()
      .slice(0, MAX_LOCAL_FILES)
      .map((name) => join(directory, name));
  } catch {
    return []; // there is none
  }
}

function nothing(notice: string): Authorities {
  return { certificates: [], notices: [`${notice}; its certificate authorities are not used`] };
}

/** RFC 7468. */
function pemOf(der: Buffer): string {
  const lines = der.toString('base64').match(/.{1,64}/g) ?? [];
  return `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`;
}
