import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import type { Alert } from '../audit/alert.ts';
import type { EgressDecision } from '../policy/decision.ts';
import { EgressAlerts, egressAlert } from './egress-alerts.ts';

const run = { id: 'run', job: 'job', trust: 'local' } as const;

function alertOf(rule: string, action: EgressDecision['action']) {
  const denial = { rule, message: 'what was tried' };
  return egressAlert(
    {
      id: 'd1',
      request: { kind: 'stream', host: 'a.example', port: 443, literal: false, protocol: 'tls', sni: null },
      decision: { action, denial },
      denial,
      count: 1,
      step: 'one',
      asker: { question: 1 },
    },
    run,
    '/decisions/run.jsonl',
    new Date(0),
  );
}

test('what operators listed, what gives out credentials, a guest that was taken over and every end of a run are alerts', () => {
  const severity = (rule: string, action: EgressDecision['action'] = 'deny') =>
    alertOf(rule, action)?.severity;
  assert.equal(severity('ct.egress.banned', 'terminate'), 'critical');
  assert.equal(severity('ct.egress.metadata'), 'high');
  assert.equal(severity('ct.egress.forged_request'), 'high');
  assert.equal(severity('ct.egress.blocked'), 'medium');
  assert.equal(severity('ct.egress.not_allowed', 'terminate'), 'high');
  assert.equal(severity('acme.own_rule', 'terminate'), 'high');
  assert.equal(severity('ct.egress.not_allowed'), undefined, 'the control: that is in the log of the job');
  assert.equal(severity('ct.egress.no_way_out'), undefined);
});

test('an alert says what was tried, where, in which step, and where the proof lies', () => {
  const alert = alertOf('ct.egress.blocked', 'deny');
  assert.deepEqual(alert && { ...alert, id: '' }, {
    version: 1,
    id: '',
    time: '1970-01-01T00:00:00.000Z',
    severity: 'medium',
    title: 'what was tried',
    rule: 'ct.egress.blocked',
    action: 'denied',
    run: { id: 'run', job: 'job', step: 'one' },
    destination: { host: 'a.example', port: 443, protocol: 'tls' },
    evidence: { file: '/decisions/run.jsonl', id: 'd1' },
    count: 1,
  });
});

test('an alert waits a moment for word of its process, and no longer than its run', () => {
  mock.timers.enable({ apis: ['setTimeout'] });
  const filed: Alert[] = [];
  const alerts = new EgressAlerts({ file: (alert) => filed.push(alert) }, true);
  const alert = alertOf('ct.egress.blocked', 'deny');
  assert.ok(alert);
  const by = { pid: 7, binary: '/usr/bin/curl', arguments: 'curl x' };
  alerts.file(1, { ...alert, process: by });
  assert.equal(filed.length, 1, 'known at once');
  alerts.file(2, alert);
  alerts.file(3, alert);
  alerts.file(4, alert);
  assert.equal(filed.length, 1);
  alerts.origin(2, by);
  assert.deepEqual(filed[1]?.process, by);
  mock.timers.tick(1500);
  assert.equal(filed.length, 4);
  assert.equal(filed[2]?.process, undefined);
  alerts.file(5, alert);
  alerts[Symbol.dispose]();
  assert.equal(filed.length, 5, 'the run has ended');
  mock.timers.reset();
  const without: Alert[] = [];
  new EgressAlerts({ file: (one) => without.push(one) }, false).file(1, alert);
  assert.equal(without.length, 1, 'nothing is on record, so nothing is waited for');
});
