/** What is proved of the packages of a lock file, as far as a level asks for it. */
import { messageOf } from '../../core/errors.ts';
import type { EvidenceFacts, Problem } from '../../policy/verify.ts';
import type { DependencyLevel } from '../../protocol/verify.ts';
import type { JobTrust } from '../job-trust.ts';
import { type PackageEvidence, parseEvidenceFile } from './evidence-file.ts';
import { parsePackageLock } from './package-lock.ts';
import { type Archive, NPM_PREDICATES, npmSubject, PYPI_PREDICATES, publishersOf } from './provenance.ts';
import { registrySignature } from './registry-keys.ts';
import { parseRequirements } from './requirements.ts';

export type LockFacts = EvidenceFacts['dependencies'][number];
type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** Names and origins that a message shows; more of them change nothing. */
const MAX_SHOWN = 20;
/** As many as policy can name. */
const MAX_ORIGINS = 100;

export interface LockOptions {
  readonly lock: string;
  readonly bytes: Buffer;
  /** Undefined: there is none. */
  readonly evidence: Buffer | undefined;
  readonly level: DependencyLevel;
  /** Origins of the registries that this machine is configured for. */
  readonly configured: Readonly<Record<'npm' | 'pypi', readonly string[]>>;
  readonly trust: JobTrust;
  readonly now: Date;
}

interface Package {
  readonly id: string;
  readonly hashed: boolean;
  readonly signed:
    | { readonly name: string; readonly version: string; readonly integrity: string }
    | undefined;
  readonly archives: readonly Archive[];
}

/** Never throws because of what is in the files: that is a fact. */
export function lockFacts(options: LockOptions): LockFacts {
  const kind = /\.(txt|in)$/.test(options.lock) ? 'pypi' : 'npm';
  const facts: Mutable<LockFacts> = {
    lock: options.lock,
    kind,
    packages: 0,
    problem: null,
    unhashed: [],
    origins: [],
    configured: options.configured[kind],
    unsigned: [],
    publishers: [],
    unproven: [],
    invalid: [],
  };
  const refused = (code: Problem['code'], error: unknown): LockFacts => ({
    ...facts,
    problem: { code, message: messageOf(error) },
  });
  let found: { readonly packages: readonly Package[]; readonly urls: readonly string[] };
  try {
    found = kind === 'npm' ? npmPackages(options.bytes) : pythonPackages(options.bytes);
    facts.origins = originsOf(found.urls);
  } catch (error) {
    return refused('VERIFY_DEPENDENCY_INTEGRITY', error);
  }
  const { packages } = found;
  facts.packages = packages.length;
  facts.unhashed = shown(packages.filter(({ hashed }) => !hashed));
  if (options.level !== 'signature' && options.level !== 'provenance') return facts;
  let evidence: ReadonlyMap<string, PackageEvidence>;
  try {
    evidence = options.evidence === undefined ? new Map() : parseEvidenceFile(options.evidence);
  } catch (error) {
    return refused(
      'VERIFY_DEPENDENCY_INVALID',
      new Error(`its evidence cannot be read: ${messageOf(error)}`),
    );
  }
  return withEvidence(facts, packages, evidence, options);
}

function withEvidence(
  facts: LockFacts,
  packages: readonly Package[],
  evidence: ReadonlyMap<string, PackageEvidence>,
  { level, trust, now }: LockOptions,
): LockFacts {
  const unsigned: Package[] = [];
  const unproven: Package[] = [];
  const invalid: Package[] = [];
  const publishers = new Map<string, readonly string[]>();
  const proves = level === 'provenance' || facts.kind === 'pypi';
  for (const one of packages) {
    const { signatures = [], attestations = [] } = evidence.get(one.id) ?? {};
    if (facts.kind === 'npm') {
      const state = one.signed
        ? registrySignature(one.signed, signatures, trust.registryKeys, now)
        : 'absent';
      if (state === 'absent') unsigned.push(one);
      if (state === 'invalid') invalid.push(one);
    }
    if (!proves) continue;
    if (one.archives.length === 0) unproven.push(one);
    for (const archive of one.archives) {
      const names = publishersOf(archive, relevant(archive, attestations), trust, now);
      if (names === 'invalid') invalid.push(one);
      else if (names.size === 0) unproven.push(one);
      else publishers.set([...names].sort().join(' '), [...names].sort());
    }
  }
  return {
    ...facts,
    unsigned: shown(unsigned),
    unproven: shown(unproven),
    invalid: shown(invalid),
    publishers: [...publishers.values()],
  };
}

function npmPackages(bytes: Buffer): { packages: Package[]; urls: string[] } {
  const locked = parsePackageLock(bytes);
  return {
    urls: locked.flatMap(({ resolved }) => resolved ?? []),
    packages: locked.map(({ name, version, integrity }) => ({
      id: `${name}@${version}`,
      hashed: integrity !== undefined,
      signed: integrity === undefined ? undefined : { name, version, integrity },
      archives:
        integrity === undefined
          ? []
          : [
              {
                digest: `sha512:${Buffer.from(integrity.slice('sha512-'.length), 'base64').toString('hex')}`,
                subject: npmSubject(name, version),
                predicateTypes: NPM_PREDICATES,
              },
            ],
    })),
  };
}

function pythonPackages(bytes: Buffer): { packages: Package[]; urls: string[] } {
  const { packages, indexes } = parseRequirements(bytes);
  return {
    urls: [...indexes],
    packages: packages.map(({ name, version, hashes }) => ({
      id: `${name}@${version}`,
      hashed: hashes.length > 0,
      signed: undefined,
      archives: hashes.map((hex) => ({ digest: `sha256:${hex}`, predicateTypes: PYPI_PREDICATES })),
    })),
  };
}

/** A Python package has attestations of many archives: each is looked at with its own. */
function relevant({ digest }: Archive, attestations: readonly unknown[]): readonly unknown[] {
  if (!digest.startsWith('sha256:')) return attestations;
  const hex = digest.slice('sha256:'.length);
  return attestations.filter((attestation) => statementText(attestation).includes(hex));
}

function statementText(attestation: unknown): string {
  const envelope = (attestation as { envelope?: { statement?: unknown } } | null)?.envelope;
  const dsse = (attestation as { dsseEnvelope?: { payload?: unknown } } | null)?.dsseEnvelope;
  const encoded = envelope?.statement ?? dsse?.payload;
  return typeof encoded === 'string' ? Buffer.from(encoded, 'base64').toString('latin1') : '';
}

/** What is no URL with a host is an origin by itself, which no registry has. */
function originsOf(urls: readonly string[]): string[] {
  const origins = new Set(
    urls.map((url) => {
      const parsed = URL.parse(url);
      return parsed && parsed.protocol === 'https:' ? parsed.origin : url.slice(0, 80);
    }),
  );
  if (origins.size > MAX_ORIGINS) throw new Error(`its packages come from more than ${MAX_ORIGINS} places`);
  return [...origins].sort();
}

function shown(packages: readonly Package[]): string[] {
  return [...new Set(packages.map(({ id }) => id))].slice(0, MAX_SHOWN);
}
