/**
 * How an image was made, as SLSA provenance v1: written when it is built or imported, beside its signatures, and signed by
 * `ct image sign`. Not a part of the image: the same image may be built more than once.
 *
 *     images/sha256/<hex of the manifest>/provenance.json
 */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { writeAtomically } from '../core/atomic-file.ts';
import { toCtError } from '../core/errors.ts';
import { VERSION } from '../core/version.ts';
import { buildProvenance, type Provenance, type ResourceDescriptor } from '../verification/provenance.ts';
import type { ImageDefinition, NpmPackage } from './definition.ts';
import type { ImageManifest } from './manifest.ts';
import type { LockedPackage } from './packages.ts';
import { imageDirectory } from './signatures.ts';

/** How to read the parameters: docs/images.md#provenance. */
const BUILD_TYPE = 'urn:ct:image-build:v1';
const IMPORT_TYPE = 'urn:ct:image-import:v1';
/** A machine that nobody has named; `ct image sign --builder` names it. */
const UNNAMED_BUILDER = 'urn:ct:image-builder';
/** A package takes 200 bytes, and there may be some thousands. */
const MAX_PROVENANCE_BYTES = 8 * 1024 * 1024;

export interface BuildFacts {
  readonly definition: ImageDefinition;
  readonly packages: readonly LockedPackage[];
  readonly kernel: LockedPackage;
  /** `sha256:…` of the program. */
  readonly guestAgent: string;
  /** `sha256:…`; of the lock that was met. */
  readonly lock?: string | undefined;
  readonly startedAt: Date;
  readonly finishedAt: Date;
}

export function buildProvenanceOf(facts: BuildFacts): Provenance {
  const { definition, packages, kernel, guestAgent, lock, startedAt, finishedAt } = facts;
  return buildProvenance({
    buildType: BUILD_TYPE,
    externalParameters: {
      name: definition.name,
      base: definition.base,
      definition: { sha256: definition.digest },
      ...(lock === undefined ? {} : { lock: { sha256: withoutAlgorithm(lock) } }),
    },
    resolvedDependencies: [
      ...packages.map(debian),
      debian(kernel),
      ...definition.npm.map(npm),
      { name: 'ct-guest-agent', digest: { sha256: withoutAlgorithm(guestAgent) } },
    ],
    builderId: UNNAMED_BUILDER,
    builderVersion: { ct: VERSION },
    startedAt,
    finishedAt,
  });
}

export function importProvenanceOf(
  name: string,
  { from, digest }: NonNullable<ImageManifest['imported']>,
  { startedAt, finishedAt }: Pick<BuildFacts, 'startedAt' | 'finishedAt'>,
): Provenance {
  return buildProvenance({
    buildType: IMPORT_TYPE,
    externalParameters: { name, from },
    resolvedDependencies: [{ name: 'source', digest: { sha256: withoutAlgorithm(digest) } }],
    builderId: UNNAMED_BUILDER,
    builderVersion: { ct: VERSION },
    startedAt,
    finishedAt,
  });
}

/** The same build, by a builder with a name: whoever signs it vouches for that. */
export function builtBy(provenance: Provenance, builder: string): Provenance {
  const { runDetails } = provenance;
  return { ...provenance, runDetails: { ...runDetails, builder: { ...runDetails.builder, id: builder } } };
}

/** Takes the place of that of an earlier build of the same image. */
export async function writeProvenance(ctHome: string, digest: string, provenance: Provenance): Promise<void> {
  try {
    await writeAtomically(pathOf(ctHome, digest), `${JSON.stringify(provenance, undefined, 1)}\n`);
  } catch (error) {
    throw toCtError(error);
  }
}

/** Of an image that was made here; nobody vouches for it. Undefined if there is none that can be read. */
export async function readProvenance(ctHome: string, digest: string): Promise<Provenance | undefined> {
  const path = pathOf(ctHome, digest);
  try {
    if ((await stat(path)).size > MAX_PROVENANCE_BYTES) return undefined;
    const provenance = JSON.parse(await readFile(path, 'utf8')) as Partial<Provenance>;
    return provenance.buildDefinition && provenance.runDetails?.builder
      ? (provenance as Provenance)
      : undefined;
  } catch {
    return undefined;
  }
}

function pathOf(ctHome: string, digest: string): string {
  return join(imageDirectory(ctHome, digest), 'provenance.json');
}

function debian({ name, version, architecture, sha256 }: LockedPackage): ResourceDescriptor {
  const escaped = version.replaceAll('+', '%2B').replaceAll(':', '%3A');
  return { uri: `pkg:deb/debian/${name}@${escaped}?arch=${architecture}`, digest: { sha256 } };
}

function npm({ name, version, integrity }: NpmPackage): ResourceDescriptor {
  const sha512 = Buffer.from(integrity.replace(/^sha512-/, ''), 'base64').toString('hex');
  return { uri: `pkg:npm/${name.replace('@', '%40')}@${version}`, digest: { sha512 } };
}

function withoutAlgorithm(digest: string): string {
  return digest.replace(/^sha256:/, '');
}
