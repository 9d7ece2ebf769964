/** HTTP on the daemon's socket: information, shutdown, and jobs as upgraded connections. */
import {
  createServer,
  type IncomingMessage,
  type Server,
  type ServerResponse,
  STATUS_CODES,
} from 'node:http';
import type { Socket } from 'node:net';
import { userInfo } from 'node:os';
import { errorReport } from '../core/errors.ts';
import { buildId } from '../core/install.ts';
import { encodeRecord } from '../protocol/records.ts';
import { ShellServerRecord } from '../protocol/shell.ts';
import { API_INFO, API_JOBS, API_SHUTDOWN, type HostInfo, JOB_PROTOCOL, SHELL_PROTOCOL } from './api.ts';
import { type JobsOptions, serveJob } from './jobs.ts';
import { linkIdentity } from './link-jail.ts';
import { admitPeer } from './peer.ts';
import { answerPolicy } from './policy-api.ts';
import type { ShellAcceptor } from './runs.ts';
import { type Answer, answerRuns, errorAnswer, shellReference } from './runs-api.ts';

export interface HostServerOptions extends JobsOptions {
  readonly ctHome: string;
  /** User that may connect, besides root; that of this process if absent. */
  readonly ownUid?: number;
  /** Called whenever the daemon becomes busy or idle. */
  readonly onActivity: (busy: boolean) => void;
  readonly onShutdown: () => void;
}

export class HostServer {
  readonly http: Server;
  readonly #options: HostServerOptions;
  readonly #jobs = new Set<Promise<unknown>>();
  /** Who is at the other end of a connection does not change: it is asked once. */
  readonly #peers = new WeakMap<Socket, Promise<number>>();

  constructor(options: HostServerOptions) {
    this.#options = options;
    this.http = createServer(async (request, response) => {
      try {
        const uid = await this.#admit(request.socket);
        this.#handle(request, response, uid);
      } catch (error) {
        const { status, body } = errorAnswer(error);
        response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
      }
    });
    this.http.on('upgrade', async (request, socket: Socket, head) => {
      socket.on('error', () => {});
      try {
        const uid = await this.#admit(socket);
        this.#upgrade(request, socket, head, uid);
      } catch (error) {
        refuse(socket, errorAnswer(error));
      }
    });
  }

  #admit(socket: Socket): Promise<number> {
    let peer = this.#peers.get(socket);
    if (!peer) {
      peer = admitPeer(socket, this.#options.ownUid ?? process.getuid?.() ?? 0);
      this.#peers.set(socket, peer);
    }
    return peer;
  }

  /** Resolves when no job is left. */
  async drained(): Promise<void> {
    while (this.#jobs.size > 0) await Promise.allSettled(this.#jobs);
  }

  #info(): HostInfo {
    const { machines, capacity, ctHome } = this.#options;
    const { accelerator } = machines;
    return {
      pid: process.pid,
      build: buildId(),
      ctHome,
      ...(accelerator ? { accelerator } : {}),
      ...capacity.total,
      runningJobs: this.#jobs.size - capacity.waiting,
      waitingJobs: capacity.waiting,
      templates: machines.templateCount,
      warm: machines.warmCount,
      warming: machines.isWarming,
      cgroups: machines.cgroups,
      link: linkIdentity(),
    };
  }

  #handle(request: IncomingMessage, response: ServerResponse, uid: number): void {
    const { method, url } = request;
    if (method === 'GET' && url === API_INFO) {
      response.setHeader('content-type', 'application/json').end(JSON.stringify(this.#info()));
    } else if (method === 'POST' && url === API_SHUTDOWN) {
      if (this.#jobs.size > 0) {
        response.writeHead(409).end();
      } else {
        response.end();
        this.#options.onShutdown();
      }
    } else {
      void this.#answer(request, uid).then((answer) => {
        response.writeHead(answer?.status ?? 404, { 'content-type': 'application/json' });
        response.end(answer && (answer.json ?? JSON.stringify(answer.body)));
      });
    }
  }

  async #answer(request: IncomingMessage, uid: number): Promise<Answer | undefined> {
    const { method = '', url = '' } = request;
    return (
      (await answerPolicy(method, url, request, { user: userName(uid) }, this.#options)) ??
      (await answerRuns(method, url, this.#options.runs))
    );
  }

  #upgrade(request: IncomingMessage, socket: Socket, head: Buffer, uid: number): void {
    const { method, url } = request;
    const { upgrade } = request.headers;
    const reference = upgrade === SHELL_PROTOCOL ? shellReference(method ?? '', url ?? '') : undefined;
    if (reference !== undefined) {
      this.#shell(reference, socket, head, uid);
      return;
    }
    if (method !== 'POST' || url !== API_JOBS || upgrade !== JOB_PROTOCOL) {
      socket.end('HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n');
      return;
    }
    socket.setTimeout(0);
    socket.write(switching(JOB_PROTOCOL));
    if (head.length > 0) socket.unshift(head);
    const job = serveJob(socket, { user: userName(uid) }, this.#options).finally(() => {
      this.#jobs.delete(job);
      this.#options.onActivity(this.#jobs.size > 0);
    });
    this.#jobs.add(job);
    this.#options.onActivity(true);
  }

  /** The link process of the run gets the connection; what happens on it afterwards keeps nothing here busy. */
  #shell(reference: string, socket: Socket, head: Buffer, uid: number): void {
    let accept: ShellAcceptor;
    try {
      accept = this.#options.runs.shellOf(reference);
    } catch (error) {
      refuse(socket, errorAnswer(error));
      return;
    }
    socket.setTimeout(0);
    // What is not written by then would be lost: the connection leaves this process.
    socket.write(switching(SHELL_PROTOCOL), () => {
      socket.pause();
      const unread = (socket.read() as Buffer | null) ?? Buffer.alloc(0);
      try {
        accept(socket, Buffer.concat([head, unread]), uid);
      } catch (error) {
        socket.end(encodeRecord(ShellServerRecord.end, JSON.stringify({ error: errorReport(error) })));
      }
    });
  }
}

/** Only root and the daemon's own user get this far. */
function userName(uid: number): string {
  if (uid === 0) return 'root';
  try {
    const own = userInfo();
    if (own.uid === uid) return own.username;
  } catch {
    // it has no name on this machine
  }
  return String(uid);
}

function switching(protocol: string): string {
  return `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${protocol}\r\n\r\n`;
}

/** As an ordinary answer, on a connection that asked to become something else. */
function refuse(socket: Socket, { status, body }: Answer): void {
  const json = JSON.stringify(body);
  const head = [
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}`,
    'Content-Type: application/json',
    `Content-Length: ${Buffer.byteLength(json)}`,
    'Connection: close',
  ];
  socket.end(`${head.join('\r\n')}\r\n\r\n${json}`);
}
