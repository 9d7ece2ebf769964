/** What a preset is: names of hosts and settings, taken from the configuration of one client of this machine. */
import { CtError } from '../../core/errors.ts';
import type { Destination } from '../../policy/destination.ts';
import type { ResolvedPreset } from '../../protocol/run.ts';
import { isPresetName, PRESET_NAMES, type PresetName } from './names.ts';

export type Environment = Readonly<Record<string, string | undefined>>;

/** What a preset stands for on this machine. Holds no credential. */
export interface PresetResolution {
  readonly name: PresetName;
  /** Each with the preset's name as its rule; addresses `any`, because they are the operator's own choice. */
  readonly destinations: readonly Destination[];
  /** For the same client in the guest. */
  readonly env: Readonly<Record<string, string>>;
  /** The same, of clients that take it from a file only: content per path relative to the home directory. */
  readonly homeFiles: Readonly<Record<string, string>>;
  /** Authorities that this client is configured with: one certificate each, in PEM. */
  readonly authorities: readonly string[];
  /** Sentences for whoever starts the job: what is configured here and not carried over, or deserves a look. */
  readonly notices: readonly string[];
  /** For printing at admission. */
  readonly shown: ResolvedPreset;
}

/** The error PRESET_UNCONFIGURED, saying what this preset follows and how to configure that. */
export function unconfigured(name: PresetName, why: string, how: string): CtError {
  return new CtError(
    'PRESET_UNCONFIGURED',
    `the network preset \`${name}\` has nothing to follow on this host: ${why}`,
    { hint: how },
  );
}

/** Throws PRESET_UNCONFIGURED for a name that is none. */
export function presetName(name: string): PresetName {
  if (isPresetName(name)) return name;
  throw new CtError('PRESET_UNCONFIGURED', `there is no network preset \`${name}\``, {
    hint: `the presets are ${PRESET_NAMES.map((known) => `\`${known}\``).join(', ')}`,
  });
}
