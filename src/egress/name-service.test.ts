import assert from 'node:assert/strict';
import { test } from 'node:test';
import { dnsQuery, readDnsAnswer } from '../../test/support/egress-dns.ts';
import { SeededRandom } from '../../test/support/egress-random.ts';
import { isHostName } from './host-name.ts';
import { NameService } from './name-service.ts';
import { MAX_NAMES, SyntheticAddresses } from './synthetic-addresses.ts';

const [A, PTR, TXT, AAAA, HTTPS] = [1, 12, 16, 28, 65];

function service(allows: (name: string) => boolean = (name) => name.endsWith('.example')) {
  const asked: string[] = [];
  const names = new NameService({
    dns: async (name, type) => {
      asked.push(`${type} ${name}`);
      if (name === 'broken.example') throw new Error('no daemon');
      return allows(name) ? { allowed: true } : { allowed: false, message: 'no' };
    },
  });
  const ask = async (message: Buffer) => {
    const answer = await names.answer(message);
    return answer && readDnsAnswer(answer);
  };
  return { names, asked, ask };
}

test('an allowed name has one address of each family, with the same number, for the whole run', async () => {
  const { names, asked, ask } = service();
  const first = await ask(dnsQuery('A.Example', A, { id: 7 }));
  assert.deepEqual(first, { id: 7, rcode: 0, answers: ['c6120101'], ttl: 60, edns: false });
  assert.deepEqual((await ask(dnsQuery('a.example', AAAA, { edns: true })))?.answers, [
    'fd6374630000000000000000c6120101',
  ]);
  assert.deepEqual((await ask(dnsQuery('b.example', A)))?.answers, ['c6120102']);
  assert.deepEqual((await ask(dnsQuery('a.EXAMPLE', A)))?.answers, ['c6120101']);
  assert.deepEqual(asked, ['A a.example', 'AAAA a.example', 'A b.example']);
  assert.equal(names.addresses.nameOf('198.18.1.1'), 'a.example');
  assert.equal(names.addresses.nameOf('fd63:7463::c612:101'), 'a.example');
});

test('the case of the question comes back, and EDNS only to who speaks it', async () => {
  const { names, ask } = service();
  const query = dnsQuery('MiXeD.example', A, { edns: true });
  const answer = (await names.answer(query)) as Buffer;
  assert.deepEqual(answer.subarray(12, 27), query.subarray(12, 27));
  assert.equal((await ask(query))?.edns, true);
});

test('other types of an allowed name have no records; a denied name does not exist; without a decision there is an error', async () => {
  const { asked, ask } = service();
  const noData = { id: 0x1234, rcode: 0, answers: [], ttl: undefined, edns: false };
  for (const type of [HTTPS, 64, TXT, 15, 999])
    assert.deepEqual(await ask(dnsQuery('a.example', type)), noData);
  assert.equal((await ask(dnsQuery('a.evil', A)))?.rcode, 3);
  assert.equal((await ask(dnsQuery('a.evil', HTTPS)))?.rcode, 3);
  assert.equal((await ask(dnsQuery('broken.example', A)))?.rcode, 2);
  assert.deepEqual(asked.slice(0, 5), [
    'HTTPS a.example',
    'SVCB a.example',
    'TXT a.example',
    'MX a.example',
    'TYPE999 a.example',
  ]);
});

test('names of addresses that were given out are known, all others are not, and nobody is asked', async () => {
  const { asked, ask } = service();
  await ask(dnsQuery('a.example', A));
  assert.deepEqual((await ask(dnsQuery('1.1.18.198.in-addr.arpa', PTR)))?.answers, [
    '0161076578616d706c6500',
  ]);
  const nibbles = 'fd6374630000000000000000c6120101'.split('').reverse().join('.');
  assert.equal((await ask(dnsQuery(`${nibbles}.ip6.arpa`, PTR)))?.answers.length, 1);
  assert.equal((await ask(dnsQuery('2.1.18.198.in-addr.arpa', PTR)))?.rcode, 3);
  assert.equal((await ask(dnsQuery('8.8.8.8.in-addr.arpa', PTR)))?.rcode, 3);
  assert.equal((await ask(dnsQuery('secret.in-addr.arpa', TXT)))?.rcode, 3);
  assert.deepEqual(asked, ['A a.example']);
});

test('a name that no host can have does not exist; the nearest name above it is on record', async () => {
  const { asked, ask } = service(() => true);
  for (const [name, about] of [
    ['', undefined],
    ['-a.example', 'A example'],
    ['a b.Below.example', 'A below.example'],
    ['a\0.b.c\n.below.example', 'A below.example'],
    ['192.0.2.7', undefined],
    ['127.1', undefined],
    ['a.b.7', undefined],
    ['*.example', 'A example'],
    ['ä.example', 'A example'],
    ['0x7f', undefined],
    ['7.0.0.10.in-addr!.in-addr.arpa', undefined],
  ] as const) {
    assert.equal((await ask(dnsQuery(name, A)))?.rcode, 3, JSON.stringify(name));
    assert.deepEqual(asked.splice(0), about === undefined ? [] : [about], JSON.stringify(name));
  }
  const dotInside = dnsQuery('aXb.example', A);
  dotInside[14] = 0x2e;
  assert.equal((await ask(dotInside))?.rcode, 3);
  assert.deepEqual(asked.splice(0), ['A example']);
  assert.equal((await ask(dnsQuery('a.example', A)))?.rcode, 0, 'the control');
});

test('what is no question is dropped or answered with what is wrong', async () => {
  const { asked, ask } = service(() => true);
  const good = dnsQuery('a.example', A, { edns: true });
  const changed = (at: number, value: number): Buffer => {
    const copy = Buffer.from(good);
    copy[at] = value;
    return copy;
  };
  const end = good.length;
  const cases: [string, Buffer, number | null][] = [
    ['nothing', Buffer.alloc(0), null],
    ['half a header', good.subarray(0, 11), null],
    ['an answer', changed(2, 0x80), null],
    ['too long', Buffer.concat([good, Buffer.alloc(5000)]), null],
    ['another opcode', changed(2, 0x28), 4],
    ['truncated', changed(2, 0x02), 1],
    ['no question', changed(5, 0), 1],
    ['two questions', changed(5, 2), 1],
    ['an answer in it', changed(7, 1), 1],
    ['an authority in it', changed(9, 1), 1],
    ['two additionals', changed(11, 2), 1],
    ['a pointer for a name', changed(12, 0xc0), 1],
    ['cut short', good.subarray(0, 20), 1],
    ['bytes after it', Buffer.concat([good, Buffer.of(0)]), 1],
    ['no OPT', good.subarray(0, end - 11), 1],
    ['another record', changed(end - 9, 40), 1],
    ['OPT of a name', changed(end - 11, 1), 1],
    ['another version of EDNS', changed(end - 5, 1), 16],
    ['class CHAOS', changed(end - 12, 3), 5],
    ['class ANY', changed(end - 12, 255), 4],
    ['a transfer', dnsQuery('a.example', 252), 5],
    ['a name of 254 characters', dnsQuery(`${'a.'.repeat(126)}bb`, A), 1],
  ];
  for (const [what, message, rcode] of cases) assert.equal((await ask(message))?.rcode ?? null, rcode, what);
  // Questions that a resolver does not answer are on record; what is no question is not.
  assert.deepEqual(asked, ['A a.example', 'A a.example', 'TYPE252 a.example']);
  assert.equal(
    (await ask(dnsQuery(`${'a.'.repeat(126)}b`, A)))?.rcode,
    0,
    'negative control: 253 characters',
  );
});

test('whatever comes, only host names are asked about, and every answer can be read', async () => {
  const random = new SeededRandom(53);
  const { asked, ask } = service(() => true);
  const queries = [
    dnsQuery('www.allowed.example', A, { edns: true }),
    dnsQuery('x_y.allowed.example', HTTPS),
  ];
  for (let round = 0; round < 5000; round++) await ask(random.mutated(queries[round % 2] as Buffer));
  assert.ok(asked.length > 100);
  for (const question of asked) assert.ok(isHostName(question.split(' ')[1] ?? ''), question);
});

test('one question is asked once at a time, and many different ones at once have no answer', async () => {
  const waiting: (() => void)[] = [];
  let asked = 0;
  const names = new NameService({
    dns: async () => {
      asked += 1;
      await new Promise<void>((resolve) => waiting.push(resolve));
      return { allowed: true };
    },
  });
  const same = Array.from({ length: 100 }, () => names.answer(dnsQuery('a.example', A)));
  const others = Array.from({ length: 100 }, (_, index) => names.answer(dnsQuery(`n${index}.example`, A)));
  assert.equal(asked, 64);
  for (const resolve of waiting) resolve();
  const rcodes = (await Promise.all([...same, ...others])).map(
    (answer) => readDnsAnswer(answer as Buffer).rcode,
  );
  assert.equal(rcodes.filter((rcode) => rcode === 0).length, 163);
  assert.equal(rcodes.filter((rcode) => rcode === 2).length, 37);
});

test('names are bounded, and every address leads back to its name', () => {
  const addresses = new SyntheticAddresses();
  const seen = new Set<string>();
  for (let index = 0; index < MAX_NAMES; index++) {
    const pair = addresses.assign(`n${index}.example`);
    assert.ok(pair && !/\.(0|255)$/.test(pair.ipv4) && /^198\.(18|19)\./.test(pair.ipv4));
    seen.add(pair.ipv4);
    if (index % 97 !== 0) continue;
    assert.equal(addresses.nameOf(pair.ipv4), `n${index}.example`);
    assert.equal(addresses.nameOf(pair.ipv6), `n${index}.example`);
  }
  assert.equal(seen.size, MAX_NAMES);
  assert.ok(!seen.has('198.18.0.1') && !seen.has('198.18.0.2'));
  assert.equal(addresses.assign('one-more.example'), null);
  assert.ok(addresses.assign('n5.example'), 'those that are there stay');
  for (const address of [
    '198.18.0.1',
    '198.18.1.0',
    '198.19.255.1',
    '198.20.0.1',
    '8.8.8.8',
    '::1',
    'fd63:7463::1',
    'fd63:7463::1:c612:101',
    'x',
  ]) {
    assert.equal(addresses.nameOf(address), undefined, address);
  }
});
