/** `pypi`: the package indexes of pip's configuration. */
import { type Authorities, readAuthorities } from './authorities.ts';
import { ask, variables } from './client.ts';
import { distinct, type Location, locationOf, plainHttpNotices, shownAs } from './locations.ts';
import { type Environment, type PresetResolution, unconfigured } from './preset.ts';

const HOW =
  'run `pip config --user set global.index-url URL`, or set PIP_INDEX_URL for the host daemon, and try again';

/**
 * pip prints its configuration, but not what holds without one; its own module knows both. `files` is where the files of
 * pip's default index lie.
 */
const SCRIPT = `
import json
from pip._internal.configuration import Configuration
from pip._internal.models.index import PyPI
configuration = Configuration(isolated=False)
configuration.load()
settings = {}
for key, value in configuration.items():
    settings.update(value if isinstance(value, dict) else {key: value})
print(json.dumps({"settings": settings, "index": PyPI.simple_url, "files": PyPI.file_storage_domain}))
`;

const VARIABLES = [
  'PIP_CONFIG_FILE',
  'PIP_INDEX_URL',
  'PIP_EXTRA_INDEX_URL',
  'PIP_TRUSTED_HOST',
  'PIP_CERT',
  'PIP_PROXY',
  'XDG_CONFIG_HOME',
  'XDG_CONFIG_DIRS',
];

interface PipAnswer {
  readonly settings: Readonly<Record<string, unknown>>;
  readonly index: string;
  readonly files: string;
}

/** Throws PRESET_UNCONFIGURED. */
export async function resolvePypi(around: Environment): Promise<PresetResolution> {
  const own = variables(around, VARIABLES);
  const answer = await ask({ file: 'python3', args: ['-c', SCRIPT], env: own }, around);
  const pip = answer.output === undefined ? fromVariables(own) : parse(answer.output);
  const index = locationOf(setting(pip, 'index-url') || pip.index, 'pypi');
  if (index === undefined) {
    const why = answer.output === undefined ? 'pip is not installed for python3' : 'pip names no index';
    throw unconfigured('pypi', why, HOW);
  }
  const extra = setting(pip, 'extra-index-url')
    .split(/\s+/)
    .map((url) => locationOf(url, 'pypi'))
    .filter((location) => location !== undefined);
  const isDefault = index.url === locationOf(pip.index, 'pypi')?.url;
  const files = isDefault && pip.files !== '' ? locationOf(`https://${pip.files}/`, 'pypi') : undefined;
  const locations: Location[] = [index, ...extra];
  const destinations = distinct(
    [...locations, ...(files === undefined ? [] : [files])].map(({ destination }) => destination),
  );
  const extraUrls = extra.map(({ url }) => url).join(' ');
  const authorities = await configuredAuthorities(pip);
  return {
    name: 'pypi',
    destinations,
    env: {
      PIP_INDEX_URL: index.url,
      UV_DEFAULT_INDEX: index.url,
      ...(extraUrls === '' ? {} : { PIP_EXTRA_INDEX_URL: extraUrls, UV_INDEX: extraUrls }),
    },
    homeFiles: {},
    authorities: authorities.certificates,
    notices: [...plainHttpNotices('pypi', locations), ...settingNotices(pip), ...authorities.notices],
    shown: shownAs('pypi', destinations, 'pip config index-url'),
  };
}

/** The environment wins over `[install]`, and that over `[global]`. */
function setting({ settings }: PipAnswer, key: string): string {
  for (const section of [':env:', 'install', 'global']) {
    const value = settings[`${section}.${key}`];
    if (typeof value === 'string' && value.trim() !== '') return value.trim();
  }
  return '';
}

function fromVariables(own: Readonly<Record<string, string>>): PipAnswer {
  const settings = Object.fromEntries(
    Object.entries(own).map(([name, value]) => [
      `:env:.${name.replace(/^PIP_/, '').toLowerCase().replaceAll('_', '-')}`,
      value,
    ]),
  );
  return { settings, index: '', files: '' };
}

function parse(output: string): PipAnswer {
  try {
    const { settings, index, files } = JSON.parse(output) as Partial<PipAnswer>;
    return { settings: { ...settings }, index: String(index ?? ''), files: String(files ?? '') };
  } catch {
    return { settings: {}, index: '', files: '' };
  }
}

async function configuredAuthorities(pip: PipAnswer): Promise<Authorities> {
  const file = setting(pip, 'cert');
  return file === '' ? { certificates: [], notices: [] } : await readAuthorities(file, 'pip config cert');
}

function settingNotices(pip: PipAnswer): string[] {
  const notices: string[] = [];
  if (setting(pip, 'trusted-host') !== '') {
    notices.push(
      'pypi: pip’s trusted-host switches verification off on this host; it stays on in the job. Name the authority in `cert` instead',
    );
  }
  if (setting(pip, 'proxy') !== '') {
    notices.push('pypi: a proxy is configured for pip on this host; jobs connect to the index without it');
  }
  return notices;
}
