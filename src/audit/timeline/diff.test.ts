import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeBuild, npmCi, SyntheticRun } from '../../../test/support/audit-run.ts';
import { diffReports, isEmptyDiff, type ReportDiff } from './diff.ts';
import { buildReport, type Report } from './report.ts';

async function reportOf(act: (run: SyntheticRun) => void, startNs?: bigint): Promise<Report> {
  const run = new SyntheticRun(startNs);
  act(run);
  const nameOf = (address: string): string | undefined =>
    address === '198.18.1.1' ? 'registry.example' : undefined;
  return buildReport(run.stream(), { workspace: '/workspace', nameOf, steps: [] });
}

async function diffOf(
  earlier: (run: SyntheticRun) => void,
  later: (run: SyntheticRun) => void,
): Promise<ReportDiff> {
  return diffReports(await reportOf(earlier), await reportOf(later, 77_123_456_789n));
}

test('the same build again is no difference, although its pids and temporary files are others', async () => {
  const again = (run: SyntheticRun): void => {
    run.step('something else first').fork().exit();
    makeBuild(run, ['table', 'main', 'list']);
  };
  const diff = await diffOf(makeBuild, again);
  assert.ok(isEmptyDiff(diff), JSON.stringify(diff));
});

test('a build that calls home is told: what it ran, whom it reached, what it wrote', async () => {
  const later = (run: SyntheticRun): void => {
    makeBuild(run);
    const shell = run.step('x');
    shell.spawn('/tmp/xmr.Zq81kP', ['xmr'], { digest: 'cd'.repeat(32) });
    shell.connect('192.0.2.7', 4444).file('write', '/home/ct/.bashrc').denied('exec', '/tmp/y');
  };
  const diff = await diffOf(makeBuild, later);
  assert.deepEqual(diff.programs.added, [{ path: '/tmp/xmr.*', digest: 'cd'.repeat(32), was: [] }]);
  assert.deepEqual(diff.destinations.added, [{ host: '192.0.2.7', port: 4444, protocol: 6 }]);
  assert.deepEqual(diff.written.added, [{ what: 'write', path: '/home/ct/.bashrc' }]);
  assert.deepEqual(diff.refused.added, [{ what: 'exec', path: '/tmp/y' }]);
  for (const { removed } of [diff.programs, diff.destinations, diff.written, diff.refused]) {
    assert.deepEqual(removed, []);
  }
});

test('what a run does not do any more is told, too', async () => {
  const diff = await diffOf(
    (run) => {
      makeBuild(run);
      npmCi(run);
    },
    (run) => makeBuild(run),
  );
  assert.deepEqual(
    diff.destinations.removed.map(({ host }) => host),
    ['registry.example', 'fd63:7463::c612:101'],
  );
  assert.deepEqual(
    diff.programs.removed.map(({ path }) => path),
    ['/usr/bin/node'],
  );
});

test('a program with another digest at the same place is a new one, with the digest before', async () => {
  const digest = (text: string) => (run: SyntheticRun) => {
    run.step('x').spawn('/usr/bin/cc', ['cc'], { digest: text.repeat(32) });
  };
  const { programs } = await diffOf(digest('aa'), digest('bb'));
  assert.deepEqual(programs.added, [
    { path: '/usr/bin/cc', digest: 'bb'.repeat(32), was: ['aa'.repeat(32)] },
  ]);
  assert.equal(programs.removed.length, 1);
});

test('where one run computed no digests, programs are compared by path', async () => {
  const { programs } = await diffOf(
    (run) => run.step('x').spawn('/usr/bin/cc', ['cc'], { digest: 'aa'.repeat(32) }),
    (run) => run.step('x').spawn('/usr/bin/cc', ['cc']),
  );
  assert.deepEqual(programs, { added: [], removed: [] });
});

test('temporary files do not hide each other: another name by a person is a difference', async () => {
  const { written } = await diffOf(
    (run) => run.step('x').file('write', '/tmp/ccAbCdEf.s'),
    (run) => run.step('x').file('write', '/tmp/ccGhIjKl.s').file('write', '/tmp/payload.so'),
  );
  assert.deepEqual(written.added, [{ what: 'write', path: '/tmp/payload.so' }]);
});
