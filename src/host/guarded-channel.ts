/**
 * The daemon's end of the IPC channel of a child that is not trusted.
 *
 * Node would parse whatever the child writes: it collects a line without limit, throws where nobody can catch it if the
 * line is not JSON, and obeys internal messages (`cmd: NODE_…`) that assert, or index tables by what the child says.
 * Each of these would end the daemon. So Node's reader is replaced by this one, and Node hears of nothing but the
 * acknowledgement that it waits for after it has sent a handle. What a child may write:
 *
 *     lines of JSON, ended by "\n"; at most MAX_REPLY_BYTES until the daemon speaks again. No descriptors. Nothing at all while
 *     more than MAX_UNREAD_BYTES, or MAX_UNREAD_MESSAGES behind a descriptor, wait to be read by it: the daemon has to keep them.
 */
import type { ChildProcess } from 'node:child_process';
import { printable } from '../core/bounded-tail.ts';
import { CtError } from '../core/errors.ts';

/** An honest answer is a few hundred bytes, and one with the longest error messages a few ten thousand. Child-controlled. */
const MAX_REPLY_BYTES = 256 * 1024;
/** The largest command (MAX_JSON_BYTES), and answers to as many questions as may be open. */
const MAX_UNREAD_BYTES = 8 * 1024 * 1024;
/** Node sends nothing on before a descriptor was acknowledged: an answer to each open question, heartbeats, and to spare. */
const MAX_UNREAD_MESSAGES = 1000;
/** Pieces of an unfinished line that are kept apart; a child may write byte by byte. */
const MAX_PIECES = 64;
const QUOTED_BYTES = 60;
const LF = 0x0a;

/** The part of Node's internal channel handle that is used here; the hostile-link test fails if a new Node has another. */
interface ChannelHandle {
  /** `memory` begins with what was read and may be longer; undefined at the end of the channel. */
  onread: (memory: ArrayBuffer | undefined) => void;
  /** All bytes so far, those that `onread` is being told of included. */
  readonly bytesRead: number;
  /** Of what was sent, the bytes that the kernel has not taken. */
  readonly writeQueueSize: number;
  pendingHandle: { close(): void } | null;
}

export interface GuardedChannelEvents {
  /** One parsed message; may be anything that JSON can say. */
  readonly onMessage: (message: unknown) => void;
  /** The child broke the rules, once; nothing that it says is looked at any more. */
  readonly onViolation: (what: string) => void;
}

export class GuardedChannel {
  readonly #child: ChildProcess;
  readonly #channel: ChannelHandle;
  readonly #events: GuardedChannelEvents;
  #line: Buffer[] = [];
  #receivedBytes = 0;
  #violated = false;

  /** Legal in the turn in which `child` was spawned. Throws INTERNAL if this Node's channels cannot be guarded. */
  constructor(child: ChildProcess, events: GuardedChannelEvents) {
    this.#child = child;
    this.#events = events;
    const channel = channelHandle(child);
    if (!channel) throw new CtError('INTERNAL', 'the channel of a link process cannot be guarded');
    this.#channel = channel;
    const nodeReader = channel.onread;
    let seenBytes = channel.bytesRead;
    channel.onread = (memory): void => {
      const { pendingHandle } = channel;
      channel.pendingHandle = null;
      if (pendingHandle) {
        pendingHandle.close();
        this.#violate('it sent a descriptor');
      }
      // The end of the channel is Node's business.
      if (memory === undefined) {
        nodeReader.call(channel, undefined);
        return;
      }
      const length = channel.bytesRead - seenBytes;
      seenBytes = channel.bytesRead;
      if (!this.#violated) this.#read(Buffer.from(memory, 0, length));
    };
  }

  /** The daemon speaks: the child may answer. */
  grant(): void {
    this.#receivedBytes = 0;
  }

  #read(bytes: Buffer): void {
    if (
      this.#channel.writeQueueSize > MAX_UNREAD_BYTES ||
      (this.#handleQueue?.length ?? 0) > MAX_UNREAD_MESSAGES
    ) {
      this.#violate('it speaks on, and does not read what it is told');
      return;
    }
    this.#receivedBytes += bytes.length;
    if (this.#receivedBytes > MAX_REPLY_BYTES) {
      this.#violate(`it sent more than ${MAX_REPLY_BYTES} bytes at a time`);
      return;
    }
    let rest = bytes;
    for (let end = rest.indexOf(LF); end >= 0 && !this.#violated; end = rest.indexOf(LF)) {
      const line = Buffer.concat([...this.#line, rest.subarray(0, end)]);
      this.#line = [];
      rest = rest.subarray(end + 1);
      this.#message(line);
    }
    if (this.#violated || rest.length === 0) return;
    this.#line.push(rest);
    if (this.#line.length > MAX_PIECES) this.#line = [Buffer.concat(this.#line)];
  }

  #message(line: Buffer): void {
    let message: unknown;
    try {
      message = JSON.parse(line.toString('utf8'));
    } catch {
      const beginning = printable(line.subarray(0, QUOTED_BYTES).toString('utf8'));
      this.#violate(`it sent something that is not JSON: ${beginning}`);
      return;
    }
    const cmd = typeof message === 'object' && message !== null && 'cmd' in message ? message.cmd : undefined;
    if (cmd === undefined) this.#events.onMessage(message);
    else if (cmd === 'NODE_HANDLE_ACK' && this.#handleQueue) {
      this.#child.emit('internalMessage', { cmd });
    } else if (typeof cmd !== 'string' || !cmd.startsWith('NODE_SOCKET_')) {
      // NODE_SOCKET_…: bookkeeping of net.Server for sockets that were handed over, for which nobody here waits.
      this.#violate('it sent a message that is not its to send');
    }
  }

  /** What waits for the acknowledgement of a descriptor; null: nothing does. */
  get #handleQueue(): readonly unknown[] | null {
    const { _handleQueue: queue } = this.#child as unknown as { readonly _handleQueue: unknown };
    return Array.isArray(queue) ? queue : null;
  }

  #violate(what: string): void {
    if (this.#violated) return;
    this.#violated = true;
    this.#line = [];
    this.#events.onViolation(what);
  }
}

function channelHandle(child: ChildProcess): ChannelHandle | undefined {
  const symbol = Object.getOwnPropertySymbols(child).find(
    ({ description }) => description === 'kChannelHandle',
  );
  const handle = symbol && (child as unknown as Record<symbol, ChannelHandle | undefined>)[symbol];
  const usable =
    typeof handle?.onread === 'function' &&
    typeof handle.bytesRead === 'number' &&
    typeof handle.writeQueueSize === 'number' &&
    'pendingHandle' in handle &&
    '_handleQueue' in child;
  return usable ? handle : undefined;
}
