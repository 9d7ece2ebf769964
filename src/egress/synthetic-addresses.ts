/**
 * The addresses that stand for names in one VM. A name that may be known has one of each family, with the same number:
 *
 *     IPv4  198.18.0.0/15 (RFC 2544: benchmarks; never routed), from 198.18.1.1, without last bytes 0 and 255
 *     IPv6  fd63:7463::/64 (RFC 4193), its last 32 bits are the IPv4 address
 *
 * They are given out in order: an address says nothing outside of its VM, and one that was not given out leads nowhere, so
 * there is nothing to guess; and the same job sees the same addresses again, which makes its logs comparable.
 */

/** Where the guest's resolver listens. */
export const RESOLVER_ADDRESS = '198.18.0.1';

/** Guest-controlled, where policy allows a wildcard. A build asks for dozens; so many take 10 MiB of the link process. */
export const MAX_NAMES = 16_384;

const NETWORK = 198 * 2 ** 24 + 18 * 2 ** 16;
const HOSTS_PER_BLOCK = 254;

export interface SyntheticPair {
  readonly ipv4: string;
  readonly ipv6: string;
}

export class SyntheticAddresses {
  readonly #names: string[] = [];
  readonly #indexes = new Map<string, number>();

  /** The addresses of `name` (a canonical host name); the same ever after. Null: MAX_NAMES others have theirs. */
  assign(name: string): SyntheticPair | null {
    let index = this.#indexes.get(name);
    if (index === undefined) {
      index = this.#names.length;
      if (index >= MAX_NAMES) return null;
      this.#names.push(name);
      this.#indexes.set(name, index);
    }
    return pairOf(index);
  }

  /** The name that an address (in canonical form) stands for, if it was given out. */
  nameOf(address: string): string | undefined {
    const index = indexOf(address);
    return index === undefined ? undefined : this.#names[index];
  }
}

function pairOf(index: number): SyntheticPair {
  const block = 1 + Math.floor(index / HOSTS_PER_BLOCK);
  const number = NETWORK + block * 256 + 1 + (index % HOSTS_PER_BLOCK);
  const bytes = [number >>> 24, (number >>> 16) & 0xff, (number >>> 8) & 0xff, number & 0xff];
  const [high, low] = [number >>> 16, number & 0xffff];
  return { ipv4: bytes.join('.'), ipv6: `fd63:7463::${high.toString(16)}:${low.toString(16)}` };
}

function indexOf(address: string): number | undefined {
  const ipv6 = /^fd63:7463::([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(address);
  let number: number;
  if (ipv6) {
    number = Number.parseInt(ipv6[1] ?? '', 16) * 65_536 + Number.parseInt(ipv6[2] ?? '', 16);
  } else {
    const bytes = address.split('.').map(Number);
    if (bytes.length !== 4) return undefined;
    number = bytes.reduce((sum, byte) => sum * 256 + byte, 0);
  }
  const offset = number - NETWORK;
  const [block, last] = [Math.floor(offset / 256), offset % 256];
  if (!(block >= 1 && block < 512 && last >= 1 && last <= HOSTS_PER_BLOCK)) return undefined;
  return (block - 1) * HOSTS_PER_BLOCK + last - 1;
}
