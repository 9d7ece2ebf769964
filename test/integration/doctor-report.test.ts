/** `ct doctor --report`: complete, and fit to be shown to others. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Diagnosis } from '../../src/cli/checks.ts';
import { formatReport, writeReport } from '../../src/cli/report.ts';
import { scratchDirectory } from '../support/scratch.ts';

function diagnosisOf(ctHome: string): Diagnosis {
  return {
    accelerator: 'tcg',
    checks: [
      { name: 'disk', level: 'ok', message: `80 GB free in ${ctHome}` },
      { name: 'image', level: 'failed', message: `no ${homedir()}/x`, fix: 'build it' },
    ],
    cgroups: {
      isInUse: true,
      statuses: [
        { controller: 'cpu', version: 2, directory: '/sys/fs/cgroup/x/ct-1' },
        { controller: 'memory', reason: '/sys/fs/cgroup/x cannot be written: EROFS' },
      ],
    },
  };
}

test('the report has checks, verdict, cgroups with reasons and the end of the log; paths of the user are shortened', () => {
  using scratch = scratchDirectory();
  const ctHome = join(scratch.path, 'home');
  mkdirSync(ctHome);
  const lines = Array.from({ length: 500 }, (_, i) => `ct host: line ${i} \x1b[31m${ctHome}/blobs`);
  writeFileSync(join(ctHome, 'host.log'), lines.join('\n'));
  writeFileSync(
    join(ctHome, 'accelerator.json'),
    '{"accelerator":"tcg","reason":"this machine has no /dev/kvm"}',
  );
  process.env['CT_REPORT_TEST'] = 'not-for-others';
  const report = formatReport(diagnosisOf(ctHome), ctHome);
  delete process.env['CT_REPORT_TEST'];
  assert.match(report, /✗ image +no ~\/x/);
  assert.match(report, /✓ disk +80 GB free in \$CT_HOME/);
  assert.match(report, /"reason":"this machine has no \/dev\/kvm"/);
  assert.match(report, /cpu: v2 in \/sys\/fs\/cgroup\/x\/ct-1\nmemory: none: .*EROFS/);
  assert.match(report, /ct host: line 499 \[31m\$CT_HOME\/blobs/);
  assert.doesNotMatch(report, /line 400 /);
  assert.ok(!report.includes(ctHome) && !report.includes('not-for-others'));
  assert.ok(homedir() === '/' || !report.includes(homedir()));
});

test('the report is for its owner alone, and replaces no file', () => {
  using scratch = scratchDirectory();
  const file = join(scratch.path, 'report.txt');
  writeReport(file, diagnosisOf(scratch.path), scratch.path);
  assert.equal(statSync(file).mode & 0o777, 0o600);
  assert.match(readFileSync(file, 'utf8'), /^# Report of ct doctor/);
  assert.throws(() => writeReport(file, diagnosisOf(scratch.path), scratch.path), {
    code: 'USAGE',
    message: /exists/,
  });
});
