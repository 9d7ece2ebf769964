/** What the client of bench/egress/client.c talks to: a TCP server on loopback. */
import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { drained } from '../core/drained.ts';

/** A letter, 14 digits, a line feed; then `D`: so many bytes to the client, `U`: from it, `S`: take a sample, `R`: measure the yardstick. */
const ORDER_BYTES = 16;
const CHUNK = Buffer.alloc(256 * 1024, 'x');

export interface BenchServer extends Disposable {
  readonly port: number;
}

/** What the client waits for. */
export interface BenchOrders {
  /** Told how many idle connections stand. */
  readonly onSample: (connections: number) => Promise<void>;
  readonly onYardstick: () => Promise<void>;
}

export async function startBenchServer(orders: BenchOrders): Promise<BenchServer> {
  const sockets = new Set<Socket>();
  const server = createServer({ noDelay: true }, (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    socket.on('error', () => socket.destroy());
    void serve(socket, orders).catch(() => socket.destroy());
  });
  server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 });
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    [Symbol.dispose]: () => {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

async function serve(socket: Socket, orders: BenchOrders): Promise<void> {
  let order = Buffer.alloc(0);
  let expected = 0;
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    let rest = chunk;
    while (rest.length > 0) {
      if (expected > 0) {
        const taken = Math.min(expected, rest.length);
        expected -= taken;
        rest = rest.subarray(taken);
        if (expected === 0) socket.write('.');
        continue;
      }
      const missing = ORDER_BYTES - order.length;
      order = Buffer.concat([order, rest.subarray(0, missing)]);
      rest = rest.subarray(missing);
      if (order.length < ORDER_BYTES) continue;
      const number = Number(order.toString('latin1', 1, ORDER_BYTES - 1));
      const what = order.toString('latin1', 0, 1);
      order = Buffer.alloc(0);
      if (what === 'U') expected = number;
      else if (what === 'D') await send(socket, number);
      else {
        await (what === 'R' ? orders.onYardstick() : orders.onSample(number));
        socket.write('.');
      }
    }
  }
}

async function send(socket: Socket, bytes: number): Promise<void> {
  for (let left = bytes; left > 0; left -= CHUNK.length) {
    if (!socket.write(CHUNK.subarray(0, left))) await drained(socket);
  }
}
