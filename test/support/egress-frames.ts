/** A guest that writes HTTP/2 frames (RFC 9113) as bytes on ct.egress, so that it can say what no library would. */
import type { Socket } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { Flag, Frame, frame } from './fake-guest.ts';

const PREFACE = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n';
const FRAME_HEADER_BYTES = 9;

export interface SeenFrame {
  readonly type: number;
  readonly flags: number;
  readonly stream: number;
  readonly payload: Buffer;
}

/** Header fields without compression: literals without indexing (RFC 7541, 6.2.2). */
export function literalHeaders(fields: readonly (readonly [string, string | Buffer])[]): Buffer {
  const text = (value: string | Buffer): Buffer => {
    const bytes = typeof value === 'string' ? Buffer.from(value, 'latin1') : value;
    if (bytes.length < 127) return Buffer.concat([Buffer.of(bytes.length), bytes]);
    const rest = bytes.length - 127;
    const length = rest < 128 ? [127, rest] : [127, (rest & 0x7f) | 0x80, rest >> 7];
    return Buffer.concat([Buffer.from(length), bytes]);
  };
  return Buffer.concat(fields.map(([name, value]) => Buffer.concat([Buffer.of(0), text(name), text(value)])));
}

export class FrameGuest {
  readonly frames: SeenFrame[] = [];
  isClosed = false;
  readonly #wire: Socket;
  #received: Buffer = Buffer.alloc(0);
  #nextStream = 1;

  constructor(wire: Socket) {
    this.#wire = wire;
    wire.on('close', () => {
      this.isClosed = true;
    });
    wire.on('end', () => {
      this.isClosed = true;
    });
    wire.on('data', this.#keep);
    wire.write(PREFACE);
    wire.write(frame(Frame.settings, 0, 0));
  }

  /** Settles when the host has room for more; false: it is gone. */
  async send(...parts: readonly Uint8Array[]): Promise<boolean> {
    if (this.isClosed || this.#wire.destroyed) return false;
    if (this.#wire.write(Buffer.concat(parts))) {
      await turn();
      return !this.isClosed;
    }
    await Promise.race([
      new Promise((resolve) => this.#wire.once('drain', resolve).once('close', resolve)),
      new Promise((resolve) => setTimeout(resolve, 1000).unref()),
    ]);
    return !this.isClosed;
  }

  /** The number of the next stream. */
  nextStream(): number {
    this.#nextStream += 2;
    return this.#nextStream - 2;
  }

  request(
    fields: readonly (readonly [string, string | Buffer])[],
    flags: number = Flag.endHeaders,
  ): { stream: number; bytes: Buffer } {
    const stream = this.nextStream();
    return { stream, bytes: frame(Frame.headers, flags, stream, literalHeaders(fields)) };
  }

  connect(authority: string | Buffer): { stream: number; bytes: Buffer } {
    return this.request([
      [':method', 'CONNECT'],
      [':authority', authority],
    ]);
  }

  of(stream: number): SeenFrame[] {
    return this.frames.filter((one) => one.stream === stream);
  }

  /** Whether the host has answered, reset or refused the stream, or is gone. */
  isAnswered(stream: number): boolean {
    return (
      this.isClosed || this.of(stream).some(({ type }) => type === Frame.headers || type === Frame.rstStream)
    );
  }

  stopReading(): void {
    this.#wire.off('data', this.#keep).pause();
  }

  destroy(): void {
    this.#wire.destroy();
  }

  readonly #keep = (chunk: Buffer): void => {
    this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk]);
    while (this.#received.length >= FRAME_HEADER_BYTES) {
      const end = FRAME_HEADER_BYTES + this.#received.readUIntBE(0, 3);
      if (this.#received.length < end) return;
      const [type, flags, stream] = [
        this.#received.readUInt8(3),
        this.#received.readUInt8(4),
        this.#received.readUInt32BE(5),
      ];
      this.frames.push({ type, flags, stream, payload: this.#received.subarray(FRAME_HEADER_BYTES, end) });
      this.#received = this.#received.subarray(end);
      if (type === Frame.settings && (flags & Flag.ack) === 0)
        this.#wire.write(frame(Frame.settings, Flag.ack, 0));
      if (type === Frame.ping && (flags & Flag.ack) === 0) {
        this.#wire.write(frame(Frame.ping, Flag.ack, 0, this.frames.at(-1)?.payload));
      }
    }
  };
}
