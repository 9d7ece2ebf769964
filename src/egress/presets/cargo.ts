/**
 * `cargo`: the registries of Cargo's own configuration file. Cargo has no command that prints what it would use without one,
 * so a machine without that file has nothing to follow.
 */
import { readFile, stat } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import { type Authorities, readAuthorities } from './authorities.ts';
import { homeOf } from './client.ts';
import { distinct, type Location, locationOf, plainHttpNotices, shownAs } from './locations.ts';
import { type Environment, type PresetResolution, unconfigured } from './preset.ts';
import { readTomlStrings, type TomlStrings, tomlPath } from './toml-strings.ts';

/** Operator-controlled; far more than anybody writes into it. */
const MAX_CONFIG_BYTES = 1024 * 1024;
/** `replace-with` may lead from source to source. */
const MAX_REPLACEMENTS = 10;
const DEFAULT_SOURCE = 'crates-io';
/** Cargo's own rule for names of registries; also what can be written into a file without quotes. */
const REGISTRY_NAME = /^[A-Za-z0-9_-]+$/;

/** Throws PRESET_UNCONFIGURED. */
export async function resolveCargo(around: Environment): Promise<PresetResolution> {
  const given = around['CARGO_HOME'];
  const home = given !== undefined && isAbsolute(given) ? given : join(homeOf(around), '.cargo');
  const config = await readConfig(home);
  const how = `write to ${home}/config.toml: [source.${DEFAULT_SOURCE}] with replace-with = "mirror", and [source.mirror] with registry = "sparse+URL/", or allow the hosts of the registry themselves: https://HOST`;
  if (config === undefined) throw unconfigured('cargo', `there is no ${home}/config.toml`, how);

  const replacement = replacementOf(config);
  const registries = new Map<string, CargoLocation>();
  for (const [path, value] of config) {
    const [table, name = '', key] = path.split('\0');
    if (table !== 'registries' || key !== 'index' || !REGISTRY_NAME.test(name)) continue;
    const location = typeof value === 'string' ? cargoLocation(value) : undefined;
    if (location !== undefined) registries.set(name, location);
  }
  const locations: Location[] = [...(replacement ? [replacement.location] : []), ...registries.values()];
  if (locations.length === 0) {
    throw unconfigured(
      'cargo',
      `${home}/config.toml names no registry that can be reached by https, http or ssh`,
      how,
    );
  }
  const destinations = distinct(locations.map(({ destination }) => destination));
  const authorities = await configuredAuthorities(config);
  return {
    name: 'cargo',
    destinations,
    env: Object.fromEntries(
      [...registries].map(([name, { index }]) => [
        `CARGO_REGISTRIES_${name.toUpperCase().replaceAll('-', '_')}_INDEX`,
        index,
      ]),
    ),
    // Sources cannot be replaced by variables (The Cargo Book, "Source Replacement").
    homeFiles: replacement === undefined ? {} : { '.cargo/config.toml': configFor(replacement) },
    authorities: authorities.certificates,
    notices: [
      ...plainHttpNotices('cargo', locations),
      ...settingNotices(config, replacement !== undefined),
      ...authorities.notices,
    ],
    shown: shownAs('cargo', destinations, `${home}/config.toml`),
  };
}

interface CargoLocation extends Location {
  /** As Cargo writes it: sparse registries have a prefix. */
  readonly index: string;
}

function cargoLocation(text: string): CargoLocation | undefined {
  const [, prefix = '', url = ''] = /^(sparse\+|registry\+|git\+)?(.*)$/s.exec(text.trim()) ?? [];
  const location = locationOf(url, 'cargo');
  return location === undefined ? undefined : { ...location, index: `${prefix}${location.url}` };
}

interface Replacement {
  readonly location: CargoLocation;
}

/** Follows `replace-with` from the default registry to a source that is a registry. */
function replacementOf(config: TomlStrings): Replacement | undefined {
  let name = DEFAULT_SOURCE;
  for (let hops = 0; hops < MAX_REPLACEMENTS; hops += 1) {
    const next = config.get(tomlPath('source', name, 'replace-with'));
    if (typeof next !== 'string') break;
    name = next;
  }
  // The default registry may also be given another place itself.
  const index =
    config.get(tomlPath('source', name, 'registry')) ?? config.get(tomlPath('registries', name, 'index'));
  const location = typeof index === 'string' ? cargoLocation(index) : undefined;
  return location === undefined ? undefined : { location };
}

function configFor({ location }: Replacement): string {
  return [
    '# Written by ct: the registry that this host is configured to use (docs/network.md).',
    `[source.${DEFAULT_SOURCE}]`,
    'replace-with = "ct-host"',
    '[source.ct-host]',
    `registry = ${JSON.stringify(location.index)}`,
    '',
  ].join('\n');
}

/** Cargo prefers the name without an extension if there are both. */
async function readConfig(home: string): Promise<TomlStrings | undefined> {
  for (const name of ['config', 'config.toml']) {
    const path = join(home, name);
    try {
      const stats = await stat(path);
      if (!stats.isFile() || stats.size > MAX_CONFIG_BYTES) continue;
      return readTomlStrings(await readFile(path, 'utf8'));
    } catch {
      // the next one
    }
  }
  return undefined;
}

async function configuredAuthorities(config: TomlStrings): Promise<Authorities> {
  const file = config.get(tomlPath('http', 'cainfo'));
  if (typeof file !== 'string' || file === '') return { certificates: [], notices: [] };
  return await readAuthorities(file, 'cargo http.cainfo');
}

function settingNotices(config: TomlStrings, isReplaced: boolean): string[] {
  const proxy = config.get(tomlPath('http', 'proxy'));
  return [
    ...(isReplaced
      ? []
      : [
          `cargo: only the named registries can be reached; nothing replaces \`${DEFAULT_SOURCE}\` on this host`,
        ]),
    ...(typeof proxy === 'string' && proxy !== ''
      ? ['cargo: a proxy is configured on this host; jobs connect to the registry without it']
      : []),
  ];
}
