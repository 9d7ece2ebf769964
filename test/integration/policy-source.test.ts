import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { OpaClient } from '../../src/host/opa-client.ts';
import {
  loadPolicy,
  policyDirectory,
  readPolicyData,
  shippedPolicies,
} from '../../src/host/policy-source.ts';
import { MAX_OPA_ANSWER_BYTES } from '../../src/policy/remote.ts';
import { EGRESS_CASES } from '../fixtures/policy/cases.ts';
import { scratchDirectory } from '../support/scratch.ts';

const DEFAULT = readFileSync(join(shippedPolicies, 'default.yml'), 'utf8');

function options(ctHome: string) {
  return { ctHome, env: {}, resolvePresets: async () => [], systemDirectory: join(ctHome, 'etc') };
}

test('exactly one policy counts: the named one, that of the machine, that of CT_HOME, the shipped one', () => {
  using scratch = scratchDirectory();
  const all = options(scratch.path);
  assert.equal(policyDirectory(all), undefined);
  mkdirSync(join(scratch.path, 'policy'));
  assert.equal(policyDirectory(all), join(scratch.path, 'policy'));
  mkdirSync(all.systemDirectory);
  assert.equal(policyDirectory(all), all.systemDirectory);
  assert.equal(policyDirectory({ ...all, env: { CT_POLICY_DIR: '/somewhere' } }), '/somewhere');
});

test('a policy of the machine that leads nowhere is an error, and gives way to no laxer one', async () => {
  using scratch = scratchDirectory();
  const all = options(scratch.path);
  symlinkSync('/nonexistent', all.systemDirectory);
  assert.equal(policyDirectory(all), all.systemDirectory);
  await assert.rejects(loadPolicy(policyDirectory(all), all), {
    code: 'POLICY_INVALID',
    message: /not a directory/,
  });
});

test('the shipped policy loads: everything may be asked for on a laptop, and strangers get presets only', async () => {
  using scratch = scratchDirectory();
  using policy = await loadPolicy(undefined, options(scratch.path));
  assert.match(policy.revision, /^[0-9a-f]{64}$/);
  assert.equal(policy.description, 'the policy that ct comes with');
  const ask = [
    { rule: 'npm', host: 'npm.example', port: 443, protocol: 'tls', addresses: 'any' },
    { rule: 'https://a.example', host: 'a.example', port: 443, protocol: 'tls', addresses: 'public' },
    { rule: 'tcp://192.0.2.7:1', host: '192.0.2.7', port: 1, protocol: 'tcp', addresses: 'public' },
  ] as const;
  const input = {
    version: 1,
    run: { job: 'test', trust: 'local' },
    image: { name: 'debian-12', digest: 'sha256:0' },
    resources: { cpus: 2, memory_mib: 2048, disk_mib: 8192, timeout_seconds: 3600 },
    secrets: ['TOKEN'],
    network: { ask },
  } as const;
  const own = await policy.engine.decideAdmission(input);
  assert.deepEqual(own.decision, {
    allow: true,
    denials: [],
    network: { mode: 'enforce', allow: ask },
    audit: 'on',
    code: { mode: 'off' },
  });
  const stranger = await policy.engine.decideAdmission({
    ...input,
    run: { job: 'test', trust: 'untrusted' },
  });
  assert.deepEqual(
    stranger.decision.denials.map((denial) => denial.rule),
    ['ct.admission.network', 'ct.admission.network', 'ct.admission.secret'],
  );
});

test('a policy that others may write to is CONFIG_INVALID; the same one of our own loads', async () => {
  using scratch = scratchDirectory();
  const directory = join(scratch.path, 'policy');
  const file = join(directory, 'data.yml');
  mkdirSync(directory, { mode: 0o755 });
  writeFileSync(file, DEFAULT, { mode: 0o644 });
  const load = async (): Promise<void> =>
    (await loadPolicy(directory, options(scratch.path)))[Symbol.dispose]();
  await load();
  for (const [path, mode, proper] of [
    [file, 0o664, 0o644],
    [directory, 0o777, 0o755],
    [file, 0o646, 0o644],
  ] as const) {
    chmodSync(path, mode);
    await assert.rejects(load(), { code: 'CONFIG_INVALID', hint: /chmod go-w/ });
    chmodSync(path, proper);
  }
  await load();
});

test('a directory without data is POLICY_INVALID, not a policy that forbids nothing', async () => {
  using scratch = scratchDirectory();
  const directory = join(scratch.path, 'policy');
  mkdirSync(directory, { mode: 0o755 });
  const load = () => loadPolicy(directory, options(scratch.path));
  await assert.rejects(load(), { code: 'POLICY_INVALID', message: /has no data\.yml/, hint: /default\.yml/ });
  writeFileSync(join(directory, 'data.yml'), '', { mode: 0o644 });
  await assert.rejects(load(), { code: 'POLICY_INVALID', message: /data\.yml:1:1: the file is empty/ });
  writeFileSync(join(directory, 'data.json'), '{"version": 1}', { mode: 0o644 });
  await assert.rejects(load(), { code: 'POLICY_INVALID', message: /both data\.yml and data\.json/ });
});

test('data alone resolves the presets that every job gets, each once', async () => {
  using scratch = scratchDirectory();
  const directory = join(scratch.path, 'policy');
  mkdirSync(directory, { mode: 0o755 });
  writeFileSync(join(directory, 'data.yml'), DEFAULT.replace('always: []', 'always: [npm, go, npm]'), {
    mode: 0o644,
  });
  const asked: string[] = [];
  const { config } = await readPolicyData(directory, async (names) => {
    asked.push(...names);
    return names.map((name) => ({
      name,
      destinations: [
        { rule: name, host: `${name}.example`, port: 443, protocol: 'tls', addresses: 'any' },
      ] as const,
    }));
  });
  assert.deepEqual(asked, ['npm', 'go']);
  assert.deepEqual(
    config.general.always.map((one) => one.host),
    ['npm.example', 'go.example', 'npm.example'],
  );
});

test('`opa-url` of the data, or of the command line before it, asks a server', async () => {
  using scratch = scratchDirectory();
  const directory = join(scratch.path, 'policy');
  mkdirSync(directory, { mode: 0o755 });
  writeFileSync(join(directory, 'data.yml'), `${DEFAULT}\nopa-url: http://127.0.0.1:1\n`, { mode: 0o644 });
  using policy = await loadPolicy(directory, options(scratch.path));
  assert.ok(policy.engine instanceof OpaClient);
  assert.match(policy.description, /^the OPA server at http:\/\/127\.0\.0\.1:1, with the data of/);
  using other = await loadPolicy(directory, { ...options(scratch.path), opaUrl: 'http://127.0.0.1:2' });
  assert.match(other.description, /127\.0\.0\.1:2/);
});

const failures: [string, RequestListener, RegExp][] = [
  ['an error', (_, response) => response.writeHead(500).end('{"result": {"action": "allow"}}'), /status 500/],
  ['a redirect', (_, response) => response.writeHead(302, { location: '/' }).end(), /status 302/],
  ['nothing', (_, response) => response.end('{}'), /the answer is undefined/],
  ['no JSON', (_, response) => response.end('allow'), /not answer in JSON/],
  ['no object', (_, response) => response.end('[]'), /not answer with an object/],
  ['another form', (_, response) => response.end('{"result": {"allow": true}}'), /form of a decision/],
  ['a bare yes', (_, response) => response.end('{"result": {"action": "allow"}}'), /form of a decision/],
  [
    'more than it should',
    (_, response) => response.end('{"result": {"action": "allow", "allowed_by": "x", "why": 1}}'),
    /form of a decision/,
  ],
  ['silence', () => {}, /did not answer within 300 ms/],
  ['a beginning', (_, response) => void response.write('{"result":'), /did not answer within 300 ms/],
  ['a hang-up', (request) => request.socket.destroy(), /cannot be asked/],
  [
    'a cut',
    (_, response) => {
      response.writeHead(200, { 'content-length': 100 });
      response.write('{');
      setTimeout(() => response.destroy(), 20);
    },
    /cannot be asked/,
  ],
  [
    'too much',
    (_, response) => response.end(Buffer.alloc(MAX_OPA_ANSWER_BYTES + 1, 0x20)),
    /larger than|within 300 ms/,
  ],
];
for (const [name, listener, expected] of failures) {
  test(`an OPA server that answers with ${name} denies, and the denial says so`, async () => {
    const { decision, meta } = await ask(listener);
    assert.equal(decision.action, 'deny');
    assert.equal(decision.denial?.rule, 'ct.egress.error');
    assert.match(meta.error ?? '', expected);
    assert.match(decision.denial?.message ?? '', expected);
  });
}

test('an OPA server that answers with a decision is believed', async () => {
  const { decision, meta } = await ask((request, response) => {
    assert.equal(request.url, '/v1/data/ct/egress/decision');
    response.end('{"result": {"action": "allow", "allowed_by": "x"}, "decision_id": "1"}');
  });
  assert.deepEqual(decision, { action: 'allow', allowed_by: 'x' });
  assert.equal(meta.error, undefined);
});

async function ask(listener: RequestListener) {
  const server = createServer(listener);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  using client = new OpaClient({ url: `http://127.0.0.1:${port}`, revision: 'r', timeoutMs: 300 });
  try {
    const input = EGRESS_CASES[0]?.input;
    assert.ok(input);
    return await client.decideEgress(input);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}
