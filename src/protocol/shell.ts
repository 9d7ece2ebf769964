/**
 * What `ct shell` and the link process of a VM say to each other.
 *
 * The client opens `POST /v1/runs/REF/shell` with `Upgrade: ct-shell/1` on the daemon's unix socket. The daemon answers
 * 101 and hands the connection to the link process of the run's VM, or answers an error as it does for any request.
 * Then the client sends the ShellRequest as its first record; `end` is the last record to it.
 */
import { CtError, type ErrorReport } from '../core/errors.ts';
import { isObject } from '../core/json.ts';

/** Records from the client. */
export const ShellClientRecord = {
  /** JSON ShellRequest, in one record. */
  request: 0x70,
  /** Bytes for stdin; an empty payload closes it. */
  stdin: 0x71,
  /** u16 BE rows, u16 BE columns. */
  resize: 0x72,
  /** u8 signal number, for a process without a terminal; one with a terminal gets its signals from that. */
  signal: 0x73,
} as const;

/** Records to the client. */
export const ShellServerRecord = {
  stdout: 0x78,
  stderr: 0x79,
  /** JSON ShellEnd. */
  end: 0x7a,
} as const;

export interface ShellRequest {
  /** Empty for a shell. */
  readonly argv: readonly string[];
  /** Absent: pipes. */
  readonly terminal?: {
    readonly rows: number;
    readonly columns: number;
    /** `$TERM`. */
    readonly name: string;
  };
}

export type ShellEnd = { readonly exitCode: number } | { readonly error: ErrorReport };

const MAX_SIZE = 0xffff;

/** JSON of at most one record, from the user's own client. Throws HOST_PROTOCOL. */
export function parseShellRequest(json: string): ShellRequest {
  const request = parsed(json);
  if (!isObject(request) || !Array.isArray(request['argv']) || !request['argv'].every(isArgument)) {
    throw unusable();
  }
  const argv: readonly string[] = request['argv'];
  const { terminal } = request;
  if (terminal === undefined) return { argv };
  if (!isObject(terminal)) throw unusable();
  const { rows, columns, name } = terminal;
  if (!isSize(rows) || !isSize(columns) || typeof name !== 'string' || !isTerminalName(name)) {
    throw unusable();
  }
  return { argv, terminal: { rows, columns, name } };
}

/** Names of terminals are file names of terminfo(5). */
export function isTerminalName(name: string): boolean {
  return /^[A-Za-z0-9][\w.+-]{0,63}$/.test(name);
}

function parsed(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch (error) {
    throw new CtError('HOST_PROTOCOL', 'the request for a shell is not JSON', { cause: error });
  }
}

/** No NUL: it would end a string early on its way to execve. */
function isArgument(value: unknown): value is string {
  return typeof value === 'string' && !value.includes('\0');
}

function isSize(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) <= MAX_SIZE;
}

function unusable(): CtError {
  return new CtError('HOST_PROTOCOL', 'the request for a shell is malformed');
}
