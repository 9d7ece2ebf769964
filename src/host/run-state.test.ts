import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  deadlineMs,
  interruptedError,
  mayFollow,
  overdueError,
  RUN_STATES,
  type UnendedState,
} from './run-state.ts';

const unended = RUN_STATES.filter((state): state is UnendedState => state !== 'ended');

test('states follow each other forwards, may be skipped, and end for good', () => {
  for (const [from, a] of RUN_STATES.entries()) {
    for (const [to, b] of RUN_STATES.entries()) assert.equal(mayFollow(a, b), to > from, `${a} → ${b}`);
  }
});

test('every state has a deadline that a timer can hold, and an error that names the state', () => {
  for (const state of unended) {
    const limit = deadlineMs(state, 2 ** 31 - 1);
    assert.ok(limit > 0 && limit < 2 ** 31, state);
    const error = overdueError(state, limit);
    assert.equal(error.code, `RUN_${state.toUpperCase()}_OVERDUE`);
    assert.equal(error.kind, 'system');
  }
});

test('steps have a minute more than the timeout of the job, which the link process enforces first', () => {
  assert.equal(deadlineMs('running', 5000), 65_000);
});

test('HOST_DIED says what the run was doing', () => {
  const messages = unended.map((state) => interruptedError(state).message);
  assert.equal(new Set(messages).size, unended.length);
  assert.match(interruptedError('queued').message, /never had a VM/);
});
