import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CtError } from '../core/errors.ts';
import { SourceText } from '../core/source-text.ts';
import type { VerifyRequest } from '../protocol/verify.ts';
import { loadSources } from './load.ts';
import { planJobs, toJobRequest } from './plan.ts';

function requestOf(job: string, file = ''): VerifyRequest | undefined {
  const text = `version: 1\n${file}jobs:\n  a: {steps: [{run: x}]${job}}\n`;
  const plan = planJobs(loadSources('/p', [new SourceText('ct.yml', text)]), { targets: [] });
  const [planned] = plan.jobs;
  assert.ok(planned);
  return toJobRequest(planned, { image: 'sha256:0', sendsTree: true }).verify;
}

test('what a job demands of itself is sent; that of the file is for jobs that have none', () => {
  assert.equal(requestOf(''), undefined);
  assert.deepEqual(requestOf(', verify: {commit: true}'), { commit: true });
  assert.deepEqual(requestOf('', 'verify: {scripts: a.json}\n'), { scripts: ['a.json'] });
  assert.deepEqual(requestOf(', verify: {scripts: [b.json, b.json, c.json]}', 'verify: {commit: true}\n'), {
    scripts: ['b.json', 'c.json'],
  });
  assert.deepEqual(requestOf(', verify: {dependencies: signature}'), {
    dependencies: { level: 'signature' },
  });
  assert.deepEqual(
    requestOf(', verify: {dependencies: {level: integrity, locks: [app/package-lock.json]}}'),
    {
      dependencies: { level: 'integrity', locks: ['app/package-lock.json'] },
    },
  );
});

test('JOB_FILE_INVALID names the place of what is no demand', () => {
  const wrong: readonly [string, RegExp][] = [
    ['verify: {commit: yes}', /expected `true` or `false`/],
    ['verify: {scripts: /etc/passwd}', /a path in the workspace/],
    ['verify: {scripts: ../a.json}', /a path in the workspace/],
    ['verify: {scripts: a//b.json}', /a path in the workspace/],
    ['verify: {dependencies: all}', /`integrity`/],
    ['verify: {dependencies: {locks: [a]}}', /level/],
    ['verify: {signers: [me]}', /signers/],
  ];
  for (const [text, message] of wrong) {
    assert.throws(
      () => requestOf(`, ${text}`),
      (error: unknown) => {
        assert.ok(error instanceof CtError && error.code === 'JOB_FILE_INVALID', text);
        assert.match(error.message, message, text);
        return true;
      },
    );
  }
});
