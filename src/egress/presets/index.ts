/**
 * Network presets: `npm` in a job file stands for what npm on this machine is configured to use. Resolved in the host daemon,
 * from the configuration of the operator and of the daemon's user alone (client.ts), and printed at admission.
 */
import type { GuestNetworkSettings } from '../../protocol/network.ts';
import { AUTHORITY_PLACES, type AuthorityPlaces, authorityBundle } from './authorities.ts';
import type { PresetName } from './names.ts';
import { type Environment, type PresetResolution, presetName } from './preset.ts';

export { isPresetName, PRESET_NAMES, PRESETS, type PresetName } from './names.ts';
export type { PresetResolution } from './preset.ts';

/** How long an answer holds: jobs come in bursts, and configuration changes by hand. */
const CACHE_MS = 60_000;

/** Loaded when asked for. */
const RESOLVERS: Readonly<Record<PresetName, (around: Environment) => Promise<PresetResolution>>> = {
  npm: async (around) => (await import('./npm.ts')).resolveNpm(around),
  pypi: async (around) => (await import('./pypi.ts')).resolvePypi(around),
  debian: async (around) => (await import('./debian.ts')).resolveDebian(around),
  github: async (around) => (await import('./github.ts')).resolveGithub(around),
  go: async (around) => (await import('./go.ts')).resolveGo(around),
  cargo: async (around) => (await import('./cargo.ts')).resolveCargo(around),
};

export interface GuestSettings {
  readonly settings: GuestNetworkSettings;
  /** For whoever starts the job. */
  readonly notices: readonly string[];
}

/** Resolves presets for one environment and remembers each for {@link CACHE_MS}. */
export class PresetResolver {
  readonly #around: Environment;
  readonly #places: AuthorityPlaces;
  readonly #now: () => number;
  readonly #known = new Map<
    PresetName,
    { readonly at: number; readonly resolution: Promise<PresetResolution> }
  >();

  /** `now` counts milliseconds and never goes back. */
  constructor(
    around: Environment = process.env,
    options: { readonly places?: AuthorityPlaces; readonly now?: () => number } = {},
  ) {
    this.#around = around;
    this.#places = options.places ?? AUTHORITY_PLACES;
    this.#now = options.now ?? (() => performance.now());
  }

  /**
   * Each preset once, in the order given, asked for side by side. Throws PRESET_UNCONFIGURED, which names the setting to
   * make; also for a name that is no preset. A failure is not remembered.
   */
  async resolve(names: readonly string[]): Promise<PresetResolution[]> {
    const distinct = [...new Set(names)].map(presetName);
    return await Promise.all(distinct.map((name) => this.#resolveOne(name)));
  }

  #resolveOne(name: PresetName): Promise<PresetResolution> {
    const known = this.#known.get(name);
    if (known && this.#now() - known.at < CACHE_MS) return known.resolution;
    const resolution = RESOLVERS[name](this.#around);
    const entry = { at: this.#now(), resolution };
    this.#known.set(name, entry);
    resolution.catch(() => {
      if (this.#known.get(name) === entry) this.#known.delete(name);
    });
    return resolution;
  }

  /**
   * What a job with a network is told of this machine: settings of its presets, and the authorities that are configured
   * here, which a job that names destinations only needs as well. At most MAX_SCRIPT_BYTES of certificates. Never rejects.
   */
  async guestSettings(presets: readonly PresetResolution[]): Promise<GuestSettings> {
    const { pem, notices } = await authorityBundle(
      presets.flatMap(({ authorities }) => authorities),
      this.#around,
      this.#places,
    );
    return {
      settings: {
        env: Object.assign({}, ...presets.map(({ env }) => env)),
        homeFiles: Object.assign({}, ...presets.map(({ homeFiles }) => homeFiles)),
        ...(pem === undefined ? {} : { authoritiesPem: pem }),
      },
      notices,
    };
  }
}

const ofThisProcess = new PresetResolver();

/** {@link PresetResolver.resolve} for the environment of this process. */
export function resolvePresets(names: readonly string[]): Promise<PresetResolution[]> {
  return ofThisProcess.resolve(names);
}
