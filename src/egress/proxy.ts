/**
 * The egress proxy of one VM: an HTTP/2 server (RFC 9113) whose only client is the guest, which is hostile. Runs in the link
 * process of the VM: it has no network of its own, and gets a connected socket where the control allows one.
 *
 *     CONNECT address:port    a TCP connection: 200 and its bytes, 403 (denied) or 502 (unreachable); refused later: a reset
 *     POST /v1/dns            one DNS message each way
 *     POST /v1/events         what was tried that has no way out; answered 204
 *
 * docs/guest-link.md has the whole of it. Everything else is answered 4xx.
 */

import type { ServerHttp2Session, ServerHttp2Stream } from 'node:http2';
import { constants, type IncomingHttpHeaders, performServerHandshake } from 'node:http2';
import type { Socket } from 'node:net';
import { CtError } from '../core/errors.ts';
import { startSession } from '../guest/handshake.ts';
import { canonicalAddress } from '../policy/address.ts';
import { ATTEMPT_BYTES, EgressPath, MAX_DNS_MESSAGE_BYTES } from '../protocol/guest-link.ts';
import { parseAttempts } from './attempt-records.ts';
import type { EgressControl, GuestDestination } from './control.ts';
import { serveDnsOverTcp } from './dns-over-tcp.ts';
import { splitAuthority } from './host-name.ts';
import { NameService } from './name-service.ts';
import { type GuardTimes, StreamGuard } from './stream-guard.ts';
import { RESOLVER_ADDRESS } from './synthetic-addresses.ts';

/** Connections and questions at once; each may hold STREAM_WINDOW_BYTES that its server does not take. */
export const MAX_STREAMS = 1024;
/** A megabyte would be faster by little, and 1024 times a megabyte is more than a link process has. */
const STREAM_WINDOW_BYTES = 128 * 1024;
const SESSION_WINDOW_BYTES = 4 * 1024 * 1024;
const MAX_FRAME_BYTES = 65_536;
/** What nghttp2 may hold for the session; a guest can fill it. */
const MAX_SESSION_MEMORY_MB = 64;
/** An authority has at most 51 characters. */
const MAX_HEADER_LIST_BYTES = 1024;
const MAX_HEADER_PAIRS = 16;
/** Malformed requests; an honest guest makes none. */
const MAX_OFFENCES = 1000;
/** Connections that are being made; others wait their turn. */
const MAX_PENDING_CONNECTS = 128;
/** A guest agent sends at most 342 records at a time. */
const MAX_EVENT_BYTES = 512 * ATTEMPT_BYTES;
/** From the first to the last byte of a request with a body: a guest that sends one has all of it. */
const BODY_TIMEOUT_MS = 10_000;
/** Of resets (a client that gives up may reset many), per RFC 9113, 10.5: so many at once, so many a second. */
const RESET_BURST = 2000;
const RESETS_PER_SECOND = 500;
const DNS_PORT = 53;

export interface ProxyOptions {
  readonly times?: GuardTimes;
}

export class EgressProxy {
  readonly #control: EgressControl;
  readonly #options: ProxyOptions;
  readonly #http2: ServerHttp2Session;
  readonly #names: NameService;
  readonly #lost = Promise.withResolvers<never>();
  #isLost = false;
  #offences = 0;
  #pendingConnects = 0;
  readonly #waitingConnects: (() => void)[] = [];

  private constructor(channel: Socket, control: EgressControl, options: ProxyOptions) {
    this.#control = control;
    this.#options = options;
    this.#names = new NameService(control);
    this.#lost.promise.catch(() => {});
    this.#http2 = performServerHandshake(channel, {
      maxSessionMemory: MAX_SESSION_MEMORY_MB,
      maxHeaderListPairs: MAX_HEADER_PAIRS,
      maxSessionInvalidFrames: MAX_OFFENCES,
      maxSessionRejectedStreams: MAX_OFFENCES,
      streamResetBurst: RESET_BURST,
      streamResetRate: RESETS_PER_SECOND,
      settings: {
        initialWindowSize: STREAM_WINDOW_BYTES,
        maxFrameSize: MAX_FRAME_BYTES,
        maxHeaderListSize: MAX_HEADER_LIST_BYTES,
        maxConcurrentStreams: MAX_STREAMS,
      },
    });
    this.#http2.setLocalWindowSize(SESSION_WINDOW_BYTES);
    this.#http2.on('stream', (stream, headers) => this.#request(stream, headers));
    this.#http2.on('error', (error) => this.#lose(`the egress link broke: ${error.message}`));
    this.#http2.on('close', () => this.#lose('the egress link was closed'));
    channel.on('error', () => {}); // told by the session
    channel.on('end', () => this.#lose('the egress link was closed'));
  }

  /**
   * Starts the session on the egress channel of a VM whose guest is ready, and serves it until it is lost or closed. Throws
   * what {@link startSession} does.
   */
  static async open(
    channel: Socket,
    control: EgressControl,
    timeoutMs: number,
    options: ProxyOptions = {},
  ): Promise<EgressProxy> {
    await startSession(channel, timeoutMs);
    return new EgressProxy(channel, control, options);
  }

  /** Rejects with GUEST_PROTOCOL, never resolves, when the guest's egress has ended: by what it did, or by {@link close}. */
  get lost(): Promise<never> {
    return this.#lost.promise;
  }

  /** The name that an address stands for, if the guest was told it. */
  nameOf(address: string): string | undefined {
    return this.#names.addresses.nameOf(address);
  }

  /** Ends every connection at once. */
  close(): void {
    this.#http2.destroy();
  }

  #lose(message: string): void {
    if (this.#isLost) return;
    this.#isLost = true;
    this.#lost.reject(new CtError('GUEST_PROTOCOL', message));
    this.close();
  }

  /** A malformed request; some a job can make, such as noise for its resolver. */
  #offend(stream: ServerHttp2Stream, status: number): void {
    this.#offences += 1;
    if (this.#offences > MAX_OFFENCES) this.#lose(`the guest made ${this.#offences} malformed requests`);
    else refuse(stream, status);
  }

  /** What comes from a job passes a guest agent that makes no such request: this one is not ours. */
  #forged(stream: ServerHttp2Stream, status: number): void {
    this.#control.attempted({ what: 'forged-request' });
    this.#offend(stream, status);
  }

  #request(stream: ServerHttp2Stream, headers: IncomingHttpHeaders): void {
    stream.on('error', () => {}); // told by its close
    if (isOver(stream)) return; // reset in the same breath
    const method = headers[':method'];
    const path = headers[':path'];
    if (method === 'CONNECT') this.#connect(stream, headers);
    else if (path !== EgressPath.dns && path !== EgressPath.events) this.#forged(stream, 404);
    else if (method !== 'POST') this.#forged(stream, 405);
    else if (path === EgressPath.dns) {
      this.#collect(stream, MAX_DNS_MESSAGE_BYTES, (body) => void this.#dns(stream, body));
    } else this.#collect(stream, MAX_EVENT_BYTES, (body) => this.#events(stream, body));
  }

  /** The body of a request, unless it is too long or takes too long. */
  #collect(stream: ServerHttp2Stream, maxBytes: number, onBody: (body: Buffer) => void): void {
    const chunks: Buffer[] = [];
    let bytes = 0;
    let isDone = false;
    const late = setTimeout(() => {
      isDone = true;
      this.#offend(stream, 408);
    }, BODY_TIMEOUT_MS);
    stream.on('data', (chunk: Buffer) => {
      if (isDone) return;
      bytes += chunk.length;
      chunks.push(chunk);
      if (bytes <= maxBytes) return;
      isDone = true;
      this.#offend(stream, 413);
    });
    stream.on('end', () => {
      clearTimeout(late);
      if (!isDone && !isOver(stream)) onBody(Buffer.concat(chunks));
      isDone = true;
    });
    stream.on('close', () => clearTimeout(late));
  }

  async #dns(stream: ServerHttp2Stream, message: Buffer): Promise<void> {
    const answer = await this.#names.answer(message);
    if (isOver(stream)) return;
    if (answer === null) this.#offend(stream, 400);
    else {
      stream.respond({ ':status': 200, 'content-type': 'application/dns-message' });
      stream.end(answer);
    }
  }

  #events(stream: ServerHttp2Stream, body: Buffer): void {
    const attempts = parseAttempts(body);
    if (attempts === null) {
      this.#forged(stream, 400);
      return;
    }
    for (const attempt of attempts) this.#control.attempted(attempt);
    stream.respond({ ':status': 204 }, { endStream: true });
  }

  #connect(stream: ServerHttp2Stream, headers: IncomingHttpHeaders): void {
    const destination = destinationOf(headers[':authority']);
    if (destination === null) {
      this.#forged(stream, 400);
      return;
    }
    const { host: address, port } = destination;
    if (address === RESOLVER_ADDRESS && port === DNS_PORT) {
      stream.respond({ ':status': 200 });
      serveDnsOverTcp(stream, this.#names);
      return;
    }
    const name = this.#names.addresses.nameOf(address);
    void this.#dial(stream, name === undefined ? destination : { host: name, literal: false, port }, address);
  }

  async #dial(stream: ServerHttp2Stream, destination: GuestDestination, address: string): Promise<void> {
    if (this.#pendingConnects >= MAX_PENDING_CONNECTS) {
      await new Promise<void>((resolve) => this.#waitingConnects.push(resolve));
    } else this.#pendingConnects += 1;
    try {
      // A guest that gave up while it waited is not asked for.
      if (isOver(stream)) return;
      const made = await this.#control.connect(destination, address);
      if (made.connected) this.#splice(stream, made.connection, made.socket);
      else if (!isOver(stream)) refuse(stream, made.reason === 'denied' ? 403 : 502);
    } catch {
      if (!isOver(stream)) refuse(stream, 502);
    } finally {
      // The place goes to the next that waits, if one does.
      const next = this.#waitingConnects.shift();
      if (next) next();
      else this.#pendingConnects -= 1;
    }
  }

  #splice(stream: ServerHttp2Stream, connection: number, socket: Socket): void {
    const control = this.#control;
    if (isOver(stream) || socket.destroyed) {
      socket.destroy();
      socket.on('error', () => {});
      control.closed(connection, 0, 0);
      if (!isOver(stream)) refuse(stream, 502);
      return;
    }
    stream.respond({ ':status': 200 });
    new StreamGuard({
      client: stream,
      server: socket,
      inspect: (facts) => control.inspect(connection, facts),
      resetClient: () => resetStream(stream),
      onClosed: (bytesSent, bytesReceived) => control.closed(connection, bytesSent, bytesReceived),
      ...(this.#options.times && { times: this.#options.times }),
    });
  }
}

function isOver(stream: ServerHttp2Stream): boolean {
  return stream.destroyed || stream.closed || stream.aborted;
}

/** As a TCP connection is reset (RFC 9113, 8.5): by RST_STREAM alone. */
export function resetStream(stream: ServerHttp2Stream): void {
  if (stream.closed || stream.destroyed) return;
  // Node would end the stream before it resets it, and the job would take a refusal for an orderly end.
  stream._final = (callback) => callback();
  stream.close(constants.NGHTTP2_CONNECT_ERROR);
}

/** Answers, and reads no more of the request. */
function refuse(stream: ServerHttp2Stream, status: number): void {
  if (isOver(stream)) return;
  stream.resume();
  if (!stream.headersSent) stream.respond({ ':status': status }, { endStream: true });
  // RFC 9113, 8.1: the answer is complete without the rest of the request. Closed at once, it would not be sent.
  setImmediate(() => {
    if (!isOver(stream)) stream.close(constants.NGHTTP2_NO_ERROR);
  });
}

/** `192.0.2.7:443` or `[2001:db8::7]:443`: an address in any strict form, and a port. Names are the host's business. */
function destinationOf(authority: string | undefined): GuestDestination | null {
  const parts = authority === undefined ? null : splitAuthority(authority);
  if (!parts || parts.port === null) return null;
  const host = canonicalAddress(parts.host);
  if (host === undefined || parts.bracketed !== parts.host.includes(':')) return null;
  return { host, literal: true, port: parts.port };
}
