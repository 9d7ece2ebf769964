/**
 * Destinations: what rules name. One grammar for job files and policy data:
 *
 *     npm                        a preset: resolved from the configuration of the machine's own clients
 *     example.com                TLS on 443, HTTP on 80
 *     *.example.com              any name below example.com, not itself
 *     https://example.com:8443   TLS (also tls://)
 *     http://example.com         plain HTTP, every request for that host
 *     ssh://git.example.com      SSH
 *     tcp://db.example.com:5432  anything: what is said is not looked at
 *     tcp://192.0.2.7:5432       a literal address; [2001:db8::7] for IPv6
 *     *                          every name (policy data only)
 *
 * Only `tcp://` needs a port. What a destination stands for in rules is a list of {@link Destination}.
 */
import { domainToASCII } from 'node:url';
import { canonicalAddress } from './address.ts';
import type { DestinationIndex } from './input.ts';

export const DESTINATION_PROTOCOLS = ['tls', 'http', 'ssh', 'tcp'] as const;
/** What has to be spoken; `tcp`: anything. */
export type DestinationProtocol = (typeof DESTINATION_PROTOCOLS)[number];

/** One rule, lowered: a name (or pattern, or address), one port, one protocol. */
export interface Destination {
  /** What people wrote: shown when it decides. For a preset, its name. */
  readonly rule: string;
  /** Lower-case A-labels without a final dot; `*.` + name; `*`; or an address as RFC 5952 writes it, without brackets. */
  readonly host: string;
  /** 1 to 65535; 0: every port (only with host `*`). */
  readonly port: number;
  readonly protocol: DestinationProtocol;
  /** `any`: addresses that are not public will do, too: those of the operator's own mirrors. */
  readonly addresses: 'public' | 'any';
}

/** RFC 1035 §2.3.4, without the final dot. */
const MAX_NAME_LENGTH = 253;
/** Letters, digits, hyphens, and the underscores that people's names of services have. */
const LABEL = /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/;
const PRESET = /^[a-z][a-z0-9-]{0,31}$/;

/** What a scheme lowers to. */
const SCHEMES: Readonly<Record<string, { readonly protocol: DestinationProtocol; readonly port?: number }>> =
  {
    https: { protocol: 'tls', port: 443 },
    tls: { protocol: 'tls', port: 443 },
    http: { protocol: 'http', port: 80 },
    ssh: { protocol: 'ssh', port: 22 },
    tcp: { protocol: 'tcp' },
  };

/** `http:/host`, `https:host`, `http//host`: meant as a scheme. */
const SCHEME_SLIP = /^(https?|tls|ssh|tcp)(?::\/?(?!\/)(?=.*[^0-9])|\/\/|:$)(.*)$/i;

export type ParsedDestination =
  | { readonly kind: 'preset'; readonly name: string }
  | { readonly kind: 'destinations'; readonly destinations: readonly Destination[] };

/** What is wrong with an entry, and what to write instead. */
export interface DestinationProblem {
  readonly wrong: string;
  readonly hint: string;
}

/**
 * Reads one entry of an `allow` list. `everything`: whether `*` may be written, as policy data may. A preset stays a name:
 * who knows the clients of the machine resolves it.
 */
export function parseDestination(
  text: string,
  options: { readonly everything: boolean } = { everything: false },
): ParsedDestination | DestinationProblem {
  if (text === '*') {
    if (options.everything) return lowered([{ host: '*', port: 0, protocol: 'tcp' }], text);
    return problem(
      '`*` is not for jobs: they name what they need',
      'write names such as `example.com` or `*.example.com`',
    );
  }
  if (text === '') return problem('an entry is empty', 'write a preset or a host, such as `example.com`');
  if (PRESET.test(text)) return { kind: 'preset', name: text };
  const slip = SCHEME_SLIP.exec(text);
  if (slip !== null) {
    const [, name, host] = slip as unknown as [string, string, string];
    return problem(
      `\`${text}\` lacks \`://\` behind \`${name}\``,
      `write \`${name}://${host || 'example.com'}\``,
    );
  }
  const scheme = /^([a-zA-Z][a-zA-Z0-9+.-]*):\/\//.exec(text);
  const known = scheme === null ? undefined : SCHEMES[(scheme[1] as string).toLowerCase()];
  if (scheme !== null && known === undefined) {
    return problem(
      `\`${scheme[1]}://\` is not known here`,
      'write `https://`, `http://`, `ssh://` or `tcp://HOST:PORT`',
    );
  }
  const rest = scheme === null ? text : text.slice(scheme[0].length);
  if (/[/?#]/.test(rest)) {
    return problem(
      `\`${text}\` has a path; rules are about hosts and ports`,
      `write \`${text.slice(0, text.length - rest.length)}${rest.split(/[/?#]/)[0]}\``,
    );
  }
  if (rest.includes('@')) return problem(`\`${text}\` has a user name`, 'leave out everything up to the `@`');
  const split = splitPort(rest);
  if (split === undefined) {
    return problem(
      `\`${text}\` is not \`HOST\` or \`HOST:PORT\``,
      'write an IPv6 address in brackets: `tcp://[2001:db8::7]:5432`',
    );
  }
  const port = split.port === undefined ? known?.port : parsePort(split.port);
  if (split.port !== undefined && port === undefined) {
    return problem(`\`${split.port}\` is not a port`, 'ports are whole numbers from 1 to 65535');
  }
  if (split.host === '') {
    return problem(
      `\`${text}\` names no host`,
      `write it, as in \`${scheme === null ? '' : scheme[0]}example.com${split.port === undefined ? '' : `:${split.port}`}\``,
    );
  }
  const host = canonicalHost(split.host);
  if ('wrong' in host) return host;
  if (known === undefined) {
    if (host.literal || split.port !== undefined) {
      const shown = host.host.includes(':') ? `[${host.host}]` : host.host;
      return problem(
        `\`${text}\` does not say which protocol is spoken${split.port === undefined ? ', and on which port' : ''}`,
        `write \`tcp://${shown}:${split.port ?? 'PORT'}\`, or \`https://\`, \`http://\` or \`ssh://\` in place of \`tcp://\``,
      );
    }
    const web = [
      { host: host.host, port: 443, protocol: 'tls' },
      { host: host.host, port: 80, protocol: 'http' },
    ] as const;
    return lowered(web, text);
  }
  if (port === undefined)
    return problem(`\`${text}\` names no port`, `write \`${text}:PORT\`, with the number of the port`);
  return lowered([{ host: host.host, port, protocol: known.protocol }], text);
}

function lowered(
  rules: readonly Pick<Destination, 'host' | 'port' | 'protocol'>[],
  rule: string,
): ParsedDestination {
  return { kind: 'destinations', destinations: rules.map((one) => ({ rule, ...one, addresses: 'public' })) };
}

function problem(wrong: string, hint: string): DestinationProblem {
  return { wrong, hint };
}

/** `host`, `host:port`, `[v6]`, `[v6]:port`. */
function splitPort(text: string): { readonly host: string; readonly port?: string } | undefined {
  const match = /^(\[[^\]]*\]|[^:]*)(?::([^:]*))?$/.exec(text);
  if (match === null) return undefined;
  const [, host, port] = match as unknown as [string, string, string | undefined];
  return port === undefined ? { host } : { host, port };
}

function parsePort(text: string): number | undefined {
  const port = /^[1-9][0-9]{0,4}$/.test(text) ? Number(text) : 0;
  return port >= 1 && port <= 65_535 ? port : undefined;
}

/** A host as rules and requests name it: compare it as a string. */
export interface CanonicalHost {
  /** As in {@link Destination.host}. */
  readonly host: string;
  readonly literal: boolean;
}

/**
 * The one form of a name (lower-case A-labels, no final dot), of a `*.` pattern, or of an address, with or without brackets.
 * Spellings that some resolvers take for addresses (`127.1`, `0x7f.0.0.1`, `2130706433`) are neither.
 */
export function canonicalHost(text: string): CanonicalHost | DestinationProblem {
  const bracketed = text.startsWith('[') && text.endsWith(']');
  const address = canonicalAddress(bracketed ? text.slice(1, -1) : text);
  // Brackets are for IPv6, also where it stands for an IPv4 address.
  if (address !== undefined && (!bracketed || text.includes(':'))) return { host: address, literal: true };
  const wildcard = text.startsWith('*.');
  const written = wildcard ? text.slice(2) : text;
  if (written.includes('*')) {
    return problem(
      `\`${text}\` has a \`*\` where none can be`,
      'write `*.example.com` for all names below `example.com`',
    );
  }
  const name = (/^[ -~]*$/.test(written) ? written : domainToASCII(written)).toLowerCase().replace(/\.$/, '');
  const labels = name.split('.');
  if (name.length > MAX_NAME_LENGTH || !labels.every((label) => LABEL.test(label))) {
    return problem(
      `\`${text}\` is not the name of a host`,
      'write a name such as `example.com`, or an address such as `192.0.2.7`',
    );
  }
  // WHATWG URL §3.5 "ends in a number": such a name is an address to some and a name to others.
  if (/^([0-9]+|0x[0-9a-f]*)$/.test(labels.at(-1) as string)) {
    return problem(
      `\`${text}\` is neither a name nor a plain address`,
      'write all four numbers of the address, in decimal: `192.0.2.7`',
    );
  }
  return { host: wildcard ? `*.${name}` : name, literal: false };
}

/** Rules by what they are looked up by; order among those of one host is kept. */
export function indexDestinations(destinations: Iterable<Destination>): DestinationIndex {
  // No prototype: names such as `constructor` are names like any other.
  const exact: Record<string, Destination[]> = Object.create(null);
  const below: Record<string, Destination[]> = Object.create(null);
  const any: Destination[] = [];
  for (const destination of destinations) {
    const { host } = destination;
    if (host === '*') any.push(destination);
    else if (host.startsWith('*.')) file(below, host.slice(2), destination);
    else file(exact, host, destination);
  }
  return { exact, below, any };
}

function file(into: Record<string, Destination[]>, key: string, destination: Destination): void {
  const list = into[key];
  if (list === undefined) into[key] = [destination];
  else list.push(destination);
}

/**
 * The part of an index that can be about `host`, so that a question costs the same however many rules a run has. It is a
 * lookup, not a decision: rules only allow, so what it left out by mistake would be denied.
 */
export function narrowIndex(index: DestinationIndex, host: string): DestinationIndex {
  const below: Record<string, readonly Destination[]> = {};
  for (let dot = host.indexOf('.'); dot !== -1; dot = host.indexOf('.', dot + 1)) {
    const suffix = host.slice(dot + 1);
    if (Object.hasOwn(index.below, suffix)) below[suffix] = index.below[suffix] ?? [];
  }
  const own = Object.hasOwn(index.exact, host) ? index.exact[host] : undefined;
  return { exact: own === undefined ? {} : { [host]: own }, below, any: index.any };
}
