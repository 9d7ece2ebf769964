/** What the shipped rules find in runs, from records as a guest sends them to alerts; evaluated as the daemon does. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import type { Alert } from '../../src/audit/alert.ts';
import { safeAlert } from '../../src/audit/alert-text.ts';
import { type DetectionOptions, Detections } from '../../src/audit/detect.ts';
import { batches, MAX_BATCH_EVENTS, parseBatch } from '../../src/audit/detection/batches.ts';
import { Candidates } from '../../src/audit/detection/candidates.ts';
import { type NameOf, namesInOrder } from '../../src/audit/timeline/destinations.ts';
import { installRoot } from '../../src/core/install.ts';
import { SourceText } from '../../src/core/yaml-source.ts';
import { parsePolicyData } from '../../src/policy/data.ts';
import { loadWasmEngine, type WasmEngine } from '../../src/policy/engine.ts';
import { lowered } from '../fixtures/policy/cases.ts';
import { makeBuild, npmCi, reverseShell, SyntheticRun } from '../support/audit-run.ts';

const NAME_OF = namesInOrder(['registry.example']);

const OPTIONS: DetectionOptions = {
  run: { id: 'r1', job: 'build', trust: 'local', repository: 'acme/site', ref: 'refs/heads/main' },
  baseline: null,
  clockOffsetNs: 1_800_000_000_000_000_000n,
  evidence: '/home/ct/runs/r1/audit',
};

async function engineWith(settings = ''): Promise<WasmEngine> {
  const path = join(installRoot, 'policies/default.yml');
  const data = `${readFileSync(path, 'utf8')}\n${settings}`;
  const { config } = parsePolicyData(new SourceText('data.yml', data), {
    resolvePreset: (name) => lowered([name]),
  });
  const wasm = readFileSync(join(installRoot, 'policies/policy.wasm'));
  return loadWasmEngine({ wasm, config, revision: 'test', nowNs: () => process.hrtime.bigint() });
}

let engine: WasmEngine;
before(async () => {
  engine = await engineWith();
});

interface Found {
  readonly alerts: readonly Alert[];
  readonly isTerminating: boolean;
  readonly slowestMs: number;
}

interface Situation extends Partial<DetectionOptions> {
  readonly nameOf?: NameOf;
}

function find(run: SyntheticRun, { nameOf = NAME_OF, ...options }: Situation = {}, policy = engine): Found {
  const detections = new Detections({ ...OPTIONS, ...options });
  const candidates = new Candidates(nameOf);
  for (const event of run.events()) candidates.add(event);
  let slowestMs = 0;
  const found = batches(candidates.take(true)).flatMap((sent) => {
    const batch = parseBatch(JSON.parse(JSON.stringify(sent)));
    assert.ok(batch && batch.length <= MAX_BATCH_EVENTS);
    const { findings, meta } = policy.detect(detections.question(batch));
    assert.equal(meta.error, undefined);
    slowestMs = Math.max(slowestMs, meta.evaluation_ns / 1e6);
    return detections.alerts(batch, findings, new Date(0));
  });
  return {
    alerts: found.map(({ alert }) => alert),
    isTerminating: found.some(({ isTerminating }) => isTerminating),
    slowestMs,
  };
}

const rulesOf = ({ alerts }: Found): string[] => alerts.map(({ rule }) => rule);

test('a build with make and npm ci raises no alert', () => {
  const run = new SyntheticRun();
  makeBuild(run);
  npmCi(run);
  assert.deepEqual(rulesOf(find(run)), []);
});

test('a reverse shell ends the run, and its alert says who, where and when', () => {
  const run = new SyntheticRun();
  makeBuild(run);
  reverseShell(run);
  const found = find(run);
  assert.ok(found.isTerminating);
  const [alert, ...others] = found.alerts;
  assert.ok(alert && others.length === 0);
  const { id, time, process, run: who, ...rest } = alert;
  assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.match(time, /^2027-01-15T08:00:05\.[0-9]{9}Z$/);
  assert.deepEqual(process, { pid: process?.pid, binary: '/bin/sh', arguments: '/bin/sh -i' });
  assert.deepEqual([who.id, who.job, who.repository], ['r1', 'build', 'acme/site']);
  assert.deepEqual(
    [rest.rule, rest.severity, rest.action],
    ['ct.detect.reverse_shell', 'critical', 'terminated'],
  );
  assert.match(rest.title, /198\.18\.1\.9:4444: \/bin\/sh/);
  assert.doesNotThrow(() => safeAlert(alert));
  assert.equal(find(run).alerts[0]?.id, id, 'the same finding has the same id');
});

const ATTACKS: readonly [string, string, (run: SyntheticRun) => void][] = [
  ['credentials', 'a dependency reads keys', (run) => run.step('x').file('read', '/home/ct/.ssh/id_rsa')],
  [
    'metadata',
    'cloud credentials',
    (run) => run.step('x').spawn('/usr/bin/curl', []).connect('169.254.169.254', 80),
  ],
  ['memory_access', 'process_vm_readv', (run) => run.step('x').call('process_vm_readv', [1n])],
  ['runner_memory', 'the memory of the guest agent', (run) => run.step('x').file('read', '/proc/1/mem')],
  ['setuid', 'a setuid copy', (run) => run.step('x').file('setuid', '/tmp/sh', 0o4755)],
  ['persistence', 'a hook', (run) => run.step('x').file('write', '/workspace/.git/hooks/pre-push')],
  [
    'persistence',
    'relative to home',
    (run) => run.step('x').exec('/bin/tee', ['tee'], { cwd: '/home/ct' }).file('write', '.bashrc'),
  ],
  [
    'miner',
    'a miner',
    (run) => run.step('x').spawn('/tmp/.x', ['.x', '-o', 'stratum+tcp://pool.example:3333']),
  ],
];

for (const [rule, what, act] of ATTACKS) {
  test(`ct.detect.${rule} finds ${what}`, () => {
    const run = new SyntheticRun();
    makeBuild(run, ['main']);
    act(run);
    assert.deepEqual(rulesOf(find(run)), [`ct.detect.${rule}`]);
  });
}

test('a destination is new only against a baseline', () => {
  const run = new SyntheticRun();
  npmCi(run);
  const names = {
    nameOf: (address: string) => (/^(198|fd63)/.test(address) ? 'registry.example' : undefined),
  };
  assert.deepEqual(rulesOf(find(run, names)), []);
  assert.deepEqual(rulesOf(find(run, { ...names, baseline: ['registry.example:443'] })), []);
  const { alerts, isTerminating } = find(run, { ...names, baseline: [] });
  assert.equal(isTerminating, false);
  assert.deepEqual(alerts[0]?.destination, { host: 'registry.example', port: 443 });
});

test('policy data says what follows from a finding', async () => {
  const run = new SyntheticRun();
  reverseShell(run);
  run.step('x').file('write', '/etc/crontab');
  const mild = await engineWith('detect: {reverse_shell: alert, persistence: off}');
  const found = find(run, {}, mild);
  assert.deepEqual([rulesOf(found), found.isTerminating], [['ct.detect.reverse_shell'], false]);
  const strict = await engineWith('detect: {persistence: terminate, reverse_shell: off}');
  assert.deepEqual(
    [rulesOf(find(run, {}, strict)), find(run, {}, strict).isTerminating],
    [['ct.detect.persistence'], true],
  );
  await assert.rejects(engineWith('detect: {persistence: sometimes}'), { code: 'POLICY_INVALID' });
});

test('an answer that is none is an alert, once; so are events that were passed over, as often as more are', () => {
  const detections = new Detections(OPTIONS);
  const told = detections.alerts([], undefined, new Date(0));
  assert.deepEqual(
    told.map(({ alert }) => [alert.rule, alert.action]),
    [['ct.detect.error', 'recorded']],
  );
  assert.deepEqual(detections.alerts([], undefined, new Date(0)), []);
  assert.equal(detections.overflow(0, new Date(0)), undefined);
  assert.match(detections.overflow(7, new Date(0))?.alert.title ?? '', /^7 events/);
  assert.equal(detections.overflow(7, new Date(0)), undefined);
  assert.match(detections.overflow(9, new Date(0))?.alert.title ?? '', /^2 events/);
});

test('a question that is no question has no answer, and meta says why', () => {
  const { findings, meta } = engine.detect({ version: 2 as 1, run: OPTIONS.run, baseline: null, events: [] });
  assert.equal(findings, undefined);
  assert.ok(meta.error);
});

test('a hostile run is judged in batches that take little time each', () => {
  const run = new SyntheticRun();
  const shell = run.step('x');
  for (let index = 0; index < 500; index += 1) {
    shell
      .spawn(`/tmp/${'a'.repeat(200)}${index}`, [
        `a${index}`,
        ...Array<string>(20).fill('-/dev/tcp/ <>&'.repeat(20)),
      ])
      .exit();
    shell.file('write', `/home/${'x/'.repeat(500)}${index}`);
  }
  const { slowestMs } = find(run);
  console.error(`slowest batch: ${slowestMs.toFixed(1)} ms`);
  assert.ok(slowestMs < 250, `${slowestMs} ms`);
});

test('an ordinary install of thousands of files is judged as it comes', () => {
  const run = new SyntheticRun();
  const npm = run.step('npm ci').spawn('/usr/bin/node', ['node', '/usr/bin/npm', 'ci']);
  const files = 6400;
  for (let index = 0; index < files; index += 1) {
    npm.file(
      index % 2 === 0 ? 'write' : 'read',
      `/workspace/node_modules/package-${index % 300}/lib/file-${index}.js`,
    );
  }
  const began = performance.now();
  const { alerts } = find(run);
  const perSecond = files / ((performance.now() - began) / 1000);
  console.error(`files judged: ${Math.round(perSecond / 1000)} k/s`);
  assert.deepEqual(alerts, []);
  assert.ok(perSecond > 5000, `${perSecond}`);
});

test('a flood of system calls costs little: those of no interest are passed over by their number', () => {
  const run = new SyntheticRun();
  const shell = run.step('x').connect('192.0.2.1', 1, { fd: 1000 });
  for (let index = 0; index < 100; index += 1)
    shell.call('read', [3n]).call('openat', []).call('close', [3n]);
  const calls = run.events().filter(({ kind }) => kind === 'syscall');
  const candidates = new Candidates(NAME_OF);
  const began = performance.now();
  let added = 0;
  while (added < 1_000_000) {
    for (const call of calls) candidates.add(call);
    added += calls.length;
  }
  const perSecond = added / ((performance.now() - began) / 1000);
  console.error(`system calls looked at: ${Math.round(perSecond / 1000)} k/s`);
  assert.ok(perSecond > 500_000, `${perSecond}`);
});

const page = readFileSync(join(installRoot, 'docs/audit-export.md'), 'utf8');

test('docs/audit-export.md names every rule and no other, with what follows from it by default', () => {
  const rego = readFileSync(join(installRoot, 'policies/ct/detect.rego'), 'utf8');
  const rules = new Set([...rego.matchAll(/"rule": "([a-z_]+)"/g)].map(([, rule]) => rule));
  const told = new Map(
    [...page.matchAll(/^\| `ct\.detect\.([a-z_]+)` \|.*\| (alert|terminate) \|$/gm)].map(
      ([, rule, action]) => [rule, action],
    ),
  );
  assert.deepEqual([...told.keys()].sort(), [...rules].sort());
  const [, ending = ''] = /found_\.rule in \{([^}]*)\}/.exec(rego) ?? [];
  assert.deepEqual(
    [...told].flatMap(([rule, action]) => (action === 'terminate' ? [rule] : [])).sort(),
    [...ending.matchAll(/"([a-z_]+)"/g)].map(([, rule]) => rule).sort(),
  );
});

test('the question in docs/audit-export.md has the answer that stands there', () => {
  const [question, answer] = [...page.matchAll(/^```json\n([\s\S]*?)^```$/gm)].map(([, text = '']) =>
    JSON.parse(text),
  );
  const { findings, meta } = engine.detect(question);
  assert.equal(meta.error, undefined);
  assert.deepEqual({ findings }, answer);
});
