/**
 * The host side of a running session with a guest agent: an HTTP/2 client (RFC 9113) whose peer is hostile.
 * Runs in the link process of the VM, which has a memory limit and holds nothing but this run.
 */
import { randomBytes } from 'node:crypto';
import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants } from 'node:http2';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { AuditPosition } from '../audit/recorder.ts';
import { printable } from '../core/bounded-tail.ts';
import { withDeadline } from '../core/deadline.ts';
import { drained } from '../core/drained.ts';
import { CtError, messageOf } from '../core/errors.ts';
import type { CodePhase, CodeSettings, Interpreter } from '../protocol/code.ts';
import {
  CodeMode,
  CodeRecord,
  CodeTrust,
  ExecFlag,
  ExecInput,
  ExecOutput,
  ExitFlag,
  GuestPath,
  IdentityRecord,
  InterpreterFlag,
  Phase,
} from '../protocol/guest-link.ts';
import { MAX_RECORD_BYTES } from '../protocol/limits.ts';
import { encodeChunked, encodeRecord, RecordDecoder } from '../protocol/records.ts';
import { startSession } from './handshake.ts';

const STREAM_WINDOW_BYTES = 1024 * 1024;
const SESSION_WINDOW_BYTES = 4 * 1024 * 1024;
const MAX_FRAME_BYTES = 65_536;
/** What nghttp2 may hold for the session; a guest can fill it. */
const MAX_SESSION_MEMORY_MB = 32;
/** Texts of the guest agent: error messages and `key=value` lines. Guest-controlled. */
const MAX_TEXT_BYTES = 8192;
/** A liveness ping that takes longer means that the guest agent is gone; an emulated, overloaded guest needs seconds. */
const PING_TIMEOUT_MS = 30_000;
const PING_INTERVAL_MS = 10_000;
const CALL_TIMEOUT_MS = 30_000;
/** A stream fails a moment before its session says why. */
const LOSS_GRACE_MS = 500;
/** Output is handed on in pieces of at most this, however small or many the records are in which it came. */
const MAX_OUTPUT_BYTES = MAX_RECORD_BYTES;

export interface Identity {
  readonly hostname: string;
  /** dm-crypt cipher of the workspace volume: `<key bytes>:<cipher>`, or `none`. */
  readonly volumeCipher: string;
}

export interface ExecRequest {
  /** At least the program; looked up in env.PATH by the guest agent. */
  readonly argv: readonly string[];
  readonly builtin?: 'tree-in' | 'tree-out';
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  readonly uid: number;
  readonly gid: number;
  /** File made in SCRIPT_DIRECTORY before the program starts. */
  readonly script?: { readonly name: string; readonly content: string };
  /** Variables whose values are not to become strings; over those of `env`. */
  readonly secretEnv?: ReadonlyMap<string, Uint8Array>;
  /** Files of SECRET_DIRECTORY, for as long as the process lives. */
  readonly secretFiles?: ReadonlyMap<string, Uint8Array>;
  /** Bytes for stdin; /dev/null without it. */
  readonly stdin?: AsyncIterable<Uint8Array>;
  /** One pseudo-terminal of this size for stdin, stdout and stderr; what is written to it comes as stdout. */
  readonly terminal?: TerminalSize;
  /** A promise holds the guest's process back until it settles. */
  readonly onOutput: (stream: 'stdout' | 'stderr', bytes: Buffer) => void | Promise<void>;
  /** Hands out functions: one sends a signal to the process group, the other gives the terminal another size. */
  readonly onStarted?: (sendSignal: (signal: number) => void, resize: (size: TerminalSize) => void) => void;
  /** Kills the process group. The promise rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

export interface TerminalSize {
  readonly rows: number;
  readonly columns: number;
}

export type ExecResult =
  | { readonly kind: 'exited'; readonly code: number; readonly oomKilled: boolean }
  | { readonly kind: 'signalled'; readonly signal: number; readonly oomKilled: boolean }
  | { readonly kind: 'failed'; readonly errno: number; readonly message: string };

export class GuestSession {
  readonly #http2: ClientHttp2Session;
  readonly #lost = Promise.withResolvers<never>();
  #lostError: CtError | undefined;
  #pingTimer: NodeJS.Timeout | undefined;

  private constructor(control: Socket) {
    this.#lost.promise.catch(() => {});
    this.#http2 = connect('http://guest', {
      createConnection: () => control,
      maxSessionMemory: MAX_SESSION_MEMORY_MB,
      peerMaxConcurrentStreams: 64,
      settings: {
        enablePush: false,
        initialWindowSize: STREAM_WINDOW_BYTES,
        maxFrameSize: MAX_FRAME_BYTES,
        maxHeaderListSize: 4096,
        maxConcurrentStreams: 0,
      },
    });
    this.#http2.on('connect', () => this.#http2.setLocalWindowSize(SESSION_WINDOW_BYTES));
    this.#http2.on('error', (error) =>
      this.#lose(new CtError('GUEST_PROTOCOL', `the guest link broke: ${error.message}`, { cause: error })),
    );
    this.#http2.on('close', () => this.#lose(new CtError('VMM_DIED', 'the guest link was closed')));
    this.#http2.on('goaway', (code) =>
      this.#lose(new CtError('GUEST_PROTOCOL', `the guest ended the session (${code})`)),
    );
  }

  /** Starts the session and gives the clone its identity. Throws what {@link startSession} does, or GUEST_REFUSED. */
  static async open(
    control: Socket,
    identity: Identity,
    timeoutMs: number,
  ): Promise<{ session: GuestSession; timings: Readonly<Record<string, number>> }> {
    await startSession(control, timeoutMs);
    const session = new GuestSession(control);
    const body = Buffer.concat([
      encodeRecord(IdentityRecord.entropy, randomBytes(256)),
      encodeRecord(IdentityRecord.time, nowNanoseconds()),
      encodeRecord(IdentityRecord.hostname, identity.hostname),
      encodeRecord(IdentityRecord.volume, identity.volumeCipher),
    ]);
    const text = await withDeadline(
      session.#call('PUT', GuestPath.identity, body),
      timeoutMs,
      () => new CtError('GUEST_UNRESPONSIVE', `the guest did not take its identity within ${timeoutMs} ms`),
    );
    return { session, timings: parseKeyValues(text) };
  }

  /** Rejects, never resolves, when the session is lost: race it against what you wait for. */
  get lost(): Promise<never> {
    return this.#lost.promise;
  }

  /** From now on a guest agent that does not answer a ping in time (30 s) counts as lost (GUEST_UNRESPONSIVE). */
  watch({ intervalMs = PING_INTERVAL_MS, timeoutMs = PING_TIMEOUT_MS } = {}): void {
    const schedule = (): void => {
      this.#pingTimer = setTimeout(() => {
        const late = setTimeout(() => {
          const message = `the guest agent did not answer for ${timeoutMs / 1000} s`;
          this.#lose(new CtError('GUEST_UNRESPONSIVE', message));
        }, timeoutMs);
        const sent =
          !this.#http2.destroyed &&
          this.#http2.ping(() => {
            clearTimeout(late);
            if (!this.#lostError) schedule();
          });
        if (!sent) clearTimeout(late);
      }, intervalMs);
    };
    schedule();
  }

  /** Resource use as the guest agent sees it; the figures are the guest's own claims. */
  async stats(): Promise<Readonly<Record<string, number>>> {
    const text = await this.#callInTime('GET', GuestPath.stats);
    return parseKeyValues(text);
  }

  /**
   * Which numbers the next records of the audit get; undefined if the guest agent does not say: it records nothing, or it is
   * gone. The figures are the guest's own claims.
   */
  async auditPosition(timeoutMs: number): Promise<AuditPosition | undefined> {
    try {
      const text = await withDeadline(
        this.#call('GET', GuestPath.audit),
        timeoutMs,
        () => new CtError('GUEST_UNRESPONSIVE', `the guest gave no figures within ${timeoutMs} ms`),
      );
      return parseAuditPosition(text);
    } catch {
      return undefined;
    }
  }

  /**
   * From here on the guest judges what runs, and the phase is `stage`. Legal once, before anything of the job: every process is
   * killed, and what was written before has nobody to vouch for it. Throws GUEST_REFUSED, or what `lost` rejects with.
   */
  async setCode(settings: CodeSettings): Promise<void> {
    await this.#callInTime('PUT', GuestPath.code, encodeCode(settings));
  }

  /**
   * Ends every process of the job, and begins another phase. Legal after {@link setCode}. Throws GUEST_REFUSED if there is one
   * that does not end, which must be the end of the run.
   */
  async setPhase(phase: CodePhase): Promise<void> {
    await this.#callInTime('PUT', GuestPath.phase, Buffer.of(Phase[phase]));
  }

  /** Runs one process to its end. Throws GUEST_PROTOCOL, GUEST_REFUSED, or what `lost` rejects with. */
  async exec(request: ExecRequest): Promise<ExecResult> {
    const stream = this.#request('POST', GuestPath.exec);
    using cleanup = new DisposableStack();
    cleanup.defer(() => stream.close(constants.NGHTTP2_CANCEL));
    const aborted = Promise.withResolvers<never>();
    aborted.promise.catch(() => {});
    if (request.signal) {
      const { signal } = request;
      const onAbort = (): void => aborted.reject(signal.reason);
      if (signal.aborted) onAbort();
      signal.addEventListener('abort', onAbort, { once: true });
      cleanup.defer(() => signal.removeEventListener('abort', onAbort));
    }

    const setup = encodeExecSetup(request);
    stream.write(setup, () => setup.fill(0)); // it may hold secrets
    const send = (type: number, payload: Uint8Array): void => {
      if (stream.writable) stream.write(encodeRecord(type, payload));
    };
    request.onStarted?.(
      (signal) => send(ExecInput.signal, Uint8Array.of(signal)),
      (size) => send(ExecInput.resize, encodeSize(size)),
    );
    const feeding = request.stdin ? feed(stream, request.stdin) : Promise.resolve();
    // A process may end without having read its stdin; what matters then is the exit. The source failing is another case.
    const feedFailed = feeding.then(
      () => new Promise<never>(() => {}),
      (error) => Promise.reject(error),
    );
    const reading = readExec(stream, request.onOutput).catch((error) => this.#explain(error));
    return await Promise.race([reading, feedFailed, aborted.promise, this.lost]);
  }

  /** Drops the session; the owner destroys the VM. */
  close(): void {
    clearTimeout(this.#pingTimer);
    this.#http2.destroy();
  }

  #request(method: string, path: string): ClientHttp2Stream {
    if (this.#lostError) throw this.#lostError;
    const stream = this.#http2.request({ ':method': method, ':path': path }, { endStream: method === 'GET' });
    // Reported through the session or through the reader of the stream.
    stream.on('error', () => {});
    return stream;
  }

  #callInTime(method: string, path: string, body?: Buffer): Promise<string> {
    return withDeadline(
      this.#call(method, path, body),
      CALL_TIMEOUT_MS,
      () =>
        new CtError('GUEST_UNRESPONSIVE', `the guest did not answer ${path} within ${CALL_TIMEOUT_MS} ms`),
    );
  }

  async #call(method: string, path: string, body?: Buffer): Promise<string> {
    const stream = this.#request(method, path);
    if (method !== 'GET') stream.end(body);
    const reading = readText(stream, path).catch((error) => this.#explain(error));
    return Promise.race([reading, this.lost]);
  }

  /** Rejects with why the session was lost, if that is what ended a stream; with `error` otherwise. */
  async #explain(error: unknown): Promise<never> {
    // Streams end turns before their session, which knows why; one that was refused ends by itself.
    const isRefused = error instanceof CtError && error.code === 'GUEST_REFUSED';
    if (!isRefused) await Promise.race([this.lost, sleep(LOSS_GRACE_MS)]);
    throw error;
  }

  #lose(error: CtError): void {
    if (this.#lostError) return;
    this.#lostError = error;
    this.#lost.reject(error);
    this.close();
  }
}

async function readText(stream: ClientHttp2Stream, path: string): Promise<string> {
  const status = await responseStatus(stream);
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of chunksOf(stream)) {
    bytes += chunk.length;
    if (bytes > MAX_TEXT_BYTES) throw new CtError('GUEST_PROTOCOL', `the answer to ${path} is too long`);
    chunks.push(chunk);
  }
  const text = Buffer.concat(chunks).toString('latin1');
  if (status !== 200) {
    throw new CtError(
      'GUEST_REFUSED',
      `the guest agent answered ${path} with ${status}: ${printable(text).trim()}`,
    );
  }
  return text;
}

function responseStatus(stream: ClientHttp2Stream): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  stream.once('response', (headers) => resolve(Number(headers[':status'])));
  stream.once('close', () => {
    // A session that breaks does not say so while a guest that does not read holds up its last words; its streams do.
    const { errored } = stream;
    const isSessions = (errored as NodeJS.ErrnoException | null)?.code === 'ERR_HTTP2_ERROR';
    const why = isSessions
      ? `the guest link broke: ${messageOf(errored)}`
      : 'the guest closed a request without an answer';
    reject(new CtError('GUEST_PROTOCOL', why));
  });
  return promise;
}

async function readExec(stream: ClientHttp2Stream, onOutput: ExecRequest['onOutput']): Promise<ExecResult> {
  const status = await responseStatus(stream);
  if (status !== 200) {
    const text: Buffer[] = [];
    let bytes = 0;
    for await (const chunk of chunksOf(stream)) {
      text.push(chunk);
      bytes += chunk.length;
      if (bytes > MAX_TEXT_BYTES) break;
    }
    const detail = printable(Buffer.concat(text).subarray(0, MAX_TEXT_BYTES).toString('latin1')).trim();
    throw new CtError('GUEST_REFUSED', `the guest agent refused to start a process (${status}): ${detail}`);
  }
  let result: ExecResult | undefined;
  const output = new OutputPieces();
  const decoder = new RecordDecoder((type, payload) => {
    if (result) throw new CtError('GUEST_PROTOCOL', 'the guest sent a record after the exit of the process');
    if (type === ExecOutput.stdout) output.push('stdout', payload);
    else if (type === ExecOutput.stderr) output.push('stderr', payload);
    else if (type === ExecOutput.exit || type === ExecOutput.failed) result = parseResult(type, payload);
    else if (type !== ExecOutput.started) throw new CtError('GUEST_PROTOCOL', `unknown record type ${type}`);
  });
  for await (const chunk of chunksOf(stream)) {
    decoder.push(chunk);
    for (const [name, bytes] of output.take()) await onOutput(name, bytes);
    if (result) return result;
  }
  throw new CtError('GUEST_PROTOCOL', 'the guest ended a process without its exit code');
}

/** The body of a response, as long as it comes. Throws GUEST_PROTOCOL when the guest breaks it off. */
async function* chunksOf(stream: ClientHttp2Stream): AsyncGenerator<Buffer> {
  try {
    for await (const chunk of stream) yield chunk as Buffer;
  } catch (error) {
    throw new CtError('GUEST_PROTOCOL', `the guest broke off an answer: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

/**
 * Output of one chunk of the response. A guest may cut it into records of one byte or none, each of which would cost a
 * write to the client and to the log: what belongs together is put together.
 */
class OutputPieces {
  #pieces: { readonly stream: 'stdout' | 'stderr'; readonly parts: Buffer[]; bytes: number }[] = [];

  push(stream: 'stdout' | 'stderr', payload: Buffer): void {
    if (payload.length === 0) return;
    const last = this.#pieces.at(-1);
    if (last?.stream === stream && last.bytes + payload.length <= MAX_OUTPUT_BYTES) {
      last.parts.push(payload);
      last.bytes += payload.length;
    } else {
      this.#pieces.push({ stream, parts: [payload], bytes: payload.length });
    }
  }

  take(): [stream: 'stdout' | 'stderr', bytes: Buffer][] {
    const pieces = this.#pieces;
    this.#pieces = [];
    return pieces.map(({ stream, parts }) => [stream, Buffer.concat(parts)]);
  }
}

function parseResult(type: number, payload: Buffer): ExecResult {
  if (type === ExecOutput.failed) {
    if (payload.length < 4) throw new CtError('GUEST_PROTOCOL', 'a `failed` record is too short');
    const message = printable(payload.subarray(4, 4 + 512).toString('utf8'));
    return { kind: 'failed', errno: payload.readUInt32BE(0), message };
  }
  const [kind, value, flags] = payload;
  if (payload.length !== 3 || value === undefined || flags === undefined || (kind !== 0 && kind !== 1)) {
    throw new CtError('GUEST_PROTOCOL', 'an `exit` record is malformed');
  }
  const oomKilled = (flags & ExitFlag.oomKilled) !== 0;
  return kind === 0
    ? { kind: 'exited', code: value, oomKilled }
    : { kind: 'signalled', signal: value, oomKilled };
}

function encodeCode(settings: CodeSettings): Buffer {
  const trust = (settings.trust.source ? CodeTrust.source : 0) | (settings.trust.built ? CodeTrust.built : 0);
  const digests = [...new Set(settings.digests)].sort();
  return Buffer.concat([
    encodeRecord(CodeRecord.mode, Uint8Array.of(CodeMode[settings.mode])),
    encodeRecord(CodeRecord.trust, Uint8Array.of(trust)),
    ...encodeChunked(CodeRecord.digests, Buffer.from(digests.join(''), 'hex')),
    ...settings.interpreters.map((interpreter) =>
      encodeRecord(CodeRecord.interpreter, encodeInterpreter(interpreter)),
    ),
  ]);
}

function encodeInterpreter(interpreter: Interpreter): Buffer {
  const { path, endings, options, inlineForbidden, everyArgument } = interpreter;
  const flags =
    (inlineForbidden ? InterpreterFlag.inlineForbidden : 0) |
    (everyArgument ? InterpreterFlag.everyArgument : 0);
  const strings = [path, ...endings, ...options].map((text) => `${text}\0`);
  return Buffer.concat([Uint8Array.of(flags), Buffer.from(strings.join(''))]);
}

function encodeExecSetup(request: ExecRequest): Buffer {
  const user = Buffer.alloc(8);
  user.writeUInt32BE(request.uid, 0);
  user.writeUInt32BE(request.gid, 4);
  const secretRecords = encodeSecrets(request);
  const setup = Buffer.concat([
    ...(request.builtin ? [encodeRecord(ExecInput.builtin, request.builtin)] : []),
    ...request.argv.map((arg) => encodeRecord(ExecInput.arg, arg)),
    ...Object.entries(request.env)
      .filter(([name]) => !request.secretEnv?.has(name))
      .map(([name, value]) => encodeRecord(ExecInput.env, `${name}=${value}`)),
    encodeRecord(ExecInput.cwd, request.cwd),
    encodeRecord(ExecInput.user, user),
    ...secretRecords,
    ...(request.script
      ? [
          encodeRecord(ExecInput.scriptName, request.script.name),
          ...encodeChunked(ExecInput.scriptData, Buffer.from(request.script.content)),
        ]
      : []),
    encodeRecord(ExecInput.start, startFlags(request)),
  ]);
  for (const record of secretRecords) record.fill(0);
  return setup;
}

function startFlags({ stdin, terminal }: ExecRequest): Uint8Array {
  if (terminal) return Buffer.concat([Uint8Array.of(ExecFlag.terminal), encodeSize(terminal)]);
  return Uint8Array.of(stdin ? ExecFlag.stdin : 0);
}

function encodeSize({ rows, columns }: TerminalSize): Buffer {
  const size = Buffer.alloc(4);
  size.writeUInt16BE(rows, 0);
  size.writeUInt16BE(columns, 2);
  return size;
}

function encodeSecrets({ secretEnv, secretFiles }: ExecRequest): Buffer[] {
  const records: Buffer[] = [];
  for (const [name, value] of secretEnv ?? []) {
    const variable = Buffer.concat([Buffer.from(`${name}=`), value]);
    records.push(encodeRecord(ExecInput.env, variable));
    variable.fill(0);
  }
  for (const [name, value] of secretFiles ?? []) {
    records.push(encodeRecord(ExecInput.secretName, name), encodeRecord(ExecInput.secretData, value));
  }
  return records;
}

async function feed(stream: ClientHttp2Stream, source: AsyncIterable<Uint8Array>): Promise<void> {
  for await (const chunk of source) {
    for (const record of encodeChunked(ExecInput.stdin, chunk)) {
      if (stream.closed || stream.destroyed) return;
      if (!stream.write(record)) await drained(stream);
    }
  }
  if (!stream.closed && !stream.destroyed) stream.write(encodeRecord(ExecInput.stdin));
}

function nowNanoseconds(): Buffer {
  const time = Buffer.alloc(8);
  time.writeBigUInt64BE(BigInt(Date.now()) * 1_000_000n);
  return time;
}

function parseKeyValues(text: string): Readonly<Record<string, number>> {
  const values: Record<string, number> = Object.create(null);
  for (const line of text.split('\n').slice(0, 64)) {
    const match = /^([a-z_]{1,40})=(\d{1,15})$/.exec(line);
    if (match?.[1] && match[2]) values[match[1]] = Number(match[2]);
  }
  return values;
}

/** A line for the records of processes, and one for each processor; undefined if it is anything else. */
function parseAuditPosition(text: string): AuditPosition | undefined {
  const match = /^processes=(\d{1,15})\n((?:cpu=\d{1,15}\n)+)$/.exec(text);
  if (!match) return undefined;
  const cpus = [...(match[2] as string).matchAll(/\d+/g)].map(([digits]) => Number(digits));
  return { processes: Number(match[1]), cpus };
}
