import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { installRoot } from '../core/install.ts';
import { SourceText } from '../core/source-text.ts';
import { type PolicyConfig, parsePolicyData } from './data.ts';
import { codeSettings, parseAdmissionDecision, parseEgressDecision } from './decision.ts';
import { loadWasmEngine } from './engine.ts';
import type { EgressInput } from './input.ts';
import { decisionLogEntry } from './log-entry.ts';
import { questionUrl } from './remote.ts';

const wasm = readFileSync(join(installRoot, 'policies/policy.wasm'));
const { config } = parsePolicyData(
  new SourceText('default.yml', readFileSync(join(installRoot, 'policies/default.yml'), 'utf8')),
  { resolvePreset: () => [] },
);

function load(options: { readonly wasm?: Uint8Array; readonly config?: PolicyConfig } = {}) {
  let now = 0n;
  // Every look at the clock takes a nanosecond.
  return loadWasmEngine({ wasm, config, revision: 'r1', nowNs: () => now++, ...options });
}

const input: EgressInput = {
  version: 1,
  run: { id: 'run-1', job: 'test', trust: 'local' },
  network: {
    mode: 'audit',
    allow: {
      exact: {
        'a.example': [
          { rule: 'a.example', host: 'a.example', port: 443, protocol: 'tls', addresses: 'public' },
        ],
      },
      below: {},
      any: [],
    },
  },
  request: { kind: 'dns', name: 'a.example', type: 'A' },
};

test('a decision says how it came to be', async () => {
  const engine = await load();
  assert.deepEqual(engine.decideEgress(input), {
    decision: { action: 'allow', allowed_by: 'a.example' },
    meta: { path: 'ct/egress/decision', revision: 'r1', evaluation_ns: 1 },
  });
});

test('the same question of another run has the same answer', async () => {
  const engine = await load();
  const first = engine.decideEgress(input).decision;
  assert.equal(
    engine.decideEgress({ ...input, run: { ...input.run, id: 'run-2' } }).decision.action,
    first.action,
  );
  // And one that differs in anything else is asked anew.
  const denied = engine.decideEgress({
    ...input,
    network: { mode: 'enforce', allow: { exact: {}, below: {}, any: [] } },
  });
  assert.equal(denied.decision.action, 'deny');
});

test('missing data is a denial, also in mode audit', async () => {
  const engine = await load({ config: {} as PolicyConfig });
  const { decision } = engine.decideEgress(input);
  assert.equal(decision.action, 'deny');
  assert.equal(decision.denial?.rule, 'ct.egress.undefined');
});

test('a question that is too large is a denial, and the next one is answered', async () => {
  const engine = await load();
  const { decision, meta } = engine.decideEgress({
    ...input,
    request: { kind: 'dns', name: 'x.'.repeat(257), type: 'A' },
  });
  assert.equal(decision.action, 'deny');
  assert.equal(decision.denial?.rule, 'ct.egress.error');
  assert.match(meta.error ?? '', /larger than/);
  assert.equal(engine.decideEgress(input).decision.action, 'allow');
});

test('names that end in many labels, and names with strange characters, are only denied', async () => {
  const engine = await load();
  for (const name of [
    'a.'.repeat(200),
    '\0',
    '"',
    '\u{1f4a9}',
    '.',
    '..',
    '::',
    ':',
    '1.2.3.4',
    '1.2.3.',
    'x:1.2.3.4',
    '%s%d%v',
  ]) {
    const enforce = {
      ...input,
      network: { ...input.network, mode: 'enforce' },
      request: { kind: 'dns', name, type: 'A' },
    } as const;
    const { decision, meta } = engine.decideEgress(enforce);
    assert.equal(meta.error, undefined, name);
    assert.equal(decision.action, 'deny', name);
    assert.match(decision.denial?.rule ?? '', /^ct\.egress\.(not_allowed|literal)$/, name);
  }
});

test('what is no policy cannot be loaded', async () => {
  await assert.rejects(load({ wasm: Buffer.from('not wasm') }), { code: 'POLICY_UNAVAILABLE' });
  // The smallest module there is: it says nothing of OPA.
  await assert.rejects(load({ wasm: Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0) }), {
    code: 'POLICY_UNAVAILABLE',
  });
});

test('only a whole decision is one', () => {
  const denial = { rule: 'r', message: 'm' };
  const whole: unknown[] = [
    { action: 'allow', allowed_by: 'x' },
    { action: 'allow', denial },
    { action: 'deny', denial: { ...denial, hint: 'h' } },
    { action: 'terminate', denial },
  ];
  for (const value of whole) assert.deepEqual(parseEgressDecision(value), value);
  const broken: unknown[] = [
    undefined,
    null,
    true,
    'allow',
    [],
    {},
    { action: 'allow' },
    { action: 'maybe', denial },
    { action: 'deny' },
    { action: 'deny', denial: { rule: 'r' } },
    { action: 'deny', denial: 'no' },
    { action: 'allow', allowed_by: 'x', denial },
    { action: 'deny', allowed_by: 'x' },
    { action: 'allow', allowed_by: '' },
    { action: 'allow', allowed_by: 'x', more: 1 },
    { action: 'deny', denial: { ...denial, more: 1 } },
    { action: 'deny', denial: { ...denial, hint: 7 } },
  ];
  for (const value of broken) assert.equal(parseEgressDecision(value), undefined, JSON.stringify(value));

  const destination = { rule: 'x', host: 'x.example', port: 443, protocol: 'tls', addresses: 'public' };
  const network = { mode: 'enforce', allow: [destination] };
  const interpreter = {
    path: '/usr/bin/python3',
    endings: ['.py'],
    options: ['-c'],
    arguments: 'first',
    inline: 'allowed',
  };
  const judged = { mode: 'enforce', trust: ['built'], interpreters: [interpreter] };
  const allowed = { allow: true, denials: [], network, audit: 'on', code: { mode: 'off' } };
  assert.ok(parseAdmissionDecision(allowed));
  assert.deepEqual(parseAdmissionDecision({ ...allowed, code: judged })?.code, judged);
  assert.ok(parseAdmissionDecision({ allow: false, denials: [denial], network }));
  const wrong: unknown[] = [
    { allow: true, denials: [denial], network },
    { allow: false, denials: [], network },
    { allow: true, network },
    { allow: 'true', denials: [], network },
    { ...allowed, network: { mode: 'off', allow: [] } },
    { ...allowed, network: { mode: 'enforce' } },
    { ...allowed, more: 1 },
    { allow: true, denials: [], network },
    { ...allowed, audit: 'maybe' },
    { allow: true, denials: [], network, audit: 'on' },
    { allow: false, denials: [denial], network, code: { mode: 'off' } },
    { allow: false, denials: [{ rule: 'r', message: 'm' }], network, audit: 'on' },
    ...[
      { port: 0 },
      { port: 70_000 },
      { port: '443' },
      { protocol: 'udp' },
      { addresses: 'all' },
      { host: 7 },
    ].map((change) => ({ ...allowed, network: { mode: 'enforce', allow: [{ ...destination, ...change }] } })),
    ...[
      { mode: 'sometimes' },
      { mode: 'enforce' },
      { ...judged, mode: 'off' },
      { ...judged, more: 1 },
      { ...judged, trust: ['everything'] },
      { ...judged, interpreters: Array(33).fill(interpreter) },
      ...[
        { path: 'python3' },
        { path: '/x\0y' },
        { endings: ['x/y'] },
        { endings: ['-c'] },
        { endings: ['.x'.repeat(9)] },
        { endings: Array(17).fill('.x') },
        { options: ['c'] },
        { arguments: 'some' },
        { inline: true },
      ].map((change) => ({ ...judged, interpreters: [{ ...interpreter, ...change }] })),
    ].map((code) => ({ ...allowed, code })),
  ];
  for (const value of wrong) assert.equal(parseAdmissionDecision(value), undefined, JSON.stringify(value));
});

test('an entry of the decision log has the shape of those of OPA', async () => {
  const decided = (await load()).decideEgress(input);
  const context = { decisionId: 'd1', time: new Date(0), labels: { id: 'host', version: '1' } };
  assert.deepEqual(decisionLogEntry(context, input, decided), {
    labels: { id: 'host', version: '1' },
    decision_id: 'd1',
    revision: 'r1',
    path: 'ct/egress/decision',
    input,
    result: { action: 'allow', allowed_by: 'a.example' },
    requested_by: 'run/run-1',
    timestamp: '1970-01-01T00:00:00.000Z',
    metrics: { timer_rego_query_eval_ns: 1 },
  });
  const failed = { ...decided, meta: { ...decided.meta, error: 'why' } };
  assert.deepEqual(decisionLogEntry(context, input, failed).error, { code: 'eval_error', message: 'why' });
});

test('a server may have its API below a path', () => {
  assert.equal(
    questionUrl('http://127.0.0.1:8181', 'ct/egress/decision').href,
    'http://127.0.0.1:8181/v1/data/ct/egress/decision',
  );
  assert.equal(
    questionUrl('https://opa.example/base', 'ct/admission/decision').href,
    'https://opa.example/base/v1/data/ct/admission/decision',
  );
});

test('what is decided about code is what a run is set up with', () => {
  assert.equal(codeSettings({ mode: 'off' }), undefined);
  const settings = codeSettings({
    mode: 'terminate',
    trust: ['built'],
    interpreters: [
      { path: '/bin/bash', endings: ['.sh'], options: ['-c'], arguments: 'every', inline: 'forbidden' },
    ],
  });
  assert.deepEqual(settings, {
    mode: 'terminate',
    trust: { source: false, built: true },
    interpreters: [
      { path: '/bin/bash', endings: ['.sh'], options: ['-c'], inlineForbidden: true, everyArgument: true },
    ],
  });
});
