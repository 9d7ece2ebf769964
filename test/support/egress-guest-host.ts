/**
 * A host daemon in the test's own process, whose VMs are guests that the test plays: server, jobs, gate and link processes
 * are the real ones. The VMM of each is a process that only waits to be killed.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2 } from 'node:http2';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Alert } from '../../src/audit/alert.ts';
import { socketDirectory } from '../../src/core/paths.ts';
import { PresetResolver } from '../../src/egress/presets/index.ts';
import type { HostClient } from '../../src/host/client.ts';
import { Link, type LinkOptions } from '../../src/host/link.ts';
import { Machine } from '../../src/host/machine.ts';
import type { Claim, Machines } from '../../src/host/machines.ts';
import type { ImageManifest } from '../../src/image/manifest.ts';
import type { AuditMode } from '../../src/protocol/audit.ts';
import type { JobRequest, JobResult, RunEvent } from '../../src/protocol/run.ts';
import type { Vm, VmExit } from '../../src/vmm/driver.ts';
import { FakeGuest } from './fake-guest.ts';
import { scratchDirectory } from './scratch.ts';
import { servedHost } from './served-host.ts';

const HELLO_BYTES = 40;
const image = { name: 'fake', user: { name: 'job', uid: 1000, gid: 1000, home: '/home/job' }, env: {} };

/** What the test plays. */
export class PlayedGuest {
  readonly control: FakeGuest;
  readonly exited: Promise<VmExit>;
  readonly linkPid: number;
  /** Unread. */
  readonly audit: Socket;
  readonly vmPid: number;
  readonly #egress: Socket;
  #http2: ClientHttp2Session | undefined;

  constructor(sockets: { control: Socket; egress: Socket; audit: Socket }, vm: Vm, linkPid: number) {
    this.control = new FakeGuest(sockets.control);
    this.#egress = sockets.egress.on('error', () => {});
    this.audit = sockets.audit.on('error', () => {});
    this.exited = vm.exited;
    this.vmPid = vm.pid;
    this.linkPid = linkPid;
  }

  /** The egress session, once the host has begun it. */
  async egress(): Promise<ClientHttp2Session> {
    if (this.#http2) return this.#http2;
    let seen = Buffer.alloc(0);
    while (seen.length < HELLO_BYTES) {
      const chunk = this.#egress.read() as Buffer | null;
      if (chunk) seen = Buffer.concat([seen, chunk]);
      else await once(this.#egress, 'readable');
    }
    this.#egress.unshift(seen.subarray(HELLO_BYTES));
    this.#egress.write(seen.subarray(0, HELLO_BYTES));
    this.#http2 = connectHttp2('http://host', { createConnection: () => this.#egress });
    this.#http2.on('error', () => {});
    return this.#http2;
  }

  /** A connection to `authority`, and the status that the host answers; undefined if it resets the stream. */
  async connect(
    authority: string,
  ): Promise<{ readonly status: number | undefined; readonly stream: ClientHttp2Stream }> {
    const session = await this.egress();
    const stream = session.request({ ':method': 'CONNECT', ':authority': authority }, { endStream: false });
    stream.on('error', () => {});
    const answered = once(stream, 'response').then(([headers]) => Number(headers[':status']));
    const status = await Promise.race([answered, once(stream, 'close').then(() => undefined)]);
    return { status, stream };
  }

  /** The first address of `name` (type A), or the response code of the refusal. */
  async resolve(name: string): Promise<string | number> {
    const session = await this.egress();
    const stream = session.request({ ':method': 'POST', ':path': '/v1/dns' });
    stream.on('error', () => {});
    stream.end(question(name));
    const chunks: Buffer[] = [];
    for await (const chunk of stream) chunks.push(chunk as Buffer);
    const answer = Buffer.concat(chunks);
    const code = answer.readUInt8(3) & 15;
    if (code !== 0 || answer.readUInt16BE(6) === 0) return code;
    return [...answer.subarray(-4)].join('.');
  }
}

/** RFC 1035: one question, class IN, type A. */
function question(name: string): Buffer {
  const labels = name.split('.').map((label) => Buffer.concat([Buffer.of(label.length), Buffer.from(label)]));
  return Buffer.concat([Buffer.from('123401000001000000000000', 'hex'), ...labels, Buffer.of(0, 0, 1, 0, 1)]);
}

export interface PlayedRun {
  readonly result: Promise<JobResult>;
  readonly events: RunEvent[];
  readonly guest: PlayedGuest;
}

export interface PlayedHost extends AsyncDisposable {
  readonly client: HostClient;
  readonly ctHome: string;
  readonly alerts: Alert[];
  /** Starts a job and plays its guest until its first step runs. */
  start(request: Partial<JobRequest>): Promise<PlayedRun>;
  /** Replaces the key `egress` of the policy data. */
  setPolicy(egress: string): void;
}

/** `egress`: that key of the policy data, in one line of YAML. */
export async function playedHost(
  egress: string,
  options: { readonly link?: LinkOptions; readonly audit?: AuditMode } = {},
): Promise<PlayedHost> {
  const cleanup = new AsyncDisposableStack();
  const scratch = cleanup.use(scratchDirectory());
  chmodSync(scratch.path, 0o755); // link processes are other users
  const ctHome = join(scratch.path, 'home');
  mkdirSync(join(ctHome, 'policy'), { recursive: true, mode: 0o755 });
  const setPolicy = (text: string): void =>
    writeFileSync(
      join(ctHome, 'policy/data.yml'),
      `version: 1
egress: ${text}
admission: {trust: [local], repositories: ['*'], refs: ['*'], actors: ['*'], images: ['*']}
limits: {cpus: 4, memory: 4G, disk: 4G, timeout: 1h}
audit: ${options.audit ?? 'off'}
`,
      { mode: 0o600 },
    );
  setPolicy(egress);
  const sockets = await socketDirectory(ctHome);
  cleanup.defer(() => rmSync(sockets, { recursive: true, force: true }));
  const pair = await socketPairs(join(sockets, 'p.sock'), cleanup);
  const guests: PlayedGuest[] = [];

  const claim = async (): Promise<Claim> => {
    const link = new Link({ scratchDirectory: scratch.path, ...options.link });
    const [control, guestControl] = await pair();
    const [channel, guestEgress] = await pair();
    const [audit, guestAudit] = await pair();
    const vm = waitingVm(control, channel, audit);
    const guest = new PlayedGuest(
      { control: guestControl, egress: guestEgress, audit: guestAudit },
      vm,
      link.pid,
    );
    // As of a VM that has ended.
    void vm.exited.then(() => {
      guestControl.destroy();
      guestAudit.destroy();
    });
    cleanup.defer(async () => {
      await vm.destroy();
      guestControl.destroy();
      guestEgress.destroy();
      guestAudit.destroy();
    });
    const opening = Machine.open({
      link,
      startVm: () => vm,
      image: image as unknown as ImageManifest,
      volumeCipher: 'none',
    });
    await guest.control.startSession();
    await guest.control.answerIdentity();
    const machine = await opening;
    guests.push(guest);
    const driver = { name: 'qemu', version: '0', accelerator: 'tcg' } as Claim['driver'];
    return { machine, source: 'clone', driver, claimMs: 0 };
  };

  const resolver = new PresetResolver({});
  const presets = {
    resolve: (names: readonly string[]) => resolver.resolve(names),
    // Nothing to be written into the guest: the first process is the first step.
    guestSettings: async () => ({ settings: { env: {} }, notices: [] }),
  };
  const machines = { claim, imageName: async () => 'fake', templateCount: 0 } as unknown as Machines;
  const { client, alerts } = cleanup.use(await servedHost({ ctHome, machines, presets, sockets }));
  return {
    client,
    ctHome,
    alerts,
    setPolicy,
    start: async (request) => {
      const events: RunEvent[] = [];
      const result = client.runJob(
        {
          name: 'job',
          image: `sha256:${'1'.repeat(64)}`,
          cpus: 1,
          memoryMib: 256,
          diskMib: 64,
          env: {},
          steps: [{ name: 'step', argv: ['true'], env: {}, workingDirectory: '.', condition: 'success' }],
          timeoutMs: 30_000,
          artifacts: [],
          sendsTree: false,
          ...request,
        },
        {
          onEvent: (event) => void events.push(event),
          onOutput: () => {},
          signal: new AbortController().signal,
        },
      );
      const before = guests.length;
      const early = result.then(
        () => true,
        () => true,
      );
      while (guests.length === before) {
        const isOver = await Promise.race([early, new Promise<false>((go) => setTimeout(go, 5, false))]);
        if (isOver) throw Object.assign(new Error('the job did not start'), { result: await result });
      }
      return { result, events, guest: guests.at(-1) as PlayedGuest };
    },
    [Symbol.asyncDispose]: () => cleanup.disposeAsync(),
  };
}

/** Makes connected pairs: the daemon's end, unread, and the guest's. */
async function socketPairs(
  path: string,
  cleanup: AsyncDisposableStack,
): Promise<() => Promise<[Socket, Socket]>> {
  const server = createServer({ pauseOnConnect: true }).listen(path);
  await once(server, 'listening');
  cleanup.defer(() => void server.close());
  return async () => {
    const accepted = once(server, 'connection') as Promise<[Socket]>;
    const guest = connect(path);
    const [host] = await accepted;
    return [host.on('error', () => {}), guest.on('error', () => {})];
  };
}

function waitingVm(control: Socket, egress: Socket, audit: Socket): Vm {
  const child = spawn('sleep', ['600'], { stdio: 'ignore', env: { PATH: '/usr/bin:/bin' } });
  const exited = new Promise<VmExit>((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }));
  });
  return {
    pid: child.pid ?? -1,
    control,
    egress,
    audit,
    cgroupDirectories: [],
    exited,
    diagnostics: () => '',
    destroy: async () => {
      child.kill('SIGKILL');
      control.destroy();
      egress.destroy();
      audit.destroy();
      await exited;
    },
  };
}
