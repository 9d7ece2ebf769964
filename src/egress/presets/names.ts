/** The presets, without what resolves them: for help, completion and whoever checks a job file. */

/** Name of each preset and what it stands for, one line each. */
export const PRESETS = {
  npm: 'the registries of npm, also for yarn and pnpm',
  pypi: 'the package indexes of pip, also for uv',
  debian: 'the Debian mirrors of apt',
  github: 'github.com: git over HTTPS and SSH, its API, and downloads',
  go: 'the module proxies and the checksum database of go',
  cargo: 'the registries of cargo',
} as const;

export type PresetName = keyof typeof PRESETS;

export const PRESET_NAMES = Object.keys(PRESETS) as readonly PresetName[];

export function isPresetName(name: string): name is PresetName {
  return Object.hasOwn(PRESETS, name);
}
