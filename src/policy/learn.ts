/** The smallest `network:` that runs needed, from the decisions about them. Pure. */
import type { EgressDecision } from './decision.ts';
import type { Destination } from './destination.ts';
import type { EgressInput } from './input.ts';

/** One decision of a run, and how often it was given. */
export interface Observation {
  readonly input: EgressInput;
  readonly decision: EgressDecision;
  readonly count: number;
}

/** What is to be written into an `allow` list. */
export interface LearnedEntry {
  readonly entry: string;
  /** Connections, over all runs. */
  readonly count: number;
  /** Names of the steps that needed it, sorted. */
  readonly steps: readonly string[];
  /** What makes it more than an observation. */
  readonly note?: string;
}

export interface Learned {
  readonly allow: readonly LearnedEntry[];
  /** Addresses that are not public, per host: for `egress: private` of policy data. */
  readonly private: ReadonlyMap<string, readonly string[]>;
  /** What was tried and no `allow` entry gives, with the reason: one sentence each. */
  readonly left: readonly string[];
}

const USUAL_PORTS: Readonly<Record<number, string>> = { 443: 'https', 80: 'http', 22: 'ssh' };
const SCHEMES = { tls: 'https', http: 'http', ssh: 'ssh', unknown: 'tcp' } as const;
const PORTS = { https: 443, http: 80, ssh: 22, tcp: 0 } as const;
/** Denied whatever the job asks for. */
const FORBIDDEN = ['ct.egress.banned', 'ct.egress.blocked', 'ct.egress.step_without_network'];
/** What the client has to do otherwise: asking for more does not help, or would allow too much. */
const CLIENT_AT_FAULT = [
  'ct.egress.sni_mismatch',
  'ct.egress.host_mismatch',
  'ct.egress.host_missing',
  'ct.egress.no_address',
  'ct.egress.no_way_out',
];
/** Only `tcp://`, which looks at nothing, would let it pass. */
const UNREADABLE = ['ct.egress.ech', 'ct.egress.sni_missing', 'ct.egress.protocol'];

/** What is known of one host and port. */
interface Place {
  readonly host: string;
  readonly port: number;
  readonly literal: boolean;
  count: number;
  readonly steps: Set<string>;
  readonly protocols: Set<keyof typeof SCHEMES>;
  /** What allowed it, as written. */
  readonly allowedBy: Set<string>;
  isForbidden: boolean;
  note?: string;
}

interface AskedName {
  count: number;
  readonly steps: Set<string>;
  isDenied: boolean;
  isForbidden: boolean;
}

/**
 * `presets`: what those of this host stand for, so that what a preset gives is asked for by its name. Names are not joined
 * to patterns: who wants `*.example.com` writes it.
 */
export function learnNetwork(
  observations: Iterable<Observation>,
  presets: ReadonlyMap<string, readonly Destination[]> = new Map(),
): Learned {
  const places = new Map<string, Place>();
  const names = new Map<string, AskedName>();
  const addresses = new Map<string, Set<string>>();
  const left = new Set<string>();

  for (const { input, decision, count } of observations) {
    const { request } = input;
    const step = input.step?.name;
    const rule = decision.denial?.rule ?? '';
    const isForbidden = isBinding(rule);
    if (request.kind === 'other') {
      if (decision.denial) left.add(decision.denial.message);
      continue;
    }
    if (request.kind === 'dns') {
      const asked = names.get(request.name) ?? {
        count: 0,
        steps: new Set<string>(),
        isDenied: false,
        isForbidden: false,
      };
      names.set(request.name, asked);
      asked.count += count;
      if (step !== undefined) asked.steps.add(step);
      asked.isDenied ||= decision.action !== 'allow';
      if (isForbidden && decision.denial) {
        asked.isForbidden = true;
        left.add(decision.denial.message);
      }
      continue;
    }
    const key = JSON.stringify([request.host, request.port]);
    const place = places.get(key) ?? {
      host: request.host,
      port: request.port,
      literal: request.literal,
      count: 0,
      steps: new Set<string>(),
      protocols: new Set<keyof typeof SCHEMES>(),
      allowedBy: new Set<string>(),
      isForbidden: false,
    };
    places.set(key, place);
    if (step !== undefined) place.steps.add(step);
    if (decision.allowed_by !== undefined) place.allowedBy.add(decision.allowed_by);
    if (request.kind === 'connect') place.count += count;
    if (request.kind === 'stream') {
      if (CLIENT_AT_FAULT.includes(rule) && decision.denial) left.add(decision.denial.message);
      else if (UNREADABLE.includes(rule)) {
        place.protocols.add('unknown');
        place.note = 'anything may be spoken there: what the job said could not be checked';
      } else place.protocols.add(request.protocol);
    }
    if (rule === 'ct.egress.address' && request.kind === 'address') {
      const known = addresses.get(request.host) ?? new Set<string>();
      addresses.set(request.host, known);
      for (const { address, classes } of request.addresses) if (classes.length > 0) known.add(address);
    } else if (isForbidden && decision.denial) {
      place.isForbidden = true;
      left.add(decision.denial.message);
    }
  }

  const entries = new Map<string, { count: number; steps: Set<string>; note?: string }>();
  const add = (entry: string, count: number, steps: Iterable<string>, note?: string): void => {
    const known = entries.get(entry) ?? { count: 0, steps: new Set<string>() };
    entries.set(entry, known);
    known.count += count;
    for (const step of steps) known.steps.add(step);
    if (note !== undefined) known.note = note;
  };
  for (const place of places.values()) {
    if (place.isForbidden) continue;
    for (const { entry, note } of entriesOf(place, presets)) add(entry, place.count, place.steps, note);
  }
  const connected = new Set([...places.values()].map(({ host }) => host));
  for (const [name, { count, steps, isDenied, isForbidden }] of names) {
    if (connected.has(name) || isForbidden || !name.includes('.')) continue;
    if (!isDenied) {
      left.add(`\`${name}\` was looked up, and not connected to`);
      continue;
    }
    const preset = presetWith(presets, (destination) => destination.host === name);
    if (preset !== undefined) add(preset, count, steps);
    else add(`https://${name}`, 0, steps, 'only its name was asked for: protocol and port are a guess');
  }
  return {
    allow: [...entries]
      .map(([entry, { steps, ...rest }]) => ({ entry, steps: [...steps].sort(), ...rest }))
      .sort((a, b) => compare(rank(a.entry), rank(b.entry)) || compare(a.entry, b.entry)),
    private: new Map(
      [...addresses].map(([host, known]): [string, string[]] => [host, [...known].sort()]).sort(byFirst),
    ),
    left: [...left].sort(),
  };
}

/** No entry of an `allow` list changes it; rules of the operator's own are such. */
function isBinding(rule: string): boolean {
  return (
    FORBIDDEN.includes(rule) ||
    rule === 'ct.egress.metadata' ||
    rule === 'ct.egress.deny' ||
    (rule !== '' && !rule.startsWith('ct.egress.'))
  );
}

function entriesOf(
  place: Place,
  presets: ReadonlyMap<string, readonly Destination[]>,
): { readonly entry: string; readonly note?: string }[] {
  const { host, port, literal, protocols, note } = place;
  // What allowed it may have been a preset: its own word for it.
  for (const name of place.allowedBy) if (/^[a-z][a-z0-9-]*$/.test(name)) return [{ entry: name }];
  const fits = (destination: Destination): boolean =>
    destination.port === port &&
    (destination.host === host ||
      (destination.host.startsWith('*.') && !literal && host.endsWith(destination.host.slice(1)))) &&
    [...protocols].every((protocol) => destination.protocol === 'tcp' || destination.protocol === protocol);
  const preset = presetWith(presets, fits);
  if (preset !== undefined) return [{ entry: preset }];
  const shown = host.includes(':') ? `[${host}]` : host;
  const guess = (): 'https' | 'http' | 'ssh' | 'tcp' =>
    literal ? 'tcp' : ((USUAL_PORTS[port] ?? 'tcp') as 'https' | 'http' | 'ssh' | 'tcp');
  const schemes = protocols.size === 0 ? [guess()] : [...protocols].map((protocol) => SCHEMES[protocol]);
  // `tcp://` lets everything pass; others beside it would add nothing.
  const needed = schemes.includes('tcp') ? (['tcp'] as const) : schemes;
  return needed.map((scheme) => ({
    entry: PORTS[scheme] === port ? `${scheme}://${shown}` : `${scheme}://${shown}:${port}`,
    ...(note === undefined ? {} : { note }),
  }));
}

function presetWith(
  presets: ReadonlyMap<string, readonly Destination[]>,
  fits: (destination: Destination) => boolean,
): string | undefined {
  for (const [name, destinations] of presets) if (destinations.some(fits)) return name;
  return undefined;
}

/** Presets first. */
function rank(entry: string): number {
  return entry.includes('://') ? 1 : 0;
}

function compare<T extends string | number>(a: T, b: T): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function byFirst(a: readonly [string, unknown], b: readonly [string, unknown]): number {
  return compare(a[0], b[0]);
}
