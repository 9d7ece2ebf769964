import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { MatrixSpec } from './definition.ts';
import { combinationLabel, expandMatrix } from './matrix.ts';

function labels(matrix: MatrixSpec, limit = 256): string[] | undefined {
  return expandMatrix(matrix, limit)?.map(combinationLabel);
}

const axes = { node: ['18', '20'], os: ['debian', 'alpine'] };

test('the product has the last axis vary fastest', () => {
  assert.deepEqual(labels({ axes }), [
    'node=18, os=debian',
    'node=18, os=alpine',
    'node=20, os=debian',
    'node=20, os=alpine',
  ]);
});

test('exclude takes out combinations that have all of its values', () => {
  assert.deepEqual(labels({ axes, exclude: [{ node: '18', os: 'alpine' }, { node: '20' }] }), [
    'node=18, os=debian',
  ]);
});

test('include extends the combinations it does not contradict', () => {
  assert.deepEqual(labels({ axes, include: [{ node: '18', npm: '9' }, { color: 'red' }] }), [
    'node=18, os=debian, npm=9, color=red',
    'node=18, os=alpine, npm=9, color=red',
    'node=20, os=debian, color=red',
    'node=20, os=alpine, color=red',
  ]);
});

test('a later include may change what an earlier one added, but never an axis', () => {
  assert.deepEqual(labels({ axes: { a: ['1'] }, include: [{ b: 'x' }, { a: '1', b: 'y' }] }), ['a=1, b=y']);
});

test('an include that fits no combination is one of its own', () => {
  assert.deepEqual(labels({ axes: { node: ['18'] }, include: [{ node: '99', os: 'x' }] }), [
    'node=18',
    'node=99, os=x',
  ]);
  assert.deepEqual(labels({ axes: {}, include: [{ a: '1' }, { a: '2' }] }), ['a=1', 'a=2']);
});

test('equal combinations count once', () => {
  assert.deepEqual(labels({ axes: { a: ['1', '1'] } }), ['a=1']);
});

test('more combinations than the limit are refused before they are made', () => {
  const many = Array.from({ length: 256 }, (_, index) => `${index}`);
  assert.equal(labels({ axes: { a: many } })?.length, 256);
  assert.equal(labels({ axes: { a: many, b: ['1', '2'] } }), undefined);
  const startedAt = performance.now();
  assert.equal(
    labels({ axes: Object.fromEntries(many.slice(0, 32).map((name) => [`a${name}`, many])) }),
    undefined,
  );
  assert.ok(performance.now() - startedAt < 1000);
});

test('a value cannot forge a line of the log', () => {
  assert.deepEqual(labels({ axes: { a: ['1\n\u001b[2Jok'] } }), ['a=1??[2Jok']);
});
