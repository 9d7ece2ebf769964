/**
 * What an address is besides an address: the special-purpose registries of IANA (RFC 6890 and its successors), the
 * metadata services of clouds, addresses that carry an IPv4 address inside, and this machine's own. Facts only; policy
 * makes something of them.
 */
import { BlockList, isIPv4 } from 'node:net';
import { canonicalAddress } from '../policy/address.ts';
import type { AddressClass } from '../policy/input.ts';

type SpecialRange = readonly [network: string, prefix: number];

/** IPv4 and IPv6 by class. What is global although it lies in a special block (192.0.0.9) counts as special. */
const RANGES: Readonly<Partial<Record<AddressClass, readonly SpecialRange[]>>> = {
  unspecified: [
    ['0.0.0.0', 8],
    ['::', 128],
  ],
  loopback: [
    ['127.0.0.0', 8],
    ['::1', 128],
  ],
  private: [
    ['10.0.0.0', 8],
    ['100.64.0.0', 10], // shared between a carrier's customers, RFC 6598
    ['172.16.0.0', 12],
    ['192.168.0.0', 16],
    ['fc00::', 7],
    ['fec0::', 10], // site-local, deprecated by RFC 3879
  ],
  'link-local': [
    ['169.254.0.0', 16],
    ['fe80::', 10],
  ],
  multicast: [
    ['224.0.0.0', 4],
    ['ff00::', 8],
  ],
  metadata: [
    ['169.254.169.254', 32],
    ['169.254.170.2', 32], // of containers
    ['169.254.170.23', 32], // of pods
    ['169.254.42.42', 32],
    ['169.254.0.23', 32],
    ['168.63.129.16', 32], // public by number, answered by the hypervisor
    ['100.100.100.200', 32],
    ['192.0.0.192', 32],
    ['fd00:ec2::254', 128],
    ['fd00:ec2::23', 128],
    ['fd20:ce::254', 128],
    ['fd00:42::42', 128],
    ['fe80::a9fe:a9fe', 128],
  ],
  reserved: [
    ['192.0.0.0', 24], // IETF protocol assignments
    ['192.0.2.0', 24], // documentation, as the next two
    ['198.51.100.0', 24],
    ['203.0.113.0', 24],
    ['192.88.99.0', 24], // relays of 6to4, deprecated by RFC 7526
    ['198.18.0.0', 15], // benchmarks; synthetic addresses of guests
    ['240.0.0.0', 4],
    ['2001::', 23], // IETF protocol assignments
    ['2001:db8::', 32], // documentation
    ['3fff::', 20], // documentation, RFC 9637
  ],
  translated: [
    ['::', 96], // IPv4-compatible, deprecated by RFC 4291
    ['64:ff9b::', 96], // RFC 6052
    ['64:ff9b:1::', 48], // RFC 8215
    ['2002::', 16], // 6to4
    ['2001::', 32], // Teredo
  ],
};

const LISTS = Object.entries(RANGES).map(([name, ranges]) => {
  const [v4, v6] = [new BlockList(), new BlockList()];
  for (const [network, prefix] of ranges) {
    if (isIPv4(network)) v4.addSubnet(network, prefix, 'ipv4');
    else v6.addSubnet(network, prefix, 'ipv6');
  }
  return { name: name as AddressClass, v4, v6 };
});

/** Unicast that IANA has given out (RFC 4291, section 2.4); all else of IPv6 is reserved. */
const GLOBAL_UNICAST = new BlockList();
GLOBAL_UNICAST.addSubnet('2000::', 3, 'ipv6');

/**
 * Classes of an address in any notation, sorted; empty for one of the public internet. Those of an IPv4 address that it
 * carries are among them. `own`: the canonical addresses of this machine. Throws TypeError if it is no address.
 */
export function addressClasses(text: string, own: ReadonlySet<string>): readonly AddressClass[] {
  const address = canonicalAddress(text);
  if (address === undefined) throw new TypeError(`not an address: ${text}`);
  const found = new Set<AddressClass>();
  if (own.has(address)) found.add('host');
  if (isIPv4(address)) {
    // The canonical form of an IPv4-mapped address is IPv4, and so is what connects to it.
    if (!isIPv4(text)) found.add('translated');
    for (const { name, v4 } of LISTS) if (v4.check(address, 'ipv4')) found.add(name);
  } else {
    for (const { name, v6 } of LISTS) if (v6.check(address, 'ipv6')) found.add(name);
    // These two are addresses in their own right, not IPv4 ones.
    if (found.has('loopback') || found.has('unspecified')) found.delete('translated');
    if (found.size === 0 && !GLOBAL_UNICAST.check(address, 'ipv6')) found.add('reserved');
    if (found.has('translated')) {
      for (const inner of embedded(bytesOf(address))) {
        for (const name of addressClasses(inner, own)) found.add(name);
      }
    }
  }
  return [...found].sort();
}

/** Every IPv4 address that one of the forms of `translated` would carry in these 16 bytes. */
function embedded(bytes: Buffer): string[] {
  const word = (at: number): string => [...bytes.subarray(at, at + 4)].join('.');
  const first = bytes.readUInt32BE(0);
  if (first >>> 16 === 0x2002) return [word(2)];
  if (first === 0x20010000) {
    const client = bytes.subarray(12).map((byte) => byte ^ 0xff);
    return [word(4), [...client].join('.')];
  }
  if (first === 0x0064ff9b && bytes.readUInt16BE(4) === 1) {
    // A network behind RFC 8215's prefix may be any length of RFC 6052: /48, /56, /64 and /96; byte 8 is skipped.
    const at = (positions: readonly number[]): string =>
      positions.map((position) => bytes[position]).join('.');
    return [at([6, 7, 9, 10]), at([7, 9, 10, 11]), at([9, 10, 11, 12]), word(12)];
  }
  return [word(12)];
}

function bytesOf(address: string): Buffer {
  const dotted = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(address);
  let text = address;
  if (dotted) {
    const [a = 0, b = 0, c = 0, d = 0] = dotted.slice(2).map(Number);
    text = `${dotted[1]}${(a * 256 + b).toString(16)}:${(c * 256 + d).toString(16)}`;
  }
  const [left = '', right] = text.split('::');
  const groups = (part: string | undefined): number[] =>
    part ? part.split(':').map((group) => Number.parseInt(group, 16)) : [];
  const [head, tail] = [groups(left), groups(right)];
  const all = [...head, ...Array<number>(8 - head.length - tail.length).fill(0), ...tail];
  const bytes = Buffer.alloc(16);
  for (const [index, group] of all.entries()) bytes.writeUInt16BE(group, 2 * index);
  return bytes;
}
