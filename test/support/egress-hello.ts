/** ClientHellos as Node.js (OpenSSL) writes them, and as OpenSSL reads them; without a socket. */
import { Duplex } from 'node:stream';
import { type ConnectionOptions, connect, TLSSocket } from 'node:tls';

/** What a TLS client of these options says first. */
export async function clientHello(options: ConnectionOptions): Promise<Buffer> {
  const { promise, resolve } = Promise.withResolvers<Buffer>();
  const wire = new Duplex({
    read() {},
    write(chunk: Buffer, _encoding, callback) {
      resolve(chunk);
      callback();
    },
  });
  const client = connect({ socket: wire, ...options });
  client.on('error', () => {});
  const hello = await promise;
  client.destroy();
  wire.destroy();
  return hello;
}

/** The name that a server of OpenSSL finds in what a client says first; undefined: it finds none. */
export async function nameSeenByOpenssl(bytes: Buffer): Promise<string | undefined> {
  const { promise, resolve } = Promise.withResolvers<string | undefined>();
  const wire = new Duplex({
    read() {},
    write(_chunk, _encoding, callback) {
      callback();
      resolve(undefined);
    },
  });
  const server = new TLSSocket(wire, {
    isServer: true,
    SNICallback: (name, callback) => {
      resolve(name);
      callback(null, undefined);
    },
  });
  server.on('error', () => resolve(undefined));
  wire.push(bytes);
  const timer = setTimeout(() => resolve(undefined), 50);
  const name = await promise;
  clearTimeout(timer);
  server.destroy();
  wire.destroy();
  return name;
}

/** A ClientHello made by hand. */
export function craftHello(extensions: readonly [type: number, data: Buffer][]): Buffer {
  const list = Buffer.concat(
    extensions.map(([type, data]) => Buffer.concat([u16(type), u16(data.length), data])),
  );
  const body = Buffer.concat([
    Buffer.of(3, 3),
    Buffer.alloc(32, 7),
    Buffer.of(0),
    u16(2),
    Buffer.of(0x13, 0x01),
    Buffer.of(1, 0),
    u16(list.length),
    list,
  ]);
  return tlsRecord(Buffer.concat([Buffer.of(1, 0), u16(body.length), body]));
}

export function sniExtension(...names: readonly (string | Buffer)[]): [number, Buffer] {
  const entries = names.map((name) => {
    const bytes = typeof name === 'string' ? Buffer.from(name, 'latin1') : name;
    return Buffer.concat([Buffer.of(0), u16(bytes.length), bytes]);
  });
  const list = Buffer.concat(entries);
  return [0, Buffer.concat([u16(list.length), list])];
}

export function tlsRecord(payload: Uint8Array): Buffer {
  return Buffer.concat([Buffer.of(22, 3, 1), u16(payload.length), payload]);
}

export function u16(value: number): Buffer {
  return Buffer.of(value >> 8, value & 0xff);
}
