/** The network as users of it expect it: clients work unmodified, and connections behave as TCP's do. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { type Attempt, EgressHost } from '../support/egress-runs.ts';
import { exampleTest, works } from '../support/examples.ts';
import { noOutside } from '../support/outside.ts';

const skip = noOutside() ?? false;
const MIB = 1024 * 1024;

const NAMES = {
  'site.example': ['20.0.0.10', '2a00:1::10'],
};

const EGRESS = `  mode: enforce
  allow: ['*']
  resolve:
    fixed.example: 127.0.0.1
`;

let host: EgressHost;
before(async () => {
  if (!skip) host = await EgressHost.open(NAMES, EGRESS);
});
after(async () => {
  if (!skip) await host[Symbol.asyncDispose]();
});

const at = { host: 'site.example' };

const CASES: readonly (Attempt & { readonly expected: RegExp })[] = [
  {
    name: 'a half-closed connection still brings the answer',
    how: 'half_close',
    ...at,
    port: 7001,
    bytes_: 3 * MIB,
    expected: /^same$/,
  },
  {
    name: 'an idle connection stays',
    how: 'idle',
    ...at,
    port: 7000,
    seconds: 5,
    expected: /^answer: before\n \| answer: after\n$/,
  },
  { name: 'a reset is a reset', how: 'tcp', ...at, port: 7002, send: 'x', expected: /^reset$/ },
  {
    name: 'a port where nothing listens',
    how: 'tcp',
    ...at,
    port: 7999,
    send: 'x',
    expected: /^(?:reset|failed: ECONNREFUSED)$/,
  },
  {
    name: 'a large download is complete',
    how: 'bulk',
    ...at,
    port: 80,
    bytes_: 48 * MIB,
    expected: /^same$/,
  },
  { name: 'a large echo', how: 'half_close', ...at, port: 7001, bytes_: 17 * MIB, expected: /^same$/ },
  { name: '200 connections at once', how: 'many', ...at, port: 7000, count: 200, expected: /^200 of 200$/ },
  {
    name: 'a websocket',
    how: 'websocket',
    ...at,
    port: 80,
    expected: /^answer: HTTP\/1\.1 101 Switching Protocols \| same \| same$/,
  },
  {
    name: 'SSH',
    how: 'tcp',
    ...at,
    port: 22,
    send: 'SSH-2.0-client\r\n',
    expected: /^answer: SSH-2\.0-outside\r\n/,
  },
  {
    name: 'a server that speaks first',
    how: 'tcp',
    ...at,
    port: 22,
    send: '',
    expected: /^answer: SSH-2\.0-outside\r\n/,
  },
  {
    name: 'IPv4',
    how: 'tcp',
    ...at,
    port: 7000,
    send: 'v4\n',
    family: 'AF_INET',
    expected: /^answer: v4\n$/,
  },
  {
    name: 'IPv6',
    how: 'tcp',
    ...at,
    port: 7000,
    send: 'v6\n',
    family: 'AF_INET6',
    expected: /^answer: v6\n$/,
  },
  {
    name: 'an address that the operator fixed',
    how: 'tcp',
    host: 'fixed.example',
    port: 7000,
    send: 'fixed\n',
    expected: /^answer: fixed\n$/,
  },
  {
    name: 'curl',
    how: 'command',
    argv: ['curl', '-sS', '--fail', '--cacert', 'authority.pem', 'https://site.example/'],
    expected: /^exit 0: hello from site\.example\n$/,
  },
  {
    name: 'curl to what is not allowed fails at once',
    how: 'command',
    argv: ['curl', '-sS', '--max-time', '20', 'https://no.example/'],
    expected: /^exit 6: /,
  },
  {
    name: 'an upload with curl',
    how: 'command',
    argv: [
      'sh',
      '-c',
      'head -c 9000000 /dev/zero > zeros; curl -sS -T zeros http://site.example/digest; sha256sum < zeros',
    ],
    expected: /^exit 0: ([0-9a-f]{64})\n\1 {2}-\n$/,
  },
  {
    name: 'git clone',
    how: 'command',
    argv: ['sh', '-c', 'git clone -q http://site.example/repository.git clone && cat clone/file'],
    expected: /^exit 0: from outside\n$/,
  },
  {
    name: 'git clone over TLS',
    how: 'command',
    argv: [
      'sh',
      '-c',
      'GIT_SSL_CAINFO=$PWD/authority.pem git clone -q https://site.example/repository.git secure && cat secure/file',
    ],
    expected: /^exit 0: from outside\n$/,
  },
];

test('clients work unmodified, and connections behave as those of TCP do', { skip }, async (t) => {
  const ports = [7000, 7001, 7002, 7999].map((port) => `tcp://site.example:${port}`);
  const { outcome, report, results } = await host.run({
    allow: ['site.example', 'ssh://site.example', ...ports, 'tcp://fixed.example:7000'],
    mode: 'enforce',
    memory: '1G',
    steps: [{ attempts: CASES.map(({ expected: _, ...attempt }) => attempt) }],
  });
  assert.equal(outcome.status, 0, `${outcome.stderr}\n${JSON.stringify(report)}`);
  for (const { name, expected } of CASES) {
    await t.test(name, () => assert.match(results[0]?.[name]?.join(' | ') ?? 'not tried', expected));
  }
});

test('the example of a Node.js project installs from the registry of this machine and passes its tests', async (t) => {
  if (!works('npm', 'view', 'semver', 'version'))
    return t.skip('the npm of this machine reaches no registry');
  assert.match(await exampleTest('node', 'node'), /pass 6/);
});
