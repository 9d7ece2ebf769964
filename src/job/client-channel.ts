/**
 * The link process's end of the connection to the client (src/protocol/run.ts): the client belongs to the user whose
 * job this is, so its bytes are checked but not feared; a slow client holds the guest back.
 */
import type { Socket } from 'node:net';
import { drained } from '../core/drained.ts';
import { CtError } from '../core/errors.ts';
import { encodeChunked, encodeRecord, RecordDecoder } from '../protocol/records.ts';
import { ClientRecord, type JobResult, type RunEvent, ServerRecord } from '../protocol/run.ts';
import { ByteQueue } from './byte-queue.ts';
import type { OutputMask } from './output-mask.ts';
import { SecretIntake } from './secret-intake.ts';

/** A client that stopped reading and sends on is paused; this much waits in memory. */
const MAX_QUEUED_BYTES = 1024 * 1024;

/** Of one record, behind the index of the step. Masking gives out what it held back in one piece, however large. */
const MAX_OUTPUT_BYTES = 32_768;

/** Who else hears what the client is told, before the client does and whether or not it is still there. */
export interface Journal {
  event(event: RunEvent): void;
  output(stream: 'stdout' | 'stderr', step: number, bytes: Buffer): void;
}

export class ClientChannel {
  readonly #socket: Socket;
  readonly #journal: Journal | undefined;
  readonly #tree: ByteQueue;
  readonly #stdin: ByteQueue;
  readonly #secrets = new SecretIntake();
  /** Every output and event passes through it before anybody else sees it. */
  #mask: OutputMask | undefined;
  readonly #cancelled = Promise.withResolvers<CtError>();
  readonly #shellDone = Promise.withResolvers<void>();
  #onSignal: (signal: number) => void = () => {};
  #onOutput: (bytes: Buffer) => void = () => {};
  #gone = false;

  /** `pending`: bytes that were read from the socket before this side got it. */
  constructor(socket: Socket, pending: Buffer, journal?: Journal) {
    this.#socket = socket;
    this.#journal = journal;
    const flow = (): void => {
      if (this.#tree.bytes + this.#stdin.bytes < MAX_QUEUED_BYTES) socket.resume();
      else socket.pause();
    };
    this.#tree = new ByteQueue(flow);
    this.#stdin = new ByteQueue(flow);
    const decoder = new RecordDecoder((type, payload) => this.#record(type, payload));
    const onData = (chunk: Buffer): void => {
      try {
        decoder.push(chunk);
        flow();
      } catch (error) {
        this.#cancelled.resolve(
          new CtError('HOST_PROTOCOL', 'the client sent something malformed', { cause: error }),
        );
        socket.destroy();
      }
    };
    socket.on('data', onData);
    socket.on('error', () => {});
    socket.on('close', () => this.#leave('the client went away'));
    socket.on('end', () => this.#leave('the client went away'));
    if (pending.length > 0) onData(pending);
  }

  /** Resolves with the reason when the client cancels or goes away. */
  get cancelled(): Promise<CtError> {
    return this.#cancelled.promise;
  }

  /** Resolves when the client has had enough of the shell that it was offered. */
  get shellDone(): Promise<void> {
    return this.#shellDone.promise;
  }

  get tree(): AsyncIterable<Buffer> {
    return this.#tree;
  }

  get stdin(): AsyncIterable<Buffer> {
    return this.#stdin;
  }

  get secrets(): SecretIntake {
    return this.#secrets;
  }

  /** From now on what goes out is masked. */
  maskWith(create: (emit: OutputMask['output']) => OutputMask): void {
    this.#mask = create((stream, step, bytes) => this.#output(stream, step, bytes));
  }

  /** To be called when a step has written its last byte: masking may hold some back. */
  async endOutput(): Promise<void> {
    await this.#mask?.endStep();
  }

  masked(result: JobResult): JobResult {
    return this.#mask?.result(result) ?? result;
  }

  set onSignal(handler: (signal: number) => void) {
    this.#onSignal = handler;
  }

  /** Hears what steps write, as it goes out: masked. */
  set onOutput(handler: (bytes: Buffer) => void) {
    this.#onOutput = handler;
  }

  /** Ends the job from this side, for the reason given. */
  cancel(reason: CtError): void {
    this.#cancelled.resolve(reason);
  }

  event(unmasked: RunEvent): Promise<void> {
    const event = this.#mask?.event(unmasked) ?? unmasked;
    this.#journal?.event(event);
    return this.#write([...encodeChunked(ServerRecord.event, Buffer.from(JSON.stringify(event)))]);
  }

  output(stream: 'stdout' | 'stderr', step: number, bytes: Buffer): Promise<void> {
    return this.#mask?.output(stream, step, bytes) ?? this.#output(stream, step, bytes);
  }

  #output(stream: 'stdout' | 'stderr', step: number, bytes: Buffer): Promise<void> {
    this.#journal?.output(stream, step, bytes);
    this.#onOutput(bytes);
    const index = Buffer.alloc(2);
    index.writeUInt16BE(step);
    const type = stream === 'stdout' ? ServerRecord.stdout : ServerRecord.stderr;
    const parts: Buffer[] = [];
    for (let at = 0; at < bytes.length; at += MAX_OUTPUT_BYTES) {
      parts.push(encodeRecord(type, Buffer.concat([index, bytes.subarray(at, at + MAX_OUTPUT_BYTES)])));
    }
    return this.#write(parts);
  }

  artifacts(bytes: Buffer): Promise<void> {
    return this.#write([...encodeChunked(ServerRecord.artifacts, bytes)]);
  }

  endArtifacts(): Promise<void> {
    return this.#write([encodeRecord(ServerRecord.artifacts)]);
  }

  /** Flushes and closes the connection. */
  async end(): Promise<void> {
    this.#mask?.[Symbol.dispose]();
    if (this.#gone) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#socket.once('close', resolve);
    this.#socket.end(() => this.#socket.destroySoon());
    await promise;
  }

  #record(type: number, payload: Buffer): void {
    if (type === ClientRecord.tree) this.#tree.push(payload);
    else if (type === ClientRecord.stdin) this.#stdin.push(payload);
    else if (type === ClientRecord.signal && payload.length === 1) this.#onSignal(payload.readUInt8(0));
    else if (type === ClientRecord.cancel) {
      this.#cancelled.resolve(new CtError('CANCELLED', 'the run was cancelled'));
    } else if (type === ClientRecord.secret) this.#secrets.take(payload);
    else if (type === ClientRecord.secretsEnd) this.#secrets.end();
    else if (type === ClientRecord.shellDone) this.#shellDone.resolve();
    else throw new CtError('HOST_PROTOCOL', `unexpected record type ${type} from the client`);
  }

  #leave(why: string): void {
    this.#gone = true;
    this.#cancelled.resolve(new CtError('CANCELLED', why));
    this.#secrets.fail(new CtError('CANCELLED', why));
    this.#tree.fail(new CtError('CANCELLED', why));
    this.#stdin.fail(new CtError('CANCELLED', why));
  }

  async #write(records: readonly Buffer[]): Promise<void> {
    if (this.#gone) return;
    if (this.#socket.write(records.length === 1 ? (records[0] as Buffer) : Buffer.concat(records))) return;
    await drained(this.#socket);
  }
}
