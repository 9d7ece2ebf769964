import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatDuration, formatSizeMib, parseDurationMs, parseSizeMib } from './quantity.ts';

test('durations are milliseconds, and units may be combined from large to small', () => {
  assert.equal(parseDurationMs('30s'), 30_000);
  assert.equal(parseDurationMs('10m'), 600_000);
  assert.equal(parseDurationMs('1h30m'), 5_400_000);
  assert.equal(parseDurationMs('7d'), 604_800_000);
});

test('what is no duration is undefined', () => {
  for (const text of [
    '',
    '30',
    's',
    '30 s',
    '-1s',
    '1.5h',
    '30m1h',
    '1h1h',
    '1w',
    `${'9'.repeat(30)}s`,
    '1s\n',
  ]) {
    assert.equal(parseDurationMs(text), undefined, text);
  }
});

test('sizes are MiB in powers of two', () => {
  assert.equal(parseSizeMib('512M'), 512);
  assert.equal(parseSizeMib('512MiB'), 512);
  assert.equal(parseSizeMib('2G'), 2048);
  assert.equal(parseSizeMib('1GiB'), 1024);
  assert.equal(parseSizeMib('1T'), 1_048_576);
});

test('what is no size is undefined', () => {
  for (const text of ['', '512', 'M', '1 G', '1GB', '1g', '1.5G', '-1G', `${'9'.repeat(20)}T`, '1G\n']) {
    assert.equal(parseSizeMib(text), undefined, text);
  }
});

test('formatting gives the shortest spelling that parses back', () => {
  for (const text of ['30s', '10m', '1h30m', '7d', '1d1h1m1s']) {
    assert.equal(formatDuration(parseDurationMs(text) ?? 0), text);
  }
  for (const text of ['512M', '2G', '1T', '1025M'])
    assert.equal(formatSizeMib(parseSizeMib(text) ?? 0), text);
  assert.equal(formatDuration(0), '0s');
});
