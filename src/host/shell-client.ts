/** The client's end of a shell in the VM of a run (src/protocol/shell.ts). */
import type { Socket } from 'node:net';
import { drained } from '../core/drained.ts';
import { CtError } from '../core/errors.ts';
import { MAX_RECORD_BYTES } from '../protocol/limits.ts';
import { encodeChunked, encodeRecord, RecordDecoder } from '../protocol/records.ts';
import { ShellClientRecord, type ShellEnd, type ShellRequest, ShellServerRecord } from '../protocol/shell.ts';

export interface ShellIo {
  readonly request: ShellRequest;
  /** A promise holds the process in the VM back until it settles. */
  readonly onOutput: (stream: 'stdout' | 'stderr', bytes: Buffer) => void | Promise<void>;
  /** Hands out what goes the other way, before anything comes. */
  readonly onOpen: (input: ShellInput) => void;
}

export interface ShellInput {
  /** Bytes for stdin; a promise means that much is waiting. */
  write(bytes: Uint8Array): undefined | Promise<unknown>;
  /** No more bytes follow. */
  end(): void;
  resize(rows: number, columns: number): void;
  /** For a process without a terminal. */
  signal(number: number): void;
}

/** Throws USAGE if the arguments are too long for the wire. */
export function encodeShellRequest(request: ShellRequest): Buffer {
  const json = JSON.stringify(request);
  if (Buffer.byteLength(json) <= MAX_RECORD_BYTES) return encodeRecord(ShellClientRecord.request, json);
  throw new CtError('USAGE', `the command takes more than ${MAX_RECORD_BYTES} bytes`, {
    hint: 'put it into a file or send it through stdin: ct shell RUN -- sh < FILE',
  });
}

/**
 * Serves a shell to its end and returns its exit status. Throws what the link process reports (SHELL_ENDED when the job
 * ended first), and SHELL_ENDED when that could not say anything. The connection is the caller's to close.
 */
export async function serveShell(socket: Socket, opening: Buffer, io: ShellIo): Promise<number> {
  socket.on('error', () => {}); // the reader sees the end of the stream
  socket.write(opening);
  const send = (bytes: Uint8Array): undefined | Promise<unknown> => {
    if (socket.destroyed || socket.write(bytes)) return undefined;
    return drained(socket);
  };
  io.onOpen({
    write: (bytes) => send(Buffer.concat([...encodeChunked(ShellClientRecord.stdin, bytes)])),
    end: () => void send(encodeRecord(ShellClientRecord.stdin)),
    resize: (rows, columns) => {
      const size = Buffer.alloc(4);
      size.writeUInt16BE(rows, 0);
      size.writeUInt16BE(columns, 2);
      void send(encodeRecord(ShellClientRecord.resize, size));
    },
    signal: (number) => void send(encodeRecord(ShellClientRecord.signal, Uint8Array.of(number))),
  });
  let records: [type: number, payload: Buffer][] = [];
  const decoder = new RecordDecoder((type, payload) => records.push([type, Buffer.from(payload)]));
  try {
    for await (const chunk of socket) {
      decoder.push(chunk as Buffer);
      const decoded = records;
      records = [];
      for (const [type, payload] of decoded) {
        if (type === ShellServerRecord.stdout) await io.onOutput('stdout', payload);
        else if (type === ShellServerRecord.stderr) await io.onOutput('stderr', payload);
        else if (type === ShellServerRecord.end) return exitCode(payload);
        else throw new CtError('HOST_PROTOCOL', `unknown record type ${type} on the connection of a shell`);
      }
    }
  } catch (error) {
    // A link process that is killed may leave a connection that breaks instead of ending.
    if ((error as NodeJS.ErrnoException).code !== 'ECONNRESET') throw error;
  }
  throw new CtError('SHELL_ENDED', 'the run has ended, and its VM and this shell with it', {
    hint: 'what became of the run: ct ps -a',
  });
}

function exitCode(payload: Buffer): number {
  const end = parsed(payload);
  if ('exitCode' in end && Number.isInteger(end.exitCode)) return end.exitCode;
  if ('error' in end) throw new CtError(end.error.code, end.error.message, { hint: end.error.hint });
  throw new CtError('HOST_PROTOCOL', 'the end of a shell is malformed');
}

function parsed(payload: Buffer): ShellEnd {
  try {
    return JSON.parse(payload.toString('utf8')) as ShellEnd;
  } catch (error) {
    throw new CtError('HOST_PROTOCOL', 'the end of a shell is not JSON', { cause: error });
  }
}
