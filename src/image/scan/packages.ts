/** What of an image can be looked up: the packages of its SBOM, by name and version as advisories have them. */
import { CtError } from '../../core/errors.ts';
import { isObject } from '../../core/json.ts';
import type { ImageLock } from '../lock-file.ts';
import { debianEcosystem, type Ecosystem, MAX_VERSION_CHARACTERS } from './advisory.ts';
import { type Purl, parsePurl } from './purl.ts';
import { advisorySource, type SourcePackage } from './source-package.ts';

/** The source is what it was built from, which Debian's advisories are about; elsewhere it is the package itself. */
export interface InstalledPackage extends SourcePackage {
  readonly name: string;
  readonly version: string;
  readonly architecture: string;
  readonly purl: string;
  readonly ecosystem: Ecosystem;
}

export interface SbomPackages {
  readonly packages: readonly InstalledPackage[];
  /** Names of packages and programs that no feed is about; files that are parts of something are none. */
  readonly unexamined: readonly string[];
}

/** An image of a desktop has some 3,000. */
const MAX_COMPONENTS = 1_000_000;
const MAX_DEPTH = 8;
/** What ct adds to each image: it has no advisories but releases. */
const OWN = new Set(['ct-guest-agent', 'ct-probe']);
/** Node.js itself as a package of npm: no feed of npm packages is about it. */
const NODE_ITSELF = /^node-(?:bin-)?(?:linux|darwin|win)-[a-z0-9]+$/;
const CODE_NAME = /^[a-z][a-z0-9-]{0,40}$/;

type Json = Readonly<Record<string, unknown>>;

/**
 * Packages of a CycloneDX document, in JSON. An image may have been made elsewhere: what an SBOM says is checked. Throws
 * IMAGE_CORRUPT if it is no such document.
 */
export function packagesOfSbom(text: string): SbomPackages {
  const document = parse(text);
  if (document['bomFormat'] !== 'CycloneDX' || !Array.isArray(document['components'])) {
    throw corrupt('it is no CycloneDX document');
  }
  const packages: InstalledPackage[] = [];
  const unexamined: string[] = [];
  let seen = 0;
  const visit = (components: readonly unknown[], depth: number): void => {
    for (const component of components) {
      seen += 1;
      if (!isObject(component) || seen > MAX_COMPONENTS)
        throw corrupt('its components are not what they should be');
      const found = packageOf(component);
      if (found) packages.push(found);
      else if (isProgram(component)) unexamined.push(labelOf(component));
      const { components: parts } = component;
      if (Array.isArray(parts) && depth < MAX_DEPTH) visit(parts, depth + 1);
    }
  };
  visit(document['components'], 0);
  return { packages, unexamined: unexamined.sort() };
}

/** The same of a lock, of which nothing is built yet. */
export function packagesOfLock({ suite, packages, npm, kernel }: ImageLock): SbomPackages {
  const ecosystem = debianEcosystem(suite);
  const debian = [...packages, kernel].flatMap((entry): InstalledPackage[] => {
    const { name, version, architecture, source, sourceVersion } = entry;
    if (ecosystem === undefined) return [];
    const origin = advisorySource({ sourceName: source, sourceVersion });
    return [{ name, version, architecture, ...origin, purl: `pkg:deb/debian/${name}`, ecosystem }];
  });
  const fromNpm = npm.flatMap(({ name, version }): InstalledPackage[] =>
    NODE_ITSELF.test(name)
      ? []
      : [
          {
            ...{ name, version, architecture: 'all', sourceName: name, sourceVersion: version },
            purl: `pkg:npm/${name}`,
            ecosystem: 'npm',
          },
        ],
  );
  return { packages: [...debian, ...fromNpm], unexamined: [] };
}

function isProgram({ type, name, purl }: Json): boolean {
  if (type === 'file' || type === 'operating-system') return false;
  return purl !== undefined || !OWN.has(String(name));
}

function packageOf(component: Json): InstalledPackage | undefined {
  const { purl: written } = component;
  const purl = typeof written === 'string' ? parsePurl(written) : undefined;
  if (typeof written !== 'string' || purl?.version === undefined) return undefined;
  const { version } = purl;
  if (version.length > MAX_VERSION_CHARACTERS) return undefined;
  if (purl.type === 'npm') {
    if (purl.namespace === '' && NODE_ITSELF.test(purl.name)) return undefined;
    const name = purl.namespace === '' ? purl.name : `${purl.namespace}/${purl.name}`;
    return {
      name,
      version,
      architecture: 'all',
      sourceName: name,
      sourceVersion: version,
      purl: written,
      ecosystem: 'npm',
    };
  }
  const ecosystem = purl.type === 'deb' && purl.namespace === 'debian' ? releaseOf(purl) : undefined;
  if (ecosystem === undefined) return undefined;
  const [upstreamName, upstreamVersion] = splitUpstream(purl);
  const sourceName = property(component, 'ct:sourcePackage') ?? upstreamName ?? purl.name;
  const sourceVersion = property(component, 'ct:sourceVersion') ?? upstreamVersion ?? withoutRebuild(version);
  return {
    name: purl.name,
    version,
    architecture: purl.qualifiers.get('arch') ?? '',
    ...advisorySource({ sourceName, sourceVersion }),
    purl: written,
    ecosystem,
  };
}

/** `distro=bookworm`, `debian-bookworm`, `debian-12` or `debian-12.9`. */
function releaseOf(purl: Purl): Ecosystem | undefined {
  const distro = (purl.qualifiers.get('distro') ?? '')
    .replace(/^debian-/, '')
    .replace(/^([0-9]+)\..*$/, '$1');
  return debianEcosystem(distro);
}

/** `upstream=NAME@VERSION`, the source package where it is not of the same name and version. */
function splitUpstream(purl: Purl): readonly (string | undefined)[] {
  const upstream = purl.qualifiers.get('upstream');
  if (upstream === undefined || upstream === '') return [];
  return upstream.split('@');
}

/** A rebuild without changes (`+b1`) has the source of the version without it. */
function withoutRebuild(version: string): string {
  return version.replace(/\+b[0-9]+$/, '');
}

/** Whether a release is one that feeds may know; apt and image definitions name it. Throws IMAGE_CORRUPT. */
export function suiteOfSbom(text: string): string {
  for (const component of parse(text)['components'] as readonly unknown[]) {
    if (!isObject(component) || typeof component['purl'] !== 'string') continue;
    const distro = parsePurl(component['purl'])?.qualifiers.get('distro');
    if (distro !== undefined && CODE_NAME.test(distro)) return distro;
  }
  throw corrupt('it does not say of which Debian release it is');
}

function property(component: Json, wanted: string): string | undefined {
  const { properties } = component;
  if (!Array.isArray(properties)) return undefined;
  const found = properties.find((entry: unknown) => isObject(entry) && entry['name'] === wanted) as
    | Json
    | undefined;
  const value = found?.['value'];
  return typeof value === 'string' && value !== '' && value.length <= MAX_VERSION_CHARACTERS
    ? value
    : undefined;
}

function labelOf({ name, version }: Json): string {
  const text = typeof version === 'string' ? `${String(name)} ${version}` : String(name);
  return text.slice(0, 200);
}

function parse(text: string): Json {
  try {
    const document: unknown = JSON.parse(text);
    if (isObject(document)) return document;
  } catch {
    throw corrupt('it is not valid JSON');
  }
  throw corrupt('it is no JSON object');
}

function corrupt(what: string): CtError {
  return new CtError('IMAGE_CORRUPT', `the SBOM of the image cannot be used: ${what}`, {
    hint: '`ct image build --force` makes the image again',
  });
}
