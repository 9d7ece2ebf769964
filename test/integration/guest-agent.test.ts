/**
 * The guest agent's link, exec and tree code, built as an ordinary program (guest-agent/test/serve.c) and driven
 * over a socketpair the way the host drives a VM over its port: handshake, HTTP/2, records.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants } from 'node:http2';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import {
  CodeRecord,
  ExecFlag,
  ExecInput,
  ExecOutput,
  GuestPath,
  HELLO_MAGIC,
  HELLO_NONCE_BYTES,
  IdentityRecord,
  Phase,
  READY_LINE,
} from '../../src/protocol/guest-link.ts';
import { encodeChunked, encodeRecord, RecordDecoder } from '../../src/protocol/records.ts';

const SOURCES = fileURLToPath(new URL('../../guest-agent/', import.meta.url));
const BUILD = fileURLToPath(new URL('../../build/guest-agent/', import.meta.url));
/** Generous: the machine may be busy. A test that waits for it has failed. */
const DEADLINE_MS = 30_000;

let scratch: string;

before(() => {
  execFileSync('make', ['-s', '-C', SOURCES, `OUT=${BUILD}`, 'serve'], { stdio: 'pipe' });
  scratch = mkdtempSync(join(tmpdir(), 'ct-guest-agent-'));
});

after(() => rmSync(scratch, { recursive: true, force: true }));

/** One running guest agent, its session open. */
class Guest implements AsyncDisposable {
  readonly child: ChildProcess;
  readonly socket: Socket;
  readonly scripts: string;
  session!: ClientHttp2Session;
  stderr = '';

  constructor(build: 'test' | 'sanitized' = 'sanitized') {
    this.scripts = mkdtempSync(join(scratch, 'steps-'));
    this.child = spawn(join(BUILD, build, 'serve'), [this.scripts], {
      stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
      env: {},
    });
    this.socket = this.child.stdio[3] as Socket;
    this.socket.on('error', () => {});
    this.child.stderr?.on('data', (chunk: Buffer) => {
      this.stderr += chunk.toString();
    });
  }

  static async open(build?: 'test' | 'sanitized'): Promise<Guest> {
    const guest = new Guest(build);
    await guest.shakeHands();
    const reply = await guest.request('PUT', GuestPath.identity, identityRecords());
    assert.equal(reply.status, 200, reply.text);
    return guest;
  }

  /** `noise` goes onto the wire before the hello, as a snapshot may leave it. */
  async shakeHands(noise: Buffer = Buffer.alloc(0)): Promise<void> {
    const hello = Buffer.concat([Buffer.from(HELLO_MAGIC), randomBytes(HELLO_NONCE_BYTES)]);
    await readUntil(this.socket, Buffer.from(READY_LINE));
    this.socket.write(Buffer.concat([noise, hello]));
    await readUntil(this.socket, hello);
    this.session = connect('http://guest', {
      createConnection: () => this.socket,
      settings: { initialWindowSize: 1024 * 1024, maxFrameSize: 65_536 },
    });
    this.session.on('error', () => {});
  }

  async request(method: string, path: string, body: Buffer = Buffer.alloc(0)): Promise<Reply> {
    const stream = this.session.request(
      { ':method': method, ':path': path },
      { endStream: method === 'GET' },
    );
    if (method !== 'GET') stream.end(body);
    return readReply(stream);
  }

  async exitCode(): Promise<number | null> {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      await once(this.child, 'exit', { signal: AbortSignal.timeout(DEADLINE_MS) });
    }
    return this.child.exitCode;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.session?.destroy();
    this.socket.destroy();
    try {
      const code = await this.exitCode();
      assert.ok(code !== null && code <= 2, `the guest agent ended with ${code}: ${this.stderr}`);
    } finally {
      this.child.kill('SIGKILL');
    }
  }
}

interface Reply {
  readonly status: number;
  readonly text: string;
}

async function readReply(stream: ClientHttp2Stream): Promise<Reply> {
  let status = 0;
  const chunks: Buffer[] = [];
  stream.on('response', (headers) => {
    status = headers[':status'] ?? 0;
  });
  stream.on('data', (chunk: Buffer) => chunks.push(chunk));
  await once(stream, 'close', { signal: AbortSignal.timeout(DEADLINE_MS) });
  return { status, text: Buffer.concat(chunks).toString() };
}

/** Drops what comes before `wanted`, and leaves what comes after it. */
async function readUntil(socket: Socket, wanted: Buffer): Promise<void> {
  let seen = Buffer.alloc(0);
  const deadline = AbortSignal.timeout(DEADLINE_MS);
  while (seen.indexOf(wanted) < 0) {
    const chunk: Buffer | null = socket.read();
    if (chunk === null) await once(socket, 'readable', { signal: deadline });
    else seen = Buffer.concat([seen, chunk]);
  }
  const rest = seen.subarray(seen.indexOf(wanted) + wanted.length);
  if (rest.length > 0) socket.unshift(rest);
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function identityRecords(hostname = 'job-1'): Buffer {
  const time = Buffer.alloc(8);
  time.writeBigUInt64BE(1_700_000_000_000_000_000n);
  return Buffer.concat([
    encodeRecord(IdentityRecord.entropy, randomBytes(64)),
    encodeRecord(IdentityRecord.time, time),
    encodeRecord(IdentityRecord.hostname, hostname),
    encodeRecord(IdentityRecord.volume, 'none'),
  ]);
}

interface ExecOptions {
  readonly env?: Record<string, string>;
  readonly cwd?: string;
  readonly stdin?: boolean;
  readonly terminal?: { readonly rows: number; readonly columns: number };
  readonly builtin?: string;
  readonly script?: { readonly name: string; readonly data: string };
  readonly secrets?: Record<string, string>;
  readonly keepOutput?: boolean;
}

/** One program in the guest. */
class Exec {
  readonly stream: ClientHttp2Stream;
  readonly closed: Promise<unknown>;
  status = 0;
  pid = 0;
  stdout: Buffer[] = [];
  stderr: Buffer[] = [];
  stdoutBytes = 0;
  readonly stdoutHash = createHash('sha256');
  exit: { kind: number; code: number; flags: number } | undefined;
  failed: { errno: number; text: string } | undefined;
  readonly #started = Promise.withResolvers<void>();

  constructor(guest: Guest, args: readonly string[], options: ExecOptions = {}) {
    this.stream = guest.session.request({ ':method': 'POST', ':path': GuestPath.exec });
    this.stream.on('error', () => {});
    this.stream.on('response', (headers) => {
      this.status = headers[':status'] ?? 0;
      if (this.status !== 200) this.stream.end();
    });
    const decoder = new RecordDecoder((type, payload) =>
      this.#record(type, payload, options.keepOutput ?? true),
    );
    this.stream.on('data', (chunk: Buffer) => {
      if (this.status === 200) decoder.push(chunk);
      else this.stderr.push(chunk);
    });
    this.closed = new Promise((resolve) => this.stream.once('close', resolve));
    this.stream.write(setup(args, options));
  }

  #record(type: number, payload: Buffer, keep: boolean): void {
    if (type === ExecOutput.started) {
      this.pid = payload.readUInt32BE();
      this.#started.resolve();
    } else if (type === ExecOutput.stdout) {
      this.stdoutBytes += payload.length;
      this.stdoutHash.update(payload);
      if (keep) this.stdout.push(Buffer.from(payload));
    } else if (type === ExecOutput.stderr) {
      this.stderr.push(Buffer.from(payload));
    } else if (type === ExecOutput.exit) {
      this.exit = { kind: payload[0] ?? 255, code: payload[1] ?? 255, flags: payload[2] ?? 255 };
      this.stream.end();
    } else if (type === ExecOutput.failed) {
      this.failed = { errno: payload.readUInt32BE(), text: payload.subarray(4).toString() };
      this.stream.end();
    } else {
      assert.fail(`unknown record ${type}`);
    }
  }

  started(): Promise<void> {
    return this.#started.promise;
  }

  async done(): Promise<this> {
    await Promise.race([
      this.closed,
      new Promise((_, reject) => setTimeout(reject, DEADLINE_MS, new Error('the exec did not end')).unref()),
    ]);
    return this;
  }

  out(): string {
    return Buffer.concat(this.stdout).toString();
  }

  err(): string {
    return Buffer.concat(this.stderr).toString();
  }
}

function setup(args: readonly string[], options: ExecOptions): Buffer {
  const records = args.map((arg) => encodeRecord(ExecInput.arg, arg));
  for (const [name, value] of Object.entries(options.env ?? { PATH: '/usr/bin:/bin' })) {
    records.push(encodeRecord(ExecInput.env, `${name}=${value}`));
  }
  records.push(encodeRecord(ExecInput.cwd, options.cwd ?? '/'));
  const user = Buffer.concat([u32(process.getuid?.() ?? 0), u32(process.getgid?.() ?? 0)]);
  records.push(encodeRecord(ExecInput.user, user));
  if (options.builtin !== undefined) records.push(encodeRecord(ExecInput.builtin, options.builtin));
  if (options.script !== undefined) {
    records.push(encodeRecord(ExecInput.scriptName, options.script.name));
    records.push(...encodeChunked(ExecInput.scriptData, Buffer.from(options.script.data)));
  }
  for (const [name, value] of Object.entries(options.secrets ?? {})) {
    records.push(encodeRecord(ExecInput.secretName, name), encodeRecord(ExecInput.secretData, value));
  }
  const flags = (options.stdin ? ExecFlag.stdin : 0) | (options.terminal ? ExecFlag.terminal : 0);
  const size = options.terminal ? sizeOf(options.terminal) : Buffer.alloc(0);
  records.push(encodeRecord(ExecInput.start, Buffer.concat([Buffer.from([flags]), size])));
  return Buffer.concat(records);
}

function sizeOf({ rows, columns }: { readonly rows: number; readonly columns: number }): Buffer {
  const size = Buffer.alloc(4);
  size.writeUInt16BE(rows, 0);
  size.writeUInt16BE(columns, 2);
  return size;
}

/** Resolves when the output of the process contains `text`. */
async function said(exec: Exec, text: string): Promise<void> {
  while (!exec.out().includes(text)) {
    await once(exec.stream, 'data', { signal: AbortSignal.timeout(DEADLINE_MS) });
  }
}

function run(guest: Guest, args: readonly string[], options?: ExecOptions): Promise<Exec> {
  return new Exec(guest, args, options).done();
}

function sh(guest: Guest, script: string, options?: ExecOptions): Promise<Exec> {
  return run(guest, ['sh', '-c', script], options);
}

/** Resolves once the process is gone; a test that waits longer has failed. */
async function gone(pid: number): Promise<void> {
  const deadline = Date.now() + DEADLINE_MS;
  for (;;) {
    try {
      process.kill(pid, 0);
      if (readFileSync(`/proc/${pid}/stat`, 'latin1').includes(') Z ')) return;
    } catch {
      return;
    }
    assert.ok(Date.now() < deadline, `process ${pid} is still there`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

function residentKib(pid: number | undefined): number {
  const line = readFileSync(`/proc/${pid}/status`, 'latin1').match(/VmRSS:\s+(\d+)/);
  return Number(line?.[1]);
}

describe('session', () => {
  test('the hello is found behind what an earlier session left on the wire', async () => {
    await using guest = new Guest();
    await guest.shakeHands(Buffer.concat([randomBytes(10_000), Buffer.from('CTHELLCTHELLO0')]));
    assert.equal((await guest.request('PUT', GuestPath.identity, identityRecords())).status, 200);
  });

  test('nothing but the identity is answered before the identity, and that only once', async () => {
    await using guest = new Guest();
    await guest.shakeHands();
    assert.equal((await guest.request('GET', GuestPath.stats)).status, 409);
    assert.equal((await run(guest, ['true'])).status, 409);
    assert.equal((await guest.request('PUT', GuestPath.identity, Buffer.from('garbage bytes'))).status, 400);
    assert.equal((await guest.request('PUT', GuestPath.identity)).status, 400);
    assert.equal((await guest.request('PUT', GuestPath.identity, identityRecords())).status, 200);
    assert.equal((await guest.request('PUT', GuestPath.identity, identityRecords())).status, 409);
    assert.equal((await guest.request('GET', '/v1/unknown')).status, 404);
    assert.match(
      (await guest.request('GET', GuestPath.stats)).text,
      /^uptime_ms=\d+\nmemory_total_kib=\d+\n/,
    );
  });

  test('a failed identity leaves a guest that answers nothing else', async () => {
    await using guest = new Guest();
    await guest.shakeHands();
    const reply = await guest.request('PUT', GuestPath.identity, identityRecords('broken'));
    assert.equal(reply.status, 500);
    assert.match(reply.text, /hostname=broken/);
    assert.equal(await guest.exitCode(), 2);
  });

  test('when the host hangs up, the guest agent ends', async () => {
    await using guest = await Guest.open();
    guest.session.destroy();
    guest.socket.destroy();
    assert.equal(await guest.exitCode(), 0);
  });

  test('bytes that are not HTTP/2 end the session', async () => {
    await using guest = new Guest();
    await readUntil(guest.socket, Buffer.from(READY_LINE));
    const hello = Buffer.concat([Buffer.from(HELLO_MAGIC), randomBytes(HELLO_NONCE_BYTES)]);
    guest.socket.write(Buffer.concat([hello, randomBytes(4096)]));
    assert.equal(await guest.exitCode(), 1);
  });

  test('shutdown is answered, then the guest agent ends', async () => {
    await using guest = await Guest.open();
    assert.equal((await guest.request('POST', GuestPath.shutdown)).status, 200);
    assert.equal(await guest.exitCode(), 2);
  });
});

describe('exec', () => {
  test('stdout and stderr are kept apart, and the exit code arrives', async () => {
    await using guest = await Guest.open();
    const exec = await sh(guest, 'echo out; echo err >&2; echo more > /dev/stdout; exit 7');
    assert.equal(exec.out(), 'out\nmore\n');
    assert.equal(exec.err(), 'err\n');
    assert.deepEqual(exec.exit, { kind: 0, code: 7, flags: 0 });
    assert.ok(exec.pid > 0);
  });

  test('the environment and the working directory are the given ones and nothing else', async () => {
    await using guest = await Guest.open();
    const env = { PATH: '/usr/bin:/bin', A: '1', B: 'two words\nand a line' };
    const exec = await run(guest, ['env', '-0'], { env });
    assert.deepEqual(exec.out().split('\0').sort(), ['', 'A=1', `B=${env.B}`, `PATH=${env.PATH}`]);
    assert.equal((await run(guest, ['pwd'], { cwd: '/usr/bin' })).out(), '/usr/bin\n');
    const descriptors = await sh(guest, 'ls /proc/self/fd; ps -o pgid= -o sid= -o pid= -p $$');
    assert.match(descriptors.out(), /^0\n1\n2\n3\n\s*(\d+)\s+\1\s+\1\n$/);
    assert.equal((await sh(guest, 'trap')).out(), '');
    const signals = await run(guest, ['grep', '-E', 'Sig(Blk|Ign)', '/proc/self/status']);
    assert.match(signals.out(), /^SigBlk:\s0{16}\nSigIgn:\s0{16}\n$/);
  });

  test('a program that cannot be started is reported with its errno', async () => {
    await using guest = await Guest.open();
    const missing = await run(guest, ['no-such-program']);
    assert.equal(missing.failed?.errno, 2);
    assert.match(missing.failed?.text ?? '', /no-such-program: No such file/);
    assert.equal((await run(guest, ['/etc/passwd'])).failed?.errno, 13);
    assert.equal((await run(guest, [''])).failed?.errno, 2);
    const nowhere = await run(guest, ['true'], { cwd: '/no/such/directory' });
    assert.equal(nowhere.failed?.errno, 2);
    assert.match(nowhere.failed?.text ?? '', /^\/no\/such\/directory: /);
    assert.equal((await run(guest, ['env'], { env: { PATH: '/no:/usr/bin' } })).exit?.code, 0);
    assert.equal((await run(guest, ['env'], { env: { PATH: '/no' } })).failed?.errno, 2);
  });

  test('stdin goes in, its end too, and /dev/null stands in for it otherwise', async () => {
    await using guest = await Guest.open();
    assert.equal((await run(guest, ['cat'])).exit?.code, 0);
    const cat = new Exec(guest, ['cat'], { stdin: true });
    const data = randomBytes(3_000_000);
    for (const record of encodeChunked(ExecInput.stdin, data)) cat.stream.write(record);
    cat.stream.write(encodeRecord(ExecInput.stdin));
    await cat.done();
    assert.deepEqual(cat.exit, { kind: 0, code: 0, flags: 0 });
    assert.ok(Buffer.concat(cat.stdout).equals(data));
    const ended = new Exec(guest, ['cat'], { stdin: true });
    ended.stream.end(encodeRecord(ExecInput.stdin, 'half-closed'));
    assert.equal((await ended.done()).out(), 'half-closed');
  });

  test('a process that closes its stdin does not hold up the host', async () => {
    await using guest = await Guest.open();
    const exec = new Exec(guest, ['sh', '-c', 'exec 0<&-; sleep 0.3; echo done'], { stdin: true });
    for (const record of encodeChunked(ExecInput.stdin, Buffer.alloc(4_000_000))) exec.stream.write(record);
    assert.equal((await exec.done()).out(), 'done\n');
  });

  test('signals reach the process group', async () => {
    await using guest = await Guest.open();
    const trap = new Exec(guest, ['sh', '-c', 'trap "echo got; exit 3" TERM; echo ready; sleep 100 & wait']);
    while (!trap.out().includes('ready')) await once(trap.stream, 'data');
    trap.stream.write(encodeRecord(ExecInput.signal, Buffer.from([15])));
    await trap.done();
    assert.equal(trap.out(), 'ready\ngot\n');
    assert.equal(trap.exit?.code, 3);
    const kill = new Exec(guest, ['sleep', '100']);
    await kill.started();
    kill.stream.write(encodeRecord(ExecInput.signal, Buffer.from([9])));
    assert.deepEqual((await kill.done()).exit, { kind: 1, code: 9, flags: 0 });
  });

  test('resetting the stream kills the process group', async () => {
    await using guest = await Guest.open();
    const exec = new Exec(guest, ['sh', '-c', 'sleep 100 & echo $!; wait']);
    while (exec.out() === '') await once(exec.stream, 'data');
    const grandchild = Number(exec.out());
    exec.stream.close(constants.NGHTTP2_CANCEL);
    await gone(exec.pid);
    await gone(grandchild);
    assert.equal((await run(guest, ['true'])).exit?.code, 0);
  });

  test('kill-all ends every process', async () => {
    await using guest = await Guest.open();
    const first = new Exec(guest, ['sleep', '100']);
    const second = new Exec(guest, ['sleep', '100']);
    await Promise.all([first.started(), second.started()]);
    first.stream.write(encodeRecord(ExecInput.killAll));
    await Promise.all([first.done(), second.done()]);
    assert.deepEqual([first.exit?.kind, second.exit?.kind], [1, 1]);
    const third = new Exec(guest, ['sleep', '100']);
    await third.started();
    await guest.request('POST', GuestPath.exec, encodeRecord(ExecInput.killAll));
    assert.equal((await third.done()).exit?.kind, 1);
  });

  test('a background child that keeps the pipes open does not delay the exit', async () => {
    await using guest = await Guest.open();
    const start = Date.now();
    const exec = await sh(guest, 'yes & echo $! >&2; sleep 0.2; kill -STOP $!; echo last >&2; exit 5', {
      keepOutput: false,
    });
    process.kill(Number(exec.err().split('\n')[0]), 'SIGKILL');
    assert.equal(exec.exit?.code, 5);
    assert.match(exec.err(), /last\n$/);
    assert.ok(Date.now() - start < 10_000);
  });

  test('100 MB of output arrive whole', async () => {
    await using guest = await Guest.open('test');
    const exec = await run(guest, ['head', '-c', '100000000', '/dev/zero'], { keepOutput: false });
    assert.equal(exec.stdoutBytes, 100_000_000);
    assert.equal(
      exec.stdoutHash.digest('hex'),
      createHash('sha256').update(Buffer.alloc(100_000_000)).digest('hex'),
    );
    assert.equal(exec.exit?.code, 0);
  });

  test('a host that does not read stops the process, not the guest agent', async () => {
    await using guest = await Guest.open('test');
    const slow = new Exec(guest, ['sh', '-c', 'yes | head -c 50000000; echo end >&2'], { keepOutput: false });
    await slow.started();
    slow.stream.pause();
    await new Promise((resolve) => setTimeout(resolve, 300));
    const before = residentKib(guest.child.pid);
    await new Promise((resolve) => setTimeout(resolve, 300));
    assert.ok(residentKib(guest.child.pid) <= before + 256, 'memory grows while the host does not read');
    assert.ok(before < 8_192, `the guest agent has ${before} KiB resident`);
    assert.equal((await run(guest, ['echo', 'alive'])).out(), 'alive\n');
    slow.stream.resume();
    await slow.done();
    assert.equal(slow.stdoutBytes, 50_000_000);
    assert.equal(slow.err(), 'end\n');
  });

  test('a process that does not read its stdin stops the host within the stream window', async () => {
    await using guest = await Guest.open('test');
    const slow = new Exec(guest, ['sleep', '100'], { stdin: true });
    await slow.started();
    for (const record of encodeChunked(ExecInput.stdin, Buffer.alloc(8_000_000))) slow.stream.write(record);
    await new Promise((resolve) => setTimeout(resolve, 500));
    assert.ok(
      slow.stream.writableLength > 5_000_000,
      `${slow.stream.writableLength} bytes are still to be sent`,
    );
    assert.ok(residentKib(guest.child.pid) < 8_192);
    assert.equal((await run(guest, ['echo', 'alive'])).out(), 'alive\n');
    slow.stream.close(constants.NGHTTP2_CANCEL);
    await gone(slow.pid);
  });

  test('sixty programs at once', async () => {
    await using guest = await Guest.open();
    const execs = await Promise.all(
      Array.from({ length: 60 }, (_, index) => sh(guest, `echo ${index}; exit ${index}`)),
    );
    for (const [index, exec] of execs.entries()) {
      assert.equal(exec.out(), `${index}\n`);
      assert.equal(exec.exit?.code, index);
    }
  });

  test('step scripts are created before the program starts', async () => {
    await using guest = await Guest.open();
    const path = join(guest.scripts, 'step-1.sh');
    const data = `#!/bin/sh\necho "$0" "$1"\n${'# filler\n'.repeat(20_000)}`;
    const exec = await run(guest, [path, 'argument'], { script: { name: 'step-1.sh', data } });
    assert.equal(exec.out(), `${path} argument\n`, exec.failed?.text ?? '');
    assert.equal(readFileSync(path, 'latin1'), data);
    assert.equal(statSync(path).mode & 0o777, 0o555);
    const again = await run(guest, [path], {
      script: { name: 'step-1.sh', data: '#!/bin/sh\necho second\n' },
    });
    assert.equal(again.out(), 'second\n');
    for (const name of ['../x', '.hidden', 'A', '', 'x/y', 'a'.repeat(65)]) {
      assert.equal((await run(guest, ['true'], { script: { name, data: 'x' } })).status, 400, name);
    }
  });

  test('a secret is a file that only its user can read, for as long as the process lives', async () => {
    await using guest = await Guest.open();
    const path = join(guest.scripts, 'TOKEN');
    const left = (): string[] => readdirSync(guest.scripts);
    const value = `s3cret ${'x'.repeat(48_000)}\n`;
    const exec = await run(
      guest,
      ['sh', '-c', `stat -c %a:%u ${path}; cat ${path} ${join(guest.scripts, 'B_2')}`],
      {
        secrets: { TOKEN: value, B_2: 'other' },
      },
    );
    assert.equal(exec.out(), `400:${process.getuid?.()}\n${value}other`, exec.err());
    assert.deepEqual(left(), []);

    const failed = await run(guest, ['no-such-program'], { secrets: { TOKEN: value } });
    assert.equal(failed.failed?.errno, 2);
    assert.deepEqual(left(), []);

    const running = new Exec(guest, ['sleep', '100'], { secrets: { TOKEN: value } });
    await running.started();
    assert.deepEqual(left(), ['TOKEN']);
    // Given up, and at once the same name again: the end of the first must not take it away from the second.
    running.stream.close(constants.NGHTTP2_CANCEL);
    const second = await run(guest, ['sh', '-c', `sleep 0.3; cat ${path}`], { secrets: { TOKEN: 'second' } });
    assert.equal(second.out(), 'second', second.err());
    assert.deepEqual(left(), []);

    for (const name of ['../x', 'a-b', 'a.b', '', 'x/y', 'a'.repeat(129)]) {
      assert.equal((await run(guest, ['true'], { secrets: { [name]: 'x' } })).status, 400, name);
    }
    assert.deepEqual(left(), []);
  });

  test('malformed requests are answered 400 and a text', async () => {
    await using guest = await Guest.open();
    const cases: readonly (readonly [Buffer, RegExp])[] = [
      [encodeRecord(ExecInput.start, Buffer.from([0])), /no arguments/],
      [encodeRecord(ExecInput.arg, 'a\0b'), /NUL/],
      [encodeRecord(ExecInput.env, 'novalue'), /environment/],
      [encodeRecord(ExecInput.cwd, 'relative'), /working directory/],
      [encodeRecord(ExecInput.user, 'short'), /user/],
      [encodeRecord(ExecInput.builtin, 'rm'), /built-in/],
      [encodeRecord(0x7f, ''), /setting up/],
      [encodeRecord(ExecInput.stdin, 'early'), /setting up/],
      [encodeRecord(ExecInput.scriptData, 'x'), /script name/],
      [encodeRecord(ExecInput.secretData, 'x'), /without its name/],
      [encodeRecord(ExecInput.arg, 'true'), /before a start record/],
      [Buffer.from([ExecInput.arg, 0, 1, 0, 1]), /malformed record/],
      [
        Buffer.concat(Array.from({ length: 20 }, () => encodeRecord(ExecInput.arg, 'x'.repeat(65_536)))),
        /1 MiB/,
      ],
    ];
    for (const [body, text] of cases) {
      const reply = await guest.request('POST', GuestPath.exec, body);
      assert.equal(reply.status, 400);
      assert.match(reply.text, text);
    }
    const exec = new Exec(guest, ['sleep', '100']);
    await exec.started();
    exec.stream.write(encodeRecord(ExecInput.arg, 'late'));
    await exec.done();
    await gone(exec.pid);
    assert.equal(exec.exit, undefined);
  });
});

describe('which code may run', () => {
  const mode = encodeRecord(CodeRecord.mode, Buffer.of(2));
  const trust = encodeRecord(CodeRecord.trust, Buffer.of(3));
  const digest = (byte: number, last = byte): Buffer =>
    Buffer.concat([Buffer.alloc(31, byte), Buffer.of(last)]);
  const interpreter = (flags: number, text: string): Buffer =>
    encodeRecord(CodeRecord.interpreter, Buffer.concat([Buffer.of(flags), Buffer.from(text)]));

  test('malformed settings are answered 400 and a text, and leave nothing behind', async () => {
    await using guest = await Guest.open();
    const endings = (count: number): string => Array.from({ length: count }, (_, at) => `.${at}\0`).join('');
    const cases: readonly (readonly [Buffer, RegExp])[] = [
      [Buffer.alloc(0), /incomplete/],
      [mode, /incomplete/],
      [trust, /incomplete/],
      [Buffer.concat([mode, mode]), /mode/],
      [encodeRecord(CodeRecord.mode, Buffer.of(0)), /mode/],
      [encodeRecord(CodeRecord.mode, Buffer.of(4)), /mode/],
      [encodeRecord(CodeRecord.mode, Buffer.of(1, 1)), /mode/],
      [Buffer.concat([trust, trust]), /trusted/],
      [encodeRecord(CodeRecord.trust, Buffer.of(4)), /trusted/],
      [encodeRecord(CodeRecord.digests, Buffer.alloc(0)), /32 bytes/],
      [encodeRecord(CodeRecord.digests, Buffer.alloc(33)), /32 bytes/],
      [encodeRecord(CodeRecord.digests, Buffer.concat([digest(1), digest(1)])), /ascending/],
      [encodeRecord(CodeRecord.digests, Buffer.concat([digest(1, 2), digest(1)])), /ascending/],
      [
        Buffer.concat([digest(2), digest(1)].map((one) => encodeRecord(CodeRecord.digests, one))),
        /ascending/,
      ],
      [
        Buffer.concat(
          Array.from({ length: 4097 }, (_, at) => {
            const one = digest(0);
            one.writeUInt32BE(at, 0);
            return encodeRecord(CodeRecord.digests, one);
          }),
        ),
        /too many digests/,
      ],
      [interpreter(4, '/bin/sh\0'), /interpreter/],
      [interpreter(0, 'bin/sh\0'), /interpreter/],
      [interpreter(0, '/bin/sh'), /interpreter/],
      [interpreter(0, ''), /interpreter/],
      [interpreter(0, '/bin/sh\0\0'), /neither/],
      [interpreter(0, `/bin/sh\0.${'x'.repeat(16)}\0`), /neither/],
      [interpreter(0, '/bin/sh\0a/b\0'), /neither/],
      [interpreter(0, '/bin/sh\0-\0'), /option/],
      [interpreter(0, '/bin/sh\0--\0'), /option/],
      [interpreter(0, `/bin/sh\0${endings(17)}`), /too many endings/],
      [interpreter(0, `/${'x'.repeat(511)}\0`), /interpreter/],
      [Buffer.concat(Array.from({ length: 33 }, () => interpreter(0, '/bin/sh\0'))), /too many interpreters/],
      [encodeRecord(ExecInput.arg, 'true'), /about code/],
      [Buffer.concat([mode, trust, Buffer.of(CodeRecord.digests, 0, 0, 0, 32, 1)]), /incomplete/],
    ];
    for (const [body, text] of cases) {
      const reply = await guest.request('PUT', GuestPath.code, body);
      assert.deepEqual([reply.status, body.subarray(0, 40)], [400, body.subarray(0, 40)]);
      assert.match(reply.text, text);
    }
    assert.equal((await guest.request('PUT', GuestPath.phase, Buffer.of(Phase.build))).status, 409);
  });
});

describe('exec with a terminal', () => {
  const terminal = { rows: 30, columns: 100 };
  const type = (exec: Exec, keys: string): void =>
    void exec.stream.write(encodeRecord(ExecInput.stdin, keys));

  test('the process controls a terminal of the given size, which is the three of its descriptors', async () => {
    await using guest = await Guest.open();
    const exec = await sh(guest, 'tty; stty size; tty <&1; tty <&2; ps -o tpgid= -p $$; echo $$; exit 6', {
      terminal,
    });
    assert.match(exec.out(), /^(\/dev\/pts\/\d+)\r\n30 100\r\n\1\r\n\1\r\n\s*(\d+)\r\n\2\r\n$/);
    assert.deepEqual(exec.exit, { kind: 0, code: 6, flags: 0 });
    const descriptors = await sh(guest, 'ls /proc/self/fd', { terminal });
    assert.match(descriptors.out(), /^0\s+1\s+2\s+3\r\n$/);
  });

  test('a new size arrives with SIGWINCH', async () => {
    await using guest = await Guest.open();
    const exec = new Exec(
      guest,
      ['bash', '-c', 'trap "stty size; exit 4" WINCH; echo ready; while :; do sleep 0.05; done'],
      { terminal },
    );
    await said(exec, 'ready');
    exec.stream.write(encodeRecord(ExecInput.resize, sizeOf({ rows: 44, columns: 132 })));
    await exec.done();
    assert.equal(exec.out(), 'ready\r\n44 132\r\n');
    assert.equal(exec.exit?.code, 4);
  });

  test('what is typed is echoed and read, Ctrl-C interrupts, Ctrl-D ends the input', async () => {
    await using guest = await Guest.open();
    const interrupted = new Exec(guest, ['sh', '-c', 'echo ready; exec sleep 100'], { terminal });
    await said(interrupted, 'ready');
    type(interrupted, '\x03');
    assert.deepEqual((await interrupted.done()).exit, { kind: 1, code: 2, flags: 0 });
    const cat = new Exec(guest, ['cat'], { terminal });
    type(cat, 'a line\n');
    await said(cat, 'a line\r\na line\r\n');
    type(cat, '\x04');
    assert.deepEqual((await cat.done()).exit, { kind: 0, code: 0, flags: 0 });
  });

  test('all output arrives, also the last before the exit, and a long input', async () => {
    await using guest = await Guest.open();
    const exec = await sh(guest, 'seq 200000; echo last', { terminal });
    const lines = exec.out().split('\r\n');
    assert.deepEqual([lines.length, lines.at(-3), lines.at(-2)], [200_002, '200000', 'last']);
    const reader = new Exec(guest, ['sh', '-c', 'stty raw -echo; echo ready; head -c 300000 | cksum'], {
      terminal,
    });
    await said(reader, 'ready');
    for (const record of encodeChunked(ExecInput.stdin, Buffer.alloc(300_000, 'x')))
      reader.stream.write(record);
    await reader.done();
    assert.match(reader.out(), /^ready\n\d+ 300000\n$|^ready\r?\n\d+ 300000\r?\n$/);
  });

  test('hanging up kills every process of the session, whatever its group and whatever it ignores', async () => {
    await using guest = await Guest.open();
    const script =
      'set -m; trap "" HUP; sleep 100 & echo $!; (trap "" HUP; exec sleep 101) & echo $!; echo ready; wait';
    const exec = new Exec(guest, ['bash', '-c', script], { terminal });
    await said(exec, 'ready');
    const [first, second] = exec.out().split('\r\n').map(Number);
    exec.stream.close(constants.NGHTTP2_CANCEL);
    await gone(exec.pid);
    await gone(Number(first));
    await gone(Number(second));
    assert.equal((await run(guest, ['true'])).exit?.code, 0);
  });

  test('a background child that keeps the terminal open does not delay the exit', async () => {
    await using guest = await Guest.open();
    const start = Date.now();
    const exec = await sh(guest, 'trap "" HUP; sleep 30 & echo $!; exit 5', { terminal });
    assert.equal(exec.exit?.code, 5);
    assert.ok(Date.now() - start < 20_000);
    process.kill(Number.parseInt(exec.out(), 10), 'SIGKILL');
  });

  test('what makes no sense is refused', async () => {
    await using guest = await Guest.open();
    const wrong: readonly (readonly Buffer[])[] = [
      [encodeRecord(ExecInput.start, Buffer.of(ExecFlag.terminal))],
      [encodeRecord(ExecInput.start, Buffer.of(0, 0, 24, 0, 80))],
      [encodeRecord(ExecInput.start, Buffer.of(4))],
      [encodeRecord(ExecInput.start)],
      [encodeRecord(ExecInput.resize, Buffer.of(0, 24, 0, 80))],
      [
        encodeRecord(ExecInput.builtin, 'tree-in'),
        encodeRecord(ExecInput.start, Buffer.of(ExecFlag.terminal, 0, 24, 0, 80)),
      ],
    ];
    for (const records of wrong) {
      const body = Buffer.concat([encodeRecord(ExecInput.arg, 'true'), ...records]);
      assert.equal((await guest.request('POST', GuestPath.exec, body)).status, 400);
    }
    const unsized = new Exec(guest, ['sleep', '100']);
    await unsized.started();
    unsized.stream.write(encodeRecord(ExecInput.resize, Buffer.of(0, 24, 0, 80)));
    await unsized.done();
    assert.equal(unsized.exit, undefined);
    await gone(unsized.pid);
  });
});

describe('trees', () => {
  test('a tree goes in and comes out again, thousands of files and odd names included', async () => {
    await using guest = await Guest.open('test');
    const source = join(scratch, 'source');
    const copy = join(scratch, 'copy');
    await mkdir(join(source, 'deep/er'), { recursive: true });
    await mkdir(copy);
    for (let index = 0; index < 2_000; index++) writeFileSync(join(source, `deep/file-${index}`), `${index}`);
    writeFileSync(join(source, 'deep/er/with space\nand line'), 'odd', { mode: 0o751 });
    writeFileSync(join(source, 'big'), randomBytes(5_000_000));
    symlinkSync('deep/file-1', join(source, 'link'));
    utimesSync(join(source, 'big'), 1, 1_234_567_890.5);

    const out = await run(guest, [source, '**'], { builtin: 'tree-out' });
    assert.deepEqual(out.exit, { kind: 0, code: 0, flags: 0 }, out.err());
    const tree = Buffer.concat(out.stdout);
    const into = new Exec(guest, [copy], { builtin: 'tree-in', stdin: true });
    for (const record of encodeChunked(ExecInput.stdin, tree)) into.stream.write(record);
    into.stream.write(encodeRecord(ExecInput.stdin));
    await into.done();
    assert.deepEqual(into.exit, { kind: 0, code: 0, flags: 0 }, into.err());
    const again = await run(guest, [copy, '**'], { builtin: 'tree-out' });
    assert.ok(Buffer.concat(again.stdout).equals(tree), 'the copy differs');
    assert.equal(statSync(join(copy, 'big')).mtimeMs, 1_234_567_890_500);
    assert.equal(statSync(join(copy, 'deep/er/with space\nand line')).mode & 0o777, 0o751);
  });

  test('a failure is an exit status of 1 and a message', async () => {
    await using guest = await Guest.open();
    const nowhere = await run(guest, ['/no/such/directory', '**'], { builtin: 'tree-out' });
    assert.equal(nowhere.exit?.code, 1);
    assert.match(nowhere.err(), /\/no\/such\/directory: No such file/);
    const cut = new Exec(guest, [scratch], { builtin: 'tree-in', stdin: true });
    cut.stream.end(encodeRecord(ExecInput.stdin, 'CTTREE1\nF'));
    await cut.done();
    assert.equal(cut.exit?.code, 1);
    assert.match(cut.err(), /cut short/);
  });

  test('a pattern that matches nothing is named and is no failure', async () => {
    await using guest = await Guest.open();
    await mkdir(join(scratch, 'few'), { recursive: true });
    const out = await run(guest, [join(scratch, 'few'), 'reports/*.xml'], { builtin: 'tree-out' });
    assert.equal(out.exit?.code, 0);
    assert.equal(out.err(), 'reports/*.xml: matches nothing\n');
    assert.equal(out.stdoutBytes, 8 + 29);
  });
});
