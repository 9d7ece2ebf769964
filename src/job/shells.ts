/**
 * Shells beside a job, in its VM (src/protocol/shell.ts). Part of the link process. They start what the job's steps could
 * start, as the same user, and are nothing that a job waits for: when it ends, they do.
 */
import type { Socket } from 'node:net';
import { drained } from '../core/drained.ts';
import { CtError, errorReport } from '../core/errors.ts';
import type { ExecRequest, ExecResult, TerminalSize } from '../guest/session.ts';
import { encodeChunked, encodeRecord, RecordDecoder } from '../protocol/records.ts';
import type { RunEvent } from '../protocol/run.ts';
import {
  parseShellRequest,
  ShellClientRecord,
  type ShellEnd,
  type ShellRequest,
  ShellServerRecord,
} from '../protocol/shell.ts';
import { ByteQueue } from './byte-queue.ts';
import { exitCodeOf } from './outcome.ts';
import type { OutputMask } from './output-mask.ts';

/** Each may have a window of output under way that nobody reads; those of the job's steps must not wait for these. */
const MAX_SHELLS = 4;
/** A client that types faster than the guest reads is paused. */
const MAX_QUEUED_BYTES = 256 * 1024;
const REQUEST_TIMEOUT_MS = 30_000;
/** A shell of the user's choice needs no configuration: it is named with `--`. */
const DEFAULT_SHELL = ['sh', '-c', 'if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi'];

type ShellExec = Pick<ExecRequest, 'argv' | 'env' | 'onOutput' | 'onStarted' | 'signal'> &
  Partial<Pick<ExecRequest, 'stdin' | 'terminal'>>;

/** What a running job lends to shells. */
export interface ShellRoom {
  /** With the user, the environment and the working directory of the job's steps, and none of their secrets. */
  readonly exec: (request: ShellExec) => Promise<ExecResult>;
  /** Masks the secrets of the job, if it has any. */
  readonly mask: (emit: OutputMask['output']) => OutputMask | undefined;
}

export class Shells {
  readonly #note: (event: Extract<RunEvent, { type: 'shell' }>) => void;
  readonly #room = Promise.withResolvers<ShellRoom>();
  readonly #end = new AbortController();
  #open = 0;

  /** `note` hears of every shell that is opened and closed. */
  constructor(note: (event: Extract<RunEvent, { type: 'shell' }>) => void) {
    this.#note = note;
    this.#room.promise.catch(() => {});
  }

  /** From now on processes can be started; shells that came earlier have waited for this. */
  admit(room: ShellRoom): void {
    this.#room.resolve(room);
  }

  /** Ends all of them, and those that are still to come. */
  end(reason: CtError): void {
    this.#room.reject(reason);
    this.#end.abort(reason);
  }

  /** Serves a client to its end; never rejects. `pending`: what was read of its connection. */
  async serve(socket: Socket, pending: Buffer, uid: number): Promise<void> {
    const connection = new ShellConnection(socket, pending);
    if (this.#open >= MAX_SHELLS) {
      const error = new CtError('SHELL_UNAVAILABLE', `${MAX_SHELLS} shells are open in this VM`, {
        hint: 'leave one of them first',
      });
      await connection.end({ error: errorReport(error) });
      return;
    }
    this.#open++;
    this.#note({ type: 'shell', state: 'opened', uid });
    const end = await this.#run(connection).then(
      (exitCode) => ({ exitCode }),
      (error) => ({ error: errorReport(error) }),
    );
    this.#open--;
    this.#note({ type: 'shell', state: 'closed', uid, ...('exitCode' in end ? end : {}) });
    await connection.end(end);
  }

  async #run(connection: ShellConnection): Promise<number> {
    const signal = AbortSignal.any([this.#end.signal, connection.gone]);
    const aborted = Promise.withResolvers<never>();
    aborted.promise.catch(() => {});
    const onAbort = (): void => aborted.reject(signal.reason);
    if (signal.aborted) onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    const [{ argv, terminal }, room] = await Promise.race([
      Promise.all([connection.request, this.#room.promise]),
      aborted.promise,
    ]);
    const mask = room.mask((stream, _, bytes) => connection.output(stream, bytes));
    const result = await room.exec({
      argv: argv.length > 0 ? argv : DEFAULT_SHELL,
      env: terminal ? { TERM: terminal.name } : {},
      stdin: connection.stdin,
      ...(terminal ? { terminal } : {}),
      onOutput: (stream, bytes) => mask?.output(stream, 0, bytes) ?? connection.output(stream, bytes),
      onStarted: (sendSignal, resize) => connection.control({ sendSignal, resize }),
      signal,
    });
    await mask?.endStep();
    if (result.kind === 'failed') {
      const program = argv[0] ?? 'sh';
      await connection.output('stderr', Buffer.from(`ct: ${program} cannot be started: ${result.message}\n`));
    }
    return exitCodeOf(result);
  }
}

interface ProcessControl {
  readonly sendSignal: (signal: number) => void;
  readonly resize: (size: TerminalSize) => void;
}

/** The client is the user's own process; its bytes are checked but not feared. */
class ShellConnection {
  readonly stdin: ByteQueue;
  readonly #socket: Socket;
  readonly #gone = new AbortController();
  readonly #request = Promise.withResolvers<ShellRequest>();
  readonly #timer: NodeJS.Timeout;
  #control: ProcessControl | undefined;
  /** Came before there was a process to tell. */
  #size: TerminalSize | undefined;

  constructor(socket: Socket, pending: Buffer) {
    this.#socket = socket;
    this.#request.promise.catch(() => {});
    this.#timer = setTimeout(() => {
      this.#leave(new CtError('HOST_PROTOCOL', 'the client did not say in time what to start'));
    }, REQUEST_TIMEOUT_MS);
    const flow = (): void => {
      if (this.stdin.bytes < MAX_QUEUED_BYTES) socket.resume();
      else socket.pause();
    };
    this.stdin = new ByteQueue(flow);
    const decoder = new RecordDecoder((type, payload) => this.#record(type, payload));
    const onData = (chunk: Buffer): void => {
      try {
        decoder.push(chunk);
        flow();
      } catch (error) {
        this.#leave(new CtError('HOST_PROTOCOL', 'the client sent something malformed', { cause: error }));
      }
    };
    const onGone = (): void => this.#leave(new CtError('CANCELLED', 'the client of the shell went away'));
    socket.on('data', onData).on('error', () => {});
    socket.on('close', onGone).on('end', onGone);
    if (pending.length > 0) onData(pending);
  }

  /** Aborted when the client goes away or sends something malformed. */
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  get request(): Promise<ShellRequest> {
    return this.#request.promise;
  }

  control(control: ProcessControl): void {
    this.#control = control;
    if (this.#size) control.resize(this.#size);
  }

  async output(stream: 'stdout' | 'stderr', bytes: Buffer): Promise<void> {
    const records = [...encodeChunked(ShellServerRecord[stream], bytes)];
    if (this.#socket.destroyed || this.#socket.write(Buffer.concat(records))) return;
    await drained(this.#socket);
  }

  /** The last word; closes the connection. */
  async end(end: ShellEnd): Promise<void> {
    clearTimeout(this.#timer);
    if (this.#socket.destroyed) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#socket.once('close', resolve);
    this.#socket.end(encodeRecord(ShellServerRecord.end, JSON.stringify(end)), () =>
      this.#socket.destroySoon(),
    );
    await promise;
  }

  #record(type: number, payload: Buffer): void {
    if (type === ShellClientRecord.request) {
      clearTimeout(this.#timer);
      this.#request.resolve(parseShellRequest(payload.toString('utf8')));
    } else if (type === ShellClientRecord.stdin) {
      this.stdin.push(payload);
    } else if (type === ShellClientRecord.resize && payload.length === 4) {
      this.#size = { rows: payload.readUInt16BE(0), columns: payload.readUInt16BE(2) };
      this.#control?.resize(this.#size);
    } else if (type === ShellClientRecord.signal && payload.length === 1) {
      this.#control?.sendSignal(payload.readUInt8(0));
    } else {
      throw new CtError('HOST_PROTOCOL', `unexpected record type ${type} from the client of a shell`);
    }
  }

  #leave(reason: CtError): void {
    this.#gone.abort(reason);
    this.#request.reject(reason);
    this.stdin.fail(reason);
  }
}
