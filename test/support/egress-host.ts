/** The host's end of ct.egress for tests: a plain HTTP/2 server that does what the test says, without any policy. */
import {
  type IncomingHttpHeaders,
  performServerHandshake,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2';
import { startSession } from '../../src/guest/handshake.ts';
import { ATTEMPT_BYTES, EgressPath } from '../../src/protocol/guest-link.ts';
import type { TestGuest } from './machines.ts';

const WINDOW_BYTES = 1024 * 1024;
const SESSION_WINDOW_BYTES = 16 * 1024 * 1024;

export interface AttemptRecord {
  readonly kind: number;
  readonly family: number;
  readonly port: number;
  readonly address: Buffer;
  readonly pid: number;
  readonly uid: number;
  readonly command: string;
  readonly suppressed: number;
}

export class EgressHost {
  readonly session: ServerHttp2Session;
  readonly authorities: string[] = [];
  readonly attempts: AttemptRecord[] = [];
  /** Serves a CONNECT; by default a refusal. */
  onConnect: (stream: ServerHttp2Stream, authority: string) => void = refuse;
  /** The answer to a DNS message; undefined: none. */
  onDns: (message: Buffer) => Buffer | undefined = () => undefined;

  private constructor(guest: TestGuest) {
    this.session = performServerHandshake(guest.egress, {
      maxSessionMemory: 256,
      settings: {
        initialWindowSize: WINDOW_BYTES,
        maxFrameSize: 65_536,
        maxConcurrentStreams: 1024 + 65,
      },
    });
    this.session.setLocalWindowSize(SESSION_WINDOW_BYTES);
    this.session.on('error', () => {});
    this.session.on('stream', (stream: ServerHttp2Stream, headers) => this.#serve(stream, headers));
  }

  static async open(guest: TestGuest): Promise<EgressHost> {
    await startSession(guest.egress, 30_000);
    return new EgressHost(guest);
  }

  #serve(stream: ServerHttp2Stream, headers: IncomingHttpHeaders): void {
    stream.on('error', () => {});
    if (headers[':method'] === 'CONNECT') {
      const authority = String(headers[':authority']);
      this.authorities.push(authority);
      this.onConnect(stream, authority);
      return;
    }
    const chunks: Buffer[] = [];
    stream.on('data', (chunk: Buffer) => chunks.push(chunk));
    stream.once('end', () => {
      const body = Buffer.concat(chunks);
      if (headers[':path'] === EgressPath.dns) {
        const answer = this.onDns(body);
        stream.respond({ ':status': answer ? 200 : 503 });
        stream.end(answer);
        return;
      }
      for (let at = 0; at < body.length; at += ATTEMPT_BYTES)
        this.attempts.push(readAttempt(body.subarray(at, at + ATTEMPT_BYTES)));
      stream.respond({ ':status': 204 }, { endStream: true });
    });
  }
}

export function refuse(stream: ServerHttp2Stream): void {
  stream.respond({ ':status': 403 }, { endStream: true });
}

export function echo(stream: ServerHttp2Stream): void {
  stream.respond({ ':status': 200 });
  stream.pipe(stream);
}

function readAttempt(record: Buffer): AttemptRecord {
  const family = record.readUInt8(1);
  return {
    kind: record.readUInt8(0),
    family,
    port: record.readUInt16BE(2),
    address: record.subarray(4, family === 2 ? 8 : 20),
    pid: record.readUInt32BE(20),
    uid: record.readUInt32BE(24),
    command: record.toString('latin1', 28, 44).replace(/\0+$/, ''),
    suppressed: record.readUInt32BE(44),
  };
}
