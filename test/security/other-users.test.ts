/** What somebody else on the machine can do to a running host daemon, and what the network can. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { socketDirectory } from '../../src/core/paths.ts';
import { connectHost } from '../../src/host/client.ts';
import { stopHost } from '../support/host.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';

const NOBODY = 65_534;
const options = process.getuid?.() === 0 ? {} : { skip: 'becoming another user needs root' };

let home: Scratch;
let sockets: string;
let daemonPid: number;

before(async () => {
  home = scratchDirectory();
  const host = await connectHost({ ctHome: home.path });
  daemonPid = (await host.info()).pid;
  sockets = await socketDirectory(home.path);
});
after(async () => {
  await stopHost(home.path);
  rmSync(sockets, { recursive: true, force: true });
  home[Symbol.dispose]();
});

/** Tries everything and says what succeeded. Perl, because it is readable by every user of a Debian system. */
const ATTEMPTS = `
use IO::Socket::UNIX; use Socket;
my ($home, $sockets, $pid) = @ARGV; my $g;
print "connected\\n" if IO::Socket::UNIX->new(Type => SOCK_STREAM, Peer => "$sockets/host.sock");
print "listed the home\\n" if opendir my $a, $home;
print "listed the sockets\\n" if opendir my $b, $sockets;
print "made a file in the home\\n" if open my $c, '>', "$home/intruder";
print "made a file beside the socket\\n" if open my $d, '>', "$sockets/intruder";
print "read the log\\n" if open my $e, '<', "$home/host.log";
print "read the memory\\n" if open my $f, '<', "/proc/$pid/mem";
print "read the environment\\n" if open $g, '<', "/proc/$pid/environ" and defined(getc $g);
print "listed the descriptors\\n" if opendir my $h, "/proc/$pid/fd";
print "may signal\\n" if kill 0, $pid;
`;

function attempts(as: readonly string[]): string[] {
  const [file, ...args] = [...as, 'perl', '-e', ATTEMPTS, home.path, sockets, String(daemonPid)];
  return execFileSync(file ?? 'perl', args, { encoding: 'utf8' })
    .trim()
    .split('\n')
    .filter(Boolean);
}

test('another user can neither connect to the daemon, nor read what it has, nor signal it', options, () => {
  const nobody = ['setpriv', `--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups'];
  assert.deepEqual(attempts(nobody), []);
});

test('the control: its owner can do all of that', options, () => {
  assert.equal(attempts([]).length, 10, attempts([]).join());
});

test(
  'STATE_DIRECTORY_UNSAFE: a socket directory that somebody else has made first is not used',
  options,
  async () => {
    using other = scratchDirectory();
    using target = scratchDirectory();
    const place = await socketDirectory(other.path);
    using _removed = { [Symbol.dispose]: () => rmSync(place, { recursive: true, force: true }) };
    rmSync(place, { recursive: true });
    mkdirSync(place, { mode: 0o700 });
    chownSync(place, NOBODY, NOBODY);
    await assert.rejects(socketDirectory(other.path), { code: 'STATE_DIRECTORY_UNSAFE' });
    rmSync(place, { recursive: true });
    mkdirSync(place, { mode: 0o777 });
    execFileSync('chmod', ['777', place]);
    await assert.rejects(socketDirectory(other.path), { code: 'STATE_DIRECTORY_UNSAFE' });
    rmSync(place, { recursive: true });
    symlinkSync(target.path, place);
    await assert.rejects(socketDirectory(other.path), { code: 'STATE_DIRECTORY_UNSAFE' });
    assert.deepEqual(readdirSync(target.path), []);
  },
);

/** Sockets of the process that belong to the internet protocols. */
function internetSockets(pid: number): string[] {
  const tables = ['tcp', 'tcp6', 'udp', 'udp6', 'raw', 'raw6'].map((name) => {
    try {
      return readFileSync(`/proc/${pid}/net/${name}`, 'utf8');
    } catch {
      return ''; // no such protocol here
    }
  });
  const inodes = new Set(
    tables.flatMap((table) => table.split('\n').map((line) => line.trim().split(/\s+/)[9])),
  );
  return readdirSync(`/proc/${pid}/fd`)
    .map((fd) => {
      try {
        return readlinkSync(join(`/proc/${pid}/fd`, fd));
      } catch {
        return '';
      }
    })
    .filter((target) => inodes.has(/^socket:\[(\d+)\]$/.exec(target)?.[1] ?? 'none'));
}

test('the daemon listens to no network; the control finds a process that does', async () => {
  assert.deepEqual(internetSockets(daemonPid), []);
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  assert.equal(internetSockets(process.pid).length, 1);
  server.close();
});

/** One request over the daemon's socket, whatever the file modes say. */
const REQUEST = `
use IO::Socket::UNIX; use Socket;
my $s = IO::Socket::UNIX->new(Type => SOCK_STREAM, Peer => "$ARGV[0]/host.sock") or die "not connected";
print $s "$ARGV[1]";
local $/; print <$s>;
`;

for (const [what, request] of [
  ['asks', 'GET /v1/info HTTP/1.1\r\nHost: ct\r\nConnection: close\r\n\r\n'],
  ['brings a job', 'POST /v1/jobs HTTP/1.1\r\nHost: ct\r\nConnection: Upgrade\r\nUpgrade: ct-job/1\r\n\r\n'],
] as const) {
  test(
    `a socket that was opened to everybody refuses another user who ${what}; the control is its own`,
    options,
    () => {
      const { mode: directoryMode } = statSync(sockets);
      const socketPath = join(sockets, 'host.sock');
      chmodSync(sockets, 0o755);
      chmodSync(socketPath, 0o777);
      try {
        const ask = (as: readonly string[]): string => {
          const [file = 'perl', ...args] = [...as, 'perl', '-e', REQUEST, sockets, request];
          return execFileSync(file, args, { encoding: 'utf8', timeout: 20_000 });
        };
        const refused = ask(['setpriv', `--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups']);
        assert.match(refused, /^HTTP\/1\.1 403 /);
        assert.match(refused, /PEER_REFUSED/);
        if (what === 'asks') assert.match(ask([]), /^HTTP\/1\.1 200 /);
      } finally {
        chmodSync(socketPath, 0o600);
        chmodSync(sockets, directoryMode & 0o777);
      }
    },
  );
}
