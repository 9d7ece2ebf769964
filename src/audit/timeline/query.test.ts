import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeBuild, npmCi, SyntheticRun } from '../../../test/support/audit-run.ts';
import { namesInOrder } from './destinations.ts';
import { type Match, Query, type QueryTerms } from './query.ts';

const run = new SyntheticRun();
makeBuild(run, ['main']);
npmCi(run);
const events = run.events();

function find(terms: QueryTerms): Match[] {
  const query = new Query(terms, namesInOrder(['registry.example']));
  return events.flatMap((event) => query.match(event) ?? []);
}

const kinds = (terms: QueryTerms): string[] => find(terms).map(({ event }) => event.kind);

test('without terms every event but system calls is found', () => {
  const expected = events.filter(({ kind }) => kind !== 'syscall').length;
  assert.equal(find({}).length, expected);
  assert.ok(expected > 10 && expected < events.length);
});

test('processes are found by pid, by name and by path', () => {
  assert.deepEqual(kinds({ process: 'as' }), ['exec', 'file', 'exit']);
  assert.deepEqual(kinds({ process: '/usr/bin/as' }), ['exec', 'file', 'exit']);
  assert.deepEqual(kinds({ process: '/usr/libexec/**' }), ['exec', 'file', 'exit']);
  const pid = String(find({ process: 'as' })[0]?.process?.pid);
  assert.deepEqual(kinds({ process: pid }), ['exec', 'file', 'exit']);
  assert.deepEqual(kinds({ process: 'a' }), []);
  const byLink = find({ process: 'cc' });
  assert.ok(byLink.some(({ process }) => process?.binary === '/usr/bin/x86_64-linux-gnu-gcc-12'));
});

test('system calls are found by name and number', () => {
  assert.deepEqual(kinds({ syscall: 'openat' }), ['syscall']);
  assert.deepEqual(kinds({ syscall: '257', process: 'cc1' }), ['syscall']);
  assert.deepEqual(kinds({ syscall: 'openat', process: 'as' }), []);
  assert.throws(() => find({ syscall: 'opennat' }), { code: 'USAGE', hint: /openat/ });
});

test('paths are found by file, directory and pattern', () => {
  assert.deepEqual(kinds({ path: '/usr/local/bin/app' }), ['file']);
  assert.deepEqual(kinds({ path: '/usr/local/' }), ['file']);
  assert.deepEqual(kinds({ path: '/usr/loca' }), []);
  assert.deepEqual(kinds({ path: '/tmp/*.s' }), ['file']);
  assert.deepEqual(kinds({ path: '/usr/bin/make' }), ['exec']);
});

test('destinations are found by name, pattern, address and port', () => {
  const both = ['connect', 'connect'];
  for (const destination of ['registry.example', 'Registry.example:443', '*.example', '*', '*:443']) {
    assert.deepEqual(kinds({ destination }), both, destination);
  }
  for (const destination of [
    '198.18.1.1',
    '198.18.1.1:443',
    '[fd63:7463::c612:101]:443',
    'fd63:7463::c612:101',
  ]) {
    assert.deepEqual(kinds({ destination }), ['connect'], destination);
  }
  for (const destination of ['registry.example:80', 'example', '*.registry.example', '*:80']) {
    assert.deepEqual(kinds({ destination }), [], destination);
  }
});

test('times bound what is found, both included', () => {
  const all = find({});
  const [first, last] = [all[3]?.event.timeNs ?? 0n, all[5]?.event.timeNs ?? 0n];
  assert.equal(find({ sinceNs: first, untilNs: last }).length, 3);
});

test('terms are joined by and', () => {
  assert.deepEqual(kinds({ process: 'node', destination: 'registry.example' }), ['connect', 'connect']);
  assert.deepEqual(kinds({ process: 'make', destination: 'registry.example' }), []);
  assert.deepEqual(kinds({ syscall: 'connect', destination: 'registry.example' }), []);
});
