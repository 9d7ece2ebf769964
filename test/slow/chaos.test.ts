/** Random kill -9 of clients, VMMs, link processes and the daemon: nothing is left, and every record is true. */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { copyTestHome, testImage } from '../support/images.ts';
import { runCt } from '../support/run-ct.ts';
import { scratchDirectory } from '../support/scratch.ts';

before(async () => {
  await testImage('debian-12');
});

test('jobs under attack leave nothing, and their records say what happened', async () => {
  using scratch = scratchDirectory();
  const home = copyTestHome(scratch.path);
  const { status, stdout, stderr } = await runCt(['bench', 'chaos', '-n', '40', '-j', '3', '--json'], {
    cwd: scratch.path,
    env: { CT_HOME: home },
  });
  assert.equal(stderr.replaceAll(/^.*(image|preparing).*\n/gm, ''), '');
  const figures = JSON.parse(stdout);
  assert.deepEqual(figures.leftovers, { processes: 0, scratchFiles: 0, sockets: 0, cgroups: 0 });
  assert.deepEqual(figures.untruthful, []);
  assert.equal(status, 0);
  // The control: things were killed, and jobs suffered; others went through.
  const kills = Object.values(figures.kills as Record<string, number>).reduce((sum, count) => sum + count, 0);
  assert.ok(kills >= 3, `only ${kills} kills`);
  assert.ok(figures.outcomes.success > 0, JSON.stringify(figures.outcomes));
});
