/**
 * The head of one plain HTTP/1.x request (RFC 9112), read so that no server finds another request in it than is found here.
 * Guest-controlled, at most MAX_HEAD_BYTES. What two servers might read differently is refused, even where the RFC lets a
 * server be lenient.
 */
import { canonicalAddress } from '../policy/address.ts';
import { isHostName, lowerCaseAscii, splitAuthority } from './host-name.ts';

/** Servers take 8 to 64 KiB. */
export const MAX_HEAD_BYTES = 32_768;
const MAX_FIELDS = 256;
/** Below 2^53 with room for adding. */
const CONTENT_LENGTH = /^[0-9]{1,15}$/;
const TOKEN = "[!#$%&'*+.^_`|~0-9A-Za-z-]";
const REQUEST_LINE = new RegExp(`^(${TOKEN}{1,32}) ([\\x21-\\x7e]+) HTTP/1\\.([01])$`);
const FIELD = new RegExp(`^(${TOKEN}+):[ \\t]*([\\t\\x20-\\x7e\\x80-\\xff]*)$`);
const HTTP_PORT = 80;

export interface RequestHead {
  /** Lower case, without port; an address in canonical form. Null: the request names no host. */
  readonly host: string | null;
  /** Bytes of the body, or that it comes in chunks. */
  readonly body: number | 'chunked';
  /** Lower case, if the client offers to go on in another protocol. */
  readonly upgrade: string | null;
}

/** `lines` without their CRLF and without the empty one. A string says why the head is refused. */
export function parseRequestHead(lines: readonly string[]): RequestHead | string {
  const [, method = '', target = '', minor] = REQUEST_LINE.exec(lines[0] ?? '') ?? [];
  if (minor === undefined) return 'a line that is no HTTP/1 request line';
  if (method === 'CONNECT') return 'the method CONNECT';
  if (lines.length > MAX_FIELDS) return `more than ${MAX_FIELDS} header fields`;
  const fields = new Map<string, string>();
  for (const line of lines.slice(1)) {
    const [name, value] = parseField(line) ?? [];
    if (name === undefined || value === undefined) return 'a malformed header field';
    const before = fields.get(name);
    if (before !== undefined && UNIQUE_FIELDS.has(name)) return `the header field ${name} twice`;
    fields.set(name, before === undefined ? value : `${before}, ${value}`);
  }

  const host = requestHost(method, target, fields.get('host'));
  if (typeof host === 'string') return host;
  const body = bodyLength(fields, minor);
  if (typeof body === 'string' && body !== 'chunked') return body;
  return { host: host.name, body, upgrade: upgradeOf(fields) };
}

const UNIQUE_FIELDS = new Set(['host', 'content-length', 'transfer-encoding']);

/** `name: value`, the name in lower case; null if malformed, a folded line included. */
export function parseField(line: string): [name: string, value: string] | null {
  const match = FIELD.exec(line);
  return match ? [lowerCaseAscii(match[1] ?? ''), (match[2] ?? '').replace(/[ \t]+$/, '')] : null;
}

/** The host of Host, and that of an absolute target, which must be the same. */
function requestHost(
  method: string,
  target: string,
  field: string | undefined,
): { readonly name: string | null } | string {
  const named = field === undefined || field === '' ? null : parseHost(field);
  if (named === undefined) return 'a Host that is no host name';
  if (target.startsWith('/') || (target === '*' && method === 'OPTIONS'))
    return { name: named?.name ?? null };
  const absolute = /^http:\/\/([^/?#]+)(?:[/?#]|$)/i.exec(target);
  if (!absolute) return 'a malformed target';
  const targeted = parseHost(absolute[1] ?? '');
  if (!targeted) return 'a target that names no host';
  if (field !== undefined && (named?.name !== targeted.name || named.port !== targeted.port)) {
    return 'a target of another host than its Host';
  }
  return { name: targeted.name };
}

function parseHost(text: string): { readonly name: string; readonly port: number } | undefined {
  const authority = splitAuthority(lowerCaseAscii(text));
  if (!authority) return undefined;
  const address = canonicalAddress(authority.host);
  if (authority.bracketed !== authority.host.includes(':')) return undefined;
  const name = address ?? (isHostName(authority.host) ? authority.host : undefined);
  return name === undefined ? undefined : { name, port: authority.port ?? HTTP_PORT };
}

/** RFC 9112, 6.3, without its leniencies. */
function bodyLength(fields: ReadonlyMap<string, string>, minor: string): number | 'chunked' | string {
  const length = fields.get('content-length');
  const encoding = fields.get('transfer-encoding');
  if (encoding !== undefined) {
    if (length !== undefined) return 'both Content-Length and Transfer-Encoding';
    if (minor !== '1' || lowerCaseAscii(encoding) !== 'chunked')
      return 'a Transfer-Encoding other than chunked';
    return 'chunked';
  }
  if (length === undefined) return 0;
  return CONTENT_LENGTH.test(length) ? Number(length) : 'a malformed Content-Length';
}

function upgradeOf(fields: ReadonlyMap<string, string>): string | null {
  const options = lowerCaseAscii(fields.get('connection') ?? '').split(/[ \t]*,[ \t]*/);
  const upgrade = fields.get('upgrade');
  return upgrade !== undefined && options.includes('upgrade') ? lowerCaseAscii(upgrade) : null;
}
