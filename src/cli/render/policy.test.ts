import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parse } from 'yaml';
import { readDecisions, refusalsOf } from '../decisions.ts';
import { UNSTYLED } from './format.ts';
import { checkedJobText, explanation, learnedYaml } from './policy.ts';

const RUN = { id: 'r1', trust: 'local', job: 'build' };
const network = { mode: 'enforce', allow: { exact: {}, below: {}, any: [] } };
const entry = (decision_id: string, path: string, input: object, result: object): object => ({
  labels: {},
  decision_id,
  revision: 'abc',
  path,
  input: { version: 1, run: RUN, ...input },
  result,
  timestamp: '2026-01-31T09:05:07.000Z',
  metrics: { timer_rego_query_eval_ns: 1 },
});
const egress = (id: string, host: string, result: object): object =>
  entry(
    id,
    'ct/egress/decision',
    {
      step: { index: 0, name: 'test\u001b[2J', network: true },
      network,
      request: { kind: 'connect', host, port: 443, literal: false },
    },
    result,
  );
const denial = { rule: 'ct.egress.not_allowed', message: 'no\u001b[2J', hint: 'ask' };

const LOG = [
  entry(
    'd0',
    'ct/admission/decision',
    { network: { ask: [] } },
    {
      allow: true,
      denials: [],
      network: { mode: 'enforce', allow: [] },
      audit: 'on',
      code: { mode: 'off' },
    },
  ),
  egress('d1', 'a.example', { action: 'deny', denial }),
  egress('d2', 'b.example', { action: 'allow', allowed_by: 'b.example' }),
  egress('d3', 'c.example', { action: 'terminate', denial: { rule: 'ct.egress.banned', message: 'banned' } }),
  egress('d4', 'd.example', { action: 'allow', denial }),
  { type: 'counts', counts: { d1: 3 }, full: true },
];

test('a decision log is read: what was denied, how often, and whether it is whole', () => {
  const log = readDecisions(LOG);
  assert.deepEqual(
    [log.egress.length, log.admission.length, log.revisions, log.isFull],
    [4, 1, ['abc'], true],
  );
  assert.deepEqual(
    refusalsOf(log).map(({ id, action, count, step }) => [id, action, count, step]),
    [
      ['d1', 'denied', 3, 'test\u001b[2J'],
      ['d3', 'terminated', 1, 'test\u001b[2J'],
      ['d4', 'recorded', 1, 'test\u001b[2J'],
    ],
  );
});

test('what is no entry is passed over', () => {
  const broken = [
    null,
    1,
    {},
    { type: 'counts' },
    egress('d1', 'a', { action: 'explode' }),
    { ...LOG[1], input: 7 },
  ];
  assert.deepEqual(readDecisions(broken).egress, []);
  const denied = entry(
    'd0',
    'ct/admission/decision',
    {},
    { allow: false, denials: [denial], network: { mode: 'enforce', allow: [] } },
  );
  assert.deepEqual(
    refusalsOf(readDecisions([denied])).map(({ action, denial: { rule } }) => [action, rule]),
    [['denied', denial.rule]],
    'what kept a job from running is a refusal, too',
  );
});

test('an explanation says when, where, what, which rule and how to ask, and cannot drive a terminal', () => {
  const [first] = refusalsOf(readDecisions(LOG));
  assert.ok(first);
  const place = { file: 'policies/ct/egress.rego', line: 12 };
  const text = explanation([{ ...first, source: place, data: { file: '/p/data.yml', line: 3 } }], UNSTYLED);
  assert.match(text, /^2026-01-31 \d\d:05:07 denied in step “test\[2J”, 3 times\n/);
  assert.ok(
    text.endsWith(
      '  no[2J\n  rule ct.egress.not_allowed (policies/ct/egress.rego:12)\n  policy data (/p/data.yml:3)\n  hint: ask\n',
    ),
    text,
  );
});

test('what was learned is YAML to paste, whatever names and steps are called', () => {
  const learned = {
    allow: [
      { entry: 'npm', count: 3, steps: ['install'] },
      { entry: 'tcp://[2001:db8::7]:443', count: 1, steps: ['a\n\u2028network: everything # x', 'b'] },
      { entry: 'https://a.example', count: 0, steps: [], note: 'a guess' },
    ],
    private: new Map([['db.example', ['10.0.0.7', 'fd00::7']]]),
    left: ['banned\n- evil'],
  };
  const yaml = learnedYaml(learned, { runs: ['build (r1)'], repository: undefined });
  const allow = ['npm', 'tcp://[2001:db8::7]:443', 'https://a.example'];
  assert.deepEqual(parse(yaml), {
    network: { allow },
    egress: { allow, private: { 'db.example': ['10.0.0.7', 'fd00::7'] } },
  });
  assert.match(yaml, /^ {4}- npm +# 3 connections; step install$/m);
  assert.doesNotMatch(yaml, /\u2028/);
  assert.match(yaml, /^# Not asked for: banned - evil$/m);
  assert.deepEqual(parse(learnedYaml(learned, { runs: [], repository: 'a/b' })), {
    network: { allow },
    repositories: { 'a/b': { egress: { allow } } },
    egress: { private: { 'db.example': ['10.0.0.7', 'fd00::7'] } },
  });
  const nothing = { allow: [], private: new Map(), left: [] };
  assert.deepEqual(parse(learnedYaml(nothing, { runs: ['r1'], repository: undefined })), {
    network: { allow: [] },
    egress: { allow: [] },
  });
});

test('a check shows what a job can connect to, or why it may not run', () => {
  const job = { name: 'build', image: 'debian-12', revision: 'abc', presets: [] };
  const allow = [
    { rule: '*', host: '*', port: 0, protocol: 'tcp', addresses: 'public' },
    { rule: 'npm', host: 'mirror.example', port: 8443, protocol: 'tls', addresses: 'any' },
  ] as const;
  const allowed = { allow: true, denials: [], network: { mode: 'audit', allow } } as const;
  const presets = [{ name: 'npm', destinations: ['mirror.example:8443'], source: '/etc/npmrc' }];
  assert.equal(
    checkedJobText({ ...job, presets, decision: allowed, denials: [] }, UNSTYLED),
    [
      'build: allowed; network: audit',
      '  npm is mirror.example:8443 (/etc/npmrc)',
      '  it can connect to:',
      '    *               any   anything  public addresses  by *',
      '    mirror.example  8443  tls       any address       by npm',
      '',
    ].join('\n'),
  );
  const denied = { ...allowed, allow: false, denials: [denial] };
  const source = { file: 'x.rego', line: 1 };
  assert.equal(
    checkedJobText({ ...job, decision: denied, denials: [{ ...denial, source }] }, UNSTYLED),
    'build: denied\n  no[2J\n  rule ct.egress.not_allowed (x.rego:1)\n  hint: ask\n',
  );
});
