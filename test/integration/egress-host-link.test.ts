/** The link process's end of egress: what it asks of the daemon at a time, and what becomes of the rest. */
import assert from 'node:assert/strict';
import { Socket } from 'node:net';
import { test } from 'node:test';
import { ConnectOrigins } from '../../src/host/connect-origins.ts';
import { type EgressQuestion, MAX_OPEN_DIALS, MAX_OPEN_QUESTIONS } from '../../src/host/egress-messages.ts';
import { LinkEgressControl } from '../../src/host/link-egress.ts';
import { SyntheticRun } from '../support/audit-run.ts';

function opened(): { control: LinkEgressControl; sent: EgressQuestion[] } {
  const sent: EgressQuestion[] = [];
  const control = new LinkEgressControl((question) => sent.push(question as EgressQuestion));
  control.open();
  return { control, sent };
}

const ADDRESS = '198.18.0.9';
const destination = { host: 'a.test', literal: false, port: 443 };

test('questions have ids in turn, and answers find them', async () => {
  const { control, sent } = opened();
  const first = control.dns('a.test', 'A');
  const second = control.inspect(3, { protocol: 'tls', sni: 'é', ech: false });
  assert.deepEqual(sent, [
    { type: 'egress', id: 1, ask: 'dns', name: 'a.test', queryType: 'A' },
    {
      type: 'egress',
      id: 2,
      ask: 'inspect',
      connection: 3,
      facts: { protocol: 'tls', sni: '?', ech: false },
    },
  ]);
  control.answered(2, { allowed: false, message: 'no' }, undefined);
  control.answered(1, { allowed: true }, undefined);
  assert.deepEqual(await first, { allowed: true });
  assert.deepEqual(await second, { allowed: false, message: 'no' });
});

test('a socket comes with its connection and may be half-closed; without one the connection is over', async () => {
  const { control, sent } = opened();
  const made = control.connect(destination, ADDRESS);
  const socket = new Socket();
  control.answered(1, { connected: true, connection: 8 }, socket);
  assert.deepEqual(await made, { connected: true, connection: 8, socket });
  assert.equal(socket.allowHalfOpen, true);
  const lost = control.connect(destination, ADDRESS);
  control.answered(2, { connected: true, connection: 9 }, undefined);
  const answer = await lost;
  assert.ok(!answer.connected && answer.reason === 'unreachable');
  assert.deepEqual(sent[2], { type: 'egress', id: 3, ask: 'closed', connection: 9, sent: 0, received: 0 });
});

test('no guest makes it ask more at a time than the daemon takes, and dials leave room for the rest', async () => {
  const { control, sent } = opened();
  const dials = Array.from({ length: 500 }, () => control.connect(destination, ADDRESS));
  assert.equal(sent.length, MAX_OPEN_DIALS);
  for (let i = 0; i < 500; i++) {
    void control.dns(`n${i}.test`, 'A');
    control.attempted({ what: 'udp' });
    control.closed(i, 0, 0);
  }
  assert.equal(sent.length, MAX_OPEN_QUESTIONS);
  for (let at = 0; at < sent.length; at++) {
    const { ask, id } = sent[at] as EgressQuestion;
    if (ask === 'connect')
      control.answered(id, { connected: false, reason: 'denied', message: 'no' }, undefined);
    else if (ask === 'dns') control.answered(id, { allowed: true }, undefined);
    else control.answered(id, { heard: true }, undefined);
  }
  await Promise.all(dials);
  assert.equal(sent.filter(({ ask }) => ask === 'connect').length, 500);
  assert.equal(sent.filter(({ ask }) => ask === 'closed').length, 500);
  assert.ok(sent.filter(({ ask }) => ask === 'attempted').length < 500);
});

test('a flood of attempts does not hide that the guest was taken over', async () => {
  const { control, sent } = opened();
  for (let i = 0; i < 500; i++) control.attempted({ what: 'udp' });
  control.attempted({ what: 'forged-request' });
  for (let at = 0; at < sent.length; at++)
    control.answered((sent[at] as EgressQuestion).id, { heard: true }, undefined);
  const told = sent.map((question) => (question.ask === 'attempted' ? question.attempt.what : ''));
  assert.equal(told.filter((what) => what === 'forged-request').length, 1);
  assert.equal(told.filter((what) => what === 'udp').length, 64, 'the control');
});

test('a flood is refused here beyond what may wait', async () => {
  const { control } = opened();
  const answers = Array.from({ length: 5000 }, (_, i) => control.dns(`n${i}.test`, 'A'));
  const refused = await Promise.all(answers.slice(3000));
  assert.ok(refused.every((verdict) => !verdict.allowed));
});

test('a step without network cuts connections of earlier ones, and takes none that come late', async () => {
  const { control, sent } = opened();
  const [early, late, after] = [new Socket(), new Socket(), new Socket()];
  const first = control.connect(destination, ADDRESS);
  const second = control.connect(destination, ADDRESS);
  control.answered(1, { connected: true, connection: 1 }, early);
  assert.equal((await first).connected, true);
  control.beginStep(false);
  assert.equal(early.destroyed, true);
  control.answered(2, { connected: true, connection: 2 }, late);
  assert.equal((await second).connected, false);
  assert.equal(late.destroyed, true);
  assert.ok(sent.some((question) => question.ask === 'closed' && question.connection === 2));
  control.beginStep(true);
  const third = control.connect(destination, ADDRESS);
  control.answered(4, { connected: true, connection: 3 }, after);
  assert.equal((await third).connected, true);
  assert.equal(after.destroyed, false);
  after.destroy();
});

test('without a job nothing is asked, and what waits when it ends gets a no', async () => {
  const sent: EgressQuestion[] = [];
  const control = new LinkEgressControl((question) => sent.push(question as EgressQuestion));
  assert.deepEqual(await control.dns('a.test', 'A'), { allowed: false, message: 'no job is under way' });
  control.attempted({ what: 'udp' });
  assert.equal(sent.length, 0);
  control.open();
  const waiting = [control.dns('a.test', 'A'), control.connect(destination, ADDRESS)] as const;
  control.close();
  assert.deepEqual(await waiting[0], { allowed: false, message: 'no job is under way' });
  assert.deepEqual(await waiting[1], { connected: false, reason: 'denied', message: 'no job is under way' });
  const late = new Socket();
  control.answered(2, { connected: true, connection: 1 }, late);
  assert.equal(late.destroyed, true);
});

test('a question names the process that connected there, or the daemon is told later, of what it did not allow', async () => {
  const origins = new ConnectOrigins();
  const sent: unknown[] = [];
  const control = new LinkEgressControl((said) => sent.push(said), origins);
  control.open();
  const run = new SyntheticRun();
  const curl = run.step('sh').spawn('/usr/bin/curl', ['curl', 'https://a.test']);
  curl.connect(ADDRESS, 443);
  const by = { pid: curl.pid, binary: '/usr/bin/curl', arguments: 'curl https://a.test' };
  const early = control.connect(destination, ADDRESS);
  const allowed = control.connect(destination, '198.18.0.10');
  control.answered(1, { connected: false, reason: 'denied', message: 'no' }, undefined);
  control.answered(2, { connected: false, reason: 'unreachable', message: 'no' }, undefined);
  for (const event of run.events()) if (event.kind !== 'syscall') origins.add(event);
  await Promise.all([early, allowed]);
  void control.connect(destination, ADDRESS);
  assert.deepEqual(sent, [
    { type: 'egress', id: 1, ask: 'connect', ...destination },
    { type: 'egress', id: 2, ask: 'connect', ...destination },
    { type: 'egress-by', id: 1, by },
    { type: 'egress', id: 3, ask: 'connect', ...destination, by },
  ]);
});

test('of two processes that ask the resolver at the same time neither is named', () => {
  const origins = new ConnectOrigins();
  const run = new SyntheticRun();
  const shell = run.step('sh');
  shell.spawn('/usr/bin/curl', ['curl']).connect('198.18.0.1', 53);
  const feed = (): void => {
    for (const event of run.events().slice(fed)) {
      fed += 1;
      if (event.kind !== 'syscall') origins.add(event);
    }
  };
  let fed = 0;
  feed();
  assert.equal(origins.of('198.18.0.1', 53)?.binary, '/usr/bin/curl');
  shell.spawn('/usr/bin/git', ['git']).connect('198.18.0.1', 53);
  feed();
  assert.equal(origins.of('198.18.0.1', 53), undefined);
});
