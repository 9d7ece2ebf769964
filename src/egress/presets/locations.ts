/** Addresses of registries and mirrors, as clients print them, turned into destinations and into what a guest may know. */
import { canonicalHost, type Destination, type DestinationProtocol } from '../../policy/destination.ts';
import type { ResolvedPreset } from '../../protocol/run.ts';
import type { PresetName } from './names.ts';

const SCHEMES: Readonly<Record<string, { readonly protocol: DestinationProtocol; readonly port: number }>> = {
  'https:': { protocol: 'tls', port: 443 },
  'http:': { protocol: 'http', port: 80 },
  'ssh:': { protocol: 'ssh', port: 22 },
};

/** One place of the operator's configuration that a client fetches from. */
export interface Location {
  /** Without user, password, query and fragment: those are where credentials stand. */
  readonly url: string;
  readonly destination: Destination;
}

/** Undefined if it is no https, http or ssh URL of a name or address: a directory, for one. */
export function locationOf(text: string, preset: PresetName): Location | undefined {
  const url = URL.parse(text.trim());
  const scheme = url === null ? undefined : SCHEMES[url.protocol];
  if (url === null || scheme === undefined) return undefined;
  const host = canonicalHost(url.hostname);
  // A pattern would allow more than the one host that a client is configured with.
  if ('wrong' in host || host.host.startsWith('*')) return undefined;
  url.username = '';
  url.password = '';
  url.search = '';
  url.hash = '';
  return {
    url: url.href,
    destination: {
      rule: preset,
      host: host.host,
      port: url.port === '' ? scheme.port : Number(url.port),
      protocol: scheme.protocol,
      addresses: 'any',
    },
  };
}

/** Each destination once, in the order given. */
export function distinct(destinations: readonly Destination[]): Destination[] {
  const seen = new Map<string, Destination>();
  for (const destination of destinations) {
    const key = `${destination.protocol} ${destination.host} ${destination.port}`;
    if (!seen.has(key)) seen.set(key, destination);
  }
  return [...seen.values()];
}

/** The form in which people are shown what a preset stands for; `source` says where that was read. */
export function shownAs(
  name: PresetName,
  destinations: readonly Destination[],
  source: string,
): ResolvedPreset {
  const places = destinations.map(({ host, port }) => `${host.includes(':') ? `[${host}]` : host}:${port}`);
  return { name, destinations: [...new Set(places)].sort(), source };
}

/** What is fetched without encryption: allowed, as the operator configured it, and said. */
export function plainHttpNotices(preset: PresetName, locations: readonly Location[]): string[] {
  const plain = distinct(locations.map(({ destination }) => destination)).filter(
    ({ protocol }) => protocol === 'http',
  );
  return plain.map(
    ({ host, port }) =>
      `${preset}: this host is configured to fetch from ${host}:${port} without TLS, so that others on the way can change what comes`,
  );
}
