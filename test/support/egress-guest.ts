/** The guest's end of ct.egress, a control that decides as a test says, and servers for the outside. Loopback only. */
import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2 } from 'node:http2';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import type {
  EgressControl,
  GuestDestination,
  OtherAttempt,
  StreamFacts,
  Verdict,
} from '../../src/egress/control.ts';
import { EgressProxy, type ProxyOptions } from '../../src/egress/proxy.ts';
import { HELLO_MAGIC, HELLO_NONCE_BYTES } from '../../src/protocol/guest-link.ts';

const HELLO_BYTES = HELLO_MAGIC.length + HELLO_NONCE_BYTES;

export async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as AddressInfo).port;
}

/** Two ends of one connection. */
export async function socketPair(): Promise<[Socket, Socket]> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  const port = await listen(server);
  const accepted = new Promise<Socket>((resolve) => server.once('connection', resolve));
  const near = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  await new Promise((resolve) => near.once('connect', resolve));
  const far = await accepted;
  server.close();
  for (const end of [near, far]) end.on('error', () => {});
  return [near, far];
}

/** Decides by the functions that a test sets, and writes down everything that it is asked. */
export class FakeControl implements EgressControl {
  readonly names: string[] = [];
  readonly destinations: GuestDestination[] = [];
  readonly facts: StreamFacts[] = [];
  readonly attempts: OtherAttempt[] = [];
  /** By number of the connection. */
  readonly over = new Map<number, { sent: number; received: number }>();
  /** Where connections really go; undefined: unreachable. */
  port: number | undefined;
  allowsName: (name: string) => boolean = () => true;
  allowsConnect: (destination: GuestDestination) => boolean = () => true;
  allowsStream: (facts: StreamFacts) => boolean | Promise<boolean> = () => true;
  #connections = 0;

  async dns(name: string, type: string): Promise<Verdict> {
    this.names.push(`${type} ${name}`);
    return verdict(this.allowsName(name));
  }

  async connect(destination: GuestDestination): ReturnType<EgressControl['connect']> {
    this.destinations.push(destination);
    if (!this.allowsConnect(destination)) return { connected: false, reason: 'denied', message: 'no' };
    if (this.port === undefined) return { connected: false, reason: 'unreachable', message: 'nobody there' };
    const socket = connect({ port: this.port, host: '127.0.0.1', allowHalfOpen: true });
    socket.pause();
    const isConnected = await new Promise<boolean>((resolve) => {
      socket.once('connect', () => resolve(true)).once('error', () => resolve(false));
    });
    if (!isConnected) return { connected: false, reason: 'unreachable', message: 'refused' };
    this.#connections += 1;
    return { connected: true, connection: this.#connections, socket };
  }

  async inspect(_connection: number, facts: StreamFacts): Promise<Verdict> {
    this.facts.push(facts);
    return verdict(await this.allowsStream(facts));
  }

  attempted(attempt: OtherAttempt): void {
    this.attempts.push(attempt);
  }

  closed(connection: number, sent: number, received: number): void {
    if (this.over.has(connection)) throw new Error(`connection ${connection} is over twice`);
    this.over.set(connection, { sent, received });
  }
}

function verdict(allowed: boolean): Verdict {
  return allowed ? { allowed } : { allowed, message: 'no' };
}

export interface EgressLink extends AsyncDisposable {
  readonly control: FakeControl;
  readonly proxy: EgressProxy;
  /** The guest's end, after the hello and before HTTP/2. */
  readonly wire: Socket;
}

/** A proxy whose guest has answered the hello. */
export async function egressLink(options: ProxyOptions = {}): Promise<EgressLink> {
  const [wire, channel] = await socketPair();
  const control = new FakeControl();
  const opening = EgressProxy.open(channel, control, 5000, options);
  let hello = Buffer.alloc(0);
  while (hello.length < HELLO_BYTES) {
    await new Promise((resolve) => wire.once('readable', resolve));
    hello = Buffer.concat([hello, (wire.read() as Buffer | null) ?? Buffer.alloc(0)]);
  }
  wire.write(hello);
  const proxy = await opening;
  return {
    control,
    proxy,
    wire,
    async [Symbol.asyncDispose]() {
      proxy.close();
      wire.destroy();
      channel.destroy();
    },
  };
}

/** A guest that speaks HTTP/2 as it should. */
export class EgressGuest {
  readonly http2: ClientHttp2Session;

  constructor(wire: Socket) {
    this.http2 = connectHttp2('http://host', {
      createConnection: () => wire,
      maxSessionMemory: 500, // of the test, not of what it tests
      settings: { initialWindowSize: 1024 * 1024, maxFrameSize: 65_536 },
    });
    this.http2.on('error', () => {});
    this.http2.on('connect', () => this.http2.setLocalWindowSize(4 * 1024 * 1024));
  }

  connect(authority: string): GuestStream {
    return new GuestStream(this.http2.request({ ':method': 'CONNECT', ':authority': authority }));
  }

  async post(path: string, body: Uint8Array): Promise<{ status: number; body: Buffer }> {
    const stream = new GuestStream(this.http2.request({ ':method': 'POST', ':path': path }));
    stream.http2.end(body);
    const status = await stream.status;
    await stream.ended;
    return { status, body: stream.received };
  }
}

/** One request and what came of it. */
export class GuestStream {
  readonly http2: ClientHttp2Stream;
  /** 0: reset before there was one. */
  readonly status: Promise<number>;
  /** The host has said everything, or the stream was reset. */
  readonly ended: Promise<void>;
  /** The code with which it was closed. */
  readonly closed: Promise<number>;
  readonly #chunks: Buffer[] = [];
  #bytes = 0;
  #wake: () => void = () => {};

  constructor(http2: ClientHttp2Stream) {
    this.http2 = http2;
    http2.on('error', () => {});
    this.status = new Promise((resolve) => {
      http2.once('response', (headers) => resolve(Number(headers[':status'])));
      http2.once('close', () => resolve(0));
    });
    this.ended = new Promise((resolve) => {
      http2.once('end', resolve).once('close', resolve);
    });
    this.closed = new Promise((resolve) => {
      http2.once('close', () => resolve(http2.rstCode ?? 0));
    });
    http2.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk);
      this.#bytes += chunk.length;
      this.#wake();
    });
    http2.on('close', () => this.#wake());
  }

  get received(): Buffer {
    return Buffer.concat(this.#chunks);
  }

  get text(): string {
    return this.received.toString('latin1');
  }

  /** A reset and nothing else: Node would end the stream first. */
  reset(code: number): void {
    this.http2._final = (callback) => callback();
    this.http2.close(code);
  }

  /** At least so many bytes have come, or it is over. */
  async bytes(count: number): Promise<Buffer> {
    while (this.#bytes < count && !this.http2.destroyed) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.received;
  }
}

/** Waits for what has no event of its own. */
export async function until(condition: () => boolean, what: string, timeoutMs = 5000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`it took too long: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
