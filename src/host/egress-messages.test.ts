import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isName, MAX_OPEN_QUESTIONS, parseEgressQuestion, tellableClaim } from './egress-messages.ts';

const parse = (message: object) => parseEgressQuestion({ type: 'egress', id: 1, ...message });

test('every question passes, without what is added to it', () => {
  const questions = [
    { ask: 'dns', name: 'a.example', queryType: 'AAAA' },
    { ask: 'connect', host: 'a.example', literal: false, port: 443 },
    { ask: 'connect', host: '192.0.2.7', literal: true, port: 1 },
    { ask: 'inspect', connection: 3, facts: { protocol: 'tls', sni: 'a.example', ech: false } },
    { ask: 'inspect', connection: 3, facts: { protocol: 'tls', sni: null, ech: true } },
    { ask: 'inspect', connection: 3, facts: { protocol: 'http', httpHost: null } },
    { ask: 'inspect', connection: 3, facts: { protocol: 'ssh' } },
    { ask: 'inspect', connection: 3, facts: { protocol: 'unknown' } },
    { ask: 'attempted', attempt: { what: 'udp', address: '8.8.8.8', port: 53 } },
    { ask: 'attempted', attempt: { what: 'raw-socket' } },
    { ask: 'closed', connection: 3, sent: 0, received: 2 ** 40 },
  ];
  for (const question of questions) {
    assert.deepEqual(parse({ ...question, allow: true }), { type: 'egress', id: 1, ...question });
  }
});

test('addresses come out in the one form that decisions are made about', () => {
  const question = parse({ ask: 'connect', host: '0:0:0:0:0:FFFF:7f00:0001', literal: true, port: 80 });
  assert.equal(question?.ask === 'connect' && question.host, '127.0.0.1');
});

test('what is no question is none', () => {
  const connect = { ask: 'connect', host: 'a.example', literal: false, port: 443 };
  const inspect = { ask: 'inspect', connection: 3 };
  const hostile: object[] = [
    {},
    { ask: 'allow' },
    { ...connect, id: '1' },
    { ...connect, id: -1 },
    { ...connect, id: 1e300 },
    { ...connect, host: 'A.example' },
    { ...connect, host: 'a.example.' },
    { ...connect, host: '' },
    { ...connect, host: 'a..example' },
    { ...connect, host: 'a b' },
    { ...connect, host: '*.example' },
    { ...connect, host: '127.0.0.1' },
    { ...connect, host: '127.1' },
    { ...connect, host: 'a\n' },
    { ...connect, host: 'x'.repeat(64) },
    { ...connect, host: `${'a.'.repeat(127)}a` },
    { ...connect, host: ['a.example'] },
    { ...connect, host: 'a.example', literal: true },
    { ...connect, host: '1.2.3.4%lo', literal: true },
    { ...connect, host: '::1', literal: false },
    { ...connect, literal: 0 },
    { ...connect, port: 0 },
    { ...connect, port: 65_536 },
    { ...connect, port: '443' },
    { ask: 'dns', name: 'a.example', queryType: 'a' },
    { ask: 'dns', name: null, queryType: 'A' },
    inspect,
    { ...inspect, facts: { protocol: 'quic' } },
    { ...inspect, facts: { protocol: 'tls' } },
    { ...inspect, facts: { protocol: 'tls', sni: 'a', ech: 'no' } },
    { ...inspect, facts: { protocol: 'tls', sni: 'a b', ech: false } },
    { ...inspect, facts: { protocol: 'tls', sni: 'x'.repeat(256), ech: false } },
    { ...inspect, facts: { protocol: 'http', httpHost: 'é' } },
    { ...inspect, connection: '3', facts: { protocol: 'ssh' } },
    { ask: 'attempted', attempt: { what: 'everything' } },
    { ask: 'attempted', attempt: { what: 'udp', address: 'example.com' } },
    { ask: 'attempted', attempt: { what: 'udp', port: -1 } },
    { ask: 'attempted' },
    { ask: 'closed', connection: 1, sent: -1, received: 0 },
    { ask: 'closed', connection: 1, sent: 0.5, received: 0 },
  ];
  for (const message of hostile) assert.equal(parse(message), undefined, JSON.stringify(message));
});

test('a claim that cannot be told becomes one that equals no name', () => {
  assert.equal(tellableClaim('a.example'), 'a.example');
  assert.equal(tellableClaim(null), null);
  for (const claim of ['a.example\0', 'é', 'a b', `a.example${' '.repeat(300)}`]) {
    const told = tellableClaim(claim);
    assert.ok(parse({ ask: 'inspect', connection: 1, facts: { protocol: 'http', httpHost: told } }));
    assert.equal(isName(told), false);
  }
});

test('an honest link process that says all that it may stays below what it may say at a time', () => {
  const longest = Math.max(
    ...[
      { ask: 'dns', name: 'a'.repeat(253), queryType: 'A'.repeat(10) },
      { ask: 'inspect', connection: 2 ** 53, facts: { protocol: 'tls', sni: '\\'.repeat(255), ech: false } },
    ].map((message) => JSON.stringify({ type: 'egress', id: 2 ** 53, ...message }).length),
  );
  assert.ok(longest * MAX_OPEN_QUESTIONS < 256 * 1024 - 64 * 1024, `${longest} bytes`);
});
