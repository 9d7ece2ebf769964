/**
 * A guest whose agent is the attacker's (test/fixtures/hostile/guest.ts), against a real daemon and real link processes.
 * Whatever it does: its link process stays below LINK_MAX_MIB, the daemon neither grows nor stalls, the VM is gone soon,
 * and the result says why.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { installRoot } from '../../src/core/install.ts';
import { GuestSession } from '../../src/guest/session.ts';
import { Link } from '../../src/host/link.ts';
import { unpackTree } from '../../src/job/tree.ts';
import type { JobResult } from '../../src/protocol/run.ts';
import { type Attack, type AttackOptions, type HostileHost, hostileHost } from '../support/hostile-host.ts';
import { childProcesses } from '../support/processes.ts';
import { scratchDirectory } from '../support/scratch.ts';

/** The memory cgroup of a link process has this limit, too; half of it is Node itself. */
const LINK_MAX_MIB = 256;
const DAEMON_MAX_GROWTH_MIB = 48;
const INFO_MAX_MS = 1000;
/** From the first hostile byte to a VM that is gone; includes starting a link process on a busy machine. */
const VM_GONE_MS = 10_000;
/** Of attacks that break no rule, and so last as long as their job may. */
const SHORT_JOB_MS = 2000;

let host: HostileHost;
let daemonAtRestMib = 0;

before(async () => {
  host = await hostileHost();
  const { result } = await host.attack('harmless:first');
  assert.deepEqual(result, { outcome: 'success', exitCode: 0 });
  daemonAtRestMib = host.daemonMib();
});
after(() => host[Symbol.asyncDispose]());

interface Expected {
  readonly outcome?: JobResult['outcome'];
  readonly code: string;
  readonly message: RegExp;
}

async function attack(scenario: string, expected: Expected, options: AttackOptions = {}): Promise<Attack> {
  const made = await host.attack(scenario, options);
  const { result, vmGoneMs, linkPeakMib } = made;
  assert.equal(result.outcome, expected.outcome ?? 'infrastructure', JSON.stringify(result));
  assert.equal(result.error?.code, expected.code, JSON.stringify(result));
  assert.match(result.error?.message ?? '', expected.message);
  assert.ok(linkPeakMib < LINK_MAX_MIB, `the link process took ${linkPeakMib} MiB`);
  assert.ok(vmGoneMs < VM_GONE_MS, `the VM was gone after ${vmGoneMs} ms`);
  return made;
}

const protocol = (message: RegExp): Expected => ({ code: 'GUEST_PROTOCOL', message });
const timeout: Expected = { outcome: 'timeout', code: 'JOB_TIMEOUT', message: /ran longer than 2 s/ };

describe('a guest that breaks the protocol instead of answering', { concurrency: 3 }, () => {
  const cases: readonly [scenario: string, what: string, expected: Expected][] = [
    ['hello-garbage', 'with garbage instead of the hello', protocol(/too much before its session/)],
    ['hello-then-garbage', 'with garbage right after the hello', protocol(/Protocol error/)],
    ['identity:garbage', 'with garbage instead of the identity', protocol(/Protocol error/)],
    ['identity-endless-text', 'with endless figures for its identity', protocol(/too long/)],
    ['exec:garbage', 'with garbage instead of frames', protocol(/Protocol error/)],
    ['exec:endless-continuation', 'with headers without end', protocol(/./)],
    ['exec:empty-continuation', 'with empty CONTINUATION frames', protocol(/Too many CONTINUATION/)],
    ['exec:thousands-of-headers', 'with thousands of headers', protocol(/./)],
    ['exec:informational-headers', 'with informational responses without end', protocol(/./)],
    ['exec:streams-of-its-own', 'with thousands of streams of its own', protocol(/Protocol error/)],
    ['exec:push-promises', 'with thousands of PUSH_PROMISE frames', protocol(/Protocol error/)],
    ['exec:resets', 'with resets without end', protocol(/broke off/)],
    ['exec:settings-flood', 'with SETTINGS whose answers it does not read', protocol(/Flooding/)],
    ['exec:ping-flood', 'with PING whose answers it does not read', protocol(/Flooding/)],
    ['exec:window-overflow', 'with windows that overflow', protocol(/Flow control/)],
    ['exec:broken-hpack', 'with headers that do not decode', protocol(/Protocol error|Compression/)],
    ['exec:data-beyond-windows', 'with data beyond its windows', protocol(/./)],
    ['exec:empty-data', 'with empty DATA frames without end', protocol(/Too many invalid/)],
    ['exec:priority-flood', 'with PRIORITY frames without end', protocol(/Protocol error/)],
    ['exec:unknown-frames', 'with frames of unknown type without end', protocol(/Protocol error/)],
    ['exec:goaway', 'with GOAWAY', protocol(/ended the session/)],
    ['exec:closed-without-answer', 'by closing the request', protocol(/without an answer/)],
    ['exec:endless-refusal', 'with an endless refusal', { code: 'GUEST_REFUSED', message: /no no no/ }],
    ['process:oversized-record', 'with a record of 2 GiB', protocol(/announces 2147483647 bytes/)],
    ['process:unknown-record', 'with a record of unknown type', protocol(/unknown record type 153/)],
    ['process:record-after-exit', 'with output after the exit', protocol(/after the exit/)],
    ['process:exit-twice', 'with two exits', protocol(/after the exit/)],
    ['process:malformed-exit', 'with a malformed exit', protocol(/malformed/)],
    ['process:no-exit', 'by ending a process without an exit', protocol(/without its exit code/)],
    ['process:cut-record', 'with a record that is cut short', protocol(/without its exit code/)],
  ];
  for (const [scenario, what, expected] of cases) {
    test(`${what} loses its VM, and the result says why`, async () => {
      await attack(scenario, expected);
    });
  }
});

describe('a guest that breaks no rule', { concurrency: 4 }, () => {
  // The first, because its link process says goodbye to a client that does not listen for 10 s.
  test('and writes what nobody reads waits, and its job ends at its timeout', async () => {
    let heard = 0;
    const { linkPeakMib } = await attack('process:endless-output:unread', timeout, {
      timeoutMs: SHORT_JOB_MS,
      io: {
        onOutput: (_, __, bytes) => {
          heard += bytes.length;
          return new Promise(() => {});
        },
      },
    });
    assert.ok(heard > 0 && heard < 1024 * 1024, `${heard} bytes`);
    assert.ok(linkPeakMib < LINK_MAX_MIB);
  });

  const cases: readonly [scenario: string, what: string][] = [
    ['exec:never-answered', 'and never answers'],
    ['exec:hpack-bomb', 'and sends an HPACK bomb'],
    ['exec:origin-flood', 'and floods ORIGIN frames'],
    ['exec:closed-stream-data', 'and sends data for a request that has ended'],
    ['exec:resized-tables', 'and asks for tables of 4 GiB'],
    ['process:endless-output', 'and writes without end'],
    ['process:empty-records', 'and writes records without content'],
    ['process:record-in-crumbs', 'and sends its records in frames of one byte'],
    ['identity-keys', 'and claims five hundred figures of itself'],
    ['identity-prototype', 'and names its figures after properties of objects'],
  ];
  for (const [scenario, what] of cases) {
    test(`${what} lasts as long as its job may`, async () => {
      await attack(scenario, timeout, { timeoutMs: SHORT_JOB_MS });
    });
  }

  test('and has hostile neighbours is not harmed', async () => {
    const { result, output } = await host.attack('harmless:second');
    assert.deepEqual(result, { outcome: 'success', exitCode: 0 });
    assert.equal(output, 'unharmed\n');
  });
});

test('a link process that its guest keeps from answering is LINK_STUCK, for the daemon and for the client', async () => {
  const stuck = { code: 'LINK_STUCK', message: /did not answer for 3 s/ };
  const { client } = await attack('exec:never-answered:stuck', stuck, {
    // What an endless computation does to an event loop, without the heat.
    onStep: (linkPid) => process.kill(linkPid, 'SIGSTOP'),
  });
  assert.equal('outcome' in client && client.error?.code, 'LINK_STUCK');
});

test('a guest cannot say what only its link process says: a forged end of the job is output', async () => {
  const { output, client } = await attack('process:forgery', protocol(/unknown record type 80/));
  assert.match(output, /"type":"job-done"/);
  assert.equal('outcome' in client && client.outcome, 'infrastructure');
});

for (const [name, why] of [
  ['artifact-climbs', 'climbs out of its directory'],
  ['artifact-endless-name', 'announces a name of 4 GiB'],
  ['artifact-through-link', 'leads through a link'],
] as const) {
  test(`an artifact that ${why} is ARTIFACT_REFUSED at the client, and nothing is written`, async () => {
    using scratch = scratchDirectory();
    const directory = join(scratch.path, 'out/job');
    const { client } = await host.attack(`artifacts:${name}`, {
      artifacts: ['out'],
      io: { onArtifacts: async (stream) => void (await unpackTree(stream, directory)) },
    });
    assert.deepEqual(client, { error: 'ARTIFACT_REFUSED' });
    assert.deepEqual(existsSync(directory) ? readdirSync(directory) : [], []);
    assert.deepEqual(existsSync(join(scratch.path, 'out/escaped')), false);
  });
}

/** The attacker's end of a control channel; our end has not been read. */
function guestOf(scenario: string): Disposable & { readonly control: Socket } {
  const child = spawn(process.execPath, [join(installRoot, 'test/fixtures/hostile/guest.ts'), scenario], {
    stdio: ['ignore', 'ignore', 'inherit', 'pipe'],
    env: {},
  });
  return { control: child.stdio[3] as Socket, [Symbol.dispose]: () => void child.kill('SIGKILL') };
}

describe('before there is a session', { concurrency: 3 }, () => {
  const identity = { hostname: 'ct-test', volumeCipher: 'none' };
  const cases = [
    ['before-ready-garbage', 'await-ready', 'GUEST_PROTOCOL', 'a guest that babbles'],
    ['before-ready-silence', 'await-ready', 'GUEST_BOOT_TIMEOUT', 'a guest that says nothing'],
    ['before-ready-drip', 'await-ready', 'GUEST_BOOT_TIMEOUT', 'a guest that drips'],
    ['hello-wrong-nonce', 'open', 'GUEST_BOOT_TIMEOUT', 'a guest that answers another hello'],
    ['hello-then-nothing', 'open', 'GUEST_UNRESPONSIVE', 'a guest that goes silent after the hello'],
    ['identity:never-answered', 'open', 'GUEST_UNRESPONSIVE', 'a guest that never takes its identity'],
  ] as const;
  for (const [scenario, type, code, who] of cases) {
    test(`${who} is ${code} within the time it was given`, async () => {
      using guest = guestOf(scenario);
      const link = new Link();
      await using _killed = { [Symbol.asyncDispose]: () => link.kill() };
      const timeoutMs = 1500;
      const call = link.call(
        type === 'open' ? { type, identity, timeoutMs } : { type, timeoutMs },
        guest.control,
      );
      await assert.rejects(call, { code });
    });
  }

  test('what a guest says before its link process has taken the channel over is not lost: the control', async () => {
    using guest = guestOf('ready-split');
    const link = new Link();
    await using _killed = { [Symbol.asyncDispose]: () => link.kill() };
    assert.deepEqual(await link.call({ type: 'await-ready', timeoutMs: 10_000 }, guest.control), {
      type: 'ready',
    });
  });
});

test('a guest that answers no ping is GUEST_UNRESPONSIVE; the control answers and lives on', async () => {
  const identity = { hostname: 'ct-test', volumeCipher: 'none' };
  const request = { argv: ['x'], env: {}, cwd: '/', uid: 1000, gid: 1000, onOutput: () => {} };
  using deaf = guestOf('process:no-more-pings');
  using control = guestOf('exec:never-answered');
  const [lost, kept] = await Promise.all(
    [deaf, control].map(async (guest) => {
      const { session } = await GuestSession.open(guest.control, identity, 10_000);
      const process = session.exec(request);
      // The deaf one stops to answer once its process has started.
      await sleep(300);
      session.watch({ intervalMs: 50, timeoutMs: 500 });
      const ended = await Promise.race([process.catch((error) => error.code), sleep(2000, 'lives')]);
      session.close();
      return ended;
    }),
  );
  assert.deepEqual([lost, kept], ['GUEST_UNRESPONSIVE', 'lives']);
});

test('after all of this the daemon has not grown, never stalled, and has no process left', async () => {
  assert.ok(host.slowestInfoMs() < INFO_MAX_MS, `GET /v1/info took ${host.slowestInfoMs()} ms`);
  const growthMib = host.daemonMib() - daemonAtRestMib;
  assert.ok(growthMib < DAEMON_MAX_GROWTH_MIB, `the daemon grew by ${growthMib} MiB`);
  // A link process says goodbye to its client for a while, if that does not read.
  for (let attempt = 0; childProcesses(host.pid).length > 0 && attempt < 120; attempt++) await sleep(100);
  assert.deepEqual(childProcesses(host.pid), []);
});
