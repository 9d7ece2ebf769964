import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SourceText } from '../../core/source-text.ts';
import { loadSources } from '../../job/load.ts';
import { planJobs } from '../../job/plan.ts';
import { describePlan } from './plan.ts';

const FILE = `version: 1
network: [npm, "https://example.com"]
jobs:
  a: {steps: [{run: x, network: none}]}
  b: {network: {mode: terminate}, steps: [{run: x}]}
  c: {network: none, steps: [{run: x}]}
`;

test('--dryrun shows what each job may connect to, and steps that may not', () => {
  const plan = planJobs(loadSources('/p', [new SourceText('ct.yml', FILE)]), { targets: [] });
  const [a = '', b = '', c = ''] = describePlan(plan, { action: 'dryrun', json: false }).split('\n\n');
  assert.match(a, / {2}network npm, https:\/\/example\.com\n {2}▶ x\n {6}without the network\n/);
  assert.match(b, / {2}network nothing \(terminate\)\n/);
  assert.doesNotMatch(c, /network/);
  const { jobs } = JSON.parse(describePlan(plan, { action: 'dryrun', json: true }));
  assert.deepEqual(
    jobs.map(({ network }: { network: unknown }) => network),
    [{ allow: ['npm', 'https://example.com'] }, { allow: [], mode: 'terminate' }, undefined],
  );
});
