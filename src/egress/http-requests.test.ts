import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SeededRandom } from '../../test/support/egress-random.ts';
import { MAX_HEAD_BYTES } from './http-head.ts';
import { HttpRequests } from './http-requests.ts';
import { SwitchWatcher } from './switch-watcher.ts';

interface Followed {
  readonly hosts: readonly (string | null)[];
  readonly upgrades: readonly (string | null)[];
  /** Everything that would have passed. */
  readonly passed: string;
  readonly violation: string | undefined;
  readonly rest: string;
}

function follow(...pieces: readonly (string | Buffer)[]): Followed {
  const requests = new HttpRequests();
  const hosts: (string | null)[] = [];
  const upgrades: (string | null)[] = [];
  let [passed, rest] = ['', ''];
  let violation: string | undefined;
  for (const piece of pieces) {
    if (violation !== undefined) {
      rest += piece.toString('latin1');
      continue;
    }
    requests.push(Buffer.isBuffer(piece) ? piece : Buffer.from(piece, 'latin1'));
    for (let item = requests.next(); item; item = requests.next()) {
      if (item.kind === 'violation') {
        violation = item.reason;
        rest += item.bytes.toString('latin1');
        continue;
      }
      if (item.kind === 'request') {
        hosts.push(item.host);
        upgrades.push(item.upgrade);
      }
      passed += item.bytes.toString('latin1');
    }
  }
  return { hosts, upgrades, passed, violation, rest: rest + requests.release().toString('latin1') };
}

const get = (host: string, more = ''): string => `GET / HTTP/1.1\r\nHost: ${host}\r\n${more}\r\n`;
const post = (fields: string, body: string): string =>
  `POST /x HTTP/1.1\r\nHost: a.example\r\n${fields}\r\n${body}`;

const CHUNKED = post(
  'Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n',
  '5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n',
);
const GOOD = [
  get('A.Example:8080'),
  post('Content-Length: 11\r\nExpect: 100-continue\r\n', 'GET / HTTP/'),
  CHUNKED,
  'GET http://b.example/x?y HTTP/1.1\r\nhost:\t b.example:80 \r\n\r\n',
  'OPTIONS * HTTP/1.1\r\nHost: [2001:DB8:0::7]:80\r\n\r\n',
  'GET / HTTP/1.0\r\n\r\n',
  'GET http://c.example HTTP/1.0\r\n\r\n',
  'GET / HTTP/1.1\r\nHost:\r\n\r\n',
  get('192.0.2.7'),
].join('');
const GOOD_HOSTS = [
  'a.example',
  'a.example',
  'a.example',
  'b.example',
  '2001:db8::7',
  null,
  'c.example',
  null,
  '192.0.2.7',
];

test('every request of a connection is found with its host, and every byte passes', () => {
  const all = follow(GOOD);
  assert.deepEqual(all.hosts, GOOD_HOSTS);
  assert.equal(all.violation, undefined);
  assert.equal(all.passed, GOOD);
});

test('requests are found alike at every split, and byte by byte', () => {
  for (let at = 1; at < GOOD.length; at++) {
    const split = follow(GOOD.slice(0, at), GOOD.slice(at));
    assert.deepEqual([split.hosts, split.passed], [GOOD_HOSTS, GOOD], `split at ${at}`);
  }
  assert.deepEqual(follow(...GOOD).hosts, GOOD_HOSTS);
});

test('a head passes only when it is complete', () => {
  const head = get('a.example', 'X: y\r\n');
  for (let at = 0; at < head.length; at++) assert.equal(follow(head.slice(0, at)).passed, '');
  assert.equal(follow(head).passed, head);
});

test('an offer of another protocol is told for a first request without a body only', () => {
  const upgrade = 'Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n';
  assert.deepEqual(follow(get('a.example', upgrade)).upgrades, ['websocket']);
  assert.deepEqual(follow(get('a.example', 'Upgrade: websocket\r\n')).upgrades, [null]);
  assert.deepEqual(follow(get('a.example') + get('a.example', upgrade)).upgrades, [null, null]);
  assert.deepEqual(follow(post(`${upgrade}Content-Length: 1\r\n`, 'x')).upgrades, [null]);
});

test('what could be read as another request is a violation, and nothing of it passes', () => {
  const heads: [string, string][] = [
    ['a bare LF after the request line', 'GET / HTTP/1.1\nHost: a.example\r\n\r\n'],
    ['a bare LF after a field', 'GET / HTTP/1.1\r\nHost: a.example\nX: y\r\n\r\n'],
    ['a bare CR in a field', get('a.example', 'X: y\rHost: evil.example\r\n')],
    ['NUL', get('a.example', 'X: \0\r\n')],
    ['a folded field', get('a.example', 'X: y\r\n Host: evil.example\r\n')],
    ['a field that begins with a space', 'GET / HTTP/1.1\r\n Host: evil.example\r\nHost: a.example\r\n\r\n'],
    ['space before the colon', 'GET / HTTP/1.1\r\nHost : a.example\r\n\r\n'],
    ['two Hosts', get('a.example', 'Host: evil.example\r\n')],
    ['the same Host twice', get('a.example', 'host: a.example\r\n')],
    ['two Hosts in one', get('a.example, evil.example')],
    ['userinfo', get('a.example@evil.example')],
    ['a final dot', get('a.example.')],
    ['a port that is none', get('a.example:0')],
    ['a port of six digits', get('a.example:065536')],
    ['an address in octal', get('0177.0.0.1')],
    ['an address as a number', get('2130706433')],
    ['an address without brackets', get('2001:db8::7')],
    ['a name in brackets', get('[a.example]')],
    ['UTF-8', get('\xc3\xa4.example')],
    ['a target of another host', 'GET http://evil.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n'],
    ['a target of another port', 'GET http://a.example:81/ HTTP/1.1\r\nHost: a.example\r\n\r\n'],
    ['a target with userinfo', 'GET http://a.example@evil.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n'],
    ['a target of another scheme', 'GET https://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n'],
    ['a target that is no path', 'GET a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n'],
    ['CONNECT', 'CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n'],
    ['HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
    ['HTTP/0.9', 'GET /\r\n\r\n'],
    ['two spaces', 'GET  / HTTP/1.1\r\nHost: a.example\r\n\r\n'],
    ['HTTP/1.2', 'GET / HTTP/1.2\r\nHost: a.example\r\n\r\n'],
    ['an empty line first', `\r\n${get('a.example')}`],
    ['length and chunks', post('Content-Length: 3\r\nTransfer-Encoding: chunked\r\n', '0\r\n\r\n')],
    ['two lengths', post('Content-Length: 3\r\nContent-Length: 3\r\n', 'abc')],
    ['a list of lengths', post('Content-Length: 3, 3\r\n', 'abc')],
    ['a signed length', post('Content-Length: +3\r\n', 'abc')],
    ['a huge length', post(`Content-Length: ${'9'.repeat(20)}\r\n`, 'abc')],
    ['an empty length', post('Content-Length:\r\n', 'abc')],
    ['another encoding', post('Transfer-Encoding: gzip, chunked\r\n', '0\r\n\r\n')],
    ['an encoding that is nearly right', post('Transfer-Encoding: xchunked\r\n', '0\r\n\r\n')],
    ['two encodings', post('Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n', '0\r\n\r\n')],
    [
      'chunks in HTTP/1.0',
      'POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    ],
    ['a head that is too long', get('a.example', `X: ${'y'.repeat(MAX_HEAD_BYTES)}\r\n`)],
    ['a head that never ends', 'GET / HTTP/1.1\r\nX: '.padEnd(MAX_HEAD_BYTES + 2, 'y')],
    ['too many fields', get('a.example', 'X: y\r\n'.repeat(300))],
  ];
  for (const [what, text] of heads) {
    const { hosts, violation, passed, rest } = follow(text);
    assert.deepEqual([hosts, passed], [[], ''], what);
    assert.notEqual(violation, undefined, what);
    assert.equal(rest, text, what);
    const second = follow(get('a.example'), ...text);
    assert.deepEqual([second.hosts, second.passed], [['a.example'], get('a.example')], what);
    assert.notEqual(second.violation, undefined, what);
  }
});

test('a chunked body that could end elsewhere is a violation', () => {
  const bodies: [string, string][] = [
    ['no size', '\r\nGET'],
    ['a signed size', '-1\r\n'],
    ['hexadecimal with a prefix', '0x5\r\nhello\r\n'],
    ['a huge size', `${'f'.repeat(16)}\r\n`],
    ['a bare LF', '5\nhello\r\n'],
    ['a bare LF in an extension', '5;a\nhello\r\n'],
    ['a bare CR in an extension', '5;a\rb\r\nhello\r\n'],
    ['a space after the size', '5 \r\nhello\r\n'],
    ['data that goes on', '5\r\nhello!\r\n'],
    ['data that ends with LF', '5\r\nhello\n'],
    ['an endless extension', `5;${'x'.repeat(300)}`],
    ['a folded trailer', '0\r\nX: y\r\n z\r\n\r\n'],
    ['a length in a trailer', '0\r\nContent-Length: 3\r\n\r\n'],
    ['a Host in a trailer', '0\r\nHost: evil.example\r\n\r\n'],
    ['endless trailers', `0\r\n${'X: y\r\n'.repeat(2000)}`],
  ];
  for (const [what, body] of bodies) {
    assert.notEqual(follow(post('Transfer-Encoding: chunked\r\n', body)).violation, undefined, what);
    assert.notEqual(follow(...post('Transfer-Encoding: chunked\r\n', body)).violation, undefined, what);
  }
  assert.equal(follow(CHUNKED).violation, undefined, 'negative control');
});

test('whatever changes, pieces make no difference, and no byte is lost, doubled or let through after a violation', () => {
  const random = new SeededRandom(80);
  for (let round = 0; round < 4000; round++) {
    const bytes = random.mutated(Buffer.from(GOOD, 'latin1'));
    const whole = follow(bytes);
    const pieces = follow(...random.pieces(bytes));
    assert.deepEqual(
      [pieces.hosts, pieces.passed],
      [whole.hosts, whole.passed],
      JSON.stringify(bytes.toString('latin1')),
    );
    assert.equal(pieces.violation === undefined, whole.violation === undefined);
    assert.equal(whole.passed + whole.rest, bytes.toString('latin1'));
  }
});

test('the answer to an offer is found behind interim ones, at every split', () => {
  const cases: [string, 'switched' | 'http' | 'more'][] = [
    ['HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n', 'switched'],
    ['HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 101 \r\n', 'switched'],
    ['HTTP/1.1 200 OK\r\nX: HTTP/1.1 101 x\r\n\r\n', 'http'],
    ['HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not\r\n', 'http'],
    ['HTTP/2 101\r\n\r\n', 'http'],
    ['HTTP/1.1 101', 'more'],
    ['HTTP/1.1 100 Continue\r\nX: y\r\n', 'more'],
  ];
  for (const [text, expected] of cases) {
    for (let at = 0; at < text.length; at++) {
      const watcher = new SwitchWatcher();
      const first = watcher.push(Buffer.from(text.slice(0, at)));
      const last = first === 'more' ? watcher.push(Buffer.from(text.slice(at))) : first;
      assert.equal(last, expected, `${JSON.stringify(text)} at ${at}`);
    }
  }
});
