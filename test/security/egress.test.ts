/**
 * What a job can do to reach what it may not: each way is really tried, from inside a real VM, against a host daemon whose
 * network is an internet of our own (test/support/outside.ts). Of every attempt three things are shown: nothing of it got
 * out, the decision log has it, and the same request with the rule that allows it succeeds.
 *
 * Jobs are not root in their VM and cannot become it; `unshare` gives them the privileges that there are without. What a
 * guest can do whose kernel and agent are hostile is in test/security/hostile-egress.test.ts.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { findHost } from '../../src/host/client.ts';
import { type Attempt, decisionAbout, EgressHost, type EgressRun } from '../support/egress-runs.ts';
import { noOutside } from '../support/outside.ts';

const skip = noOutside() ?? false;

const NAMES = {
  'allowed.example': ['20.0.0.10', '2a00:1::10'],
  'other.example': ['20.0.0.20', '2a00:1::20'],
  'raw.example': ['20.0.0.30', '2a00:1::30'],
  'four.example': ['20.0.0.40'],
  'evil-allowed.example': ['20.0.0.66'],
  'allowed.example.evil.example': ['20.0.0.66'],
  'sub.allowed.example': ['20.0.0.66'],
  'secret.exfil.example': ['20.0.0.66'],
  'banned.example': ['20.0.0.99'],
  'sub.banned.example': ['20.0.0.99'],
  'rebind-loopback.example': ['127.0.0.1'],
  'rebind-loopback6.example': ['::1'],
  'rebind-private.example': ['10.1.2.3'],
  'rebind-metadata.example': ['169.254.169.254'],
  'rebind-translated.example': ['64:ff9b::a9fe:a9fe'],
  'rebind-own.example': ['20.9.9.9'],
  'rebind-mixed.example': ['20.0.0.10', '127.0.0.1'],
  'mirror-loopback.example': ['127.0.0.1'],
  'mirror-metadata.example': ['169.254.169.254'],
  'mirror-mixed.example': ['20.0.0.10', '127.0.0.1'],
};

const EGRESS = `  mode: audit
  allow: ['*']
  ban: [banned.example, '*.banned.example', 20.0.0.98]
  block: [blocked.example]
  private:
    mirror-loopback.example: [127.0.0.1]
    mirror-metadata.example: [169.254.169.254]
    mirror-mixed.example: [127.0.0.1]
    10.1.2.3: [10.1.2.3]
    169.254.169.254: [169.254.169.254]
    64:ff9b::a9fe:a9fe: [64:ff9b::a9fe:a9fe]
    20.9.9.9: [20.9.9.9]
`;

let host: EgressHost;
before(async () => {
  if (!skip) host = await EgressHost.open(NAMES, EGRESS);
});
after(async () => {
  if (!skip) await host[Symbol.asyncDispose]();
});

const only = (results: Readonly<Record<string, readonly string[]>>, name: string): string =>
  results[name]?.join(' | ') ?? 'not tried';

function assertRan({ outcome, report }: EgressRun): void {
  assert.equal(outcome.status, 0, `${outcome.stderr}\n${JSON.stringify(report)}`);
}

// ------------------------------------------------------------------------------------- without any rule

interface Case {
  readonly attempt: Attempt;
  /** Of the decision log: fields of the request, and the rule. */
  readonly request: Readonly<Record<string, unknown>>;
  readonly rule: string;
  /** Outcome without the rule. */
  readonly refused: RegExp;
  /** The rule that allows it, and what comes back then; absent where there is no way out for anybody. */
  readonly control?: { readonly allow: string; readonly outcome: RegExp };
}

const RESET = /^reset$/;
const NOTHING = /^(?:silence|failed: \w+)$/;

function literal(name: string, address: string, port: number, outcome: RegExp): Case {
  const authority = address.includes(':') ? `[${address}]` : address;
  return {
    attempt: { name, how: 'tcp', host: address, port, send: `GET /${name} HTTP/1.0\r\n\r\n` },
    request: { kind: 'connect', host: address, port },
    rule: 'ct.egress.literal',
    refused: RESET,
    control: { allow: `tcp://${authority}:${port}`, outcome },
  };
}

const HELLO = /^answer: HTTP\/1\.1 200/;

const LITERALS: readonly Case[] = [
  literal('literal-public', '20.0.0.66', 80, HELLO),
  literal('literal-private', '10.1.2.3', 80, HELLO),
  literal('literal-metadata', '169.254.169.254', 80, HELLO),
  literal('literal-v6', '2a00:1::66', 80, HELLO),
  literal('literal-nat64-metadata', '64:ff9b::a9fe:a9fe', 80, HELLO),
  literal('literal-own-address-of-host', '20.9.9.9', 22, /^answer: SSH-2\.0-outside/),
  {
    attempt: {
      name: 'literal-mapped',
      how: 'tcp',
      host: '::ffff:20.0.0.66',
      port: 8080,
      send: 'GET / HTTP/1.0\r\n\r\n',
    },
    request: { kind: 'connect', host: '20.0.0.66', port: 8080 },
    rule: 'ct.egress.literal',
    refused: RESET,
    control: { allow: 'tcp://20.0.0.66:8080', outcome: HELLO },
  },
  {
    attempt: { name: 'doh-literal', how: 'tls', host: '1.1.1.1', port: 443, sni: 'allowed.example' },
    request: { kind: 'connect', host: '1.1.1.1', port: 443 },
    rule: 'ct.egress.literal',
    refused: /^reset$/,
    control: { allow: 'tcp://1.1.1.1:443', outcome: HELLO },
  },
  {
    attempt: { name: 'dns-tcp', how: 'dns_tcp', server: '8.8.8.8', ask: 'tcp.exfil.example' },
    request: { kind: 'connect', host: '8.8.8.8', port: 53 },
    rule: 'ct.egress.literal',
    refused: RESET,
    // That server says nothing, and has received the question: below.
    control: { allow: 'tcp://8.8.8.8:53', outcome: /^silence$/ },
  },
];

const NO_WAY_OUT: readonly Case[] = [
  {
    attempt: { name: 'dns-udp', how: 'dns_udp', server: '8.8.8.8', ask: 'udp.exfil.example' },
    request: { kind: 'other', what: 'udp', address: '8.8.8.8', port: 53 },
    rule: 'ct.egress.no_way_out',
    refused: NOTHING,
  },
  {
    attempt: { name: 'udp-v4', how: 'udp', address: '20.0.0.66', port: 7000, send: 'ct-udp-v4' },
    request: { kind: 'other', what: 'udp', address: '20.0.0.66', port: 7000 },
    rule: 'ct.egress.no_way_out',
    refused: NOTHING,
  },
  {
    attempt: { name: 'udp-v6', how: 'udp', address: '2a00:1::66', port: 443, send: 'ct-udp-v6' },
    request: { kind: 'other', what: 'udp', address: '2a00:1::66', port: 443 },
    rule: 'ct.egress.no_way_out',
    refused: NOTHING,
  },
  {
    attempt: { name: 'icmp', how: 'raw', family: 'AF_INET', kind: 'SOCK_RAW', protocol: 1 },
    request: { kind: 'other', what: 'raw-socket' },
    rule: 'ct.egress.no_way_out',
    refused: /^failed: EPERM$/,
  },
  {
    attempt: { name: 'icmp-v6', how: 'raw', family: 'AF_INET6', kind: 'SOCK_RAW', protocol: 58 },
    request: { kind: 'other', what: 'raw-socket' },
    rule: 'ct.egress.no_way_out',
    refused: /^failed: EPERM$/,
  },
  {
    attempt: { name: 'ping', how: 'raw', family: 'AF_INET', kind: 'SOCK_DGRAM', protocol: 1 },
    request: { kind: 'other', what: 'raw-socket' },
    rule: 'ct.egress.no_way_out',
    refused: /^failed: E(?:PERM|ACCES)$/,
  },
  {
    attempt: { name: 'packet', how: 'raw', family: 'AF_PACKET', kind: 'SOCK_RAW', protocol: 0x300 },
    request: { kind: 'other', what: 'packet-socket' },
    rule: 'ct.egress.no_way_out',
    refused: /^failed: EPERM$/,
  },
];

const QUESTIONS: readonly Case[] = [
  {
    attempt: { name: 'resolve', how: 'resolve', host: 'secret.exfil.example' },
    request: { kind: 'dns', name: 'secret.exfil.example' },
    rule: 'ct.egress.not_allowed',
    refused: /^no name: EAI_NONAME$/,
    control: { allow: 'secret.exfil.example', outcome: /^answer: 198\.1[89]\.\S+ fd63:7463:\S+$/ },
  },
  {
    attempt: { name: 'banned-not-named', how: 'resolve', host: 'not-banned.example' },
    request: { kind: 'dns', name: 'not-banned.example' },
    rule: 'ct.egress.not_allowed',
    refused: /^no name: EAI_NONAME$/,
  },
];

test('without a rule nothing of a job gets out, whatever it tries and whoever it is', { skip }, async (t) => {
  const cases = [...LITERALS, ...NO_WAY_OUT, ...QUESTIONS];
  const attempts = [
    ...cases.map(({ attempt }) => attempt),
    { name: 'own-services', how: 'loopback' },
    { name: 'ports', how: 'ports' },
  ];
  const packetAttempts = NO_WAY_OUT.map(({ attempt }) => attempt);
  const run = await host.run({
    allow: [],
    mode: 'enforce',
    steps: [
      { attempts },
      // uid 0 in a user namespace, and there with a network namespace, in which raw sockets are allowed.
      { attempts: LITERALS.map(({ attempt }) => attempt), as: 'unshare --map-root-user' },
      { attempts: packetAttempts, as: 'unshare --map-root-user --net' },
    ],
  });
  assertRan(run);
  const [asUser = {}, asRoot = {}, inNamespace = {}] = run.results;
  for (const { attempt, request, rule, refused } of cases) {
    await t.test(`${attempt.name} is refused by ${rule}`, () => {
      assert.match(only(asUser, attempt.name), refused);
      assert.ok(decisionAbout(run.decisions, request, rule), `no decision about ${JSON.stringify(request)}`);
    });
  }
  await t.test('uid 0 of a user namespace gets no further', () => {
    for (const { attempt, refused } of LITERALS)
      assert.match(only(asRoot, attempt.name), refused, attempt.name);
    for (const { attempt } of NO_WAY_OUT) {
      assert.doesNotMatch(
        only(inNamespace, attempt.name),
        /^answer: (?!sent a frame)|not tried/,
        attempt.name,
      );
    }
  });
  await t.test('the byte channels of the VM are out of reach of the job', () => {
    assert.doesNotMatch(only(asUser, 'ports'), /opened|connected/);
  });
  await t.test("services of the job's own on loopback work", () => {
    const own = 'answer: own service\n | answer: own service\n | answer: own datagram';
    assert.equal(only(asUser, 'own-services'), own);
  });
  await t.test('not one packet went out, and the resolver of the host was asked nothing', () => {
    assert.deepEqual([run.arrivals, run.questions, run.packets], [[], [], 0]);
  });
});

test('the control: with rules that name them, the same requests arrive', { skip }, async (t) => {
  const cases = [...LITERALS, ...QUESTIONS].filter(({ control }) => control);
  const dns = { name: 'dns', how: 'dns_udp', server: '198.18.0.1', ask: 'secret.exfil.example' };
  const run = await host.run({
    allow: cases.flatMap(({ control }) => (control ? [control.allow] : [])),
    mode: 'enforce',
    steps: [{ attempts: [...cases.map(({ attempt }) => attempt), dns] }],
  });
  assertRan(run);
  const [results = {}] = run.results;
  for (const { attempt, control } of cases) {
    await t.test(`${attempt.name} succeeds with ${control?.allow}`, () => {
      assert.match(only(results, attempt.name), control?.outcome ?? /^$/);
    });
  }
  await t.test('the DNS server of the VM answers over UDP', () => {
    assert.equal(only(results, 'dns'), 'answer: rcode 0, 1 answers');
  });
  await t.test('a DNS question over TCP has arrived, and the counters see it', () => {
    const question = run.arrivals.find(({ address, port }) => address === '8.8.8.8' && port === 53);
    assert.match(question?.beginning ?? '', /exfil/);
    assert.ok(run.packets > 0);
  });
});

// --------------------------------------------------------------------------------- around the rules there are

interface TrickCase {
  readonly attempt: Attempt;
  readonly request: Readonly<Record<string, unknown>>;
  readonly rule: string;
  readonly outcome: RegExp;
}

const get = (host: string, path = '/', more = ''): string =>
  `GET ${path} HTTP/1.1\r\nHost: ${host}\r\n${more}\r\n`;
const MARK = 'X-Mark: must-not-arrive\r\n';

function unknownName(name: string): TrickCase {
  return {
    attempt: { name, how: 'tcp', host: name, port: 443, send: 'must-not-arrive' },
    request: { kind: 'dns', name },
    rule: 'ct.egress.not_allowed',
    outcome: /^no name: EAI_NONAME$/,
  };
}

function rebinding(name: string, rule: string): TrickCase {
  return {
    attempt: { name, how: 'tcp', host: name, port: 80, send: get(name, '/', MARK) },
    request: { kind: 'address', host: name, port: 80 },
    rule,
    outcome: RESET,
  };
}

/** Of `sequence`: the first request is answered, and nothing after it. */
const FIRST_ONLY = /^answer: HTTP\/1\.1 200[^|]*hello from allowed\.example\n \| (?:reset|closed)$/;

const TRICKS: readonly TrickCase[] = [
  unknownName('evil-allowed.example'),
  unknownName('allowed.example.evil.example'),
  unknownName('sub.allowed.example'),
  rebinding('rebind-loopback.example', 'ct.egress.address'),
  rebinding('rebind-loopback6.example', 'ct.egress.address'),
  rebinding('rebind-private.example', 'ct.egress.address'),
  rebinding('rebind-metadata.example', 'ct.egress.metadata'),
  rebinding('rebind-translated.example', 'ct.egress.metadata'),
  rebinding('rebind-own.example', 'ct.egress.address'),
  rebinding('rebind-mixed.example', 'ct.egress.address'),
  {
    attempt: {
      name: 'literal-private-with-a-rule',
      how: 'tcp',
      host: '10.9.9.9',
      port: 80,
      send: 'must-not-arrive',
    },
    request: { kind: 'address', host: '10.9.9.9' },
    rule: 'ct.egress.address',
    outcome: RESET,
  },
  {
    attempt: {
      name: 'sni-to-another-address',
      how: 'tls',
      host: '20.0.0.66',
      port: 443,
      sni: 'allowed.example',
    },
    request: { kind: 'connect', host: '20.0.0.66', port: 443 },
    rule: 'ct.egress.literal',
    outcome: RESET,
  },
  {
    attempt: {
      name: 'sni-of-another-allowed-name',
      how: 'tls',
      host: 'allowed.example',
      port: 443,
      sni: 'other.example',
    },
    request: { kind: 'stream', host: 'allowed.example', protocol: 'tls', sni: 'other.example' },
    rule: 'ct.egress.sni_mismatch',
    outcome: RESET,
  },
  {
    attempt: {
      name: 'sni-of-a-name-that-is-not-allowed',
      how: 'tls',
      host: 'allowed.example',
      port: 443,
      sni: 'evil.example',
    },
    request: { kind: 'stream', host: 'allowed.example', protocol: 'tls', sni: 'evil.example' },
    rule: 'ct.egress.sni_mismatch',
    outcome: RESET,
  },
  {
    attempt: { name: 'sni-missing', how: 'tls', host: 'allowed.example', port: 443, sni: null },
    request: { kind: 'stream', host: 'allowed.example', protocol: 'tls', sni: null },
    rule: 'ct.egress.sni_missing',
    outcome: RESET,
  },
  {
    attempt: {
      name: 'host-of-another',
      how: 'sequence',
      host: 'allowed.example',
      port: 80,
      requests: [get('evil.example', '/', MARK)],
    },
    request: { kind: 'stream', host: 'allowed.example', protocol: 'http', http_host: 'evil.example' },
    rule: 'ct.egress.host_mismatch',
    outcome: /^(?:reset|closed)$/,
  },
  {
    attempt: {
      name: 'host-of-another-in-the-second-request',
      how: 'sequence',
      host: 'allowed.example',
      port: 80,
      requests: [get('allowed.example'), get('fronted.example', '/', MARK)],
    },
    request: { kind: 'stream', host: 'allowed.example', protocol: 'http', http_host: 'fronted.example' },
    rule: 'ct.egress.host_mismatch',
    outcome: FIRST_ONLY,
  },
  {
    attempt: {
      name: 'host-of-another-in-a-pipelined-request',
      how: 'sequence',
      host: 'allowed.example',
      port: 80,
      requests: [
        get('allowed.example') + get('pipelined.example', '/', MARK),
        get('allowed.example', '/', MARK),
      ],
    },
    request: { kind: 'stream', host: 'allowed.example', protocol: 'http', http_host: 'pipelined.example' },
    rule: 'ct.egress.host_mismatch',
    outcome: /^(?:answer: HTTP\/1\.1 200[^|]*|reset|closed)( \| (?:reset|closed))$/,
  },
  {
    attempt: {
      name: 'host-in-the-request-target',
      how: 'sequence',
      host: 'allowed.example',
      port: 80,
      requests: [get('allowed.example', 'http://target.example/', MARK)],
    },
    request: { kind: 'stream', host: 'allowed.example', protocol: 'http' },
    rule: 'ct.egress.host_mismatch',
    outcome: /^(?:reset|closed|answer: HTTP\/1\.1 4\d\d[^|]*)$/,
  },
  {
    attempt: {
      name: 'host-missing',
      how: 'sequence',
      host: 'other.example',
      port: 80,
      requests: [`GET / HTTP/1.0\r\n${MARK}\r\n`],
    },
    request: { kind: 'stream', host: 'other.example', protocol: 'http', http_host: null },
    rule: 'ct.egress.host_missing',
    outcome: /^(?:reset|closed)$/,
  },
  {
    attempt: {
      name: 'unknown-protocol',
      how: 'tcp',
      host: 'allowed.example',
      port: 443,
      send: 'must-not-arrive, whatever it is\r\n\r\n',
    },
    request: { kind: 'stream', host: 'allowed.example', port: 443, protocol: 'unknown' },
    rule: 'ct.egress.protocol',
    outcome: /^(?:reset|closed)$/,
  },
  {
    attempt: {
      name: 'ssh-where-tls-is-allowed',
      how: 'tcp',
      host: 'other.example',
      port: 443,
      send: 'SSH-2.0-must-not-arrive\r\n',
    },
    request: { kind: 'stream', host: 'other.example', port: 443, protocol: 'ssh' },
    rule: 'ct.egress.protocol',
    outcome: /^(?:reset|closed)$/,
  },
  {
    attempt: {
      name: 'another-port',
      how: 'tcp',
      host: 'allowed.example',
      port: 8443,
      send: 'must-not-arrive',
    },
    request: { kind: 'connect', host: 'allowed.example', port: 8443 },
    rule: 'ct.egress.port',
    outcome: RESET,
  },
];

interface GoodCase {
  readonly attempt: Attempt;
  readonly outcome: RegExp;
}

/** Beside the tricks, the same without a trick. */
const HONEST: readonly GoodCase[] = [
  {
    attempt: {
      name: 'https-v4',
      how: 'tls',
      host: 'allowed.example',
      port: 443,
      sni: 'allowed.example',
      family: 'AF_INET',
    },
    outcome: HELLO,
  },
  {
    attempt: {
      name: 'https-v6',
      how: 'tls',
      host: 'allowed.example',
      port: 443,
      sni: 'allowed.example',
      family: 'AF_INET6',
    },
    outcome: HELLO,
  },
  {
    attempt: {
      name: 'https-v6-to-a-host-without',
      how: 'tls',
      host: 'four.example',
      port: 443,
      sni: 'four.example',
      family: 'AF_INET6',
    },
    outcome: HELLO,
  },
  {
    attempt: {
      name: 'name-in-capitals',
      how: 'tcp',
      host: 'ALLOWED.example.',
      port: 80,
      send: get('Allowed.Example'),
    },
    outcome: HELLO,
  },
  {
    attempt: {
      name: 'two-requests',
      how: 'sequence',
      host: 'allowed.example',
      port: 80,
      requests: [get('allowed.example'), get('allowed.example:80')],
    },
    outcome: /^answer: HTTP\/1\.1 200[^|]* \| answer: HTTP\/1\.1 200[^|]*$/,
  },
  {
    attempt: {
      name: 'mirror-loopback',
      how: 'tcp',
      host: 'mirror-loopback.example',
      port: 80,
      send: get('mirror-loopback.example'),
    },
    outcome: HELLO,
  },
  {
    attempt: {
      name: 'mirror-metadata',
      how: 'tcp',
      host: 'mirror-metadata.example',
      port: 80,
      send: get('mirror-metadata.example'),
    },
    outcome: HELLO,
  },
  {
    attempt: {
      name: 'mirror-mixed',
      how: 'tcp',
      host: 'mirror-mixed.example',
      port: 80,
      send: get('mirror-mixed.example'),
    },
    outcome: HELLO,
  },
  {
    attempt: {
      name: 'anything-where-tcp-is-allowed',
      how: 'tcp',
      host: 'raw.example',
      port: 7000,
      send: 'anything\n',
    },
    outcome: /^answer: anything\n$/,
  },
  {
    attempt: {
      name: 'tls-without-sni-where-tcp-is-allowed',
      how: 'tls',
      host: 'raw.example',
      port: 443,
      sni: null,
    },
    outcome: HELLO,
  },
];

test('rules cannot be stretched: names, addresses, SNI, Host, protocols and ports', { skip }, async (t) => {
  const rebinds = Object.keys(NAMES).filter((name) => /^(?:rebind|mirror)-/.test(name));
  const run = await host.run({
    allow: [
      ...[
        'allowed.example',
        'other.example',
        'four.example',
        'tcp://raw.example:7000',
        'tcp://raw.example:443',
      ],
      ...['tcp://10.9.9.9:80', ...rebinds],
    ],
    mode: 'enforce',
    steps: [{ attempts: [...TRICKS, ...HONEST].map(({ attempt }) => attempt) }],
  });
  assertRan(run);
  const [results = {}] = run.results;
  for (const { attempt, request, rule, outcome } of TRICKS) {
    await t.test(`${attempt.name} is refused by ${rule}`, () => {
      assert.match(only(results, attempt.name), outcome);
      assert.ok(decisionAbout(run.decisions, request, rule), `no decision about ${JSON.stringify(request)}`);
    });
  }
  for (const { attempt, outcome } of HONEST) {
    await t.test(`the control: ${attempt.name} succeeds`, () => {
      assert.match(only(results, attempt.name), outcome);
    });
  }
  await t.test('no byte of what was refused arrived, nowhere', () => {
    assert.ok(
      run.arrivals.some(({ beginning }) => beginning.includes('anything')),
      'the control',
    );
    const bad = run.arrivals.filter(({ beginning }) =>
      /must-not-arrive|evil\.example|fronted|pipelined/.test(beginning),
    );
    assert.deepEqual(bad, []);
    const wanted = [
      '20.0.0.10',
      '20.0.0.20',
      '20.0.0.30',
      '20.0.0.40',
      '2a00:1::10',
      '2a00:1::20',
      '2a00:1::30',
    ];
    const mirrors = ['127.0.0.1', '169.254.169.254'];
    const elsewhere = run.arrivals.filter(({ address }) => ![...wanted, ...mirrors].includes(address));
    assert.deepEqual(elsewhere, []);
    // Those of the mirrors' names, and none of the names that only pretended.
    const inner = run.arrivals.filter(({ address }) => mirrors.includes(address));
    assert.ok(
      inner.length > 0 && inner.every(({ beginning }) => beginning.includes('Host: mirror-')),
      JSON.stringify(inner),
    );
  });
  await t.test('the resolver of the host was asked for allowed names only', () => {
    const asked = new Set(run.questions);
    for (const name of ['evil-allowed.example', 'allowed.example.evil.example', 'sub.allowed.example']) {
      assert.ok(!asked.has(name), name);
    }
    assert.ok(asked.has('allowed.example'), 'the control');
  });
});

// ------------------------------------------------------------------------------------------ steps and modes

test('a step with `network: none` reaches nothing of what its job may reach', { skip }, async () => {
  const attempts: Attempt[] = [
    { name: 'name', how: 'tcp', host: 'allowed.example', port: 80, send: get('allowed.example', '/', MARK) },
    { name: 'address', how: 'tcp', host: '20.0.0.66', port: 80, send: get('x', '/', MARK) },
  ];
  const run = await host.run({
    allow: ['allowed.example', 'tcp://20.0.0.66:80'],
    mode: 'enforce',
    steps: [{ attempts, network: 'none' }, { attempts }],
  });
  assertRan(run);
  const [without = {}, withNetwork = {}] = run.results;
  assert.match(only(without, 'name'), /^no name/);
  assert.match(only(without, 'address'), RESET);
  assert.ok(decisionAbout(run.decisions, { host: '20.0.0.66' }, 'ct.egress.step_without_network'));
  assert.match(only(withNetwork, 'name'), HELLO);
  assert.match(only(withNetwork, 'address'), HELLO);
  assert.equal(run.arrivals.length, 2);
});

/** From the decision, which is made in the turn in which the request reaches the daemon. */
const VM_GONE_MS = 100;

const REACHES: readonly Attempt[] = [
  { name: 'unruled', how: 'tcp', host: 'other.example', port: 80, send: get('other.example') },
];

test('mode `audit` lets pass what no rule allows, and records it; a blocked name is denied all the same', {
  skip,
}, async () => {
  const blocked: Attempt = { name: 'blocked', how: 'resolve', host: 'blocked.example' };
  const run = await host.run({ allow: [], mode: 'audit', steps: [{ attempts: [...REACHES, blocked] }] });
  assertRan(run);
  const [results = {}] = run.results;
  assert.match(only(results, 'unruled'), HELLO);
  assert.match(only(results, 'blocked'), /^no name/);
  const recorded = decisionAbout(
    run.decisions,
    { kind: 'connect', host: 'other.example' },
    'ct.egress.not_allowed',
  );
  assert.equal(recorded?.result.action, 'allow');
  assert.equal(decisionAbout(run.decisions, { name: 'blocked.example' })?.result.action, 'deny');
});

test('mode `terminate` ends the run at the first denial, with 122 and an alert', { skip }, async () => {
  const before = host.alerts().length;
  const run = await host.run({
    allow: [],
    mode: 'terminate',
    steps: [{ attempts: REACHES }, { attempts: REACHES }],
  });
  assert.equal(run.outcome.status, 122, run.outcome.stderr);
  assert.equal(run.report.jobs[0].outcome, 'violation');
  assert.equal(run.report.jobs[0].error.code, 'POLICY_VIOLATION');
  assert.deepEqual(run.arrivals, []);
  assert.equal(decisionAbout(run.decisions, { name: 'other.example' })?.result.action, 'terminate');
  const alerts = host.alerts().slice(before);
  assert.deepEqual(
    alerts.map(({ rule, action, run: of, destination }) => [rule, action, of.id, destination?.host]),
    [['ct.egress.not_allowed', 'terminated', run.report.jobs[0].run, 'other.example']],
  );
});

for (const [name, attempt, subject] of [
  ['a banned domain', { name: 'banned', how: 'resolve', host: 'banned.example' }, 'banned.example'],
  [
    'a name below a banned domain',
    { name: 'banned', how: 'resolve', host: 'a.b.banned.example' },
    'a.b.banned.example',
  ],
  ['a banned address', { name: 'banned', how: 'tcp', host: '20.0.0.98', port: 80, send: 'x' }, '20.0.0.98'],
  [
    'a banned name in the Host of an allowed one',
    { name: 'banned', how: 'sequence', host: 'allowed.example', port: 80, requests: [get('banned.example')] },
    'banned.example',
  ],
] as const satisfies readonly (readonly [string, Attempt, string])[]) {
  test(`${name} ends the run in every mode: 122, an alert, and the VM is gone at once`, {
    skip,
  }, async () => {
    const before = host.alerts().length;
    const gone = host.nextVmGone();
    const run = await host.run({
      allow: ['allowed.example'],
      mode: 'audit',
      steps: [{ attempts: [attempt] }, { attempts: REACHES }],
    });
    assert.equal(run.outcome.status, 122, run.outcome.stderr);
    assert.equal(run.report.jobs[0].error.code, 'POLICY_VIOLATION');
    assert.match(run.report.jobs[0].error.message, new RegExp(subject.replaceAll('.', '\\.')));
    const banned = run.decisions.filter(({ result }) => result.denial?.rule === 'ct.egress.banned');
    assert.equal(banned.length, 1);
    assert.equal(banned[0]?.result.action, 'terminate');
    const tookMs = (await gone) - Date.parse(banned[0]?.timestamp ?? '');
    assert.ok(tookMs <= VM_GONE_MS, `the VM was gone ${tookMs} ms after the decision`);
    assert.ok(!run.arrivals.some(({ beginning }) => beginning.includes('banned')));
    assert.ok(!run.questions.some((question) => question.includes('banned')));
    const alerts = host.alerts().slice(before);
    assert.equal(alerts.length, 1);
    assert.equal(alerts[0]?.action, 'terminated');
    assert.equal(alerts[0]?.run.id, run.report.jobs[0].run);
    assert.match(alerts[0]?.process?.binary ?? '', /python/, 'who tried it');
    assert.ok((alerts[0]?.process?.pid ?? 0) > 1);
  });
}

// ------------------------------------------------------------------------------------------------------ floods

const FLOOD = 10_000;
/** A loose bound, for a machine that is busy with the guest; `ct bench egress` measures. */
const ANSWER_MS = 2000;

/** Asks the daemon for its state again and again. */
class Answers {
  readonly #home: string;
  readonly #asking: Promise<void>;
  #longestMs = 0;
  #isOver = false;

  constructor(home: string) {
    this.#home = home;
    this.#asking = this.#ask();
  }

  async #ask(): Promise<void> {
    while (!this.#isOver) {
      const client = await findHost(this.#home);
      const startedAt = performance.now();
      await client?.info();
      this.#longestMs = Math.max(this.#longestMs, performance.now() - startedAt);
      await sleep(50);
    }
  }

  async longestMs(): Promise<number> {
    this.#isOver = true;
    await this.#asking;
    return this.#longestMs;
  }
}

test('slow clients and thousands of connections hold up neither others nor the host', { skip }, async () => {
  const polite: Attempt = {
    name: 'polite',
    how: 'tls',
    host: 'allowed.example',
    port: 443,
    sni: 'allowed.example',
  };
  const answers = new Answers(host.home);
  const run = await host.run({
    allow: ['allowed.example', 'tcp://raw.example:7000'],
    mode: 'enforce',
    memory: '1G',
    steps: [
      {
        attempts: [
          { name: 'slow', how: 'slow_loris', host: 'allowed.example', port: 443, count: 60, seconds: 6 },
          polite,
        ],
      },
      {
        attempts: [
          { name: 'flood', how: 'flood', host: 'raw.example', port: 7000, count: FLOOD, seconds: 10 },
        ],
      },
      { attempts: [polite] },
    ],
  });
  assertRan(run);
  const [slow = {}, flood = {}, after = {}] = run.results;
  assert.equal(only(slow, 'slow'), '0 answered');
  assert.match(only(slow, 'polite'), HELLO);
  const [, open, others] = /^(\d+) open, (\d+) not$/.exec(only(flood, 'flood')) ?? [];
  assert.equal(Number(open) + Number(others), FLOOD, only(flood, 'flood'));
  assert.ok(Number(open) > 100 && Number(others) > 100, only(flood, 'flood'));
  const longestMs = await answers.longestMs();
  assert.ok(longestMs < ANSWER_MS, `the daemon did not answer for ${longestMs} ms`);
  assert.match(only(after, 'polite'), HELLO);
  const begun = run.arrivals.filter(({ port, bytes }) => port === 443 && bytes > 0);
  assert.equal(begun.length, 2, 'only the polite ones have said anything outside');
});
