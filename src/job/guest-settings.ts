/**
 * What the job is told of this host's clients, put into the VM: variables, a file of certificate authorities and files of
 * settings. Runs in the link process, before the first step.
 *
 * The authorities lie where step scripts lie: on tmpfs, of root, readable and never writable for the job, so that no earlier
 * step can change whom a later one trusts.
 */
import { BoundedTail } from '../core/bounded-tail.ts';
import { CtError } from '../core/errors.ts';
import type { ExecRequest, ExecResult } from '../guest/session.ts';
import { SCRIPT_DIRECTORY } from '../protocol/guest-link.ts';
import type { GuestNetworkSettings } from '../protocol/network.ts';
import { EntryType, TREE_HEADER_BYTES, TREE_MAGIC, writeHeader } from './tree-format.ts';

const AUTHORITIES_NAME = 'ca-certificates.pem';
/** In the guest; there if the host has authorities of its own. */
export const AUTHORITIES_PATH = `${SCRIPT_DIRECTORY}/${AUTHORITIES_NAME}`;

/** By which programs are told of it: OpenSSL and Go, Node.js, npm, pip and requests, curl, git, Cargo. */
const AUTHORITY_VARIABLES = [
  'SSL_CERT_FILE',
  'NODE_EXTRA_CA_CERTS',
  'npm_config_cafile',
  'PIP_CERT',
  'REQUESTS_CA_BUNDLE',
  'CURL_CA_BUNDLE',
  'GIT_SSL_CAINFO',
  'CARGO_HTTP_CAINFO',
] as const;

const FILE_MODE = 0o644;
const DIRECTORY_MODE = 0o755;

/** Variables for every step, over those of the image and below all others. */
export function guestVariables(settings: GuestNetworkSettings): Record<string, string> {
  const told = settings.authoritiesPem === undefined ? [] : AUTHORITY_VARIABLES;
  return { ...settings.env, ...Object.fromEntries(told.map((name) => [name, AUTHORITIES_PATH])) };
}

export interface GuestSettingsTarget {
  /** Home directory of the job's user. */
  readonly home: string;
  /** Starts a process as the job's user. */
  readonly exec: (
    request: Pick<ExecRequest, 'argv' | 'onOutput'> & Partial<ExecRequest>,
  ) => Promise<ExecResult>;
}

/** Writes what `guestVariables` points at. Throws GUEST_REFUSED if it cannot be written, and what `exec` throws. */
export async function installGuestSettings(
  settings: GuestNetworkSettings,
  { home, exec }: GuestSettingsTarget,
): Promise<void> {
  const { authoritiesPem, homeFiles = {} } = settings;
  const files = Object.entries(homeFiles);
  if (authoritiesPem === undefined && files.length === 0) return;
  const output = new BoundedTail(2048);
  const result = await exec({
    builtin: 'tree-in',
    argv: [home],
    stdin: toAsync([treeOf(files)]),
    // A script that nothing runs.
    ...(authoritiesPem === undefined ? {} : { script: { name: AUTHORITIES_NAME, content: authoritiesPem } }),
    onOutput: (_, bytes) => output.push(bytes),
  });
  if (result.kind === 'exited' && result.code === 0) return;
  const why = result.kind === 'failed' ? result.message : output.text().trim();
  throw new CtError('GUEST_REFUSED', `settings of this host could not be written into the VM: ${why}`);
}

async function* toAsync(chunks: readonly Buffer[]): AsyncGenerator<Buffer> {
  yield* chunks;
}

/** A tree stream of small files; directories come before what lies in them. */
function treeOf(files: readonly (readonly [path: string, content: string])[]): Buffer {
  const entries: Buffer[] = [TREE_MAGIC];
  const directories = new Set<string>();
  for (const [path, content] of files) {
    const parts = path.split('/');
    for (let depth = 1; depth < parts.length; depth += 1) {
      const directory = parts.slice(0, depth).join('/');
      if (directories.has(directory)) continue;
      directories.add(directory);
      entries.push(entry(EntryType.directory, DIRECTORY_MODE, directory, ''));
    }
    entries.push(entry(EntryType.file, FILE_MODE, path, content));
  }
  entries.push(entry(EntryType.end, 0, '', ''));
  return Buffer.concat(entries);
}

function entry(type: number, mode: number, name: string, content: string): Buffer {
  const header = Buffer.alloc(TREE_HEADER_BYTES);
  const body = Buffer.from(name + content);
  const nameBytes = Buffer.byteLength(name);
  writeHeader(header, 0, {
    type,
    mode,
    mtimeSeconds: 0n,
    mtimeNanoseconds: 0,
    nameBytes,
    size: BigInt(body.length - nameBytes),
  });
  return Buffer.concat([header, body]);
}
