/** A client of the host daemon: starts it on demand, asks it, and runs jobs through it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { drained } from '../core/drained.ts';
import { CtError, type ErrorReport, messageOf } from '../core/errors.ts';
import { buildId, entryPoint, launcherPath } from '../core/install.ts';
import { socketDirectory } from '../core/paths.ts';
import type { SecretValues } from '../job/secret-values.ts';
import { type Evidence, encodeEvidence } from '../protocol/evidence.ts';
import { MAX_JSON_BYTES, MAX_RECORD_BYTES } from '../protocol/limits.ts';
import { encodeChunked, encodeRecord, RecordDecoder } from '../protocol/records.ts';
import {
  ClientRecord,
  type JobRequest,
  type JobResult,
  type RunEvent,
  ServerRecord,
} from '../protocol/run.ts';
import { encodeSecret } from '../protocol/secret-record.ts';
import type { EvidenceDemands } from '../protocol/verify.ts';
import {
  API_GC,
  API_INFO,
  API_JOBS,
  API_POLICY,
  API_POLICY_CHECK,
  API_RUNS,
  API_SHUTDOWN,
  type HostInfo,
  JOB_PROTOCOL,
  type PolicyCheck,
  type PolicyInfo,
  type RetentionResult,
  type RunDetail,
  type RunInfo,
  SHELL_PROTOCOL,
} from './api.ts';
import type { ShellIo } from './shell-client.ts';

export type {
  HostInfo,
  PolicyCheck,
  PolicyInfo,
  RetentionResult,
  RunAuditInfo,
  RunDetail,
  RunInfo,
  RunStep,
} from './api.ts';
export type { ShellInput, ShellIo } from './shell-client.ts';

/** As an ES module import it would also load fetch and WebSocket, which cost every `ct run` 20 ms. */
const { Agent, request: httpRequest } = process.getBuiltinModule('node:http');

const START_TIMEOUT_MS = 20_000;
const ANSWER_TIMEOUT_MS = 10_000;
/** An event is split into records that are full but for the last. */
const MAX_EVENT_RECORDS = MAX_JSON_BYTES / MAX_RECORD_BYTES;
const CLOSING_BRACE = 0x7d;
/** From the end of a connection to a record of the run that says why. */
const RECORD_TIMEOUT_MS = 5000;
/**
 * The daemon lives long on about 10 MB of live objects. Left alone, V8 lets young garbage pile up to several times that
 * before it looks; and a daemon that needs this much old space has a leak.
 */
const DAEMON_HEAP = ['--max-semi-space-size=2', '--max-old-space-size=256'];
/** Artifacts that wait for the disk. */
const ARTIFACT_QUEUE_BYTES = 1024 * 1024;
/**
 * What the daemon takes from the environment of whoever starts it: its own settings, and those by which clients of this
 * machine are configured (src/egress/presets). What a project may have put among them, presets leave out.
 */
const DAEMON_VARIABLES =
  /^(HOME|TMPDIR|NODE_COMPILE_CACHE|CT_HOST_IDLE_SECONDS|CT_POLICY_DIR|CT_APT_SOURCES|XDG_CONFIG_(HOME|DIRS)|npm_(command|lifecycle_event)|npm_config_.*|NPM_CONFIG_.*|GIT_CONFIG_(GLOBAL|SYSTEM|NOSYSTEM)|PIP_.*|GO[A-Z]+|CARGO_.*|GIT_SSL_CAINFO|SSL_CERT_(FILE|DIR)|NODE_EXTRA_CA_CERTS|CURL_CA_BUNDLE|REQUESTS_CA_BUNDLE)$/;
/** ct-launcher: another daemon holds the lock. */
const EXIT_LOCK_HELD = 75;

export interface JobIo {
  /** The working tree as a tree stream; needed if the request says `sendsTree`. */
  readonly tree?: AsyncIterable<Uint8Array>;
  readonly stdin?: AsyncIterable<Uint8Array>;
  /** What policy or the job demands; read when it is asked for. Absent: there is none. */
  readonly evidence?: (demands: EvidenceDemands) => Promise<Evidence>;
  /** Those that steps of the request name; sent once the tree is in the VM and verified, past the daemon. */
  readonly secrets?: SecretValues;
  readonly onEvent: (event: RunEvent) => void;
  /** A promise holds the job back until it settles. */
  readonly onOutput: (stream: 'stdout' | 'stderr', step: number, bytes: Buffer) => void | Promise<void>;
  /** Takes the artifacts' tree stream, which is hostile. */
  readonly onArtifacts?: (stream: AsyncIterable<Buffer>) => Promise<void>;
  /** A step has failed, and the job goes on when this has settled; absent: at once. */
  readonly onShellOffer?: (run: string) => Promise<void>;
  /** Cancels the job: the VM is destroyed, the result says `cancelled`. */
  readonly signal: AbortSignal;
}

export interface HostClient {
  /** What the daemon said of itself when it was reached. */
  readonly greeting: HostInfo;
  info(): Promise<HostInfo>;
  /** Ends the daemon unless it runs jobs; false if it does. */
  shutdown(): Promise<boolean>;
  /** Runs one job to its end. Throws HOST_UNREACHABLE, LINK_DIED, or what `tree`, `stdin` and the callbacks throw. */
  runJob(request: JobRequest, io: JobIo): Promise<JobResult>;
  /** Newest first. */
  runs(which: 'all' | 'unended'): Promise<readonly RunInfo[]>;
  /**
   * `reference`: `latest`, an id, the name of a job (its latest run), or a beginning or end of an id that only one run
   * has. These throw RUN_NOT_FOUND or RUN_AMBIGUOUS.
   */
  run(reference: string): Promise<RunDetail>;
  /** Asks for the end of a run; does not wait for it. What has ended stays as it is. */
  cancelRun(reference: string): Promise<RunDetail>;
  /**
   * Runs a shell or another command in the VM of a run and returns its exit status. Throws SHELL_UNAVAILABLE, and
   * SHELL_ENDED when the run ends first.
   */
  shell(reference: string, io: ShellIo): Promise<number>;
  /** Removes record and log. Throws RUN_NOT_ENDED. */
  removeRun(reference: string): Promise<RunInfo>;
  /** Removes ended runs beyond `keep` or older; what is left out has the daemon's value. */
  retainRuns(limits: { readonly keep?: number; readonly maxAgeDays?: number }): Promise<RetentionResult>;
  policy(): Promise<PolicyInfo>;
  /** What policy would say to the job. Throws PRESET_UNCONFIGURED, POLICY_INVALID. */
  checkPolicy(request: JobRequest): Promise<PolicyCheck>;
  /** The lines of the decision log of a run (src/host/decision-log.ts), as they are. */
  decisions(reference: string): Promise<readonly unknown[]>;
}

/** Connects to the daemon of `ctHome`, and starts it if there is none or it is of another build. Throws HOST_UNREACHABLE. */
export async function connectHost(options: HostAddress): Promise<HostClient> {
  const socketPath = join(await socketDirectory(options.ctHome), 'host.sock');
  const client = new Client(socketPath, () => ensureRunning(client, socketPath, options));
  await ensureRunning(client, socketPath, options);
  return client;
}

interface HostAddress {
  readonly ctHome: string;
  readonly signal?: AbortSignal;
}

async function ensureRunning(
  client: Client,
  socketPath: string,
  { ctHome, signal }: HostAddress,
): Promise<void> {
  const running = await client.reach();
  if (running?.build === buildId()) return;
  if (running && !(await client.shutdown())) {
    throw new CtError(
      'HOST_UNREACHABLE',
      `a host daemon of another build (process ${running.pid}) is running jobs`,
      {
        hint: 'wait until they have ended, or end that process',
      },
    );
  }
  const deadline = performance.now() + START_TIMEOUT_MS;
  for (;;) {
    signal?.throwIfAborted();
    const failure = await startDaemon(ctHome, socketPath);
    const info = await client.reach();
    if (info?.build === buildId()) return;
    if (failure !== undefined || performance.now() > deadline) {
      throw new CtError(
        'HOST_UNREACHABLE',
        `the host daemon did not start${failure === undefined ? '' : `: ${failure}`}`,
        {
          hint: `its messages are in ${logPath(ctHome)}`,
        },
      );
    }
    await sleep(50); // another client is starting it, or an old one is leaving
  }
}

/** The daemon of `ctHome` if one runs; starts none. */
export async function findHost(ctHome: string): Promise<HostClient | undefined> {
  const client = new Client(join(await socketDirectory(ctHome), 'host.sock'));
  return (await client.reach()) ? client : undefined;
}

function logPath(ctHome: string): string {
  return join(ctHome, 'host.log');
}

interface Program {
  readonly file: string;
  readonly args: string[];
  readonly env: Record<string, string>;
}

function daemonProgram(ctHome: string, socketPath: string): Program {
  const env: Record<string, string> = {
    PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin',
    // Resolvers block threads that files need, too. Half of these are theirs (libuv), and a run has four at most (dialer.ts).
    UV_THREADPOOL_SIZE: '64',
  };
  for (const [name, value] of Object.entries(process.env)) {
    if (value !== undefined && DAEMON_VARIABLES.test(name)) env[name] = value;
  }
  const lock = ['exec', '--lock', join(ctHome, 'host.lock'), '--'];
  const node = [process.execPath, ...DAEMON_HEAP, '--disable-warning=ExperimentalWarning'];
  return { file: launcherPath, args: [...lock, ...node, entryPoint('host/daemon'), ctHome, socketPath], env };
}

/**
 * Turns this process into the daemon of `ctHome`, for a service manager: its messages go to stderr, and it stays until it
 * is told to leave, unless CT_HOST_IDLE_SECONDS says otherwise. SIGTERM lets jobs end, a second one does not. Returns only
 * by throwing: USAGE if there is a daemon already, HOST_UNREACHABLE if this process cannot become one.
 */
export async function becomeHost(ctHome: string): Promise<never> {
  const socketPath = join(await socketDirectory(ctHome), 'host.sock');
  const running = await new Client(socketPath).reach();
  if (running) {
    throw new CtError('USAGE', `a host daemon of ${ctHome} runs already (process ${running.pid})`, {
      hint: `let it end its jobs and leave: kill ${running.pid}`,
    });
  }
  const { file, args, env } = daemonProgram(ctHome, socketPath);
  process.chdir('/');
  try {
    process.execve?.(file, [file, ...args], { CT_HOST_IDLE_SECONDS: 'Infinity', ...env });
  } catch (error) {
    throw new CtError('HOST_UNREACHABLE', `the host daemon cannot be started: ${messageOf(error)}`, {
      cause: error,
    });
  }
  throw new CtError('PLATFORM_UNSUPPORTED', 'this Node.js cannot become another program (process.execve)');
}

/** Returns when the daemon listens or another one holds the lock; a text if it failed. */
async function startDaemon(ctHome: string, socketPath: string): Promise<string | undefined> {
  await mkdir(ctHome, { recursive: true, mode: 0o700 });
  const log = openSync(logPath(ctHome), 'w', 0o600);
  const { file, args, env } = daemonProgram(ctHome, socketPath);
  const child = spawn(file, args, { cwd: '/', detached: true, stdio: ['ignore', 'pipe', log], env });
  closeSync(log);
  const { stdout } = child;
  if (!stdout) return 'no output';
  try {
    const started = once(stdout, 'data').then(() => undefined);
    const exited = once(child, 'exit').then(([code]) =>
      code === EXIT_LOCK_HELD ? undefined : `exit code ${code}`,
    );
    const timeout = sleep(START_TIMEOUT_MS, 'no answer in time', { ref: false });
    return await Promise.race([started, exited, timeout]);
  } catch (error) {
    return messageOf(error);
  } finally {
    // Not earlier: with nothing else to wait for, this process would end in the middle of the wait above.
    child.unref();
    stdout.destroy();
  }
}

class Client implements HostClient {
  readonly #socketPath: string;
  readonly #start: (() => Promise<void>) | undefined;
  /** For each new connection the daemon has its launcher ask who is there: one after another they share one. */
  readonly #agent = new Agent({ keepAlive: true });
  #greeting: HostInfo | undefined;

  /** `start` sees to it that a daemon runs; without it one that has left stays away. */
  constructor(socketPath: string, start?: () => Promise<void>) {
    this.#socketPath = socketPath;
    this.#start = start;
  }

  get greeting(): HostInfo {
    if (!this.#greeting) throw new CtError('INTERNAL', 'the host daemon was not reached');
    return this.#greeting;
  }

  /** Undefined if nobody answers. */
  async reach(): Promise<HostInfo | undefined> {
    this.#greeting = await this.info().catch(() => undefined);
    return this.#greeting;
  }

  async info(): Promise<HostInfo> {
    const { status, body } = await this.#call('GET', API_INFO);
    if (status !== 200) throw new CtError('HOST_PROTOCOL', `the host daemon answered ${status}`);
    return JSON.parse(body) as HostInfo;
  }

  async shutdown(): Promise<boolean> {
    return (await this.#call('POST', API_SHUTDOWN)).status === 200;
  }

  async runJob(request: JobRequest, io: JobIo): Promise<JobResult> {
    const socket = await this.#openJob();
    const stream = new JobStream(socket, io);
    try {
      return await stream.run(request);
    } catch (error) {
      const died = error instanceof CtError && error.code === 'LINK_DIED';
      const end = died && stream.runId !== undefined ? await this.#recordedEnd(stream.runId) : undefined;
      // A success whose artifacts were lost on the way is none.
      if (!end || (end.outcome === 'success' && !stream.artifactsComplete)) throw error;
      return end;
    } finally {
      socket.destroy();
    }
  }

  /** A daemon that had nothing to do may have left since it was reached: while an image was built, for example. */
  async #openJob(): Promise<Socket> {
    try {
      return await this.#upgrade(API_JOBS, JOB_PROTOCOL);
    } catch (error) {
      // Nothing of a job has begun before the answer.
      const hasLeft = error instanceof CtError && error.code === 'HOST_UNREACHABLE';
      if (!this.#start || !hasLeft) throw error;
      await this.#start();
      return await this.#upgrade(API_JOBS, JOB_PROTOCOL);
    }
  }

  /** Why a run ended whose link process could not say so: the daemon knows. Undefined if it does not soon. */
  async #recordedEnd(run: string): Promise<JobResult | undefined> {
    for (const startedAt = performance.now(); performance.now() - startedAt < RECORD_TIMEOUT_MS; ) {
      const { outcome, exitCode, error } = await this.run(run).catch(() => ({}) as Partial<RunDetail>);
      if (outcome !== undefined && exitCode !== undefined) {
        return { outcome, exitCode, ...(error === undefined ? {} : { error }) };
      }
      await sleep(50);
    }
    return undefined;
  }

  async runs(which: 'all' | 'unended'): Promise<readonly RunInfo[]> {
    const { runs } = await this.#ask<{ runs: RunInfo[] }>(
      'GET',
      `${API_RUNS}${which === 'all' ? '?all=1' : ''}`,
    );
    return runs;
  }

  run(reference: string): Promise<RunDetail> {
    return this.#ask('GET', `${API_RUNS}/${encodeURIComponent(reference)}`);
  }

  cancelRun(reference: string): Promise<RunDetail> {
    return this.#ask('POST', `${API_RUNS}/${encodeURIComponent(reference)}/cancel`);
  }

  async shell(reference: string, io: ShellIo): Promise<number> {
    const { encodeShellRequest, serveShell } = await import('./shell-client.ts');
    const opening = encodeShellRequest(io.request);
    const socket = await this.#upgrade(`${API_RUNS}/${encodeURIComponent(reference)}/shell`, SHELL_PROTOCOL);
    try {
      return await serveShell(socket, opening, io);
    } finally {
      socket.destroy();
    }
  }

  removeRun(reference: string): Promise<RunInfo> {
    return this.#ask('DELETE', `${API_RUNS}/${encodeURIComponent(reference)}`);
  }

  retainRuns(limits: { readonly keep?: number; readonly maxAgeDays?: number }): Promise<RetentionResult> {
    const parameters = new URLSearchParams(
      Object.entries(limits).map(([name, value]): [string, string] => [name, String(value)]),
    );
    return this.#ask('POST', `${API_GC}?${parameters}`);
  }

  policy(): Promise<PolicyInfo> {
    return this.#ask('GET', API_POLICY);
  }

  checkPolicy(request: JobRequest): Promise<PolicyCheck> {
    return this.#ask('POST', API_POLICY_CHECK, JSON.stringify(request));
  }

  decisions(reference: string): Promise<readonly unknown[]> {
    return this.#ask('GET', `${API_RUNS}/${encodeURIComponent(reference)}/decisions`);
  }

  /** Throws the error that the daemon reports, or HOST_PROTOCOL. */
  async #ask<T>(method: string, path: string, body?: string): Promise<T> {
    return answerOf<T>(await this.#call(method, path, body));
  }

  async #call(method: string, path: string, body?: string): Promise<{ status: number; body: string }> {
    const { promise, resolve, reject } = Promise.withResolvers<{ status: number; body: string }>();
    const request = httpRequest({
      socketPath: this.#socketPath,
      method,
      path,
      timeout: ANSWER_TIMEOUT_MS,
      agent: this.#agent,
    });
    request.on('timeout', () => request.destroy(new Error('no answer in time')));
    request.on('error', (error) => reject(unreachable(error)));
    request.on('response', async (response) => {
      try {
        const chunks: Buffer[] = [];
        for await (const chunk of response) chunks.push(chunk as Buffer);
        resolve({ status: response.statusCode ?? 0, body: Buffer.concat(chunks).toString('utf8') });
      } catch (error) {
        reject(unreachable(error));
      }
    });
    request.end(body);
    return promise;
  }

  /** Throws the error that the daemon reports, or HOST_PROTOCOL. */
  #upgrade(path: string, protocol: string): Promise<Socket> {
    const { promise, resolve, reject } = Promise.withResolvers<Socket>();
    const request = httpRequest({
      socketPath: this.#socketPath,
      method: 'POST',
      path,
      agent: this.#agent,
      headers: { connection: 'Upgrade', upgrade: protocol },
    });
    request.on('error', (error) => reject(unreachable(error)));
    request.on('response', async (response) => {
      try {
        const chunks: Buffer[] = [];
        for await (const chunk of response) chunks.push(chunk as Buffer);
        answerOf({ status: response.statusCode ?? 0, body: Buffer.concat(chunks).toString('utf8') });
        throw new CtError('HOST_PROTOCOL', `the host daemon does not speak ${protocol}`);
      } catch (error) {
        reject(error instanceof CtError ? error : unreachable(error));
      }
    });
    request.on('upgrade', (_, socket: Socket, head) => {
      if (head.length > 0) socket.unshift(head);
      resolve(socket);
    });
    request.end();
    return promise;
  }
}

function answerOf<T>({ status, body }: { readonly status: number; readonly body: string }): T {
  let answer: unknown;
  try {
    answer = JSON.parse(body);
  } catch (error) {
    throw new CtError('HOST_PROTOCOL', `the host daemon answered ${status}`, {
      hint: 'it may be of another version; it is replaced when it runs no jobs',
      cause: error,
    });
  }
  if (status === 200) return answer as T;
  const { code, message, hint } = (answer as { readonly error: ErrorReport }).error;
  throw new CtError(code, message, { hint });
}

function connectionLost(cause?: unknown): CtError {
  return new CtError('LINK_DIED', 'the connection to the job ended before its result', {
    cause,
    hint: 'the host daemon or the link process of the VM was killed; the VM is gone with it. Run the job again',
  });
}

function unreachable(error: unknown): CtError {
  return new CtError('HOST_UNREACHABLE', `the host daemon cannot be reached: ${messageOf(error)}`, {
    cause: error,
  });
}

class JobStream {
  readonly #socket: Socket;
  readonly #io: JobIo;
  readonly #failed = Promise.withResolvers<never>();
  #runId: string | undefined;
  #expectsArtifacts = false;
  #feedsStdin = false;
  #artifacts: { readonly queue: PassThrough; readonly done: Promise<void> } | undefined;

  constructor(socket: Socket, io: JobIo) {
    this.#socket = socket;
    this.#io = io;
    this.#failed.promise.catch(() => {});
    socket.on('error', () => {}); // the reader sees the end of the stream
  }

  /** Known once the run is queued. */
  get runId(): string | undefined {
    return this.#runId;
  }

  async run(request: JobRequest): Promise<JobResult> {
    const { signal } = this.#io;
    this.#expectsArtifacts = request.artifacts.length > 0;
    const cancel = (): void => void this.#socket.write(encodeRecord(ClientRecord.cancel));
    for (const record of encodeChunked(ClientRecord.request, Buffer.from(JSON.stringify(request)))) {
      this.#socket.write(record);
    }
    this.#socket.write(encodeRecord(ClientRecord.requestEnd));
    if (signal.aborted) cancel();
    signal.addEventListener('abort', cancel, { once: true });
    try {
      return await Promise.race([this.#read(), this.#failed.promise]);
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  }

  async #read(): Promise<JobResult> {
    let records: [type: number, payload: Buffer][] = [];
    const decoder = new RecordDecoder((type, payload) => records.push([type, Buffer.from(payload)]));
    let json: Buffer[] = [];
    for await (const chunk of this.#chunks()) {
      decoder.push(chunk);
      const decoded = records;
      records = [];
      for (const [type, payload] of decoded) {
        if (type === ServerRecord.event) {
          json.push(payload);
          const mayGoOn = payload.length === MAX_RECORD_BYTES && json.length < MAX_EVENT_RECORDS;
          if (mayGoOn && payload.at(-1) !== CLOSING_BRACE) continue;
          const event = parseEvent(Buffer.concat(json), mayGoOn);
          if (!event) continue;
          json = [];
          if (event.type === 'done') {
            await this.#finishArtifacts(event.result);
            return event.result;
          }
          this.#event(event);
        } else if (type === ServerRecord.stdout || type === ServerRecord.stderr) {
          const name = type === ServerRecord.stdout ? 'stdout' : 'stderr';
          if (payload.length < 2) throw new CtError('HOST_PROTOCOL', 'a record of output is too short');
          await this.#io.onOutput(name, payload.readUInt16BE(0), payload.subarray(2));
        } else if (type === ServerRecord.artifacts) {
          await this.#artifact(payload);
        } else {
          throw new CtError('HOST_PROTOCOL', `unknown record type ${type} from the host daemon`);
        }
      }
    }
    throw connectionLost();
  }

  /** A connection that breaks is as good as one that ends: what is on record of the run decides. */
  async *#chunks(): AsyncGenerator<Buffer> {
    try {
      for await (const chunk of this.#socket) yield chunk as Buffer;
    } catch (error) {
      throw connectionLost(error);
    }
  }

  /** Whether everything that the job would give back has arrived. */
  get artifactsComplete(): boolean {
    return this.#artifacts === undefined ? !this.#expectsArtifacts : this.#artifacts.queue.writableEnded;
  }

  #event(event: RunEvent): void {
    if (event.type === 'queued') this.#runId = event.run;
    if (event.type === 'evidence') this.#sendEvidence(event.demands);
    if (event.type === 'claimed') this.#feed(ClientRecord.tree, this.#io.tree);
    if (event.type === 'secrets-wanted') this.#sendSecrets(this.#io.secrets);
    if (event.type === 'step-start' && !this.#feedsStdin) {
      // Not earlier: nobody reads it before, and what waits holds up what comes behind it.
      this.#feedsStdin = true;
      this.#feed(ClientRecord.stdin, this.#io.stdin);
    }
    this.#io.onEvent(event);
    if (event.type === 'shell-offer') void this.#offerShell();
  }

  async #offerShell(): Promise<void> {
    try {
      await this.#io.onShellOffer?.(this.#runId ?? '');
      await this.#write(encodeRecord(ClientRecord.shellDone));
    } catch (error) {
      this.#failed.reject(error);
    }
  }

  #sendEvidence(demands: EvidenceDemands): void {
    const send = async (): Promise<void> => {
      const evidence = (await this.#io.evidence?.(demands)) ?? { parts: [], dirty: [] };
      for (const record of encodeChunked(ClientRecord.evidence, encodeEvidence(evidence))) {
        await this.#write(record);
      }
      await this.#write(encodeRecord(ClientRecord.evidence));
    };
    send().catch((error) => this.#failed.reject(error));
  }

  /** Before anything that the job's flow control may hold back. */
  #sendSecrets(secrets: SecretValues | undefined): void {
    if (!secrets) return;
    for (const name of secrets.names()) {
      const payload = encodeSecret(name, secrets.get(name));
      const record = encodeRecord(ClientRecord.secret, payload);
      payload.fill(0);
      this.#socket.write(record, () => record.fill(0));
    }
    this.#socket.write(encodeRecord(ClientRecord.secretsEnd));
  }

  #feed(type: number, source: AsyncIterable<Uint8Array> | undefined): void {
    if (!source) return;
    const send = async (): Promise<void> => {
      for await (const chunk of source) {
        for (const record of encodeChunked(type, chunk)) await this.#write(record);
      }
      await this.#write(encodeRecord(type));
    };
    send().catch((error) => this.#failed.reject(error));
  }

  async #write(record: Buffer): Promise<void> {
    if (this.#socket.destroyed || this.#socket.write(record)) return;
    await drained(this.#socket);
  }

  /** Holds the job back while the receiver is behind. */
  async #artifact(payload: Buffer): Promise<void> {
    if (!this.#io.onArtifacts) return;
    if (!this.#artifacts) {
      const queue = new PassThrough({ highWaterMark: ARTIFACT_QUEUE_BYTES });
      const done = this.#io.onArtifacts(queue);
      done.catch((error) => {
        queue.destroy();
        this.#failed.reject(error);
      });
      this.#artifacts = { queue, done };
    }
    const { queue } = this.#artifacts;
    if (payload.length === 0) queue.end();
    else if (!queue.write(payload)) await drained(queue);
  }

  /** A job that ended while it sent artifacts leaves a stream that was cut short. */
  async #finishArtifacts(result: JobResult): Promise<void> {
    if (!this.#artifacts) return;
    this.#artifacts.queue.end();
    if (result.error) await this.#artifacts.done.catch(() => {});
    else await this.#artifacts.done;
  }
}

/** Comes from the link process, which has read what the guest sent. Undefined if `mayGoOn` and the end is missing. */
function parseEvent(bytes: Buffer, mayGoOn: boolean): RunEvent | undefined {
  let event: unknown;
  try {
    event = JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    if (mayGoOn) return undefined;
    throw new CtError('HOST_PROTOCOL', 'an event is not JSON, or too large', { cause: error });
  }
  const isEvent =
    typeof event === 'object' && event !== null && 'type' in event && typeof event.type === 'string';
  if (!isEvent) throw new CtError('HOST_PROTOCOL', 'an event is malformed');
  return event as RunEvent;
}
