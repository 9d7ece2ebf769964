import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BuildOutput, downloadProgress, overallFraction } from './progress.ts';

test('a status line of apt becomes a download event', () => {
  assert.deepEqual(downloadProgress('dlstatus:21:12.5000:Retrieving file 21 of 168 (2s remaining)'), {
    phase: 'downloading',
    fraction: 0.125,
    message: 'downloading package 21 of 168',
  });
  assert.equal(downloadProgress('Get:1 something'), undefined);
});

test('the output of a build becomes phases with fractions', () => {
  const output = new BuildOutput(2);
  const events = [
    'I: extracting archives...',
    'Selecting previously unselected package libc6:amd64.',
    'Unpacking libc6:amd64 (2.36-9) ...',
    'Unpacking gcc-12 (12.2.0-14) over (12.2.0-13) ...',
    'Setting up libc6:amd64 (2.36-9) ...',
    'ct: cleaning',
    'ct: inventory',
    'ct: filesystem',
    'I: success in 9 seconds',
  ].map((line) => output.line(line));
  assert.deepEqual(
    events
      .filter((event) => event !== undefined)
      .map(({ phase, fraction, message }) => [phase, fraction, message]),
    [
      ['unpacking', undefined, 'unpacking the base system'],
      ['unpacking', 0.5, 'unpacking libc6'],
      ['unpacking', 1, 'unpacking gcc-12'],
      ['configuring', 0.5, 'configuring libc6'],
      ['cleaning', undefined, 'removing caches, logs and keys'],
      ['filesystem', undefined, 'listing what is in the image'],
      ['filesystem', undefined, 'writing the file system'],
    ],
  );
  assert.equal(output.last.phase, 'filesystem');
});

test('a whole build advances from phase to phase, and ends where it is done', () => {
  const phases = [
    'waiting',
    'resolving',
    'downloading',
    'unpacking',
    'configuring',
    'cleaning',
    'filesystem',
    'kernel',
    'storing',
  ] as const;
  let last = 0;
  for (const phase of phases) {
    const [begin, middle, end] = [0, 0.5, 1].map((fraction) =>
      overallFraction({ phase, fraction, message: '' }),
    );
    assert.ok(begin !== undefined && middle !== undefined && end !== undefined);
    assert.equal(begin, last, phase);
    assert.ok(begin <= middle && middle <= end, phase);
    last = end;
  }
  assert.equal(last, 1);
});
