/** The outside of the network tests is what those take it for: every address leads there, and all that arrives is seen. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { noOutside, Outside } from '../support/outside.ts';
import { scratchDirectory } from '../support/scratch.ts';

const NAMES = {
  'site.example': ['20.0.0.10', '2a00:1::10'],
  'inner.example': ['127.0.0.1', '64:ff9b::7f00:1'],
};

test('every address and every name of its resolver lead outside, and what arrives is on record', {
  skip: noOutside() ?? false,
}, async () => {
  using scratch = scratchDirectory();
  await using outside = await Outside.open({ directory: scratch.path, names: NAMES });
  const inside = (...command: readonly string[]): string => {
    const [file = '', ...args] = [...outside.enter(scratch.path), ...command];
    return execFileSync(file, args, { encoding: 'utf8', stdio: 'pipe', timeout: 20_000 });
  };
  const quiet = await outside.log();
  assert.deepEqual([quiet.arrivals, quiet.questions, quiet.packets], [[], [], 0]);

  const curl = ['curl', '--silent', '--fail', '--max-time', '10'];
  const trusting = [...curl, '--cacert', join(scratch.path, 'authority.pem')];
  assert.equal(inside(...trusting, '-4', 'https://site.example/'), 'hello from site.example\n');
  assert.equal(inside(...trusting, '-6', 'https://site.example:8443/bulk/20').length, 20);
  assert.equal(inside(...curl, 'http://169.254.169.254/'), 'hello from 169.254.169.254\n');
  assert.match(inside('getent', 'ahosts', 'inner.example'), /^64:ff9b::7f00:1 .*^127\.0\.0\.1 /ms);
  inside('git', 'clone', '--quiet', 'http://site.example/repository.git', 'clone');
  assert.equal(inside('cat', 'clone/file'), 'from outside\n');

  const { arrivals, questions, packets } = await outside.log();
  const seen = arrivals.map(({ address, port }) => `${address} ${port}`);
  for (const one of ['20.0.0.10 443', '2a00:1::10 8443', '169.254.169.254 80'])
    assert.ok(seen.includes(one), one);
  assert.ok(arrivals.some(({ beginning }) => beginning.includes('Host: 169.254.169.254')));
  assert.ok(questions.includes('site.example') && packets > 20, `${questions} ${packets}`);
});
