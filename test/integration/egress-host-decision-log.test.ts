import assert from 'node:assert/strict';
import { readFileSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { DecisionLogs, MAX_ENTRIES, MAX_LOG_BYTES } from '../../src/host/decision-log.ts';
import { scratchDirectory } from '../support/scratch.ts';

test('decisions are on disk at once, for their owner alone, and counts when the run has ended', async () => {
  using scratch = scratchDirectory();
  const logs = new DecisionLogs(scratch.path);
  const log = logs.begin('r1');
  log.add({ decision_id: 'a' });
  assert.equal(readFileSync(log.path, 'utf8'), '{"decision_id":"a"}\n');
  assert.equal(statSync(log.path).mode & 0o777, 0o600);
  log.repeat('a');
  log.repeat('a');
  const counts = { type: 'counts', counts: { a: 3 }, full: false };
  assert.deepEqual(JSON.parse(await logs.json('r1')), [{ decision_id: 'a' }, counts]);
  log.close();
  log.close();
  assert.deepEqual(JSON.parse(await logs.json('r1')), [{ decision_id: 'a' }, counts]);
  assert.throws(() => log.add({}), { code: 'POLICY_UNAVAILABLE' });
  assert.deepEqual(await logs.runs(), ['r1']);
  assert.ok((await logs.remove('r1')) > 0);
  assert.equal(await logs.json('r1'), '[]');
  assert.equal(await logs.remove('r1'), 0);
});

test('a full log takes no more, and says so in its last line', async () => {
  using scratch = scratchDirectory();
  const logs = new DecisionLogs(scratch.path);
  const many = logs.begin('many');
  for (let i = 0; i < MAX_ENTRIES; i++) many.add({ i });
  assert.throws(() => many.add({}), { code: 'POLICY_UNAVAILABLE', message: /10000 decisions/ });
  many.close();
  const lines = JSON.parse(await logs.json('many')) as object[];
  assert.equal(lines.length, MAX_ENTRIES + 1);
  assert.deepEqual(lines.at(-1), { type: 'counts', counts: {}, full: true });
  const large = logs.begin('large');
  const text = 'x'.repeat(1024 * 1024);
  for (let i = 0; i < 7; i++) large.add({ text });
  assert.throws(() => large.add({ text }), { code: 'POLICY_UNAVAILABLE' });
  assert.throws(() => large.add({}), { code: 'POLICY_UNAVAILABLE' });
  assert.ok(statSync(large.path).size <= MAX_LOG_BYTES);
  large.close();
});
