/**
 * `ct policy` and `ct alerts` as programs. What they show comes from a stand-in for the host daemon: these tests are about the
 * commands; that of the daemon's answers are elsewhere.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { parse } from 'yaml';
import { AlertFile, alertDirectory } from '../../src/audit/alert-file.ts';
import { installRoot } from '../../src/core/install.ts';
import { socketDirectory } from '../../src/core/paths.ts';
import type { PolicyCheck, PolicyInfo } from '../../src/host/client.ts';
import { borrowImages } from '../support/borrowed-home.ts';

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

let directory = '';
let ctHome = '';
let server: Server;
/** What the daemon was sent to check, and what it answers. */
let asked: unknown[] = [];
let check: PolicyCheck | { readonly error: { readonly code: string; readonly message: string } };

const request = (kind: string, host: string, more: object = {}): object => ({
  kind,
  host,
  port: 443,
  literal: false,
  ...more,
});
const decided = (id: string, what: object, result: object): object => ({
  labels: {},
  decision_id: id,
  revision: 'rev1',
  path: 'ct/egress/decision',
  input: {
    version: 1,
    run: { id: 'r1', trust: 'local', job: 'build', repository: 'a/b' },
    step: { index: 0, name: 'install', network: true },
    network: { mode: 'enforce', allow: { exact: {}, below: {}, any: [] } },
    request: what,
  },
  result,
  timestamp: '2026-01-31T09:05:07.000Z',
  metrics: { timer_rego_query_eval_ns: 1 },
});
const notAllowed = {
  rule: 'ct.egress.not_allowed',
  message: 'the job may not reach `a.example:443`',
  hint: 'add `https://a.example` to `network: allow:` of the job in ct.yml',
};
const banned = { rule: 'ct.egress.banned', message: '`evil.example` is banned on this host (*.example)' };
const decisions = [
  decided('d1', request('connect', 'a.example'), { action: 'deny', denial: notAllowed }),
  decided('d2', request('connect', 'b.example'), { action: 'allow', allowed_by: 'b.example' }),
  decided('d3', request('stream', 'b.example', { protocol: 'tls', sni: 'b.example', ech: false }), {
    action: 'allow',
    allowed_by: 'b.example',
  }),
  decided('d4', request('connect', 'evil.example'), { action: 'terminate', denial: banned }),
  { type: 'counts', counts: { d1: 3 }, full: false },
];
const run = { run: 'r1', job: 'build', state: 'ended', image: { digest: 'x' }, steps: [], statesMs: {} };

before(async () => {
  directory = realpathSync(mkdtempSync(join(tmpdir(), 'ct-policy-cli-')));
  ctHome = join(directory, 'home');
  mkdirSync(ctHome, { mode: 0o700 });
  await borrowImages(ctHome);
  const policy = join(directory, 'policy');
  mkdirSync(policy);
  const data =
    "version: 1\negress:\n  mode: enforce\n  allow: ['*']\n  ban:\n    - other.test\n    - '*.example'\n";
  writeFileSync(join(policy, 'data.yml'), data);
  writeFileSync(join(policy, 'own_test.rego'), 'package own\n');
  writeFileSync(
    join(directory, 'ct.yml'),
    'version: 1\njobs:\n  build:\n    network: [npm, "https://b.example"]\n    steps: [{run: "true"}]\n',
  );
  const info: PolicyInfo = { revision: 'rev1', directory: policy, mode: 'enforce' };
  const answers: Readonly<Record<string, unknown>> = {
    'GET /v1/info': { pid: 1, build: 'source', ctHome, cpus: 64, memoryMib: 65_536 },
    'GET /v1/policy': info,
    'GET /v1/runs/r1': run,
    'GET /v1/runs/latest': run,
    'GET /v1/runs/r1/decisions': decisions,
  };
  server = createServer(async (incoming, response) => {
    let body = '';
    for await (const chunk of incoming) body += chunk;
    const what = `${incoming.method} ${incoming.url}`;
    if (what === 'POST /v1/policy/check') asked.push(JSON.parse(body));
    const answer = what === 'POST /v1/policy/check' ? check : answers[what];
    if (what === 'POST /v1/policy/check' && 'error' in check) {
      response.writeHead(400).end(JSON.stringify(check));
      return;
    }
    const missing = { error: { code: 'RUN_NOT_FOUND', message: `no run for ${what}` } };
    response.writeHead(answer === undefined ? 404 : 200).end(JSON.stringify(answer ?? missing));
  });
  server.listen(join(await socketDirectory(ctHome), 'host.sock'));
  await once(server, 'listening');
});

after(async () => {
  server.close();
  rmSync(await socketDirectory(ctHome), { recursive: true, force: true });
  rmSync(directory, { recursive: true, force: true });
});

async function ct(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Outcome> {
  const child = spawn(process.execPath, [join(installRoot, 'src/cli/main.ts'), ...args], {
    cwd: directory,
    env: { PATH: process.env['PATH'], HOME: directory, CT_HOME: ctHome, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const chunks: Record<'stdout' | 'stderr', Buffer[]> = { stdout: [], stderr: [] };
  child.stdout.on('data', (chunk: Buffer) => chunks.stdout.push(chunk));
  child.stderr.on('data', (chunk: Buffer) => chunks.stderr.push(chunk));
  const [status] = await once(child, 'close');
  return {
    status,
    stdout: Buffer.concat(chunks.stdout).toString(),
    stderr: Buffer.concat(chunks.stderr).toString(),
  };
}

test('ct policy explain names the rule, where it stands, the entry of the data, and how to ask', async () => {
  const { status, stdout, stderr } = await ct(['policy', 'explain']);
  assert.deepEqual([status, stderr], [0, '']);
  assert.match(stdout, /denied in step “install”, 3 times\n {2}the job may not reach `a\.example:443`\n/);
  assert.match(stdout, / {2}rule ct\.egress\.not_allowed \(policies\/ct\/egress\.rego:\d+\)\n/);
  assert.match(stdout, / {2}hint: add `https:\/\/a\.example` to/);
  assert.match(stdout, /terminated in step “install”\n/);
  assert.match(stdout, / {2}policy data \(\S+\/policy\/data\.yml:7\)\n/);
  assert.doesNotMatch(stdout, /b\.example/, 'what was allowed is no denial');
});

test('ct policy explain --json has the same', async () => {
  const { stdout } = await ct(['policy', 'explain', 'r1', '--json']);
  const { denials, ...rest } = JSON.parse(stdout);
  assert.deepEqual(rest, { version: 1, run: 'r1', job: 'build', policy: ['rev1'], full: false });
  assert.deepEqual(
    denials.map(({ id, action, count, rule }: Record<string, unknown>) => [id, action, count, rule]),
    [
      ['d1', 'denied', 3, 'ct.egress.not_allowed'],
      ['d4', 'terminated', 1, 'ct.egress.banned'],
    ],
  );
  assert.equal(denials[1].data.line, 7);
});

test('ct policy learn prints what was needed, and leaves out what is banned', async () => {
  const { status, stdout, stderr } = await ct(['policy', 'learn', 'r1']);
  assert.deepEqual([status, stderr], [0, '']);
  const allow = ['https://a.example', 'https://b.example'];
  assert.deepEqual(parse(stdout), { network: { allow }, repositories: { 'a/b': { egress: { allow } } } });
  assert.match(stdout, /https:\/\/a\.example +# 3 connections; step install\n/);
  assert.match(stdout, /^# Not asked for: `evil\.example` is banned/m);
});

test('ct policy show says which policy counts', async () => {
  const { status, stdout } = await ct(['policy', 'show']);
  assert.equal(status, 0);
  assert.match(stdout, /^policy {6}\S+\/policy\nrevision {4}rev1\n/);
  assert.equal(JSON.parse((await ct(['policy', 'show', '--json'])).stdout).revision, 'rev1');
});

test('ct policy check asks what a run would, and ends with 0 or 122', async () => {
  asked = [];
  const granted = {
    rule: 'npm',
    host: 'mirror.example',
    port: 8443,
    protocol: 'tls',
    addresses: 'any',
  } as const;
  check = {
    revision: 'rev1',
    decision: { allow: true, denials: [], network: { mode: 'enforce', allow: [granted] } },
    presets: [{ name: 'npm', destinations: ['mirror.example:8443'], source: '/etc/npmrc' }],
  };
  const allowed = await ct(['policy', 'check', 'build', '--trust', 'untrusted']);
  assert.deepEqual([allowed.status, allowed.stderr], [0, '']);
  assert.match(allowed.stdout, /^build: allowed; network: enforce\n {2}npm is mirror\.example:8443 \(/);
  const [job] = asked as Record<string, Record<string, unknown>>[];
  assert.deepEqual(job?.['network'], { allow: ['npm', 'https://b.example'] });
  assert.equal(job?.['origin']?.['trust'], 'untrusted');
  assert.match(String(job?.['image']), /^sha256:/);

  const denial = { rule: 'ct.admission.image', message: 'not that image', hint: 'another' };
  check = {
    ...check,
    decision: { allow: false, denials: [denial], network: { mode: 'enforce', allow: [] } },
  };
  const denied = await ct(['policy', 'check']);
  assert.equal(denied.status, 122);
  assert.match(
    denied.stdout,
    /^build: denied\n {2}not that image\n {2}rule ct\.admission\.image \(policies\/ct\/admission\.rego:\d+\)\n {2}hint: another\n$/,
  );
  const json = await ct(['policy', 'check', '--json']);
  assert.equal(json.status, 122);
  assert.equal(JSON.parse(json.stdout).jobs[0].denials[0].rule, 'ct.admission.image');
});

test('ct policy check asks about the name of an image that is not built, and says so', async () => {
  const empty = join(directory, 'empty-home');
  mkdirSync(empty, { mode: 0o700 });
  const socket = await socketDirectory(empty);
  symlinkSync(join(await socketDirectory(ctHome), 'host.sock'), join(socket, 'host.sock'));
  asked = [];
  try {
    const { stderr } = await ct(['policy', 'check'], { CT_HOME: empty });
    assert.match(stderr, /^the image debian-12 is not built: /);
    assert.equal((asked[0] as { image: string }).image, 'debian-12');
  } finally {
    rmSync(socket, { recursive: true, force: true });
  }
});

test('ct policy test runs opa over the shipped rules and those given, and needs it', async () => {
  const bin = join(directory, 'bin');
  mkdirSync(bin);
  const opa = (status: number): void =>
    writeFileSync(join(bin, 'opa'), `#!/bin/sh\necho "$@"\nexit ${status}\n`, { mode: 0o755 });
  const policy = join(directory, 'policy');
  opa(0);
  const passed = await ct(['policy', 'test', 'policy'], { PATH: `${bin}:/usr/bin:/bin` });
  assert.deepEqual(passed, {
    status: 0,
    stdout: `test --verbose ${join(installRoot, 'policies/ct')} ${policy}\n`,
    stderr: '',
  });
  opa(2);
  assert.equal((await ct(['policy', 'test', 'policy'], { PATH: `${bin}:/usr/bin:/bin` })).status, 1);
  const named = { PATH: `${bin}:/usr/bin:/bin`, CT_POLICY_DIR: policy };
  assert.match((await ct(['policy', 'test'], named)).stdout, new RegExp(` ${policy}\n$`));
  const missing = await ct(['policy', 'test', 'policy'], { PATH: '/nowhere' });
  assert.equal(missing.status, 2);
  assert.match(missing.stderr, /^error\[REQUIREMENT_MISSING\]: .*`opa`/);
  assert.match(
    (await ct(['policy', 'test', 'none'])).stderr,
    /^error\[USAGE\]: \S+\/none is not a directory/,
  );
});

test('a preset that is not configured ends `ct run` before there is an image', async () => {
  const job = (network: string): void =>
    writeFileSync(
      join(directory, 'early/ct.yml'),
      `version: 1\njobs: {a: {image: none-such, ${network}steps: [{run: "true"}]}}\n`,
    );
  mkdirSync(join(directory, 'early'));
  check = { error: { code: 'PRESET_UNCONFIGURED', message: 'the preset `npm` is not configured' } };
  job('network: [npm], ');
  const early = await ct(['run', '-C', 'early']);
  assert.match(early.stderr, /error\[PRESET_UNCONFIGURED\]: the preset `npm`/);
  assert.notEqual(early.status, 0);
  // The control: nothing to resolve, and so the image is what is missing.
  job('network: ["https://a.example"], ');
  assert.match((await ct(['run', '-C', 'early'])).stderr, /error\[IMAGE_NOT_FOUND\]/);
});

test('another CT_POLICY_DIR than that of the daemon is said, and that of the daemon is not', async () => {
  check = { revision: 'rev1', decision: { allow: true, denials: [] }, presets: [] } as unknown as PolicyCheck;
  const other = await ct(['policy', 'check'], { CT_POLICY_DIR: '/nowhere' });
  assert.match(other.stderr, /warning: CT_POLICY_DIR is \/nowhere, but the host daemon .*\/policy: end it/);
  const same = await ct(['policy', 'check'], { CT_POLICY_DIR: join(directory, 'policy') });
  assert.doesNotMatch(same.stderr, /CT_POLICY_DIR/);
});

test('ct alerts lists what was filed, of all runs, of one, and since a time', async () => {
  const none = await ct(['alerts']);
  assert.deepEqual(none, { status: 0, stdout: '', stderr: 'no alert was filed\n' });
  const file = new AlertFile(alertDirectory(ctHome));
  for (const [id, job, time] of [
    ['r1', 'build', '2026-01-31T09:05:07.000Z'],
    ['r2', 'test', new Date().toISOString()],
  ] as const) {
    file.append({
      version: 1,
      id: `alert-${id}`,
      time,
      severity: 'critical',
      title: 'evil.example is banned\u001b[2J',
      rule: 'ct.egress.banned',
      action: 'terminated',
      run: { id, job },
      evidence: { file: '/d', id: 'd4' },
      count: 1,
    });
  }
  await file.close();
  const table = await ct(['alerts']);
  assert.equal(table.status, 0);
  assert.match(table.stdout, /^TIME .*\n\S+ \S+ +critical +terminated +r1 +build +1 .*\n.* r2 .*\n$/);
  assert.ok(!table.stdout.includes('\u001b'));
  const ids = async (...args: string[]): Promise<string[]> =>
    (await ct(['alerts', '--json', ...args])).stdout
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line).id);
  assert.deepEqual(await ids(), ['alert-r1', 'alert-r2']);
  assert.deepEqual(await ids('r1'), ['alert-r1']);
  assert.deepEqual(await ids('test'), ['alert-r2']);
  assert.deepEqual(await ids('latest'), ['alert-r1']);
  assert.match((await ct(['alerts', 'latest'])).stdout, /^TIME .*\n.* r1 .*\n$/);
  assert.deepEqual(await ids('-n', '1'), ['alert-r2']);
  assert.deepEqual(await ids('--last', '9'), ['alert-r1', 'alert-r2']);
  assert.equal((await ct(['alerts', '-n', '0'])).status, 2);
  assert.deepEqual(await ids('--since', '1h'), ['alert-r2']);
  assert.deepEqual(await ids('--since', '2026-01-31T09:05:08Z'), ['alert-r2']);
  assert.equal((await ct(['alerts', '--since', 'once'])).status, 2);
});
