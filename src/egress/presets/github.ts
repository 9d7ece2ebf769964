/** `github`: github.com as GitHub documents it, or what git on this machine is configured to use in its place. */
import { readAuthorities } from './authorities.ts';
import { ask, variables } from './client.ts';
import { distinct, type Location, locationOf, plainHttpNotices, shownAs } from './locations.ts';
import type { Environment, PresetResolution } from './preset.ts';

/** Of GitHub's documentation: the site and git, the API, and where it redirects downloads to. */
const PLACES = [
  'https://github.com',
  'ssh://github.com',
  'https://ssh.github.com',
  'https://api.github.com',
  'https://uploads.github.com',
  'https://codeload.github.com',
  'https://raw.githubusercontent.com',
  'https://objects.githubusercontent.com',
  'https://release-assets.githubusercontent.com',
  'https://media.githubusercontent.com',
  'https://gist.github.com',
] as const;

/** `ssh.github.com` speaks SSH on the port of HTTPS, for networks that let nothing else out. */
const SSH_OVER_443 = 'ssh.github.com';

/** What `url.<base>.insteadOf` may stand for to concern github.com. */
const GITHUB_URL = /^(?:https?:\/\/|git:\/\/|ssh:\/\/(?:git@)?|git@)github\.com(?:[/:]|$)/i;

interface Setting {
  readonly key: string;
  readonly value: string;
}

export async function resolveGithub(around: Environment): Promise<PresetResolution> {
  const settings = await gitSettings(around);
  const replaced = settings.flatMap(({ key, value }) => {
    const base = /^url\.(.+)\.insteadof$/is.exec(key)?.[1];
    if (base === undefined || !GITHUB_URL.test(value)) return [];
    const location = locationOf(withScheme(base), 'github');
    return location === undefined ? [] : [{ location, insteadOf: value }];
  });
  const own = PLACES.map((url) => locationOf(url, 'github'))
    .filter((location) => location !== undefined)
    .map(({ destination }) =>
      destination.host === SSH_OVER_443 ? { ...destination, protocol: 'ssh' as const } : destination,
    );
  const locations: Location[] = replaced.map(({ location }) => location);
  const destinations = distinct([...locations.map(({ destination }) => destination), ...own]);
  const files = settings.filter(({ key }) => /^http\.(.*\.)?sslcainfo$/is.test(key));
  const read = await Promise.all(files.map(({ value }) => readAuthorities(value, 'git http.sslCAInfo')));
  return {
    name: 'github',
    destinations,
    env: replacements(replaced),
    homeFiles: {},
    authorities: read.flatMap(({ certificates }) => certificates),
    notices: [
      ...plainHttpNotices('github', locations),
      ...settingNotices(settings),
      ...read.flatMap(({ notices }) => notices),
    ],
    shown: shownAs(
      'github',
      destinations,
      replaced.length === 0
        ? 'as GitHub documents'
        : 'git config url.<base>.insteadOf, and as GitHub documents',
    ),
  };
}

/** Of the machine and the user; no settings if there is no git. */
async function gitSettings(around: Environment): Promise<Setting[]> {
  const env = variables(around, [
    'GIT_CONFIG_GLOBAL',
    'GIT_CONFIG_SYSTEM',
    'GIT_CONFIG_NOSYSTEM',
    'XDG_CONFIG_HOME',
  ]);
  const scopes = ['--system', '--global'];
  const answers = await Promise.all(
    scopes.map((scope) =>
      ask({ file: 'git', args: ['config', scope, '--includes', '--null', '--list'], env }, around),
    ),
  );
  return answers.flatMap(({ output = '' }) =>
    output
      .split('\0')
      .filter((entry) => entry !== '')
      .map((entry) => {
        const at = entry.indexOf('\n');
        return at === -1
          ? { key: entry, value: 'true' }
          : { key: entry.slice(0, at), value: entry.slice(at + 1) };
      }),
  );
}

/** `git@host:path` is short for ssh://git@host/path. */
function withScheme(base: string): string {
  const short = /^(?:[^@/:]+@)?([^/:]+):(?!\/\/)(.*)$/.exec(base);
  return short === null ? base : `ssh://${short[1]}/${short[2]}`;
}

/** As git-config(1) takes settings from the environment. SSH has no passwords in URLs, but a user, which it needs. */
function replacements(
  replaced: readonly { readonly location: Location; readonly insteadOf: string }[],
): Record<string, string> {
  if (replaced.length === 0) return {};
  const env: Record<string, string> = { GIT_CONFIG_COUNT: `${replaced.length}` };
  for (const [index, { location, insteadOf }] of replaced.entries()) {
    const url =
      location.destination.protocol === 'ssh' ? location.url.replace('ssh://', 'ssh://git@') : location.url;
    env[`GIT_CONFIG_KEY_${index}`] = `url.${url}.insteadOf`;
    env[`GIT_CONFIG_VALUE_${index}`] = insteadOf;
  }
  return env;
}

function settingNotices(settings: readonly Setting[]): string[] {
  const off = settings.some(
    ({ key, value }) => /^http\.(.*\.)?sslverify$/is.test(key) && /^(false|no|off|0|)$/i.test(value),
  );
  const proxy = settings.some(({ key, value }) => /^http\.(.*\.)?proxy$/is.test(key) && value !== '');
  return [
    ...(off
      ? [
          'github: git’s http.sslVerify is off on this host; it stays on in the job. Name the authority in http.sslCAInfo instead',
        ]
      : []),
    ...(proxy ? ['github: git uses a proxy on this host; jobs connect without it'] : []),
  ];
}
