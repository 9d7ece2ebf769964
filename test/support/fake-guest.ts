/**
 * A guest agent that obeys the protocol (docs/guest-link.md) only as far as its owner wants. It writes HTTP/2 frames
 * (RFC 9113) as bytes, so that it can also write what no HTTP/2 library would.
 */
import type { Socket } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { ExecOutput, HELLO_MAGIC, HELLO_NONCE_BYTES } from '../../src/protocol/guest-link.ts';
import { encodeRecord } from '../../src/protocol/records.ts';

export const Frame = {
  data: 0,
  headers: 1,
  priority: 2,
  rstStream: 3,
  settings: 4,
  pushPromise: 5,
  ping: 6,
  goaway: 7,
  windowUpdate: 8,
  continuation: 9,
  origin: 12,
} as const;

export const Flag = { endStream: 1, ack: 1, endHeaders: 4 } as const;

/** `:status: 200` in HPACK's static table (RFC 7541, appendix A). */
export const STATUS_200 = Buffer.of(0x88);
export const STATUS_400 = Buffer.of(0x8c);

const PREFACE_BYTES = 24;
const FRAME_HEADER_BYTES = 9;
const INITIAL_WINDOW_SIZE = 4;

export function frame(
  type: number,
  flags: number,
  stream: number,
  payload: Uint8Array = Buffer.alloc(0),
): Buffer {
  const bytes = Buffer.alloc(FRAME_HEADER_BYTES + payload.length);
  bytes.writeUIntBE(payload.length, 0, 3);
  bytes[3] = type;
  bytes[4] = flags;
  bytes.writeUInt32BE(stream, 5);
  bytes.set(payload, FRAME_HEADER_BYTES);
  return bytes;
}

export class FakeGuest {
  /** False: it takes what arrives off the wire and answers none of it. */
  answersPings = true;
  answersSettings = true;
  readonly #socket: Socket;
  #received = Buffer.alloc(0);
  #wakeReader: () => void = () => {};
  #requests: number[] = [];
  #wakeRequest: () => void = () => {};
  #sessionWindow = 65_535;
  #streamWindow = 65_535;
  readonly #windows = new Map<number, number>();
  #wakeWindow: () => void = () => {};

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('error', () => {});
    socket.on('data', this.#keep);
  }

  /** Bytes as they are. Settles when the host has room for more. */
  async send(...parts: readonly Uint8Array[]): Promise<void> {
    if (this.#socket.destroyed) return new Promise(() => {});
    const more = this.#socket.write(Buffer.concat(parts));
    // Not at once: a flood must leave room to read what the host says.
    if (more) return turn();
    await new Promise((resolve) => this.#socket.once('drain', resolve));
  }

  /** From now on nothing is read: the host's answers pile up. */
  stopReading(): void {
    this.#socket.off('data', this.#keep).pause();
  }

  /** The 40 bytes that the host starts a session with. */
  async takeHello(): Promise<Buffer> {
    const hello = await this.#take(HELLO_MAGIC.length + HELLO_NONCE_BYTES);
    if (!hello.toString('latin1').startsWith(HELLO_MAGIC)) throw new Error('no hello');
    return hello;
  }

  /** Answers the hello and starts HTTP/2. */
  async startSession(): Promise<void> {
    await this.send(await this.takeHello());
    await this.#take(PREFACE_BYTES);
    await this.send(frame(Frame.settings, 0, 0));
    void this.#readFrames();
  }

  /** The stream of the host's next request, whose content does not matter here. */
  async request(): Promise<number> {
    while (this.#requests.length === 0) {
      await new Promise<void>((resolve) => {
        this.#wakeRequest = resolve;
      });
    }
    return this.#requests.shift() ?? 0;
  }

  async answerIdentity(text = 'total_us=1\n'): Promise<void> {
    const stream = await this.request();
    await this.send(
      frame(Frame.headers, Flag.endHeaders, stream, STATUS_200),
      frame(Frame.data, Flag.endStream, stream, Buffer.from(text)),
    );
  }

  /** Takes a request to run a process and says that it runs. */
  async startProcess(): Promise<number> {
    const stream = await this.request();
    await this.send(frame(Frame.headers, Flag.endHeaders, stream, STATUS_200));
    await this.data(stream, encodeRecord(ExecOutput.started, Buffer.of(0, 0, 0, 9)));
    return stream;
  }

  async endProcess(stream: number, code = 0): Promise<void> {
    await this.data(stream, encodeRecord(ExecOutput.exit, Buffer.of(0, code, 0)));
    await this.send(frame(Frame.data, Flag.endStream, stream));
  }

  /** Answers a request with 400. */
  async refuse(stream: number): Promise<void> {
    await this.send(frame(Frame.headers, Flag.endHeaders | Flag.endStream, stream, STATUS_400));
  }

  /** A body within the windows that the host has opened. */
  async data(stream: number, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const window = Math.min(this.#sessionWindow, this.#windows.get(stream) ?? this.#streamWindow, 16_384);
      if (window <= 0) {
        await new Promise<void>((resolve) => {
          this.#wakeWindow = resolve;
        });
        continue;
      }
      const part = bytes.subarray(at, at + window);
      at += part.length;
      this.#sessionWindow -= part.length;
      this.#windows.set(stream, (this.#windows.get(stream) ?? this.#streamWindow) - part.length);
      await this.send(frame(Frame.data, 0, stream, part));
    }
  }

  readonly #keep = (chunk: Buffer): void => {
    this.#received = Buffer.concat([this.#received, chunk]);
    this.#wakeReader();
  };

  async #take(length: number): Promise<Buffer> {
    while (this.#received.length < length) {
      await new Promise<void>((resolve) => {
        this.#wakeReader = resolve;
      });
    }
    const taken = this.#received.subarray(0, length);
    this.#received = this.#received.subarray(length);
    return taken;
  }

  async #readFrames(): Promise<never> {
    for (;;) {
      const header = await this.#take(FRAME_HEADER_BYTES);
      const payload = await this.#take(header.readUIntBE(0, 3));
      const [type, flags, stream] = [header.readUInt8(3), header.readUInt8(4), header.readUInt32BE(5)];
      if (type === Frame.headers) {
        this.#requests.push(stream);
        this.#wakeRequest();
      } else if (type === Frame.settings && (flags & Flag.ack) === 0) {
        for (let at = 0; at + 6 <= payload.length; at += 6) {
          if (payload.readUInt16BE(at) === INITIAL_WINDOW_SIZE)
            this.#streamWindow = payload.readUInt32BE(at + 2);
        }
        if (this.answersSettings) await this.send(frame(Frame.settings, Flag.ack, 0));
      } else if (type === Frame.ping && (flags & Flag.ack) === 0) {
        if (this.answersPings) await this.send(frame(Frame.ping, Flag.ack, 0, payload));
      } else if (type === Frame.windowUpdate) {
        const increment = payload.readUInt32BE(0);
        if (stream === 0) this.#sessionWindow += increment;
        else this.#windows.set(stream, (this.#windows.get(stream) ?? this.#streamWindow) + increment);
        this.#wakeWindow();
      }
    }
  }
}
