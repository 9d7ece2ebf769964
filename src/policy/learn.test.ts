import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { EgressDecision } from './decision.ts';
import type { Destination } from './destination.ts';
import type { EgressRequest } from './input.ts';
import { learnNetwork, type Observation } from './learn.ts';

const ALLOW = { action: 'allow' } as const;

function seen(
  request: EgressRequest,
  decision: EgressDecision,
  { step = 'test', count = 1 }: { step?: string; count?: number } = {},
): Observation {
  return {
    input: {
      version: 1,
      run: { trust: 'local', job: 'a' },
      step: { index: 0, name: step, network: true },
      network: { mode: 'audit', allow: { exact: {}, below: {}, any: [] } },
      request,
    },
    decision,
    count,
  };
}

const denied = (rule: string, message = rule): EgressDecision => ({
  action: 'deny',
  denial: { rule, message },
});
const recorded = (rule: string, message = rule): EgressDecision => ({
  action: 'allow',
  denial: { rule, message },
});
const connect = (host: string, port: number, literal = false) =>
  ({ kind: 'connect', host, port, literal }) as const;
const stream = (host: string, port: number, protocol: 'tls' | 'http' | 'ssh' | 'unknown', literal = false) =>
  ({ kind: 'stream', host, port, literal, protocol }) as const;
const dns = (name: string) => ({ kind: 'dns', name, type: 'A' }) as const;
const entries = (observations: Observation[]) => learnNetwork(observations).allow.map(({ entry }) => entry);

test('what audit let pass is asked for by host, port and protocol, and no wider', () => {
  const note = recorded('ct.egress.not_allowed');
  const learned = learnNetwork([
    seen(dns('a.example.com'), note),
    seen(connect('a.example.com', 443), note, { count: 3, step: 'install' }),
    seen(stream('a.example.com', 443, 'tls'), note, { count: 3, step: 'install' }),
    seen(connect('b.example.com', 443), note, { count: 2 }),
    seen(stream('b.example.com', 443, 'tls'), note, { count: 2 }),
    seen(connect('a.example.com', 443), note, { count: 1 }),
    seen(connect('b.example.com', 8443), note),
    seen(stream('b.example.com', 8443, 'tls'), note),
    seen(connect('c.example.com', 80), note),
    seen(stream('c.example.com', 80, 'http'), note),
    seen(connect('git.example.com', 22), note),
    seen(stream('git.example.com', 22, 'ssh'), note),
    seen(connect('db.example.com', 5432), note),
    seen(stream('db.example.com', 5432, 'unknown'), note),
    seen(connect('2001:db8::7', 443, true), note),
  ]);
  assert.deepEqual(
    learned.allow.map(({ entry, count, steps }) => [entry, count, steps.join()]),
    [
      ['http://c.example.com', 1, 'test'],
      ['https://a.example.com', 4, 'install,test'],
      ['https://b.example.com', 2, 'test'],
      ['https://b.example.com:8443', 1, 'test'],
      ['ssh://git.example.com', 1, 'test'],
      ['tcp://[2001:db8::7]:443', 1, 'test'],
      ['tcp://db.example.com:5432', 1, 'test'],
    ],
  );
  assert.deepEqual(learned.left, []);
});

test('what was allowed by more than was needed is asked for as it was used', () => {
  const allowed = { ...ALLOW, allowed_by: '*.example.com' };
  assert.deepEqual(
    entries([
      seen(connect('a.example.com', 443), allowed),
      seen(stream('a.example.com', 443, 'tls'), allowed),
    ]),
    ['https://a.example.com'],
  );
});

test('what a preset gave, or would have given, is asked for by its name', () => {
  const npm: Destination[] = [
    { rule: 'npm', host: 'mirror.example', port: 8443, protocol: 'tls', addresses: 'any' },
  ];
  const presets = new Map([['npm', npm]]);
  const observations = [
    seen(connect('x.example', 443), { ...ALLOW, allowed_by: 'pypi' }),
    seen(connect('mirror.example', 8443), denied('ct.egress.not_allowed')),
    seen(dns('mirror.example'), denied('ct.egress.not_allowed')),
  ];
  assert.deepEqual(
    learnNetwork(observations, presets).allow.map(({ entry }) => entry),
    ['npm', 'pypi'],
  );
  assert.deepEqual(
    learnNetwork([seen(dns('mirror.example'), denied('ct.egress.not_allowed'))], presets).allow.map(
      ({ entry }) => entry,
    ),
    ['npm'],
  );
  assert.deepEqual(entries(observations), ['pypi', 'tcp://mirror.example:8443'], 'unknown here: as it is');
});

test('a name that was denied is a guess, and says so; one that was only looked up is none', () => {
  const learned = learnNetwork([
    seen(dns('denied.example.com'), denied('ct.egress.not_allowed')),
    seen(dns('seen.example.com'), recorded('ct.egress.not_allowed')),
    seen(dns('localname'), denied('ct.egress.not_allowed')),
  ]);
  assert.deepEqual(
    learned.allow.map(({ entry, note }) => [entry, note]),
    [['https://denied.example.com', 'only its name was asked for: protocol and port are a guess']],
  );
  assert.deepEqual(learned.left, ['`seen.example.com` was looked up, and not connected to']);
});

test('what is banned, blocked, or the fault of a client is never asked for', () => {
  const learned = learnNetwork([
    seen(dns('banned.example'), {
      action: 'terminate',
      denial: { rule: 'ct.egress.banned', message: 'banned' },
    }),
    seen(connect('blocked.example', 443), denied('ct.egress.blocked', 'blocked')),
    seen(connect('own.example', 443), denied('corp.rules.no_uploads', 'own rule')),
    seen({ kind: 'other', what: 'raw-socket' }, denied('ct.egress.no_way_out', 'raw')),
    seen(connect('front.example', 443), { ...ALLOW, allowed_by: 'front.example' }),
    seen(stream('front.example', 443, 'tls'), denied('ct.egress.sni_mismatch', 'fronting')),
    seen(
      {
        kind: 'address',
        host: 'meta.example',
        port: 80,
        literal: false,
        addresses: [{ address: '169.254.169.254', classes: ['metadata'], source: 'resolver' }],
      },
      denied('ct.egress.metadata', 'metadata'),
    ),
  ]);
  assert.deepEqual(
    learned.allow.map(({ entry }) => entry),
    ['https://front.example'],
  );
  assert.deepEqual(learned.left, ['banned', 'blocked', 'fronting', 'metadata', 'own rule', 'raw']);
  assert.deepEqual(learned.private, new Map());
});

test('a violation of mode terminate that a rule would allow is asked for', () => {
  const ended: EgressDecision = {
    action: 'terminate',
    denial: { rule: 'ct.egress.not_allowed', message: 'no' },
  };
  assert.deepEqual(entries([seen(connect('a.example.com', 443), ended)]), ['https://a.example.com']);
});

test('addresses that are not public are for the operator, host by host', () => {
  const address = (...addresses: string[]): EgressRequest => ({
    kind: 'address',
    host: 'db.example.com',
    port: 5432,
    literal: false,
    addresses: addresses.map((text) => ({ address: text, classes: ['private'], source: 'resolver' })),
  });
  const learned = learnNetwork([
    seen(connect('db.example.com', 5432), { ...ALLOW, allowed_by: 'tcp://db.example.com:5432' }),
    seen(address('10.0.0.8', '10.0.0.7'), denied('ct.egress.address')),
  ]);
  assert.deepEqual(learned.private, new Map([['db.example.com', ['10.0.0.7', '10.0.0.8']]]));
  assert.deepEqual(
    learned.allow.map(({ entry }) => entry),
    ['tcp://db.example.com:5432'],
  );
});

test('what cannot be looked into needs tcp, and says what that means', () => {
  const learned = learnNetwork([
    seen(connect('a.example.com', 443), { ...ALLOW, allowed_by: 'https://a.example.com' }),
    seen(stream('a.example.com', 443, 'tls'), denied('ct.egress.sni_missing')),
  ]);
  assert.equal(learned.allow[0]?.entry, 'tcp://a.example.com:443');
  assert.match(learned.allow[0]?.note ?? '', /anything may be spoken there/);
});

test('nothing at all needs nothing', () => {
  assert.deepEqual(learnNetwork([]), { allow: [], private: new Map(), left: [] });
});
