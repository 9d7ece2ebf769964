import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CtError } from '../core/errors.ts';
import { SourceText } from '../core/source-text.ts';
import { type PolicyData, parsePolicyData } from './data.ts';
import { parseVerifyDecision } from './verify.ts';

function parse(verify: string, more = ''): PolicyData {
  const text = `version: 1
egress: {mode: enforce, allow: []}
admission: {trust: [local], repositories: ['*'], refs: ['*'], actors: ['*'], images: ['*']}
limits: {cpus: 4, memory: 8G, disk: 20G, timeout: 1h}
verify: ${verify}
${more}`;
  return parsePolicyData(new SourceText('data.yml', text), { resolvePreset: () => [] });
}

test('rules of a repository take the place of the general ones, key by key; strangers have their own besides', () => {
  const { config } = parse(
    '{commit: required, scripts: [a.json], dependencies: integrity, script-signers: [release, ci-*]}',
    `repositories: {acme/site: {verify: {commit: optional}}}
untrusted: {egress: {allow: []}, verify: {dependencies: provenance}}`,
  );
  const { verify: general } = config.general;
  assert.deepEqual([general.commit, general.scripts, general.dependencies], [true, ['a.json'], 'integrity']);
  const { any, exact, prefixes } = general.script_signers;
  assert.deepEqual([any, Object.keys(exact), prefixes], [false, ['release'], ['ci-']]);
  assert.deepEqual(config.profiles.exact['acme/site']?.verify, { ...general, commit: false });
  assert.equal(config.untrusted?.verify.dependencies, 'provenance');
  assert.equal(config.untrusted?.verify.commit, false);
  assert.deepEqual(parse('{}').config.general.verify.scripts, []);
});

test('registries are compared by their origins', () => {
  const { config } = parse('{npm: {urls: ["https://Registry.example/npm/", "https://b.example:8443"]}}');
  assert.deepEqual(config.verify.registries, {
    npm: { 'https://registry.example': true, 'https://b.example:8443': true },
    pypi: {},
  });
});

test('POLICY_INVALID for signers that are none, files elsewhere and registries without https', () => {
  const wrong: readonly [string, RegExp][] = [
    ['{signers: {a: {}}}', /a signer has either/],
    ['{signers: {a: {issuer: x}}}', /a signer has either/],
    ['{signers: {a: {issuer: x, subject: y, allowed-signers: f}}}', /a signer has either/],
    ['{signers: {a: {issuer: x, subject: y}}}', /no `trusted-root`/],
    ['{trusted-root: f, signers: {a: {issuer: x, subject: "*"}}}', /literal host/],
    ['{signers: {a: {allowed-signers: ../f}}}', /file in the policy directory/],
    ['{signers: {a: {key: no}}}', /public key in PEM/],
    ['{npm: {urls: ["http://registry.example"]}}', /https URL/],
    ['{scripts: [/a]}', /path in the workspace/],
    ['{cover: [a/../b]}', /path in the workspace/],
    ['{commit: yes}', /required/],
  ];
  for (const [text, message] of wrong) {
    assert.throws(
      () => parse(text),
      (error: unknown) => {
        assert.ok(error instanceof CtError && error.code === 'POLICY_INVALID', text);
        assert.match(error.message, message, text);
        return true;
      },
    );
  }
});

test('an answer that is none is no decision; a code that is no refusal becomes one', () => {
  const demands = { commit: false, scripts: [], dependencies: 'none' };
  const denial = { rule: 'r', message: 'm' };
  assert.ok(parseVerifyDecision({ demands, allow: true, denials: [] }));
  for (const value of [
    undefined,
    {},
    { demands, allow: true, denials: [denial] },
    { demands, allow: false, denials: [] },
    { demands: { ...demands, dependencies: 'some' }, allow: true, denials: [] },
    { demands: { ...demands, scripts: [1] }, allow: true, denials: [] },
    { demands, allow: true, denials: [], more: 1 },
  ]) {
    assert.equal(parseVerifyDecision(value), undefined);
  }
  const codeOf = (code: unknown): unknown =>
    parseVerifyDecision({ demands, allow: false, denials: [{ ...denial, code }] })?.denials[0]?.code;
  assert.equal(codeOf('VERIFY_TREE_DIRTY'), 'VERIFY_TREE_DIRTY');
  for (const code of [undefined, 'INTERNAL', 'LINK_DIED', 'toString', 7])
    assert.equal(codeOf(code), 'VERIFY_DENIED');
});
