/** `go`: the module proxies and the checksum database of `go env`. */
import { ask, variables } from './client.ts';
import { distinct, type Location, locationOf, plainHttpNotices, shownAs } from './locations.ts';
import { type Environment, type PresetResolution, unconfigured } from './preset.ts';

const HOW = 'run `go env -w GOPROXY=URL`, or set GOPROXY for the host daemon, and try again';

/** What is asked for. */
const SETTINGS = ['GOPROXY', 'GOSUMDB', 'GONOSUMDB', 'GONOPROXY', 'GOPRIVATE', 'GOINSECURE'] as const;
type Setting = (typeof SETTINGS)[number];
/** In the guest as here: they hold names and patterns of modules, no URLs. */
const CARRIED = ['GONOSUMDB', 'GONOPROXY', 'GOPRIVATE'] as const;

/** Throws PRESET_UNCONFIGURED. */
export async function resolveGo(around: Environment): Promise<PresetResolution> {
  const own = variables(around, [...SETTINGS, 'GOENV', 'XDG_CONFIG_HOME']);
  const fixed = { GOTOOLCHAIN: 'local', GOWORK: 'off' }; // nothing to download, no workspace
  const answer = await ask(
    { file: 'go', args: ['env', '-json', ...SETTINGS], env: { ...own, ...fixed } },
    around,
  );
  const config = answer.output === undefined ? own : parse(answer.output);
  // Entries are tried one after another: `,` goes on after "not found" only, `|` after every error.
  const entries = setting(config, 'GOPROXY').split(/([,|])/);
  const proxies: Location[] = [];
  let proxyList = '';
  let separator = '';
  for (const entry of entries) {
    if (entry === ',' || entry === '|') {
      separator = entry;
      continue;
    }
    const word = entry.trim();
    const location = locationOf(word, 'go');
    if (location !== undefined) proxies.push(location);
    const shown = location?.url ?? (word === 'direct' || word === 'off' ? word : undefined);
    if (shown !== undefined) proxyList += `${proxyList === '' ? '' : separator}${shown}`;
  }
  if (proxies.length === 0) {
    throw unconfigured(
      'go',
      `go ${answer.problem ?? 'has no GOPROXY that can be reached by https or http'}`,
      HOW,
    );
  }
  const sumdb = checksumDatabase(setting(config, 'GOSUMDB'));
  const destinations = distinct(
    [...proxies, ...(sumdb.location === undefined ? [] : [sumdb.location])].map(
      ({ destination }) => destination,
    ),
  );
  const notices = plainHttpNotices('go', proxies);
  if (setting(config, 'GOINSECURE') !== '') {
    notices.push('go: GOINSECURE is set on this host; it is not in the job, where TLS is always verified');
  }
  return {
    name: 'go',
    destinations,
    env: {
      GOPROXY: proxyList,
      ...(sumdb.value === '' ? {} : { GOSUMDB: sumdb.value }),
      ...Object.fromEntries(
        CARRIED.map((name) => [name, setting(config, name)] as const).filter(([, value]) => value !== ''),
      ),
    },
    homeFiles: {},
    authorities: [],
    notices,
    shown: shownAs('go', destinations, 'go env GOPROXY GOSUMDB'),
  };
}

/** `off`, `NAME`, `NAME+HASH+KEY`, or one of these and a URL (go help module-auth). */
function checksumDatabase(value: string): {
  readonly value: string;
  readonly location?: Location | undefined;
} {
  const [key = '', url] = value.split(/\s+/);
  if (key === '' || key === 'off') return { value: key };
  const location = locationOf(url ?? `https://${key.split('+', 1)[0]}`, 'go');
  if (location === undefined) return { value: '' };
  return { value: url === undefined ? key : `${key} ${location.url}`, location };
}

function setting(config: Readonly<Partial<Record<Setting, unknown>>>, name: Setting): string {
  const value = config[name];
  return typeof value === 'string' ? value.trim() : '';
}

function parse(output: string): Partial<Record<Setting, unknown>> {
  try {
    return { ...(JSON.parse(output) as object) };
  } catch {
    return {};
  }
}
