/** Examples whose images take their time to be built. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { exampleTest, works } from '../support/examples.ts';
import { scratchDirectory } from '../support/scratch.ts';

test('the example of a Python project fetches from the index of this machine by hash, and installs and tests offline', async (t) => {
  using scratch = scratchDirectory();
  const download = ['-m', 'pip', 'download', '--quiet', '--no-deps', '--dest', scratch.path, 'packaging'];
  if (!works('python3', ...download)) return t.skip('the pip of this machine reaches no index');
  const said = await exampleTest('python', 'python');
  assert.match(said, /Ran 5 tests/);
  assert.match(said, /OK/);
});
