/** The daemon's handle of a link process: one command at a time, every wait with three exits. */
import { type ChildProcess, spawn } from 'node:child_process';
import type { Socket } from 'node:net';
import type { Readable } from 'node:stream';
import { BoundedTail } from '../core/bounded-tail.ts';
import { CtError } from '../core/errors.ts';
import { entryPoint, launcherPath } from '../core/install.ts';
import { type LinkCommand, type LinkReply, parseLinkReply } from './link-messages.ts';

/** Heap of a link process; trees and output stream through it, and hostile peers are bounded by it. */
const LINK_HEAP_MIB = 96;

interface Waiting {
  readonly resolve: (reply: LinkReply) => void;
  readonly reject: (error: CtError) => void;
}

export class Link {
  readonly pid: number;
  /** Settles when the process has ended; never rejects. */
  readonly exited: Promise<void>;
  readonly #child: ChildProcess;
  readonly #stderr = new BoundedTail(8192);
  #waiting: Waiting | undefined;
  #hasExited = false;

  constructor() {
    this.#child = spawn(
      launcherPath,
      [
        ...['exec', '--die-with-parent', '--harden', '--keep', '3', '--'],
        process.execPath,
        ...[`--max-old-space-size=${LINK_HEAP_MIB}`, '--disable-warning=ExperimentalWarning'],
        entryPoint('host/link-process'),
      ],
      { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], env: compileCacheEnv(), detached: true },
    );
    this.pid = this.#child.pid ?? -1;
    (this.#child.stderr as Readable | null)?.on('data', (chunk: Buffer) => this.#stderr.push(chunk));
    this.#child.on('message', (message) => this.#reply(message));
    this.exited = new Promise((resolve) => {
      const ended = (): void => {
        this.#hasExited = true;
        this.#settle((waiting) => waiting.reject(this.#died()));
        resolve();
      };
      this.#child.once('error', ended);
      this.#child.once('close', ended);
    });
  }

  get running(): boolean {
    return !this.#hasExited;
  }

  /** Sends a command and waits for its answer. Throws the error the process reports, or LINK_DIED. */
  async call(command: LinkCommand, socket?: Socket): Promise<LinkReply> {
    if (this.#hasExited) throw this.#died();
    const { promise, resolve, reject } = Promise.withResolvers<LinkReply>();
    this.#waiting = { resolve, reject };
    this.#send(command, socket);
    const reply = await promise;
    if (reply.type === 'failed')
      throw new CtError(reply.error.code, reply.error.message, { hint: reply.error.hint });
    return reply;
  }

  /** Sends a command that has no answer. */
  tell(command: LinkCommand): void {
    if (!this.#hasExited) this.#send(command);
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.exited;
  }

  #send(command: LinkCommand, socket?: Socket): void {
    const onError = (error: Error | null): void => {
      if (error) this.#settle((waiting) => waiting.reject(this.#died()));
    };
    if (socket) this.#child.send(command, socket, { keepOpen: false }, onError);
    else this.#child.send(command, onError);
  }

  #reply(message: unknown): void {
    this.#settle((waiting) => {
      try {
        waiting.resolve(parseLinkReply(message));
      } catch (error) {
        waiting.reject(error as CtError);
        this.#child.kill('SIGKILL');
      }
    });
  }

  #settle(how: (waiting: Waiting) => void): void {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting) how(waiting);
  }

  #died(): CtError {
    const detail = this.#stderr.text().trim();
    return new CtError('LINK_DIED', `the link process of the VM ended${detail === '' ? '' : `: ${detail}`}`);
  }
}

function compileCacheEnv(): Record<string, string> {
  const directory = process.env['NODE_COMPILE_CACHE'];
  return directory === undefined ? {} : { NODE_COMPILE_CACHE: directory };
}
