import assert from 'node:assert/strict';
import { isIP, SocketAddress } from 'node:net';
import { test } from 'node:test';
import { canonicalAddress, parseNetwork } from './address.ts';
import { canonicalHost, indexDestinations, narrowIndex, parseDestination } from './destination.ts';

/** `host port protocol` of what an entry lowers to. */
function lower(text: string, everything = false): string[] {
  const parsed = parseDestination(text, { everything });
  assert.ok('kind' in parsed, `${text}: ${JSON.stringify(parsed)}`);
  if (parsed.kind === 'preset') return [`preset ${parsed.name}`];
  for (const { rule, addresses } of parsed.destinations)
    assert.deepEqual([rule, addresses], [text, 'public']);
  return parsed.destinations.map(({ host, port, protocol }) => `${host} ${port} ${protocol}`);
}

test('every form of the grammar lowers to a host, a port and a protocol', () => {
  const forms: [string, string[]][] = [
    ['npm', ['preset npm']],
    ['example.com', ['example.com 443 tls', 'example.com 80 http']],
    ['Example.COM.', ['example.com 443 tls', 'example.com 80 http']],
    ['*.example.com', ['*.example.com 443 tls', '*.example.com 80 http']],
    ['https://example.com:8443', ['example.com 8443 tls']],
    ['tls://example.com', ['example.com 443 tls']],
    ['HTTPS://example.com', ['example.com 443 tls']],
    ['http://example.com', ['example.com 80 http']],
    ['ssh://git.example.com', ['git.example.com 22 ssh']],
    ['ssh://git.example.com:2222', ['git.example.com 2222 ssh']],
    ['tcp://db.example.com:5432', ['db.example.com 5432 tcp']],
    ['tcp://localhost:5432', ['localhost 5432 tcp']],
    ['tcp://192.0.2.7:5432', ['192.0.2.7 5432 tcp']],
    ['https://192.0.2.7', ['192.0.2.7 443 tls']],
    ['tcp://[2001:DB8:0:0::7]:5432', ['2001:db8::7 5432 tcp']],
    ['https://bücher.example', ['xn--bcher-kva.example 443 tls']],
    ['https://_sip.example.com', ['_sip.example.com 443 tls']],
  ];
  for (const [text, expected] of forms) assert.deepEqual(lower(text), expected, text);
  assert.deepEqual(lower('*', true), ['* 0 tcp']);
});

test('what is not in the grammar is refused with what to write instead', () => {
  const refused: [string, RegExp, RegExp][] = [
    ['*', /not for jobs/, /\*\.example\.com/],
    ['ftp://example.com', /`ftp:\/\/` is not known/, /https:\/\//],
    ['https://example.com/path', /has a path/, /write `https:\/\/example\.com`$/],
    ['example.com/path', /has a path/, /write `example\.com`$/],
    ['https://user@example.com', /user name/, /leave out/],
    ['example.com:8443', /which protocol/, /tcp:\/\/example\.com:8443/],
    ['192.0.2.7', /which protocol is spoken, and on which port/, /tcp:\/\/192\.0\.2\.7:PORT/],
    ['[2001:db8::7]', /which protocol/, /tcp:\/\/\[2001:db8::7\]:PORT/],
    ['tcp://db.example.com', /names no port/, /:PORT/],
    ['tcp://db.example.com:0', /not a port/, /65535/],
    ['tcp://db.example.com:65536', /not a port/, /65535/],
    ['tcp://db.example.com:', /not a port/, /65535/],
    ['tcp://2001:db8::7:5432', /not `HOST`/, /brackets/],
    ['https://exa*mple.com', /`\*` where none/, /\*\.example/],
    ['https://*.*.example.com', /`\*` where none/, /\*\.example/],
    ['https://127.1', /neither a name nor a plain address/, /decimal/],
    ['https://0x7f.0.0.1', /neither a name/, /decimal/],
    ['https://2130706433', /neither a name/, /decimal/],
    ['https://[192.0.2.7]', /not the name/, /192/],
    ['https://[fe80::1%eth0]', /not the name/, /192/],
    ['https://example..com', /not the name/, /example\.com/],
    ['https://', /names no host/, /write it, as in `https:\/\/example\.com`$/],
    ['http://:80', /names no host/, /as in `http:\/\/example\.com:80`$/],
    ['http://…', /`…` is not the name of a host/, /example\.com/],
    ['http:/example.com', /lacks `:\/\/` behind `http`/, /write `http:\/\/example\.com`$/],
    ['https:example.com', /lacks `:\/\/`/, /write `https:\/\/example\.com`$/],
    ['http//example.com', /lacks `:\/\/`/, /write `http:\/\/example\.com`$/],
    ['https:', /lacks `:\/\/`/, /write `https:\/\/example\.com`$/],
    ['https://-x.example.com', /not the name/, /example\.com/],
    [`https://${'a'.repeat(64)}.com`, /not the name/, /example\.com/],
    [`https://${'a.'.repeat(127)}com`, /not the name/, /example\.com/],
    ['two words.com', /not the name/, /example\.com/],
    ['', /is empty/, /example\.com/],
  ];
  for (const [text, wrong, hint] of refused) {
    const parsed = parseDestination(text);
    assert.ok('wrong' in parsed, `${text} was accepted`);
    assert.match(parsed.wrong, wrong, text);
    assert.match(parsed.hint, hint, text);
  }
});

test('an address has one form, the one that the system writes', () => {
  const spellings = [
    '2001:db8:0:0:1:0:0:1',
    '::',
    '::1',
    '1::',
    '0:0:0:1:0:0:0:0',
    '1:0:2:3:4:5:6:7',
    '64:ff9b::192.0.2.7',
    'FE80::00ab',
    '1:2:3:4:5:6:7:8',
    '0:1:0:1:0:1:0:1',
  ];
  for (const text of spellings) {
    const ours = canonicalAddress(text);
    assert.ok(ours !== undefined && isIP(ours) === 6, text);
    assert.equal(ours, new SocketAddress({ address: text, family: 'ipv6' }).address, text);
  }
  assert.equal(canonicalAddress('::ffff:192.0.2.7'), '192.0.2.7');
  assert.equal(canonicalAddress('::FFFF:c000:207'), '192.0.2.7');
  for (const text of [
    '1:2:3:4:5:6:7',
    '1::2::3',
    ':1',
    '1:',
    '12345::',
    '::1.2.3',
    '1.2.3.4::',
    '01.2.3.4',
    '1.2.3',
    '256.1.1.1',
    '1:2:3:4:5:6:7::8:9',
    ' 1.2.3.4',
    ':::',
    '1.2.3.4.5',
    '::1.2.3.4:5',
  ]) {
    assert.equal(canonicalAddress(text), undefined, text);
    assert.equal(isIP(text), 0, text);
  }
});

test('a network is its canonical base and prefix; stray bits are a slip', () => {
  const read = (text: string): unknown => {
    const network = parseNetwork(text);
    return network !== undefined && 'text' in network ? network.text : network;
  };
  assert.equal(read('10.0.0.0/8'), '10.0.0.0/8');
  assert.equal(read('192.0.2.7/32'), '192.0.2.7');
  assert.equal(read('192.0.2.7'), '192.0.2.7');
  assert.equal(read('FD00::/8'), 'fd00::/8');
  assert.equal(read('0.0.0.0/0'), '0.0.0.0/0');
  assert.equal(read('example.com'), undefined);
  assert.match(JSON.stringify(read('10.0.0.1/8')), /write `10\.0\.0\.0\/8`/);
  assert.match(JSON.stringify(read('10.0.0.0/33')), /0 to 32/);
  assert.match(JSON.stringify(read('10.0.0.0/08')), /0 to 32/);
});

test('the index finds what is below a name by its dots alone, and names are never properties of objects', () => {
  const entries = ['a.example', '*.a.example', 'https://constructor.example', 'tcp://a.example:22'].flatMap(
    (text) => {
      const parsed = parseDestination(text);
      return 'kind' in parsed && parsed.kind === 'destinations' ? parsed.destinations : [];
    },
  );
  const index = indexDestinations(entries);
  assert.deepEqual(
    index.exact['a.example']?.map((one) => one.port),
    [443, 80, 22],
  );
  assert.deepEqual(Object.keys(index.below), ['a.example']);
  assert.equal(index.exact['constructor'], undefined);
  const narrow = narrowIndex(index, 'x.y.a.example');
  assert.deepEqual([Object.keys(narrow.exact), Object.keys(narrow.below)], [[], ['a.example']]);
  const evil = narrowIndex(index, 'evil-a.example');
  assert.deepEqual([Object.keys(evil.exact), Object.keys(evil.below)], [[], []]);
  assert.deepEqual(Object.keys(narrowIndex(index, 'a.example').exact), ['a.example']);
  assert.deepEqual(narrowIndex(index, 'constructor'), { exact: {}, below: {}, any: [] });
});

test('canonicalHost tells names from addresses', () => {
  assert.deepEqual(canonicalHost('EXAMPLE.com'), { host: 'example.com', literal: false });
  assert.deepEqual(canonicalHost('[::1]'), { host: '::1', literal: true });
  assert.deepEqual(canonicalHost('127.0.0.1'), { host: '127.0.0.1', literal: true });
});
