import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MAX_JOB_SECRETS } from './limits.ts';
import { MAX_NETWORK_ENTRIES, MAX_NETWORK_ENTRY_BYTES } from './network.ts';
import { parseJobRequest } from './parse-job-request.ts';
import { encodeSecret, isSecretName, parseSecret } from './secret-record.ts';

const STEP = { name: 's', argv: ['x'], env: {}, workingDirectory: '.', condition: 'success' };
const REQUEST = {
  name: 'job',
  image: `sha256:${'0'.repeat(64)}`,
  cpus: 1,
  memoryMib: 512,
  diskMib: 1024,
  env: {},
  steps: [STEP],
  timeoutMs: 1000,
  artifacts: [],
  sendsTree: false,
};

const withSecrets = (secrets: unknown): unknown => ({ ...REQUEST, steps: [{ ...STEP, secrets }] });

test('names of secrets pass, and nothing else that a client puts beside them', () => {
  assert.equal(JSON.stringify(parseJobRequest(REQUEST).steps), JSON.stringify([STEP]));
  const secrets = [{ name: 'TOKEN', env: 'OTHER' }, { name: 'KEY' }];
  assert.deepEqual(parseJobRequest(withSecrets(secrets)).steps[0]?.secrets, secrets);
  const [secret] = parseJobRequest(withSecrets([{ name: 'KEY', value: 'hunter22' }])).steps[0]?.secrets ?? [];
  assert.deepEqual(secret, { name: 'KEY' });
});

test('HOST_PROTOCOL refuses what is no secret, and names the field', () => {
  for (const secrets of [
    'TOKEN',
    ['TOKEN'],
    [{}],
    [{ name: '../x' }],
    [{ name: 'A', env: 'B=C' }],
    [{ name: 'CT_RUN' }],
    [{ name: 'x'.repeat(129) }],
    Array.from({ length: MAX_JOB_SECRETS + 1 }, (_, index) => ({ name: `S${index}` })),
  ]) {
    assert.throws(() => parseJobRequest(withSecrets(secrets)), {
      code: 'HOST_PROTOCOL',
      message: /steps\[0\]\.secrets/,
    });
  }
});

const ORIGIN = {
  trust: 'local',
  repository: 'a/b',
  ref: 'refs/heads/main',
  commit: 'a'.repeat(40),
  actor: 'me',
};

test('a network and an origin pass, and nothing else that a client puts beside them', () => {
  const network = { allow: ['npm', 'https://example.org'], mode: 'terminate' };
  const steps = [{ ...STEP, network: 'none' }];
  const parsed = parseJobRequest({
    ...REQUEST,
    steps,
    network: { ...network, decision: 'allow' },
    origin: { ...ORIGIN, admin: true },
  });
  assert.deepEqual(parsed.network, network);
  assert.deepEqual(parsed.origin, ORIGIN);
  assert.equal(parsed.steps[0]?.network, 'none');
  const bare = parseJobRequest({ ...REQUEST, network: { allow: [] }, origin: { trust: 'untrusted' } });
  assert.deepEqual(bare.network, { allow: [] });
  assert.deepEqual(bare.origin, { trust: 'untrusted' });
  assert.ok(!('network' in parseJobRequest(REQUEST)), 'absent: none');
});

test('HOST_PROTOCOL refuses what is no network or origin, and names the field', () => {
  const wrong: [object, string][] = [
    [{ network: 'none' }, 'network'],
    [{ network: {} }, 'network.allow'],
    [{ network: { allow: [1] } }, 'network.allow[0]'],
    [{ network: { allow: ['a\0'] } }, 'network.allow[0]'],
    [{ network: { allow: ['x'.repeat(MAX_NETWORK_ENTRY_BYTES + 1)] } }, 'network.allow[0]'],
    [{ network: { allow: Array(MAX_NETWORK_ENTRIES + 1).fill('a.org') } }, 'network.allow'],
    [{ network: { allow: [], mode: 'off' } }, 'network.mode'],
    [{ origin: {} }, 'origin.trust'],
    [{ origin: { trust: 'admin' } }, 'origin.trust'],
    [{ origin: { ...ORIGIN, commit: 'HEAD' } }, 'origin.commit'],
    [{ origin: { ...ORIGIN, repository: 1 } }, 'origin.repository'],
    [{ origin: { ...ORIGIN, ref: 'x'.repeat(1001) } }, 'origin.ref'],
    [{ steps: [{ ...STEP, network: 'all' }] }, 'steps[0].network'],
  ];
  for (const [part, field] of wrong) {
    assert.throws(() => parseJobRequest({ ...REQUEST, ...part }), {
      code: 'HOST_PROTOCOL',
      message: `the job request has an unusable \`${field}\``,
    });
  }
});

test('a secret survives its record, whatever its bytes are', () => {
  const value = Buffer.from([1, 0x2c, 0xff, 0x0a]);
  const payload = encodeSecret('TOKEN', value);
  const parsed = parseSecret(payload);
  assert.deepEqual(parsed, { name: 'TOKEN', value });
  payload.fill(0);
  assert.deepEqual(parsed.value, value, 'a copy');
});

test('names: as of variables, without those that ct sets', () => {
  for (const name of ['A', '_', 'a1', 'CT_HOME', 'CTX']) assert.ok(isSecretName(name), name);
  for (const name of ['', '1A', 'a-b', 'CT', 'CT_RUN', 'A\n', 'ü']) assert.ok(!isSecretName(name), name);
});

test('what a job asks of its code and its packages passes; off cannot be asked for', () => {
  const packages = { manager: 'npm', role: 'verify' };
  const steps = [{ ...STEP, packages: { ...packages, more: 1 } }];
  const parsed = parseJobRequest({ ...REQUEST, exec: 'terminate', steps });
  assert.deepEqual([parsed.exec, parsed.steps[0]?.packages], ['terminate', packages]);
  for (const change of [
    { exec: 'off' },
    { exec: 1 },
    { steps: [{ ...STEP, packages: 'npm' }] },
    { steps: [{ ...STEP, packages: { manager: 'other', role: 'fetch' } }] },
    { steps: [{ ...STEP, packages: { manager: 'npm', role: 'x' } }] },
  ]) {
    assert.throws(() => parseJobRequest({ ...REQUEST, ...change }), { code: 'HOST_PROTOCOL' });
  }
});
