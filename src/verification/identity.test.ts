import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type AcceptedIdentity, compileIdentity, isAccepted } from './identity.ts';

const ISSUER = 'https://token.example';
const workflow = (ref: string, repository = 'org/repo'): string =>
  `https://github.com/${repository}/.github/workflows/release.yml@${ref}`;
const accepts = (subject: AcceptedIdentity['subject'], candidate: string, issuer = ISSUER): boolean =>
  isAccepted({ issuer, subject: candidate }, [{ issuer: ISSUER, subject }]);

test('a subject is compared as it is, and an issuer too', () => {
  assert.ok(accepts(workflow('refs/tags/v1'), workflow('refs/tags/v1')));
  for (const candidate of ['refs/tags/v10', 'refs/tags/v', 'refs/tags/V1', 'refs/tags/v1\n'].map((ref) =>
    workflow(ref),
  )) {
    assert.ok(!accepts(workflow('refs/tags/v1'), candidate), candidate);
  }
  assert.ok(!accepts(workflow('refs/tags/v1'), workflow('refs/tags/v1'), `${ISSUER}/`));
  assert.ok(!accepts('a.b@example.com', 'aXb@example.com'));
});

test('a star stands for one name and leaves host, domain and segments alone', () => {
  const tags = { pattern: workflow('refs/tags/v*') };
  for (const ref of ['refs/tags/v1', 'refs/tags/v1.2.3-rc_1+x']) assert.ok(accepts(tags, workflow(ref)), ref);
  for (const ref of [
    'refs/tags/v',
    'refs/tags/v1/2',
    'refs/tags/v1@x',
    'refs/heads/v1',
    'refs/tags/v1\n',
    'refs/tags/v%2f',
    'xrefs/tags/v1',
  ]) {
    assert.ok(!accepts(tags, workflow(ref)), ref);
  }
  const repositories = { pattern: workflow('refs/heads/main', 'org/*') };
  assert.ok(accepts(repositories, workflow('refs/heads/main', 'org/any')));
  for (const repository of ['evil/org', 'org/a/b', 'orgX/any', 'org/']) {
    assert.ok(!accepts(repositories, workflow('refs/heads/main', repository)), repository);
  }
  assert.ok(!accepts(repositories, `https://evil.example/${workflow('refs/heads/main', 'org/any')}`));
  assert.ok(accepts({ pattern: 'release-*@example.com' }, 'release-eu@example.com'));
  assert.ok(!accepts({ pattern: 'release-*@example.com' }, 'release-eu@evil.example@example.com'));
  assert.ok(!accepts({ pattern: 'release-*@example.com' }, 'release-eu@exampleXcom'));
});

test('TRUST_INVALID for patterns that leave more open than a name', () => {
  const patterns = [
    '*',
    'https://*',
    'https://*/org/repo',
    'https://*.example/org',
    'https://github.com/org/repo',
    'https://github.com/org/**',
    'https://github.com/*.yml',
    '*@*',
    'a@*.com',
    '*.example.com',
    'ftp://example.com/*',
    '',
    'https://github.com/org/ *',
    'https://git*hub.com/x/*',
    'https://user@host/*',
  ];
  for (const pattern of patterns) {
    assert.throws(
      () => compileIdentity({ issuer: ISSUER, subject: { pattern } }),
      { code: 'TRUST_INVALID' },
      pattern,
    );
  }
  for (const [issuer, subject] of [
    ['', 'a@example.com'],
    [ISSUER, ''],
    [ISSUER, 'a b'],
  ] as const) {
    assert.throws(() => compileIdentity({ issuer, subject }), { code: 'TRUST_INVALID' });
  }
});

test('what is special in a regular expression is not special in a pattern', () => {
  const pattern = 'https://git.example/a+b(c)[d]{e}^$|\\?/*';
  assert.ok(accepts({ pattern }, 'https://git.example/a+b(c)[d]{e}^$|\\?/x'));
  for (const candidate of ['https://git.example/aab', 'https://gitXexample/a+b(c)[d]{e}^$|\\?/x']) {
    assert.ok(!accepts({ pattern }, candidate), candidate);
  }
});

test('matching is fast for subjects that almost match', () => {
  const pattern = `https://git.example/${'*/'.repeat(50)}end`;
  const start = performance.now();
  assert.ok(!accepts({ pattern }, `https://git.example/${'a'.repeat(2000)}`));
  assert.ok(!accepts({ pattern }, `https://git.example/${'a/'.repeat(1000)}`));
  assert.ok(performance.now() - start < 100);
});
