/** What to write into `network:` when a step could not reach something. Output is the guest's: see hints.ts. */

import type { PresetName } from '../egress/presets/names.ts';
import { type CanonicalHost, canonicalHost } from '../policy/destination.ts';
import type { NetworkRequest } from '../protocol/network.ts';

/** Where programs name the host that they could not reach. The name has a dot and no more than 253 characters. */
const HOST = '([A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62}\\.){1,20}[A-Za-z][A-Za-z0-9-]{0,62})\\b';
const HOST_PLACES = [
  `\\bhttps?://(?:[^/@\\s]{1,100}@)?${HOST}`,
  `\\b(?:resolve|resolving|host|hostname|proxy|address|lookup|ENOTFOUND|EAI_AGAIN|UnknownHostException)[:=]?\\s{0,3}['"‘` +
    '`' +
    `]?${HOST}`,
].map((pattern) => new RegExp(pattern, 'i'));

/** What a line of output gives away of the program that wrote it. */
const CLIENTS: readonly { readonly preset: PresetName; readonly pattern: RegExp }[] = [
  { preset: 'npm', pattern: /^(?:npm (?:ERR!|error|warn)|\s*(?:ERR_PNPM|WARN\s+GET|➤ YN)|error .*\byarn)/i },
  {
    preset: 'cargo',
    pattern:
      /spurious network error|\bCargo\b|\bcrates?\b.*(?:index|registry)|failed to (?:download|get) .*(?:crate|as a dependency)/,
  },
  { preset: 'go', pattern: /^go: |: (?:Get|reading) "?https?:.*(?:@v|\.mod|\.zip|sumdb)/ },
  {
    preset: 'pypi',
    pattern:
      /\bNo matching distribution found\b|after connection broken by|\bpip\b.*(?:install|index)|\/simple\//,
  },
  {
    preset: 'debian',
    pattern:
      /^(?:E|W|Err:\d+): ?(?:Failed to fetch|Unable to fetch|Some index files)|Temporary failure resolving|^Err:\d+ /,
  },
];

const GITHUB = /(?:^|\.)(?:github\.com|githubusercontent\.com)$/i;

/**
 * `line` is the one that says so, `lines` are those around it. What was refused, and why, is said by the host when it happens:
 * a guess from the output does not repeat it, and must not contradict it.
 */
export function networkHint(
  line: string,
  lines: readonly string[],
  network: NetworkRequest | undefined,
): string {
  const host = hostIn(line) ?? lines.map(hostIn).find((name) => name !== undefined);
  const found = presetFor(host, [line, ...lines]);
  const preset = found !== undefined && !network?.allow.includes(found) ? found : undefined;
  if (network === undefined) {
    const entry = preset ?? (host === undefined ? undefined : `"https://${host}"`);
    return entry === undefined
      ? 'the step has no network: name what it needs in `network` of the job, as in `network: {allow: [npm, "https://example.com"]}`, or put what it downloads into the image'
      : `the step has no network: \`network: {allow: [${entry}]}\` in the job file asks for it${entry === preset ? ` (${preset}: what this host is configured to use)` : ''}`;
  }
  return preset !== undefined && !network.allow.includes('*')
    ? `the job does not name the preset \`${preset}\`: add it to \`network: allow:\` of the job to reach what this host is configured to use`
    : `if policy refused it, a line \`denied:\` above says so, and how to ask for it; if there is none, this machine did not reach ${host === undefined ? 'it' : `\`${host}\``} itself`;
}

/** In its one form; nothing else of the output gets into a hint. */
function hostIn(line: string): string | undefined {
  for (const place of HOST_PLACES) {
    const name = place.exec(line)?.[1];
    const host: CanonicalHost | object = name === undefined ? {} : canonicalHost(name);
    if ('literal' in host && !host.literal) return host.host;
  }
  return undefined;
}

function presetFor(host: string | undefined, lines: readonly string[]): PresetName | undefined {
  if (host !== undefined && GITHUB.test(host)) return 'github';
  for (const line of lines) {
    const client = CLIENTS.find(({ pattern }) => pattern.test(line));
    if (client !== undefined) return client.preset;
  }
  return undefined;
}
