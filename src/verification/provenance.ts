/** SLSA provenance v1 ([specification](https://slsa.dev/spec/v1.0/provenance)): how an artifact was made. */

export const PROVENANCE_TYPE = 'https://slsa.dev/provenance/v1';

export interface ResourceDescriptor {
  readonly name?: string;
  readonly uri?: string;
  /** Lower-case hex per algorithm. */
  readonly digest?: Readonly<Record<string, string>>;
  readonly mediaType?: string;
  readonly annotations?: Readonly<Record<string, unknown>>;
}

export interface Provenance {
  readonly buildDefinition: {
    /** URI that says how to read the parameters. */
    readonly buildType: string;
    /** What somebody outside the builder chose; a verifier has to check all of it. */
    readonly externalParameters: Readonly<Record<string, unknown>>;
    readonly internalParameters?: Readonly<Record<string, unknown>>;
    readonly resolvedDependencies?: readonly ResourceDescriptor[];
  };
  readonly runDetails: {
    readonly builder: {
      /** URI that names what is trusted to have built as described. */
      readonly id: string;
      readonly version?: Readonly<Record<string, string>>;
      readonly builderDependencies?: readonly ResourceDescriptor[];
    };
    readonly metadata?: {
      readonly invocationId?: string;
      /** RFC 3339. */
      readonly startedOn?: string;
      readonly finishedOn?: string;
    };
    readonly byproducts?: readonly ResourceDescriptor[];
  };
}

export interface ProvenanceParts {
  readonly buildType: string;
  readonly externalParameters: Readonly<Record<string, unknown>>;
  readonly internalParameters?: Readonly<Record<string, unknown>>;
  readonly resolvedDependencies?: readonly ResourceDescriptor[];
  readonly builderId: string;
  readonly builderVersion?: Readonly<Record<string, string>>;
  readonly invocationId?: string;
  readonly startedAt?: Date;
  readonly finishedAt?: Date;
}

/** The predicate for a build; hand it to `buildStatement` with {@link PROVENANCE_TYPE}. */
export function buildProvenance(parts: ProvenanceParts): Provenance {
  const { buildType, externalParameters, internalParameters, resolvedDependencies } = parts;
  const { builderId, builderVersion, invocationId, startedAt, finishedAt } = parts;
  const metadata = {
    ...(invocationId === undefined ? {} : { invocationId }),
    ...(startedAt === undefined ? {} : { startedOn: startedAt.toISOString() }),
    ...(finishedAt === undefined ? {} : { finishedOn: finishedAt.toISOString() }),
  };
  return {
    buildDefinition: {
      buildType,
      externalParameters,
      ...(internalParameters === undefined ? {} : { internalParameters }),
      ...(resolvedDependencies === undefined ? {} : { resolvedDependencies }),
    },
    runDetails: {
      builder: { id: builderId, ...(builderVersion === undefined ? {} : { version: builderVersion }) },
      ...(Object.keys(metadata).length === 0 ? {} : { metadata }),
    },
  };
}
