/** One job on one client connection: read the request, wait for capacity, claim, run, destroy. */
import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { withDeadline } from '../core/deadline.ts';
import { CtError, errorReport, toCtError } from '../core/errors.ts';
import { MAX_JSON_BYTES } from '../protocol/limits.ts';
import { parseJobRequest } from '../protocol/parse-job-request.ts';
import { encodeChunked, RecordDecoder } from '../protocol/records.ts';
import {
  ClientRecord,
  type JobRequest,
  type JobResult,
  type RunEvent,
  ServerRecord,
} from '../protocol/run.ts';
import type { MachineShape } from '../vmm/driver.ts';
import { type Capacity, VM_OVERHEAD_MIB } from './capacity.ts';
import type { Machines } from './machines.ts';

const REQUEST_TIMEOUT_MS = 30_000;
/** Guest memory comes in classes, so that few templates serve many jobs. */
const MEMORY_CLASSES_MIB = [256, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384];
const MEMORY_STEP_MIB = 8192;

export interface JobsOptions {
  readonly machines: Machines;
  readonly capacity: Capacity;
}

/** Serves one job; never rejects. Returns when nothing of its VM is left. */
export async function serveJob(socket: Socket, options: JobsOptions): Promise<JobResult | undefined> {
  const connection = new JobConnection(socket);
  try {
    const request = await withDeadline(
      connection.request,
      REQUEST_TIMEOUT_MS,
      () => new CtError('HOST_PROTOCOL', 'the client did not send its request in time'),
    );
    return await runAdmitted(connection, request, options);
  } catch (error) {
    const failure = toCtError(error);
    const outcome = failure.kind === 'cancelled' ? 'cancelled' : 'infrastructure';
    const result: JobResult = { outcome, exitCode: failure.exitStatus, error: errorReport(failure) };
    connection.finish(result);
    return result;
  }
}

async function runAdmitted(
  connection: JobConnection,
  request: JobRequest,
  { machines, capacity }: JobsOptions,
): Promise<JobResult> {
  const run = newRunId();
  connection.event({ type: 'queued', run });
  const shape = shapeOf(request);
  const amount = { cpus: shape.cpus, memoryMib: shape.memoryMib + VM_OVERHEAD_MIB };
  using _taken = await capacity.take(amount, connection.signal, () => {
    connection.event({ type: 'queued', run, reason: 'other jobs use the cpu or memory it needs' });
  });
  const claim = await machines.claim(shape, (what) => connection.event({ type: 'preparing', what }));
  if (connection.signal.aborted) {
    await claim.machine.destroy();
    throw connection.signal.reason;
  }
  const claimed: RunEvent = {
    type: 'claimed',
    source: claim.source,
    accelerator: claim.driver.accelerator,
    vmm: `${claim.driver.name} ${claim.driver.version}`,
    claimMs: claim.claimMs,
  };
  const { socket, pending } = connection.release();
  return await claim.machine.runJob({ run, request, claimed, socket, pending });
}

function shapeOf(request: JobRequest): MachineShape {
  const memoryMib =
    MEMORY_CLASSES_MIB.find((size) => size >= request.memoryMib) ??
    Math.ceil(request.memoryMib / MEMORY_STEP_MIB) * MEMORY_STEP_MIB;
  return { image: request.image, cpus: request.cpus, memoryMib, volumeMib: request.diskMib };
}

/** 50 bits of time and chance as 10 lower-case characters without look-alikes; sorts by time within one second. */
function newRunId(): string {
  const alphabet = '0123456789abcdefghjkmnpqrstvwxyz';
  let value =
    (BigInt(Math.floor(Date.now() / 1000)) << 20n) | BigInt(randomBytes(3).readUIntBE(0, 3) & 0xfffff);
  let id = '';
  for (let i = 0; i < 10; i++) {
    id = alphabet[Number(value & 31n)] + id;
    value >>= 5n;
  }
  return id;
}

/** The daemon's hold on a client connection, until the link process of the claimed VM takes it over. */
class JobConnection {
  readonly request: Promise<JobRequest>;
  readonly #socket: Socket;
  readonly #decoder: RecordDecoder;
  readonly #controller = new AbortController();
  readonly #received = Promise.withResolvers<JobRequest>();
  readonly #json: Buffer[] = [];
  #jsonBytes = 0;
  #released = false;

  constructor(socket: Socket) {
    this.#socket = socket;
    this.request = this.#received.promise;
    this.request.catch(() => {});
    this.#decoder = new RecordDecoder((type, payload) => this.#record(type, payload));
    socket.on('data', this.#onData);
    socket.on('close', this.#onClose);
    socket.on('error', this.#onClose);
    socket.on('end', this.#onClose);
    socket.resume();
  }

  /** Aborted when the client cancels or goes away. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  event(event: RunEvent): void {
    if (this.#released || this.#socket.destroyed) return;
    for (const record of encodeChunked(ServerRecord.event, Buffer.from(JSON.stringify(event)))) {
      this.#socket.write(record);
    }
  }

  /** Gives the connection away; whatever the client sent and nobody used goes with it. */
  release(): { socket: Socket; pending: Buffer } {
    const socket = this.#socket;
    socket
      .off('data', this.#onData)
      .off('close', this.#onClose)
      .off('error', this.#onClose)
      .off('end', this.#onClose);
    socket.on('error', () => {});
    socket.pause();
    this.#released = true;
    const unread = (socket.read() as Buffer | null) ?? Buffer.alloc(0);
    return { socket, pending: Buffer.concat([this.#decoder.takePending(), unread]) };
  }

  /** Reports an end that no link process can report. */
  finish(result: JobResult): void {
    if (this.#released) return;
    this.event({ type: 'done', result });
    this.#socket.end();
  }

  readonly #onData = (chunk: Buffer): void => {
    try {
      this.#decoder.push(chunk);
    } catch (error) {
      this.#stop(toCtError(error));
    }
  };

  readonly #onClose = (): void => this.#stop(new CtError('CANCELLED', 'the client went away'));

  #record(type: number, payload: Buffer): void {
    if (type === ClientRecord.request) {
      this.#jsonBytes += payload.length;
      if (this.#jsonBytes > MAX_JSON_BYTES)
        throw new CtError('HOST_PROTOCOL', 'the job request is too large');
      this.#json.push(Buffer.from(payload));
    } else if (type === ClientRecord.requestEnd) {
      this.#received.resolve(parseJobRequest(parseJson(Buffer.concat(this.#json))));
    } else if (type === ClientRecord.cancel) {
      this.#stop(new CtError('CANCELLED', 'the run was cancelled'));
    } else {
      throw new CtError('HOST_PROTOCOL', `record type ${type} came before a VM was claimed`);
    }
  }

  #stop(reason: CtError): void {
    this.#received.reject(reason);
    this.#controller.abort(reason);
  }
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw new CtError('HOST_PROTOCOL', 'the job request is not JSON', { cause: error });
  }
}
