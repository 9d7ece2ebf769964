import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { SourceText } from '../../src/core/source-text.ts';
import { onPath, opaTest, regoSources } from '../../src/host/policy-compiler.ts';
import { shippedRules } from '../../src/host/policy-source.ts';
import type { Fields } from '../../src/job/schema/objects.ts';
import { parsePolicyData } from '../../src/policy/data.ts';
import { policyDataSchema } from '../../src/policy/data-schema.ts';
import { parseAdmissionDecision, parseEgressDecision } from '../../src/policy/decision.ts';
import { scratchDirectory } from '../support/scratch.ts';

const document = readFileSync(join(installRoot, 'docs/policy.md'), 'utf8');
/** Keys of `verify` have a page of their own. */
const verifyDocument = readFileSync(join(installRoot, 'docs/verify.md'), 'utf8');

function blocks(language: string): string[] {
  return [...document.matchAll(/^```(\S+)\n([\s\S]*?)^```$/gm)]
    .filter(([, tag]) => tag === language)
    .map(([, , text]) => String(text));
}

test('the policy data in docs/policy.md is accepted', () => {
  const [data, image, ...others] = blocks('yaml');
  assert.ok(data !== undefined && image !== undefined && others.length === 0);
  const source = new SourceText('docs/policy.md', `${data}${image}`);
  const { config, imageTrust } = parsePolicyData(source, { resolvePreset: () => [] });
  assert.equal(config.profiles.exact['acme/site']?.secrets[0]?.name, 'DEPLOY_KEY');
  assert.equal(config.general.image.scan?.max_age_seconds, 3 * 86_400);
  assert.deepEqual(
    imageTrust.signers.map(({ name }) => name),
    ['release', 'workflow'],
  );
});

test('docs/policy.md has every key of the data', () => {
  const { children } = policyDataSchema;
  assert.ok(children?.kind === 'object');
  const pages = document + verifyDocument;
  for (const key of keysOf(children.fields)) assert.ok(pages.includes(key), `\`${key}\` is missing`);
});

test('docs/policy.md names every rule, and no other', () => {
  const rules = new Set(
    regoSources(shippedRules).flatMap(({ text }) =>
      [...text.matchAll(/"(ct\.(?:egress|admission|image|exec)\.[a-z_]+)"/g)].map((match) => match[1]),
    ),
  );
  assert.ok(rules.size > 20, String(rules.size));
  // The table writes some without their package, after one that has it.
  const told = document.replaceAll(/(`ct\.admission\.)trust(`(?:, `\.[a-z]+`)+)/g, (list) =>
    list.replaceAll('`.', '`ct.admission.'),
  );
  for (const rule of rules) {
    if (rule?.endsWith('.deny')) continue;
    assert.ok(told.includes(`\`${rule}\``), `${rule} is missing`);
  }
  for (const [, rule] of told.matchAll(/`(ct\.(?:egress|admission|image|exec)\.[a-z_]+)`/g)) {
    assert.ok(
      rules.has(rule) || /\.(error|decision|cpus|memory|disk|timeout)$/.test(String(rule)),
      `no rule is called ${rule}`,
    );
  }
});

test('the answers in docs/policy.md are answers', () => {
  const read = blocks('json').map((text) => JSON.parse(text) as Record<string, unknown>);
  const answers = read.filter((value) => !('version' in value));
  assert.equal(answers.length, 3);
  for (const answer of answers) {
    const parsed = 'action' in answer ? parseEgressDecision(answer) : parseAdmissionDecision(answer);
    assert.deepEqual(parsed, answer);
  }
});

test('the rules and tests in docs/policy.md do what it says', {
  skip: onPath('opa') === undefined && 'the program `opa` is not on PATH',
}, async () => {
  using scratch = scratchDirectory();
  const [rule, ruleTest, ...others] = blocks('rego');
  assert.ok(rule !== undefined && ruleTest !== undefined && others.length === 0);
  writeFileSync(join(scratch.path, 'paste.rego'), rule);
  writeFileSync(join(scratch.path, 'paste_test.rego'), ruleTest);
  const { passed, output } = await opaTest([shippedRules, scratch.path], { ctHome: scratch.path });
  assert.ok(passed, output);
  assert.match(output, /test_no_paste: PASS/);
});

function keysOf(fields: Fields): string[] {
  return Object.entries(fields).flatMap(([key, field]) => {
    const { children } = field.schema;
    return [key, ...(children?.kind === 'object' ? keysOf(children.fields) : [])];
  });
}
