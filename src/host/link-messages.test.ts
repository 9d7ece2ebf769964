import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseLinkReply } from './link-messages.ts';

test('well-formed replies pass', () => {
  assert.deepEqual(parseLinkReply({ type: 'ready', extra: 1 }), { type: 'ready' });
  const result = { outcome: 'failure', exitCode: 3, error: { code: 'JOB_FAILED', message: 'step' } };
  assert.deepEqual(parseLinkReply({ type: 'job-done', result }), { type: 'job-done', result });
});

test('what a link process tells of its job passes, without what it adds', () => {
  assert.deepEqual(parseLinkReply({ type: 'state', state: 'running', run: 'x' }), {
    type: 'state',
    state: 'running',
  });
  const step = { type: 'step', step: 3, state: 'failure', exitCode: 137, durationMs: 1.5 };
  assert.deepEqual(parseLinkReply({ ...step, name: '\u001b[2J' }), step);
});

test('parseLinkReply throws LINK_DIED on anything else', () => {
  const hostile = [
    undefined,
    null,
    'ready',
    [],
    {},
    { type: 'destroyed' },
    { type: 'job-done' },
    { type: 'job-done', result: { outcome: 'fine', exitCode: 0 } },
    { type: 'job-done', result: { outcome: 'success', exitCode: '0' } },
    { type: 'opened', timings: 'soon' },
    { type: 'state', state: 'ended' },
    { type: 'state', state: 'destroying' },
    { type: 'state' },
    { type: 'step', step: -1, state: 'running' },
    { type: 'step', step: 1.5, state: 'running' },
    { type: 'step', step: 1000, state: 'running' },
    { type: 'step', step: 0, state: 'waiting' },
    { type: 'step', step: 0, state: 'failure', exitCode: '1' },
    { type: 'step', step: 0, state: 'failure', exitCode: 1e300 },
    { type: 'step', step: 0, state: 'failure', durationMs: -1 },
    { type: 'step', step: 0, state: 'failure', durationMs: null },
  ];
  for (const message of hostile) assert.throws(() => parseLinkReply(message), { code: 'LINK_DIED' });
});

test('an error with an unknown code or endless text becomes a bounded internal one', () => {
  const unknown = parseLinkReply({ type: 'failed', error: { code: 'toString', message: 'x' } });
  assert.equal(unknown.type === 'failed' && unknown.error.code, 'INTERNAL');
  const long = parseLinkReply({ type: 'failed', error: { code: 'VMM_DIED', message: 'x'.repeat(1e6) } });
  assert.equal(long.type === 'failed' && long.error.message.length, 32_768);
});
