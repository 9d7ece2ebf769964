import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseLinkReply } from './link-messages.ts';

test('well-formed replies pass', () => {
  assert.deepEqual(parseLinkReply({ type: 'ready', extra: 1 }), { type: 'ready' });
  const result = { outcome: 'failure', exitCode: 3, error: { code: 'JOB_FAILED', message: 'step' } };
  assert.deepEqual(parseLinkReply({ type: 'job-done', result }), { type: 'job-done', result });
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
  ];
  for (const message of hostile) assert.throws(() => parseLinkReply(message), { code: 'LINK_DIED' });
});

test('an error with an unknown code or endless text becomes a bounded internal one', () => {
  const unknown = parseLinkReply({ type: 'failed', error: { code: 'toString', message: 'x' } });
  assert.equal(unknown.type === 'failed' && unknown.error.code, 'INTERNAL');
  const long = parseLinkReply({ type: 'failed', error: { code: 'VMM_DIED', message: 'x'.repeat(1e6) } });
  assert.equal(long.type === 'failed' && long.error.message.length, 32_768);
});
