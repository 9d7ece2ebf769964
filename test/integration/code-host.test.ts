/** The host's half of the control of code, with a guest that the test plays: what it is told and when, and what its word leads to. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { StepRequest } from '../../src/protocol/run.ts';
import { SyntheticRun } from '../support/audit-run.ts';
import { playedHost } from '../support/egress-guest-host.ts';
import { AuditGuest } from '../support/played-audit.ts';

const EGRESS = "{mode: enforce, allow: ['*']}";

function step(name: string, network?: 'none'): StepRequest {
  const common = { name, argv: ['true'], env: {}, workingDirectory: '.', condition: 'success' } as const;
  return network === undefined ? common : { ...common, network };
}

test('GUEST_REFUSED: a guest that cannot judge code runs nothing, and the run says what to do', async () => {
  await using host = await playedHost(EGRESS, { audit: 'on' });
  const { guest, result } = await host.start({ exec: 'audit' });
  const audit = await AuditGuest.open(guest);
  await guest.control.refuse(await guest.control.request());
  await audit.answerPosition();
  const { outcome, exitCode, error } = await result;
  assert.deepEqual([outcome, exitCode, error?.code], ['infrastructure', 125, 'GUEST_REFUSED']);
  assert.match(String(error?.message), /the VM cannot tell which/);
  assert.match(String(error?.hint), /build it again/);
});

test('a phase that a guest does not begin is the end of the run', async () => {
  await using host = await playedHost(EGRESS, { audit: 'on' });
  const { guest, result } = await host.start({ exec: 'enforce', steps: [step('one')] });
  const audit = await AuditGuest.open(guest);
  await guest.control.answerIdentity('interpreters=0\n');
  await guest.control.refuse(await guest.control.request());
  await audit.answerPosition();
  const { outcome, error } = await result;
  assert.deepEqual([outcome, error?.code], ['infrastructure', 'GUEST_REFUSED']);
});

test('the guest is told of a phase when it changes, and only then', async () => {
  await using host = await playedHost(EGRESS, { audit: 'on' });
  const { guest, result } = await host.start({
    exec: 'enforce',
    network: { allow: ['tcp://a.example:1'] },
    steps: [step('a'), step('b'), step('c', 'none'), step('d', 'none'), step('e')],
  });
  const audit = await AuditGuest.open(guest);
  const { control } = guest;
  await control.answerIdentity('interpreters=0\n'); // which code may run
  for (const phase of [['a', 'b'], ['c', 'd'], ['e']]) {
    await control.answerIdentity('');
    for (const _ of phase) await control.endProcess(await control.startProcess());
  }
  await audit.answerPosition();
  assert.deepEqual(await result, { outcome: 'success', exitCode: 0 });
});

test('a job without a network is told of one phase alone; one whose code is not judged of none', async () => {
  await using host = await playedHost(EGRESS, { audit: 'on' });
  for (const exec of ['enforce', undefined] as const) {
    const { guest, result } = await host.start({
      ...(exec === undefined ? {} : { exec }),
      steps: [step('a'), step('b', 'none')],
    });
    const audit = await AuditGuest.open(guest);
    const { control } = guest;
    if (exec !== undefined) for (const said of ['interpreters=0\n', '']) await control.answerIdentity(said);
    for (const _ of ['a', 'b']) await control.endProcess(await control.startProcess());
    await audit.answerPosition();
    assert.deepEqual(await result, { outcome: 'success', exitCode: 0 });
  }
});

for (const [exec, outcome, action] of [
  ['terminate', 'violation', 'terminated'],
  ['enforce', 'success', 'denied'],
] as const) {
  test(`${exec}: what the guest has refused is ${action}, with an alert of who did what to which file`, async () => {
    await using host = await playedHost(EGRESS, { audit: 'on' });
    const { guest, result, events } = await host.start({ exec, steps: [step('a')] });
    const audit = await AuditGuest.open(guest);
    const { control } = guest;
    for (const said of ['interpreters=0\n', '']) await control.answerIdentity(said);
    const process = await control.startProcess();
    const run = new SyntheticRun();
    run.step('sh -c ./tool').denied('exec', '/workspace/tool', 'ab'.repeat(32));
    await audit.script(run.frames());
    if (exec === 'enforce') {
      await control.endProcess(process);
      await audit.answerPosition();
    } else await guest.exited;
    assert.equal((await result).outcome, outcome);
    const [alert, ...others] = host.alerts;
    assert.ok(alert && others.length === 0, JSON.stringify(host.alerts));
    assert.deepEqual([alert.rule, alert.action], ['ct.exec.unsigned', action]);
    assert.deepEqual(alert.file, { path: '/workspace/tool', digest: `sha256:${'ab'.repeat(32)}` });
    assert.ok((alert.process?.pid ?? 0) > 0 && alert.process?.binary !== '');
    assert.deepEqual(
      events.flatMap((event) => (event.type === 'code' ? [[event.action, event.path]] : [])),
      exec === 'enforce' ? [['denied', '/workspace/tool']] : [['terminated', '/workspace/tool']],
    );
    const decisions = JSON.stringify(await host.client.decisions((await host.client.run('latest')).run));
    assert.match(decisions, /ct\.exec\.unsigned/);
  });
}
