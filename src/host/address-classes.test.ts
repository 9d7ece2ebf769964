import assert from 'node:assert/strict';
import { test } from 'node:test';
import { addressClasses } from './address-classes.ts';

const OWN = new Set(['203.0.113.200', '9.9.9.9', '2a00:1::5']);

const TABLE: readonly (readonly [address: string, classes: string])[] = [
  // Public.
  ['1.1.1.1', ''],
  ['8.8.8.8', ''],
  ['100.63.255.255', ''],
  ['100.128.0.0', ''],
  ['172.15.255.255', ''],
  ['172.32.0.0', ''],
  ['192.167.255.255', ''],
  ['198.17.255.255', ''],
  ['198.20.0.0', ''],
  ['223.255.255.255', ''],
  ['168.63.129.15', ''],
  ['2606:4700::1111', ''],
  ['2a00:1450:4001::5', ''],
  // IPv4.
  ['0.0.0.0', 'unspecified'],
  ['0.1.2.3', 'unspecified'],
  ['127.0.0.1', 'loopback'],
  ['127.255.255.255', 'loopback'],
  ['10.0.0.1', 'private'],
  ['100.64.0.1', 'private'],
  ['172.16.0.1', 'private'],
  ['172.31.255.255', 'private'],
  ['192.168.255.255', 'private'],
  ['169.254.1.1', 'link-local'],
  ['169.254.169.254', 'link-local metadata'],
  ['169.254.170.2', 'link-local metadata'],
  ['169.254.170.23', 'link-local metadata'],
  ['169.254.42.42', 'link-local metadata'],
  ['169.254.0.23', 'link-local metadata'],
  ['168.63.129.16', 'metadata'],
  ['100.100.100.200', 'metadata private'],
  ['192.0.0.192', 'metadata reserved'],
  ['192.0.0.9', 'reserved'],
  ['192.0.2.1', 'reserved'],
  ['192.88.99.1', 'reserved'],
  ['198.18.0.1', 'reserved'],
  ['198.19.255.255', 'reserved'],
  ['198.51.100.7', 'reserved'],
  ['203.0.113.7', 'reserved'],
  ['203.0.113.200', 'host reserved'],
  ['9.9.9.9', 'host'],
  ['224.0.0.1', 'multicast'],
  ['239.255.255.255', 'multicast'],
  ['240.0.0.1', 'reserved'],
  ['255.255.255.255', 'reserved'],
  // IPv6.
  ['::', 'unspecified'],
  ['::1', 'loopback'],
  ['fc00::1', 'private'],
  ['fdff::1', 'private'],
  ['fec0::1', 'private'],
  ['fe80::1', 'link-local'],
  ['febf::1', 'link-local'],
  ['ff02::1', 'multicast'],
  ['fd00:ec2::254', 'metadata private'],
  ['fd00:ec2::23', 'metadata private'],
  ['fd20:ce::254', 'metadata private'],
  ['fd00:42::42', 'metadata private'],
  ['fe80::a9fe:a9fe', 'link-local metadata'],
  ['2a00:1::5', 'host'],
  ['100::1', 'reserved'],
  ['2001:2::1', 'reserved'],
  ['2001:20::1', 'reserved'],
  ['2001:db8::1', 'reserved'],
  ['3fff::1', 'reserved'],
  ['5f00::1', 'reserved'],
  ['4000::1', 'reserved'],
  ['fe00::1', 'reserved'],
  // IPv4 inside.
  ['::ffff:8.8.8.8', 'translated'],
  ['::ffff:808:808', 'translated'],
  ['::ffff:127.0.0.1', 'loopback translated'],
  ['::ffff:7f00:1', 'loopback translated'],
  ['::ffff:169.254.169.254', 'link-local metadata translated'],
  ['::ffff:9.9.9.9', 'host translated'],
  ['::127.0.0.1', 'loopback translated'],
  ['64:ff9b::8.8.8.8', 'translated'],
  ['64:ff9b::a9fe:a9fe', 'link-local metadata translated'],
  ['64:ff9b:1::10.0.0.1', 'private translated unspecified'],
  ['64:ff9b:1:7f00:0:100::', 'loopback translated unspecified'],
  ['2002:7f00:1::', 'loopback translated'],
  ['2002:808:808::1', 'translated'],
  ['2001:0:808:808:0:0:80ff:fffe', 'loopback reserved translated'],
  ['2001:0:a00:1:0:0:f7f7:f7f7', 'private reserved translated'],
];

for (const [address, classes] of TABLE) {
  test(`${address} is ${classes === '' ? 'public' : classes}`, () => {
    assert.equal(addressClasses(address, OWN).join(' '), classes);
  });
}

test('text that is no address has no classes', () => {
  for (const text of [
    '',
    'example.com',
    '127.1',
    '0x7f000001',
    '010.0.0.1',
    'fe80::1%eth0',
    '[::1]',
    '1.2.3.4.5',
  ]) {
    assert.throws(() => addressClasses(text, OWN), TypeError, text);
  }
});
