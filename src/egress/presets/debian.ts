/** `debian`: the mirrors of Debian that this machine's apt knows. */
import { readFile } from 'node:fs/promises';
import { parseStanzas } from '../../image/sources.ts';
import { type Authorities, readAuthorities } from './authorities.ts';
import { ask } from './client.ts';
import { distinct, type Location, locationOf, plainHttpNotices, shownAs } from './locations.ts';
import { type Environment, type PresetResolution, unconfigured } from './preset.ts';

const HOW =
  'run `apt-get update` as root if this machine has Debian sources, or let CT_APT_SOURCES of the host daemon name a sources.list or .sources file that names one';

/** Throws PRESET_UNCONFIGURED. */
export async function resolveDebian(around: Environment): Promise<PresetResolution> {
  const file = around['CT_APT_SOURCES'];
  const [{ uris, problem }, settings] = await Promise.all([
    file ? sourcesFile(file) : indexTargets(around),
    ask({ file: 'apt-config', args: ['dump', 'Acquire'], env: {} }, around),
  ]);
  const locations = uris.map((uri) => locationOf(uri, 'debian')).filter((location) => location !== undefined);
  if (locations.length === 0) {
    throw unconfigured('debian', problem ?? 'apt has no Debian source that is fetched by https or http', HOW);
  }
  const unique: Location[] = [...new Map(locations.map((location) => [location.url, location])).values()];
  const destinations = distinct(unique.map(({ destination }) => destination));
  const acquire = parseAcquire(settings.output ?? '');
  const authorities = await configuredAuthorities(acquire);
  return {
    name: 'debian',
    destinations,
    env: {},
    homeFiles: {},
    authorities: authorities.certificates,
    notices: [...settingNotices(acquire), ...authorities.notices, ...plainHttpNotices('debian', unique)],
    shown: shownAs('debian', destinations, file ? `CT_APT_SOURCES ${file}` : 'apt-get indextargets'),
  };
}

interface Found {
  readonly uris: readonly string[];
  readonly problem?: string;
}

/** Those of every suite whose Release file says that it is Debian's. */
async function indexTargets(around: Environment): Promise<Found> {
  const answer = await ask({ file: 'apt-get', args: ['indextargets'], env: {} }, around);
  if (answer.output === undefined) return { uris: [], problem: `apt-get ${answer.problem}` };
  return {
    uris: parseStanzas(answer.output)
      .filter((stanza) => stanza.get('origin') === 'Debian')
      .map((stanza) => stanza.get('repo-uri') ?? ''),
  };
}

async function sourcesFile(path: string): Promise<Found> {
  try {
    const text = await readFile(path, 'utf8');
    const entries = text.split('\n').filter((line) => /^\s*(deb\s|URIs:|\s+https?:)/i.test(line));
    return { uris: entries.flatMap((line) => line.match(/\bhttps?:\/\/[^\s]+/g) ?? []) };
  } catch {
    return { uris: [], problem: `CT_APT_SOURCES names ${path}, which cannot be read` };
  }
}

/** `Acquire::https::CaInfo "/path";` */
function parseAcquire(dump: string): readonly (readonly [string, string])[] {
  return [...dump.matchAll(/^(Acquire::[^ ]+) "([^"]*)";$/gm)].map(([, name = '', value = '']) => [
    name.toLowerCase(),
    value,
  ]);
}

async function configuredAuthorities(acquire: ReturnType<typeof parseAcquire>): Promise<Authorities> {
  const files = acquire.filter(([name, value]) => name.endsWith('::cainfo') && value !== '');
  const read = await Promise.all(files.map(([, path]) => readAuthorities(path, 'apt CAInfo')));
  return {
    certificates: read.flatMap(({ certificates }) => certificates),
    notices: read.flatMap(({ notices }) => notices),
  };
}

function settingNotices(acquire: ReturnType<typeof parseAcquire>): string[] {
  const off = acquire.some(
    ([name, value]) =>
      /::verify-(peer|host)$/.test(name) && /^(false|no|0|off|without|disable)$/i.test(value),
  );
  const proxy = acquire.some(([name, value]) => /::proxy$/.test(name) && value !== '' && value !== 'DIRECT');
  return [
    ...(off
      ? [
          'debian: apt does not verify TLS on this host; that is not carried over. Name the authority in `CAInfo` instead',
        ]
      : []),
    ...(proxy ? ['debian: apt uses a proxy on this host; jobs connect to the mirrors without it'] : []),
  ];
}
