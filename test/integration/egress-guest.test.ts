/** The guest's half of egress, in a real VM with a plain HTTP/2 server as its host: what a job's sockets do. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { constants, type ServerHttp2Stream } from 'node:http2';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { resetStream } from '../../src/egress/proxy.ts';
import { Attempt } from '../../src/protocol/guest-link.ts';
import { EgressHost, echo, refuse } from '../support/egress-host.ts';
import { makeVmm, type TestGuest, type TestVmm } from '../support/machines.ts';

let vmm: TestVmm;
before(async () => {
  vmm = await makeVmm();
});
after(() => vmm[Symbol.asyncDispose]());

const PRELUDE = `
import errno, os, socket, struct, subprocess, sys, threading, time
def outcome(call):
    try: return call()
    except OSError as error: return errno.errorcode.get(error.errno, str(error))
def connect(host, port):
    one = socket.create_connection((host, port))
    one.settimeout(20)
    return one
def read_all(one):
    parts = []
    while True:
        part = one.recv(1 << 20)
        if not part: return b''.join(parts)
        parts.append(part)
`;

/** Runs Python in the guest and returns what it printed. */
async function python(guest: TestGuest, program: string): Promise<string> {
  const { out, err, result } = await guest.sh('', { argv: ['python3', '-c', PRELUDE + program] });
  assert.deepEqual(result, { kind: 'exited', code: 0, oomKilled: false }, err);
  return out.trim();
}

async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!condition()) {
    assert.ok(performance.now() < deadline, `never: ${what}`);
    await sleep(10);
  }
}

test('a connection to any address and port becomes a CONNECT to it, and carries bytes both ways', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  host.onConnect = echo;
  const out = await python(
    guest,
    `
for host, port in (('192.0.2.1', 443), ('203.0.113.255', 1), ('10.0.0.1', 65535), ('169.254.169.254', 80),
                   ('198.18.0.1', 53), ('2001:db8::1', 443), ('fd63:7463::17', 22), ('::ffff:192.0.2.7', 80)):
    one = connect(host, port)
    print(*one.getpeername()[:2])
    one.sendall(host.encode())
    one.shutdown(socket.SHUT_WR)
    assert read_all(one) == host.encode(), host
`,
  );
  assert.deepEqual(host.authorities, [
    '192.0.2.1:443',
    '203.0.113.255:1',
    '10.0.0.1:65535',
    '169.254.169.254:80',
    '198.18.0.1:53',
    '[2001:db8::1]:443',
    '[fd63:7463::17]:22',
    '192.0.2.7:80',
  ]);
  assert.match(out, /^192\.0\.2\.1 443\n/); // the job is connected to whom it asked for
});

test('a connection made before the host says hello waits for it', async () => {
  await using guest = await vmm.clone();
  const waiting = python(
    guest,
    `
one = connect('192.0.2.1', 80)
print('connected', flush=True)
one.sendall(b'early')
one.shutdown(socket.SHUT_WR)
print(read_all(one))`,
  );
  await sleep(1000);
  const host = await EgressHost.open(guest);
  assert.deepEqual(host.authorities, []);
  host.onConnect = echo;
  assert.equal(await waiting, "connected\nb'early'");
});

test('each direction ends on its own', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  const late = Promise.withResolvers<ServerHttp2Stream>();
  const heard: Buffer[] = [];
  host.onConnect = (stream, authority) => {
    stream.respond({ ':status': 200 });
    if (authority.endsWith(':1')) {
      // The host ends first, and the job goes on.
      stream.end('bye');
      stream.on('data', (chunk: Buffer) => heard.push(chunk));
      stream.once('end', () => late.resolve(stream));
    } else {
      stream.resume();
      stream.once('end', () => setTimeout(() => stream.end('after your end'), 100));
    }
  };
  const out = await python(
    guest,
    `
one = connect('192.0.2.1', 1)
print(read_all(one))
time.sleep(0.1)
one.sendall(b'still ')
one.sendall(b'here')
one.close()
one = connect('192.0.2.1', 2)
one.shutdown(socket.SHUT_WR)
print(read_all(one))`,
  );
  assert.equal(out, "b'bye'\nb'after your end'");
  await late.promise;
  assert.equal(Buffer.concat(heard).toString(), 'still here');
});

test('a reset goes through in both directions, and is no end', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  const codes: number[] = [];
  host.onConnect = (stream, authority) => {
    stream.respond({ ':status': 200 });
    stream.on('close', () => codes.push(stream.rstCode));
    stream.resume();
    stream.write('x');
    // `destroy` would end the stream before it resets it, and the guest might see that first.
    if (authority.endsWith(':1')) setTimeout(() => resetStream(stream), 100);
  };
  const out = await python(
    guest,
    `
one = connect('192.0.2.1', 1)
print(one.recv(1), outcome(lambda: one.recv(1)))
one = connect('192.0.2.1', 2)
print(one.recv(1))
one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
one.close()`,
  );
  assert.equal(out, "b'x' ECONNRESET\nb'x'");
  await until('both are closed', () => codes.length === 2);
  assert.deepEqual(codes, [constants.NGHTTP2_CONNECT_ERROR, constants.NGHTTP2_CONNECT_ERROR]);
});

test('what the host refuses is reset at once', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  host.onConnect = refuse;
  const out = await python(
    guest,
    `
before = time.time()
one = connect('192.0.2.1', 443)
print(outcome(lambda: one.recv(1)), time.time() - before < 2)`,
  );
  assert.equal(out, 'ECONNRESET True');
  // The control: the same connection, allowed.
  host.onConnect = echo;
  const allowed = await python(
    guest,
    `one = connect('192.0.2.1', 443); one.sendall(b'hi'); print(one.recv(2))`,
  );
  assert.equal(allowed, "b'hi'");
});

test('500 connections at once lose nothing', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  const open = { now: 0, most: 0 };
  const waiting: (() => void)[] = [];
  host.onConnect = (stream, authority) => {
    open.most = Math.max(open.most, ++open.now);
    stream.once('close', () => open.now--);
    stream.respond({ ':status': 200 });
    const chunks: Buffer[] = [];
    stream.on('data', (chunk: Buffer) => chunks.push(chunk));
    stream.once('end', () => {
      const body = Buffer.concat([Buffer.from(`${authority} `), ...chunks]);
      waiting.push(() => stream.end(body));
      if (waiting.length === 500) for (const answer of waiting) answer();
    });
  };
  const out = await python(
    guest,
    `
import resource, selectors
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))
data = os.urandom(10000)
ones = [connect('192.0.2.%d' % (1 + n % 250), 1000 + n) for n in range(500)]
for one in ones:
    one.sendall(data)
    one.shutdown(socket.SHUT_WR)
good = sum(read_all(one) == b'192.0.2.%d:%d ' % (1 + n % 250, 1000 + n) + data for n, one in enumerate(ones))
print(good)`,
  );
  assert.equal(out, '500');
  assert.equal(open.most, 500);
});

test('beyond the limit connections wait, and none is lost', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  const streams: ServerHttp2Stream[] = [];
  host.onConnect = (stream) => {
    stream.respond({ ':status': 200 });
    stream.resume();
    streams.push(stream);
  };
  const done = python(
    guest,
    `
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))
ones = [connect('192.0.2.1', 80) for n in range(1100)]
def finish(one):
    with one: return read_all(one) == b'served'
print(sum(map(finish, ones)))`,
  );
  await until('1024 connections', () => streams.length === 1024);
  await sleep(500);
  assert.equal(streams.length, 1024);
  let served = 0;
  const serve = setInterval(() => {
    while (served < streams.length) streams[served++]?.end('served');
  }, 20);
  try {
    assert.equal(await done, '1100');
  } finally {
    clearInterval(serve);
  }
});

test('a job that does not read stops the host, and the rest goes on', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  const written: number[] = [];
  host.onConnect = (stream, authority) => {
    stream.respond({ ':status': 200 });
    if (authority.endsWith(':1')) {
      const index = written.push(0) - 1;
      const chunk = randomBytes(65_536);
      const fill = (): void => {
        while ((written[index] ?? 0) < 100 * chunk.length) {
          written[index] = (written[index] ?? 0) + chunk.length;
          if (!stream.write(chunk)) {
            stream.once('drain', fill);
            return;
          }
        }
        stream.end();
      };
      fill();
    } else {
      stream.pipe(stream);
    }
  };
  const out = await python(
    guest,
    `
stalled = [connect('192.0.2.1', 1) for n in range(20)]
time.sleep(1)
other = connect('192.0.2.1', 2)
other.sendall(b'hello')
print(other.recv(5), flush=True)
print(sys.stdin.read())
print(sum(len(read_all(one)) for one in stalled))`,
  );
  assert.match(out, /^b'hello'/);
  assert.match(out, new RegExp(`${20 * 100 * 65_536}$`));
});

test('and one that the host does not read waits', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  const size = 40 * 1024 * 1024;
  let received = 0;
  let connection: ServerHttp2Stream | undefined;
  host.onConnect = (stream) => {
    connection = stream;
    stream.respond({ ':status': 200 });
    stream.on('data', (chunk: Buffer) => {
      received += chunk.length;
    });
    stream.pause();
    stream.once('end', () => stream.end('thanks'));
  };
  const done = python(
    guest,
    `
one = connect('192.0.2.1', 80)
data = bytes(1 << 20)
for n in range(40):
    one.sendall(data)
one.shutdown(socket.SHUT_WR)
print(read_all(one))`,
  );
  await until('it is connected', () => connection !== undefined);
  await sleep(1500);
  const stats = await guest.session.stats();
  assert.ok((stats['memory_available_kib'] ?? 0) > 200_000, JSON.stringify(stats));
  connection?.resume();
  assert.equal(await done, "b'thanks'");
  assert.equal(received, size);
});

/** An answer with one record; only what a resolver looks at. */
function answer(question: Buffer, address: Buffer): Buffer {
  const header = Buffer.from(question.subarray(0, 12));
  header.writeUInt16BE(0x8180, 2);
  header.writeUInt16BE(1, 6);
  header.writeUInt16BE(0, 8);
  header.writeUInt16BE(0, 10);
  let end = 12;
  while (question[end] !== 0) end += 1 + (question[end] ?? 0);
  end += 5;
  const type = question.readUInt16BE(end - 4);
  const isAddress = (type === 1 && address.length === 4) || (type === 28 && address.length === 16);
  if (!isAddress) {
    header.writeUInt16BE(0, 6);
    return Buffer.concat([header, question.subarray(12, end)]);
  }
  const record = Buffer.alloc(12);
  record.writeUInt16BE(0xc00c, 0);
  record.writeUInt16BE(type, 2);
  record.writeUInt16BE(1, 4);
  record.writeUInt32BE(60, 6);
  record.writeUInt16BE(address.length, 10);
  return Buffer.concat([header, question.subarray(12, end), record, address]);
}

test('names of both families are asked of the host, as the job asked them', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  const asked: Buffer[] = [];
  const v6 = Buffer.from('fd637463000000000000000000010002', 'hex');
  host.onDns = (message) => {
    asked.push(message);
    if (message.includes('silent')) return undefined;
    const type = message.readUInt16BE(message.length - 4);
    return answer(message, type === 1 ? Buffer.from([198, 18, 1, 2]) : v6);
  };
  const out = await python(
    guest,
    `
print(sorted({one[4][0] for one in socket.getaddrinfo('registry.example', 443)}))
print(socket.getaddrinfo('v4.example', 443, socket.AF_INET)[0][4])`,
  );
  assert.equal(out, "['198.18.1.2', 'fd63:7463::1:2']\n('198.18.1.2', 443)");
  assert.equal(asked.length, 3);
  const names = asked.map((message) =>
    message.includes('\x08registry\x07example')
      ? 'registry'
      : message.includes('\x02v4\x07example')
        ? 'v4'
        : '?',
  );
  assert.deepEqual(names, ['registry', 'registry', 'v4']);
});

test('more questions than are allowed at once are answered all the same', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  let now = 0;
  let most = 0;
  host.onDns = (message) => {
    most = Math.max(most, ++now);
    now -= 1;
    return answer(message, Buffer.from([198, 18, 1, 2]));
  };
  const out = await python(
    guest,
    `
good = []
def ask(n): good.append(socket.getaddrinfo('n%d.example' % n, 443, socket.AF_INET)[0][4][0])
threads = [threading.Thread(target=ask, args=(n,)) for n in range(150)]
for one in threads: one.start()
for one in threads: one.join()
print(len(good), set(good))`,
  );
  assert.equal(out, "150 {'198.18.1.2'}");
});

test('a datagram to anybody but the resolver is refused and told', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  host.onDns = (message) => message;
  const out = await python(
    guest,
    `
def ask(host, port):
    one = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_DGRAM)
    one.settimeout(10)
    one.connect((host, port))
    one.send(b'0123456789abcdef')
    return len(one.recv(100))
for host, port in (('192.0.2.1', 53), ('192.0.2.1', 123), ('198.18.0.1', 5353), ('198.18.0.1', 53), ('2001:db8::1', 443)):
    print(outcome(lambda: ask(host, port)))`,
  );
  assert.equal(out, 'ECONNREFUSED\nECONNREFUSED\nECONNREFUSED\n16\nECONNREFUSED');
  await until('all are told', () => host.attempts.length === 4);
  assert.deepEqual(
    host.attempts.map(({ kind, family, port, address }) => [kind, family, port, address.toString('hex')]),
    [
      [Attempt.udp, 2, 53, 'c0000201'],
      [Attempt.udp, 2, 123, 'c0000201'],
      [Attempt.udp, 2, 5353, 'c6120001'],
      [Attempt.udp, 10, 443, '20010db8000000000000000000000001'],
    ],
  );
});

test('sockets that have no use in the VM are denied and told; the usual ones are not', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  const out = await python(
    guest,
    `
def make(*arguments): socket.socket(*arguments).close(); return 'made'
for one in ((17, 3, 0), (2, 3, 1), (10, 3, 58), (40, 1, 0), (2, 2, 1), (38, 5, 0)):
    print(outcome(lambda: make(*one)))
for one in ((1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 0), (10, 1, 6), (10, 2, 17), (16, 3, 0)):
    print(outcome(lambda: make(*one)))`,
  );
  assert.equal(out, [...Array(6).fill('EPERM'), ...Array(7).fill('made')].join('\n'));
  await until('all are told', () => host.attempts.length === 6);
  assert.deepEqual(
    host.attempts.map(({ kind, family, uid, command }) => [kind, family, uid, command]),
    [
      [Attempt.packetSocket, 17, 1000, 'python3'],
      [Attempt.rawSocket, 2, 1000, 'python3'],
      [Attempt.rawSocket, 10, 1000, 'python3'],
      [Attempt.otherSocket, 40, 1000, 'python3'],
      [Attempt.otherSocket, 2, 1000, 'python3'],
      [Attempt.otherSocket, 38, 1000, 'python3'],
    ],
  );
  assert.ok(host.attempts.every(({ pid }) => pid > 1));
});

test('a flood of attempts is counted, not told', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  await python(
    guest,
    `
for n in range(5000): outcome(lambda: socket.socket(17, 3, 0))`,
  );
  const counted = (): number =>
    host.attempts.reduce((sum, one) => sum + (one.kind === Attempt.suppressed ? one.suppressed : 1), 0);
  await until('all are counted', () => counted() === 5000);
  assert.ok(host.attempts.length < 500, `${host.attempts.length} records`);
});

test('services inside the VM work, on loopback and on its own addresses', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  const out = await python(
    guest,
    `
def serve(host):
    server = socket.create_server((host, 0), family=socket.AF_INET6 if ':' in host else socket.AF_INET)
    client = connect(*server.getsockname()[:2])
    peer, _ = server.accept()
    peer.sendall(b'hello')
    return client.recv(5).decode()
for host in ('127.0.0.1', '127.9.9.9', '::1', '198.18.0.2', 'fd63:7463::2'): print(serve(host))
server = socket.create_server(('', 0))
print(outcome(lambda: connect('127.0.0.1', server.getsockname()[1]) and 'connected'))
print(outcome(lambda: connect('127.0.0.1', 1)))
a, b = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for n in range(2))
a.bind(('127.0.0.1', 0))
b.sendto(b'ping', a.getsockname())
print(a.recv(4).decode())`,
  );
  assert.equal(out, [...Array(5).fill('hello'), 'connected', 'ECONNREFUSED', 'ping'].join('\n'));
  assert.deepEqual([host.authorities, host.attempts], [[], []]);
});

test('a service of the job never gets what was meant for somebody outside', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  host.onConnect = echo;
  const out = await python(
    guest,
    `
servers = [socket.create_server(('', 8080)), socket.create_server(('192.0.2.1', 8081))]
for port in (8080, 8081):
    one = connect('192.0.2.1', port)
    one.sendall(b'out')
    print(one.recv(3))`,
  );
  assert.equal(out, "b'out'\nb'out'");
  assert.deepEqual(host.authorities, ['192.0.2.1:8080', '192.0.2.1:8081']);
});

test('the helper is out of reach of the job: its own user, nothing in its root, no capability', async () => {
  await using guest = await vmm.clone();
  const { out } = await guest.sh(
    'for p in /proc/[0-9]*; do read -r name < $p/comm; [ "$name" = ct-egress ] && cat $p/status; done',
  );
  assert.match(out, /^Name:\tct-egress$/m);
  assert.match(out, /^Uid:\t(\d+)\t\1\t\1\t\1$/m);
  assert.doesNotMatch(out, /^Uid:\t(0|1000)\t/m);
  for (const set of ['Inh', 'Prm', 'Eff', 'Bnd', 'Amb'])
    assert.match(out, new RegExp(`^Cap${set}:\t0{16}$`, 'm'));
  assert.match(out, /^NoNewPrivs:\t1$/m);
  assert.match(out, /^Seccomp:\t2$/m);
  const pid = /^Pid:\t(\d+)$/m.exec(out)?.[1];
  const { out: tried } = await guest.sh(
    `kill -9 ${pid}; ls /proc/${pid}/fd /proc/${pid}/root; cat /proc/${pid}/mem /proc/${pid}/maps; echo`,
  );
  assert.equal(tried.trim(), '');
  const { out: still } = await guest.sh(`cat /proc/${pid}/comm`);
  assert.equal(still, 'ct-egress\n');
});

test('when the host breaks the protocol, the VM ends', async () => {
  await using guest = await vmm.clone();
  const host = await EgressHost.open(guest);
  host.onConnect = echo;
  assert.equal(
    await python(guest, `one = connect('192.0.2.1', 80); one.sendall(b'hi'); print(one.recv(2))`),
    "b'hi'",
  );
  guest.egress.write(Buffer.alloc(4096, 0xff));
  await guest.exited;
  assert.match(guest.diagnostics(), /the egress helper has ended: exit status 1/);
});

test('when the host closes the channel, the VM ends', async () => {
  await using guest = await vmm.clone();
  await EgressHost.open(guest);
  assert.equal(await python(guest, 'print(1)'), '1');
  guest.egress.destroy();
  await guest.exited;
  assert.match(guest.diagnostics(), /the egress helper has ended/);
});
