/** The audit record of a run from the guest's channel to a seal, past link process, daemon and policy; the guest is the test. */
import assert from 'node:assert/strict';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { trustKeyFile } from '../../src/audit/host-key.ts';
import { type AuditVerdict, verifyAudit } from '../../src/audit/verify.ts';
import { installRoot } from '../../src/core/install.ts';
import type { RunDetail } from '../../src/host/api.ts';
import { Runs } from '../../src/host/runs.ts';
import type { RunEvent } from '../../src/protocol/run.ts';
import { makeBuild, reverseShell, SyntheticRun } from '../support/audit-run.ts';
import { type PlayedHost, playedHost } from '../support/egress-guest-host.ts';
import { peakMib } from '../support/hostile-host.ts';
import { AuditGuest } from '../support/played-audit.ts';
import { scratchDirectory } from '../support/scratch.ts';

const EGRESS = '{mode: enforce, allow: []}';
/** What a guest that is silent is given, and a little. */
const SILENT_MS = 2000;
const SILENCE_SEEN_MS = 4000;

function directoryOf(host: PlayedHost, { run }: RunDetail): string {
  return join(host.ctHome, 'audit', run);
}

async function verdictOf(host: PlayedHost, detail: RunDetail): Promise<AuditVerdict> {
  const trust = await trustKeyFile(join(host.ctHome, 'keys/host.pub'));
  return verifyAudit({ directory: directoryOf(host, detail), run: detail.run, trust, now: new Date() });
}

const warningsIn = (events: readonly RunEvent[]): string[] =>
  events.flatMap((event) => (event.type === 'notice' && event.level === 'warning' ? [event.message] : []));

test('a run is on record: what the guest sent is stored, sealed by the host, and proved', async () => {
  await using host = await playedHost(EGRESS, { audit: 'on' });
  const { guest, result, events } = await host.start({ cpus: 2 });
  const audit = await AuditGuest.open(guest, 2);
  const process = await guest.control.startProcess();
  for (let turn = 0; turn < 20; turn += 1) await audit.calls(500, turn % 2);
  await audit.process();
  assert.equal((await host.client.run('latest')).audit?.state, 'recording');
  void guest.control.endProcess(process);
  await audit.answerPosition();
  assert.equal((await result).outcome, 'success');
  const detail = await host.client.run('latest');
  assert.equal(detail.audit?.state, 'complete');
  assert.equal(detail.audit?.records, 10_004);
  assert.deepEqual(readdirSync(directoryOf(host, detail)).sort(), ['seal.json', 'segment-00000']);
  const verdict = await verdictOf(host, detail);
  assert.ok(verdict.status === 'proved', JSON.stringify(verdict));
  const { seal } = verdict;
  assert.equal(seal.record.head, detail.audit?.head);
  assert.deepEqual([seal.outcome, seal.image, seal.accelerator], ['success', detail.image.digest, 'tcg']);
  assert.match(seal.policy, /^[0-9a-f]{64}$/);
  assert.deepEqual(warningsIn(events), []);
  assert.equal(host.alerts.length, 0);
  const file = join(directoryOf(host, detail), 'segment-00000');
  const bytes = readFileSync(file);
  bytes[1000] = (bytes[1000] ?? 0) ^ 1;
  writeFileSync(file, bytes);
  const tampered = await verdictOf(host, detail);
  assert.ok(tampered.status === 'tampered' && tampered.place.from === 1000, JSON.stringify(tampered));
  await host.client.removeRun(detail.run);
  assert.equal(existsSync(directoryOf(host, detail)), false);
});

test('the end waits for what the guest has recorded and not sent yet', async () => {
  await using host = await playedHost(EGRESS, { audit: 'required' });
  const { guest, result } = await host.start({});
  const audit = await AuditGuest.open(guest);
  const process = await guest.control.startProcess();
  void guest.control.endProcess(process);
  await audit.answerPosition(300);
  assert.equal(await Promise.race([result.then(() => 'ended'), sleep(600, 'waits')]), 'waits');
  await audit.calls(300);
  assert.equal((await result).outcome, 'success');
  assert.equal((await host.client.run('latest')).audit?.records, 300);
});

const violations: readonly (readonly [
  reason: string,
  act: (audit: AuditGuest) => Promise<void> | void,
  message: RegExp,
])[] = [
  [
    'gap',
    async (audit) => {
      audit.skip(7);
      await audit.calls(5);
    },
    /go on with number 107 instead of 100: 7 are missing/,
  ],
  ['lost', (audit) => audit.lost(3), /lost 3 records/],
  ['malformed', (audit) => audit.send(Buffer.alloc(64, 0x41)), /does not begin like one/],
  ['silent', (audit) => audit.silence(), /sent nothing for 2000 ms/],
  ['closed', (audit) => void audit.socket.destroy(), /closed the channel|channel of the guest broke/],
];

for (const [reason, act, message] of violations) {
  test(`required: a record that is ${reason} ends the run with AUDIT_LOST, its VM is killed, an alert says why`, async () => {
    await using host = await playedHost(EGRESS, { audit: 'required' });
    const { guest, result } = await host.start({});
    const audit = await AuditGuest.open(guest);
    await guest.control.startProcess();
    await audit.calls(100);
    await sleep(100);
    const startedAt = performance.now();
    await act(audit);
    await guest.exited;
    const tookMs = performance.now() - startedAt;
    const ended = await result;
    assert.equal(ended.outcome, 'violation');
    assert.equal(ended.exitCode, 122);
    assert.equal(ended.error?.code, 'AUDIT_LOST');
    assert.match(ended.error?.message ?? '', message);
    assert.ok(tookMs < SILENCE_SEEN_MS, `${tookMs} ms`);
    if (reason === 'silent') assert.ok(tookMs >= SILENT_MS - 250, `${tookMs} ms`);
    assert.deepEqual(
      host.alerts.map(({ rule, action, severity }) => [rule, action, severity]),
      [[`ct.audit.${reason}`, 'terminated', 'high']],
    );
    const detail = await host.client.run('latest');
    assert.equal(detail.audit?.state, 'incomplete');
    assert.equal(detail.audit?.reason, reason);
    const verdict = await verdictOf(host, detail);
    assert.ok(verdict.status === 'incomplete' && verdict.reason === 'violation', JSON.stringify(verdict));
    assert.equal(verdict.seal?.record.violation?.reason, reason);
    assert.equal(verdict.seal?.record.counts.cpus[0]?.records, 100);
    assert.equal(verdict.seal?.error, 'AUDIT_LOST');
    console.log(`${reason}: VM dead after ${tookMs.toFixed(0)} ms`);
  });

  test(`on: a record that is ${reason} is sealed as incomplete; the run goes on, warned of, with an alert`, async () => {
    await using host = await playedHost(EGRESS, { audit: 'on' });
    const { guest, result, events } = await host.start({});
    const audit = await AuditGuest.open(guest);
    const process = await guest.control.startProcess();
    await audit.calls(100);
    await act(audit);
    while (host.alerts.length === 0) await sleep(20);
    // It is read on: a guest that is not stops its job.
    for (let turn = 0; turn < 30; turn += 1) await audit.calls(4000);
    void guest.control.endProcess(process);
    assert.equal((await result).outcome, 'success');
    assert.deepEqual(
      host.alerts.map(({ rule, action }) => [rule, action]),
      [[`ct.audit.${reason}`, 'recorded']],
    );
    const warnings = warningsIn(events);
    assert.equal(warnings.length, 1);
    assert.match(warnings[0] ?? '', message);
    const detail = await host.client.run('latest');
    assert.deepEqual([detail.audit?.state, detail.audit?.reason], ['incomplete', reason]);
    const verdict = await verdictOf(host, detail);
    assert.ok(verdict.status === 'incomplete' && verdict.reason === 'violation', JSON.stringify(verdict));
  });
}

test('required: without a tracer nothing of the job runs; with `on` it does, and is warned of', async () => {
  const hasStarted = await (async () => {
    await using host = await playedHost(EGRESS, { audit: 'required' });
    const { guest, result } = await host.start({});
    guest.audit.destroy(); // nobody is there
    const started = guest.control.request().then(() => true);
    const ended = await result;
    assert.equal(ended.outcome, 'infrastructure');
    assert.equal(ended.error?.code, 'AUDIT_UNAVAILABLE');
    assert.deepEqual(
      host.alerts.map(({ rule, action }) => [rule, action]),
      [['ct.audit.absent', 'denied']],
    );
    const detail = await host.client.run('latest');
    assert.equal(detail.audit?.state, 'absent');
    for (let wait = 0; existsSync(directoryOf(host, detail)) && wait < 100; wait += 1) await sleep(20);
    assert.equal(existsSync(directoryOf(host, detail)), false, 'an empty record is left');
    return Promise.race([started, sleep(50, false)]);
  })();
  assert.equal(hasStarted, false);

  await using host = await playedHost(EGRESS, { audit: 'on' });
  const { guest, result, events } = await host.start({});
  guest.audit.destroy();
  const process = await guest.control.startProcess();
  void guest.control.endProcess(process);
  assert.equal((await result).outcome, 'success');
  assert.match(warningsIn(events).join(), /makes no audit record/);
  assert.equal((await host.client.run('latest')).audit?.state, 'absent');
});

test('required: no step runs before the guest is known to record', async () => {
  await using host = await playedHost(EGRESS, { audit: 'required' });
  const { guest, result } = await host.start({});
  const started = guest.control.startProcess();
  assert.equal(await Promise.race([started, sleep(700, 'waits')]), 'waits');
  const audit = await AuditGuest.open(guest);
  void guest.control.endProcess(await started);
  await audit.answerPosition();
  assert.equal((await result).outcome, 'success');
});

test('off: what the guest records is read and dropped, so that it does not stop the job, and that is on record', async () => {
  await using host = await playedHost(EGRESS, { audit: 'off' });
  const { guest, result } = await host.start({});
  const audit = await AuditGuest.open(guest);
  const process = await guest.control.startProcess();
  for (let turn = 0; turn < 30; turn += 1) await audit.calls(4000); // more than all buffers between take
  void guest.control.endProcess(process);
  assert.equal((await result).outcome, 'success');
  const detail = await host.client.run('latest');
  assert.equal(detail.audit?.state, 'off');
  assert.equal(existsSync(directoryOf(host, detail)), false);
});

test('a link process that is itself stopped for longer than silence lasts ends no run, and loses nothing', async () => {
  await using host = await playedHost(EGRESS, { audit: 'required' });
  const { guest, result } = await host.start({});
  const audit = await AuditGuest.open(guest);
  const step = await guest.control.startProcess();
  process.kill(guest.linkPid, 'SIGSTOP');
  const sending = (async () => {
    for (let sent = 0; sent < 100_000; sent += 4000) await audit.calls(4000);
    return 'all';
  })();
  assert.equal(await Promise.race([sending, sleep(SILENT_MS + 1500, 'held back')]), 'held back');
  process.kill(guest.linkPid, 'SIGCONT');
  await sending;
  void guest.control.endProcess(step);
  await audit.answerPosition();
  assert.equal((await result).outcome, 'success');
  assert.equal((await host.client.run('latest')).audit?.records, 100_000);
});

test('a reverse shell ends the run while it goes on, with an alert that names the process', async () => {
  await using host = await playedHost(EGRESS, { audit: 'on' });
  const { guest, result } = await host.start({});
  const audit = await AuditGuest.open(guest);
  await guest.control.startProcess();
  const run = new SyntheticRun();
  makeBuild(run);
  reverseShell(run);
  const startedAt = performance.now();
  await audit.script(run.frames());
  await guest.exited;
  const tookMs = performance.now() - startedAt;
  const ended = await result;
  assert.deepEqual([ended.outcome, ended.error?.code], ['violation', 'POLICY_VIOLATION']);
  assert.match(ended.error?.message ?? '', /ct\.detect\.reverse_shell/);
  const [alert, ...others] = host.alerts;
  assert.ok(alert && others.length === 0, JSON.stringify(host.alerts));
  assert.deepEqual(
    [alert.rule, alert.action, alert.process?.binary],
    ['ct.detect.reverse_shell', 'terminated', '/bin/sh'],
  );
  assert.ok(Math.abs(Date.parse(alert.time) - Date.now()) < 60_000, alert.time);
  const detail = await host.client.run('latest');
  assert.equal(alert.evidence.file, directoryOf(host, detail));
  assert.equal(detail.audit?.state, 'incomplete'); // the VM was killed with what it had not sent
  console.log(`from the first record to a dead VM: ${tookMs.toFixed(0)} ms`);
});

test('what a job does last is judged, too, and a build alone raises no alert', async () => {
  await using host = await playedHost(EGRESS, { audit: 'on' });
  for (const [attack, rules] of [
    [(run: SyntheticRun) => void run.step('x').file('read', '/home/ct/.ssh/id_rsa').exit(), 1],
    [makeBuild, 0],
  ] as const) {
    host.alerts.length = 0;
    const { guest, result } = await host.start({});
    const audit = await AuditGuest.open(guest);
    const step = await guest.control.startProcess();
    const run = new SyntheticRun();
    attack(run);
    await audit.script(run.frames());
    void guest.control.endProcess(step);
    await audit.answerPosition();
    assert.equal((await result).outcome, 'success');
    assert.deepEqual(
      host.alerts.map(({ rule, action }) => [rule, action]),
      Array(rules).fill(['ct.detect.credentials', 'recorded']),
    );
  }
});

test('a destination that the last runs of the job did not have is an alert; those that they had are none', async () => {
  await using host = await playedHost(EGRESS, { audit: 'on' });
  const connecting = async (port: number): Promise<string[]> => {
    host.alerts.length = 0;
    const { guest, result } = await host.start({});
    const audit = await AuditGuest.open(guest);
    const step = await guest.control.startProcess();
    const run = new SyntheticRun();
    run.step('x').spawn('/usr/bin/curl', ['curl']).connect('192.0.2.7', port, { fd: 3 }).exit();
    await audit.script(run.frames());
    void guest.control.endProcess(step);
    await audit.answerPosition();
    assert.equal((await result).outcome, 'success');
    for (let wait = 0; wait < 20 && host.alerts.length === 0; wait += 1) await sleep(10);
    return host.alerts.map(({ rule }) => rule);
  };
  assert.deepEqual(await connecting(443), [], 'nothing to compare with');
  assert.deepEqual(await connecting(443), []);
  assert.deepEqual(await connecting(8443), ['ct.detect.new_destination']);
  assert.deepEqual(await connecting(8443), [], 'it is known now');
});

test('a guest that records as fast as it can holds up neither its link process nor the daemon', async () => {
  await using host = await playedHost(EGRESS, { audit: 'on' });
  const { guest, result, events } = await host.start({});
  const audit = await AuditGuest.open(guest);
  const step = await guest.control.startProcess();
  const before = peakMib(process.pid);
  let slowestMs = 0;
  let linkMib = 0;
  let isOver = false;
  const looking = (async () => {
    while (!isOver) {
      const at = performance.now();
      await host.client.info();
      slowestMs = Math.max(slowestMs, performance.now() - at);
      linkMib = Math.max(linkMib, peakMib(guest.linkPid));
      await sleep(20);
    }
  })();
  const guestCalls = 1_200_000;
  const startedAt = performance.now();
  for (let sent = 0; sent < guestCalls; sent += 4000) await audit.calls(4000);
  void guest.control.endProcess(step);
  await audit.answerPosition();
  assert.equal((await result).outcome, 'success');
  const seconds = (performance.now() - startedAt) / 1000;
  isOver = true;
  await looking;
  assert.deepEqual(warningsIn(events), []);
  assert.equal((await host.client.run('latest')).audit?.records, guestCalls);
  // 73 MiB were sent. Three blocks are held at most, however long it goes on; the rest is what Node takes.
  const grownMib = peakMib(process.pid) - before;
  assert.ok(grownMib < 64, `daemon and guest grew by ${grownMib} MiB`);
  assert.ok(linkMib < 192, `the link process took ${linkMib} MiB`);
  console.log(
    `${Math.round(guestCalls / seconds / 1000)} k records/s (their making included), slowest answer of the daemon ${slowestMs.toFixed(0)} ms, ` +
      `daemon and guest grew by ${grownMib.toFixed(0)} MiB, link process ${linkMib.toFixed(0)} MiB`,
  );
});

test('a link process that is killed leaves a record that is sealed as far as it goes', async () => {
  await using host = await playedHost(EGRESS, { audit: 'on' });
  const { guest, result } = await host.start({});
  const audit = await AuditGuest.open(guest);
  await guest.control.startProcess();
  await audit.calls(1000);
  await sleep(600); // it is on the disk after 250 ms
  process.kill(guest.linkPid, 'SIGKILL');
  await result.catch(() => {});
  let detail = await host.client.run('latest');
  for (let wait = 0; detail.audit?.state === 'recording' && wait < 100; wait += 1) {
    await sleep(50);
    detail = await host.client.run('latest');
  }
  assert.deepEqual([detail.audit?.state, detail.audit?.reason], ['incomplete', 'interrupted']);
  assert.equal(detail.audit?.records, 1000);
  const verdict = await verdictOf(host, detail);
  assert.ok(verdict.status === 'incomplete' && verdict.reason === 'violation', JSON.stringify(verdict));
  assert.deepEqual(readdirSync(directoryOf(host, detail)).sort(), ['seal.json', 'segment-00000']);
});

/** What the next daemon finds of a home whose daemon was killed at this moment. */
function killedHome(host: PlayedHost, directory: string): string {
  const home = join(directory, 'killed');
  cpSync(host.ctHome, home, { recursive: true });
  return home;
}

for (const [what, prepare] of [
  ['while a run was on record', () => {}],
  [
    'while it sealed',
    (home: string, run: string) => {
      const sealing = join(home, 'audit', `.sealing-${run}`);
      mkdirSync(sealing);
      renameSync(join(home, 'audit', run, 'segment-00000'), join(sealing, 'segment-00000'));
    },
  ],
] as const) {
  test(`a daemon that was killed ${what} leaves a record that the next one seals`, async () => {
    using scratch = scratchDirectory();
    chmodSync(scratch.path, 0o755);
    await using host = await playedHost(EGRESS, { audit: 'required' });
    const { guest, result } = await host.start({});
    const audit = await AuditGuest.open(guest);
    const step = await guest.control.startProcess();
    await audit.calls(1000);
    await sleep(600); // it is on the disk after 250 ms
    await audit.calls(4000);
    const home = killedHome(host, scratch.path);
    const { run } = await host.client.run('latest');
    prepare(home, run);
    const runs = new Runs({ ctHome: home });
    assert.equal(runs.detail(run).error?.code, 'HOST_DIED');
    await runs.sealInterrupted();
    const detail = runs.detail(run);
    assert.deepEqual([detail.audit?.state, detail.audit?.reason], ['incomplete', 'interrupted']);
    assert.equal(detail.audit?.records, 1000);
    const trust = await trustKeyFile(join(home, 'keys/host.pub'));
    const directory = join(home, 'audit', run);
    const verdict = await verifyAudit({ directory, run, trust, now: new Date() });
    assert.ok(verdict.status === 'incomplete' && verdict.reason === 'violation', JSON.stringify(verdict));
    assert.equal(verdict.seal?.error, 'HOST_DIED');
    assert.deepEqual(readdirSync(join(home, 'audit')), [run]);
    await runs.remove(run);
    assert.deepEqual(readdirSync(join(home, 'audit')), []);
    runs.close();
    void guest.control.endProcess(step);
    await audit.answerPosition();
    assert.equal((await result).outcome, 'success');
  });
}

/** A link process that was taken over: the real one, except for what it says when its job has ended. */
function liar(directory: string, lie: string): string {
  const path = join(directory, 'liar.mjs');
  writeFileSync(
    path,
    `const send = process.send.bind(process);
     process.send = (message, ...rest) => {
       if (message.type === 'job-done') { const { audit } = message; ${lie} }
       return send(message, ...rest);
     };
     await import(${JSON.stringify(join(installRoot, 'src/host/link-process.ts'))});`,
  );
  chmodSync(path, 0o644);
  return path;
}

for (const [what, lie, expected] of [
  ['a head of its own', `audit.summary.head = 'ab'.repeat(32);`, 'contradiction'],
  ['other counts', 'audit.summary.counts.cpus[0].records = 7;', 'contradiction'],
  ['another size of a file', 'audit.summary.segments[0].bytes += 1;', 'contradiction'],
] as const) {
  test(`a link process that says ${what}: the seal says what it said, and verification finds the difference`, async () => {
    using scratch = scratchDirectory();
    chmodSync(scratch.path, 0o755);
    await using host = await playedHost(EGRESS, {
      audit: 'required',
      link: { program: liar(scratch.path, lie) },
    });
    const { guest, result } = await host.start({});
    const audit = await AuditGuest.open(guest);
    const step = await guest.control.startProcess();
    await audit.calls(1000);
    void guest.control.endProcess(step);
    await audit.answerPosition();
    assert.equal((await result).outcome, 'success');
    const verdict = await verdictOf(host, await host.client.run('latest'));
    assert.ok(verdict.status === 'tampered' && verdict.damage === expected, JSON.stringify(verdict));
  });
}

test('a link process that says nothing about the record has run in vain, if policy requires one', async () => {
  using scratch = scratchDirectory();
  chmodSync(scratch.path, 0o755);
  await using host = await playedHost(EGRESS, {
    audit: 'required',
    link: { program: liar(scratch.path, 'delete message.audit;') },
  });
  const { guest, result } = await host.start({});
  const audit = await AuditGuest.open(guest);
  const step = await guest.control.startProcess();
  void guest.control.endProcess(step);
  await audit.answerPosition();
  const ended = await result;
  assert.deepEqual([ended.outcome, ended.error?.code], ['violation', 'AUDIT_LOST']);
  assert.equal((await host.client.run('latest')).audit?.state, 'unsealed');
});
