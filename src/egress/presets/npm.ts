/** `npm`: the registries of npm's configuration. yarn and pnpm read the same settings. */

import { type Authorities, certificatesOf, readAuthorities } from './authorities.ts';
import { ask, variables } from './client.ts';
import { distinct, type Location, locationOf, plainHttpNotices, shownAs } from './locations.ts';
import { type Environment, type PresetResolution, unconfigured } from './preset.ts';

const HOW =
  'run `npm config set registry URL --location=user`, or set npm_config_registry for the host daemon, and try again';

/** Throws PRESET_UNCONFIGURED. */
export async function resolveNpm(around: Environment): Promise<PresetResolution> {
  const own = npmVariables(around);
  // `--global`: the settings of the user, the machine and the environment; a project's .npmrc is not read.
  const answer = await ask({ file: 'npm', args: ['config', 'list', '--json', '--global'], env: own }, around);
  const config = answer.output === undefined ? fromVariables(own) : parse(answer.output);
  const registry = locationOf(text(config['registry']), 'npm');
  if (registry === undefined) throw unconfigured('npm', `npm ${answer.problem ?? whyNone(config)}`, HOW);
  const scopes = new Map<string, Location>();
  for (const [key, value] of Object.entries(config)) {
    const location = /^@[\w.~-]+:registry$/.test(key) ? locationOf(text(value), 'npm') : undefined;
    if (location !== undefined) scopes.set(key, location);
  }
  const locations = [registry, ...scopes.values()];
  const destinations = distinct(locations.map(({ destination }) => destination));
  const authorities = await configuredAuthorities(config);
  return {
    name: 'npm',
    destinations,
    env: {
      npm_config_registry: registry.url,
      YARN_NPM_REGISTRY_SERVER: registry.url,
      ...Object.fromEntries([...scopes].map(([key, { url }]) => [`npm_config_${key}`, url])),
    },
    homeFiles: {},
    authorities: authorities.certificates,
    notices: [...plainHttpNotices('npm', locations), ...settingNotices(config), ...authorities.notices],
    shown: shownAs('npm', destinations, 'npm config registry'),
  };
}

/**
 * npm's variables, unless npm itself started this process: `npm run` puts all of its settings into the environment, those of
 * the project's .npmrc too.
 */
function npmVariables(around: Environment): Record<string, string> {
  if (around['npm_command'] !== undefined || around['npm_lifecycle_event'] !== undefined) return {};
  return variables(
    around,
    Object.keys(around).filter((name) => /^npm_config_/i.test(name)),
  );
}

/** As npm reads them: any case, `_` for `-` but at the beginning. */
function fromVariables(own: Readonly<Record<string, string>>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(own).map(([name, value]) => [
      name
        .slice('npm_config_'.length)
        .toLowerCase()
        .replaceAll(/(?!^)_/g, '-'),
      value,
    ]),
  );
}

function whyNone(config: Readonly<Record<string, unknown>>): string {
  // npm shows nothing of a URL with a password in it.
  return 'registry' in config
    ? 'names no registry that can be reached by https or http'
    : 'does not tell its registry; if the URL has a password, let `//HOST/:_authToken` or `:_auth` hold it instead';
}

function parse(output: string): Record<string, unknown> {
  try {
    const config: unknown = JSON.parse(output);
    return typeof config === 'object' && config !== null ? (config as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

async function configuredAuthorities(config: Record<string, unknown>): Promise<Authorities> {
  const inline = [config['ca']].flat().map(text).join('\n');
  const file = text(config['cafile']);
  const found = [
    ...(inline.trim() === '' ? [] : [certificatesOf(inline.replaceAll('\\n', '\n'), 'npm config ca')]),
    ...(file === '' ? [] : [await readAuthorities(file, 'npm config cafile')]),
  ];
  return {
    certificates: found.flatMap(({ certificates }) => certificates),
    notices: found.flatMap(({ notices }) => notices),
  };
}

function settingNotices(config: Record<string, unknown>): string[] {
  const notices: string[] = [];
  if (config['strict-ssl'] === false || config['strict-ssl'] === 'false') {
    notices.push(
      'npm: strict-ssl is off on this host; it stays on in the job. Name the authority in `cafile` instead',
    );
  }
  if (text(config['proxy']) !== '' || text(config['https-proxy']) !== '') {
    notices.push('npm: a proxy is configured on this host; jobs connect to the registry without it');
  }
  return notices;
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : '';
}
