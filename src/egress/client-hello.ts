/**
 * What a TLS client says first: the name it asks for (RFC 6066, 3) and whether it hides another (RFC 9849). Guest-controlled:
 *
 *     records    u8 22, u16 version (major 3), u16 length (1 to 2^14), a piece of the message
 *     message    u8 1, u24 length, ClientHello (RFC 8446, 4.1.2; the same in RFC 5246, 7.4.1.2)
 *
 * It may come in any number of records, and these in any number of segments. What is no ClientHello that every server reads
 * alike is refused here, so that no server finds another name in it. Only the first one of a connection is read: a server that
 * asks for a second (HelloRetryRequest) must find the same name in it, and one that does not care could as well be told
 * the other name inside of the encrypted connection.
 */

import { HeldBytes } from './held-bytes.ts';
import { isHostName, lowerCaseAscii } from './host-name.ts';

/** One of today has 500 to 2,000 bytes, with a large session ticket a few thousand. */
export const MAX_HELLO_BYTES = 16_384;
/** Headers of records included: enough for any sensible number of records. */
const MAX_WIRE_BYTES = MAX_HELLO_BYTES + 4096;
const MAX_FRAGMENT_BYTES = 16_384;
const RECORD_HEADER_BYTES = 5;
const HANDSHAKE = 22;
const CLIENT_HELLO = 1;
const SERVER_NAME = 0;
/** encrypted_client_hello and its drafts, and encrypted_server_name. One of GREASE cannot be told from a real one. */
const ENCRYPTED_NAME = new Set([0xfe0d, 0xfe0c, 0xfe0b, 0xfe0a, 0xfe09, 0xfe08, 0xffce]);

export type ClientHelloState =
  | { readonly kind: 'needs-more' }
  /** `sni` lower case; null: the extension is missing. */
  | { readonly kind: 'hello'; readonly sni: string | null; readonly ech: boolean }
  | { readonly kind: 'not-tls' }
  | { readonly kind: 'malformed'; readonly reason: string };

const NEEDS_MORE: ClientHelloState = { kind: 'needs-more' };

/** Reads one ClientHello. Holds at most MAX_HELLO_BYTES; the bytes themselves are kept by whoever forwards them. */
export class ClientHelloReader {
  #state: ClientHelloState = NEEDS_MORE;
  readonly #header: number[] = [];
  #fragmentLeft = 0;
  readonly #message = new HeldBytes();
  #wireBytes = 0;

  /** Takes the next bytes of the client; afterwards the state is final unless it is `needs-more`. Never throws. */
  push(chunk: Buffer): ClientHelloState {
    if (this.#state.kind === 'needs-more') this.#state = this.#read(chunk);
    return this.#state;
  }

  #read(chunk: Buffer): ClientHelloState {
    for (let at = 0; at < chunk.length; ) {
      if (this.#fragmentLeft === 0) {
        this.#header.push(chunk[at] ?? 0);
        this.#wireBytes += 1;
        at += 1;
        const problem = this.#checkHeader();
        if (problem) return problem;
        continue;
      }
      const piece = chunk.subarray(at, at + this.#fragmentLeft);
      at += piece.length;
      this.#fragmentLeft -= piece.length;
      this.#wireBytes += piece.length;
      this.#message.append(piece);
      const state = this.#checkMessage();
      if (state.kind !== 'needs-more') return state;
    }
    return this.#wireBytes > MAX_WIRE_BYTES ? malformed('its ClientHello is too long') : NEEDS_MORE;
  }

  #checkHeader(): ClientHelloState | undefined {
    const [type, major, , high = 0, low = 0] = this.#header;
    if (type !== HANDSHAKE || (major !== undefined && major !== 3)) {
      return this.#message.length === 0 ? { kind: 'not-tls' } : malformed('its ClientHello is interrupted');
    }
    if (this.#wireBytes > MAX_WIRE_BYTES) return malformed('its ClientHello is in too many records');
    if (this.#header.length < RECORD_HEADER_BYTES) return undefined;
    const length = high * 256 + low;
    if (length === 0 || length > MAX_FRAGMENT_BYTES)
      return malformed(`it sent a TLS record of ${length} bytes`);
    this.#header.length = 0;
    this.#fragmentLeft = length;
    return undefined;
  }

  #checkMessage(): ClientHelloState {
    const { bytes } = this.#message;
    if (bytes[0] !== CLIENT_HELLO) return malformed('its first TLS message is no ClientHello');
    if (bytes.length < 4) return NEEDS_MORE;
    const length = bytes.readUIntBE(1, 3);
    if (length > MAX_HELLO_BYTES) return malformed('its ClientHello is too long');
    if (bytes.length < 4 + length) return NEEDS_MORE;
    // Nothing follows in the same record before the server has answered.
    if (bytes.length > 4 + length || this.#fragmentLeft > 0)
      return malformed('something follows its ClientHello');
    return parseClientHello(bytes.subarray(4));
  }
}

/** The body of a ClientHello message. */
function parseClientHello(body: Buffer): ClientHelloState {
  const reader = new Fields(body);
  reader.skip(2 + 32);
  const session = reader.vector(1);
  const suites = reader.vector(2);
  const compressions = reader.vector(1);
  if (!session || !suites || !compressions) return malformed('its ClientHello is cut short');
  if (session.length > 32 || suites.length < 2 || suites.length % 2 !== 0 || compressions.length < 1) {
    return malformed('its ClientHello has impossible lengths');
  }
  if (reader.atEnd) return { kind: 'hello', sni: null, ech: false };
  const list = reader.vector(2);
  if (!list || !reader.atEnd) return malformed('the extensions of its ClientHello do not end where it does');

  const extensions = new Fields(list);
  const seen = new Set<number>();
  let sni: string | null = null;
  let ech = false;
  while (!extensions.atEnd) {
    const type = extensions.uint16();
    const data = extensions.vector(2);
    if (type === undefined || !data) return malformed('an extension of its ClientHello is cut short');
    if (seen.has(type)) return malformed('its ClientHello has an extension twice');
    seen.add(type);
    if (ENCRYPTED_NAME.has(type)) ech = true;
    if (type !== SERVER_NAME) continue;
    const name = parseServerName(data);
    if (name === undefined) return malformed('the server name of its ClientHello is no host name');
    sni = name;
  }
  return { kind: 'hello', sni, ech };
}

/** u16 length of the list; u8 0 (host_name), u16 length, name. Exactly one name; undefined if it is anything else. */
function parseServerName(data: Buffer): string | undefined {
  const outer = new Fields(data);
  const list = outer.vector(2);
  if (!list || !outer.atEnd) return undefined;
  const entry = new Fields(list);
  const isHost = entry.skip(1) && list[0] === 0;
  const bytes = entry.vector(2);
  if (!isHost || !bytes || !entry.atEnd) return undefined;
  const name = lowerCaseAscii(bytes.toString('latin1'));
  return isHostName(name) ? name : undefined;
}

function malformed(reason: string): ClientHelloState {
  return { kind: 'malformed', reason };
}

/** Reads fields one after another; what would lie beyond the end is undefined. */
class Fields {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get atEnd(): boolean {
    return this.#at === this.#bytes.length;
  }

  skip(count: number): boolean {
    this.#at = Math.min(this.#at + count, this.#bytes.length + 1);
    return this.#at <= this.#bytes.length;
  }

  uint16(): number | undefined {
    if (this.#at + 2 > this.#bytes.length) return undefined;
    const value = this.#bytes.readUInt16BE(this.#at);
    this.#at += 2;
    return value;
  }

  /** A length of `lengthBytes` bytes, and as many bytes. */
  vector(lengthBytes: 1 | 2): Buffer | undefined {
    if (this.#at + lengthBytes > this.#bytes.length) return undefined;
    const length = this.#bytes.readUIntBE(this.#at, lengthBytes);
    const start = this.#at + lengthBytes;
    if (start + length > this.#bytes.length) return undefined;
    this.#at = start + length;
    return this.#bytes.subarray(start, this.#at);
  }
}
