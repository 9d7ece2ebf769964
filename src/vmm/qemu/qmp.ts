/**
 * A client of the QEMU Machine Protocol (docs/interop/qmp-spec.rst): JSON objects, one per line.
 * The VMM is not trusted: a compromised one may send anything, so lines are bounded and shapes are checked.
 */
import type { Socket } from 'node:net';
import { CtError } from '../../core/errors.ts';

/** QEMU's longest reply to the commands we send is a few kilobytes. */
const MAX_LINE_BYTES = 256 * 1024;

interface Pending {
  readonly command: string;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: CtError) => void;
}

type Listener = (data: unknown) => void;

export class QmpClient {
  readonly #socket: Socket;
  readonly #pending: Pending[] = [];
  readonly #listeners = new Map<string, Set<Listener>>();
  readonly #greeting = Promise.withResolvers<unknown>();
  #carry = '';
  #ended: CtError | undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    // Nobody may be waiting when the VMM dies; the owner of the process hears of that by itself.
    this.#greeting.promise.catch(() => {});
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => this.#read(chunk));
    socket.on('error', (error) => this.#end(`the QMP socket failed: ${error.message}`));
    socket.on('close', () => this.#end('the VMM closed its QMP socket'));
  }

  /** Waits for the greeting and leaves capabilities negotiation mode. */
  async start(): Promise<void> {
    await this.#greeting.promise;
    await this.command('qmp_capabilities');
  }

  /** Sends one command; commands may overlap, replies come in order. Throws VMM_COMMAND_FAILED. */
  command(execute: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    const answer = this.expect(execute);
    if (!this.#ended)
      this.#socket.write(
        `${JSON.stringify(args === undefined ? { execute } : { execute, arguments: args })}\n`,
      );
    return answer;
  }

  /** Waits for the answer to a command that somebody else writes to the socket, next. */
  expect(execute: string): Promise<unknown> {
    if (this.#ended) return Promise.reject(this.#ended);
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#pending.push({ command: execute, resolve, reject });
    return promise;
  }

  /** Resolves with the `data` of the first event `name` that `accept` takes; rejects when the socket ends. */
  event(name: string, accept: (data: unknown) => boolean = () => true): Promise<unknown> {
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners);
    const listener: Listener = (data) => {
      if (!accept(data)) return;
      listeners.delete(listener);
      this.#socket.off('close', onClose);
      resolve(data);
    };
    const onClose = (): void => reject(this.#ended ?? failed(`the VMM ended before the event ${name}`));
    listeners.add(listener);
    this.#socket.once('close', onClose);
    return promise;
  }

  close(): void {
    this.#socket.destroy();
  }

  #read(chunk: string): void {
    const lines = (this.#carry + chunk).split('\n');
    this.#carry = lines.pop() ?? '';
    if (this.#carry.length > MAX_LINE_BYTES) {
      this.#break('a line is too long');
      return;
    }
    for (const line of lines) {
      if (line.trim() === '') continue;
      let message: unknown;
      try {
        message = JSON.parse(line);
      } catch {
        this.#break('a line is not JSON');
        return;
      }
      if (typeof message !== 'object' || message === null) {
        this.#break('a message is not an object');
        return;
      }
      this.#dispatch(message as Record<string, unknown>);
    }
  }

  #dispatch(message: Record<string, unknown>): void {
    if ('QMP' in message) {
      this.#greeting.resolve(message['QMP']);
    } else if (typeof message['event'] === 'string') {
      for (const listener of [...(this.#listeners.get(message['event']) ?? [])]) listener(message['data']);
    } else if ('return' in message) {
      this.#pending.shift()?.resolve(message['return']);
    } else if ('error' in message) {
      const pending = this.#pending.shift();
      const description = (message['error'] as { desc?: unknown } | null)?.desc;
      pending?.reject(failed(`QMP ${pending.command}: ${String(description).slice(0, 500)}`));
    }
  }

  #break(why: string): void {
    this.#end(`the VMM sent something that is not QMP: ${why}`);
    this.#socket.destroy();
  }

  #end(why: string): void {
    if (this.#ended) return;
    this.#ended = failed(why);
    this.#greeting.reject(this.#ended);
    for (const pending of this.#pending.splice(0)) pending.reject(this.#ended);
  }
}

function failed(message: string): CtError {
  return new CtError('VMM_COMMAND_FAILED', message);
}
