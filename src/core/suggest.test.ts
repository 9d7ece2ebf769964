import assert from 'node:assert/strict';
import { test } from 'node:test';
import { didYouMean, nearest } from './suggest.ts';

const KEYS = ['image', 'steps', 'needs', 'working-directory', 'if', 'env', 'run'];

test('a swap, a missing, a wrong and a superfluous letter are slips', () => {
  assert.equal(nearest('stpes', KEYS), 'steps');
  assert.equal(nearest('step', KEYS), 'steps');
  assert.equal(nearest('imagr', KEYS), 'image');
  assert.equal(nearest('needss', KEYS), 'needs');
});

test('case and the kind of dash do not count', () => {
  assert.equal(nearest('Working_Directory', KEYS), 'working-directory');
  assert.equal(nearest('ENV', KEYS), 'env');
});

test('a word that is nothing like a candidate has none', () => {
  assert.equal(nearest('volumes', KEYS), undefined);
  assert.equal(nearest('xy', KEYS), undefined);
  assert.equal(nearest('x'.repeat(100_000), KEYS), undefined);
  assert.equal(didYouMean('volumes', KEYS), undefined);
});

test('the suggestion is a sentence with the word in backquotes', () => {
  assert.equal(didYouMean('stpes', KEYS), 'did you mean `steps`?');
});
