/** The guest's end of ct.audit for tests: it answers the hello, and then sends what the test says, and heartbeats. */
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { AuditFrame } from '../../src/protocol/audit.ts';
import { encodeFrame, heartbeatFrame, SyntheticGuest } from './audit-frames.ts';
import type { PlayedGuest } from './egress-guest-host.ts';
import { Flag, Frame, frame, STATUS_200 } from './fake-guest.ts';

const HELLO_BYTES = 40;
const HEARTBEAT_MS = 200;

export class AuditGuest {
  readonly #guest: PlayedGuest;
  readonly #synthetic: SyntheticGuest;
  readonly #next: number[];
  readonly #closed: Promise<unknown>;
  #processes = 0;
  #timer: NodeJS.Timeout | undefined;

  private constructor(guest: PlayedGuest, cpus: number) {
    this.#guest = guest;
    this.#closed = new Promise((resolve) => guest.audit.once('close', resolve));
    this.#synthetic = new SyntheticGuest(1, cpus);
    this.#next = Array.from({ length: cpus }, () => 0);
  }

  /** Waits for the hello and answers it. */
  static async open(guest: PlayedGuest, cpus = 1): Promise<AuditGuest> {
    const self = new AuditGuest(guest, cpus);
    let seen = Buffer.alloc(0);
    while (seen.length < HELLO_BYTES) {
      const chunk = self.socket.read() as Buffer | null;
      if (chunk) seen = Buffer.concat([seen, chunk]);
      else await once(self.socket, 'readable');
    }
    self.socket.write(seen);
    self.socket.resume();
    self.socket.write(heartbeatFrame());
    self.#timer = setInterval(() => self.socket.write(heartbeatFrame()), HEARTBEAT_MS);
    self.socket.once('close', () => self.silence());
    return self;
  }

  get socket(): Socket {
    return this.#guest.audit;
  }

  /** No more heartbeats. */
  silence(): void {
    clearInterval(this.#timer);
  }

  /** Sends system calls of a processor. Settles when the host has room for more. */
  async calls(count: number, cpu = 0): Promise<void> {
    this.#next[cpu] = (this.#next[cpu] ?? 0) + count;
    await this.send(this.#synthetic.syscalls(cpu, count));
  }

  /** A process that is forked, runs a program, writes a file and ends. */
  async process(): Promise<void> {
    this.#processes += 4;
    await this.send(this.#synthetic.processes());
  }

  /** Records that are numbered and not sent. */
  skip(count: number, cpu = 0): void {
    this.#synthetic.syscalls(cpu, count);
    this.#next[cpu] = (this.#next[cpu] ?? 0) + count;
  }

  lost(count: number): Promise<void> {
    return this.send(encodeFrame({ type: AuditFrame.heartbeat, lost: count }));
  }

  async send(bytes: Buffer): Promise<void> {
    if (this.socket.destroyed || this.socket.write(bytes)) return;
    const drained = new Promise<void>((resolve) => this.socket.once('drain', resolve));
    await Promise.race([drained, this.#closed]);
  }

  /** Sends the frames of a script, from its first one on. */
  async script(frames: readonly Buffer[]): Promise<void> {
    for (const bytes of frames) {
      this.#count(bytes);
      await this.send(bytes);
    }
  }

  #count(bytes: Buffer): void {
    const [type, cpu] = [bytes.readUInt8(4), bytes.readUInt16LE(6)];
    const next = Number(bytes.readBigUInt64LE(8)) + bytes.readUInt32LE(16);
    if (type === AuditFrame.syscalls) this.#next[cpu] = next;
    if (type === AuditFrame.processes) this.#processes = next;
  }

  /** Answers the question which numbers come next, which the host asks when the job has ended. */
  async answerPosition(ahead = 0): Promise<void> {
    const { control } = this.#guest;
    const stream = await control.request();
    const lines = [`processes=${this.#processes}`, ...this.#next.map((next) => `cpu=${next + ahead}`)];
    await control.send(
      frame(Frame.headers, Flag.endHeaders, stream, STATUS_200),
      frame(Frame.data, Flag.endStream, stream, Buffer.from(`${lines.join('\n')}\n`)),
    );
  }
}
